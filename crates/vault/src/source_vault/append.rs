//! The append thread: records go to the log as they come, and by turns with other sources to the disk. While much is on its way there
//! and nobody else waits for the disk, more is appended behind it.

use super::{Event, Item, Shared};
use crate::segment::{LogError, LogWriter, Place, Syncing};
use crate::turns::Had;
use crate::vault::VaultTurns;
use crossbeam_channel::{Receiver, RecvError, bounded, select};
use farwrite_core::{BatchSeq, Commit};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{Builder, Scope};

/// Bytes appended before they are put on the disk even if more records wait; so many more may be appended until they are there.
pub(super) const SYNC_BYTES: u64 = 32 << 20;
/// The same while others wait for their turn to do so; a batch is not divided.
const SHARED_SYNC_BYTES: u64 = 1 << 20;
/// Batches are refused if less than this is free, or less than 1 % of the disk if that is smaller.
const KEEP_FREE_BYTES: u64 = 64 << 20;
/// Bytes written between two looks at the free space.
const LOOK_BYTES: u64 = 8 << 20;
/// With no more bytes than this to be put on the disk a source waits for no turn, and zeros are reserved for the next batch.
const SMALL_BYTES: u64 = 64 << 10;
/// With less than this to be put on the disk it is not worth a thread that waits for it.
const BESIDE_BYTES: u64 = 1 << 20;

