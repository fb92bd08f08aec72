//! The source daemon: sensor and managing unit, a link for each vault, the switch.

use super::activity::Feed;
use super::continuity::Record;
use super::link::{Barrier, Barriered, Link, LinkSetup, Resumed};
use super::sensor::{Ending, Losses, Running, SensorReport, SensorSetup};
use crate::config::{self, Config, Vault};
use crate::priority;
use crate::state::State;
use anyhow::{Context, bail};
use farwrite_capture::WatchRoot;
use farwrite_core::exclude::Excludes;
use farwrite_core::{BytePath, limits};
use farwrite_schedule::{Interval, Journal, PacerSetting, Queue};
use farwrite_transfer::backup::RootSpec;
use farwrite_transfer::net::Dialer;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A flush asks for news of its client this often.
const FLUSH_STEP: Duration = Duration::from_millis(250);

/// At the end, how long a link may take to finish its round.
const STOP_WITHIN: Duration = Duration::from_secs(8);

/// What is different when the daemon runs inside another command.
#[derive(Clone, Default)]
pub struct DaemonOptions {
    /// Trees that are never looked at, besides the state directory.
    pub skip: Vec<BytePath>,
    /// Reaches the vaults otherwise than the configuration says.
    pub dialer: Option<Dialer>,
    /// Where to tell what happens; outlives the daemon.
    pub feed: Arc<Feed>,
    /// Losses and repairs; outlive the daemon.
    pub losses: Arc<Mutex<Losses>>,
}

/// See the module.
pub struct Daemon {
    inner: Arc<Inner>,
    threads: Vec<JoinHandle<()>>,
    runtime: Option<tokio::runtime::Runtime>,
}

pub(super) struct Inner {
    pub(super) state: State,
    pub(super) config: Config,
    pub(super) roots: Vec<WatchRoot>,
    excludes: Vec<Excludes>,
    skip: Vec<BytePath>,
    pub(super) setting: PacerSetting,
    pub(super) links: Vec<(Vault, Arc<Link>)>,
    pub(super) feed: Arc<Feed>,
    pub(super) losses: Arc<Mutex<Losses>>,
    sensor: Arc<Mutex<SensorSlot>>,
    record: Record,
    resumed: Arc<Resumed>,
    /// The sensor is told of nothing.
    blind: Arc<AtomicBool>,
}

/// The switch's two positions.
enum SensorSlot {
    On(Running),
    Off {
        journal: Box<Journal>,
        why: Option<String>,
    },
    /// Between two positions.
    Moving,
}

impl Daemon {
    /// Starts everything. Directories that cannot be used are an error.
    pub fn start(state: &State, config: Config, options: DaemonOptions) -> anyhow::Result<Daemon> {
        state.create()?;
        let mut skip = options.skip.clone();
        skip.push(byte_path(&std::fs::canonicalize(state.dir())?)?);
        let mut roots = Vec::new();
        let mut excludes = Vec::new();
        let on: Vec<&config::Directory> = config.enabled().collect();
        for d in &on {
            let path = BytePath::new(&d.path)?;
            let root = WatchRoot::lookup(path.clone())
                .with_context(|| format!("protected directory {}", d.path))?;
            roots.push(root);
            excludes.push(Excludes::new(path, &d.exclude, skip.clone())?);
        }
        let (journal, recovered) = Journal::open(&state.journal_dir())?;
        for path in &recovered.damaged {
            tracing::warn!(path = %path.display(), "a part of the journal is damaged: everything is compared");
        }
        let record = Record::open(state.continuity_path(), &config);
        if recovered.fresh || !recovered.damaged.is_empty() {
            record.forget();
        }
        let resumed = Arc::new(Resumed::default());
        let setting = PacerSetting::new(config.interval()?).giving_way(priority::is_low());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("links")
            .enable_all()
            .build()
            .context("async runtime")?;
        let feed = options.feed.clone();
        let sensor = Arc::new(Mutex::new(SensorSlot::Moving));
        let barrier: Barrier = {
            let sensor = sensor.clone();
            Arc::new(move |deadline, urgent| match &*sensor.lock() {
                SensorSlot::On(running) => {
                    let done = match urgent {
                        true => running.barrier(deadline),
                        false => running.barrier_at_leisure(deadline),
                    };
                    done.map_or(Barriered::Busy, |_| Barriered::Drained)
                }
                _ => Barriered::NoSensor,
            })
        };
        let blind = Arc::new(AtomicBool::new(false));
        let (mut links, mut threads) = (Vec::new(), Vec::new());
        for vault in &config.vaults {
            let of_vault: Vec<usize> = (0..roots.len())
                .filter(|i| vault.directories.contains(&on[*i].path))
                .collect();
            let ids = of_vault
                .iter()
                .map(|&i| (roots[i].id, roots[i].path.clone()))
                .collect();
            let queue = Arc::new(Queue::new(limits::DIRTY_ENTRIES, ids));
            for (seq, change) in &recovered.pending {
                queue.insert(*seq, std::slice::from_ref(change));
            }
            let spec = |&i: &usize| RootSpec {
                slot: on[i].slot,
                path: roots[i].path.clone(),
                excludes: excludes[i].clone(),
            };
            let dialer = match &options.dialer {
                Some(d) => d.clone(),
                None => vault.dialer(state)?,
            };
            let (link, thread) = Link::start(LinkSetup {
                name: vault.name.to_string(),
                dialer,
                roots: of_vault.iter().map(spec).collect(),
                index_path: state.index_path(vault.name.as_str()),
                queue,
                setting: setting.clone(),
                bandwidth: config.bandwidth()?,
                barrier: barrier.clone(),
                feed: feed.clone(),
                resumed: resumed.clone(),
                blind: blind.clone(),
                runtime: runtime.handle().clone(),
            });
            links.push((vault.clone(), link));
            threads.push(thread);
        }
        let inner = Arc::new(Inner {
            state: state.clone(),
            config,
            roots,
            excludes,
            skip,
            setting,
            links,
            feed,
            losses: options.losses.clone(),
            sensor,
            record,
            resumed,
            blind,
        });
        let off = state.switched_off_path().exists();
        *inner.sensor.lock() = SensorSlot::Off {
            journal: Box::new(journal),
            why: None,
        };
        let daemon = Daemon {
            inner,
            threads,
            runtime: Some(runtime),
        };
        let on = match off {
            true => {
                farwrite_capture::end_recordings(None);
                Ok(())
            }
            false => daemon.inner.turn_on(),
        };
        // Whoever waits to be told goes on in any case.
        daemon.inner.resumed.tell(false);
        if let Err(e) = on {
            daemon.stop();
            return Err(e);
        }
        Ok(daemon)
    }

