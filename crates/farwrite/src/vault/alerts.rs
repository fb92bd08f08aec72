//! What of a vault a person has to be told of, when, and where to: `VAULT_DIR/alerts.toml`, and the thread that watches.

use super::daemon::VaultDaemon;
use crate::alert::{Alert, Channels, Dispatcher, Mail, Phase, Secret};
use crate::bell::Bell;
use crate::config::{parse_duration, unreadable};
use anyhow::Context;
use farwrite_control::{VaultAlert, VaultStatus};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Between two looks while there is news, at least.
const LOOK: Duration = Duration::from_secs(5);
/// And so many times as long as the look took.
const LOOK_TIMES: u32 = 20;
/// Between two looks without: others may fill the disk, or change the file, and nobody rings when a source is silent.
const LOOK_CALM: Duration = Duration::from_secs(60);

const HEADER: &str = "\
# Farwrite: who is told when something is wrong with this vault. It takes effect within a minute.
#
# silent    a source has not been seen for this long, such as \"1d\"; \"\" for never
# disk      there is less room than this, such as \"5 GB\"; \"\" for never
# command   run by sh when an alert begins or ends; FARWRITE_ALERT (disk, silent, brake, failed, damaged, verify),
#           FARWRITE_PHASE, FARWRITE_ABOUT (the source) and FARWRITE_MESSAGE say which
# webhook   an address that gets a POST with JSON; webhook_token is sent as a bearer token
# [mail]    server (HOST or HOST:PORT), security (\"starttls\", \"tls\" or \"none\"), user, password, from, to (a list)
#
# `farwrite vault alert-test VAULT_DIR` tries them.
";

/// The file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AlertsFile {
    pub(super) silent: String,
    pub(super) disk: String,
    command: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    webhook: String,
    #[serde(skip_serializing_if = "Secret::is_empty")]
    webhook_token: Secret,
    #[serde(skip_serializing_if = "is_no_mail")]
    mail: Mail,
}

fn is_no_mail(mail: &Mail) -> bool {
    *mail == Mail::default()
}

impl Default for AlertsFile {
    fn default() -> Self {
        AlertsFile {
            silent: "1d".into(),
            disk: "1 GB".into(),
            command: String::new(),
            webhook: String::new(),
            webhook_token: Secret::default(),
            mail: Mail::default(),
        }
    }
}

impl AlertsFile {
    /// Where it is.
    pub(super) fn path(vault_dir: &Path) -> PathBuf {
        vault_dir.join("alerts.toml")
    }

    /// What it holds; without one, what holds without one.
    pub(super) fn load(vault_dir: &Path) -> anyhow::Result<AlertsFile> {
        let path = AlertsFile::path(vault_dir);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(AlertsFile::default()),
            Err(e) => return Err(e).with_context(|| path.display().to_string()),
        };
        let file: AlertsFile = toml::from_str(&text)
            .map_err(|e| anyhow::anyhow!("{}: {}", path.display(), unreadable(&text, &e)))?;
        file.check().with_context(|| path.display().to_string())?;
        Ok(file)
    }

    fn check(&self) -> anyhow::Result<()> {
        self.silent()?;
        self.disk()?;
        Ok(self.channels().check()?)
    }

    /// Writes it: a whole new one beside it, then renamed over it.
    pub(super) fn save(&self, vault_dir: &Path) -> anyhow::Result<()> {
        self.check()?;
        let path = AlertsFile::path(vault_dir);
        let temp = path.with_extension("toml.new");
        let text = format!("{HEADER}\n{}", toml::to_string_pretty(self)?);
        let write = || -> std::io::Result<()> {
            let mut options = std::fs::OpenOptions::new();
            options.create(true).truncate(true).write(true).mode(0o600);
            let mut file = options.open(&temp)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&temp, &path)?;
            std::fs::File::open(vault_dir)?.sync_all()
        };
        write().with_context(|| path.display().to_string())
    }

    /// `silent` as a time; `None`: never.
    pub(super) fn silent(&self) -> anyhow::Result<Option<Duration>> {
        match self.silent.trim() {
            "" => Ok(None),
            t => parse_duration(t).map(Some).map_err(anyhow::Error::msg),
        }
    }

    /// `disk` in bytes; 0: never.
    pub(super) fn disk(&self) -> anyhow::Result<u64> {
        match self.disk.trim() {
            "" => Ok(0),
            t => crate::bytes::parse(t),
        }
    }

    /// Where alerts go.
    pub(super) fn channels(&self) -> Channels {
        Channels {
            command: self.command.clone(),
            webhook: self.webhook.clone(),
            webhook_token: self.webhook_token.clone(),
            mail: self.mail.clone(),
        }
    }

    /// Other channels.
    pub(super) fn put(&mut self, c: Channels) {
        self.webhook = c.webhook;
        self.webhook_token = c.webhook_token;
        self.mail = c.mail;
    }
}

