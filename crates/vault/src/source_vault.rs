//! One source being written to: the append thread makes batches durable, the apply thread follows the log with catalog
//! and mirror. It must never say that a batch is durable before its commit is on the disk; what the apply thread
//! does is of no account for that.

mod append;
mod keeper;
mod requests;
#[cfg(test)]
mod tests;

pub use keeper::{LastPrune, PRUNE_EVERY, PruneAnswer, PruneRequest};

use crate::catalog::{Catalog, CatalogError, Delta, Mark};
use crate::mirror::{Mirror, MirrorError, MirrorStats};
use crate::retention::{Policy, PruneError, PruneReport, Watch, brake_percent};
use crate::segment::{
    BatchReader, LogError, LogWriter, LoggedBatch, Place, Recovered, segment_path,
};
use crate::vault::{Vault, VaultError};
use append::{Append, SYNC_BYTES};
use crossbeam_channel::Sender;
use farwrite_core::{BatchSeq, Commit, Record, SourceName};
use parking_lot::{Condvar, Mutex};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

/// Bytes of records that wait for the append thread; beyond that [`SourceVault::submit`] waits.
pub const SUBMIT_BYTES: usize = 32 << 20;
/// The same while sources wait for their turn to put something on the disk: then there may be many.
const SHARED_SUBMIT_BYTES: usize = 1 << 20;
/// Most batches, and most operations, in one step of catalog and mirror.
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

/// There while somebody waits for a source that another process has open, in the source's directory.
const WANTED: &str = "wanted";

/// What happens to batches, in order for each kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// All batches up to this one are on the disk: they may be acked.
    Durable(BatchSeq),
    /// Catalog and (if the vault keeps one) mirror show this batch.
    Mirrored(BatchSeq),
    /// Nothing more is accepted; the session is to be dropped and the source opened anew later.
    Failed {
        /// Why.
        what: String,
        /// Opening anew may help (disk full, I/O error); else the source broke the protocol.
        retry: bool,
    },
}

/// Who hears of events. Called from the vault's threads: must not block for long.
pub type Events = Arc<dyn Fn(Event) + Send + Sync>;

/// How a source is opened.
#[derive(Clone)]
pub struct Options {
    /// Keep a mirror.
    pub mirror: bool,
    /// Who hears of events.
    pub events: Events,
}

/// A source, open for writing. Only one process can have it open.
pub struct SourceVault {
    shared: Arc<Shared>,
    queue: Option<Sender<Item>>,
    threads: Vec<JoinHandle<()>>,
    vault: Vault,
    name: SourceName,
    recovered: Recovered,
    _lock: File,
}

enum Item {
    Record(Record),
    Abort,
}

struct Shared {
    events: Events,
    state: Mutex<State>,
    changed: Condvar,
    /// Wakes who has records to hand over.
    room: Condvar,
    /// Wakes the prune thread.
    keeper: Condvar,
    /// One prune at a time.
    pruning: Mutex<()>,
}

#[derive(Default)]
struct State {
    waiting_bytes: usize,
    last: Option<Commit>,
    /// Behind the last durable batch.
    durable_end: Option<Place>,
    /// The last batch that is in the log, on the disk or not yet, and its end: how far the apply thread may read.
    written: Option<(BatchSeq, Place)>,
    failed: Option<String>,
    /// What the catalog holds.
    applied: BatchSeq,
    /// No more will become durable.
    appended: bool,
    mirror: MirrorStats,
    forgetting: keeper::Forgetting,
}

/// Why a record was not taken.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the source's vault is closed: {0}")]
pub struct Closed(pub String);