    /// What the control API works on.
    pub(super) fn inner(&self) -> Arc<Inner> {
        self.inner.clone()
    }

    /// Ends everything: a sensor that can goes on recording for the next process, any other lets go; what was sent gets a
    /// little time to be acked.
    pub fn stop(mut self) {
        let running = std::mem::replace(&mut *self.inner.sensor.lock(), SensorSlot::Moving);
        if let SensorSlot::On(running) = running {
            drop(running.stop(Ending::Leave));
        }
        for (_, link) in &self.inner.links {
            link.stop();
        }
        // A thread may be sending: what the vault does not take in this time is sent again at the next start.
        let deadline = Instant::now() + STOP_WITHIN;
        while Instant::now() < deadline && !self.threads.iter().all(JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(10));
        }
        for (_, link) in &self.inner.links {
            link.shut();
        }
        for t in self.threads.drain(..) {
            if t.join().is_err() {
                tracing::error!("a vault's thread has panicked");
            }
        }
        if let Some(rt) = self.runtime.take() {
            rt.shutdown_timeout(Duration::from_secs(2));
        }
    }
}

impl Inner {
    /// One line for the start of the daemon.
    pub(super) fn greeting(&self) -> String {
        let names = |v: Vec<&str>| v.join(", ");
        let dirs = names(self.config.enabled().map(|d| d.path.as_str()).collect());
        let vaults = names(self.links.iter().map(|(v, _)| v.name.as_str()).collect());
        match self.sensor_report() {
            Some(r) => format!(
                "protecting {dirs} in {vaults}; sensor {}: {}",
                r.kind.unwrap_or_default(),
                r.why
            ),
            None => {
                format!("automatic backup of {dirs} is switched off; `farwrite on` switches it on")
            }
        }
    }

    /// The sensor's state; `None` while off.
    pub(super) fn sensor_report(&self) -> Option<SensorReport> {
        match &*self.sensor.lock() {
            SensorSlot::On(r) => Some(r.report()),
            _ => None,
        }
    }

    /// Why automatic backup is off although nobody switched it off.
    pub(super) fn off_because(&self) -> Option<String> {
        match &*self.sensor.lock() {
            SensorSlot::Off { why, .. } => why.clone(),
            _ => None,
        }
    }

    /// Counters of the managing unit; `None` while off.
    pub(super) fn managing_stats(&self) -> Option<farwrite_schedule::ManagingStats> {
        match &*self.sensor.lock() {
            SensorSlot::On(r) => Some(r.stats()),
            _ => None,
        }
    }

