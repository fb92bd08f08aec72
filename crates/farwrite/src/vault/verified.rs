//! Verifications of sources: the one that runs, and how the last one ended.
//!
//! `sources/NAME/verify.toml` keeps the latter, whoever made it: `farwrite vault verify`, or the daemon when asked on its
//! page. Nothing is decided by it.

use crate::bell::Bell;
use farwrite_control::{Verified, Verifying};
use farwrite_core::{SourceName, Timestamp, path};
use farwrite_vault::segment::LogError;
use farwrite_vault::vault::{load_toml, save_toml};
use farwrite_vault::{Vault, VerifyReport, verify_source};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Verifications at once: they read everything, and the disk is for the backups first.
const AT_ONCE: usize = 2;

/// `verify.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Ended {
    ended: Timestamp,
    bytes: u64,
    findings: u64,
    /// The first finding, or why it could not be read; empty if all is well.
    what: String,
}

/// Notes how a verification ended.
pub(super) fn note(source_dir: &Path, report: &Result<VerifyReport, LogError>) {
    let ended = SystemTime::now().into();
    let ended = match report {
        Ok(r) => Ended {
            ended,
            bytes: r.bytes,
            findings: r.findings.len() as u64 + r.more_findings,
            what: r.findings.first().map_or(String::new(), |f| {
                let what = path::lossy(f.what.as_bytes());
                format!("segment {}, offset {}: {what}", f.segment, f.offset)
            }),
        },
        Err(e) => Ended {
            ended,
            bytes: 0,
            findings: 1,
            what: format!(
                "it could not be read: {}",
                path::lossy(e.to_string().as_bytes())
            ),
        },
    };
    if let Err(e) = save_toml(&source_dir.join("verify.toml"), &ended) {
        tracing::debug!(error = %e, "the verification cannot be noted");
    }
}

/// How the last one ended.
pub(super) fn last(source_dir: &Path) -> Option<Verified> {
    let e: Ended = load_toml(&source_dir.join("verify.toml")).ok()?;
    Some(Verified {
        ended: super::status::rfc3339(e.ended)?,
        bytes: e.bytes,
        findings: e.findings,
        what: Some(e.what).filter(|w| !w.is_empty()),
    })
}

/// How long ago the last one ended.
pub(super) fn age(source_dir: &Path, now: Timestamp) -> Option<Duration> {
    let e: Ended = load_toml(&source_dir.join("verify.toml")).ok()?;
    Some(now.since(e.ended))
}

/// Those that run in this process.
pub(super) struct Verifications {
    running: Mutex<BTreeMap<SourceName, Verifying>>,
    news: Arc<Bell>,
}

impl Verifications {
    /// None yet; `news` is rung at the end of each.
    pub(super) fn new(news: Arc<Bell>) -> Arc<Self> {
        Arc::new(Verifications {
            running: Mutex::default(),
            news,
        })
    }

    /// How far one is.
    pub(super) fn of(&self, name: &SourceName) -> Option<Verifying> {
        self.running.lock().get(name).copied()
    }

    /// Begins one, unless it is under way. `pace`: bytes in a second, on average over each segment; `None`: as fast as it goes.
    pub(super) fn begin(
        self: &Arc<Self>,
        vault: &Vault,
        name: &SourceName,
        pace: Option<u64>,
    ) -> Result<(), String> {
        {
            let mut running = self.running.lock();
            if running.contains_key(name) {
                return Ok(());
            }
            if running.len() >= AT_ONCE {
                return Err(
                    "other sources are being verified: try again when they are done".into(),
                );
            }
            let of_bytes = super::verify::log_bytes(vault, name);
            running.insert(name.clone(), Verifying { bytes: 0, of_bytes });
        }
        let (all, dir, mine) = (self.clone(), vault.source_dir(name), name.clone());
        let run = move || {
            let done = Running(&all, &mine);
            let begun = Instant::now();
            let report = match dir.join("log").is_dir() {
                // Ends with the process: nothing is changed by it.
                true => verify_source(&dir, &mut |r| {
                    done.at(r.bytes);
                    if let Some(pace) = pace {
                        let due = Duration::from_secs(r.bytes / pace);
                        std::thread::sleep(due.saturating_sub(begun.elapsed()));
                    }
                }),
                false => Ok(VerifyReport::default()),
            };
            note(&dir, &report);
        };
        let spawned = std::thread::Builder::new().name("verify".into()).spawn(run);
        spawned.map(drop).map_err(|e| {
            self.running.lock().remove(name);
            format!("no thread for it: {e}")
        })
    }
}

/// Takes itself out of the list, also when it panics.
struct Running<'a>(&'a Verifications, &'a SourceName);

impl Running<'_> {
    fn at(&self, bytes: u64) {
        if let Some(v) = self.0.running.lock().get_mut(self.1) {
            v.bytes = bytes;
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.lock().remove(self.1);
        self.0.news.ring();
    }
}
