//! One vault: the processing unit's thread, its backup unit and the link.

use super::activity::{Feed, now_ms};
use super::metrics::AckTimes;
use farwrite_control::Activity;
use farwrite_core::codec::{decode_commit, decode_ops};
use farwrite_core::{
    BackupCommand, BatchSeq, Change, ChangeOp, Clock, Epoch, Record, RecordKind, SystemClock,
};
use farwrite_schedule::{
    CommandSink, Outcome, PacerSetting, ProcessingStats, ProcessingUnit, Queue, Stopped,
};
use farwrite_transfer::backup::{
    BackupStats, BackupUnit, Index, IndexState, Problem, RecordSink, RootSpec, SinkClosed,
    UnitError,
};
use farwrite_transfer::message::Behind;
use farwrite_transfer::net::{Dialer, LinkEvent, LinkOptions, LinkStats, SourceLink};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Another at each start of the machine: random(4).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// SQLite page cache of one index.
const INDEX_CACHE_BYTES: usize = 16 << 20;
/// After an error that may pass, this long until the next try.
const RETRY: Duration = Duration::from_secs(5);
/// At the end of the daemon, how long to wait for the last acks.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);
/// Problems shown.
const PROBLEMS_SHOWN: usize = 20;
/// Batches whose time of sending is remembered, for the time to durable.
const TIMED_BATCHES: usize = 256;

/// Empties the sensor until the deadline; if it is urgent (`true`), without letting the scheduling interval pass.
pub type Barrier = Arc<dyn Fn(Instant, bool) -> Barriered + Send + Sync>;

/// How emptying the sensor went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barriered {
    /// What it held is in the queue.
    Drained,
    /// It was still at work at the deadline.
    Busy,
    /// There is none: switched off.
    NoSensor,
}

/// What a link is made with.
pub struct LinkSetup {
    /// What the vault is called here.
    pub name: String,
    /// How to reach it.
    pub dialer: Dialer,
    /// What to protect there.
    pub roots: Vec<RootSpec>,
    /// Where its index is.
    pub index_path: PathBuf,
    /// Its queue.
    pub queue: Arc<Queue>,
    /// The interval.
    pub setting: PacerSetting,
    /// Bytes a second.
    pub bandwidth: Option<u64>,
    /// Empties the sensor.
    pub barrier: Barrier,
    /// For those who watch.
    pub feed: Arc<Feed>,
    /// Whether nothing has happened unseen since an earlier process.
    pub resumed: Arc<Resumed>,
    /// The sensor is told of nothing, and only compares.
    pub blind: Arc<AtomicBool>,
    /// Where links run.
    pub runtime: tokio::runtime::Handle,
}

/// What others see of a link.
#[derive(Clone, Debug, Default)]
pub struct LinkReport {
    /// Connected and at work.
    pub up: bool,
    /// Index and vault agree, and what is to be looked at is in the queue.
    pub ready: bool,
    /// Why not, or what is being done.
    pub message: String,
    /// A person has to do something.
    pub stuck: bool,
    /// The vault keeps a mirror.
    pub mirror: bool,
    /// Last batch closed.
    pub sent: BatchSeq,
    /// Last batch acked.
    pub acked: BatchSeq,
    /// Last batch in the mirror.
    pub mirrored: BatchSeq,
    /// When the last ack came, in wall time.
    pub last_ack: Option<farwrite_core::Timestamp>,
    /// Time from closing a batch to its ack, the last measured.
    pub ack_time: Duration,
    /// Of the backup unit.
    pub backup: BackupStats,
    /// What cannot be backed up, the first of them.
    pub problems: Vec<(String, String)>,
    /// How many there are.
    pub problem_count: usize,
    /// Other filesystems below the directories.
    pub boundaries: Vec<String>,
    /// Of the connection.
    pub link: LinkStats,
}

/// The shared part of a link.
pub struct Link {
    /// What the vault is called here.
    pub name: String,
    /// Its queue.
    pub queue: Arc<Queue>,
    report: Mutex<LinkReport>,
    changed: Condvar,
    feed: Arc<Feed>,
    connection: Mutex<Option<Arc<SourceLink>>>,
    sent_at: Mutex<VecDeque<(BatchSeq, Instant)>>,
    /// Times from closing a batch to its ack.
    pub acks: AckTimes,
    stop: AtomicBool,
    /// Of the processing unit.
    processing: Mutex<Arc<Mutex<ProcessingStats>>>,
}

impl Link {
    /// What is not durable at the vault.
    pub fn behind(&self) -> Behind {
        let (pending, oldest) = self.queue.behind();
        let age = |t| SystemClock::default().now().since(t).as_millis() as u64;
        Behind {
            changes: pending as u64,
            lag_ms: oldest.map_or(0, age),
        }
    }