/// What is on its way to the disk, and how that ended.
type Synced = (Syncing, Result<(), LogError>);

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
    /// Bytes that are neither on the disk nor on their way there.
    unsynced: u64,
    /// Bytes since the log last had no batch open.
    uncommitted: u64,
    /// Where it is told that what is on its way to the disk has got there.
    under_way: Option<Receiver<Synced>>,
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
            under_way: None,
        }
    }

    pub(super) fn run(mut self) {
        // Also if this thread panics: the apply thread waits for it.
        let _end = Appended(self.shared.clone());
        let turns = self.turns.clone();
        std::thread::scope(|scope| {
            // Told at once, and not once the disk has answered.
            if let Err((what, retry)) = self.serve(scope, &turns) {
                self.shared.fail(what, retry);
            }
        });
    }

    fn serve<'s>(
        &mut self,
        scope: &'s Scope<'s, '_>,
        turns: &'s VaultTurns,
    ) -> Result<(), (String, bool)> {
        loop {
            let mut next = match &self.under_way {
                None => self.records.recv().ok(),
                Some(synced) => select! {
                    recv(self.records) -> item => item.ok(),
                    recv(synced) -> synced => {
                        self.synced(synced)?;
                        // What was committed meanwhile.
                        self.sync(scope, turns)?;
                        continue;
                    }
                },
            };
            if next.is_none() {
                break;
            }
            while let Some(item) = next {
                self.take(item)?;
                let there = self.under_way.as_ref().is_some_and(|s| !s.is_empty());
                if there || self.unsynced >= self.most() {
                    break;
                }
                next = self.records.try_recv().ok();
            }
            self.sync(scope, turns)?;
            // Bytes that are not committed yet count for the batch that they belong to.
            if self.log.open_batch().is_none() {
                let small = std::mem::take(&mut self.uncommitted) <= SMALL_BYTES;
                if small && self.records.is_empty() && self.under_way.is_none() {
                    self.log.reserve().map_err(refusal)?;
                }
            }
        }
        self.wait_for_disk()?;
        self.log.abort_batch().map_err(refusal)?;
        self.sync(scope, turns)?;
        self.wait_for_disk()?;
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
            Item::Abort => {
                self.wait_for_disk()?;
                return self.log.abort_batch().map_err(refusal);
            }
            Item::Record(r) => r,
        };
        let bytes = record.header.total_bytes();
        if self.log.open_batch().is_none() {
            self.check_space(bytes)?;
        }
        if self.log.ends_segment() {
            self.wait_for_disk()?;
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

    /// One fsync for all commits that are in; only then are they reported. Returns while it is under way if there is much to be put
    /// on the disk: what comes meanwhile has its turn when that is done.
    fn sync<'s>(
        &mut self,
        scope: &'s Scope<'s, '_>,
        turns: &'s VaultTurns,
    ) -> Result<(), (String, bool)> {
        if let Some(synced) = &self.under_way {
            match synced.try_recv() {
                Ok(done) => self.synced(Ok(done))?,
                Err(_) if self.unsynced >= self.most() => self.wait_for_disk()?,
                Err(_) => return Ok(()),
            }
        }
        let before = self.shared.state.lock().last.as_ref().map(|c| c.seq);
        let last = self.log.last_commit().map(|c| c.seq);
        let Some(written) = last.filter(|seq| Some(*seq) != before) else {
            return Ok(());
        };
        let syncing = self.log.begin_sync().map_err(refusal)?;
        // The apply thread begins with it while the disk is busy, or others have their turn.
        self.shared.state.lock().written = Some((written, self.log.committed_end()));
        self.shared.changed.notify_all();
        let bytes = std::mem::take(&mut self.unsynced);
        let Some(syncing) = syncing else {
            // A new segment has put it on the disk.
            let commit = self.log.last_commit().cloned();
            self.durable(commit, self.log.committed_end());
            return Ok(());
        };
        // Who closes a source waits for all that it has.
        let closing = self.shared.is_closing();
        let turn =
            (bytes > SMALL_BYTES && !closing).then(|| turns.sync.take_for(&mut self.had, bytes));
        let (tell, synced) = bounded(1);
        self.under_way = Some(synced);
        let wait: Box<dyn FnOnce() + Send + 's> = Box::new(move || {
            let done = syncing.wait();
            drop(turn);
            let _ = tell.send((syncing, done));
        });
        if closing || bytes < BESIDE_BYTES || turns.sync.is_contended() {
            wait();
            return self.wait_for_disk();
        }
        let (job, jobs) = bounded::<Box<dyn FnOnce() + Send + 's>>(1);
        let thread = Builder::new().name("vault-sync".into());
        let helper = thread.spawn_scoped(scope, move || {
            if let Ok(wait) = jobs.recv() {
                wait();
            }
        });
        match helper {
            Ok(_) => {
                // If it is gone it has told nothing, which is noticed.
                let _ = job.send(wait);
                Ok(())
            }
            Err(e) => {
                tracing::debug!("no thread to wait for the disk: {e}");
                wait();
                self.wait_for_disk()
            }
        }
    }

    /// Waits for what is on its way to the disk.
    fn wait_for_disk(&mut self) -> Result<(), (String, bool)> {
        match &self.under_way {
            Some(synced) => {
                let synced = synced.recv();
                self.synced(synced)
            }
            None => Ok(()),
        }
    }

    /// What was on its way to the disk is there, or is not.
    fn synced(&mut self, synced: Result<Synced, RecvError>) -> Result<(), (String, bool)> {
        self.under_way = None;
        let gone = |_| ("the thread that waits for the disk panicked".into(), true);
        let (syncing, done) = synced.map_err(gone)?;
        self.log.end_sync(&syncing, done).map_err(refusal)?;
        self.durable(Some(syncing.commit().clone()), syncing.end());
        Ok(())
    }

    fn durable(&self, last: Option<Commit>, end: Place) {
        let seq = last.as_ref().map_or(BatchSeq(0), |c| c.seq);
        let mut state = self.shared.state.lock();
        state.last = last;
        state.durable_end = Some(end);
        drop(state);
        self.shared.changed.notify_all();
        self.shared.emit(Event::Durable(seq));
    }
}

impl Drop for Append {
    fn drop(&mut self) {
        // However this ended: an error of the disk is told once (fsync(2)), and what it was about would be taken for durable by
        // whoever opens the log next.
        if let Some(synced) = self.under_way.take()
            && let Ok((syncing, done)) = synced.recv()
        {
            let _ = self.log.end_sync(&syncing, done);
        }
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
