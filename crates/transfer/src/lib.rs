//! The network backup unit, the same crate at both ends: the source's half compares, reads and sends; the
//! session carries records and acks; the destination's half receives.
//!
//! Sees neither sensors nor the vault's storage: the vault stands behind a trait.
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

pub mod answer;
pub mod backup;
pub mod message;
pub mod net;
pub mod pairing;
pub mod session;
