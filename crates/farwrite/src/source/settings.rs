//! Changing what is protected, and how, while the daemon runs: checked, written to the file, then put into effect. A
//! refusal names the field that is wrong, and then nothing has changed.

use super::add::{self, Wanted};
use super::supervisor::Supervisor;
use crate::alert;
use crate::config::{self, Config};
use anyhow::Context;
use clap::ValueEnum;
use farwrite_control::{
    Answer, Directory, ExcludePreview, Fault, PreviewExcludes, Protect, Settings, SettingsChange,
    TestedAlerts, Unprotect, VaultPlace,
};
use farwrite_core::exclude::Excludes;
use farwrite_core::{BytePath, Kind, SourceName};
use farwrite_fs::Dir;
use std::path::Path;
use std::time::{Duration, Instant};

/// Most entries that a preview looks at.
const PREVIEW_ENTRIES: u64 = 500_000;
/// Longest time that it takes.
const PREVIEW_TIME: Duration = Duration::from_secs(5);
/// Matches that it names.
const PREVIEW_NAMED: usize = 100;
/// Patterns of one directory.
const PATTERNS: usize = 1000;

impl Supervisor {
    pub(super) fn show_settings(&self) -> Answer<Settings> {
        let config = Config::load(&self.state).map_err(failed)?;
        let of = |path: &String| {
            let vaults = config
                .vaults
                .iter()
                .filter(|v| v.directories.contains(path));
            vaults.map(|v| v.name.to_string()).collect()
        };
        Ok(Settings {
            file: self.state.config_path().display().to_string(),
            interval: some_or(&config.interval, "auto"),
            sensor: sensor_name(config.sensor),
            sensors: config::Sensor::value_variants()
                .iter()
                .map(|s| sensor_name(*s))
                .collect(),
            bandwidth: config.bandwidth.clone(),
            alert_lag: config.alert.lag.clone(),
            alert_offline: config.alert.offline.clone(),
            alert_disk: config.alert.disk.clone(),
            alert_channels: alert::show(&config.alert.channels()),
            directories: config
                .directories
                .iter()
                .map(|d| Directory {
                    path: d.path.clone(),
                    exclude: d.exclude.clone(),
                    enabled: d.enabled,
                    vaults: of(&d.path),
                })
                .collect(),
            vaults: config
                .vaults
                .iter()
                .map(|v| VaultPlace {
                    name: v.name.to_string(),
                    source: v.source.to_string(),
                    reached_at: v.ssh.clone().unwrap_or_else(|| v.addresses.join(", ")),
                })
                .collect(),
        })
    }

    pub(super) fn put_settings(&self, change: &SettingsChange) -> Answer<Settings> {
        let mut wanted = Config::load(&self.state).map_err(failed)?;
        let before = wanted.clone();
        apply(&mut wanted, change)?;
        // What a running daemon can take up needs no restart of it.
        let restart = wanted.sensor != before.sensor || wanted.bandwidth != before.bandwidth;
        if restart {
            self.reconfigure(|config| {
                *config = wanted.clone();
                Ok(())
            })
            .map_err(failed)?;
        } else {
            self.save(|config| {
                *config = wanted.clone();
                Ok(())
            })
            .map_err(failed)?;
        }
        if change.interval.is_some() {
            let interval = wanted
                .interval()
                .map_err(|e| Fault::field("interval", e.to_string()))?;
            self.inner().set_interval(interval);
        }
        self.show_settings()
    }

    pub(super) fn test_channels(&self) -> Answer<TestedAlerts> {
        let config = Config::load(&self.state).map_err(failed)?;
        Ok(alert::tested(&config.alert.channels()))
    }

