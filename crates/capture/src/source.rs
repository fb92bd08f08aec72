//! The trait behind which every sensor stands, and the words around it.

use crate::Waker;
use farwrite_core::{BytePath, Change, ChangeOp, FileId, Guarantee, Timestamp};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::time::Duration;

/// One call of [`ChangeSource::read`] returns once it has appended about this many changes (a step
/// of about a thousand may go beyond).
pub const READ_CHANGES: usize = 16_384;

/// A protected directory tree as the sensors see it.
///
/// It covers the directory's own filesystem: what is mounted below it needs a root of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchRoot {
    /// Where it is; every reported path starts with this.
    pub path: BytePath,
    /// The directory's identity.
    pub id: FileId,
}

impl WatchRoot {
    /// Looks the directory up. A symbolic link as the last component is not followed.
    pub fn lookup(path: BytePath) -> Result<Self, SensorError> {
        let stat = rustix::fs::lstat(path.as_path()).map_err(|e| SensorError::Root {
            path: path.clone(),
            source: e.into(),
        })?;
        if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::Directory {
            return Err(SensorError::Root {
                path,
                source: io::Error::from(io::ErrorKind::NotADirectory),
            });
        }
        let id = crate::sys::file_id(&stat);
        Ok(WatchRoot { path, id })
    }

    /// A message about the whole tree.
    pub(crate) fn whole(&self, time: Timestamp, op: ChangeOp) -> Change {
        Change {
            time,
            path: self.path.clone(),
            dir: self.id,
            name: None,
            file: None,
            op,
        }
    }
}

/// A stream of file modification messages.
pub trait ChangeSource: Send {
    /// Which sensor.
    fn kind(&self) -> SensorKind;

    /// What it promises.
    fn guarantee(&self) -> Guarantee;

    /// Waits up to `timeout` until there is a change or the [`Waker`] is used, then appends what is there to
    /// `out`, about [`READ_CHANGES`] at most.
    ///
    /// Messages come in the order in which the kernel queued them. Besides the named ones there are:
    /// * `name: None`, `Subtree` or `Overflow`: anything at and below `dir` may have changed;
    /// * `name: None`, `file: Some(id)`, `Write` or `Attrib`: this file changed, but under a name that is not below
    ///   the root or no more (another hard link, a file opened by handle). `dir` is the root. It is about the
    ///   root directory itself if `file == Some(dir)`.
    /// * a `Write` or `Attrib` whose name no longer is in `dir`, with `file` set: look the file up by identity.
    ///
    /// A `Delete` does not mean that nothing has the name now, nor a `Create` that something has: in an exchange with
    /// a name outside the root the arrival is told of first. Look.
    ///
    /// What a consumer has to do for nothing to be missed, whatever moves about meanwhile:
    /// * `dir` of a `Subtree` is what counts. If that directory is no longer at `path`, a later message says where it
    ///   went; it stays to be compared.
    /// * A directory renamed from where the consumer did not know it to be is new: to be compared.
    /// * An inode number alone is not an identity over time: a removed directory's is given to the next.
    ///
    /// [`ReadState::Drained`]: whatever was changed before the first call since the last `Drained` has been delivered: the
    /// queue was seen empty, or, where it is filled as fast as it is read, as much has been read as it held then. Errors are final: open a new source and scan.
    fn read(&mut self, out: &mut Vec<Change>, timeout: Duration) -> Result<ReadState, SensorError>;

    /// A handle with which another thread makes [`ChangeSource::read`] return at once. A wake between two reads
    /// counts for the next.
    fn waker(&self) -> Waker;

    /// What it has done so far.
    fn stats(&self) -> SensorStats;

    /// Everything that [`ChangeSource::read`] has handed out is in the journal: the kernel may forget it. A sensor that
    /// does not persist has nothing to do.
    fn release(&mut self) -> Result<(), SensorError> {
        Ok(())
    }

    /// What has changed until now is wanted at the next read. A sensor that is told of changes has nothing to do; one that is told of
    /// nearly all looks for the rest, but not again within five seconds.
    fn look_now(&mut self) {}

    /// What it takes to know later that recording has never stopped; `None` if the sensor does not persist. Constant
    /// while the source is open.
    fn continuity(&self) -> Option<Continuity> {
        None
    }

    /// What a person should know now and can do about; `None` if all is well.
    fn state(&self) -> Option<String> {
        None
    }

    /// Switches off: lets go of the kernel side for good. Marks and watches are removed, descriptors closed, replaced
    /// calls put back; nothing is recorded any more, and what comes next has to compare. For a sensor that
    /// does not [persist](Guarantee::persists), drop does the same.
    fn close(self: Box<Self>);

    /// Ends this reader and lets a sensor that persists go on recording for the next one, which finds the same
    /// [`Continuity`] and all that was not released. So does drop, and so does the death of the process: a daemon that merely stops
    /// or restarts leaves, it does not close.
    fn leave(self: Box<Self>) {
        self.close();
    }
}

