//! The catalog: an index over the log in SQLite. It holds nothing that the log does not: it may lag behind it,
//! be lost or be damaged, and is then replayed from it. It must never be the reason for an ack.

mod apply;
mod delta;
mod forget;
mod schema;
mod view;

pub use apply::{Applied, Violation};
pub use delta::{Content, Delta, Made, NamesNode, OnlyPlace};
pub use forget::Forget;
pub use schema::CATALOG_VERSION;
pub use view::{NodeRow, View};

use crate::segment::{BatchReader, LogError, Place};
use farwrite_core::history::Moment;
use farwrite_core::{BatchSeq, Commit, Epoch, Meta, NodeId, Timestamp};
use farwrite_sql::{Statements, Used};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A catalog that was not closed properly is checked page by page up to this size; a larger one only where
/// it is read.
const CHECK_BYTES: u64 = 256 << 20;
/// Statements kept prepared.
const STATEMENTS: usize = 64;
/// Batches applied in one transaction by [`Catalog::replay`].
const REPLAY_BATCHES: usize = 32;
/// How long a reader waits for a lock of the writer.
const BUSY: Duration = Duration::from_secs(10);

/// What went wrong with a catalog.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// SQLite's own error.
    #[error("catalog {path}: {source}")]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What it says.
        source: rusqlite::Error,
    },
    /// The log below it.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A damaged catalog could not be moved out of the way.
    #[error("cannot set aside the damaged catalog {path}: {source}")]
    SetAside {
        /// The database.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The log holds a batch that breaks the rules of a tree.
    #[error(transparent)]
    Violation(#[from] Violation),
}

/// A number kept in the catalog's `meta` table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The mirror shows this batch.
    MirrorSeq,
    /// The mirror of this batch is on the disk.
    MirrorCheckpoint,
    /// 1 while the mirror may differ from [`Mark::MirrorSeq`].
    MirrorDirty,
    /// 1 while a writer has the catalog open.
    Open,
    /// Versions of nodes recorded since the log began.
    Versions,
    /// Stands for the kept moments that the catalog is being thinned to.
    Thinning,
    /// Stands for the kept moments that it has been thinned to; 0 if never, as in a catalog made anew.
    Thinned,
}

impl Mark {
    fn key(self) -> &'static str {
        match self {
            Mark::MirrorSeq => "mirror_seq",
            Mark::MirrorCheckpoint => "mirror_checkpoint",
            Mark::MirrorDirty => "mirror_dirty",
            Mark::Open => "open",
            Mark::Versions => "versions",
            Mark::Thinning => "thinning",
            Mark::Thinned => "thinned",
        }
    }
}

/// A row of the `batches` table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchRow {
    /// Its commit.
    pub commit: Commit,
    /// Where it ends in the log.
    pub end: Place,
}

/// The catalog, open for writing. The caller holds the source's lock.
pub struct Catalog {
    conn: Connection,
    path: PathBuf,
    applied: BatchSeq,
    next_block: u64,
    /// No node of the present has a higher number than this.
    highest_node: NodeId,
    /// A damaged batch was applied: later ones may refer to what is missing.
    lenient: bool,
    set_aside: Option<PathBuf>,
    _open: Open,
}

impl Catalog {
    /// From now on this catalog caches no more than its share, which depends on how many are open.
    pub fn fit_cache(&self) -> Result<(), CatalogError> {
        share_cache(&self.conn).map_err(|e| self.fail(e))
    }

    /// Releases what is cached.
    pub fn release_cache(&self) -> Result<(), CatalogError> {
        let shrink = self.conn.execute_batch("PRAGMA shrink_memory");
        shrink.map_err(|e| self.fail(e))
    }