    /// Starts the thread.
    pub fn start(setup: LinkSetup) -> (Arc<Link>, std::thread::JoinHandle<()>) {
        let link = Arc::new(Link {
            name: setup.name.clone(),
            queue: setup.queue.clone(),
            report: Mutex::default(),
            changed: Condvar::new(),
            feed: setup.feed.clone(),
            connection: Mutex::default(),
            sent_at: Mutex::default(),
            acks: AckTimes::default(),
            stop: AtomicBool::new(false),
            processing: Mutex::default(),
        });
        let shared = link.clone();
        let thread = std::thread::Builder::new()
            .name(format!("vault-{}", &setup.name[..setup.name.len().min(9)]))
            .spawn(move || {
                Worker {
                    setup,
                    shared,
                    begun: AtomicBool::new(false),
                }
                .run()
            })
            .expect("a thread can be started");
        (link, thread)
    }

    /// Ends the thread soon.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.queue.stop();
        // A send that waits for a vault that is away would wait for ever.
        if !self.report.lock().up {
            self.shut();
        }
        self.changed.notify_all();
    }

    /// Gives up what is not acked: a send that waits ends with an error.
    pub fn shut(&self) {
        if let Some(c) = &*self.connection.lock() {
            c.shut();
        }
    }

    /// What others see.
    pub fn report(&self) -> LinkReport {
        let mut r = self.report.lock().clone();
        if let Some(c) = &*self.connection.lock() {
            r.link = c.stats();
        }
        r
    }

    /// Counters of the processing unit.
    pub fn processing(&self) -> ProcessingStats {
        *self.processing.lock().lock()
    }

    /// Waits until what this vault lacks is in its queue; `false` at the deadline.
    pub fn wait_ready(&self, deadline: Instant) -> bool {
        let mut r = self.report.lock();
        while !r.ready {
            if self.stop.load(Ordering::Acquire)
                || self.changed.wait_until(&mut r, deadline).timed_out()
            {
                return r.ready;
            }
        }
        true
    }

    /// Waits until the mirror stands where the vault's log does; `false` at the deadline.
    pub fn wait_mirrored(&self, deadline: Instant) -> bool {
        let mut r = self.report.lock();
        // An ack may be told of before the thread that sent the batch has said so.
        let target = r.sent.max(r.acked);
        loop {
            if r.mirrored >= target || (!r.mirror && r.acked >= target) {
                return true;
            }
            if self.stop.load(Ordering::Acquire)
                || self.changed.wait_until(&mut r, deadline).timed_out()
            {
                return false;
            }
        }
    }

    fn update(&self, f: impl FnOnce(&mut LinkReport)) {
        let mut report = self.report.lock();
        let of_alerts = |r: &LinkReport| (r.up, r.stuck, r.problem_count);
        let before = of_alerts(&report);
        f(&mut report);
        let news = of_alerts(&report) != before;
        drop(report);
        self.changed.notify_all();
        if news {
            self.feed.bell().ring();
        }
    }

    /// Is it ending?
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Called on the runtime's threads: must not block for long.
    fn event(&self, event: LinkEvent, feed: &Feed) {
        let tell = |text: String| {
            feed.tell(|| Activity::Link {
                vault: self.name.clone(),
                text,
            })
        };
        match event {
            LinkEvent::Up { mirror, .. } => {
                self.update(|r| {
                    r.up = true;
                    r.stuck = false;
                    r.mirror = mirror;
                    r.mirrored = BatchSeq(0);
                    r.message = String::new();
                });
                tell("connected".into());
            }
            LinkEvent::Down { why, .. } => {
                tell(format!("not connected: {why}"));
                self.update(|r| {
                    r.up = false;
                    r.message = why;
                });
            }
            LinkEvent::Refused { text, .. } => {
                tell(format!("refused: {text}"));
                self.update(|r| {
                    r.up = false;
                    r.stuck = true;
                    r.message = format!("the vault refuses this source: {text}");
                });
            }
            LinkEvent::Ack(seq) => {
                let after = self.time_to_durable(seq);
                if let Some(time) = after {
                    self.acks.note(time);
                }
                self.update(|r| {
                    r.acked = seq;
                    r.last_ack = Some(SystemClock::default().now());
                    r.ack_time = after.unwrap_or(r.ack_time);
                });
                self.queue.acked(seq);
                let after_ms = after.unwrap_or_default().as_millis() as u64;
                feed.tell(|| Activity::Durable {
                    vault: self.name.clone(),
                    batch: seq.0,
                    after_ms,
                    through: self.queue.durable_through().0,
                    time_ms: now_ms(),
                });
            }
            LinkEvent::Mirrored(seq) => self.update(|r| r.mirrored = seq),
        }
    }

    fn time_to_durable(&self, seq: BatchSeq) -> Option<Duration> {
        let mut sent = self.sent_at.lock();
        let mut last = None;
        while let Some((s, at)) = sent.front().filter(|(s, _)| *s <= seq) {
            last = Some((*s, *at));
            sent.pop_front();
        }
        last.map(|(_, at)| at.elapsed())
    }
}

