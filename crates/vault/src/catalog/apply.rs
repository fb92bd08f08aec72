//! Applies batches to the catalog. A batch is applied whole or not at all, and one that is already in changes
//! nothing; a batch that breaks the rules of a tree is refused by name.

use super::delta::{Content, Delta, Made, NODES_KEPT, NamesNode, OnlyPlace};
use super::view::{EXTENT_MAX, extent_row, name_at};
use super::{Catalog, CatalogError, Mark, decode_meta, encode_meta, get_mark, set_mark};
use crate::segment::{LoggedBatch, Place};
use farwrite_core::history::BlockExtent;
use farwrite_core::op::BadOp;
use farwrite_core::{BatchSeq, Extent, Kind, Meta, Name, NodeId, Op, limits};
use farwrite_sql::Statements;
use rusqlite::{Connection, OptionalExtension, Row};
use std::collections::{HashMap, HashSet};

/// Most rows that one batch may make: a few operations could otherwise copy a file of many extents for ever.
const BATCH_ROWS_MAX: u64 = 128_000_000;
/// Extents of a file that are taken away at once.
const PUNCHED_AT_ONCE: usize = 4096;
/// Extents of a file that a copy holds in memory.
const PIECES: usize = 65_536;
/// What [`Catalog::apply`] did.
#[derive(Debug, Default)]
pub struct Applied {
    /// What changed.
    pub delta: Delta,
    /// The batch that was refused; nothing of it was applied, and nothing behind it.
    pub violation: Option<Violation>,
}

/// A batch that breaks the rules of a tree: only a faulty or hostile source makes one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("batch {seq}{}: {rule}", .op.map(|n| format!(", operation {n}")).unwrap_or_default())]
pub struct Violation {
    /// The batch.
    pub seq: BatchSeq,
    /// The operation, counted from 0; `None` if only the whole batch shows it.
    pub op: Option<u64>,
    /// What is wrong.
    pub rule: Rule,
}

/// The rules of a tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rule {
    /// Bounds.
    #[error(transparent)]
    Bounds(#[from] BadOp),
    /// A node that does not exist.
    #[error("there is no node {0}")]
    NoNode(NodeId),
    /// A name in something that is not a directory.
    #[error("node {0} is not a directory")]
    NotDir(NodeId),
    /// Content for something that is not a regular file.
    #[error("node {0} is not a regular file")]
    NotFile(NodeId),
    /// A node that turns into another kind of file.
    #[error("node {0} cannot become another kind of file")]
    Kind(NodeId),
    /// A directory with two names.
    #[error("directory {0} has two names")]
    TwoNames(NodeId),
    /// A directory below itself.
    #[error("directory {0} is below itself, or nested too deep")]
    Cycle(NodeId),
    /// A dropped node that has a name.
    #[error("node {0} is dropped but has a name")]
    Named(NodeId),
    /// Too many rows.
    #[error("the batch makes more than {BATCH_ROWS_MAX} rows")]
    TooMuch,
    /// A Clear that is not the first operation.
    #[error("a Clear that is not the first operation of its batch")]
    LateClear,
}

/// Database error or broken rule.
enum Stop {
    Sqlite(rusqlite::Error),
    Rule(Rule),
}

impl From<rusqlite::Error> for Stop {
    fn from(e: rusqlite::Error) -> Self {
        Stop::Sqlite(e)
    }
}

impl From<Rule> for Stop {
    fn from(r: Rule) -> Self {
        Stop::Rule(r)
    }
}

type Step<T = ()> = Result<T, Stop>;

impl Catalog {
    /// Applies batches in one transaction; those already applied are skipped. Stops at the first that breaks a
    /// rule ([`Applied::violation`]). Batches with damage are applied as far as they go.
    pub fn apply(&mut self, batches: &[LoggedBatch]) -> Result<Applied, CatalogError> {
        let applied = self.apply_if(batches, &mut || true)?;
        Ok(applied.expect("nobody was against it"))
    }

