//! The configuration of a source: a commented TOML file that `source add` writes and a person may edit.

use crate::alert::{Channels, Mail, Secret};
use crate::state::State;
use crate::toml_merge;
use anyhow::{Context, bail};
use clap::ValueEnum;
use farwrite_core::{BytePath, SourceName};
use farwrite_schedule::Interval;
use farwrite_transfer::net::tls::Fingerprint;
use farwrite_transfer::net::{Dialer, SshTarget, TlsTarget};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

/// Which sensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sensor {
    /// The best that this machine allows
    #[default]
    Auto,
    /// The loadable module: exact ranges, mapped stores, goes on while the daemon is away; needs root
    Kmod,
    /// Programs in the kernel: exact ranges, mapped stores; needs root
    Ebpf,
    /// Whole filesystems; needs root
    Fanotify,
    /// One watch per directory; needs no privileges
    Inotify,
    /// Compare at intervals, for filesystems without notification
    Scan,
}

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// "auto" or a time.
    pub interval: String,
    /// Which sensor.
    pub sensor: Sensor,
    /// "unlimited", or "kernel": keep the kernel's bound on the fanotify queue.
    pub queue: String,
    /// Bytes a second to all vaults, such as "10 MB"; empty: no limit.
    pub bandwidth: String,
    /// Where the GUI is served from the start, such as "127.0.0.1:9874"; empty: when `farwrite ui` asks for it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ui: String,
    /// Where metrics are served, such as "127.0.0.1:9875"; empty: nowhere.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub metrics: String,
    /// Alerts.
    #[serde(skip_serializing_if = "Alert::is_default")]
    pub alert: Alert,
    /// Highest slot that a directory has had that is protected no more.
    #[serde(skip_serializing_if = "is_zero")]
    pub last_slot: u32,
    /// Protected directories.
    #[serde(rename = "directory")]
    pub directories: Vec<Directory>,
    /// Vaults.
    #[serde(rename = "vault")]
    pub vaults: Vec<Vault>,
}

/// When somebody has to be told, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Alert {
    /// Run by `sh -c` when an alert begins or ends; what it is about is in the environment. Empty: none.
    pub command: String,
    /// The oldest change waits for this long.
    pub lag: String,
    /// A vault is away for this long.
    pub offline: String,
    /// The state directory's filesystem has less room than this; empty: never.
    pub disk: String,
    /// Gets a POST with JSON when an alert begins or ends. Empty: none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub webhook: String,
    /// Sent along as `Authorization: Bearer`.
    #[serde(skip_serializing_if = "Secret::is_empty")]
    pub webhook_token: Secret,
    /// Mail.
    #[serde(skip_serializing_if = "is_no_mail")]
    pub mail: Mail,
}

impl Default for Alert {
    fn default() -> Alert {
        Alert {
            command: String::new(),
            lag: "5m".into(),
            offline: "1m".into(),
            disk: "500 MB".into(),
            webhook: String::new(),
            webhook_token: Secret::default(),
            mail: Mail::default(),
        }
    }
}

fn is_no_mail(mail: &Mail) -> bool {
    *mail == Mail::default()
}

impl Alert {
    fn is_default(&self) -> bool {
        *self == Alert::default()
    }

    /// [`Alert::lag`] as a time.
    pub fn lag(&self) -> anyhow::Result<Duration> {
        parse_duration(&self.lag).map_err(|e| anyhow::anyhow!("alert.lag: {e}"))
    }

    /// [`Alert::offline`] as a time.
    pub fn offline(&self) -> anyhow::Result<Duration> {
        parse_duration(&self.offline).map_err(|e| anyhow::anyhow!("alert.offline: {e}"))
    }

    /// [`Alert::disk`] in bytes; 0: never.
    pub fn disk(&self) -> anyhow::Result<u64> {
        match self.disk.trim() {
            "" => Ok(0),
            t => crate::bytes::parse(t).context("alert.disk"),
        }
    }

    /// Where alerts go.
    pub fn channels(&self) -> Channels {
        Channels {
            command: self.command.clone(),
            webhook: self.webhook.clone(),
            webhook_token: self.webhook_token.clone(),
            mail: self.mail.clone(),
        }
    }
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// One protected directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Directory {
    /// Absolute.
    pub path: String,
    /// Its number in the indexes; never used for another path.
    pub slot: u32,
    /// As in .gitignore, relative to `path`.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// `false`: it is not watched. What the vaults have of it stays there; switched on, it catches up.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub enabled: bool,
}