impl SourceVault {
    /// Takes the source's lock (an error if another process has it), recovers the log, and starts both threads.
    pub fn open(vault: &Vault, name: &SourceName, options: Options) -> Result<Self, VaultError> {
        let dir = vault.source_dir(name);
        let log_dir = dir.join("log");
        crate::mirror::make_private_dir(&log_dir)
            .map_err(|e| VaultError::io("make", &log_dir, e))?;
        let lock = take_lock(&dir.join("lock"))?;
        let _ = std::fs::remove_file(dir.join(WANTED));
        let db = dir.join("catalog.db");
        let (log, recovered) = LogWriter::open(&log_dir, applied_before(&db))?;
        let catalog = Catalog::open(&db, log.last_commit())?;
        let shared = Arc::new(Shared {
            events: options.events,
            state: Mutex::new(State {
                last: log.last_commit().cloned(),
                durable_end: recovered.end,
                ..State::default()
            }),
            changed: Condvar::new(),
            room: Condvar::new(),
            keeper: Condvar::new(),
            pruning: Mutex::new(()),
        });
        let (queue, records) = crossbeam_channel::unbounded();
        let append = Append::new(shared.clone(), records, log, log_dir.clone(), vault.turns());
        let apply = Apply {
            shared: shared.clone(),
            catalog,
            dir: dir.clone(),
            log_dir,
            mirror: None,
            wants_mirror: options.mirror,
            checkpointed: Instant::now(),
            settled: None,
            watch: Watch::new(
                &vault.source_dir(name),
                recovered.last.as_ref().map_or(BatchSeq(0), |c| c.seq),
            ),
            vault: vault.clone(),
            name: name.clone(),
            log_end: recovered.end,
        };
        let spawn = |name: &str, f: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new()
                .name(name.into())
                .spawn(f)
                .map_err(|e| VaultError::io("start a thread for", vault.dir(), e))
        };
        let first = spawn("vault-append", Box::new(|| append.run()))?;
        let second = spawn("vault-apply", Box::new(|| apply.run()));
        let keeper = keeper::Keeper {
            shared: shared.clone(),
            vault: vault.clone(),
            name: name.clone(),
            dir,
            opened_at: recovered.last.as_ref().map_or(BatchSeq(0), |c| c.seq),
        };
        let third = spawn("vault-prune", Box::new(|| keeper.run()));
        let mut this = SourceVault {
            shared,
            queue: Some(queue),
            threads: vec![first],
            vault: vault.clone(),
            name: name.clone(),
            recovered,
            _lock: lock,
        };
        this.threads.push(second?);
        this.threads.push(third?);
        Ok(this)
    }

    /// Does a process have this source open? It does not stay so.
    pub fn is_open(vault: &Vault, name: &SourceName) -> bool {
        let lock = take_lock(&vault.source_dir(name).join("lock"));
        matches!(lock, Err(VaultError::Io { source, .. }) if source.kind() == std::io::ErrorKind::WouldBlock)
    }

    /// Asks the process that has a source open to let go of it. One that only prunes does, in between two steps; one that
    /// has a source connected does not.
    pub fn ask_for(vault: &Vault, name: &SourceName) {
        let path = vault.source_dir(name).join(WANTED);
        if let Err(e) = std::fs::write(&path, b"") {
            tracing::debug!("{}: {e}", path.display());
        }
    }

    /// What recovery found when the log was opened.
    pub fn recovered(&self) -> &Recovered {
        &self.recovered
    }

    /// The last durable batch: what comes next is the one after it, linked to its chain. Batches up to it that come
    /// again are to be skipped by the caller.
    pub fn last_commit(&self) -> Option<Commit> {
        self.shared.state.lock().last.clone()
    }

    /// What the mirror has done since it was opened.
    pub fn mirror_stats(&self) -> MirrorStats {
        self.shared.state.lock().mirror
    }

    /// Hands over the next record; waits while more than [`SUBMIT_BYTES`] are under way.
    pub fn submit(&self, record: Record) -> Result<(), Closed> {
        let bytes = record.header.total_bytes() as usize;
        let mut state = self.shared.state.lock();
        let turns = self.vault.turns();
        let most = || match turns.sync.is_contended() {
            true => SHARED_SUBMIT_BYTES,
            false => SUBMIT_BYTES,
        };
        while state.failed.is_none()
            && state.waiting_bytes > 0
            && state.waiting_bytes + bytes > most()
        {
            self.shared.room.wait(&mut state);
        }
        if let Some(why) = &state.failed {
            return Err(Closed(why.clone()));
        }
        state.waiting_bytes += bytes;
        drop(state);
        self.send(Item::Record(record))
    }

    /// Drops the batch that is not committed yet, if any: the next record may begin it again.
    pub fn abort_batch(&self) -> Result<(), Closed> {
        if let Some(why) = &self.shared.state.lock().failed {
            return Err(Closed(why.clone()));
        }
        self.send(Item::Abort)
    }

    /// Prunes now, by this policy or (`None`) by the one that is set. Returns when it is done, or stopped since somebody else
    /// wants the source ([`SourceVault::ask_for`]).
    pub fn prune(&self, policy: Option<Policy>) -> Result<PruneReport, PruneError> {
        let policy = match policy {
            Some(p) => p,
            None => self.vault.policy(&self.name)?.0,
        };
        self.wait_applied();
        let wanted = self.vault.source_dir(&self.name).join(WANTED);
        self.shared
            .prune(&self.vault, &self.name, Some(policy), &|| !wanted.exists())
    }

    /// Until the catalog has what is durable, or never will.
    fn wait_applied(&self) {
        let mut state = self.shared.state.lock();
        while state.failed.is_none()
            && !state.forgetting.apply_ended
            && state.applied < state.last.as_ref().map_or(BatchSeq(0), |c| c.seq)
        {
            self.shared.changed.wait_for(&mut state, CHECKPOINT_EVERY);
        }
    }

    fn send(&self, item: Item) -> Result<(), Closed> {
        let queue = self.queue.as_ref().expect("open until it is closed");
        queue
            .send(item)
            .map_err(|_| Closed("its append thread has ended".into()))
    }

    /// Makes durable what was handed over, applies it, and ends both threads.
    pub fn close(mut self) -> Result<(), Closed> {
        self.shut_down();
        match &self.shared.state.lock().failed {
            Some(why) => Err(Closed(why.clone())),
            None => Ok(()),
        }
    }

    fn shut_down(&mut self) {
        self.shared.state.lock().forgetting.closing = true;
        self.shared.keeper.notify_all();
        self.queue = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                self.shared
                    .fail("a thread of the vault panicked".into(), true);
            }
        }
    }
}