/// One uninterrupted recording in the kernel.
///
/// What was recorded and not [released](ChangeSource::release) when a process died is delivered to the next one. So if
/// the next one finds an equal `Continuity` for a root, nothing was missed in between and nothing needs to be compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Continuity {
    /// Which sensor.
    pub sensor: SensorKind,
    /// Random, one per life of what records (a load of the module, the pinned maps).
    pub instance: [u8; 16],
    /// Counts the times that recording was switched on in this life.
    pub epoch: u64,
    /// The roots that have been recorded for all of this epoch since they were first seen to be; a root that was added
    /// now (and has to be compared) is `false`.
    pub roots: Vec<(FileId, bool)>,
}

/// Whether more may be waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadState {
    /// All that was changed before the first call since the last of these has been delivered.
    Drained,
    /// Stopped at a bound; read again.
    More,
}

/// Which sensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SensorKind {
    /// The loadable kernel module: replaced system calls, and hooks below them.
    Kmod,
    /// eBPF programs in the kernel.
    Ebpf,
    /// fanotify(7) with a mark on the whole filesystem.
    Fanotify,
    /// inotify(7) with a watch on each directory.
    Inotify,
    /// No notification: the tree is compared at intervals.
    Scan,
}

impl fmt::Display for SensorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SensorKind::Kmod => "kmod",
            SensorKind::Ebpf => "ebpf",
            SensorKind::Fanotify => "fanotify",
            SensorKind::Inotify => "inotify",
            SensorKind::Scan => "scan",
        })
    }
}

/// Which sensor is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SensorChoice {
    /// The best that this machine allows.
    #[default]
    Auto,
    /// This or an error.
    Kmod,
    /// This or an error.
    Ebpf,
    /// This or an error.
    Fanotify,
    /// This or an error.
    Inotify,
    /// This or an error.
    Scan,
}

/// Settings of a sensor.
#[derive(Clone, Debug)]
pub struct SensorOptions {
    /// Leave the kernel's bound on the fanotify queue in place (`fs.fanotify.max_queued_events`) instead of asking for
    /// an unlimited one.
    pub limited_queue: bool,
    /// Drop what this process (thread group id) itself does. fanotify only.
    pub ignore_pid: Option<i32>,
    /// Trees whose changes are dropped as early as possible: the vault, the state directory.
    pub skip: Vec<BytePath>,
    /// How often directories that cannot be watched are reported for comparison; for [`ScanSource`](crate::ScanSource),
    /// how often the whole tree is.
    pub rescan: Duration,
    /// Most inotify watches to take, below the system's limit; `None`: as many as the system gives.
    pub max_watches: Option<usize>,
}

impl Default for SensorOptions {
    fn default() -> Self {
        SensorOptions {
            limited_queue: false,
            ignore_pid: None,
            skip: Vec::new(),
            rescan: Duration::from_secs(300),
            max_watches: None,
        }
    }
}

/// Counters since the sensor was opened, and what it holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SensorStats {
    /// Events read from the kernel.
    pub seen: u64,
    /// Changes handed to the reader.
    pub delivered: u64,
    /// Events outside the roots, in skipped trees, of gone directories or of the ignored process.
    pub filtered: u64,
    /// Events that repeated one of the same read.
    pub merged: u64,
    /// Times that the kernel's queue overflowed.
    pub overflows: u64,
    /// Events that could not be understood or placed; each led to an `Overflow` change.
    pub lost: u64,
    /// Errors of the filesystem itself that the kernel reported.
    pub fs_errors: u64,
    /// fanotify marks in place.
    pub marks: u64,
    /// inotify watches in place.
    pub watches: u64,
    /// System calls that the module has replaced now.
    pub replaced: u64,
    /// Functions of the kernel that the module or eBPF programs hook now, besides those.
    pub hooked: u64,
    /// Directory trees that could not be watched and are compared at intervals instead.
    pub unwatched: u64,
}

/// Why a sensor cannot be opened or has stopped.
#[derive(Debug, thiserror::Error)]
pub enum SensorError {
    /// No root was given.
    #[error("no directory to watch")]
    NoRoots,
    /// A root cannot be opened, or is not the directory that it was.
    #[error("cannot watch {path}: {source}")]
    Root {
        /// Which.
        path: BytePath,
        /// Why.
        source: io::Error,
    },
    /// The kernel does not offer it to us.
    #[error("{sensor} is not available: {why}; {remedy}")]
    Unavailable {
        /// Which sensor.
        sensor: SensorKind,
        /// What is missing.
        why: String,
        /// What to do.
        remedy: String,
    },
    /// The kernel refused a mark or watch on a root.
    #[error("{sensor} cannot watch the filesystem of {path}: {source}")]
    Mark {
        /// Which sensor.
        sensor: SensorKind,
        /// Which root.
        path: BytePath,
        /// Why.
        source: io::Error,
    },
    /// Reading the queue failed.
    #[error("{sensor}: reading the kernel's queue failed: {source}")]
    Read {
        /// Which sensor.
        sensor: SensorKind,
        /// Why.
        source: io::Error,
    },
    /// No descriptor for the waker.
    #[error("cannot create a wake-up descriptor: {source}")]
    Wake {
        /// Why.
        source: io::Error,
    },
}

#[cfg(not(feature = "ebpf"))]
impl SensorError {
    pub(crate) fn without_ebpf() -> SensorError {
        SensorError::Unavailable {
            sensor: SensorKind::Ebpf,
            why: "this program was built without it".into(),
            remedy: "build it with the feature ebpf".into(),
        }
    }
}
