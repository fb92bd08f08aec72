//! The apply thread: follows the log with catalog and mirror. It must never show what is not durable.

use super::append::SYNC_BYTES;
use super::{Event, Shared, ends_early, keeper};
use crate::catalog::{Catalog, CatalogError, Delta, Mark};
use crate::mirror::{Mirror, MirrorError};
use crate::retention::{Watch, brake_percent};
use crate::segment::{LoggedBatch, Place, Recovered, segment_path};
use crate::vault::Vault;
use farwrite_core::{BatchSeq, SourceName};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Most batches, and most operations, in one step of catalog and mirror (`BatchReader::next_batches` bounds their bytes).
const STEP_BATCHES: usize = 32;
const STEP_OPS: usize = 100_000;
/// A batch that comes this long after the last step is begun with before it is durable. Under load, batches gather meanwhile:
/// one step for several costs less.
const LONE: Duration = Duration::from_millis(5);
/// A step over one of these waits for its turn, if more sources have such steps than there are processors; a smaller one goes ahead.
const SMALL_STEP_OPS: usize = 64;
const SMALL_STEP_BYTES: u64 = 1 << 20;
/// Most operations in a step while others wait; a batch is not divided.
const SHARED_STEP_OPS: usize = 250;
/// The mirror is put on the disk this often.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);

/// The apply thread.
pub(super) struct Apply {
    shared: Arc<Shared>,
    catalog: Catalog,
    dir: PathBuf,
    log_dir: PathBuf,
    mirror: Option<Mirror>,
    wants_mirror: bool,
    checkpointed: Instant,
    /// The last batch after which this thread has rested.
    settled: Option<BatchSeq>,
    watch: Watch,
    vault: Vault,
    name: SourceName,
    /// Behind the last batch that the log had when it was opened.
    log_end: Option<Place>,
}

/// What ends the apply thread early.
#[derive(Debug, thiserror::Error)]
enum ApplyError {
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Mirror(#[from] MirrorError),
}

impl Apply {
    /// For the source `name` with its catalog, and the log in which this was found.
    pub(super) fn new(
        shared: Arc<Shared>,
        catalog: Catalog,
        recovered: &Recovered,
        wants_mirror: bool,
        (vault, name): (&Vault, &SourceName),
    ) -> Self {
        let dir = vault.source_dir(name);
        let last = recovered.last.as_ref().map_or(BatchSeq(0), |c| c.seq);
        Apply {
            shared,
            catalog,
            log_dir: dir.join("log"),
            mirror: None,
            wants_mirror,
            checkpointed: Instant::now(),
            settled: None,
            watch: Watch::new(&dir, last),
            dir,
            vault: vault.clone(),
            name: name.clone(),
            log_end: recovered.end,
        }
    }

    pub(super) fn run(mut self) {
        let done = self.serve().and_then(|()| self.finish());
        if let Err(e) = done {
            let hostile = matches!(e, ApplyError::Catalog(CatalogError::Violation(_)));
            self.shared.fail(e.to_string(), !hostile);
        }
        self.shared.state.lock().forgetting.apply_ended = true;
        self.shared.changed.notify_all();
        self.shared.keeper.notify_all();
    }

