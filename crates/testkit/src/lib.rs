//! For tests only: an in-memory projection of the log to judge others by, snapshots of real trees, and a
//! seeded source of chance.

pub mod chance;
pub mod model;
pub mod snapshot;

pub use chance::Chance;
pub use model::Model;
pub use snapshot::{Snapshot, SnapshotEntry};
