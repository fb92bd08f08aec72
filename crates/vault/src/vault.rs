//! The vault directory: its own description and those of its sources. It must never trust a file in it that
//! does not parse, and never be opened if a newer Farwrite made it.

use crate::catalog::{self, Mark};
use crate::retention::{Brake, Kept, Policy};
use crate::segment::{LogError, list_segments, segment_path};
use crate::source_vault::LastPrune;
use crate::turns::Turns;
use farwrite_core::{BatchSeq, SourceName, Timestamp};
use rusqlite::OptionalExtension;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Newest version of the vault's layout that is known.
pub const VAULT_FORMAT: u32 = 2;
/// What a new vault is made as. It becomes [`VAULT_FORMAT`] before anything is pruned for the first time: a program that
/// knows nothing of that must not read it.
const PLAIN_FORMAT: u32 = 1;
/// Most bytes of a description that are read.
const TOML_BYTES: u64 = 1 << 20;

/// What went wrong with a vault's directory.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The operating system refused.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// There is a vault already.
    #[error("{0} is a vault already")]
    Exists(PathBuf),
    /// There is no vault.
    #[error("{0} is not a vault (it has no vault.toml)")]
    Missing(PathBuf),
    /// A description that cannot be read.
    #[error("{path}: {why}")]
    Toml {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A later format.
    #[error("{path} was made by a newer Farwrite (format {format}, this one knows {VAULT_FORMAT})")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
    /// A log without what has been in it.
    #[error(
        "{0} is not all there any more (a disk that did not come up?): nothing is done before it is, or its source connects"
    )]
    Short(PathBuf),
    /// No such source.
    #[error("the vault has no source {0}")]
    NoSource(SourceName),
    /// The log of a source.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The catalog of a source.
    #[error(transparent)]
    Catalog(#[from] catalog::CatalogError),
}

impl VaultError {
    /// Does another process have open what was to be opened?
    pub fn is_busy(&self) -> bool {
        matches!(self, VaultError::Io { source, .. } if source.kind() == io::ErrorKind::WouldBlock)
    }

    pub(crate) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        VaultError::Io {
            what,
            path: path.to_owned(),
            source,
        }
    }
}

/// `vault.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultInfo {
    /// 1; 2 once something has been pruned.
    pub format: u32,
    /// Random, 32 hexadecimal digits: tells two vaults apart wherever they are mounted.
    pub id: String,
    /// When it was made.
    pub created: Timestamp,
    /// Do its sources have mirrors?
    pub mirror: bool,
}

/// `sources/NAME/source.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceInfo {
    /// The source's name.
    pub name: SourceName,
    /// Its key's fingerprint, in whatever form the transfer gives it.
    pub fingerprint: String,
    /// When it was paired.
    pub created: Timestamp,
}

/// All at once would be a fifth faster, but then some of 200 sources are acked nothing until others are done.
pub(crate) const SYNCS_AT_ONCE: usize = 16;

/// A vault's directory.
#[derive(Clone, Debug)]
pub struct Vault {
    dir: PathBuf,
    info: VaultInfo,
    /// Of all that are opened through this value and its clones.
    turns: Arc<VaultTurns>,
}

/// What the sources of a vault do by turns.
#[derive(Debug)]
pub(crate) struct VaultTurns {
    /// Bringing catalog and mirror forward: as many at once as there are processors.
    pub(crate) apply: Turns,
    /// Putting much of a log on the disk.
    pub(crate) sync: Turns,
}

impl Default for VaultTurns {
    fn default() -> Self {
        VaultTurns {
            apply: Turns::one_for_each_processor(),
            sync: Turns::new(SYNCS_AT_ONCE),
        }
    }
}

/// How a source stands; readable while it is being written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Its name.
    pub name: SourceName,
    /// Its mirror, if the vault keeps mirrors.
    pub mirror_path: Option<PathBuf>,
    /// Last batch in the catalog (the log may be a moment ahead); 0 if none.
    pub last_seq: BatchSeq,
    /// Its time at the source.
    pub last_time: Option<Timestamp>,
    /// The tree at that batch is exactly the source's.
    pub clean: bool,
    /// Batches in the log.
    pub batches: u64,
    /// Versions of files, directories and special files recorded since the log began: each change of a node's
    /// attributes or content counts once per batch.
    pub versions: u64,
    /// Bytes of all segments.
    pub log_bytes: u64,
    /// The batch that the mirror shows.
    pub mirror_seq: BatchSeq,
    /// Batches of which something is known to be damaged.
    pub damaged: u64,
    /// Bytes that the segments take on the disk: less than [`SourceStatus::log_bytes`] once something was pruned.
    pub disk_bytes: u64,
    /// Moments that can be asked for.
    pub moments: u64,
    /// The oldest of them.
    pub oldest: Option<Timestamp>,
    /// The ransomware brake, if it is set.
    pub brake: Option<Brake>,
    /// The last prune.
    pub pruned: Option<LastPrune>,
}

