//! What every sensor must hold, run as root against the running kernel: the table of operations, the contract under
//! random storms, and what happens at the edges (overflow, limits, depth, odd names, letting go).
//!
//! Nothing here is skipped: without root the tests fail and say so.
#![expect(clippy::unwrap_used, reason = "tests and their fixtures")]

mod behaviour;
mod contract;
mod exact;
mod more;
mod place;
mod table;
