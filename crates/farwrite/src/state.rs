//! The state directory of a source: where its keys, configuration, journal and indexes are.

use anyhow::{Context, bail};
use farwrite_transfer::net::tls::Identity;
use rustix::fs::{FlockOperation, flock};
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// See the module. Choosing one does not create it.
#[derive(Clone, Debug)]
pub struct State {
    dir: PathBuf,
}

/// Held by the daemon: one per state directory.
pub struct DaemonLock(#[expect(dead_code, reason = "held for its lock")] File);

impl State {
    /// The given directory, else the default.
    pub fn choose(given: Option<PathBuf>) -> anyhow::Result<State> {
        let dir = match given {
            Some(d) => std::path::absolute(d)?,
            None if rustix::process::geteuid().is_root() => "/var/lib/farwrite".into(),
            None => match (std::env::var_os("XDG_STATE_HOME"), std::env::var_os("HOME")) {
                (Some(x), _) if Path::new(&x).is_absolute() => Path::new(&x).join("farwrite"),
                (_, Some(h)) => Path::new(&h).join(".local/state/farwrite"),
                _ => bail!(
                    "neither HOME nor XDG_STATE_HOME is set: say where to keep the state with --state DIR"
                ),
            },
        };
        Ok(State { dir })
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes it, for this user only.
    pub fn create(&self) -> anyhow::Result<()> {
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir);
        made.with_context(|| format!("cannot make the state directory {}", self.dir.display()))
    }

    /// The configuration file.
    pub fn config_path(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    /// The control socket of the running daemon.
    pub fn socket_path(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    /// The journal's directory.
    pub fn journal_dir(&self) -> PathBuf {
        self.dir.join("journal")
    }

    /// The index of what was sent to one vault.
    pub fn index_path(&self, vault: &str) -> PathBuf {
        self.dir.join("index").join(format!("{vault}.db"))
    }

    /// Whether automatic backup was switched off: the file exists.
    pub fn switched_off_path(&self) -> PathBuf {
        self.dir.join("switched-off")
    }

    /// What it takes to know that recording in the kernel has never stopped.
    pub fn continuity_path(&self) -> PathBuf {
        self.dir.join("continuity.json")
    }

    /// This source's key, made at the first use.
    pub fn identity(&self) -> anyhow::Result<Identity> {
        self.create()?;
        Identity::load_or_create(&self.dir).context("this source's key")
    }

    /// Locks the directory for the daemon.
    pub fn lock(&self) -> anyhow::Result<DaemonLock> {
        self.create()?;
        let path = self.dir.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(DaemonLock(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                bail!(
                    "a daemon is already running with the state in {}",
                    self.dir.display()
                )
            }
            Err(e) => Err(e).with_context(|| path.display().to_string()),
        }
    }
}