fn yes() -> bool {
    true
}

fn is_true(b: &bool) -> bool {
    *b
}

/// One vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vault {
    /// What it is called here.
    pub name: SourceName,
    /// What it calls this source.
    pub source: SourceName,
    /// Paths of the directories that it protects.
    pub directories: Vec<String>,
    /// `host:port`, tried in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Of the vault's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// `ssh://[USER@]HOST[:PORT]/VAULT_DIR` instead of an address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh: Option<String>,
    /// The command that stands for ssh.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_command: Vec<String>,
}

const HEADER: &str = "\
# Farwrite: what this machine protects, and where.
# `farwrite source add` writes this file; edit it as you like and restart the daemon.
#
# interval   \"auto\", or a fixed time between two rounds of scheduling: \"200ms\", \"5s\".
# sensor     \"auto\", \"kmod\", \"ebpf\", \"fanotify\", \"inotify\" or \"scan\".
# queue      \"unlimited\", or \"kernel\": keep fs.fanotify.max_queued_events as the bound.
# bandwidth  bytes a second to each vault, such as \"10 MB\"; \"\" for no limit.
# ui         where the GUI is served from the start, such as \"127.0.0.1:9874\"; without it `farwrite ui` starts it.
# metrics    where /metrics is served, such as \"127.0.0.1:9875\", to whoever asks there; without it nowhere.
#
# [alert]        command (run by sh when an alert begins or ends; FARWRITE_ALERT, FARWRITE_PHASE,\n#                FARWRITE_VAULT and FARWRITE_MESSAGE say which),
#                lag, offline (an alert begins after these times, \"5m\" and \"1m\" unless set),
#                disk (when the state directory has less room than this, \"500 MB\" unless set),
#                webhook (an address that gets a POST with JSON), webhook_token (sent as a bearer token)
# [alert.mail]   server (HOST or HOST:PORT), security (\"starttls\", \"tls\" or \"none\"), user, password, from, to (a list).
#                `farwrite alert test` tries all of them.
#
# [[directory]]  path, slot (its number: leave it alone), exclude (patterns as in .gitignore),
#                enabled (false: not watched, as after `farwrite off DIR`)
# [[vault]]      name, source (what the vault calls this machine), directories, and
#                addresses + fingerprint, or ssh
";