/// Where the vault's log ends, as told at the welcome.
#[derive(Clone, Copy)]
struct VaultEnd {
    last: Option<(BatchSeq, [u8; 32])>,
    epoch: Option<Epoch>,
}

struct Worker {
    setup: LinkSetup,
    shared: Arc<Link>,
    /// A session has begun to look at the tree.
    begun: AtomicBool,
}

/// Whether the sensor has recorded all that happened since an earlier process took messages from it.
#[derive(Default)]
pub struct Resumed {
    known: Mutex<Option<bool>>,
    told: Condvar,
}

impl Resumed {
    /// Says so; the first word counts.
    pub fn tell(&self, resumed: bool) {
        self.known.lock().get_or_insert(resumed);
        self.told.notify_all();
    }

    /// Waits until it is known.
    fn wait(&self) -> bool {
        let mut known = self.known.lock();
        loop {
            match *known {
                Some(resumed) => return resumed,
                None => self.told.wait(&mut known),
            }
        }
    }
}

impl Worker {
    fn run(self) {
        while !self.shared.stopping() {
            let session = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.session()));
            let ended = session.unwrap_or_else(|_| {
                Err(SinkClosed("an internal error (see the log): please report it".into()).into())
            });
            if let Err(e) = ended {
                if self.shared.stopping() {
                    break;
                }
                let text = e.to_string();
                tracing::error!(vault = %self.setup.name, error = %text, "backup stopped; trying again");
                self.shared.update(|r| {
                    r.up = false;
                    r.stuck = true;
                    r.message = text;
                });
                self.pause(RETRY);
            }
            self.shared.connection.lock().take();
            self.shared.update(|r| r.ready = false);
            self.shared.queue.forget_in_flight();
        }
    }

    fn pause(&self, time: Duration) {
        let deadline = Instant::now() + time;
        let mut r = self.shared.report.lock();
        while !self.shared.stopping()
            && !self.shared.changed.wait_until(&mut r, deadline).timed_out()
        {}
    }

    /// From connecting to the end of the link.
    fn session(&self) -> Result<(), UnitError> {
        if let Some(dir) = self.setup.index_path.parent() {
            // If this fails, opening the index says so.
            let _ = std::fs::create_dir_all(dir);
        }
        let mut index = Index::open(&self.setup.index_path, INDEX_CACHE_BYTES)?;
        let (up_sender, ups) = crossbeam_channel::bounded(8);
        let (shared, feed) = (self.shared.clone(), self.setup.feed.clone());
        let events = Box::new(move |event: LinkEvent| {
            if let LinkEvent::Up {
                last,
                epoch,
                first: true,
                ..
            } = &event
            {
                // Full only if nobody waits any more.
                let _ = up_sender.try_send(VaultEnd {
                    last: *last,
                    epoch: *epoch,
                });
            }
            shared.event(event, &feed);
        });
        let shared = self.shared.clone();
        let options = LinkOptions {
            behind: Some(Arc::new(move || shared.behind())),
            epoch: Some(index.state().epoch),
            bytes_per_second: self.setup.bandwidth,
            ..LinkOptions::default()
        };
        let link = Arc::new(SourceLink::spawn(
            &self.setup.runtime,
            self.setup.dialer.clone(),
            options,
            events,
        ));
        *self.shared.connection.lock() = Some(link.clone());
        let end = loop {
            if self.shared.stopping() {
                return Ok(());
            }
            match ups.recv_timeout(Duration::from_millis(200)) {
                Ok(end) => break end,
                Err(crossbeam_channel::RecvTimeoutError::Timeout) => {}
                Err(_) => return Err(SinkClosed("the link has ended".into()).into()),
            }
        };
        let settled = settle(&mut index, end, &link, &self.setup.name)?;
        let state = index.state();
        self.shared.update(|r| {
            r.sent = state.seq;
            r.acked = state.acked;
            r.mirrored = r.mirrored.min(state.acked);
        });
        if let Ok(boot) = std::fs::read_to_string(BOOT_ID)
            && let doubted @ 1.. = index.note_boot(boot.trim())?
        {
            tracing::info!(
                files = doubted,
                "the machine was started anew: reading what had changed last once more"
            );
        }
        link.begin();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let sink = Box::new(LinkSink(link.clone()));
        let mut unit = BackupUnit::new(index, self.setup.roots.clone(), sink, clock)?;
        unit.set_writeback(Box::new(|file, extent| {
            farwrite_capture::start_writeback(file.as_fd(), extent)
        }));
        unit.set_blind(self.setup.blind.clone());
        unit.set_helped(!self.setup.setting.gives_way());
        let queue = self.setup.queue.clone();
        unit.set_told(Arc::new(move || queue.told()));
        // What was on its way when an earlier process died is in the journal, if that process took its messages from
        // there; what was on its way in this one is not.
        let journaled = !self.begun.swap(true, Ordering::AcqRel) && self.setup.resumed.wait();
        let owed = match settled {
            Settled::Same | Settled::TakenBack if journaled => unit.resume()?,
            _ => None,
        };
        match (owed, settled) {
            (Some(owed), _) => self.setup.queue.owe(&owed),
            // The sensor's start has put a compare into the queue, or will.
            (None, Settled::Same) if !journaled => {}
            (None, _) => self.compare_all(&mut unit)?,
        }
        self.shared.update(|r| {
            // The protected directories themselves went into a batch as the unit was made.
            r.sent = unit.index().state().seq;
            r.ready = true;
        });
        let mut commands = Commands {
            unit,
            worker: self,
            link: link.clone(),
        };
        let mut processing =
            ProcessingUnit::new(self.setup.queue.clone(), self.setup.setting.clone());
        *self.shared.processing.lock() = processing.stats();
        let barrier = &self.setup.barrier;
        let drain = || {
            match barrier(Instant::now() + Duration::from_secs(1), true) {
                Barriered::Drained | Barriered::Busy => {}
                Barriered::NoSensor => {
                    // Nothing is waiting in it.
                    self.setup.queue.note_drained();
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        };
        let ended = processing.run(&mut commands, &drain);
        drop(commands);
        self.shared.connection.lock().take();
        if self.shared.stopping()
            && let Some(link) = Arc::into_inner(link)
        {
            let up = self.shared.report.lock().up;
            link.close(if up { DRAIN_WITHIN } else { Duration::ZERO });
        }
        ended.map_err(|Stopped(why)| SinkClosed(why).into())
    }

    /// Puts "compare everything" into this vault's queue.
    fn compare_all(&self, unit: &mut BackupUnit) -> Result<(), UnitError> {
        for (dir, path) in unit.compare_all()? {
            let time = SystemClock::default().now();
            let c = Change {
                time,
                path,
                dir,
                name: None,
                file: None,
                op: ChangeOp::Subtree,
            };
            self.setup.queue.owe(&[c]);
        }
        Ok(())
    }
}

/// How the index and the vault's log were made to agree.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Settled {
    /// They did.
    Same,
    /// Batches that the vault did not get were taken back.
    TakenBack,
    /// The index is another: everything is to be compared.
    Changed,
}

