//! The segment log: records ([`farwrite_core::record`]) in files of about 256 MiB, append-only, immutable once
//! closed but for the content of blocks that retention frees. This is the truth of the vault; nothing here ever changes a byte
//! before the last durable commit to anything but a hole.

mod batch;
mod header;
mod log;
mod pruned;
mod read;
mod recover;
mod scan;

pub use batch::{BatchReader, BlockPlace, LoggedBatch};
pub use header::{SEGMENT_HEADER_BYTES, SEGMENT_VERSION, SegmentHeader};
#[cfg(test)]
pub(crate) use log::slow_disk;
pub use log::{LogWriter, SEGMENT_BYTES, Syncing};
pub use pruned::{
    DeadBlock, FREE_UNIT_BYTES, Freed, PrunedList, can_free, free_blocks, freeable, pruned_path,
};
pub use read::{BlockReader, SegmentFiles};
pub use recover::{Known, Recovered};
pub use scan::{Damage, Found, Scan};

/// Most zeros behind the last batch of the last segment.
pub const RESERVE_BYTES: u64 = 1 << 20;

use farwrite_core::BatchSeq;
use farwrite_core::op::BadOp;
use farwrite_core::record::BadRecord;
use std::io;
use std::path::{Path, PathBuf};

/// A place in the log: segment number and byte offset in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Number of the segment; starts at 1.
    pub segment: u64,
    /// Bytes from the start of its file.
    pub offset: u64,
}

/// Where a segment's file is.
pub fn segment_path(dir: &Path, segment: u64) -> PathBuf {
    dir.join(format!("{segment:08}.seg"))
}

/// Numbers of the segments in a directory, ascending. Other files are ignored.
pub fn list_segments(dir: &Path) -> Result<Vec<u64>, LogError> {
    let fail = |source| LogError::io("list", dir, source);
    let mut list = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        let number = name.to_str().and_then(|n| n.strip_suffix(".seg"));
        if let Some(n) = number.filter(|n| n.len() >= 8).and_then(|n| n.parse().ok()) {
            list.push(n);
        }
    }
    list.sort_unstable();
    Ok(list)
}

/// What went wrong in the log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The operating system refused. Final for the writer: it is to be opened anew.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// An earlier error closed this writer.
    #[error("the log is closed after an error: {0}")]
    Poisoned(String),
    /// A record of another batch than the one expected.
    #[error("record of batch {got} where batch {expected} was expected")]
    Sequence {
        /// The batch that is open or next.
        expected: BatchSeq,
        /// What came.
        got: BatchSeq,
    },
    /// A record that has no place in a log.
    #[error("a record of kind {0:?} does not belong in the log")]
    Kind(farwrite_core::RecordKind),
    /// A record that does not decode.
    #[error("batch {seq}: {source}")]
    Record {
        /// Its batch.
        seq: BatchSeq,
        /// What is wrong.
        source: BadRecord,
    },
    /// An operation out of its bounds.
    #[error("batch {seq}, operation {op}: {source}")]
    Op {
        /// Its batch.
        seq: BatchSeq,
        /// Which one, counted from 0.
        op: u64,
        /// What is wrong.
        source: BadOp,
    },
    /// More operations, blocks or bytes of operations than a batch may have.
    #[error("batch {seq} has too many {what}: more than {limit}")]
    TooMany {
        /// Its batch.
        seq: BatchSeq,
        /// Of what.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// The commit does not describe the batch before it.
    #[error("batch {seq}: its commit says {what} {said}, the batch has {found}")]
    Count {
        /// Its batch.
        seq: BatchSeq,
        /// Of what.
        what: &'static str,
        /// In the commit.
        said: u64,
        /// In the batch.
        found: u64,
    },
    /// The commit's chain value is wrong: the batch is not the one that follows what is here.
    #[error("batch {seq} does not link up with the batch before it")]
    Chain {
        /// Its batch.
        seq: BatchSeq,
    },
    /// Time went back.
    #[error("batch {seq} is older than the batch before it")]
    Time {
        /// Its batch.
        seq: BatchSeq,
    },
    /// A stored record is damaged.
    #[error("log damaged: segment {segment}, offset {offset}{}: {what}", .seq.map(|s| format!(", batch {s}")).unwrap_or_default())]
    Damaged {
        /// Which segment.
        segment: u64,
        /// Where in it.
        offset: u64,
        /// Which batch, where known.
        seq: Option<BatchSeq>,
        /// What is wrong.
        what: String,
    },
    /// Content that retention has freed.
    #[error("batch {seq}: this content is no longer kept, it has been pruned")]
    Pruned {
        /// Its batch.
        seq: BatchSeq,
    },
    /// A segment of a later version.
    #[error("{path} was made by a newer Farwrite (segment format {version})")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
}

impl LogError {
    pub(crate) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        LogError::Io {
            what,
            path: path.to_owned(),
            source,
        }
    }

    /// Is it the machine's fault (disk full, I/O error) rather than the source's?
    pub fn is_io(&self) -> bool {
        matches!(self, LogError::Io { .. } | LogError::Poisoned(_))
    }
}

/// Makes what was done to a directory's entries durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), LogError> {
    let fail = |e| LogError::io("sync directory", dir, e);
    std::fs::File::open(dir)
        .map_err(fail)?
        .sync_all()
        .map_err(fail)
}