    pub(super) fn put_directory(&self, p: &Protect) -> Answer<Settings> {
        let _one = self.changes.lock();
        let mut config = Config::load(&self.state).map_err(failed)?;
        let dir = usable_directory(&p.directory)?;
        add::check_against(&config, &dir)
            .map_err(|e| Fault::field("directory", format!("{e:#}")))?;
        let exclude = patterns(&dir, &p.exclude)?;
        let vault_name = match p.vault_name.as_deref().map(str::trim) {
            None | Some("") => None,
            Some(name) => {
                let name = SourceName::new(name);
                Some(name.map_err(|e| Fault::field("vault_name", e.to_string()))?)
            }
        };
        if p.to.trim().is_empty() {
            return Err(Fault::field(
                "to",
                "choose a vault, or paste the line that `farwrite vault invite` printed",
            ));
        }
        let wanted = Wanted {
            to: &p.to,
            vault_name: vault_name.as_ref(),
            source_name: None,
        };
        let vault = add::choose_vault(&self.state, &mut config, &wanted);
        let vault =
            vault.map_err(|e| Fault::field("to", crate::one_line(&e).replace("--to: ", "")))?;
        let known = config.vaults.iter().find(|v| v.name == vault).cloned();
        self.reconfigure(|config| {
            if !config.vaults.iter().any(|v| v.name == vault) {
                config
                    .vaults
                    .push(known.context("the vault was just added")?);
            }
            add::put(config, &dir, &vault, |_| exclude)
        })
        .map_err(failed)?;
        self.show_settings()
    }

    pub(super) fn remove_directory(&self, u: &Unprotect) -> Answer<Settings> {
        let _one = self.changes.lock();
        let config = Config::load(&self.state).map_err(failed)?;
        let vault = u.vault.as_deref().filter(|v| !v.is_empty());
        let there = config.vaults.iter().any(|v| {
            vault.is_none_or(|name| v.name.as_str() == name) && v.directories.contains(&u.directory)
        });
        if !there {
            return Err(Fault::field("directory", "this is not protected"));
        }
        let mut after = config.clone();
        after.remove(&u.directory, vault);
        if after.directories.is_empty() {
            return Err(Fault::field(
                "directory",
                "this is the only one: protect another first, or switch automatic backup off",
            ));
        }
        self.reconfigure(|config| {
            config.remove(&u.directory, vault);
            Ok(())
        })
        .map_err(failed)?;
        self.show_settings()
    }
}

impl Supervisor {
    /// Switches directories off or on, each by itself.
    pub(super) fn switch_some(&self, on: bool, directories: &[String]) -> Answer<()> {
        let _one = self.changes.lock();
        let mut after = Config::load(&self.state).map_err(failed)?;
        for dir in directories {
            let known = after.directories.iter_mut().find(|d| d.path == *dir);
            let Some(known) = known else {
                let why = format!("{dir} is not protected");
                return Err(Fault::field("directories", why));
            };
            known.enabled = on;
        }
        if after.enabled().next().is_none() {
            return Err(Fault::field(
                "directories",
                "nothing would be left that is on: switch automatic backup off as a whole instead",
            ));
        }
        self.reconfigure(|config| {
            config.directories = after.directories;
            Ok(())
        })
        .map_err(failed)
    }
}

fn apply(config: &mut Config, change: &SettingsChange) -> Answer<()> {
    let told = |field: &'static str| move |e: anyhow::Error| Fault::field(field, format!("{e:#}"));
    if let Some(text) = &change.interval {
        config.interval = text.trim().to_owned();
        config.interval().map_err(told("interval"))?;
    }
    if let Some(text) = &change.sensor {
        config.sensor = config::Sensor::from_str(text.trim(), true).map_err(|_| {
            Fault::field(
                "sensor",
                "this is none of auto, kmod, ebpf, fanotify, inotify, scan",
            )
        })?;
    }
    if let Some(text) = &change.bandwidth {
        config.bandwidth = text.trim().to_owned();
        config.bandwidth().map_err(told("bandwidth"))?;
    }
    if let Some(text) = &change.alert_lag {
        config.alert.lag = text.trim().to_owned();
        config.alert.lag().map_err(told("alert_lag"))?;
    }
    if let Some(text) = &change.alert_offline {
        config.alert.offline = text.trim().to_owned();
        config.alert.offline().map_err(told("alert_offline"))?;
    }
    if let Some(text) = &change.alert_disk {
        config.alert.disk = text.trim().to_owned();
        config.alert.disk().map_err(told("alert_disk"))?;
    }
    let channels = alert::change(config.alert.channels(), &change.alert_channels)?;
    config.alert.webhook = channels.webhook;
    config.alert.webhook_token = channels.webhook_token;
    config.alert.mail = channels.mail;
    Ok(())
}

