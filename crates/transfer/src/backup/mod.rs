//! The network backup unit's sending half: told by backup commands where to look, it compares the tree with
//! what it last sent (the [`Index`]), finds the variant part of each file, and writes batches of operations.
//!
//! The tree is the truth: a command that says too much costs a `statx`, and no order of commands can make the
//! result wrong, only dearer. What it sends is what it has put into the index, in one transaction per batch;
//! whatever a vault turns out not to have is rolled back from the index and looked at again.

mod ahead;
mod batch;
mod content;
mod doubts;
mod file;
mod in_order;
mod index;
mod look;
mod pack;
mod rows;
mod seen;
mod tree;
mod unit;

pub use batch::{BatchWriter, RecordSink, SinkClosed};
pub use index::{Index, IndexError, IndexState};
pub use rows::{NodeFlags, NodeRow};
pub use seen::Told;
pub use tree::{RootSpec, Tree};
pub use unit::{
    BackupStats, BackupUnit, FILES_TOLD, Problem, RoundReport, SentFile, UnitError, Writeback,
};