    /// As [`Catalog::apply`], but asks `may` when all is done except for the commit: if that says no, nothing was, and the
    /// answer is `None`. So batches can be applied while it is still being found out whether they are to stay.
    pub fn apply_if(
        &mut self,
        batches: &[LoggedBatch],
        may: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Applied>, CatalogError> {
        let Some(mut out) = self.apply_all(batches, may)? else {
            return Ok(None);
        };
        if let Some(v) = out.violation.take() {
            // Nothing of the transaction stood. No savepoint for each batch: with one, SQLite keeps a journal of the whole
            // transaction in memory and walks through it at the end of every statement.
            let before = batches.partition_point(|b| b.commit.seq < v.seq);
            let Some(good) = self.apply_all(&batches[..before], may)? else {
                return Ok(None);
            };
            out = good;
            out.violation = Some(v);
        }
        Ok(Some(out))
    }

    /// Applies batches, or none of them if one breaks a rule.
    fn apply_all(
        &mut self,
        batches: &[LoggedBatch],
        may: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Applied>, CatalogError> {
        let path = self.path.clone();
        let fail = |source| CatalogError::Sqlite {
            path: path.clone(),
            source,
        };
        let mut out = Applied::default();
        let (mut applied, mut next_block, mut lenient) =
            (self.applied, self.next_block, self.lenient);
        let tx = self.conn.transaction().map_err(fail)?;
        let mut versions = 0;
        for batch in batches.iter().filter(|b| b.commit.seq > self.applied) {
            lenient |= !batch.damage.is_empty();
            let mut work = Work::new(&tx, batch, next_block, lenient, self.highest_node);
            let done = work.run();
            // Also if it is rolled back: it need not be reached.
            self.highest_node = work.highest;
            match done {
                Ok(()) => {}
                Err(Stop::Sqlite(e)) => return Err(fail(e)),
                Err(Stop::Rule(rule)) => {
                    let violation = Violation {
                        seq: batch.commit.seq,
                        op: work.op,
                        rule,
                    };
                    drop(work);
                    tx.rollback().map_err(fail)?;
                    return Ok(Some(Applied {
                        violation: Some(violation),
                        ..Applied::default()
                    }));
                }
            }
            versions += work.versions;
            let (delta, ended) = (
                std::mem::take(&mut work.delta),
                std::mem::take(&mut work.ended),
            );
            out.delta.merge(delta, ended);
            applied = batch.commit.seq;
            next_block += batch.blocks.len() as u64;
        }
        let total = get_mark(&tx, Mark::Versions).map_err(fail)? + versions;
        set_mark(&tx, Mark::Versions, total).map_err(fail)?;
        if !may() {
            tx.rollback().map_err(fail)?;
            return Ok(None);
        }
        tx.commit().map_err(fail)?;
        (self.applied, self.next_block, self.lenient) = (applied, next_block, lenient);
        Ok(Some(out))
    }
}

/// What is known in memory of a node that this batch touched.
#[derive(Clone, Copy)]
struct Known {
    kind: Kind,
    size: u64,
}

/// The application of one batch.
struct Work<'a> {
    conn: &'a Connection,
    sql: Statements<'a>,
    batch: &'a LoggedBatch,
    seq: i64,
    first_block: u64,
    lenient: bool,
    /// No node has a higher number.
    highest: NodeId,
    delta: Delta,
    /// Nodes that it has ended; `true`: a directory.
    ended: Vec<(NodeId, bool)>,
    op: Option<u64>,
    rows: u64,
    versions: i64,
    known: HashMap<NodeId, Known>,
    /// Made by this batch and without a name so far.
    unnamed: HashSet<NodeId>,
    /// Made by this batch: no extent behind the given offset.
    content_end: HashMap<NodeId, u64>,
    /// Lost a name in this batch.
    lost: HashSet<NodeId>,
    /// Directories that got a name in this batch.
    moved_dirs: HashSet<NodeId>,
    /// Files whose content changed.
    written: HashSet<NodeId>,
}

impl<'a> Work<'a> {
    fn new(
        conn: &'a Connection,
        batch: &'a LoggedBatch,
        first_block: u64,
        lenient: bool,
        highest: NodeId,
    ) -> Self {
        Work {
            conn,
            sql: Statements::new(conn),
            batch,
            seq: batch.commit.seq.0 as i64,
            first_block,
            lenient,
            highest,
            delta: Delta::default(),
            ended: Vec::new(),
            op: None,
            rows: 0,
            versions: 0,
            known: HashMap::new(),
            unnamed: HashSet::new(),
            content_end: HashMap::new(),
            lost: HashSet::new(),
            moved_dirs: HashSet::new(),
            written: HashSet::new(),
        }
    }

