//! The tree as it stood after one batch. Every question the mirror and the history have about names,
//! attributes and extents is asked here; nothing here changes a row.

use super::decode_meta;
use crate::segment::Place;
use farwrite_core::history::BlockExtent;
use farwrite_core::record::HEADER_BYTES;
use farwrite_core::{BatchSeq, Meta, Name, NodeId};
use farwrite_sql::Ask;
use rusqlite::{CachedStatement, OptionalExtension, Row};

/// A node at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    /// Its attributes.
    pub meta: Meta,
    /// Batch of its last change of any kind.
    pub changed: BatchSeq,
    /// Batch of its last change of content.
    pub content: BatchSeq,
}

/// See the module.
#[derive(Clone, Copy)]
pub struct View<'a> {
    ask: &'a dyn Ask,
    at: i64,
    /// The past tables need not be looked at.
    latest: bool,
}

type Result<T> = rusqlite::Result<T>;

impl<'a> View<'a> {
    /// The tree after `at`; `applied` is the last batch that the catalog holds.
    pub fn new(ask: &'a dyn Ask, at: BatchSeq, applied: BatchSeq) -> Self {
        View {
            ask,
            at: at.0.min(i64::MAX as u64) as i64,
            latest: at >= applied,
        }
    }

    fn with<T>(
        &self,
        sql: &'static str,
        f: impl FnOnce(&mut CachedStatement<'_>) -> Result<T>,
    ) -> Result<T> {
        farwrite_sql::ask(self.ask, sql, f)
    }

    /// Which moment it shows.
    pub fn at(&self) -> BatchSeq {
        BatchSeq(self.at as u64)
    }

    /// A node's attributes; `None` if it did not exist.
    pub fn node(&self, node: NodeId) -> Result<Option<NodeRow>> {
        let now = self.with(
            "SELECT from_seq, content_seq, meta FROM attrs WHERE node=?1 AND from_seq<=?2",
            |s| s.query_row((node.0 as i64, self.at), node_row).optional(),
        )?;
        if now.is_some() || self.latest {
            return Ok(now);
        }
        self.with(
            "SELECT from_seq, content_seq, meta FROM attrs_old
             WHERE node=?1 AND to_seq>?2 AND from_seq<=?2 ORDER BY to_seq LIMIT 1",
            |s| s.query_row((node.0 as i64, self.at), node_row).optional(),
        )
    }

    /// What a name in a directory is.
    pub fn lookup(&self, parent: NodeId, name: &Name) -> Result<Option<NodeId>> {
        let key = (parent.0 as i64, name.as_bytes(), self.at);
        let now = self.with(
            "SELECT node FROM names WHERE parent=?1 AND name=?2 AND from_seq<=?3",
            |s| s.query_row(key, |r| node_id(r, 0)).optional(),
        )?;
        if now.is_some() || self.latest {
            return Ok(now);
        }
        self.with(
            "SELECT node FROM names_old WHERE parent=?1 AND name=?2 AND to_seq>?3 AND from_seq<=?3
             ORDER BY to_seq LIMIT 1",
            |s| s.query_row(key, |r| node_id(r, 0)).optional(),
        )
    }

    /// Up to `limit` entries of a directory in byte order, behind `after`.
    pub fn list(
        &self,
        parent: NodeId,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Vec<(Name, NodeId)>> {
        // Every name is greater than the empty string.
        let after = after.map_or(&b""[..], Name::as_bytes);
        let key = (parent.0 as i64, after, self.at, limit as i64);
        let entry = |r: &Row<'_>| Ok((name_at(r, 0)?, node_id(r, 1)?));
        if self.latest {
            return self.with(
                "SELECT name, node FROM names WHERE parent=?1 AND name>?2 AND from_seq<=?3
                     ORDER BY name LIMIT ?4",
                |s| s.query_map(key, entry)?.collect(),
            );
        }
        self.with("SELECT name, node FROM names WHERE parent=?1 AND name>?2 AND from_seq<=?3
                 UNION ALL
                 SELECT name, node FROM names_old WHERE parent=?1 AND to_seq>?3 AND name>?2 AND from_seq<=?3
                 ORDER BY 1 LIMIT ?4", |s| s.query_map(key, entry)?.collect())
    }

    /// Up to `limit` of a node's names, with their directories.
    pub fn names_of(&self, node: NodeId, limit: usize) -> Result<Vec<(NodeId, Name)>> {
        let key = (node.0 as i64, self.at, limit as i64);
        let entry = |r: &Row<'_>| Ok((node_id(r, 0)?, name_at(r, 1)?));
        let sql = if self.latest {
            "SELECT parent, name FROM names WHERE node=?1 AND from_seq<=?2 LIMIT ?3"
        } else {
            "SELECT parent, name FROM names WHERE node=?1 AND from_seq<=?2
             UNION ALL
             SELECT parent, name FROM names_old WHERE node=?1 AND to_seq>?2 AND from_seq<=?2 LIMIT ?3"
        };
        self.with(sql, |s| s.query_map(key, entry)?.collect())
    }

    /// How many names a node has.
    pub fn links(&self, node: NodeId) -> Result<u32> {
        let key = (node.0 as i64, self.at);
        let sql = if self.latest {
            "SELECT count(*) FROM names WHERE node=?1 AND from_seq<=?2"
        } else {
            "SELECT (SELECT count(*) FROM names WHERE node=?1 AND from_seq<=?2)
                  + (SELECT count(*) FROM names_old WHERE node=?1 AND to_seq>?2 AND from_seq<=?2)"
        };
        self.with(sql, |s| s.query_row(key, |r| r.get::<_, i64>(0)))
            .map(|n| n.min(i64::from(u32::MAX)) as u32)
    }

    /// Up to `limit` of a file's extents that end behind `from`, in order.
    pub fn extents(&self, node: NodeId, from: u64, limit: usize) -> Result<Vec<BlockExtent>> {
        let from = from.min(i64::MAX as u64) as i64;
        let key = (
            node.0 as i64,
            self.at,
            from,
            limit as i64,
            from.saturating_sub(EXTENT_MAX),
        );
        let sql = if self.latest {
            "SELECT offset, len, block, block_off FROM extents
             WHERE node=?1 AND offset>?5 AND offset+len>?3 AND from_seq<=?2 ORDER BY offset LIMIT ?4"
        } else {
            "SELECT offset, len, block, block_off FROM extents
             WHERE node=?1 AND offset>?5 AND offset+len>?3 AND from_seq<=?2
             UNION ALL
             SELECT offset, len, block, block_off FROM extents_old
             WHERE node=?1 AND to_seq>?2 AND offset>?5 AND offset+len>?3 AND from_seq<=?2
             ORDER BY 1 LIMIT ?4"
        };
        self.with(sql, |s| s.query_map(key, extent_row)?.collect())
    }

    /// Where a block's record is, and its bytes with header and padding, if there is such a block. Of one that was damaged when it
    /// came, the bytes say nothing.
    pub fn block(&self, id: u64) -> Result<Option<(Place, u64)>> {
        let row = |r: &Row<'_>| {
            let place = Place {
                segment: r.get::<_, i64>(0)? as u64,
                offset: r.get::<_, i64>(1)? as u64,
            };
            let stored: u32 = r.get(2)?;
            let bytes = HEADER_BYTES as u64 + u64::from(stored).next_multiple_of(8);
            Ok((place, bytes))
        };
        self.with(
            "SELECT segment, offset, stored FROM blocks WHERE id=?1",
            |s| s.query_row([id as i64], row).optional(),
        )
    }

    /// Nodes of the present whose last change is later than `seq`.
    pub fn changed_since(&self, seq: BatchSeq) -> Result<Vec<NodeId>> {
        self.with("SELECT node FROM attrs WHERE from_seq>?1", |s| {
            s.query_map([seq.0 as i64], |r| node_id(r, 0))?.collect()
        })
    }
}

impl View<'_> {
    /// Nodes of the present with a name that they got later than `seq`.
    pub fn renamed_since(&self, seq: BatchSeq) -> Result<Vec<NodeId>> {
        self.with("SELECT node FROM names WHERE from_seq>?1", |s| {
            s.query_map([seq.0 as i64], |r| node_id(r, 0))?.collect()
        })
    }
}

/// No extent is longer than a block, so none that begins this far in front of an offset reaches it.
pub(super) const EXTENT_MAX: i64 = farwrite_core::limits::BLOCK_RAW_BYTES as i64;

pub(super) fn extent_row(r: &Row<'_>) -> Result<BlockExtent> {
    Ok(BlockExtent {
        offset: r.get::<_, i64>(0)? as u64,
        len: r.get::<_, i64>(1)? as u64,
        block: r.get::<_, i64>(2)? as u64,
        block_offset: r.get(3)?,
    })
}

fn node_row(r: &Row<'_>) -> Result<NodeRow> {
    Ok(NodeRow {
        changed: BatchSeq(r.get::<_, i64>(0)? as u64),
        content: BatchSeq(r.get::<_, i64>(1)? as u64),
        meta: decode_meta(r.get_ref(2)?.as_blob()?)?,
    })
}

fn node_id(r: &Row<'_>, column: usize) -> Result<NodeId> {
    Ok(NodeId(r.get::<_, i64>(column)? as u64))
}

pub(crate) fn name_at(r: &Row<'_>, column: usize) -> Result<Name> {
    Name::new(r.get_ref(column)?.as_blob()?).map_err(|e| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Blob, Box::new(e))
    })
}