impl Config {
    /// Reads the file; an empty configuration if there is none.
    pub fn load(state: &State) -> anyhow::Result<Config> {
        let path = state.config_path();
        let text = match fs::read_to_string(&path) {
            Ok(t) => t,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Config::fresh()),
            Err(e) => return Err(e).with_context(|| path.display().to_string()),
        };
        let config: Config = toml::from_str(&text)
            .map_err(|e| anyhow::anyhow!("{}: {}", path.display(), unreadable(&text, &e)))?;
        config.check().with_context(|| path.display().to_string())?;
        Ok(config)
    }

    fn fresh() -> Config {
        Config {
            interval: "auto".into(),
            queue: "unlimited".into(),
            ..Config::default()
        }
    }

    /// Writes the file: a whole new one beside it, then renamed over it.
    pub fn save(&self, state: &State) -> anyhow::Result<()> {
        self.check()?;
        state.create()?;
        let path = state.config_path();
        let tmp = path.with_extension("toml.new");
        let text = self.text(fs::read_to_string(&path).ok().as_deref())?;
        let write = || -> std::io::Result<()> {
            let mut f = fs::OpenOptions::new()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(&tmp)?;
            f.write_all(text.as_bytes())?;
            f.sync_all()?;
            fs::rename(&tmp, &path)?;
            fs::File::open(state.dir())?.sync_all()
        };
        write().with_context(|| path.display().to_string())
    }

    /// The file's new text: the old one with its comments and its order, where there is one.
    fn text(&self, old: Option<&str>) -> anyhow::Result<String> {
        let fresh = || -> anyhow::Result<String> {
            let plain = toml::to_string_pretty(self).context("configuration")?;
            Ok(format!("{HEADER}\n{plain}"))
        };
        let Some(Ok(mut document)) = old.map(str::parse::<toml_edit::DocumentMut>) else {
            return fresh();
        };
        let plain = toml::to_string_pretty(self).context("configuration")?;
        let new: toml_edit::DocumentMut = plain.parse().context("configuration")?;
        toml_merge::merge(document.as_table_mut(), new.as_table());
        let text = document.to_string();
        // What was merged must mean what was asked for.
        match toml::from_str::<Config>(&text) {
            Ok(read) if read == *self => Ok(text),
            _ => fresh(),
        }
    }

    /// A slot that no directory has or had.
    pub fn new_slot(&self) -> u32 {
        let highest = self.directories.iter().map(|d| d.slot).max().unwrap_or(0);
        highest.max(self.last_slot) + 1
    }

    /// Takes a directory out of a vault (of all, if none is named), and out of the configuration if that was the last.
    pub fn remove(&mut self, dir: &str, vault: Option<&str>) {
        for v in &mut self.vaults {
            if vault.is_none_or(|name| v.name.as_str() == name) {
                v.directories.retain(|d| d != dir);
            }
        }
        if self
            .vaults
            .iter()
            .all(|v| v.directories.iter().all(|d| d != dir))
        {
            self.last_slot = self.new_slot() - 1;
            self.directories.retain(|d| d.path != dir);
        }
    }

    /// The interval as a value.
    pub fn interval(&self) -> anyhow::Result<Interval> {
        if self.interval.is_empty() {
            Ok(Interval::Auto)
        } else {
            Ok(self.interval.parse()?)
        }
    }

    /// The bandwidth limit in bytes a second.
    pub fn bandwidth(&self) -> anyhow::Result<Option<u64>> {
        match self.bandwidth.trim() {
            "" => Ok(None),
            t => crate::bytes::parse(t).map(Some).context("bandwidth"),
        }
    }

    /// The directory of this path.
    pub fn directory(&self, path: &str) -> Option<&Directory> {
        self.directories.iter().find(|d| d.path == path)
    }

    /// Directories that are not switched off.
    pub fn enabled(&self) -> impl Iterator<Item = &Directory> {
        self.directories.iter().filter(|d| d.enabled)
    }

    /// The vault of this name, or the only one.
    pub fn vault(&self, name: Option<&SourceName>) -> anyhow::Result<&Vault> {
        match (name, self.vaults.as_slice()) {
            (_, []) => bail!("no vault yet: farwrite source add DIR --to INVITE"),
            (None, [one]) => Ok(one),
            (None, many) => {
                let names: Vec<&str> = many.iter().map(|v| v.name.as_str()).collect();
                bail!(
                    "several vaults: say which with --vault ({})",
                    names.join(", ")
                )
            }
            (Some(n), all) => all
                .iter()
                .find(|v| v.name == *n)
                .with_context(|| format!("no vault named {n}")),
        }
    }

    fn check(&self) -> anyhow::Result<()> {
        self.interval()?;
        self.bandwidth()?;
        self.alert.lag()?;
        self.alert.offline()?;
        self.alert.disk()?;
        self.alert.channels().check()?;
        if !["", "unlimited", "kernel"].contains(&self.queue.as_str()) {
            bail!("queue is \"unlimited\" or \"kernel\", not {:?}", self.queue);
        }
        for (i, d) in self.directories.iter().enumerate() {
            let path = BytePath::new(&d.path).with_context(|| format!("directory {:?}", d.path))?;
            for other in &self.directories[..i] {
                let o = BytePath::new(&other.path)?;
                if other.slot == d.slot {
                    bail!("{} and {} have the same slot", d.path, other.path);
                }
                if path.starts_with(&o) || o.starts_with(&path) {
                    bail!("{} and {} overlap: protect one of them", other.path, d.path);
                }
            }
        }
        for (i, v) in self.vaults.iter().enumerate() {
            if self.vaults[..i].iter().any(|o| o.name == v.name) {
                bail!("two vaults named {}", v.name);
            }
            if let Some(d) = v.directories.iter().find(|d| self.directory(d).is_none()) {
                bail!("vault {}: {d} is not among the directories", v.name);
            }
            if v.ssh.is_some() == v.fingerprint.is_some() {
                bail!(
                    "vault {}: needs either ssh, or addresses and fingerprint",
                    v.name
                );
            }
        }
        Ok(())
    }
}

impl Vault {
    /// How to reach it.
    pub fn dialer(&self, state: &State) -> anyhow::Result<Dialer> {
        if let Some(url) = &self.ssh {
            let mut target = parse_ssh_url(url, &self.source)?;
            if !self.ssh_command.is_empty() {
                target.ssh = self.ssh_command.clone();
            }
            return Ok(Dialer::Ssh(target));
        }
        let fingerprint: Fingerprint = self
            .fingerprint
            .as_deref()
            .unwrap_or_default()
            .parse()
            .with_context(|| format!("fingerprint of vault {}", self.name))?;
        Ok(Dialer::Tls(TlsTarget {
            addresses: self.addresses.clone(),
            vault: fingerprint,
            identity: state.identity()?,
        }))
    }
}