impl Vault {
    /// Makes a vault in `dir`, which may exist if it is empty of one.
    pub fn init(dir: &Path, mirror: bool, now: Timestamp) -> Result<Self, VaultError> {
        if dir.join("vault.toml").exists() {
            return Err(VaultError::Exists(dir.to_owned()));
        }
        let sources = dir.join("sources");
        crate::mirror::make_private_dir(&sources)
            .map_err(|e| VaultError::io("make", &sources, e))?;
        let mut id = [0u8; 16];
        getrandom::fill(&mut id)
            .map_err(|e| VaultError::io("draw an id for", dir, io::Error::other(e.to_string())))?;
        let info = VaultInfo {
            format: PLAIN_FORMAT,
            id: id.iter().map(|b| format!("{b:02x}")).collect(),
            created: now,
            mirror,
        };
        save_toml(&dir.join("vault.toml"), &info)?;
        Ok(Vault {
            dir: dir.to_owned(),
            info,
            turns: Arc::default(),
        })
    }

    /// Opens a vault.
    pub fn open(dir: &Path) -> Result<Self, VaultError> {
        /// The one line that every format has.
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let path = dir.join("vault.toml");
        let Format { format } = match load_toml(&path) {
            Err(VaultError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(VaultError::Missing(dir.to_owned()));
            }
            other => other?,
        };
        if format > VAULT_FORMAT {
            return Err(VaultError::Newer { path, format });
        }
        Ok(Vault {
            dir: dir.to_owned(),
            info: load_toml(&path)?,
            turns: Arc::default(),
        })
    }

    /// Whose turn it is.
    pub(crate) fn turns(&self) -> Arc<VaultTurns> {
        self.turns.clone()
    }

    /// Keeps programs away that know nothing of pruning.
    pub(crate) fn note_pruning(&self) -> Result<(), VaultError> {
        let path = self.dir.join("vault.toml");
        let info: VaultInfo = load_toml(&path)?;
        if info.format >= VAULT_FORMAT {
            return Ok(());
        }
        let format = VAULT_FORMAT;
        save_toml(&path, &VaultInfo { format, ..info })
    }

