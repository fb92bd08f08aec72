//! `farwrite try`: a vault and a source in one process, to see the thing work on one machine.

use crate::bytes::{show, span};
use crate::cli::TryArgs;
use crate::config::{self, Config, Directory, Vault};
use crate::source::{DaemonOptions, Overrides, Supervisor, first_compare};
use crate::state::State;
use crate::vault;
use anyhow::Context;
use farwrite_control::Activity;
use farwrite_core::{BytePath, Clock, SourceName, SystemClock};
use farwrite_transfer::net::tls::Identity;
use farwrite_transfer::pairing::PeerStore;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What the vault calls this machine.
const SOURCE: &str = "this-machine";

/// See the module.
pub fn run(args: &TryArgs) -> anyhow::Result<()> {
    farwrite_fs::check_openat2()?;
    let dir = config::canonical_dir(&args.dir)?;
    let (vault_dir, temporary) = choose_vault_dir(args.vault.as_deref())?;
    // Before anything starts, so that a Ctrl-C at any moment finds us ready.
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("signal handlers")?;
    let stop = Arc::new(AtomicBool::new(false));
    let state = State::choose(Some(vault_dir.join("try-state")))?;
    state.create()?;
    let _lock = state.lock()?;
    let listener = TcpListener::bind("127.0.0.1:0").context("a port on loopback")?;
    let config = configure(args, &state, &dir, &vault_dir, &listener)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let (shutdown, down) = tokio::sync::watch::channel(false);
    let server = runtime.spawn(vault::serve(vault_dir.clone(), listener, down));
    let skip = vec![BytePath::try_from(vault_dir.as_path())?];
    let options = DaemonOptions {
        skip,
        ..DaemonOptions::default()
    };
    let daemon = Supervisor::start(&state, config, Overrides::default(), options)?;
    let _control = daemon.serve_control()?;

    let mirror = mirror_of(&vault_dir, &dir);
    println!("Protecting  {dir}");
    println!(
        "Vault       {}{}",
        vault_dir.display(),
        if temporary { "  (temporary)" } else { "" }
    );
    println!("Mirror      {}", mirror.display());
    if let Some(kind) = daemon.status().sensor.kind {
        println!("Sensor      {kind}: {}", daemon.status().sensor.why);
    }
    match daemon.ui_place() {
        Ok(place) => println!("Browser     {}", place.url),
        Err(e) => tracing::warn!("no GUI: {e:#}"),
    }
    println!();
    let seen = stop.clone();
    let feed = daemon.feed();
    let waiter = std::thread::spawn(move || {
        signals.forever().next();
        seen.store(true, Ordering::Release);
        feed.close();
    });
    let complete = first_compare(&daemon, &stop);
    if complete && !args.once {
        println!("Everything is in the vault. Change something in {dir} and watch; Ctrl-C ends.");
        println!();
        show_activity(&daemon);
    }
    if args.once {
        signal_hook::low_level::raise(SIGTERM)?;
    }
    if waiter.join().is_err() {
        tracing::error!("the signal thread has panicked");
    }
    drop(_control);
    daemon.stop();
    // Nobody listens if the server has ended by itself: its own error says why.
    let _ = shutdown.send(true);
    runtime.block_on(server).context("the vault's server")??;
    farewell(&dir, &vault_dir, temporary);
    Ok(())
}

fn choose_vault_dir(given: Option<&Path>) -> anyhow::Result<(PathBuf, bool)> {
    match given {
        Some(d) => {
            match vault::open(d) {
                Ok(_) => {}
                Err(_) => drop(vault::create(d, true)?),
            }
            Ok((std::fs::canonicalize(d)?, false))
        }
        None => {
            let d = tempfile::Builder::new()
                .prefix("farwrite-try-")
                .tempdir()
                .context("a temporary vault")?
                .keep();
            vault::create(&d, true)?;
            Ok((std::fs::canonicalize(d)?, true))
        }
    }
}

/// Pairs the source with the vault without an invite, both being ours.
fn configure(
    args: &TryArgs,
    state: &State,
    dir: &str,
    vault_dir: &Path,
    listener: &TcpListener,
) -> anyhow::Result<Config> {
    let source = SourceName::new(SOURCE)?;
    let key = state.identity()?.fingerprint();
    PeerStore::new(vault_dir).put(&source, &key, SystemClock::default().now())?;
    let vault_key = Identity::load_or_create(vault_dir)?.fingerprint();
    let mut config = Config::load(state)?;
    config.sensor = args.sensor;
    let slot = match config.directories.first().filter(|d| d.path == dir) {
        Some(d) => d.slot,
        None => config.new_slot(),
    };
    config.directories = vec![Directory {
        path: dir.to_owned(),
        slot,
        exclude: args.exclude.clone(),
        enabled: true,
    }];
    config.vaults = vec![Vault {
        name: SourceName::new("vault")?,
        source,
        directories: vec![dir.to_owned()],
        addresses: vec![listener.local_addr()?.to_string()],
        fingerprint: Some(vault_key.to_string()),
        ssh: None,
        ssh_command: vec![],
    }];
    config.save(state)?;
    Ok(config)
}

fn mirror_of(vault_dir: &Path, dir: &str) -> PathBuf {
    vault_dir
        .join("sources")
        .join(SOURCE)
        .join("mirror")
        .join(dir.trim_start_matches('/'))
}

/// Prints what happens until the feed is closed.
fn show_activity(daemon: &Supervisor) {
    let mut bytes = 0;
    // The same again is not told again: links of files elsewhere on the filesystem may change a hundred times a second.
    let mut told = String::new();
    for activity in daemon.feed().watch().flatten() {
        match activity {
            Activity::Change { text, .. } if text == told => {}
            Activity::Change { text, .. } => {
                println!("  {text}");
                told = text;
            }
            Activity::Sent { bytes: sent, .. } => bytes += sent,
            Activity::File { .. } => {}
            Activity::Durable {
                batch, after_ms, ..
            } => {
                println!(
                    "      batch {batch}: {} sent, durable after {}",
                    show(bytes),
                    span(Duration::from_millis(after_ms))
                );
                bytes = 0;
                told.clear();
            }
            Activity::Link { text, .. } => println!("  vault    {text}"),
            Activity::Skipped { count } => println!("  ... {count} more"),
        }
    }
}

fn farewell(dir: &str, vault_dir: &Path, temporary: bool) {
    let vault = vault_dir.display();
    println!();
    println!("The vault stays in {vault}. To look at it and to bring things back:");
    println!("  farwrite ls {dir} --vault-dir {vault} --source {SOURCE}");
    println!("  farwrite versions {dir}/FILE --vault-dir {vault} --source {SOURCE}");
    println!(
        "  farwrite restore {dir} --at \"1 minute ago\" --to /tmp/back --vault-dir {vault} --source {SOURCE}"
    );
    if temporary {
        println!("It is temporary: rm -r {vault} removes it.");
    }
}
