//! Marks: names for moments, which are kept as long as the mark is. A source may set one and never take one away; that
//! is for whoever has the vault.

use super::kept::Kept;
use crate::catalog::{self, BATCH_COLUMNS, BatchRow, batch_row};
use crate::vault::{VaultError, load_toml, save_toml};
use farwrite_core::history::{Mark, Moment};
use farwrite_core::{BatchSeq, Timestamp};
use rusqlite::OptionalExtension;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Most marks of one source.
pub const MARKS_MAX: usize = 1000;
/// Most of them that the source itself may set.
const MARKS_BY_SOURCE: usize = 500;
/// Most bytes of a mark's name.
pub const MARK_NAME_BYTES: usize = 64;

/// A source's marks, in the order in which they were set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// All.
    #[serde(default, rename = "mark")]
    pub list: Vec<Mark>,
}

/// Why a mark was not set or taken away.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// Not a name.
    #[error("a mark's name is 1 to {MARK_NAME_BYTES} letters, digits, '.', '_' or '-': got {0:?}")]
    Name(String),
    /// Taken.
    #[error("there is a mark {0} already")]
    Exists(String),
    /// Unknown.
    #[error("there is no mark {0}")]
    Missing(String),
    /// Too many.
    #[error("there are {0} marks already, which is the most: take some away at the vault")]
    TooMany(usize),
    /// Nothing is left of that time.
    #[error("nothing of that time is kept")]
    NoMoment,
    /// The vault's files.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The catalog.
    #[error("catalog: {0}")]
    Sqlite(#[from] rusqlite::Error),
}

/// Is this a mark's name?
pub fn check_mark_name(name: &str) -> Result<(), MarkError> {
    let ok = (1..=MARK_NAME_BYTES).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    ok.then_some(()).ok_or_else(|| MarkError::Name(name.into()))
}

impl Marks {
    /// Those of the source in this directory.
    pub fn load(source_dir: &Path) -> Result<Self, VaultError> {
        match load_toml(&path(source_dir)) {
            Err(VaultError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Ok(Marks::default())
            }
            other => other,
        }
    }

    /// The batches that they keep.
    pub fn seqs(&self) -> Vec<BatchSeq> {
        self.list.iter().map(|m| m.moment.seq).collect()
    }

    /// One by its name.
    pub fn get(&self, name: &str) -> Option<&Mark> {
        self.list.iter().find(|m| m.name == name)
    }

    /// Marks the last kept moment at or before `at` (`None`: the last there is), durably.
    pub fn set(
        source_dir: &Path,
        name: &str,
        at: Option<Timestamp>,
        by: &str,
        now: Timestamp,
    ) -> Result<Mark, MarkError> {
        check_mark_name(name)?;
        let lock = MarksLock::take(source_dir)?;
        let moment = moment_at(source_dir, at)?.ok_or(MarkError::NoMoment)?;
        lock.add(Mark {
            name: name.into(),
            moment,
            created: now,
            by: by.into(),
        })
    }

    /// Takes a mark away; its moment is then kept as long as any other.
    pub fn remove(source_dir: &Path, name: &str) -> Result<Mark, MarkError> {
        let lock = MarksLock::take(source_dir)?;
        let mut marks = lock.marks()?;
        let at = marks.list.iter().position(|m| m.name == name);
        let removed = marks
            .list
            .remove(at.ok_or_else(|| MarkError::Missing(name.into()))?);
        save_toml(&path(source_dir), &marks)?;
        Ok(removed)
    }
}

fn path(source_dir: &Path) -> PathBuf {
    source_dir.join("marks.toml")
}

/// The last kept moment at or before a time.
fn moment_at(source_dir: &Path, at: Option<Timestamp>) -> Result<Option<Moment>, MarkError> {
    let db = source_dir.join("catalog.db");
    if !db.exists() {
        return Ok(None);
    }
    let conn = catalog::open_reader(&db)?;
    let kept = Kept::load(source_dir)?;
    let found = match at {
        None => catalog::newest_batch(&conn)?,
        Some(t) => conn
            .query_row(
                &format!(
                    "SELECT {BATCH_COLUMNS} FROM batches WHERE (sec, nsec) <= (?1, ?2) ORDER BY seq DESC LIMIT 1"
                ),
                (t.sec, t.nsec),
                batch_row,
            )
            .optional()?,
    };
    let Some(seq) = found.and_then(|r| kept.at_or_before(r.commit.seq)) else {
        return Ok(None);
    };
    let sql = format!("SELECT {BATCH_COLUMNS} FROM batches WHERE seq=?1");
    let row: Option<BatchRow> = conn.query_row(&sql, [seq.0 as i64], batch_row).optional()?;
    Ok(row.map(|r| Moment {
        seq,
        time: r.commit.time,
        clean: r.commit.clean,
    }))
}

/// While it is held, no mark comes or goes, and nothing is decided about what is kept.
pub(crate) struct MarksLock {
    dir: PathBuf,
    _file: File,
}

impl MarksLock {
    pub(crate) fn take(source_dir: &Path) -> Result<Self, VaultError> {
        let path = source_dir.join("marks.lock");
        let fail = |e| VaultError::io("lock", &path, e);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(fail)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|e| fail(e.into()))?;
        Ok(MarksLock {
            dir: source_dir.to_owned(),
            _file: file,
        })
    }

    pub(crate) fn marks(&self) -> Result<Marks, VaultError> {
        Marks::load(&self.dir)
    }

    /// Adds one; a name is never given to another moment.
    pub(crate) fn add(&self, mark: Mark) -> Result<Mark, MarkError> {
        let mut marks = self.marks()?;
        if marks.get(&mark.name).is_some() {
            return Err(MarkError::Exists(mark.name));
        }
        let by_source = marks.list.iter().filter(|m| m.by == "source").count();
        if mark.by == "source" && by_source >= MARKS_BY_SOURCE {
            return Err(MarkError::TooMany(by_source));
        }
        if marks.list.len() >= MARKS_MAX {
            return Err(MarkError::TooMany(MARKS_MAX));
        }
        marks.list.push(mark.clone());
        save_toml(&path(&self.dir), &marks)?;
        Ok(mark)
    }
}
