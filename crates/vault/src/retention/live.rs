//! Which blocks anything that is kept still needs. A block that nothing needs at one moment of the catalog is never needed
//! again: `Write` names blocks of its own batch only, and `Copy` takes them from a file of the present.

use super::kept::Kept;
use rusqlite::Connection;

/// Rows between two looks at whether to go on.
const LOOK_ROWS: u64 = 20_000;

/// One bit per block of the log.
pub(super) struct Live {
    bits: Vec<u64>,
    blocks: u64,
}

impl Live {
    /// Of everything in the catalog that belongs to the present or to a kept moment. `None` if it was told to stop.
    pub(super) fn scan(
        conn: &Connection,
        kept: &Kept,
        keep_going: &dyn Fn() -> bool,
    ) -> rusqlite::Result<Option<Live>> {
        let last: Option<i64> = conn.query_row("SELECT max(id) FROM blocks", [], |r| r.get(0))?;
        let blocks = last.map_or(0, |b| b as u64 + 1);
        let mut live = Live {
            bits: vec![0; (blocks as usize).div_ceil(64)],
            blocks,
        };
        let mut rows_read = 0;
        let mut present = conn.prepare("SELECT block FROM extents")?;
        let mut rows = present.query([])?;
        while let Some(row) = rows.next()? {
            live.set(row.get::<_, i64>(0)? as u64);
            rows_read += 1;
            if rows_read % LOOK_ROWS == 0 && !keep_going() {
                return Ok(None);
            }
        }
        let mut past = conn.prepare("SELECT block, from_seq, to_seq FROM extents_old")?;
        let mut rows = past.query([])?;
        while let Some(row) = rows.next()? {
            if kept.needs(row.get(1)?, row.get(2)?) {
                live.set(row.get::<_, i64>(0)? as u64);
            }
            rows_read += 1;
            if rows_read % LOOK_ROWS == 0 && !keep_going() {
                return Ok(None);
            }
        }
        Ok(Some(live))
    }

    fn set(&mut self, block: u64) {
        if let Some(word) = self.bits.get_mut((block / 64) as usize) {
            *word |= 1 << (block % 64);
        }
    }

    /// Is the block needed? One that was not there at the scan is.
    pub(super) fn contains(&self, block: u64) -> bool {
        block >= self.blocks || self.bits[(block / 64) as usize] & (1 << (block % 64)) != 0
    }
}
