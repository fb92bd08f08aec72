//! The daemon as long as the process lives: starts it, answers the control API for it, and puts another in its place when
//! the configuration changes. Must never leave the machine without a daemon and say nothing: if the new configuration does not
//! start, the old one is started again, and if that does not start either, the process ends with an error.
//!
//! A change of the configuration is a restart inside the process. Nothing is lost by it for the same reasons for which
//! nothing is lost by a restart of the process: the journal and the indexes stay, the new sensor is in place before
//! everything is compared. The control socket, the feed of what happens and the counters of losses outlive it.

use super::activity::Feed;
use super::daemon::{Daemon, DaemonOptions, Inner};
use crate::config::{Config, Sensor};
use crate::history::Past;
use crate::state::State;
use anyhow::{Context, anyhow, bail};
use farwrite_control::{Server, Status};
use farwrite_web::{Metrics, Ui};
use parking_lot::{Mutex, RwLock};
use std::path::PathBuf;
use std::sync::Arc;

/// What the command line sets instead of the configuration file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// Which sensor.
    pub sensor: Option<Sensor>,
    /// The interval.
    pub interval: Option<String>,
}

impl Overrides {
    fn apply(&self, config: &mut Config) {
        if let Some(sensor) = self.sensor {
            config.sensor = sensor;
        }
        if let Some(interval) = &self.interval {
            config.interval.clone_from(interval);
        }
    }
}

/// See the module.
pub struct Supervisor {
    pub(super) state: State,
    options: DaemonOptions,
    overrides: Overrides,
    /// For questions about the history.
    pub(super) past: Past,
    /// `/metrics`, if the configuration wants it.
    pub(super) metrics: Mutex<Option<Metrics>>,
    /// The GUI, once it is served.
    pub(super) ui: Mutex<Option<Ui>>,
    /// One change of the configuration at a time.
    pub(super) changes: Mutex<()>,
    /// Held while the daemon is started, stopped or replaced.
    daemon: Mutex<Option<Daemon>>,
    /// Of the daemon that runs now, or ran last.
    current: RwLock<Arc<Inner>>,
    /// Why there is no daemon any more.
    failed: Mutex<Option<String>>,
}

impl Supervisor {
    /// Starts the daemon.
    pub fn start(
        state: &State,
        mut config: Config,
        overrides: Overrides,
        options: DaemonOptions,
    ) -> anyhow::Result<Arc<Supervisor>> {
        overrides.apply(&mut config);
        let daemon = Daemon::start(state, config, options.clone())?;
        Ok(Arc::new(Supervisor {
            state: state.clone(),
            options,
            overrides,
            past: Past::new(state),
            metrics: Mutex::default(),
            ui: Mutex::default(),
            changes: Mutex::default(),
            current: RwLock::new(daemon.inner()),
            daemon: Mutex::new(Some(daemon)),
            failed: Mutex::default(),
        }))
    }

    /// Listens on the control socket until the result is dropped.
    pub fn serve_control(self: &Arc<Self>) -> anyhow::Result<Server> {
        let path = self.state.socket_path();
        Server::start(&path, self.clone()).with_context(|| path.display().to_string())
    }

    /// What the control API works on.
    pub(super) fn inner(&self) -> Arc<Inner> {
        self.current.read().clone()
    }

    /// What is protected and how safe it is.
    pub fn status(&self) -> Status {
        super::report::status(&self.inner())
    }

    /// The protected directories.
    pub fn directories(&self) -> Vec<PathBuf> {
        let inner = self.inner();
        inner.roots.iter().map(|r| r.path.to_path_buf()).collect()
    }

    /// The feed of what happens.
    pub fn feed(&self) -> Arc<Feed> {
        self.options.feed.clone()
    }

    /// Puts a new configuration into the file and into effect. If it cannot be in effect, the old one is, again, in
    /// both.
    pub(super) fn reconfigure(
        &self,
        change: impl FnOnce(&mut Config) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut slot = self.daemon.lock();
        if slot.is_none() {
            bail!("the daemon is ending");
        }
        let old = Config::load(&self.state)?;
        let mut new = old.clone();
        change(&mut new)?;
        if new == old {
            return Ok(());
        }
        new.save(&self.state)?;
        if let Some(running) = slot.take() {
            running.stop();
        }
        let started = self.begin(new);
        let (daemon, failed) = match started {
            Ok(daemon) => (daemon, None),
            Err(e) => {
                let saved = old.save(&self.state);
                let daemon = self.begin_again(old).with_context(|| format!("{e:#}"))?;
                let failed = match saved {
                    Ok(()) => e,
                    Err(s) => {
                        anyhow!("{e:#}; and the configuration of before cannot be saved: {s:#}")
                    }
                };
                (daemon, Some(failed))
            }
        };
        *self.current.write() = daemon.inner();
        *slot = Some(daemon);
        failed.map_or(Ok(()), Err)
    }

    /// Puts into effect what a person has written into the file. If that does not start, the daemon goes on with what it had;
    /// the file stays as it is.
    pub(super) fn reload_config(&self) -> anyhow::Result<()> {
        let _one = self.changes.lock();
        let mut slot = self.daemon.lock();
        if slot.is_none() {
            bail!("the daemon is ending");
        }
        let new = Config::load(&self.state)?;
        let mut wanted = new.clone();
        self.overrides.apply(&mut wanted);
        let old = self.inner().config.clone();
        if wanted == old {
            return Ok(());
        }
        if let Some(running) = slot.take() {
            running.stop();
        }
        let (daemon, failed) = match self.begin(new) {
            Ok(daemon) => (daemon, None),
            Err(e) => {
                let why = e.context("it goes on with the old configuration");
                (self.begin_again(old)?, Some(why))
            }
        };
        *self.current.write() = daemon.inner();
        *slot = Some(daemon);
        failed.map_or(Ok(()), Err)
    }

    /// Changes the file only.
    pub(super) fn save(
        &self,
        change: impl FnOnce(&mut Config) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let _still = self.daemon.lock();
        let mut config = Config::load(&self.state)?;
        change(&mut config)?;
        config.save(&self.state)?;
        self.options.feed.bell().ring();
        Ok(())
    }

    fn begin(&self, mut config: Config) -> anyhow::Result<Daemon> {
        self.overrides.apply(&mut config);
        Daemon::start(&self.state, config, self.options.clone())
    }

    /// Starts what ran before. If that is not to be had any more (a protected directory that has gone, say), the process ends:
    /// whoever started it may start it again, and tells.
    fn begin_again(&self, old: Config) -> anyhow::Result<Daemon> {
        let again = self.begin(old);
        again
            .context("the old configuration does not start either: the daemon ends")
            .inspect_err(|e| {
                *self.failed.lock() = Some(crate::one_line(e));
                if let Err(e) = signal_hook::low_level::raise(signal_hook::consts::SIGTERM) {
                    tracing::error!("the daemon cannot end itself: {e}");
                }
            })
    }

    /// Why there is no daemon any more although nobody ended it.
    pub fn failed(&self) -> Option<String> {
        self.failed.lock().clone()
    }

    /// Ends the daemon.
    pub fn stop(&self) {
        self.options.feed.close();
        drop(self.ui.lock().take());
        drop(self.metrics.lock().take());
        if let Some(daemon) = self.daemon.lock().take() {
            daemon.stop();
        }
    }

    /// One line for the start of the daemon.
    pub fn greeting(&self) -> String {
        self.inner().greeting()
    }

    /// Is automatic backup switched on?
    pub fn is_on(&self) -> bool {
        self.inner().sensor_report().is_some()
    }
}
