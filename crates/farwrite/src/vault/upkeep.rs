//! What a served vault does by itself: it brings forward what a crash has left behind of sources that do not come back, verifies
//! each source now and then, slowly, and prunes those that have not been connected for days (the others are pruned by who has
//! them open). Must never keep a source from its backup for long.

use super::daemon::VaultDaemon;
use super::verified;
use farwrite_core::{SourceName, Timestamp};
use farwrite_vault::retention::Brake;
use farwrite_vault::segment::list_segments;
use farwrite_vault::{LastPrune, Options, PRUNE_EVERY, SourceVault, Vault};
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

/// Most time between two looks at what is due.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// What could not be brought forward is tried again after this time.
const FAILED_REST: Duration = Duration::from_secs(3600);
/// Bytes read in a second, on average over a segment.
const VERIFY_BYTES_PER_SECOND: u64 = 32 << 20;

/// Begins the thread; it ends with the daemon. `verify_every`: zero for never.
pub(super) fn start(
    daemon: Weak<VaultDaemon>,
    vault: Vault,
    verify_every: Duration,
) -> std::io::Result<()> {
    let wait = match verify_every.is_zero() {
        true => LOOK_EVERY,
        false => LOOK_EVERY.min(verify_every),
    };
    let run = move || {
        let mut failed = HashMap::new();
        loop {
            std::thread::sleep(wait);
            let Some(daemon) = daemon.upgrade() else {
                return;
            };
            look(&daemon, &vault, verify_every, &mut failed);
        }
    };
    let thread = std::thread::Builder::new().name("upkeep".into());
    thread.spawn(run).map(drop)
}

fn look(
    daemon: &VaultDaemon,
    vault: &Vault,
    verify_every: Duration,
    failed: &mut HashMap<SourceName, Instant>,
) {
    let now = Timestamp::from(SystemTime::now());
    for source in vault.sources().unwrap_or_default() {
        let in_order = is_in_order(vault, &source.name, failed);
        let dir = vault.source_dir(&source.name);
        let age = verified::age(&dir, now);
        if !verify_every.is_zero() && age.is_none_or(|age| age >= verify_every) {
            // Those that find others under way come later.
            let _ = daemon.verify_slowly(&source.name, VERIFY_BYTES_PER_SECOND);
        }
        let pruned = LastPrune::load(&dir).map(|l| now.since(l.time));
        let long_ago = pruned.is_none_or(|age| age >= 2 * PRUNE_EVERY);
        let has_log = list_segments(&dir.join("log")).is_ok_and(|s| !s.is_empty());
        let there = has_log && dir.join("catalog.db").exists() && !Brake::is_set(&dir);
        if long_ago
            && there
            && in_order
            && vault
                .policy(&source.name)
                .is_ok_and(|p| !p.0.keeps_everything())
        {
            prune(vault, &source.name);
        }
    }
}

/// Brings forward the catalog of a source that no process has open. False: somebody has it open, or a crash has left it so that only
/// its coming back puts it in order.
fn is_in_order(
    vault: &Vault,
    name: &SourceName,
    failed: &mut HashMap<SourceName, Instant>,
) -> bool {
    if SourceVault::is_open(vault, name) {
        failed.remove(name);
        return false;
    }
    if failed
        .get(name)
        .is_some_and(|at| at.elapsed() < FAILED_REST)
    {
        return false;
    }
    match SourceVault::bring_forward(vault, name) {
        Ok(true) => tracing::info!(source = %name, "brought to the end of its log"),
        Ok(false) => {}
        Err(e) => {
            tracing::warn!(source = %name, "bringing it forward: {e}");
            failed.insert(name.clone(), Instant::now());
        }
    }
    let doubted = vault.info().mirror && SourceVault::is_mirror_in_doubt(vault, name);
    !doubted && !SourceVault::is_behind(vault, name)
}

/// Prunes a source that no process has open.
fn prune(vault: &Vault, name: &SourceName) {
    if SourceVault::is_open(vault, name) {
        return;
    }
    let options = Options {
        mirror: vault.info().mirror,
        events: Arc::new(|_| {}),
    };
    let done = SourceVault::open_alone(vault, name, options)
        .map_err(|e| e.to_string())
        .and_then(|source| {
            let done = source.prune(None).map_err(|e| e.to_string());
            source.close().map_err(|e| e.to_string())?;
            done
        });
    if let Err(e) = done {
        tracing::warn!(source = %name, "prune: {e}");
    }
}
