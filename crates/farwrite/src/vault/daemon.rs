//! The vault's daemon beside its server: answers the control API, keeps what it tells at hand, watches for alerts, serves
//! the GUI. Reads what the server writes as any other process could, and decides nothing about it.

use super::alerts::{self, AlertsFile};
use super::presence::{self, Presence};
use super::retained;
use super::space::Spaces;
use super::status::{Row, rfc3339, row, rows};
use super::verified::{self, Verifications};
use crate::alert;
use crate::config::parse_duration;
use anyhow::Context;
use farwrite_control::*;
use farwrite_core::{SourceName, path};
use farwrite_vault::Vault;
use farwrite_web::Ui;
use parking_lot::Mutex;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What was read of the vault is told again for this long at least.
const FRESH: Duration = Duration::from_millis(500);
/// And for so many times as long as the reading took, so that many pages do not make the disk busy.
const FRESH_TIMES: u32 = 20;
/// Where the GUI is unless told otherwise; another port if this one is taken.
const USUAL: &str = "127.0.0.1:9876";
const ANY_PORT: &str = "127.0.0.1:0";

/// See the module.
pub(super) struct VaultDaemon {
    vault: Vault,
    listen: SocketAddr,
    presence: Arc<Presence>,
    spaces: Arc<Spaces>,
    verifications: Arc<Verifications>,
    known: Mutex<Option<Known>>,
    alerts: Mutex<Vec<VaultAlert>>,
    /// One change of the settings at a time.
    changes: Mutex<()>,
    /// Where the GUI is wanted, if anywhere in particular.
    ui_at: Option<String>,
    ui: Mutex<Option<Ui>>,
}

struct Known {
    status: VaultStatus,
    until: Instant,
}

/// The control socket of the daemon that serves a vault.
pub(super) fn socket_path(vault_dir: &Path) -> PathBuf {
    vault_dir.join("control.sock")
}

impl VaultDaemon {
    /// Begins to look around; [`VaultDaemon::stop`] ends that.
    pub(super) fn start(
        vault: Vault,
        listen: SocketAddr,
        presence: Arc<Presence>,
        ui_at: Option<String>,
    ) -> anyhow::Result<Arc<VaultDaemon>> {
        let spaces =
            Spaces::start(vault.clone()).context("the thread that looks at the space taken")?;
        let daemon = Arc::new(VaultDaemon {
            vault,
            listen,
            verifications: Verifications::new(presence.news()),
            presence,
            spaces,
            known: Mutex::default(),
            alerts: Mutex::default(),
            changes: Mutex::default(),
            ui_at,
            ui: Mutex::default(),
        });
        let news = daemon.presence.news();
        alerts::start(Arc::downgrade(&daemon), news).context("the thread for alerts")?;
        Ok(daemon)
    }

    /// Ends the threads.
    pub(super) fn stop(&self) {
        self.spaces.stop();
        drop(self.ui.lock().take());
    }

    /// Begins a verification that leaves the disk to others.
    pub(super) fn verify_slowly(&self, name: &SourceName, pace: u64) -> Result<(), String> {
        self.verifications.begin(&self.vault, name, Some(pace))
    }

    /// The vault's directory.
    pub(super) fn dir(&self) -> &Path {
        self.vault.dir()
    }

    /// Serves the GUI, if it is not served yet, and lets one browser in.
    pub(super) fn ui_place(&self) -> anyhow::Result<UiPlace> {
        let mut slot = self.ui.lock();
        if slot.is_none() {
            let listener = match &self.ui_at {
                None => TcpListener::bind(USUAL)
                    .or_else(|_| TcpListener::bind(ANY_PORT))
                    .context("a port on loopback for the GUI")?,
                Some(address) => {
                    TcpListener::bind(address).with_context(|| format!("--ui {address}"))?
                }
            };
            let ui = Ui::start_vault(listener, &socket_path(self.dir())).context("the GUI")?;
            *slot = Some(ui);
        }
        let ui = slot.as_ref().context("the GUI was just started")?;
        Ok(UiPlace {
            url: ui.entrance(),
            address: ui.address(),
        })
    }

    /// All sources, as they are now.
    pub(super) fn look_anew(&self) -> VaultStatus {
        *self.known.lock() = None;
        self.look()
    }

    /// All sources; what was read a moment ago is not read again.
    pub(super) fn look(&self) -> VaultStatus {
        let mut known = self.known.lock();
        if let Some(k) = known.as_ref().filter(|k| Instant::now() < k.until) {
            let mut status = k.status.clone();
            status
                .sources
                .iter_mut()
                .for_each(|s| self.bring_up_to_date(s));
            return status;
        }
        let begin = Instant::now();
        let rows = rows(&self.vault).unwrap_or_default();
        let room = rustix::fs::statvfs(self.dir()).ok();
        let status = VaultStatus {
            api: VAULT_API_VERSION,
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            directory: self.dir().display().to_string(),
            listen: self.listen.to_string(),
            free_bytes: room.as_ref().map(|r| r.f_bavail.saturating_mul(r.f_frsize)),
            total_bytes: room.map(|r| r.f_blocks.saturating_mul(r.f_frsize)),
            sources: rows.iter().map(|r| self.describe(r)).collect(),
            alerts: Vec::new(),
        };
        *known = Some(Known {
            status: status.clone(),
            until: Instant::now() + FRESH.max(begin.elapsed() * FRESH_TIMES),
        });
        status
    }