    fn turn_on(&self) -> anyhow::Result<()> {
        let mut slot = self.sensor.lock();
        let journal = match std::mem::replace(&mut *slot, SensorSlot::Moving) {
            SensorSlot::Off { journal, .. } => *journal,
            other => {
                let on = matches!(other, SensorSlot::On(_));
                *slot = other;
                return match on {
                    true => Ok(()),
                    false => bail!("the daemon is being stopped, or another put in its place"),
                };
            }
        };
        let setup = SensorSetup {
            config: self.config.clone(),
            roots: self.roots.clone(),
            excludes: self.excludes.clone(),
            skip: self.skip.clone(),
            queues: self.links.iter().map(|(_, l)| l.queue.clone()).collect(),
            setting: self.setting.clone(),
            feed: self.feed.clone(),
            losses: self.losses.clone(),
            record: self.record.clone(),
            blind: self.blind.clone(),
        };
        match Running::start(setup, journal) {
            Ok((running, resumed)) => {
                self.resumed.tell(resumed);
                *slot = SensorSlot::On(running);
                Ok(())
            }
            Err((why, journal)) => {
                *slot = SensorSlot::Off {
                    journal: Box::new(journal),
                    why: Some(why.clone()),
                };
                bail!(why)
            }
        }
    }

    fn turn_off(&self) {
        let mut slot = self.sensor.lock();
        match std::mem::replace(&mut *slot, SensorSlot::Moving) {
            SensorSlot::On(running) => {
                *slot = SensorSlot::Off {
                    journal: Box::new(running.stop(Ending::Close)),
                    why: None,
                }
            }
            other => *slot = other,
        }
        farwrite_capture::end_recordings(None);
    }

    pub(super) fn switch(&self, on: bool) -> anyhow::Result<()> {
        let path = self.state.switched_off_path();
        if on {
            self.turn_on()?;
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    Err(e).with_context(|| path.display().to_string())
                }
                _ => Ok(()),
            }
        } else {
            std::fs::write(&path, "").with_context(|| path.display().to_string())?;
            self.turn_off();
            Ok(())
        }
    }

    pub(super) fn set_interval(&self, interval: Interval) {
        self.setting.set(interval);
        for (_, link) in &self.links {
            link.queue.nudge();
        }
        if let SensorSlot::On(running) = &*self.sensor.lock() {
            // Its only use here is that it ends a pause of the managing unit.
            let _ = running.barrier(Instant::now() + FLUSH_STEP);
        }
    }

    pub(super) fn flush(
        &self,
        timeout: Option<Duration>,
        gone: &dyn Fn() -> bool,
    ) -> Result<(), String> {
        let end = timeout.map(|t| Instant::now() + t);
        let step = || {
            end.map_or(Instant::now() + FLUSH_STEP, |e| {
                e.min(Instant::now() + FLUSH_STEP)
            })
        };
        let ending = || self.links.iter().any(|(_, l)| l.stopping());
        let over = || gone() || ending() || end.is_some_and(|e| Instant::now() >= e);
        let _hurry: Vec<_> = self.links.iter().map(|(_, l)| l.queue.hurry()).collect();
        // One request for all tries, or steady work would put it off again and again.
        let mut ticket = None;
        let target = loop {
            let seq = match &*self.sensor.lock() {
                SensorSlot::On(r) => r.wait_drained(&mut ticket, step()),
                _ => return Err("automatic backup is switched off: `farwrite on` first".into()),
            };
            match seq {
                Some(seq) => break seq,
                None if over() => return Err(self.late("the sensor's queue has not been emptied")),
                None => {}
            }
        };
        for (vault, link) in &self.links {
            while !link.wait_ready(step()) {
                if over() {
                    return Err(self.late(&format!("{} has not been reached", vault.name)));
                }
            }
            while !link.queue.wait_acked(target, step()) {
                if over() {
                    return Err(self.late(&format!("not everything is durable in {}", vault.name)));
                }
            }
            while !link.wait_mirrored(step()) {
                if over() {
                    return Err(self.late(&format!("the mirror in {} is behind", vault.name)));
                }
            }
            let r = link.report();
            if let Some((path, why)) = r.problems.first() {
                return Err(format!(
                    "{} could not be backed up, {path}: {why}",
                    count(r.problem_count, "entry", "entries")
                ));
            }
        }
        Ok(())
    }

    fn late(&self, what: &str) -> String {
        let down = self
            .links
            .iter()
            .map(|(v, l)| (v, l.report()))
            .find(|(_, r)| !r.up);
        match down {
            Some((v, r)) if !r.message.is_empty() => format!("{what}; {}: {}", v.name, r.message),
            _ => what.to_owned(),
        }
    }
}

/// "1 entry", "3 entries".
fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

fn byte_path(p: &std::path::Path) -> anyhow::Result<BytePath> {
    BytePath::try_from(p).with_context(|| p.display().to_string())
}
