//! The append thread: records go to the log as they come, and by turns with other sources to the disk.

use super::{Event, Item, Shared};
use crate::segment::{LogError, LogWriter};
use crate::turns::Had;
use crate::vault::VaultTurns;
use crossbeam_channel::Receiver;
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes appended before a durable commit is reported even if more records wait.
pub(super) const SYNC_BYTES: u64 = 32 << 20;
/// The same while others wait for their turn to do so; a batch is not divided.
const SHARED_SYNC_BYTES: u64 = 1 << 20;
/// Batches are refused if less than this is free, or less than 1 % of the disk if that is smaller.
const KEEP_FREE_BYTES: u64 = 64 << 20;
/// Bytes written between two looks at the free space.
const LOOK_BYTES: u64 = 8 << 20;
/// With no more bytes than this to be put on the disk a source waits for no turn, and zeros are reserved for the next batch.
const SMALL_BYTES: u64 = 64 << 10;

/// The append thread.
pub(super) struct Append {
    shared: Arc<Shared>,
    records: Receiver<Item>,
    log: LogWriter,
    log_dir: PathBuf,
    turns: Arc<VaultTurns>,
    /// Bytes that were put on the disk by turns.
    had: Had,
    /// Bytes since the last look at the free space.
    unlooked: u64,
    /// Bytes that are not known to be on the disk.
    unsynced: u64,
    /// Bytes since the log last had no batch open.
    uncommitted: u64,
}

impl Append {
    /// Appends what comes by `records` to the log, whose directory is `log_dir`.
    pub(super) fn new(
        shared: Arc<Shared>,
        records: Receiver<Item>,
        log: LogWriter,
        log_dir: PathBuf,
        turns: Arc<VaultTurns>,
    ) -> Self {
        Append {
            shared,
            records,
            log,
            log_dir,
            turns,
            had: Had::default(),
            unlooked: u64::MAX,
            unsynced: 0,
            uncommitted: 0,
        }
    }

    pub(super) fn run(mut self) {
        // Also if this thread panics: the apply thread waits for it.
        let _end = Appended(self.shared.clone());
        if let Err((what, retry)) = self.serve() {
            self.shared.fail(what, retry);
        }
    }

    fn serve(&mut self) -> Result<(), (String, bool)> {
        while let Ok(item) = self.records.recv() {
            let mut next = Some(item);
            while let Some(item) = next {
                self.take(item)?;
                if self.unsynced >= self.most() {
                    break;
                }
                next = self.records.try_recv().ok();
            }
            self.sync()?;
            // Bytes that are not committed yet count for the batch that they belong to.
            if self.log.open_batch().is_none() {
                let small = std::mem::take(&mut self.uncommitted) <= SMALL_BYTES;
                if small && self.records.is_empty() {
                    self.log.reserve().map_err(refusal)?;
                }
            }
        }
        self.log.abort_batch().map_err(refusal)?;
        self.sync()?;
        self.log.drop_reserve().map_err(refusal)
    }

    /// Bytes after which what is committed is put on the disk.
    fn most(&self) -> u64 {
        match self.turns.sync.is_contended() && !self.shared.is_closing() {
            true => SHARED_SYNC_BYTES,
            false => SYNC_BYTES,
        }
    }

    fn take(&mut self, item: Item) -> Result<(), (String, bool)> {
        let record = match item {
            Item::Abort => return self.log.abort_batch().map_err(refusal),
            Item::Record(r) => r,
        };
        let bytes = record.header.total_bytes();
        if self.log.open_batch().is_none() {
            self.check_space(bytes)?;
        }
        self.unlooked = self.unlooked.saturating_add(bytes);
        self.unsynced += bytes;
        self.uncommitted += bytes;
        let done = self.log.append(&record);
        self.shared.state.lock().waiting_bytes -= bytes as usize;
        self.shared.room.notify_all();
        done.map(drop).map_err(refusal)
    }

    /// Refuses a new batch while the disk is nearly full, before it is so full that nothing can be repaired.
    fn check_space(&mut self, bytes: u64) -> Result<(), (String, bool)> {
        if self.unlooked < LOOK_BYTES {
            return Ok(());
        }
        let stat = rustix::fs::statvfs(&self.log_dir)
            .map_err(|e| (format!("cannot ask for free space: {e}"), true))?;
        let (free, all) = (stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize);
        if free < KEEP_FREE_BYTES.min(all / 100) + bytes {
            let what = format!(
                "disk full: {} MiB free at {}",
                free >> 20,
                self.log_dir.display()
            );
            return Err((what, true));
        }
        self.unlooked = 0;
        Ok(())
    }

    /// One fsync for all commits that are in; only then are they reported.
    fn sync(&mut self) -> Result<(), (String, bool)> {
        let before = self.shared.state.lock().last.as_ref().map(|c| c.seq);
        let last = self.log.last_commit().map(|c| c.seq);
        let Some(written) = last.filter(|seq| Some(*seq) != before) else {
            return Ok(());
        };
        self.log.write_out().map_err(refusal)?;
        // The apply thread begins with it while the disk is busy, or others have their turn.
        self.shared.state.lock().written = Some((written, self.log.committed_end()));
        self.shared.changed.notify_all();
        let bytes = std::mem::take(&mut self.unsynced);
        // Who closes a source waits for all that it has.
        let by_turns = bytes > SMALL_BYTES && !self.shared.is_closing();
        let turn = by_turns.then(|| self.turns.sync.take_for(&mut self.had, bytes));
        let seq = self.log.sync().map_err(refusal)?;
        drop(turn);
        let mut state = self.shared.state.lock();
        state.last = self.log.last_commit().cloned();
        state.durable_end = Some(self.log.committed_end());
        drop(state);
        self.shared.changed.notify_all();
        self.shared.emit(Event::Durable(seq));
        Ok(())
    }
}

fn refusal(e: LogError) -> (String, bool) {
    (e.to_string(), e.is_io())
}

/// Says at its end that no more will become durable.
struct Appended(Arc<Shared>);

impl Drop for Appended {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Whoever hands in records must not wait for room for ever.
            self.0.fail("the append thread panicked".into(), true);
        }
        self.0.state.lock().appended = true;
        self.0.changed.notify_all();
    }
}