/// Makes the index and the vault's log agree.
fn settle(
    index: &mut Index,
    end: VaultEnd,
    link: &SourceLink,
    vault: &str,
) -> Result<Settled, UnitError> {
    let state = index.state();
    let (seq, chain) = end.last.unwrap_or_default();
    let known = end.last.is_none() || end.epoch == Some(state.epoch);
    if known && index.chain_at(seq)? == Some(chain) {
        let taken_back = index.roll_back_to(seq)?;
        if taken_back > 0 {
            tracing::info!(%vault, batches = taken_back, "sending again what the vault did not get");
        }
        index.acked(seq)?;
        return Ok(match taken_back {
            0 => Settled::Same,
            _ => Settled::TakenBack,
        });
    }
    if known && seq > state.seq && replay(index, state, link)? && index.state().chain == chain {
        tracing::info!(%vault, from = %state.seq, to = %seq, "brought the index forward from the vault's log");
        return Ok(Settled::Changed);
    }
    if state.seq > BatchSeq(0) {
        tracing::warn!(%vault, "the vault does not have what was sent to it: starting a new full backup there");
    }
    let time = SystemClock::default().now();
    index.reset(seq, chain, farwrite_core::Timestamp::default(), time)?;
    Ok(Settled::Changed)
}

fn replay(index: &mut Index, state: IndexState, link: &SourceLink) -> Result<bool, UnitError> {
    let records = link
        .replay(state.seq)
        .map_err(|e| SinkClosed(e.to_string()))?;
    let mut ops = Vec::new();
    for record in records {
        let record = record.map_err(|e| SinkClosed(e.to_string()))?;
        match record.header.kind {
            RecordKind::Ops => match decode_ops(&record) {
                Ok(more) => ops.extend(more),
                Err(_) => return Ok(false),
            },
            RecordKind::Commit => match decode_commit(&record) {
                Ok(c) if index.replay(&c, &std::mem::take(&mut ops)).is_ok() => {}
                _ => return Ok(false),
            },
            _ => return Ok(false),
        }
    }
    Ok(true)
}