/// What is wrong with a TOML file, on one line, without the text of the file: that may hold a secret.
pub fn unreadable(text: &str, e: &toml::de::Error) -> String {
    let at = e.span().map_or(0, |s| s.start.min(text.len()));
    // An error may be told at a line's end, or behind it.
    let begin = text[..at].trim_end().rfind('\n').map_or(0, |i| i + 1);
    let end = text[at..].find('\n').map_or(text.len(), |i| at + i);
    let secret = |word: &&str| text[begin..end].contains(*word);
    let what = match ["password", "token"].iter().any(secret) {
        true => "this cannot be read (not shown: it may be a secret)".into(),
        false => e.message().trim().replace('\n', " "),
    };
    format!("line {}: {what}", text[..begin].lines().count() + 1)
}

/// Reads `ssh://[USER@]HOST[:PORT]/VAULT_DIR`. The directory is absolute on that machine; `/~/x` is below the home.
pub fn parse_ssh_url(url: &str, source: &SourceName) -> anyhow::Result<SshTarget> {
    let bad = || format!("not of the form ssh://[USER@]HOST[:PORT]/VAULT_DIR: {url:?}");
    let rest = url.strip_prefix("ssh://").with_context(bad)?;
    let (authority, path) = rest.split_once('/').with_context(bad)?;
    let (user, host) = match authority.rsplit_once('@') {
        Some((u, h)) => (Some(u.to_owned()), h),
        None => (None, authority),
    };
    let (host, port) = match host.rsplit_once(':') {
        Some((h, p)) if !h.ends_with(']') || h.starts_with('[') => {
            (h, Some(p.parse::<u16>().ok().with_context(bad)?))
        }
        _ => (host, None),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() || path.is_empty() || host.starts_with('-') {
        bail!(bad());
    }
    let dir = match path.strip_prefix("~/") {
        Some(below_home) => below_home.to_owned(),
        None => format!("/{path}"),
    };
    let mut target = SshTarget::new(host, dir, source.clone());
    target.user = user;
    target.port = port;
    Ok(target)
}

/// A time span such as "30s" or "24h".
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    match text.parse::<Interval>() {
        Ok(Interval::Fixed(d)) => Ok(d),
        _ => jiff_span(text).ok_or_else(|| {
            format!("a time such as \"30s\", \"10m\", \"24h\" or \"7d\" is needed, not {text:?}")
        }),
    }
}

fn jiff_span(text: &str) -> Option<Duration> {
    let d: jiff::SignedDuration = text.trim().parse().ok().or_else(|| {
        let days: i64 = text.trim().strip_suffix('d')?.trim().parse().ok()?;
        Some(jiff::SignedDuration::from_hours(days.checked_mul(24)?))
    })?;
    Duration::try_from(d).ok()
}

