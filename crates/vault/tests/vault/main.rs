//! Tests of the vault through its public API; one binary, so that the oracle is built once.

mod catalog;
mod common;
mod frozen;
mod mirror;
mod refused;
mod retention;
mod segment_log;
mod sharing;
mod source;
