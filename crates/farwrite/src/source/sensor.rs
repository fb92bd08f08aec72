//! The managing unit's thread and the sensor behind it: what the automatic-backup switch starts and stops.

use super::activity::{Feed, told};
use super::continuity::Record;
use crate::config::{Config, Sensor};
use farwrite_capture::{
    ChangeSource, ReadState, SensorChoice, SensorKind, SensorOptions, SensorStats, Waker, WatchRoot,
};
use farwrite_core::exclude::Excludes;
use farwrite_core::{BytePath, Change, ChangeOp, ChangeSeq, Clock, Guarantee, SystemClock};
use farwrite_schedule::{
    Drain, DrainTicket, Haste, Journal, ManagingShared, ManagingStats, ManagingUnit, MessageSource,
    PacerSetting, Queue,
};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// After a failure of the sensor it is opened anew, this long later.
const REOPEN: Duration = Duration::from_secs(1);

/// What the status shows of a sensor.
#[derive(Clone, Debug, Default)]
pub struct SensorReport {
    /// "fanotify" ...; none while off or not to be had.
    pub kind: Option<String>,
    /// Why this one.
    pub why: String,
    /// In words.
    pub guarantees: String,
    /// What to do about it, if anything.
    pub warning: Option<String>,
    /// Why changes are not seen, or not kept, although it is switched on: until one is again.
    pub failing: Option<String>,
    /// Counters.
    pub stats: SensorStats,
}

/// Messages about losses, until what they concern has been compared.
#[derive(Debug, Default)]
pub struct Losses {
    /// How often messages were lost.
    pub lost: u64,
    /// How many of those have been made good in every vault.
    pub repaired: u64,
    open: Vec<ChangeSeq>,
}

impl Losses {
    /// Everything up to `checkpoint` is durable in every vault.
    pub fn settle(&mut self, checkpoint: ChangeSeq) {
        let before = self.open.len();
        self.open.retain(|s| *s > checkpoint);
        self.repaired += (before - self.open.len()) as u64;
    }
}

/// What the sensor thread needs.
pub struct SensorSetup {
    /// Which sensor, which queue.
    pub config: Config,
    /// What to watch.
    pub roots: Vec<WatchRoot>,
    /// What to leave out, per root.
    pub excludes: Vec<Excludes>,
    /// Trees never looked at.
    pub skip: Vec<BytePath>,
    /// One per vault.
    pub queues: Vec<Arc<Queue>>,
    /// The interval.
    pub setting: PacerSetting,
    /// For those who watch.
    pub feed: Arc<Feed>,
    /// Losses and repairs.
    pub losses: Arc<Mutex<Losses>>,
    /// Whether recording goes on from an earlier process.
    pub record: Record,
    /// Set while the sensor is one that is told of nothing, and only compares.
    pub blind: Arc<AtomicBool>,
}

/// How a sensor is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Switched off: nothing is recorded any more.
    Close,
    /// Only this process ends: recording goes on, if the sensor can.
    Leave,
}

/// A running managing unit.
pub struct Running {
    shared: Arc<ManagingShared>,
    report: Arc<Mutex<SensorReport>>,
    waker: Arc<Mutex<Option<Waker>>>,
    stop: Arc<AtomicBool>,
    leave: Arc<AtomicBool>,
    started: Instant,
    thread: JoinHandle<Journal>,
}