impl Drop for SourceVault {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl Shared {
    fn is_closing(&self) -> bool {
        self.state.lock().forgetting.closing
    }

    fn emit(&self, event: Event) {
        (self.events)(event);
    }

    fn fail(&self, what: String, retry: bool) {
        let mut state = self.state.lock();
        if state.failed.is_some() {
            return;
        }
        state.failed = Some(what.clone());
        drop(state);
        self.changed.notify_all();
        self.room.notify_all();
        self.keeper.notify_all();
        self.emit(Event::Failed { what, retry });
    }

    /// Waits until a batch is on the disk; false: it will not be.
    fn wait_durable(&self, seq: BatchSeq) -> bool {
        let mut state = self.state.lock();
        loop {
            if state.last.as_ref().is_some_and(|c| c.seq >= seq) {
                return true;
            }
            if state.appended {
                return false;
            }
            self.changed.wait(&mut state);
        }
    }
}

fn take_lock(path: &Path) -> Result<File, VaultError> {
    let fail = |e| VaultError::io("lock", path, e);
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(fail)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|e| fail(e.into()))?;
    Ok(file)
}

/// The last batch that the catalog claims to have seen, and where it ends, if it can be read at all: such a batch was durable.
fn applied_before(db: &Path) -> Option<(Place, Commit)> {
    if !db.exists() {
        return None;
    }
    let newest = crate::catalog::open_reader(db).and_then(|c| crate::catalog::newest_batch(&c));
    newest.ok().flatten().map(|row| (row.end, row.commit))
}

/// The apply thread.
struct Apply {
    shared: Arc<Shared>,
    catalog: Catalog,
    dir: PathBuf,
    log_dir: PathBuf,
    mirror: Option<Mirror>,
    wants_mirror: bool,
    checkpointed: Instant,
    /// The last batch with which the mirror was put on the disk.
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
    fn run(mut self) {
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
                        self.checkpoint(false)?;
                        state = self.shared.state.lock();
                    }
                }
            };
            let Some((end, last, ahead)) = due else {
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
            let read = read_step(&mut reader, end, most);
            let nothing = read.as_ref().map_or(true, Vec::is_empty);
            if let Some(seq) = ahead
                && nothing
                && !self.shared.wait_durable(seq)
            {
                // What did not become durable has gone from the log.
                reader = self.catalog.log_reader(&self.log_dir)?;
                continue;
            }
            let batches = read?;
            if batches.is_empty() {
                if last {
                    return Ok(());
                }
                let missing = LogError::Damaged {
                    segment: end.segment,
                    offset: end.offset,
                    seq: None,
                    what: "the log ends before its last batch".into(),
                };
                return Err(CatalogError::from(missing).into());
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
        let Some(mirror) = &mut self.mirror else {
            return Ok(());
        };
        mirror.apply(&self.catalog, shown, delta)?;
        self.shared.state.lock().mirror = mirror.stats();
        let seq = self.catalog.applied().0;
        self.catalog.set_marks(&[(Mark::MirrorSeq, seq)])?;
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
        if unknown && let Some(end) = end {
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
        self.settled = Some(self.catalog.applied());
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

fn read_step(
    reader: &mut BatchReader,
    end: Place,
    most_ops: usize,
) -> Result<Vec<LoggedBatch>, CatalogError> {
    let (mut batches, mut ops) = (Vec::new(), 0);
    while batches.len() < STEP_BATCHES && ops < most_ops {
        match reader.next_batch(end)? {
            Some(b) => {
                ops += b.ops.len();
                batches.push(b);
            }
            None => break,
        }
    }
    Ok(batches)
}
