//! Tells a person, through a command of his choice, when something begins to be wrong and when it is over. Looks at the
//! status and nothing else; a command that hangs is killed, and never holds up the backup.

use super::supervisor::Supervisor;
use crate::config::Config;
use farwrite_control::{State, Status};
use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Weak;
use std::time::{Duration, Instant};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// Time for the command.
const COMMAND_WITHIN: Duration = Duration::from_secs(30);

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

/// Looks for as long as the daemon is there.
pub fn start(daemon: Weak<Supervisor>) -> std::io::Result<()> {
    let watch = move || {
        let mut watcher = Watcher::default();
        while let Some(d) = daemon.upgrade() {
            // A file that cannot be read now has been read before: nothing to do but to wait.
            let config = Config::load(&d.state);
            let status = d.status();
            drop(d);
            if let Ok(config) = config
                && let (Ok(lag), Ok(offline)) = (config.alert.lag(), config.alert.offline())
            {
                for told in watcher.look(&status, lag, offline, Instant::now()) {
                    tell(&config.alert.command, &told);
                }
            }
            std::thread::sleep(LOOK);
        }
    };
    std::thread::Builder::new()
        .name("alerts".into())
        .spawn(watch)
        .map(drop)
}

/// An alert that begins or ends.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    kind: &'static str,
    vault: String,
    begins: bool,
    message: String,
}

impl Watcher {
    fn look(&mut self, s: &Status, lag: Duration, offline: Duration, now: Instant) -> Vec<Told> {
        let mut wrong: BTreeMap<About, String> = BTreeMap::new();
        for v in &s.vaults {
            let name = v.name.clone();
            if v.connected {
                self.away.remove(&name);
            } else {
                let since = *self.away.entry(name.clone()).or_insert(now);
                if now.duration_since(since) >= offline {
                    wrong.insert(("offline", name.clone()), format!("{name}: {}", v.message));
                }
            }
            if Duration::from_millis(v.lag_ms) >= lag {
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
            told.push(Told {
                kind: "lost",
                vault: String::new(),
                begins: true,
                message: "changes were lost and everything that they concern is compared".into(),
            });
        }
        self.lost = lost;
        for ((kind, vault), message) in &wrong {
            if !self.on.contains_key(&(*kind, vault.clone())) {
                told.push(Told {
                    kind,
                    vault: vault.clone(),
                    begins: true,
                    message: message.clone(),
                });
            }
        }
        for ((kind, vault), message) in &self.on {
            if !wrong.contains_key(&(*kind, vault.clone())) {
                told.push(Told {
                    kind,
                    vault: vault.clone(),
                    begins: false,
                    message: format!("over: {message}"),
                });
            }
        }
        self.on = wrong;
        told
    }
}

fn tell(command: &str, told: &Told) {
    let (kind, message) = (told.kind, &told.message);
    match told.begins {
        true => tracing::warn!(alert = kind, "{message}"),
        false => tracing::info!(alert = kind, "{message}"),
    }
    if command.trim().is_empty() {
        return;
    }
    let child = Command::new("sh")
        .args(["-c", command])
        .env("FARWRITE_ALERT", kind)
        .env("FARWRITE_PHASE", if told.begins { "begin" } else { "end" })
        .env("FARWRITE_VAULT", &told.vault)
        .env("FARWRITE_MESSAGE", message)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(e) => return tracing::warn!(error = %e, "alert command"),
    };
    let end = Instant::now() + COMMAND_WITHIN;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return,
            Ok(Some(status)) => return tracing::warn!(%status, "alert command"),
            Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(20)),
            _ => {
                tracing::warn!("the alert command did not end and was killed");
                let _ = child.kill();
                let _ = child.wait();
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farwrite_control::Vault;

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
        let mut look = |status: &Status, at: u64| {
            let all = w.look(status, s(10), s(5), t + s(at));
            all.into_iter()
                .map(|a| (a.kind, a.begins))
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
    }
}