    fn serve(&mut self) -> Result<(), ApplyError> {
        self.open_mirror()?;
        self.shared.state.lock().applied = self.catalog.applied();
        self.shared.changed.notify_all();
        let mut reader = self.catalog.log_reader(&self.log_dir)?;
        let mut passed = Passed::default();
        let mut stepped = Instant::now();
        let turns = self.vault.turns();
        loop {
            keeper::forget(&self.shared, &mut self.catalog)?;
            let due = {
                let mut state = self.shared.state.lock();
                loop {
                    let seq = state.last.as_ref().map_or(BatchSeq(0), |c| c.seq);
                    if let Some(end) = state.durable_end
                        && seq > self.catalog.applied()
                    {
                        break Some((end, false, None));
                    }
                    if state.forgetting.is_wanted() {
                        break None;
                    }
                    if state.appended {
                        break Some((end_or_start(state.durable_end), true, None));
                    }
                    if let Some((seq, end)) = state.written
                        && seq > self.catalog.applied()
                        && stepped.elapsed() >= LONE
                    {
                        break Some((end, false, Some(seq)));
                    }
                    if self.settled == Some(self.catalog.applied()) {
                        self.shared.changed.wait(&mut state);
                        continue;
                    }
                    let late = self
                        .shared
                        .changed
                        .wait_for(&mut state, CHECKPOINT_EVERY)
                        .timed_out();
                    if late && state.failed.is_none() {
                        drop(state);
                        self.rest()?;
                        state = self.shared.state.lock();
                    }
                }
            };
            let Some((end, last, ahead)) = due else {
                // There is something to forget; afterwards this thread rests anew.
                self.settled = None;
                continue;
            };
            if ahead.is_some() {
                // Who woke this thread up is about to wait for the disk: that comes first, also on the same processor.
                std::thread::yield_now();
            }
            let most = if turns.apply.is_contended() {
                SHARED_STEP_OPS
            } else {
                STEP_OPS
            };
            let read = reader.next_batches(end, STEP_BATCHES, most);
            let nothing = read.as_ref().map_or(true, Vec::is_empty);
            if let Some(seq) = ahead
                && nothing
                && !self.shared.wait_durable(seq)
            {
                // What did not become durable has gone from the log.
                reader = self.catalog.log_reader(&self.log_dir)?;
                continue;
            }
            let batches = read.map_err(CatalogError::from)?;
            if batches.is_empty() {
                if last {
                    return Ok(());
                }
                return Err(CatalogError::from(ends_early(end)).into());
            }
            let ops: usize = batches.iter().map(|b| b.ops.len()).sum();
            let bytes: u64 = batches.iter().map(|b| b.bytes).sum();
            let large = ops > SMALL_STEP_OPS || bytes > SMALL_STEP_BYTES;
            // Nobody holds up the others while it waits itself.
            if large
                && turns.sync.is_contended()
                && let Some(seq) = ahead
                && !self.shared.wait_durable(seq)
            {
                reader = self.catalog.log_reader(&self.log_dir)?;
                continue;
            }
            let turn = large.then(|| turns.apply.take());
            let stood = self.step(&batches)?;
            drop(turn);
            stepped = Instant::now();
            if !stood {
                // They did not become durable. Nothing more will.
                reader = self.catalog.log_reader(&self.log_dir)?;
                continue;
            }
            if let Some(last) = batches.last() {
                passed.to(&self.log_dir, last.end);
            }
        }
    }

    /// Applies batches, which may still be on their way to the disk; false: they never came there.
    fn step(&mut self, batches: &[LoggedBatch]) -> Result<bool, ApplyError> {
        let Some(last) = batches.last().map(|b| b.commit.seq) else {
            return Ok(true);
        };
        let window = self.watch.window();
        self.look_out(batches);
        let shown = self.catalog.applied();
        let shared = self.shared.clone();
        let applied = self
            .catalog
            .apply_if(batches, &mut || shared.wait_durable(last))?;
        let Some(applied) = applied else {
            self.watch.set_window(window);
            return Ok(false);
        };
        if self.catalog.applied() > shown {
            self.show(shown, &applied.delta)?;
            self.shared.state.lock().applied = self.catalog.applied();
            self.shared.changed.notify_all();
            self.shared.emit(Event::Mirrored(self.catalog.applied()));
        }
        match applied.violation {
            Some(v) => Err(CatalogError::from(v).into()),
            None => Ok(true),
        }
    }

    /// The ransomware brake. What goes wrong with it never stops a backup.
    fn look_out(&mut self, batches: &[LoggedBatch]) {
        let percent = brake_percent(&self.vault, &self.name);
        let now = (Instant::now(), SystemTime::now().into());
        match self
            .watch
            .look(self.catalog.connection(), batches, percent, now)
        {
            Ok(None) => {}
            Ok(Some(brake)) => tracing::warn!(
                source = %self.name,
                mark = brake.mark,
                "{}: nothing of this source is pruned until farwrite vault release",
                brake.why
            ),
            Err(e) => tracing::warn!(source = %self.name, "the ransomware brake: {e}"),
        }
    }

    fn show(&mut self, shown: BatchSeq, delta: &Delta) -> Result<(), ApplyError> {
        if let Some(mirror) = &mut self.mirror {
            mirror.apply(&self.catalog, shown, delta)?;
            self.shared.state.lock().mirror = mirror.stats();
            let seq = self.catalog.applied().0;
            self.catalog.set_marks(&[(Mark::MirrorSeq, seq)])?;
        }
        if self.checkpointed.elapsed() >= CHECKPOINT_EVERY {
            self.checkpoint(false)?;
        }
        Ok(())
    }