struct LinkSink(Arc<SourceLink>);

impl RecordSink for LinkSink {
    fn send(&mut self, record: Record) -> Result<(), SinkClosed> {
        self.0.send(record).map_err(|e| SinkClosed(e.to_string()))
    }
}

/// The backup unit as the processing unit sees it.
struct Commands<'a> {
    unit: BackupUnit,
    worker: &'a Worker,
    link: Arc<SourceLink>,
}

impl Commands<'_> {
    fn note_acks(&mut self) -> Result<LinkStats, Stopped> {
        let stats = self.link.stats();
        if let Some(seq) = stats.acked {
            self.unit.acked(seq).map_err(stopped)?;
        }
        Ok(stats)
    }

    fn publish(&self, batch: Option<BatchSeq>) {
        let problems: Vec<&Problem> = self.unit.problems().collect();
        let shown = problems
            .iter()
            .take(PROBLEMS_SHOWN)
            .map(|p| (p.path.to_string(), p.why.clone()))
            .collect();
        let boundaries = self.unit.boundaries().map(|b| b.to_string()).collect();
        let backup = self.unit.stats();
        self.worker.shared.update(|r| {
            r.backup = backup;
            r.problem_count = problems.len();
            r.problems = shown;
            r.boundaries = boundaries;
            r.sent = r.sent.max(batch.unwrap_or_default());
        });
    }

    fn sent(&self, batch: BatchSeq, bytes: u64) {
        let shared = &self.worker.shared;
        let mut sent = shared.sent_at.lock();
        if sent.len() == TIMED_BATCHES {
            sent.pop_front();
        }
        sent.push_back((batch, Instant::now()));
        drop(sent);
        self.worker.setup.feed.tell(|| Activity::Sent {
            vault: shared.name.clone(),
            batch: batch.0,
            bytes,
        });
    }
}

/// Is the sensor empty and nothing queued?
fn quiet(setup: &LinkSetup) -> bool {
    setup.queue.is_empty()
        && (setup.barrier)(Instant::now() + Duration::from_millis(200), false) == Barriered::Drained
        && setup.queue.is_empty()
}

fn stopped(e: impl std::fmt::Display) -> Stopped {
    Stopped(e.to_string())
}

impl CommandSink for Commands<'_> {
    fn execute(&mut self, commands: Vec<BackupCommand>) -> Result<Outcome, Stopped> {
        self.unit.begin().map_err(stopped)?;
        self.note_acks()?;
        let before = self.unit.stats();
        let setup = &self.worker.setup;
        self.unit.tell_files(setup.feed.is_watched());
        let report = self
            .unit
            .execute(commands, &mut || quiet(setup))
            .map_err(stopped)?;
        self.publish(report.batch);
        for file in &report.files {
            setup.feed.tell(|| Activity::File {
                vault: setup.name.clone(),
                path: file.path.to_string(),
                bytes: file.bytes_new,
            });
        }
        if let Some(batch) = report.batch {
            self.sent(batch, self.unit.stats().bytes_sent - before.bytes_sent);
        }
        let stats = self.link.stats();
        Ok(Outcome {
            put_back: report.put_back,
            batch: report.batch,
            ack: self.worker.shared.report.lock().ack_time,
            window_used: stats.unacked_bytes as f64 / stats.window_bytes.max(1) as f64,
            searches: report.searches,
        })
    }

    fn idle(&mut self) -> Result<Option<Duration>, Stopped> {
        self.note_acks()?;
        let setup = &self.worker.setup;
        let before = self.unit.index().state().seq;
        let again = self.unit.idle(&mut || quiet(setup)).map_err(stopped)?;
        let now = self.unit.index().state().seq;
        self.publish((now > before).then_some(now));
        if !again.is_empty() {
            setup
                .queue
                .settle(again.into_iter().map(|c| (c, false)).collect(), None);
        }
        let state = self.unit.index().state();
        // The index has to hear of acks that are still to come.
        let acks = (state.acked < state.seq).then_some(Duration::ZERO);
        Ok(acks.or_else(|| self.unit.next_duty()))
    }
}