    /// A source's policy, and whether it is its own rather than the vault's.
    pub fn policy(&self, name: &SourceName) -> Result<(Policy, bool), VaultError> {
        if let Some(own) = Policy::load(&self.source_dir(name))? {
            return Ok((own, true));
        }
        Ok((Policy::load(&self.dir)?.unwrap_or_default(), false))
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its description.
    pub fn info(&self) -> &VaultInfo {
        &self.info
    }

    /// Where a source's files are, existing or not.
    pub fn source_dir(&self, name: &SourceName) -> PathBuf {
        self.dir.join("sources").join(name.as_str())
    }

    /// All sources that have a description, by name.
    pub fn sources(&self) -> Result<Vec<SourceInfo>, VaultError> {
        let dir = self.dir.join("sources");
        let fail = |e| VaultError::io("list", &dir, e);
        let mut list = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(fail)? {
            let name = entry.map_err(fail)?.file_name();
            let name = name.to_str().and_then(|n| SourceName::new(n).ok());
            if let Some(name) = name
                && let Some(info) = self.source(&name)?
            {
                list.push(info);
            }
        }
        list.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(list)
    }

    /// A source's description; `None` if there is none.
    pub fn source(&self, name: &SourceName) -> Result<Option<SourceInfo>, VaultError> {
        match load_toml(&self.source_dir(name).join("source.toml")) {
            Err(VaultError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    /// Writes a source's description, making its directory.
    pub fn save_source(&self, info: &SourceInfo) -> Result<(), VaultError> {
        let dir = self.source_dir(&info.name);
        crate::mirror::make_private_dir(&dir).map_err(|e| VaultError::io("make", &dir, e))?;
        save_toml(&dir.join("source.toml"), info)
    }

    /// How a source stands.
    pub fn status(&self, name: &SourceName) -> Result<SourceStatus, VaultError> {
        let dir = self.source_dir(name);
        if !dir.is_dir() {
            return Err(VaultError::NoSource(name.clone()));
        }
        let log = dir.join("log");
        let (mut log_bytes, mut disk_bytes) = (0, 0);
        if log.is_dir() {
            for segment in list_segments(&log)? {
                if let Ok(m) = std::fs::metadata(segment_path(&log, segment)) {
                    log_bytes += m.len();
                    disk_bytes += m.blocks() * 512;
                }
            }
        }
        let mut status = SourceStatus {
            name: name.clone(),
            mirror_path: self.info.mirror.then(|| dir.join("mirror")),
            last_seq: BatchSeq(0),
            last_time: None,
            clean: false,
            batches: 0,
            versions: 0,
            log_bytes,
            mirror_seq: BatchSeq(0),
            damaged: 0,
            disk_bytes,
            moments: 0,
            oldest: None,
            brake: Brake::load(&dir),
            pruned: LastPrune::load(&dir),
        };
        let kept = Kept::load(&dir)?;
        let path = dir.join("catalog.db");
        if path.exists() {
            read_catalog(&path, &kept, &mut status).map_err(|source| {
                catalog::CatalogError::Sqlite {
                    path: path.clone(),
                    source,
                }
            })?;
        }
        Ok(status)
    }
}

fn read_catalog(path: &Path, kept: &Kept, status: &mut SourceStatus) -> rusqlite::Result<()> {
    let conn = catalog::open_reader(path)?;
    if let Some(newest) = catalog::newest_batch(&conn)? {
        status.last_seq = newest.commit.seq;
        status.last_time = Some(newest.commit.time);
        status.clean = newest.commit.clean;
    }
    let counts = "SELECT count(*), count(damage) FROM batches";
    let (batches, damaged): (i64, i64) =
        conn.query_row(counts, [], |r| Ok((r.get(0)?, r.get(1)?)))?;
    (status.batches, status.damaged) = (batches as u64, damaged as u64);
    let since = (status.last_seq.0 + 1).saturating_sub(kept.horizon.0.max(1));
    status.moments = kept.before.len() as u64 + since;
    let sql = "SELECT sec, nsec FROM batches WHERE seq=?1";
    status.oldest = conn
        .query_row(sql, [kept.first().0 as i64], |r| {
            Ok(Timestamp {
                sec: r.get(0)?,
                nsec: r.get(1)?,
            })
        })
        .optional()?;
    status.versions = catalog::read_mark(&conn, Mark::Versions)?;
    status.mirror_seq = BatchSeq(catalog::read_mark(&conn, Mark::MirrorSeq)?);
    Ok(())
}

/// Reads a small TOML file.
pub fn load_toml<T: DeserializeOwned>(path: &Path) -> Result<T, VaultError> {
    use io::Read;
    let fail = |e| VaultError::io("read", path, e);
    let mut text = String::new();
    File::open(path)
        .map_err(fail)?
        .take(TOML_BYTES)
        .read_to_string(&mut text)
        .map_err(fail)?;
    toml::from_str(&text).map_err(|e| VaultError::Toml {
        path: path.to_owned(),
        why: e.to_string(),
    })
}

/// Writes a small TOML file so that a crash leaves the old or the new one.
pub fn save_toml<T: Serialize>(path: &Path, value: &T) -> Result<(), VaultError> {
    let text = toml::to_string(value).map_err(|e| VaultError::Toml {
        path: path.to_owned(),
        why: e.to_string(),
    })?;
    replace_file(path, text.as_bytes())
}

/// Writes a small file so that a crash leaves the old or the new one; on the disk when it returns.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), VaultError> {
    let fail = |e| VaultError::io("write", path, e);
    let mut temp = path.as_os_str().to_owned();
    temp.push(".new");
    let temp = PathBuf::from(temp);
    let mut file = File::create(&temp).map_err(fail)?;
    file.write_all(bytes).map_err(fail)?;
    file.sync_all().map_err(fail)?;
    std::fs::rename(&temp, path).map_err(fail)?;
    let dir = path.parent().expect("a file is in a directory");
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(|e| VaultError::io("sync", dir, e))
}