    fn run(&mut self) -> Step {
        let raws = self.insert_blocks()?;
        for (n, op) in self.batch.ops.iter().enumerate() {
            self.op = Some(n as u64);
            let done = op
                .check(&raws)
                .map_err(|e| Stop::Rule(e.into()))
                .and_then(|()| self.apply(n, op));
            match done {
                Err(Stop::Rule(rule)) if self.lenient => {
                    tracing::debug!(batch = self.seq, op = n, "skipped behind damage: {rule}");
                }
                other => other?,
            }
            if self.rows > BATCH_ROWS_MAX {
                return Err(Rule::TooMuch.into());
            }
        }
        self.op = None;
        self.settle_names()?;
        self.settle_content()?;
        self.insert_batch()
    }

    fn insert_blocks(&mut self) -> Step<Vec<u32>> {
        let insert = self
            .sql
            .get("INSERT INTO blocks VALUES(?1,?2,?3,?4,?5,?6,?7)")?;
        let mut raws = Vec::with_capacity(self.batch.blocks.len());
        for (i, b) in self.batch.blocks.iter().enumerate() {
            let (stored, raw, codec) = b
                .header
                .map_or((0, limits::BLOCK_RAW_BYTES as u32, 0), |h| {
                    (h.stored, h.raw, h.codec as u8)
                });
            insert.execute((
                (self.first_block + i as u64) as i64,
                b.place.segment as i64,
                b.place.offset as i64,
                stored,
                raw,
                codec,
                self.seq,
            ))?;
            raws.push(raw);
        }
        Ok(raws)
    }

    fn insert_batch(&mut self) -> Step {
        let c = &self.batch.commit;
        let damage = (!self.batch.damage.is_empty()).then(|| self.batch.damage.join("; "));
        self.sql
            .get("INSERT INTO batches VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13)")?
            .execute((
                self.seq,
                c.time.sec,
                c.time.nsec,
                c.clean,
                self.batch.end.segment as i64,
                self.batch.end.offset as i64,
                c.ops as i64,
                c.blocks as i64,
                self.batch.bytes as i64,
                c.epoch.0,
                c.next_node.0 as i64,
                c.chain,
                damage,
            ))?;
        Ok(())
    }

    fn apply(&mut self, number: usize, op: &Op) -> Step {
        match op {
            Op::Node { node, meta, .. } => self.set_node(*node, meta),
            Op::Name { parent, name, node } => self.set_name(*parent, name, *node),
            Op::Unname { parent, name } => self.close_name(*parent, name).map(drop),
            Op::Write {
                node,
                offset,
                len,
                block,
                block_offset,
            } => {
                let e = Extent::new(*offset, u64::from(*len));
                let extent = BlockExtent {
                    offset: *offset,
                    len: e.len,
                    block: self.first_block + u64::from(*block),
                    block_offset: *block_offset,
                };
                let place = self.batch.blocks.get(*block as usize).map(|b| b.place);
                self.overlay(*node, e, place.map(|p| (extent, p)))?;
                self.insert_extent(*node, extent)
            }
            Op::Hole { node, offset, len } => self.overlay(*node, Extent::new(*offset, *len), None),
            Op::Copy {
                node,
                offset,
                len,
                from,
                from_offset,
            } => self.copy(*node, *offset, *len, *from, *from_offset),
            Op::Drop { node } => self.drop_staged(*node),
            Op::Clear if number == 0 => self.clear(),
            Op::Clear => Err(Rule::LateClear.into()),
        }
    }

    fn known(&mut self, node: NodeId) -> Step<Known> {
        if let Some(k) = self.known.get(&node) {
            return Ok(*k);
        }
        if node > self.highest {
            return Err(Rule::NoNode(node).into());
        }
        let meta = self
            .sql
            .get("SELECT meta FROM attrs WHERE node=?1")?
            .query_row([node.0 as i64], |r| decode_meta(r.get_ref(0)?.as_blob()?))
            .optional()?
            .ok_or(Rule::NoNode(node))?;
        let k = Known {
            kind: meta.kind,
            size: meta.size,
        };
        self.known.insert(node, k);
        Ok(k)
    }