/// A directory given by a person as the path under which it is protected: absolute, without symbolic links, UTF-8.
pub fn canonical_dir(dir: &Path) -> anyhow::Result<String> {
    let real = fs::canonicalize(dir).with_context(|| dir.display().to_string())?;
    if !real.is_dir() {
        bail!("{}: not a directory", dir.display());
    }
    if real == Path::new("/") {
        bail!("/ as a whole cannot be protected yet: name the directories that matter");
    }
    match real.to_str() {
        Some(s) => Ok(s.to_owned()),
        None => bail!(
            "{}: the path of a protected directory must be UTF-8 (names below it need not)",
            dir.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ssh_urls() {
        let name = SourceName::new("me").unwrap();
        let t = parse_ssh_url("ssh://u@h:2222/srv/vault", &name).unwrap();
        assert_eq!(
            (
                t.user.as_deref(),
                t.host.as_str(),
                t.port,
                t.vault_dir.as_str()
            ),
            (Some("u"), "h", Some(2222), "/srv/vault")
        );
        let t = parse_ssh_url("ssh://h/~/vault", &name).unwrap();
        assert_eq!(
            (t.user, t.port, t.vault_dir.as_str()),
            (None, None, "vault")
        );
        let t = parse_ssh_url("ssh://[::1]:22/v", &name).unwrap();
        assert_eq!((t.host.as_str(), t.port), ("::1", Some(22)));
        for bad in [
            "",
            "h:/v",
            "ssh://",
            "ssh://h",
            "ssh:///v",
            "ssh://h:x/v",
            "ssh://-oProxyCommand=x/v",
        ] {
            assert!(parse_ssh_url(bad, &name).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_error_shows_its_line_but_no_secret() {
        let t = tempfile::tempdir().unwrap();
        let state = State::choose(Some(t.path().join("s"))).unwrap();
        let said = |text: &str| {
            state.create().unwrap();
            std::fs::write(state.config_path(), text).unwrap();
            format!("{:#}", Config::load(&state).unwrap_err())
        };
        assert!(said("sensor = \"sonar\"").contains("sonar"));
        for bad in [
            "[alert.mail]\npassword = hunter2\n",
            "[alert.mail]\npassword = \"hunter2\n",
            "[alert.mail]\npassword = [\"hunter2\"]\n",
            "[alert]\nwebhook_token = { hunter2 = 1 }\n",
            "[alert.mail]\npassword = \"hunter2\" x\n",
            "[alert.mail]\npassword = \"\"\"hunter2",
            "[alert.mail]\npassword = \"hunter2\"\nserver = \"a b\"\n",
        ] {
            let said = said(bad);
            assert!(!said.contains("hunter2"), "{bad}: {said}");
        }
    }

    #[test]
    fn what_a_person_wrote_into_the_file_stays() {
        let t = tempfile::tempdir().unwrap();
        let state = State::choose(Some(t.path().join("s"))).unwrap();
        let mut c = Config::load(&state).unwrap();
        c.save(&state).unwrap();
        for (path, slot) in [("/srv/a", 1), ("/srv/b", 2)] {
            c.directories.push(Directory {
                path: path.into(),
                slot,
                exclude: vec![],
                enabled: true,
            });
        }
        c.save(&state).unwrap();
        let text = std::fs::read_to_string(state.config_path()).unwrap();
        assert!(text.contains("\n[[directory]]\n"), "{text}");
        let text = text
            .replace("interval = \"auto\"", "interval = \"auto\" # as it comes")
            .replace("path = \"/srv/b\"", "# the second\npath = \"/srv/b\"");
        std::fs::write(state.config_path(), &text).unwrap();
        let mut c = Config::load(&state).unwrap();
        c.interval = "2s".into();
        c.remove("/srv/a", None);
        c.directories[0].exclude.push("*.tmp".into());
        c.save(&state).unwrap();
        let text = std::fs::read_to_string(state.config_path()).unwrap();
        assert!(text.contains("interval = \"2s\" # as it comes"), "{text}");
        assert!(
            text.contains("# the second") && !text.contains("/srv/a"),
            "{text}"
        );
        assert!(text.starts_with(HEADER.lines().next().unwrap()), "{text}");
        let read = Config::load(&state).unwrap();
        assert_eq!(read, c);
        assert_eq!(read.new_slot(), 3);
        c.remove("/srv/b", None);
        c.save(&state).unwrap();
        assert_eq!(
            Config::load(&state).unwrap().new_slot(),
            3,
            "a slot is never used again"
        );
    }

    #[test]
    fn a_configuration_reads_what_it_writes_and_refuses_nonsense() {
        let t = tempfile::tempdir().unwrap();
        let state = State::choose(Some(t.path().join("s"))).unwrap();
        let mut c = Config::load(&state).unwrap();
        c.directories.push(Directory {
            path: "/srv/a".into(),
            slot: 1,
            exclude: vec!["*.o".into()],
            enabled: true,
        });
        c.vaults.push(Vault {
            name: SourceName::new("v").unwrap(),
            source: SourceName::new("me").unwrap(),
            directories: vec!["/srv/a".into()],
            addresses: vec![],
            fingerprint: None,
            ssh: Some("ssh://h/v".into()),
            ssh_command: vec![],
        });
        c.save(&state).unwrap();
        assert_eq!(Config::load(&state).unwrap(), c);
        c.directories.push(Directory {
            path: "/srv/a/b".into(),
            slot: 2,
            exclude: vec![],
            enabled: false,
        });
        assert!(c.save(&state).unwrap_err().to_string().contains("overlap"));
        std::fs::write(state.config_path(), "intervall = 3").unwrap();
        assert!(Config::load(&state).is_err());
    }
}
