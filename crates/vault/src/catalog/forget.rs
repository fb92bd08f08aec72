//! Takes rows out of the past. What may go is decided elsewhere; nothing here touches what is valid now.

use super::{Catalog, CatalogError, Mark};

/// Rows to be taken out, by their keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forget {
    /// `names_old`: directory, name, end.
    Names(Vec<(i64, Vec<u8>, i64)>),
    /// `attrs_old`: node, end.
    Attrs(Vec<(i64, i64)>),
    /// `extents_old`: node, end, offset.
    Extents(Vec<(i64, i64, i64)>),
    /// `blocks`: id. Their numbers stay used.
    Blocks(Vec<i64>),
    /// No rows: sets a number, and puts the catalog as it is on the disk.
    Note(Mark, u64),
}

impl Catalog {
    /// Takes rows out, in one transaction. Those that are not there are no error.
    pub fn forget(&mut self, what: &Forget) -> Result<(), CatalogError> {
        if let Forget::Note(mark, value) = what {
            return self.set_marks_durably(&[(*mark, *value)]);
        }
        let path = self.path.clone();
        let fail = |source| CatalogError::Sqlite {
            path: path.clone(),
            source,
        };
        let tx = self.conn.transaction().map_err(fail)?;
        let done = delete(&tx, what);
        done.and_then(|()| tx.commit()).map_err(fail)
    }
}

fn delete(tx: &rusqlite::Transaction<'_>, what: &Forget) -> rusqlite::Result<()> {
    match what {
        Forget::Names(keys) => {
            let mut sql = tx.prepare_cached(
                "DELETE FROM names_old WHERE parent=?1 AND name=?2 AND to_seq=?3",
            )?;
            keys.iter()
                .try_for_each(|(p, n, to)| sql.execute((p, n, to)).map(drop))
        }
        Forget::Attrs(keys) => {
            let mut sql = tx.prepare_cached("DELETE FROM attrs_old WHERE node=?1 AND to_seq=?2")?;
            keys.iter().try_for_each(|k| sql.execute(*k).map(drop))
        }
        Forget::Extents(keys) => {
            let mut sql = tx.prepare_cached(
                "DELETE FROM extents_old WHERE node=?1 AND to_seq=?2 AND offset=?3",
            )?;
            keys.iter().try_for_each(|k| sql.execute(*k).map(drop))
        }
        Forget::Blocks(ids) => {
            // The last block's row stays, whatever it is: it says which numbers are used.
            let mut sql = tx.prepare_cached(
                "DELETE FROM blocks WHERE id=?1 AND id<(SELECT max(id) FROM blocks)",
            )?;
            ids.iter().try_for_each(|id| sql.execute([id]).map(drop))
        }
        Forget::Note(..) => Ok(()),
    }
}