    fn set_node(&mut self, node: NodeId, meta: &Meta) -> Step {
        let now = Known {
            kind: meta.kind,
            size: meta.size,
        };
        let new = match self.known(node) {
            Err(Stop::Rule(_)) => {
                self.sql
                    .get("INSERT INTO attrs VALUES(?1,?2,?2,?3)")?
                    .execute((node.0 as i64, self.seq, encode_meta(meta)))?;
                self.highest = self.highest.max(node);
                self.unnamed.insert(node);
                self.content_end.insert(node, 0);
                self.versions += 1;
                if self.delta.made.len() < NODES_KEPT {
                    let made = Made {
                        meta: meta.clone(),
                        content: Content::Hole,
                    };
                    self.delta.made.insert(node, made);
                }
                true
            }
            Err(e) => return Err(e),
            Ok(before) => {
                if before.kind != meta.kind {
                    return Err(Rule::Kind(node).into());
                }
                if meta.size < before.size {
                    self.trim(node, meta.size)?;
                    let cut = Extent::new(meta.size, before.size - meta.size);
                    self.delta.range(node, cut);
                }
                self.version(node, Some(meta), meta.size != before.size)?;
                if let Some(made) = self.delta.made.get_mut(&node) {
                    made.meta.clone_from(meta);
                }
                false
            }
        };
        self.rows += 1;
        self.known.insert(node, now);
        self.delta.nodes.entry(node).or_insert(new);
        Ok(())
    }