/// A directory that a person typed: absolute, there, and a directory.
fn usable_directory(text: &str) -> Answer<String> {
    let bad = |why: String| Fault::field("directory", why);
    let text = text.trim();
    if text.is_empty() {
        return Err(bad("name a directory".into()));
    }
    if !text.starts_with('/') {
        return Err(bad("give the whole path, from / on".into()));
    }
    config::canonical_dir(Path::new(text)).map_err(|e| bad(crate::one_line(&e)))
}

/// The patterns without empty lines, if they can be read.
fn patterns(dir: &str, given: &[String]) -> Answer<Vec<String>> {
    let bad = |why: String| Fault::field("exclude", why);
    let all: Vec<String> = given
        .iter()
        .map(|p| p.trim().to_owned())
        .filter(|p| !p.is_empty())
        .collect();
    if all.len() > PATTERNS {
        return Err(bad(format!("these are more than {PATTERNS} patterns")));
    }
    let path = BytePath::new(dir).map_err(|e| Fault::field("directory", e.to_string()))?;
    Excludes::new(path, &all, vec![]).map_err(|e| bad(e.to_string()))?;
    Ok(all)
}

/// What patterns would leave out of a directory: a walk with bounds.
pub(super) fn preview(p: &PreviewExcludes) -> Answer<ExcludePreview> {
    let dir = usable_directory(&p.directory)?;
    let all = patterns(&dir, &p.exclude)?;
    let root = BytePath::new(&dir).map_err(|e| Fault::field("directory", e.to_string()))?;
    let excludes = Excludes::new(root.clone(), &all, vec![])
        .map_err(|e| Fault::field("exclude", e.to_string()))?;
    let end = Instant::now() + PREVIEW_TIME;
    let mut found = ExcludePreview::default();
    let top = Dir::open(Path::new(&dir)).map_err(|e| Fault::field("directory", e.to_string()))?;
    let mut todo = vec![(top, root.clone())];
    while let Some((dir, path)) = todo.pop() {
        // A directory that cannot be read has nothing to show.
        for e in dir.list().unwrap_or_default() {
            if found.looked_at >= PREVIEW_ENTRIES || Instant::now() >= end {
                found.truncated = true;
                return Ok(found);
            }
            found.looked_at += 1;
            let is_dir = e.kind == Some(Kind::Dir);
            let full = path.join(&e.name);
            if excludes.excludes_entry(&full, is_dir) {
                found.matching += 1;
                if found.paths.len() < PREVIEW_NAMED {
                    let below = full.strip_prefix(&root).unwrap_or_default();
                    let slash = if is_dir { "/" } else { "" };
                    found
                        .paths
                        .push(format!("{}{slash}", farwrite_core::path::lossy(below)));
                }
            } else if is_dir && let Ok(below) = dir.open_dir(&e.name) {
                todo.push((below, full));
            }
        }
    }
    found.paths.sort();
    Ok(found)
}

/// As the configuration file has it.
fn sensor_name(sensor: config::Sensor) -> String {
    let value = sensor.to_possible_value();
    value.map_or_else(String::new, |v| v.get_name().to_owned())
}

fn some_or(text: &str, or: &str) -> String {
    if text.is_empty() {
        or.into()
    } else {
        text.into()
    }
}

fn failed(e: anyhow::Error) -> Fault {
    Fault::failed(crate::one_line(&e))
}
