//! Statements kept at hand for a transaction: for some that are run for every operation, finding them by their text in the
//! connection's cache, and putting them back, takes a tenth of the time.

use rusqlite::{CachedStatement, Connection, Result};

/// The statements of a transaction that have been used in it.
pub(super) struct Statements<'c> {
    conn: &'c Connection,
    /// By the place of their text: each is written down once.
    used: Vec<(*const str, CachedStatement<'c>)>,
}

impl<'c> Statements<'c> {
    pub fn new(conn: &'c Connection) -> Self {
        let used = Vec::new();
        Statements { conn, used }
    }

    /// A statement, prepared.
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
