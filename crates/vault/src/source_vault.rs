//! One source being written to: the append thread makes batches durable, the apply thread follows the log with catalog
//! and mirror. It must never say that a batch is durable before its commit is on the disk; what the apply thread
//! does is of no account for that.

mod alone;
mod append;
mod apply;
mod keeper;
mod requests;
#[cfg(test)]
mod tests;

pub use keeper::{LastPrune, PRUNE_EVERY, PruneAnswer, PruneRequest};

use crate::catalog::Catalog;
use crate::mirror::MirrorStats;
use crate::retention::{Policy, PruneError, PruneReport};
use crate::segment::{LogError, LogWriter, Place, Recovered};
use crate::vault::{Vault, VaultError};
use append::Append;
use apply::Apply;
use crossbeam_channel::Sender;
use farwrite_core::{BatchSeq, Commit, Record, SourceName};
use parking_lot::{Condvar, Mutex};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Bytes of records that wait for the append thread; beyond that [`SourceVault::submit`] waits.
pub const SUBMIT_BYTES: usize = 32 << 20;
/// The same while sources wait for their turn to put something on the disk: then there may be many.
const SHARED_SUBMIT_BYTES: usize = 1 << 20;
/// Between two looks whether the apply thread has ended, while somebody waits for it.
const APPLY_LOOK: Duration = Duration::from_secs(30);

/// There while somebody waits for a source that another process has open, in the source's directory.
const WANTED: &str = "wanted";

/// What happens to batches, in order for each kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// All batches up to this one are on the disk: they may be acked.
    Durable(BatchSeq),
    /// Catalog and (if the vault keeps one) mirror show this batch.
    Mirrored(BatchSeq),
    /// Nothing has come for a while, and what was cached to be quick is released.
    Calm,
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
    /// The last batch that has begun to be put on the disk, and its end: how far the apply thread may read.
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
    /// Takes the source's lock (an error if another process has it), recovers the log, and starts both threads. For who can send
    /// again what the log has lost; else see [`SourceVault::open_alone`].
    pub fn open(vault: &Vault, name: &SourceName, options: Options) -> Result<Self, VaultError> {
        let dir = vault.source_dir(name);
        crate::mirror::make_private_dir(&dir).map_err(|e| VaultError::io("make", &dir, e))?;
        let lock = take_lock(&dir.join("lock"))?;
        Self::open_locked(vault, name, options, lock)
    }

    fn open_locked(
        vault: &Vault,
        name: &SourceName,
        options: Options,
        lock: File,
    ) -> Result<Self, VaultError> {
        let dir = vault.source_dir(name);
        let log_dir = dir.join("log");
        crate::mirror::make_private_dir(&log_dir)
            .map_err(|e| VaultError::io("make", &log_dir, e))?;
        let _ = std::fs::remove_file(dir.join(WANTED));
        let db = dir.join("catalog.db");
        let (log, recovered, catalog) = recover(name, &log_dir, &db)?;
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
        let append = Append::new(shared.clone(), records, log, log_dir, vault.turns());
        let apply = Apply::new(
            shared.clone(),
            catalog,
            &recovered,
            options.mirror,
            (vault, name),
        );
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
        lock.is_err_and(|e| e.is_busy())
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
            self.shared.changed.wait_for(&mut state, APPLY_LOOK);
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

/// Brings the end of a log in order, and opens the catalog behind it.
fn recover(
    source: &SourceName,
    log_dir: &Path,
    db: &Path,
) -> Result<(LogWriter, Recovered, Catalog), VaultError> {
    let (log, recovered) = LogWriter::open(log_dir, applied_before(db))?;
    tell(source, &recovered);
    let catalog = Catalog::open(db, log.last_commit())?;
    Ok((log, recovered, catalog))
}

/// Says what a user has to know of a log: a torn end that nobody was told of is none of it.
fn tell(source: &SourceName, recovered: &Recovered) {
    let last = recovered.last.as_ref().map_or(BatchSeq(0), |c| c.seq);
    if let Some(lost) = recovered.lost {
        tracing::warn!(
            "{source}: its log ends behind batch {last} now, and batch {lost} was in it. What can be restored of the batches between \
             is what the source still has: it sends that again."
        );
    }
    for path in &recovered.set_aside {
        let kept = format!(
            "what came behind batch {last} in its log is kept in {}",
            path.display()
        );
        match recovered.lost {
            Some(_) => tracing::warn!("{source}: {kept}"),
            None => tracing::info!("{source}: {kept}"),
        }
    }
    for damage in &recovered.damage {
        let Place { segment, offset } = damage.place;
        tracing::warn!(
            "{source}: its log is damaged in segment {segment} at byte {offset}: {}. Verify the vault to see what it concerns.",
            damage.what
        );
    }
}

/// What a reader of the log finds that should have come to `end`.
fn ends_early(end: Place) -> LogError {
    LogError::Damaged {
        segment: end.segment,
        offset: end.offset,
        seq: None,
        what: "the log ends before its last batch".into(),
    }
}

/// The last batch that the catalog claims to have seen, and where it ends, if it can be read at all: such a batch was durable.
fn applied_before(db: &Path) -> Option<(Place, Commit)> {
    if !db.exists() {
        return None;
    }
    let newest = crate::catalog::open_reader(db).and_then(|c| crate::catalog::newest_batch(&c));
    newest.ok().flatten().map(|row| (row.end, row.commit))
}