impl Running {
    /// Starts the thread. The sensor is in place when this returns, or the error says why not. The second value: all that
    /// happened since an earlier process is recorded and nothing has to be compared.
    pub fn start(
        setup: SensorSetup,
        journal: Journal,
    ) -> Result<(Running, bool), (String, Journal)> {
        let source = match open(&setup) {
            Ok(s) => s,
            Err(e) => return Err((e, journal)),
        };
        let resumed = setup.record.goes_on(source.0.continuity().as_ref());
        let excludes: Vec<(BytePath, Excludes)> = setup
            .roots
            .iter()
            .map(|r| r.path.clone())
            .zip(setup.excludes.iter().cloned())
            .collect();
        let filter = Box::new(move |c: &Change| wanted(c, &excludes));
        let (feed, losses) = (setup.feed.clone(), setup.losses.clone());
        let observer = Box::new(move |first: ChangeSeq, changes: &[Change]| {
            for (i, c) in changes.iter().enumerate() {
                feed.tell(|| told(c, ChangeSeq(first.0 + i as u64)));
                if c.op == ChangeOp::Overflow {
                    let mut l = losses.lock();
                    l.lost += 1;
                    l.open.push(ChangeSeq(first.0 + i as u64));
                }
            }
        });
        let mut unit = ManagingUnit::new(
            journal,
            setup.queues.clone(),
            setup.setting.clone(),
            filter,
            observer,
        );
        let shared = unit.shared();
        let report = Arc::new(Mutex::new(SensorReport::default()));
        let waker = Arc::new(Mutex::new(None));
        let stop = Arc::new(AtomicBool::new(false));
        let leave = Arc::new(AtomicBool::new(false));
        let mut adapter = Adapter {
            source: None,
            report: report.clone(),
            waker: waker.clone(),
            blind: setup.blind.clone(),
        };
        adapter.put(source);
        let (stopping, leaving) = (stop.clone(), leave.clone());
        let spawned = std::thread::Builder::new()
            .name("managing-unit".into())
            .spawn(move || {
                // The sensor is in place: whatever happened before it was is found by comparing everything.
                let mut unseen = (!resumed).then_some(ChangeOp::Subtree);
                loop {
                    let whole = |op: &ChangeOp| setup.roots.iter().map(|r| whole(r, op)).collect();
                    let put = match unseen.take() {
                        Some(op) => unit.put(whole(&op)).map_err(|e| e.to_string()),
                        None => Ok(()),
                    };
                    let run = put.and_then(|()| {
                        setup.record.keep(adapter.continuity());
                        unit.run(&mut adapter)
                    });
                    let Err(why) = run else {
                        if leaving.load(Ordering::Acquire) {
                            adapter.leave();
                        } else {
                            setup.record.forget();
                            adapter.close();
                        }
                        return unit.into_journal();
                    };
                    setup.record.forget();
                    adapter.close();
                    tracing::error!(%why, "the sensor has failed");
                    unseen = Some(ChangeOp::Overflow);
                    loop {
                        adapter.failed(&why);
                        let until = Instant::now() + REOPEN;
                        while Instant::now() < until && !stopping.load(Ordering::Acquire) {
                            std::thread::park_timeout(REOPEN / 10);
                        }
                        if stopping.load(Ordering::Acquire) {
                            return unit.into_journal();
                        }
                        match open(&setup) {
                            Ok(s) => break adapter.put(s),
                            Err(e) => adapter.failed(&e),
                        }
                    }
                }
            });
        let thread = spawned.expect("a thread can be started");
        let running = Running {
            shared,
            report,
            waker,
            stop,
            leave,
            started: Instant::now(),
            thread,
        };
        Ok((running, resumed))
    }

    /// Stops; with [`Ending::Close`] the sensor has let go of the kernel when this returns.
    pub fn stop(self, ending: Ending) -> Journal {
        self.leave.store(ending == Ending::Leave, Ordering::Release);
        self.stop.store(true, Ordering::Release);
        self.shared.stop();
        self.wake();
        self.thread.thread().unpark();
        self.thread
            .join()
            .expect("the managing unit does not panic")
    }

    /// Empties the sensor's queue; returns the last message then. `None` at the deadline.
    pub fn barrier(&self, deadline: Instant) -> Option<ChangeSeq> {
        self.shared.barrier(&|| self.wake(), deadline)
    }

    /// The same without shortening the scheduling interval.
    pub fn barrier_at_leisure(&self, deadline: Instant) -> Option<ChangeSeq> {
        self.shared.barrier_at_leisure(&|| self.wake(), deadline)
    }

    /// For a flush; see [`ManagingShared::wait_drained`]. A ticket is good for this run of the sensor.
    pub fn wait_drained(
        &self,
        ticket: &mut Option<(Instant, DrainTicket)>,
        deadline: Instant,
    ) -> Option<ChangeSeq> {
        let mut mine = ticket.filter(|(of, _)| *of == self.started).map(|(_, t)| t);
        let done = self
            .shared
            .wait_drained(&mut mine, Haste::Flush, &|| self.wake(), deadline);
        *ticket = mine.map(|t| (self.started, t));
        done
    }

    /// What the status shows.
    pub fn report(&self) -> SensorReport {
        self.report.lock().clone()
    }

    /// Counters of the managing unit.
    pub fn stats(&self) -> ManagingStats {
        self.shared.stats()
    }

    fn wake(&self) {
        if let Some(w) = &*self.waker.lock() {
            w.wake();
        }
    }
}

fn whole(root: &WatchRoot, op: &ChangeOp) -> Change {
    let time = SystemClock::default().now();
    Change {
        time,
        path: root.path.clone(),
        dir: root.id,
        name: None,
        file: None,
        op: op.clone(),
    }
}