    /// Opens the mirror; one that was not left in order is compared with the catalog first.
    fn open_mirror(&mut self) -> Result<(), ApplyError> {
        if !self.wants_mirror {
            self.catalog
                .set_marks(&[(Mark::MirrorDirty, 1), (Mark::MirrorCheckpoint, 0)])?;
            return Ok(());
        }
        let fresh = !self.dir.join("mirror").exists();
        let mut mirror = Mirror::open(&self.dir)?;
        let applied = self.catalog.applied();
        let shows = self.catalog.mark(Mark::MirrorSeq)?;
        let trusted = self.catalog.mark(Mark::MirrorCheckpoint)?;
        let dirty = self.catalog.mark(Mark::MirrorDirty)? != 0 || shows != applied.0;
        // Nothing applied yet, but a tree is there: the catalog was lost, and with it what the tree is.
        // Then also if the tree is gone as well: step by step it would ask for content that is no longer kept.
        let end = self.log_end;
        let unknown =
            self.catalog.set_aside().is_some() || (applied.0 == 0 && (!fresh || end.is_some()));
        self.catalog.set_marks_durably(&[(Mark::MirrorDirty, 1)])?;
        // A mirror that was not left in order may show what the catalog does not know of yet: then nothing says which of the files that
        // look alike is which. And what was acked can be restored even if the mirror cannot be mended.
        if (unknown || dirty)
            && let Some(end) = end
        {
            self.catalog.replay(&self.log_dir, end)?;
        }
        let applied = self.catalog.applied();
        if unknown || dirty || fresh && applied.0 > 0 {
            let trusted = if unknown { 0 } else { trusted };
            mirror.reconcile(&self.catalog, BatchSeq(trusted))?;
            self.catalog.set_marks(&[(Mark::MirrorSeq, applied.0)])?;
            self.shared.state.lock().mirror = mirror.stats();
        }
        self.mirror = Some(mirror);
        if applied.0 > 0 {
            self.shared.emit(Event::Mirrored(applied));
        }
        Ok(())
    }

    fn checkpoint(&mut self, closing: bool) -> Result<(), ApplyError> {
        self.checkpointed = Instant::now();
        let seq = self.catalog.applied().0;
        if let Some(mirror) = &self.mirror
            && (closing || self.catalog.mark(Mark::MirrorCheckpoint)? != seq)
        {
            mirror.sync()?;
            let mut marks = vec![(Mark::MirrorCheckpoint, seq)];
            if closing {
                marks.push((Mark::MirrorDirty, 0));
            }
            self.catalog.set_marks(&marks)?;
        }
        Ok(self.catalog.fit_cache()?)
    }

    /// Nothing has come for a while: the mirror is put on the disk, and memory is left to others.
    fn rest(&mut self) -> Result<(), ApplyError> {
        self.checkpoint(false)?;
        self.settled = Some(self.catalog.applied());
        self.catalog.release_cache()?;
        self.shared.emit(Event::Calm);
        Ok(())
    }

    fn finish(&mut self) -> Result<(), ApplyError> {
        if let Some(mirror) = &mut self.mirror {
            mirror.forget_ahead();
        }
        self.checkpoint(true)?;
        Ok(self.catalog.set_marks(&[(Mark::Open, 0)])?)
    }
}

fn end_or_start(end: Option<Place>) -> Place {
    end.unwrap_or(Place {
        segment: 0,
        offset: 0,
    })
}

/// The part of the log that nobody here will read again soon, and that need not stay in memory.
#[derive(Default)]
struct Passed {
    segment: u64,
    offset: u64,
}

impl Passed {
    /// All that lies before `end` has been applied, and is on the disk.
    fn to(&mut self, log_dir: &Path, end: Place) {
        let forget = |segment: u64, from: u64, to: u64| {
            if let Ok(file) = File::open(segment_path(log_dir, segment)) {
                farwrite_fs::forget_cached(&file, from, to);
            }
        };
        if self.segment != end.segment {
            for segment in self.segment.max(1)..end.segment {
                forget(
                    segment,
                    if segment == self.segment {
                        self.offset
                    } else {
                        0
                    },
                    u64::MAX,
                );
            }
            (self.segment, self.offset) = (end.segment, 0);
        }
        if end.offset >= self.offset + SYNC_BYTES {
            forget(end.segment, self.offset, end.offset);
            self.offset = end.offset;
        }
    }
}