    /// Opens or creates the catalog at `path`. One that is damaged, of another version or not of this log (`last`
    /// is the log's last batch) is renamed to `catalog.db.damaged-N` and begun anew: [`Catalog::replay`] fills it. That it cannot be
    /// opened for another reason (disk full, no file descriptor left) is an error.
    pub fn open(path: &Path, last: Option<&Commit>) -> Result<Self, CatalogError> {
        if path.exists() {
            match Self::open_existing(path, last) {
                Ok(Some(catalog)) => return Ok(catalog),
                Ok(None) => {}
                Err(e) if is_damage(&e) => {
                    tracing::warn!(path = %path.display(), "catalog unusable: {e}");
                }
                // A full disk, say, which is no better with another catalog.
                Err(source) => {
                    let path = path.to_owned();
                    return Err(CatalogError::Sqlite { path, source });
                }
            }
            let aside = set_aside(path).map_err(|source| CatalogError::SetAside {
                path: path.to_owned(),
                source,
            })?;
            let mut catalog = Self::create(path)?;
            catalog.set_aside = Some(aside);
            return Ok(catalog);
        }
        Self::create(path)
    }

    fn create(path: &Path) -> Result<Self, CatalogError> {
        let fail = |source| CatalogError::Sqlite {
            path: path.to_owned(),
            source,
        };
        let mut conn = connect(path).map_err(fail)?;
        let root = encode_meta(&Meta::plain_dir());
        schema::create(&mut conn, &root).map_err(fail)?;
        Self::finish_open(conn, path).map_err(fail)
    }

    fn open_existing(path: &Path, last: Option<&Commit>) -> rusqlite::Result<Option<Self>> {
        let conn = connect(path)?;
        if !schema::is_current(&conn)? {
            return Ok(None);
        }
        let size = std::fs::metadata(path).map_or(0, |m| m.len());
        if size <= CHECK_BYTES && get_mark(&conn, Mark::Open)? != 0 {
            let answer: String =
                conn.query_row("PRAGMA quick_check(1)", [], |r| r.get::<_, String>(0))?;
            if answer != "ok" {
                return Ok(None);
            }
        }
        let newest = newest_batch(&conn)?;
        let fits = match (&newest, last) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(row), Some(last)) if row.commit.seq == last.seq => row.commit.chain == last.chain,
            (Some(row), Some(last)) => row.commit.seq < last.seq,
        };
        if !fits {
            return Ok(None);
        }
        Self::finish_open(conn, path).map(Some)
    }

    fn finish_open(conn: Connection, path: &Path) -> rusqlite::Result<Self> {
        conn.set_prepared_statement_cache_capacity(STATEMENTS);
        let applied = newest_batch(&conn)?.map_or(BatchSeq(0), |r| r.commit.seq);
        let last_block: Option<i64> =
            conn.query_row("SELECT max(id) FROM blocks", [], |r| r.get(0))?;
        // The upper half of all numbers is kept as negative ones.
        let ends = "SELECT min(node), max(node) FROM attrs";
        let (low, high): (i64, i64) = conn.query_row(ends, [], |r| Ok((r.get(0)?, r.get(1)?)))?;
        let highest = if low < 0 { -1 } else { high };
        let lenient = conn
            .prepare("SELECT 1 FROM batches WHERE damage IS NOT NULL LIMIT 1")?
            .exists([])?;
        // On the disk before anything is in the log that is not in here.
        conn.pragma_update(None, "synchronous", "FULL")?;
        set_mark(&conn, Mark::Open, 1)?;
        conn.pragma_update(None, "synchronous", "NORMAL")?;
        Ok(Catalog {
            conn,
            path: path.to_owned(),
            applied,
            next_block: last_block.map_or(0, |b| b as u64 + 1),
            highest_node: NodeId(highest as u64),
            lenient,
            set_aside: None,
            _open: Open::new(),
        })
    }

    /// The last batch in the catalog; 0 if none.
    pub fn applied(&self) -> BatchSeq {
        self.applied
    }

    /// Where the damaged catalog was put that this one replaces.
    pub fn set_aside(&self) -> Option<&Path> {
        self.set_aside.as_deref()
    }

    /// A reader of the log that starts behind [`Catalog::applied`].
    pub fn log_reader(&self, log_dir: &Path) -> Result<BatchReader, CatalogError> {
        let newest = newest_batch(&self.conn).map_err(|e| self.fail(e))?;
        Ok(BatchReader::open(
            log_dir,
            newest.map(|r| (r.end, r.commit)),
        )?)
    }

    /// Applies what the log holds up to `end`.
    pub fn replay(&mut self, log_dir: &Path, end: Place) -> Result<(), CatalogError> {
        self.replay_while(log_dir, end, &|| true).map(drop)
    }

    /// The same for as long as `go_on` says so; false: it has said no.
    pub fn replay_while(
        &mut self,
        log_dir: &Path,
        end: Place,
        go_on: &dyn Fn() -> bool,
    ) -> Result<bool, CatalogError> {
        let mut reader = self.log_reader(log_dir)?;
        while go_on() {
            let batches = reader.next_batches(end, REPLAY_BATCHES, usize::MAX)?;
            if batches.is_empty() {
                return Ok(true);
            }
            if let Some(v) = self.apply(&batches)?.violation {
                return Err(v.into());
            }
        }
        Ok(false)
    }

    /// Runs `f` within one read transaction, with statements at hand: many small questions then cost no file locks of their own,
    /// and nobody looks for their text.
    pub fn reading<T>(&self, f: impl FnOnce(&Reading<'_>) -> T) -> rusqlite::Result<T> {
        let transaction = self.conn.unchecked_transaction()?;
        let reading = Reading {
            statements: RefCell::new(Statements::new(&self.conn)),
            applied: self.applied,
        };
        let answer = f(&reading);
        drop(reading);
        transaction.commit()?;
        Ok(answer)
    }

    /// For questions of the vault's own.
    pub(crate) fn connection(&self) -> &Connection {
        &self.conn
    }

    /// The tree as it stood after a batch.
    pub fn view(&self, at: BatchSeq) -> View<'_> {
        View::new(&self.conn, at, self.applied)
    }

    /// A number kept beside the tables; 0 if it was never set.
    pub fn mark(&self, mark: Mark) -> Result<u64, CatalogError> {
        get_mark(&self.conn, mark)
            .map(|n| n as u64)
            .map_err(|e| self.fail(e))
    }

    /// Sets several numbers at once.
    pub fn set_marks(&mut self, marks: &[(Mark, u64)]) -> Result<(), CatalogError> {
        let path = self.path.clone();
        let fail = |source| CatalogError::Sqlite {
            path: path.clone(),
            source,
        };
        let tx = self.conn.transaction().map_err(fail)?;
        for (mark, value) in marks {
            set_mark(&tx, *mark, *value as i64).map_err(fail)?;
        }
        tx.commit().map_err(fail)
    }

    /// As [`Catalog::set_marks`], and on the disk when it returns.
    pub fn set_marks_durably(&mut self, marks: &[(Mark, u64)]) -> Result<(), CatalogError> {
        let level = |conn: &Connection, l| conn.pragma_update(None, "synchronous", l);
        level(&self.conn, "FULL").map_err(|e| self.fail(e))?;
        let done = self.set_marks(marks);
        level(&self.conn, "NORMAL").map_err(|e| self.fail(e))?;
        done
    }

    /// Marks the catalog as properly closed.
    pub fn close(mut self) -> Result<(), CatalogError> {
        self.set_marks(&[(Mark::Open, 0)])
    }

    fn fail(&self, source: rusqlite::Error) -> CatalogError {
        CatalogError::Sqlite {
            path: self.path.clone(),
            source,
        }
    }
}