/// Is the message about something that is backed up? A file told by identity, and a tree, always may be.
fn wanted(c: &Change, excludes: &[(BytePath, Excludes)]) -> bool {
    if c.name.is_none() || c.file.is_some() {
        return true;
    }
    let excluded = |p: &BytePath| {
        excludes
            .iter()
            .any(|(root, e)| p.starts_with(root) && e.excludes(p, false))
    };
    match &c.op {
        ChangeOp::Rename { to_path, .. } => !excluded(&c.path) || !excluded(to_path),
        _ => !excluded(&c.path),
    }
}

fn open(setup: &SensorSetup) -> Result<(Box<dyn ChangeSource>, String), String> {
    let choice = match setup.config.sensor {
        Sensor::Auto => SensorChoice::Auto,
        Sensor::Kmod => SensorChoice::Kmod,
        Sensor::Ebpf => SensorChoice::Ebpf,
        Sensor::Fanotify => SensorChoice::Fanotify,
        Sensor::Inotify => SensorChoice::Inotify,
        Sensor::Scan => SensorChoice::Scan,
    };
    let opts = SensorOptions {
        limited_queue: setup.config.queue == "kernel",
        skip: setup.skip.clone(),
        ..SensorOptions::default()
    };
    farwrite_capture::open(choice, &setup.roots, &opts).map_err(|e| e.to_string())
}

/// What a sensor promises, in words.
fn in_words(kind: SensorKind, g: Guarantee) -> String {
    if kind == SensorKind::Scan {
        return "told of nothing: compares everything at intervals".into();
    }
    let extents = if g.extents {
        "exact byte ranges"
    } else {
        "every named change, no byte ranges"
    };
    let mmap = if g.mmap {
        "mmap stores at once"
    } else {
        "mmap stores within half a minute"
    };
    let persists = if g.persists {
        "goes on while the daemon is away"
    } else {
        "catches up by comparing after a restart"
    };
    format!("{extents}; {mmap}; {persists}")
}

/// The sensor as the managing unit sees it.
struct Adapter {
    source: Option<Box<dyn ChangeSource>>,
    report: Arc<Mutex<SensorReport>>,
    waker: Arc<Mutex<Option<Waker>>>,
    blind: Arc<AtomicBool>,
}

impl Adapter {
    fn put(&mut self, (source, why): (Box<dyn ChangeSource>, String)) {
        *self.waker.lock() = Some(source.waker());
        let blind = source.kind() == SensorKind::Scan;
        self.blind.store(blind, Ordering::Release);
        let mut report = self.report.lock();
        *report = SensorReport {
            kind: Some(source.kind().to_string()),
            why,
            guarantees: in_words(source.kind(), source.guarantee()),
            warning: source.state(),
            failing: report.failing.take(),
            stats: source.stats(),
        };
        drop(report);
        self.source = Some(source);
    }

    fn close(&mut self) {
        *self.waker.lock() = None;
        if let Some(s) = self.source.take() {
            s.close();
        }
        let mut r = self.report.lock();
        r.kind = None;
        r.stats.marks = 0;
        r.stats.watches = 0;
    }

    fn leave(&mut self) {
        *self.waker.lock() = None;
        if let Some(s) = self.source.take() {
            s.leave();
        }
    }

    fn continuity(&self) -> Option<farwrite_capture::Continuity> {
        self.source.as_ref().and_then(|s| s.continuity())
    }

    fn failed(&mut self, why: &str) {
        let mut report = self.report.lock();
        report.warning = Some(format!("the sensor failed and is being opened anew: {why}"));
        report.failing = Some(why.into());
    }
}

impl MessageSource for Adapter {
    fn read(&mut self, out: &mut Vec<Change>, timeout: Duration) -> Result<Drain, String> {
        let source = self.source.as_mut().ok_or("no sensor")?;
        let state = source.read(out, timeout).map_err(|e| e.to_string())?;
        let mut r = self.report.lock();
        r.stats = source.stats();
        r.warning = source.state();
        r.failing = None;
        Ok(match state {
            ReadState::Drained => Drain::Drained,
            ReadState::More => Drain::More,
        })
    }

    fn look_now(&mut self) {
        if let Some(source) = &mut self.source {
            source.look_now();
        }
    }

    fn release(&mut self) -> Result<(), String> {
        let source = self.source.as_mut().ok_or("no sensor")?;
        source.release().map_err(|e| e.to_string())
    }
}
