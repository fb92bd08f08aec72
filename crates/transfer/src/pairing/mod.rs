//! How a vault and a source come to know each other: a one-line invite made at the vault, redeemed once by the source.
//!
//! The invite carries the vault's fingerprint, so the source trusts that key and no other; redeeming it tells the
//! vault the source's. Tokens are stored as hashes only. Time is passed in.

mod invite;
pub(crate) mod store;

pub use invite::{BadInvite, Invite};
pub use store::{InviteStore, PairingError, PeerStore, RedeemError, StoreError};
