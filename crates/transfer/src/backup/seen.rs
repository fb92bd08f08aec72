//! Which messages are no news any more: those that were told before the file that they are about was read.
//!
//! A new directory is compared as a whole, and the messages about the files in it come behind: without this each of them
//! would be read once more.

use farwrite_core::{ChangeSeq, Clock, FileId, Timestamp};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Files remembered at least, if there are so many; and twice as many at most.
const FILES: usize = 50_000;
/// Unknown files remembered as mapped.
const MAPPED: usize = 100_000;

/// Tells the last message that has been told so far. Asked often, by several threads: it does not block.
pub type Told = Arc<dyn Fn() -> ChangeSeq + Send + Sync>;

/// What time it is, by the clock and by the messages.
#[derive(Clone)]
pub(super) struct Now {
    pub clock: Arc<dyn Clock>,
    pub told: Told,
}

/// When a read began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    pub at: Timestamp,
    /// All messages up to this one are about what was there to be read.
    pub told: ChangeSeq,
}

impl Now {
    /// By the clock alone.
    pub fn new(clock: Arc<dyn Clock>) -> Now {
        let told = Arc::new(|| ChangeSeq(0));
        Now { clock, told }
    }

    pub fn look(&self) -> Start {
        let told = (self.told)();
        let at = self.clock.now();
        Start { at, told }
    }
}

/// The files that were read whole, with their attributes, and did not change meanwhile: each with the last message that had
/// been told before.
#[derive(Default)]
pub(super) struct Seen {
    files: HashMap<FileId, ChangeSeq>,
    /// Those of before.
    earlier: HashMap<FileId, ChangeSeq>,
    /// The newest message of this round: it was told before anything was read in it.
    round: ChangeSeq,
    /// Files that were not known when a message told that they are mapped: their first read begins with writeback. Of the few
    /// that the next process reads first, nobody knows that any more.
    mapped: HashSet<FileId>,
    /// There were more than are remembered.
    more_mapped: bool,
}

impl Seen {
    /// A round begins, with commands that stand for messages up to `newest`.
    pub fn begin(&mut self, newest: ChangeSeq) {
        self.round = newest;
    }

    /// It was read, from `told` on.
    pub fn note(&mut self, file: FileId, told: ChangeSeq) {
        if self.files.len() >= FILES {
            self.earlier = std::mem::take(&mut self.files);
        }
        self.files.insert(file, told.max(self.round));
    }

    /// What was read of it is not to be relied on.
    pub fn forget(&mut self, file: FileId) {
        self.files.remove(&file);
        self.earlier.remove(&file);
    }

    /// Was it read after the message `newest`?
    pub fn covers(&self, file: FileId, newest: ChangeSeq) -> bool {
        let told = |files: &HashMap<_, _>| files.get(&file).copied();
        let told = told(&self.files).or_else(|| told(&self.earlier));
        told.is_some_and(|told| newest <= told)
    }

    /// Stores through mappings were told of, and nothing was known of it.
    pub fn note_mapped(&mut self, file: FileId) {
        match self.mapped.len() < MAPPED {
            true => drop(self.mapped.insert(file)),
            false => self.more_mapped = true,
        }
    }

    /// May that have been so?
    pub fn is_mapped(&self, file: FileId) -> bool {
        self.more_mapped || self.mapped.contains(&file)
    }

    /// Whoever stores into it is told of from now on.
    pub fn forget_mapped(&mut self, file: FileId) {
        self.mapped.remove(&file);
    }

    /// Nothing is on its way any more about which it would matter; `all`: nor is anything still to be read for the first time.
    pub fn clear(&mut self, all: bool) {
        (self.files, self.earlier) = Default::default();
        if all {
            self.mapped = HashSet::new();
            self.more_mapped = false;
        }
    }
}