/// Watches for as long as the daemon is there; `news` is rung when it had better look again.
pub(super) fn start(daemon: Weak<VaultDaemon>, news: Arc<Bell>) -> std::io::Result<()> {
    let dispatcher = Dispatcher::start()?;
    let watch = move || {
        let mut on: Vec<VaultAlert> = Vec::new();
        let mut rung = true;
        while let Some(d) = daemon.upgrade() {
            let begin = Instant::now();
            // A file that cannot be read now has been read before: nothing to do but to wait.
            if let Ok(file) = AlertsFile::load(d.dir()) {
                dispatcher.configure(&file.channels());
                let now = wrong(&d.look_anew(), &file);
                for alert in changes(&mut on, now) {
                    dispatcher.tell(&alert);
                }
                d.note_alerts(&on);
            }
            drop(d);
            let at_least = LOOK.max(begin.elapsed() * LOOK_TIMES);
            // After news there may be more of them: what was told of may not have led to its end yet.
            let at_most = if rung { at_least } else { LOOK_CALM };
            let heard = news.wait(at_least, at_most);
            if rung && !heard {
                // The work is over, for now: what it needed others may have.
                farwrite_memory::give_back();
            }
            rung = heard;
        }
    };
    std::thread::Builder::new()
        .name("alerts".into())
        .spawn(watch)
        .map(drop)
}

