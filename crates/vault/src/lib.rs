//! The vault: where the bytes are kept. One append-only log of checksummed segments per source is the truth;
//! catalog (SQLite) and mirror (a plain tree) are projections of it and can be made anew from it at any time.
//!
//! Nothing here knows how records travel or which sensor saw a change, and nothing here trusts a source: a path,
//! link, length or name from a record never reaches outside the source's own directory.

pub mod catalog;
pub mod history;
pub mod mirror;
pub mod restore;
pub mod retention;
pub mod segment;
pub mod source_vault;
mod turns;
pub mod vault;
pub mod verify;

pub use history::History;
pub use restore::{Restore, RestoreError, RestoreStats, write_content};
pub use source_vault::{
    Closed, Event, Events, LastPrune, Options, PRUNE_EVERY, PruneAnswer, PruneRequest, SourceVault,
};
pub use vault::{SourceInfo, SourceStatus, Vault, VaultError, VaultInfo};
pub use verify::{Finding, VerifyReport, verify_source};
