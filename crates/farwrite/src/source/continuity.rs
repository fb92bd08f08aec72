//! What a daemon leaves behind for the next one to know that the kernel has gone on recording all the time, for the same
//! directories and vaults: then nothing has to be compared at its start. Must never say so if it is not certain.

use crate::config::Config;
use farwrite_capture::Continuity;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// The file and what has to be in it.
#[derive(Clone)]
pub struct Record {
    path: PathBuf,
    protects: String,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    /// Directories, what is left out of them, and vaults: another set has to be compared.
    protects: String,
    recording: Continuity,
}

impl Record {
    /// Of this configuration, at this path. Reads nothing yet.
    pub fn open(path: PathBuf, config: &Config) -> Record {
        let vaults: Vec<_> = config
            .vaults
            .iter()
            .map(|v| (&v.name, &v.source, &v.directories))
            .collect();
        let protects = serde_json::to_string(&(&config.directories, vaults));
        Record {
            path,
            protects: protects.expect("plain data"),
        }
    }

    /// Has this recording gone on since [`Record::keep`], for all that is protected?
    pub fn goes_on(&self, now: Option<&Continuity>) -> bool {
        let stored = fs::read(&self.path).ok();
        let stored = stored.and_then(|b| serde_json::from_slice::<Stored>(&b).ok());
        let (Some(stored), Some(now)) = (stored, now) else {
            return false;
        };
        let then = &stored.recording;
        stored.protects == self.protects
            && (then.sensor, then.instance, then.epoch) == (now.sensor, now.instance, now.epoch)
            && now
                .roots
                .iter()
                .all(|(id, whole)| *whole && then.roots.iter().any(|(known, _)| known == id))
    }

    /// From here on all that happens is recorded, and what was before has been queued. Kept over the end of the process, not
    /// over that of the machine, which ends the recording, too.
    pub fn keep(&self, recording: Option<Continuity>) {
        let Some(recording) = recording else {
            return self.forget();
        };
        let stored = Stored {
            protects: self.protects.clone(),
            recording,
        };
        if let Err(e) = self.write(&stored) {
            tracing::warn!(path = %self.path.display(), error = %e, "the next start will compare everything");
            self.forget();
        }
    }

    fn write(&self, stored: &Stored) -> io::Result<()> {
        let new = self.path.with_extension("new");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&serde_json::to_vec(stored)?)?;
        drop(file);
        fs::rename(&new, &self.path)
    }

    /// Recording has stopped, or messages may be missing: the next start compares everything.
    pub fn forget(&self) {
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                // Overwritten, it says the same.
                tracing::warn!(path = %self.path.display(), error = %e, "cannot be removed");
                let _ = fs::write(&self.path, "");
            }
            _ => {}
        }
    }
}
