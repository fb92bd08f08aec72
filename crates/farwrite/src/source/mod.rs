//! Protecting directories of this machine: choosing them, and the daemon.

mod activity;
mod add;
mod alerts;
mod api;
mod continuity;
mod daemon;
mod link;
mod metrics;
mod progress;
mod report;
mod sensor;
mod settings;
mod supervisor;
mod ui;

pub use add::{add, reload};
pub use daemon::DaemonOptions;
pub use progress::first_compare;
pub use supervisor::{Overrides, Supervisor};

use crate::cli::RunArgs;
use crate::config::Config;
use crate::state::State;
use anyhow::{Context, bail};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// `farwrite source run`.
pub fn run(state: &State, args: &RunArgs) -> anyhow::Result<()> {
    farwrite_fs::check_openat2()?;
    let _lock = state.lock()?;
    let config = Config::load(state)?;
    if config.vaults.is_empty() || config.directories.is_empty() {
        bail!("nothing to protect yet: farwrite source add DIR --to INVITE");
    }
    let overrides = Overrides {
        sensor: args.sensor,
        interval: args.interval.map(|i| i.to_string()),
    };
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("signal handlers")?;
    let daemon = Supervisor::start(state, config, overrides, DaemonOptions::default())?;
    let control = daemon.serve_control()?;
    eprintln!("{}", daemon.greeting());
    daemon.start_ui()?;
    alerts::start(Arc::downgrade(&daemon)).context("the thread for alerts")?;
    notify(&[sd_notify::NotifyState::Ready]);
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    let handle = signals.handle();
    let waiter = std::thread::spawn(move || {
        let signal = signals.forever().next();
        tracing::info!(?signal, "stopping");
        seen.store(true, Ordering::Release);
    });
    if daemon.is_on() && std::io::stderr().is_terminal() {
        first_compare(&daemon, &stop);
    }
    if waiter.join().is_err() {
        tracing::error!("the signal thread has panicked");
    }
    handle.close();
    notify(&[sd_notify::NotifyState::Stopping]);
    drop(control);
    daemon.stop();
    match daemon.failed() {
        Some(why) => bail!(why),
        None => Ok(()),
    }
}

/// Tells systemd, if it started us.
fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(false, state) {
        tracing::debug!(error = %e, "sd-notify");
    }
}