type Wrong = BTreeMap<(&'static str, String), String>;

/// What is wrong now.
fn wrong(status: &VaultStatus, file: &AlertsFile) -> Wrong {
    let mut wrong = Wrong::new();
    let disk = file.disk().unwrap_or(0);
    if let Some(free) = status.free_bytes.filter(|f| *f < disk) {
        let text = format!(
            "the vault's disk is nearly full: {} left",
            crate::bytes::show(free)
        );
        wrong.insert(("disk", String::new()), text);
    }
    let silent = file.silent().unwrap_or(None);
    for s in &status.sources {
        let mut add = |kind, text: String| wrong.insert((kind, s.name.clone()), text);
        let away = s
            .last_seen
            .as_deref()
            .and_then(|t| t.parse::<jiff::Timestamp>().ok());
        let away = away.map(|t| jiff::Timestamp::now().duration_since(t).unsigned_abs());
        if let (false, Some(away), Some(silent)) = (s.connected, away, silent)
            && away >= silent
        {
            let text = format!(
                "{} has not been seen for {}",
                s.name,
                crate::bytes::span(away)
            );
            add("silent", text);
        }
        if let Some(b) = &s.brake {
            let text = format!("{}: the ransomware brake is set: {}", s.name, b.why);
            add("brake", text);
        }
        if let Some(f) = &s.failure {
            add("failed", format!("{}: {f}", s.name));
        }
        if let Some(e) = &s.error {
            add("failed", format!("{}: {e}", s.name));
        }
        if s.damaged > 0 {
            add(
                "damaged",
                format!("{}: {} batches are damaged", s.name, s.damaged),
            );
        }
        if let Some(v) = s.verified.as_ref().filter(|v| !v.is_clean()) {
            let what = v.what.as_deref().unwrap_or_default();
            let text = format!(
                "{}: the verification found {} things wrong, first: {what}",
                s.name, v.findings
            );
            add("verify", text);
        }
    }
    wrong
}

/// Brings the list forward, and gives what begins and what ends.
fn changes(on: &mut Vec<VaultAlert>, now: Wrong) -> Vec<Alert> {
    let mut told = Vec::new();
    on.retain_mut(|a| {
        let still = now
            .iter()
            .find(|((k, about), _)| *k == a.kind && *about == a.about);
        if let Some((_, message)) = still {
            a.message.clone_from(message);
        } else {
            let kind = KINDS.into_iter().find(|k| *k == a.kind).unwrap_or("over");
            let text = format!("over: {}", a.message);
            told.push(Alert::new(kind, &a.about, Phase::End, text));
        }
        still.is_some()
    });
    for ((kind, about), message) in now {
        if on.iter().any(|a| a.kind == kind && a.about == about) {
            continue;
        }
        let alert = Alert::new(kind, &about, Phase::Begin, message.as_str());
        on.push(VaultAlert {
            kind: kind.into(),
            about,
            message,
            since: alert.time.to_string(),
        });
        told.push(alert);
    }
    told
}

const KINDS: [&str; 6] = ["disk", "silent", "brake", "failed", "damaged", "verify"];

#[cfg(test)]
mod tests {
    use super::*;
    use farwrite_control::{VaultSource, Verified};

    #[test]
    fn each_thing_that_is_wrong_begins_once_and_ends_once() {
        let file = AlertsFile {
            silent: "1h".into(),
            disk: "1 kB".into(),
            ..AlertsFile::default()
        };
        let mut on = Vec::new();
        let mut look = |s: VaultSource, free| {
            let status = VaultStatus {
                free_bytes: Some(free),
                sources: vec![VaultSource {
                    name: "web1".into(),
                    ..s
                }],
                ..VaultStatus::default()
            };
            let told = changes(&mut on, wrong(&status, &file));
            told.into_iter()
                .map(|a| (a.kind, a.phase == Phase::Begin))
                .collect::<Vec<_>>()
        };
        let well = VaultSource::default;
        assert_eq!(look(well(), 5000), []);
        assert_eq!(look(well(), 10), [("disk", true)]);
        assert_eq!(look(well(), 5), []);
        assert_eq!(look(well(), 5000), [("disk", false)]);
        let seen = |hours: i64| {
            let at = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(hours);
            VaultSource {
                last_seen: Some(at.to_string()),
                ..well()
            }
        };
        assert_eq!(look(seen(0), 5000), []);
        assert_eq!(look(seen(2), 5000), [("silent", true)]);
        assert_eq!(
            look(
                VaultSource {
                    connected: true,
                    ..seen(2)
                },
                5000
            ),
            [("silent", false)]
        );
        let verified = |findings| {
            let what = (findings > 0).then(|| "x".to_owned());
            Some(Verified {
                findings,
                what,
                ..Verified::default()
            })
        };
        assert_eq!(
            look(
                VaultSource {
                    verified: verified(2),
                    ..well()
                },
                5000
            ),
            [("verify", true)]
        );
        assert_eq!(
            look(
                VaultSource {
                    verified: verified(0),
                    ..well()
                },
                5000
            ),
            [("verify", false)]
        );
        let brake = Some(farwrite_control::Brake::default());
        let braked = VaultSource { brake, ..well() };
        assert_eq!(look(braked, 5000), [("brake", true)]);
        assert_eq!(look(well(), 5000), [("brake", false)]);
        let bad = VaultSource {
            damaged: 1,
            failure: Some("x".into()),
            ..well()
        };
        assert_eq!(look(bad, 5000), [("damaged", true), ("failed", true)]);
        assert_eq!(look(well(), 5000).len(), 2);
    }

    #[test]
    fn the_file_comes_back_and_is_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let t = tempfile::tempdir().unwrap();
        let mut file = AlertsFile::load(t.path()).unwrap();
        file.webhook = "https://a.example/".into();
        file.webhook_token = Secret::new("t0ken");
        file.save(t.path()).unwrap();
        assert_eq!(AlertsFile::load(t.path()).unwrap(), file);
        let mode = std::fs::metadata(AlertsFile::path(t.path()))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        file.silent = "long".into();
        assert!(file.save(t.path()).is_err());
    }
}
