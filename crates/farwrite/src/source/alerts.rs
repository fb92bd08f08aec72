//! Watches the status of this source for what a person has to be told of: when something begins to be wrong and when it is
//! over. Looks at the status and the room on the disk, and decides nothing else.

use super::supervisor::Supervisor;
use crate::alert::{Alert, Dispatcher, Phase};
use crate::config::{self, Config};
use farwrite_control::{State, Status, Vault};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Weak;
use std::time::{Duration, Instant};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// The same while there is nothing to be late with.
const LOOK_CALM: Duration = Duration::from_secs(5);
/// The same while nothing happens at all: others may fill the disk, or change the configuration.
const LOOK_IDLE: Duration = Duration::from_secs(60);

/// What an alert is about: its kind, and which vault (empty: the source itself).
type About = (&'static str, String);

/// Alerts that are on, and what may become one.
#[derive(Default)]
struct Watcher {
    /// Since when a vault is away.
    away: BTreeMap<String, Instant>,
    on: BTreeMap<About, String>,
    lost: u64,
}

/// When something is an alert.
struct Limits {
    lag: Duration,
    offline: Duration,
    /// Bytes.
    disk: u64,
}

impl Limits {
    fn of(alert: &config::Alert) -> anyhow::Result<Limits> {
        Ok(Limits {
            lag: alert.lag()?,
            offline: alert.offline()?,
            disk: alert.disk()?,
        })
    }
}

/// Looks for as long as the daemon is there.
pub fn start(daemon: Weak<Supervisor>) -> std::io::Result<()> {
    let dispatcher = Dispatcher::start()?;
    let watch = move || {
        let mut watcher = Watcher::default();
        let mut news = true;
        while let Some(d) = daemon.upgrade() {
            // A file that cannot be read now has been read before: nothing to do but to wait.
            let config = Config::load(&d.state);
            let status = d.status();
            let free = free_bytes(d.state.dir());
            let feed = d.feed();
            drop(d);
            if let Ok(config) = config
                && let Ok(limits) = Limits::of(&config.alert)
            {
                dispatcher.configure(&config.alert.channels());
                for alert in watcher.look(&status, free, &limits, Instant::now()) {
                    dispatcher.tell(&alert);
                }
            }
            let late = |v: &Vault| v.lag_ms > 0 || !v.connected;
            if status.vaults.iter().any(late) {
                std::thread::sleep(LOOK);
                continue;
            }
            // After news there may be more of them: what was told of may not have led to its end yet.
            let at_most = if news { LOOK_CALM } else { LOOK_IDLE };
            let heard = feed.bell().wait(LOOK_CALM, at_most);
            if news && !heard {
                // The work is over, for now: what it needed others may have.
                farwrite_memory::give_back();
            }
            news = heard;
        }
    };
    std::thread::Builder::new()
        .name("alerts".into())
        .spawn(watch)
        .map(drop)
}

/// Room for a user without privileges on the filesystem of a directory; `None` if it cannot be told.
pub fn free_bytes(dir: &Path) -> Option<u64> {
    let s = rustix::fs::statvfs(dir).ok()?;
    Some(s.f_bavail.saturating_mul(s.f_frsize))
}

impl Watcher {
    fn look(&mut self, s: &Status, free: Option<u64>, limits: &Limits, now: Instant) -> Vec<Alert> {
        let mut wrong: BTreeMap<About, String> = BTreeMap::new();
        if let Some(free) = free.filter(|f| *f < limits.disk) {
            let text = format!(
                "the disk of the state directory is nearly full: {} left",
                crate::bytes::show(free)
            );
            wrong.insert(("disk", String::new()), text);
        }
        for v in &s.vaults {
            let name = v.name.clone();
            if v.connected {
                self.away.remove(&name);
            } else {
                let since = *self.away.entry(name.clone()).or_insert(now);
                if now.duration_since(since) >= limits.offline {
                    wrong.insert(("offline", name.clone()), format!("{name}: {}", v.message));
                }
            }
            if Duration::from_millis(v.lag_ms) >= limits.lag {
                let behind = crate::bytes::span(Duration::from_millis(v.lag_ms));
                wrong.insert(("lag", name.clone()), format!("{name}: {behind} behind"));
            }
            if v.state == State::Error {
                wrong.insert(("stopped", name.clone()), format!("{name}: {}", v.message));
            }
            if v.problem_count > 0 {
                let text = format!("{name}: {} entries cannot be backed up", v.problem_count);
                wrong.insert(("incomplete", name), text);
            }
        }
        let mut told = Vec::new();
        let lost = s.protections.iter().map(|p| p.lost).max().unwrap_or(0);
        if lost > self.lost {
            let text = "changes were lost and everything that they concern is compared";
            told.push(Alert::new("lost", "", Phase::Begin, text));
        }
        self.lost = lost;
        let of = |all: &BTreeMap<About, String>, but: &BTreeMap<About, String>, phase: Phase| {
            let new = all.iter().filter(|(about, _)| !but.contains_key(*about));
            let alert = |((kind, about), message): (&About, &String)| match phase {
                Phase::End => Alert::new(kind, about, phase, format!("over: {message}")),
                _ => Alert::new(kind, about, phase, message.as_str()),
            };
            new.map(alert).collect::<Vec<_>>()
        };
        told.extend(of(&wrong, &self.on, Phase::Begin));
        told.extend(of(&self.on, &wrong, Phase::End));
        self.on = wrong;
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(connected: bool, lag_ms: u64) -> Status {
        Status {
            vaults: vec![Vault {
                name: "v".into(),
                connected,
                lag_ms,
                state: State::Safe,
                ..Vault::default()
            }],
            ..Status::default()
        }
    }

    #[test]
    fn alerts_begin_once_and_end_once() {
        let (mut w, t) = (Watcher::default(), Instant::now());
        let s = Duration::from_secs;
        let limits = Limits {
            lag: s(10),
            offline: s(5),
            disk: 1000,
        };
        let mut look = |status: &Status, at: u64| {
            let free = (at >= 20).then_some(at);
            let all = w.look(status, free, &limits, t + s(at));
            all.into_iter()
                .map(|a| (a.kind, a.phase == Phase::Begin))
                .collect::<Vec<_>>()
        };
        assert_eq!(look(&status(true, 0), 0), []);
        assert_eq!(look(&status(false, 0), 1), []);
        assert_eq!(look(&status(false, 4_000), 5), []);
        assert_eq!(look(&status(false, 5_000), 6), [("offline", true)]);
        assert_eq!(look(&status(false, 11_000), 12), [("lag", true)]);
        assert_eq!(look(&status(false, 12_000), 13), []);
        assert_eq!(
            look(&status(true, 0), 14),
            [("lag", false), ("offline", false)]
        );
        assert_eq!(look(&status(false, 0), 15), [], "the time begins anew");
        assert_eq!(look(&status(true, 0), 999), [("disk", true)]);
        assert_eq!(look(&status(true, 0), 1000), [("disk", false)]);
    }
}
