//! What both ends ask of SQLite alike: how it writes, and statements that are kept at hand. A connection has a cache of
//! those, too, but there each is looked for by its text and put back after use: a tenth of the time of the short ones,
//! which are run for every file.

use rusqlite::{CachedStatement, Connection, Result};
use std::cell::RefCell;

/// Pages in the write-ahead log (32 MiB) after which what was committed is put into the database. A page that was changed
/// again and again meanwhile is written there once, and each time both files are synced, while whoever writes waits.
const WAL_PAGES: i64 = 8192;
/// What is left of a longer log afterwards.
const WAL_BYTES: i64 = WAL_PAGES * 4096;

/// Has a database written ahead, without a sync at each commit: after a loss of power the last ones may be missing, but none of
/// those before (<https://www.sqlite.org/pragma.html#pragma_synchronous>).
pub fn write_ahead(conn: &Connection) -> Result<()> {
    conn.pragma_update_and_check(None, "journal_mode", "WAL", |r| r.get::<_, String>(0))?;
    conn.pragma_update(None, "synchronous", "NORMAL")?;
    let set = |name: &str, value: i64| {
        conn.pragma_update_and_check(None, name, value, |r| r.get::<_, i64>(0))
    };
    set("wal_autocheckpoint", WAL_PAGES)?;
    set("journal_size_limit", WAL_BYTES)?;
    Ok(())
}

/// The statements of a connection that have been asked for, as long as it is borrowed.
pub struct Statements<'c> {
    conn: &'c Connection,
    /// By the place of their text, which is one for each place in the program that asks.
    used: Vec<(*const str, CachedStatement<'c>)>,
}

impl<'c> Statements<'c> {
    /// None so far.
    pub fn new(conn: &'c Connection) -> Self {
        let used = Vec::new();
        Statements { conn, used }
    }

    /// A statement, prepared. Fails if SQLite does not understand it.
    pub fn get(&mut self, sql: &'static str) -> Result<&mut CachedStatement<'c>> {
        let key = std::ptr::from_ref(sql);
        let at = match self.used.iter().position(|(k, _)| std::ptr::eq(*k, key)) {
            Some(at) => at,
            None => {
                self.used.push((key, self.conn.prepare_cached(sql)?));
                self.used.len() - 1
            }
        };
        Ok(&mut self.used[at].1)
    }
}

/// Who runs a statement. It must not be asked for another while it does.
pub trait Ask {
    /// Gives the statement to `run`, once. Fails if SQLite does not understand it.
    fn run(
        &self,
        sql: &'static str,
        run: &mut dyn FnMut(&mut CachedStatement<'_>) -> Result<()>,
    ) -> Result<()>;
}

/// With the connection's own cache: for a few of them.
impl Ask for Connection {
    fn run(
        &self,
        sql: &'static str,
        run: &mut dyn FnMut(&mut CachedStatement<'_>) -> Result<()>,
    ) -> Result<()> {
        run(&mut self.prepare_cached(sql)?)
    }
}

/// Statements that several ask for.
pub type Used<'c> = RefCell<Statements<'c>>;

impl Ask for Used<'_> {
    fn run(
        &self,
        sql: &'static str,
        run: &mut dyn FnMut(&mut CachedStatement<'_>) -> Result<()>,
    ) -> Result<()> {
        run(self.borrow_mut().get(sql)?)
    }
}

/// What `f` gets from a statement.
pub fn ask<T>(
    who: &dyn Ask,
    sql: &'static str,
    f: impl FnOnce(&mut CachedStatement<'_>) -> Result<T>,
) -> Result<T> {
    let (mut f, mut answer) = (Some(f), None);
    who.run(sql, &mut |statement| {
        let f = f.take().expect("run once");
        answer = Some(f(statement)?);
        Ok(())
    })?;
    Ok(answer.expect("it was run"))
}

self_cell::self_cell!(
    struct Cell {
        owner: Connection,
        #[not_covariant]
        dependent: Used,
    }
);

/// A connection with statements at hand.
pub struct Database(Cell);

impl Database {
    /// Keeps those of this connection.
    pub fn new(conn: Connection) -> Database {
        Database(Cell::new(conn, |conn| RefCell::new(Statements::new(conn))))
    }

    /// The connection itself.
    pub fn conn(&self) -> &Connection {
        self.0.borrow_owner()
    }

    /// What `ask` gets from a statement; it must not ask for another meanwhile.
    pub fn with<T>(
        &self,
        sql: &'static str,
        ask: impl FnOnce(&mut CachedStatement<'_>) -> Result<T>,
    ) -> Result<T> {
        self.0
            .with_dependent(|_, statements| ask(statements.borrow_mut().get(sql)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_not_left_long() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let db = Connection::open(&path).unwrap();
        write_ahead(&db).unwrap();
        db.execute_batch("CREATE TABLE t(a)").unwrap();
        let log = || std::fs::metadata(dir.path().join("db-wal")).unwrap().len();
        db.execute("INSERT INTO t VALUES (randomblob(?1))", [3 * WAL_BYTES])
            .unwrap();
        assert!(log() as i64 > 3 * WAL_BYTES);
        // The commit before had all of it put into the database; now it begins anew.
        db.execute("DELETE FROM t", []).unwrap();
        assert!(log() as i64 <= WAL_BYTES);
    }

    #[test]
    fn a_statement_is_prepared_once_and_run_anew_each_time() {
        let db = Database::new(Connection::open_in_memory().unwrap());
        db.conn().execute_batch("CREATE TABLE t(a)").unwrap();
        let put = |a: i64| db.with("INSERT INTO t VALUES (?1)", |s| s.execute([a]));
        let sum = || {
            db.with("SELECT sum(a) FROM t", |s| {
                s.query_row([], |r| r.get::<_, i64>(0))
            })
        };
        for a in 1..=10 {
            assert_eq!(put(a), Ok(1));
        }
        assert_eq!(sum(), Ok(55));
        // One that fails can be used again.
        let one = |a: i64| {
            db.with("SELECT a FROM t WHERE a = ?1", |s| {
                s.query_row([a], |r| r.get::<_, i64>(0))
            })
        };
        assert_eq!(one(11), Err(rusqlite::Error::QueryReturnedNoRows));
        assert_eq!(one(7), Ok(7));
        assert_eq!(sum(), Ok(55));
        // Also after the table has become another one.
        db.conn()
            .execute_batch("ALTER TABLE t ADD COLUMN b; DELETE FROM t WHERE a > 5")
            .unwrap();
        assert_eq!((put(1).is_err(), sum()), (true, Ok(15)));
        let mut statements = Statements::new(db.conn());
        let first: *const _ = statements.get("SELECT count(*) FROM t").unwrap();
        assert!(std::ptr::eq(
            first,
            statements.get("SELECT count(*) FROM t").unwrap()
        ));
        assert!(
            db.with("SELECT nothing FROM t", |s| s.query_row([], |_| Ok(())))
                .is_err()
        );
    }
}