/// See [`Catalog::reading`].
pub struct Reading<'c> {
    statements: Used<'c>,
    applied: BatchSeq,
}

impl Reading<'_> {
    /// As [`Catalog::view`].
    pub fn view(&self, at: BatchSeq) -> View<'_> {
        View::new(&self.statements, at, self.applied)
    }

    /// The tree as it stands after the last batch.
    pub fn latest(&self) -> View<'_> {
        self.view(self.applied)
    }
}

/// Opens for reading only, beside a writer. The database must exist.
pub fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    // Read-write in SQLite's terms, as a WAL reader needs the shared-memory file; `query_only` keeps it harmless.
    let conn = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
    .or_else(|_| {
        Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )
    })?;
    conn.busy_timeout(BUSY)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    conn.pragma_update(None, "query_only", true)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(conn)
}

/// What all catalogs that are open in a process cache together, unless they are so many that the least for each is more. (SQLite's own limit for that, `soft_heap_limit`, works with a global
/// lock at each request for memory only, and is not built in.)
const CACHE_ALL_BYTES: usize = 256 << 20;
/// What one of them caches at the most, and at the least.
const CACHE_BYTES: std::ops::RangeInclusive<usize> = 4 << 20..=64 << 20;

/// Catalogs that are open in this process.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// Counts a catalog for as long as it is there.
struct Open;