    /// What costs little to know is told as it is now.
    fn bring_up_to_date(&self, s: &mut VaultSource) {
        let Ok(name) = SourceName::new(&s.name) else {
            return;
        };
        let seen = self.presence.of(&name);
        // A session through ssh is one of another process.
        let lock = self.vault.source_dir(&name).join("lock");
        let through_ssh = !seen.is_here() && presence::is_locked(&lock);
        if through_ssh {
            self.presence.note(&name);
        }
        s.connected = seen.is_here() || through_ssh;
        s.lag_ms = seen.behind.map(|b| b.lag_ms);
        s.pending_changes = seen.behind.map(|b| b.changes);
        if let (false, Some(t)) = (s.connected, seen.last.and_then(rfc3339)) {
            s.last_seen = Some(t);
        }
        (s.space, s.growth_per_day) = self.spaces.of(&name);
        s.verifying = self.verifications.of(&name);
        s.brake = retained::brake(&self.vault.source_dir(&name));
        s.verified = verified::last(&self.vault.source_dir(&name));
    }

    fn describe(&self, row: &Row) -> VaultSource {
        let plain = |text: &str| path::lossy(text.as_bytes());
        let mut source = VaultSource {
            name: row.name.to_string(),
            failure: row.failure.as_ref().map(|f| plain(&f.what)),
            ..VaultSource::default()
        };
        match &row.status {
            Err(e) => source.error = Some(plain(&e.to_string())),
            Ok(s) => {
                source.last_backup = s.last_time.and_then(rfc3339);
                source.last_seen.clone_from(&source.last_backup);
                source.clean = s.clean;
                source.batches = s.batches;
                source.versions = s.versions;
                source.mirror = s.mirror_path.is_some();
                if source.mirror {
                    source.behind_batches = s.last_seq.0.saturating_sub(s.mirror_seq.0);
                }
                source.damaged = s.damaged;
            }
        }
        self.bring_up_to_date(&mut source);
        source
    }

    /// Alerts that are on.
    pub(super) fn note_alerts(&self, on: &[VaultAlert]) {
        let mut alerts = self.alerts.lock();
        if *alerts != on {
            *alerts = on.to_vec();
        }
    }

    fn named(&self, name: &str) -> Answer<SourceName> {
        let known = SourceName::new(name).ok();
        known
            .filter(|n| self.vault.source_dir(n).is_dir())
            .ok_or_else(|| Fault::not_found("the vault has no source of this name"))
    }

    fn file(&self) -> Answer<AlertsFile> {
        AlertsFile::load(self.dir()).map_err(failed)
    }
}

impl VaultHandler for VaultDaemon {
    fn status(&self) -> VaultStatus {
        let mut status = self.look();
        status.alerts = self.alerts.lock().clone();
        status
    }

    fn source(&self, name: &str) -> Answer<VaultSourceDetail> {
        let name = self.named(name)?;
        let dir = self.vault.source_dir(&name);
        Ok(VaultSourceDetail {
            retention: retained::of(&self.vault, &name)?,
            last_prune: retained::last_prune(&dir),
            marks: retained::marks(&dir),
            source: self.describe(&row(&self.vault, name.clone())),
            samples: self.spaces.samples(&name),
            directory: dir.display().to_string(),
        })
    }

    fn verify(&self, name: &str) -> Answer<VaultSource> {
        let name = self.named(name)?;
        self.verifications
            .begin(&self.vault, &name, None)
            .map_err(Fault::conflict)?;
        Ok(self.describe(&row(&self.vault, name)))
    }

    fn release(&self, name: &str) -> Answer<VaultSource> {
        let name = self.named(name)?;
        retained::release(&self.vault.source_dir(&name))?;
        self.presence.news().ring();
        tracing::info!(source = %name, "the ransomware brake is released");
        Ok(self.describe(&row(&self.vault, name)))
    }

    fn set_retention(&self, name: &str, policy: RetentionPolicy) -> Answer<Retention> {
        let name = self.named(name)?;
        let _one = self.changes.lock();
        retained::set(&self.vault, &name, &policy)
    }

    fn preview_prune(&self, name: &str, policy: RetentionPolicy) -> Answer<PrunePreview> {
        retained::look_ahead(&self.vault, &self.named(name)?, &policy)
    }

    fn settings(&self) -> Answer<VaultSettings> {
        let file = self.file()?;
        Ok(VaultSettings {
            file: AlertsFile::path(self.dir()).display().to_string(),
            channels: alert::show(&file.channels()),
            silent: file.silent,
            disk: file.disk,
        })
    }

    fn change_settings(&self, change: VaultSettingsChange) -> Answer<VaultSettings> {
        let _one = self.changes.lock();
        let mut file = self.file()?;
        if let Some(text) = &change.silent {
            text.trim().clone_into(&mut file.silent);
            if !file.silent.is_empty() {
                parse_duration(&file.silent).map_err(|e| Fault::field("alert_silent", e))?;
            }
        }
        if let Some(text) = &change.disk {
            text.trim().clone_into(&mut file.disk);
            file.disk()
                .map_err(|e| Fault::field("alert_disk", e.to_string()))?;
        }
        file.put(alert::change(file.channels(), &change.channels)?);
        file.save(self.dir()).map_err(failed)?;
        self.presence.news().ring();
        self.settings()
    }

    fn test_alerts(&self) -> Answer<TestedAlerts> {
        Ok(alert::tested(&self.file()?.channels()))
    }

    fn metrics(&self) -> Answer<String> {
        Ok(super::metrics::text(&self.status()))
    }

    fn open_ui(&self) -> Answer<UiPlace> {
        self.ui_place().map_err(failed)
    }
}

fn failed(e: anyhow::Error) -> Fault {
    Fault::failed(crate::one_line(&e))
}
