//! The words that every part of Farwrite shares: identifiers, byte paths, extents, changes,
//! operations, records and limits.
//!
//! Nothing here does I/O or reads a clock. The other crates (`capture`, `schedule`, `transfer`,
//! `vault`) never see each other: whatever passes between them is a type of this crate.

#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod change;
pub mod clock;
pub mod codec;
pub mod command;
pub mod exclude;
pub mod extent;
pub mod history;
pub mod ids;
pub mod limits;
pub mod meta;
pub mod op;
pub mod path;
pub mod record;
pub mod time;

pub use change::{Change, ChangeOp, Guarantee};
pub use clock::{Clock, SystemClock};
pub use command::{BackupCommand, Search, Target, What};
pub use extent::{Extent, ExtentSet};
pub use ids::{BatchSeq, ChangeSeq, Epoch, FileId, NodeId, SourceName};
pub use meta::{Kind, Meta, Origin};
pub use op::{Commit, Op};
pub use path::{BytePath, Name};
pub use record::{Record, RecordHeader, RecordKind};
pub use time::Timestamp;