impl Open {
    fn new() -> Open {
        OPEN.fetch_add(1, Ordering::Relaxed);
        Open
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What each of so many catalogs may cache, in bytes.
fn cache_share(open: usize) -> usize {
    (CACHE_ALL_BYTES / open.max(1)).clamp(*CACHE_BYTES.start(), *CACHE_BYTES.end())
}

/// Gives a catalog its share of what may be cached.
fn share_cache(conn: &Connection) -> rusqlite::Result<()> {
    let bytes = cache_share(OPEN.load(Ordering::Relaxed));
    // Negative: in KiB (<https://www.sqlite.org/pragma.html#pragma_cache_size>).
    conn.pragma_update(None, "cache_size", -((bytes / 1024) as i64))
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let conn = Connection::open(path)?;
    conn.busy_timeout(BUSY)?;
    // Otherwise a statement is planned anew whenever other values are bound to it, which was a quarter of all work here.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    farwrite_sql::write_ahead(&conn)?;
    share_cache(&conn)?;
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    Ok(conn)
}

/// Is it the database that is wrong, and not the machine?
pub(crate) fn is_damage(e: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode as Code;
    use rusqlite::ffi::{SQLITE_IOERR_CORRUPTFS, SQLITE_IOERR_READ, SQLITE_IOERR_SHORT_READ};
    let Some(e) = e.sqlite_error() else {
        return true;
    };
    match e.code {
        // A sector that cannot be read will not be readable later.
        Code::SystemIoFailure => [
            SQLITE_IOERR_READ,
            SQLITE_IOERR_SHORT_READ,
            SQLITE_IOERR_CORRUPTFS,
        ]
        .contains(&e.extended_code),
        Code::DiskFull
        | Code::CannotOpen
        | Code::OutOfMemory
        | Code::DatabaseBusy
        | Code::DatabaseLocked
        | Code::ReadOnly
        | Code::PermissionDenied
        | Code::AuthorizationForStatementDenied
        | Code::OperationInterrupted
        | Code::FileLockingProtocolFailed
        | Code::NoLargeFileSupport => false,
        _ => true,
    }
}

/// Renames the database and its log out of the way.
fn set_aside(path: &Path) -> std::io::Result<PathBuf> {
    let beside = |suffix: &str| {
        let mut p = path.as_os_str().to_owned();
        p.push(suffix);
        PathBuf::from(p)
    };
    let aside = (1..)
        .map(|n| beside(&format!(".damaged-{n}")))
        .find(|p| !p.exists())
        .expect("numbers do not end");
    std::fs::rename(path, &aside)?;
    let mut log = aside.as_os_str().to_owned();
    log.push("-wal");
    let gone = [
        std::fs::rename(beside("-wal"), log),
        std::fs::remove_file(beside("-shm")),
    ];
    for done in gone {
        match done {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(aside)
}

fn get_mark(conn: &Connection, mark: Mark) -> rusqlite::Result<i64> {
    conn.prepare_cached("SELECT value FROM meta WHERE key=?1")?
        .query_row([mark.key()], |r| r.get(0))
        .optional()
        .map(|v| v.unwrap_or(0))
}

fn set_mark(conn: &Connection, mark: Mark, value: i64) -> rusqlite::Result<()> {
    conn.prepare_cached("INSERT OR REPLACE INTO meta VALUES(?1, ?2)")?
        .execute((mark.key(), value))
        .map(drop)
}

/// Reads a mark through any connection.
pub fn read_mark(conn: &Connection, mark: Mark) -> rusqlite::Result<u64> {
    get_mark(conn, mark).map(|v| v as u64)
}

/// Columns that [`moment_row`] reads.
pub const MOMENT_COLUMNS: &str = "seq, sec, nsec, clean";

/// Reads a row of [`MOMENT_COLUMNS`].
pub fn moment_row(r: &Row<'_>) -> rusqlite::Result<Moment> {
    Ok(Moment {
        seq: BatchSeq(r.get::<_, i64>(0)? as u64),
        time: Timestamp {
            sec: r.get(1)?,
            nsec: r.get(2)?,
        },
        clean: r.get(3)?,
    })
}

/// Columns that [`batch_row`] reads.
pub const BATCH_COLUMNS: &str =
    "seq, sec, nsec, clean, segment, end_offset, ops, blocks, epoch, next_node, chain";

/// Reads a row of [`BATCH_COLUMNS`].
pub fn batch_row(r: &Row<'_>) -> rusqlite::Result<BatchRow> {
    Ok(BatchRow {
        commit: Commit {
            seq: BatchSeq(r.get::<_, i64>(0)? as u64),
            time: Timestamp {
                sec: r.get(1)?,
                nsec: r.get(2)?,
            },
            clean: r.get(3)?,
            ops: r.get::<_, i64>(6)? as u64,
            blocks: r.get::<_, i64>(7)? as u64,
            epoch: Epoch(r.get(8)?),
            next_node: NodeId(r.get::<_, i64>(9)? as u64),
            chain: r.get(10)?,
        },
        end: Place {
            segment: r.get::<_, i64>(4)? as u64,
            offset: r.get::<_, i64>(5)? as u64,
        },
    })
}

/// The last batch in the catalog.
pub fn newest_batch(conn: &Connection) -> rusqlite::Result<Option<BatchRow>> {
    conn.query_row(
        &format!("SELECT {BATCH_COLUMNS} FROM batches ORDER BY seq DESC LIMIT 1"),
        [],
        batch_row,
    )
    .optional()
}

/// A node's attributes as the catalog keeps them.
pub(crate) fn encode_meta(meta: &Meta) -> Vec<u8> {
    postcard::to_stdvec(meta).expect("encoding into memory")
}

pub(crate) fn decode_meta(bytes: &[u8]) -> rusqlite::Result<Meta> {
    postcard::from_bytes(bytes).map_err(|e| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Blob, Box::new(e))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn catalogs_share_what_they_cache() {
        let all = |open: usize| open * cache_share(open);
        assert_eq!(cache_share(1), 64 << 20);
        assert_eq!(cache_share(8), 32 << 20);
        assert_eq!(cache_share(200), 4 << 20);
        assert!((1..=64).all(|n| all(n) <= CACHE_ALL_BYTES));
        let dir = tempfile::tempdir().unwrap();
        let open = |n: usize| Catalog::open(&dir.path().join(n.to_string()), None).unwrap();
        let cached = |c: &Catalog| {
            c.conn
                .pragma_query_value(None, "cache_size", |r| r.get::<_, i64>(0))
                .unwrap()
        };
        let first = open(0);
        let others: Vec<Catalog> = (1..32).map(open).collect();
        first.fit_cache().unwrap();
        // Other tests in this process may have some open, too.
        assert!((-8 << 10..=-4 << 10).contains(&cached(&first)));
        drop(others);
        first.fit_cache().unwrap();
        assert!(cached(&first) < -8 << 10, "{}", cached(&first));
    }

    /// Bytes that this process has read: proc_pid_io(5), `rchar`.
    fn read_bytes() -> u64 {
        let io = std::fs::read_to_string("/proc/self/io").unwrap();
        let rchar = io.lines().find_map(|l| l.strip_prefix("rchar: "));
        rchar.unwrap().parse().unwrap()
    }

    #[test]
    fn what_is_cached_is_released_and_read_again_when_it_is_asked_for() {
        const ROWS: u64 = 4000;
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(&dir.path().join("catalog.db"), None).unwrap();
        let fill = "CREATE TABLE filler(a); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000)
                    INSERT INTO filler SELECT randomblob(1000) FROM n";
        catalog.conn.execute_batch(fill).unwrap();
        let ask = || {
            let before = read_bytes();
            let sum = "SELECT sum(length(hex(a))) FROM filler";
            let sum = catalog.conn.query_row(sum, [], |r| r.get::<_, u64>(0));
            assert_eq!(sum, Ok(2000 * ROWS));
            read_bytes() - before
        };
        // Other tests in this process may read, too.
        let is_cached = || (0..20).any(|_| ask() < 1000 * ROWS / 4);
        assert!(is_cached());
        catalog.release_cache().unwrap();
        assert!(ask() >= 1000 * ROWS, "it is not");
        assert!(is_cached(), "it is again");
    }
}