    /// Begins a new version of a node's attributes unless this batch already has, or nothing changes.
    fn version(&mut self, node: NodeId, meta: Option<&Meta>, content: bool) -> Step {
        let id = node.0 as i64;
        let (from, changed, before): (i64, i64, Vec<u8>) = self
            .sql
            .get("SELECT from_seq, content_seq, meta FROM attrs WHERE node=?1")?
            .query_row([id], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?;
        let after = meta.map(encode_meta);
        let after = after.as_deref().unwrap_or(&before);
        if before == after && !content {
            return Ok(());
        }
        if from < self.seq {
            self.sql
                .get("INSERT INTO attrs_old VALUES(?1,?2,?3,?4,?5)")?
                .execute((id, self.seq, from, changed, &before))?;
            self.versions += 1;
        }
        self.sql.get(
                "UPDATE attrs SET from_seq=?2, meta=?3, content_seq=iif(?4, ?2, content_seq) WHERE node=?1",
            )?
            .execute((id, self.seq, after, content))?;
        Ok(())
    }

    fn set_name(&mut self, parent: NodeId, name: &Name, node: NodeId) -> Step {
        if self.known(parent)?.kind != Kind::Dir {
            return Err(Rule::NotDir(parent).into());
        }
        let kind = self.known(node)?.kind;
        let mut there: Option<NodeId> = None;
        // Nearly every name is a new one.
        if !self.insert_name(parent, name, node)? {
            let there_now: i64 = self
                .sql
                .get("SELECT node FROM names WHERE parent=?1 AND name=?2")?
                .query_row((parent.0 as i64, name.as_bytes()), |r| r.get(0))?;
            if there_now == node.0 as i64 {
                return Ok(());
            }
            there = self.close_name(parent, name)?;
            self.insert_name(parent, name, node)?;
        }
        self.rows += 1;
        if kind == Kind::Dir {
            self.moved_dirs.insert(node);
        }
        if !self.unnamed.remove(&node) {
            self.sql
                .get("DELETE FROM staged WHERE node=?1")?
                .execute([node.0 as i64])?;
        }
        let change = NamesNode {
            before: there,
            after: Some(node),
        };
        self.delta.name((parent, name.clone()), change);
        Ok(())
    }

    /// False if the name is taken.
    fn insert_name(&mut self, parent: NodeId, name: &Name, node: NodeId) -> Step<bool> {
        let rows = self
            .sql
            .get("INSERT OR IGNORE INTO names VALUES(?1,?2,?3,?4)")?
            .execute((parent.0 as i64, name.as_bytes(), node.0 as i64, self.seq))?;
        Ok(rows > 0)
    }

    /// Ends a name, if there is one; returns what it named.
    fn close_name(&mut self, parent: NodeId, name: &Name) -> Step<Option<NodeId>> {
        let key = (parent.0 as i64, name.as_bytes());
        let Some((node, from)) = self
            .sql
            .get("SELECT node, from_seq FROM names WHERE parent=?1 AND name=?2")?
            .query_row(key, |r| Ok((r.get::<_, i64>(0)?, r.get::<_, i64>(1)?)))
            .optional()?
        else {
            return Ok(None);
        };
        // Not with RETURNING, for which SQLite makes a table each time.
        self.sql
            .get("DELETE FROM names WHERE parent=?1 AND name=?2")?
            .execute(key)?;
        if from < self.seq {
            self.sql
                .get("INSERT INTO names_old VALUES(?1,?2,?3,?4,?5)")?
                .execute((key.0, key.1, self.seq, node, from))?;
        }
        self.rows += 1;
        let node = NodeId(node as u64);
        self.lost.insert(node);
        let change = NamesNode {
            before: Some(node),
            after: None,
        };
        self.delta.name((parent, name.clone()), change);
        Ok(Some(node))
    }

    /// Takes a range away from a file's content, and notes that it changed; `piece`: what comes there, if it is one.
    fn overlay(&mut self, node: NodeId, e: Extent, piece: Option<(BlockExtent, Place)>) -> Step {
        if self.known(node)?.kind != Kind::File {
            return Err(Rule::NotFile(node).into());
        }
        if let Some(made) = self.delta.made.get_mut(&node) {
            made.changes(piece);
        }
        self.written.insert(node);
        self.delta.range(node, e);
        self.delta.nodes.entry(node).or_insert(false);
        if let Some(end) = self.content_end.get_mut(&node) {
            let behind = e.offset >= *end;
            *end = (*end).max(e.end());
            if behind {
                return Ok(());
            }
        }
        self.punch(node, e)
    }

    /// Takes a range out of a file's extents; in pieces, since a file may have very many.
    fn punch(&mut self, node: NodeId, e: Extent) -> Step {
        while self.punch_some(node, e)? == PUNCHED_AT_ONCE {}
        Ok(())
    }

    /// How many extents were hit, of which nothing is in the range any more.
    fn punch_some(&mut self, node: NodeId, e: Extent) -> Result<usize, Stop> {
        let (start, end) = (e.offset as i64, e.end().min(i64::MAX as u64) as i64);
        let hit: Vec<(BlockExtent, i64)> = self
            .sql
            .get(
                "SELECT offset, len, block, block_off, from_seq FROM extents
                 WHERE node=?1 AND offset>?2 AND offset<?3 AND offset+len>?4 LIMIT ?5",
            )?
            .query_map(
                (
                    node.0 as i64,
                    start.saturating_sub(EXTENT_MAX),
                    end,
                    start,
                    PUNCHED_AT_ONCE as i64,
                ),
                |r| Ok((extent_row(r)?, r.get(4)?)),
            )?
            .collect::<Result<_, _>>()?;
        let count = hit.len();
        for (x, from) in hit {
            self.close_extent(node, &x, from)?;
            if x.offset < e.offset {
                let len = e.offset - x.offset;
                self.insert_extent(node, BlockExtent { len, ..x })?;
            }
            let x_end = x.offset + x.len;
            if x_end > e.end() {
                let skip = e.end() - x.offset;
                let right = BlockExtent {
                    offset: e.end(),
                    len: x_end - e.end(),
                    block_offset: x.block_offset + skip as u32,
                    ..x
                };
                self.insert_extent(node, right)?;
            }
        }
        Ok(count)
    }

    fn close_extent(&mut self, node: NodeId, x: &BlockExtent, from: i64) -> Step {
        self.sql
            .get("DELETE FROM extents WHERE node=?1 AND offset=?2")?
            .execute((node.0 as i64, x.offset as i64))?;
        if from < self.seq {
            self.sql
                .get("INSERT INTO extents_old VALUES(?1,?2,?3,?4,?5,?6,?7)")?
                .execute((
                    node.0 as i64,
                    self.seq,
                    x.offset as i64,
                    x.len as i64,
                    x.block as i64,
                    x.block_offset,
                    from,
                ))?;
        }
        self.rows += 1;
        Ok(())
    }

    fn insert_extent(&mut self, node: NodeId, x: BlockExtent) -> Step {
        self.sql
            .get("INSERT INTO extents VALUES(?1,?2,?3,?4,?5,?6)")?
            .execute((
                node.0 as i64,
                x.offset as i64,
                x.len as i64,
                x.block as i64,
                x.block_offset,
                self.seq,
            ))?;
        self.rows += 1;
        Ok(())
    }

    /// Cuts off content at and behind `size`.
    fn trim(&mut self, node: NodeId, size: u64) -> Step {
        if let Some(made) = self.delta.made.get_mut(&node) {
            made.changes(None);
        }
        self.punch(node, Extent::to_end(size))?;
        if let Some(end) = self.content_end.get_mut(&node) {
            *end = (*end).min(size);
        }
        Ok(())
    }

    fn copy(
        &mut self,
        node: NodeId,
        offset: u64,
        len: u64,
        from: NodeId,
        from_offset: u64,
    ) -> Step {
        if self.known(from)?.kind != Kind::File {
            return Err(Rule::NotFile(from).into());
        }
        let source = Extent::new(from_offset, len);
        let mut pieces = self.pieces(from, source, from_offset)?;
        self.overlay(node, Extent::new(offset, len), None)?;
        while let Some(last) = pieces.last() {
            let (more, next) = (pieces.len() == PIECES, last.offset + last.len);
            for x in pieces {
                let Some(part) = source.intersect(Extent::new(x.offset, x.len)) else {
                    continue;
                };
                let copied = BlockExtent {
                    offset: part.offset - from_offset + offset,
                    len: part.len,
                    block: x.block,
                    block_offset: x.block_offset + (part.offset - x.offset) as u32,
                };
                self.insert_extent(node, copied)?;
            }
            if self.rows > BATCH_ROWS_MAX || (more && from == node) {
                // Within one file the ranges may overlap: all pieces have to be read before the first is changed.
                return Err(Rule::TooMuch.into());
            }
            if !more {
                break;
            }
            pieces = self.pieces(from, source, next)?;
        }
        Ok(())
    }

    /// The first [`PIECES`] extents of a file that reach into `source` and end behind `start`.
    fn pieces(&mut self, from: NodeId, source: Extent, start: u64) -> Step<Vec<BlockExtent>> {
        let start = start as i64;
        Ok(self.sql.get(
                "SELECT offset, len, block, block_off FROM extents
                 WHERE node=?1 AND offset>?2 AND offset<?3 AND offset+len>?4 ORDER BY offset LIMIT ?5",
            )?
            .query_map(
                (
                    from.0 as i64,
                    start.saturating_sub(EXTENT_MAX),
                    source.end() as i64,
                    start,
                    PIECES as i64,
                ),
                extent_row,
            )?
            .collect::<Result<_, _>>()?)
    }

    fn drop_staged(&mut self, node: NodeId) -> Step {
        let kind = match self.known(node) {
            Err(Stop::Rule(_)) => return Ok(()),
            other => other?.kind,
        };
        let staged = self.unnamed.remove(&node)
            || self
                .sql
                .get("DELETE FROM staged WHERE node=?1")?
                .execute([node.0 as i64])?
                > 0;
        if !staged {
            return Err(Rule::Named(node).into());
        }
        self.end_node(node, kind)
    }

    /// Ends a node's attributes and content.
    fn end_node(&mut self, node: NodeId, kind: Kind) -> Step {
        let id = node.0 as i64;
        for sql in [
            "INSERT INTO attrs_old SELECT node, ?2, from_seq, content_seq, meta FROM attrs
             WHERE node=?1 AND from_seq<?2",
            "INSERT INTO extents_old SELECT node, ?2, offset, len, block, block_off, from_seq FROM extents
             WHERE node=?1 AND from_seq<?2",
        ] {
            self.rows += self.sql.get(sql)?.execute((id, self.seq))? as u64;
        }
        for sql in [
            "DELETE FROM attrs WHERE node=?1",
            "DELETE FROM extents WHERE node=?1",
        ] {
            self.sql.get(sql)?.execute([id])?;
        }
        self.known.remove(&node);
        self.content_end.remove(&node);
        self.written.remove(&node);
        self.delta.nodes.remove(&node);
        self.ended.push((node, kind == Kind::Dir));
        self.delta.made.remove(&node);
        self.delta.moved.remove(&node);
        self.delta.content.remove(&node);
        Ok(())
    }

    fn clear(&mut self) -> Step {
        let seq = self.seq;
        for sql in [
            "INSERT INTO names_old SELECT parent, name, ?1, node, from_seq FROM names WHERE from_seq<?1",
            "INSERT INTO attrs_old SELECT node, ?1, from_seq, content_seq, meta FROM attrs
             WHERE node<>1 AND from_seq<?1",
            "INSERT INTO extents_old SELECT node, ?1, offset, len, block, block_off, from_seq FROM extents
             WHERE from_seq<?1",
        ] {
            self.conn.execute(sql, [seq])?;
        }
        self.conn.execute_batch(
            "DELETE FROM names; DELETE FROM attrs WHERE node<>1; DELETE FROM extents; DELETE FROM staged;",
        )?;
        self.known.clear();
        self.delta = Delta {
            cleared: true,
            ..Delta::default()
        };
        Ok(())
    }

    /// Up to two of a node's names.
    fn places(&mut self, node: NodeId) -> Step<Vec<(NodeId, Name)>> {
        let place = |r: &Row<'_>| Ok((NodeId(r.get::<_, i64>(0)? as u64), name_at(r, 1)?));
        Ok(self
            .sql
            .get("SELECT parent, name FROM names WHERE node=?1 LIMIT 2")?
            .query_map([node.0 as i64], place)?
            .collect::<Result<_, _>>()?)
    }

    /// At the commit: who has lost the last name is gone with all below; directories have one place each.
    fn settle_names(&mut self) -> Step {
        let mut candidates: Vec<NodeId> = self.lost.drain().collect();
        while let Some(node) = candidates.pop() {
            let mut places = self.places(node)?;
            if let Some((parent, name)) = places.pop() {
                if places.is_empty()
                    && let Some(Known { kind, .. }) = self.known.get(&node).copied()
                    && self.delta.moved.len() < NODES_KEPT
                {
                    let place = OnlyPlace { parent, name, kind };
                    self.delta.moved.insert(node, place);
                }
                continue;
            }
            let Ok(known) = self.known(node) else {
                continue;
            };
            if known.kind == Kind::Dir {
                candidates.extend(self.close_children(node)?);
            }
            self.end_node(node, known.kind)?;
            self.moved_dirs.remove(&node);
        }
        let mut good: HashSet<NodeId> = HashSet::from([NodeId::ROOT]);
        for dir in std::mem::take(&mut self.moved_dirs) {
            self.check_place(dir, &mut good)?;
        }
        for node in std::mem::take(&mut self.unnamed) {
            self.sql
                .get("INSERT OR IGNORE INTO staged VALUES(?1)")?
                .execute([node.0 as i64])?;
        }
        Ok(())
    }

    /// Ends every name in a directory that is gone; returns what they named.
    fn close_children(&mut self, dir: NodeId) -> Step<Vec<NodeId>> {
        let names: Vec<Name> = self
            .sql
            .get("SELECT name FROM names WHERE parent=?1")?
            .query_map([dir.0 as i64], |r| name_at(r, 0))?
            .collect::<Result<_, _>>()?;
        let mut nodes = Vec::with_capacity(names.len());
        for name in names {
            let Some(node) = self.close_name(dir, &name)? else {
                continue;
            };
            self.lost.remove(&node);
            nodes.push(node);
            if self.places(node)?.is_empty() {
                // It goes with the directory; only what lives on elsewhere is of interest, as may what had this name before.
                let key = (dir, name);
                let other = self.delta.names.get(&key).and_then(|c| c.before);
                if other.is_none_or(|n| n == node) {
                    self.delta.names.remove(&key);
                }
            }
        }
        Ok(nodes)
    }

    fn check_place(&mut self, dir: NodeId, good: &mut HashSet<NodeId>) -> Step {
        let mut chain = vec![dir];
        let mut at = dir;
        while !good.contains(&at) {
            let parents: Vec<i64> = self
                .sql
                .get("SELECT parent FROM names WHERE node=?1 LIMIT 2")?
                .query_map([at.0 as i64], |r| r.get(0))?
                .collect::<Result<_, _>>()?;
            match parents[..] {
                [parent] => at = NodeId(parent as u64),
                // A staged directory may hold names before it has its own.
                [] => break,
                _ => return Err(Rule::TwoNames(at).into()),
            }
            if chain.len() > limits::TREE_DEPTH || (at == dir) {
                return Err(Rule::Cycle(dir).into());
            }
            chain.push(at);
        }
        good.extend(chain);
        Ok(())
    }

    /// At the commit: nothing lies behind a file's end, and changed content is a version of its node.
    fn settle_content(&mut self) -> Step {
        for node in std::mem::take(&mut self.written) {
            let size = self.known(node)?.size;
            if self.content_end.get(&node).is_some_and(|end| *end <= size) {
                // Made by this batch: all of it is its first version, and nothing lies behind its end.
                continue;
            }
            self.trim(node, size)?;
            self.version(node, None, true)?;
        }
        Ok(())
    }
}
