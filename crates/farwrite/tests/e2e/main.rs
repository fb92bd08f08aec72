//! End-to-end tests of the real binary: source, vault and commands as separate processes, judged from outside.
//!
//! Tests that load the whole machine have names that start with `heavy_`; they run one at a time.

mod badinput;
mod crash;
mod databases;
mod fidelity;
mod harness;
mod limits;
mod network;
mod property;
mod proxy;
mod rig;
mod ssh;
mod tree;
mod trouble;
