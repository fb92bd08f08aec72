//! Tests of the session, its drivers and the pairing.

mod common;
mod net;
mod pairing;
mod sessions;
