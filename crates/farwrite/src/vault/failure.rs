//! The last failure of a source at this vault, for `vault status`: a small file beside its log that goes away when the
//! source works again. It is a hint for people; nothing is decided by it.

use farwrite_core::Timestamp;
use farwrite_vault::vault::{load_toml, save_toml};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// `sources/NAME/failure.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failure {
    /// What happened.
    pub(super) what: String,
    /// When, at the vault.
    pub(super) time: Timestamp,
}

/// Where it is kept.
pub(super) struct FailureFile(PathBuf);

impl FailureFile {
    /// Of the source in this directory.
    pub(super) fn of(source_dir: &Path) -> Self {
        FailureFile(source_dir.join("failure.toml"))
    }

    /// What there is.
    pub(super) fn read(&self) -> Option<Failure> {
        load_toml(&self.0).ok()
    }

    /// Remembers; on a full disk it cannot, and the log message has to do.
    pub(super) fn write(&self, what: &str) {
        let failure = Failure {
            what: what.into(),
            time: SystemTime::now().into(),
        };
        if let Err(e) = save_toml(&self.0, &failure) {
            tracing::debug!(error = %e, "the failure cannot be noted");
        }
    }

    /// Forgets.
    pub(super) fn remove(&self) {
        match std::fs::remove_file(&self.0) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                tracing::debug!(error = %e, "the failure cannot be forgotten");
            }
            _ => {}
        }
    }
}
