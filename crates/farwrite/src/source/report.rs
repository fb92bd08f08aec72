//! Puts the daemon's state into words and numbers.

use super::daemon::Inner;
use super::link::{Link, LinkReport};
use crate::config;
use farwrite_control::{
    API_VERSION, Backup, Problem, Protection, Schedule, Sensor, State, Status, Vault,
};
use farwrite_core::Timestamp;
use farwrite_schedule::{QueueStats, REST_MAX};

/// Lag below this is "safe, on its way" rather than "behind": a file that rests as long as it may, and is then read and sent, is
/// not behind.
const BEHIND_MS: u64 = REST_MAX.as_millis() as u64 + 3_000;

/// The whole status.
pub fn status(inner: &Inner) -> Status {
    let sensor = inner.sensor_report();
    let on = sensor.is_some();
    let failing = sensor.as_ref().and_then(|r| r.failing.as_deref());
    let sensor_status = match &sensor {
        Some(r) => Sensor {
            kind: r.kind.clone(),
            why: r.why.clone(),
            guarantees: r.guarantees.clone(),
            warning: r.warning.clone(),
            marks: r.stats.marks + r.stats.watches,
            events: r.stats.seen,
            overflows: r.stats.overflows,
            replaced: r.stats.replaced,
            hooked: r.stats.hooked,
        },
        None => Sensor {
            warning: inner.off_because(),
            ..Sensor::default()
        },
    };
    let managing = inner.managing_stats().unwrap_or_default();
    let (lost, repaired) = {
        let mut l = inner.losses.lock();
        l.settle(managing.journal.checkpoint);
        (l.lost, l.repaired)
    };
    let mut status = Status {
        api: API_VERSION,
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        on,
        schedule: Schedule {
            interval: inner.setting.get().to_string(),
            applications_first: inner.setting.gives_way(),
            managing_interval_ms: managing.interval.as_secs_f64() * 1e3,
            messages: managing.queued,
            filtered: managing.filtered,
            journal_bytes: managing.journal.bytes,
            journal_last: managing.journal.last.0,
            journal_checkpoint: managing.journal.checkpoint.0,
        },
        sensor: sensor_status,
        ..Status::default()
    };
    for (config, link) in &inner.links {
        let vault = vault(config, link, on, failing);
        for dir in &config.directories {
            let enabled = inner.config.directory(dir).is_none_or(|d| d.enabled);
            if !enabled {
                status.protections.push(switched_off(dir, &vault));
                continue;
            }
            status.protections.push(Protection {
                directory: dir.clone(),
                vault: vault.name.clone(),
                enabled,
                state: vault.state,
                message: vault.message.clone(),
                sensor: status.sensor.kind.clone(),
                guarantees: status.sensor.guarantees.clone(),
                lag_ms: vault.lag_ms,
                pending_changes: vault.pending_changes,
                pending_bytes: vault.pending_bytes,
                lost,
                repaired,
                last_ack: vault.last_ack.clone(),
                not_covered: not_covered(&link.report(), dir),
            });
        }
        status.vaults.push(vault);
    }
    status
}

/// A directory that is switched off by itself.
fn switched_off(dir: &str, vault: &Vault) -> Protection {
    Protection {
        directory: dir.into(),
        vault: vault.name.clone(),
        state: State::Off,
        message: format!(
            "{dir} is switched off: its changes are not seen; `farwrite on {dir}` catches up"
        ),
        last_ack: vault.last_ack.clone(),
        ..Protection::default()
    }
}

fn not_covered(r: &LinkReport, dir: &str) -> Vec<String> {
    let below = |b: &&String| {
        b.strip_prefix(dir)
            .is_some_and(|rest| rest.starts_with('/'))
    };
    r.boundaries.iter().filter(below).cloned().collect()
}

fn vault(config: &config::Vault, link: &Link, on: bool, failing: Option<&str>) -> Vault {
    let r = link.report();
    let q = link.queue.stats();
    let lag_ms = link.behind().lag_ms;
    let (state, message) = judge(&r, &q, lag_ms, on, failing);
    Vault {
        name: config.name.to_string(),
        source: config.source.to_string(),
        state,
        message,
        connected: r.up,
        lag_ms,
        pending_changes: q.pending as u64,
        pending_bytes: q.pending_bytes,
        in_flight_bytes: r.link.unacked_bytes,
        acked: r.acked.0,
        durable_through: link.queue.durable_through().0,
        mirrored: r.mirror.then_some(r.mirrored.0),
        last_ack: r.last_ack.map(rfc3339),
        processing_interval_ms: link.processing().interval.as_secs_f64() * 1e3,
        ack_ms: r.ack_time.as_secs_f64() * 1e3,
        rtt_ms: r.link.rtt_ms,
        wire_bytes: r.link.wire_bytes,
        reconnects: r.link.reconnects,
        backup: Backup {
            commands: r.backup.commands,
            entries: r.backup.entries,
            files_read: r.backup.files_read,
            bytes_read: r.backup.bytes_read,
            bytes_new: r.backup.bytes_new,
            bytes_sent: r.backup.bytes_sent,
            batches: r.backup.batches,
            renames: r.backup.renames,
            compares_open: r.backup.compares_open,
            put_back: link.processing().put_back,
        },
        problems: r
            .problems
            .iter()
            .map(|(p, w)| Problem {
                path: p.clone(),
                why: w.clone(),
            })
            .collect(),
        problem_count: r.problem_count as u64,
    }
}

/// The one sentence.
fn judge(
    r: &LinkReport,
    q: &QueueStats,
    lag_ms: u64,
    on: bool,
    failing: Option<&str>,
) -> (State, String) {
    let behind = crate::bytes::span(std::time::Duration::from_millis(lag_ms));
    let unseen =
        failing.map(|why| format!("changes are not seen, the sensor is being opened anew: {why}"));
    let stuck = r.stuck.then(|| r.message.clone());
    let errors: Vec<String> = unseen.into_iter().chain(stuck).collect();
    if !errors.is_empty() {
        return (State::Error, errors.join("; "));
    }
    if !r.up {
        let why = if r.message.is_empty() {
            "connecting".into()
        } else {
            r.message.clone()
        };
        let waiting = match q.oldest {
            Some(_) => format!(
                "; {} changes are waiting, the oldest for {behind}",
                q.pending
            ),
            None => String::new(),
        };
        return (State::Offline, format!("{why}{waiting}"));
    }
    if !on {
        return (
            State::Off,
            "automatic backup is switched off: changes are not seen; `farwrite on` catches up"
                .into(),
        );
    }
    if r.backup.compares_open > 0 {
        let done = format!(
            "comparing: {} entries looked at, {} new, {} directories to go",
            crate::bytes::grouped(r.backup.entries),
            crate::bytes::show(r.backup.bytes_new),
            r.backup.compares_open
        );
        return (State::Comparing, done);
    }
    if r.problem_count > 0 {
        let (path, why) = &r.problems[0];
        return (
            State::Incomplete,
            format!(
                "{} entries cannot be backed up, first {path}: {why}",
                r.problem_count
            ),
        );
    }
    match q.oldest {
        None => (State::Safe, "everything is safe".into()),
        Some(_) if lag_ms < BEHIND_MS => (State::Safe, format!("{behind} behind")),
        Some(_) => (
            State::Behind,
            format!("{behind} behind, {} changes waiting", q.pending),
        ),
    }
}

fn rfc3339(t: Timestamp) -> String {
    jiff::Timestamp::new(t.sec, t.nsec as i32).map_or_else(|_| "-".into(), |t| t.to_string())
}
