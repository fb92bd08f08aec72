//! Sensors: what tells Farwrite that a file has changed.
//!
//! Every sensor is a [`ChangeSource`]: it delivers [`farwrite_core::Change`]s, in order, for everything that
//! happens below the protected directories ([`WatchRoot`]). A change is a hint where to look; the one promise
//! is that nothing changes without a message naming the directory and the name (or the file's identity), or
//! a `Subtree` or `Overflow` that covers it. What each operation looks like through each sensor is the table
//! in `docs/capture.md`, which the conformance suite asserts.
//!
//! A sensor never changes a file, never holds an application up, and never reads a file's content. This is the
//! only crate with `unsafe` but for `memory`, all of it in `sys` and the files like it of the kernel sensors.

mod batch;
mod clock;
#[cfg(feature = "ebpf")]
mod ebpf;
mod fanotify;
mod held;
mod inotify;
mod kmod;
mod mark;
mod open;
mod probe;
mod record;
mod scan;
mod source;
mod sys;
mod wake;

#[cfg(feature = "ebpf")]
pub use ebpf::EbpfSource;
pub use fanotify::FanotifySource;
pub use inotify::InotifySource;
pub use kmod::KmodSource;
#[doc(hidden)]
pub use kmod::drain_records;
pub use open::{end_recordings, open};
pub use probe::{SensorProbe, probe};
pub use scan::ScanSource;
pub use source::{
    ChangeSource, Continuity, READ_CHANGES, ReadState, SensorChoice, SensorError, SensorKind,
    SensorOptions, SensorStats, WatchRoot,
};
pub use sys::start_writeback;
pub use wake::Waker;
