//! End-to-end tests of the real binary: source, vault and commands as separate processes, judged from outside.
//!
//! Tests that load the whole machine have names that start with `heavy_`; they run one at a time.

mod databases;
mod fidelity;
mod harness;
mod limits;
mod ssh;
mod tree;
