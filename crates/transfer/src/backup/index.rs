//! The index: what this source has sent to one vault, so that it knows what differs. A projection of the log
//! like the vault's catalog, kept in SQLite at the source.
//!
//! Each batch is one transaction, committed before the batch's `Commit` record is sent, together with what is
//! needed to take it back ([`Index::roll_back_to`]). Not fsynced per batch: after a power cut the index may be
//! behind the vault, and is brought forward by replaying the vault's log ([`Index::replay`]).

use super::rows::{NodeFlags, NodeRow, Undo};
use farwrite_core::op::Chain;
use farwrite_core::{BatchSeq, Commit, Epoch, Kind, Name, NodeId, Op, Timestamp};
use farwrite_fs::Stat;
use farwrite_sql::Database;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_bytes::ByteBuf;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Format of the index file.
const FORMAT: i64 = 1;
/// Checksum groups remembered for undo in one batch; beyond that a rollback forgets the node's checksums.
const UNDO_SUMS: usize = 8192;
/// Entries of an undo in one row: a large tree that departs makes one for each file in it.
const UNDO_PART: usize = 50_000;
/// In the column `staged`: [`NodeFlags::STAGED`].
const SOUGHT_STAGED: i64 = 1;
/// In the column `staged`: [`NodeFlags::SUSPECT`] or [`NodeFlags::UNSETTLED`].
const SOUGHT_OWED: i64 = 2;
/// Slot of directories above the protected ones, and of mount points: never found by inode number.
pub const SLOT_NONE: u32 = u32::MAX;
/// Within this time what was written to a file is on the disk: Linux's own bounds, half a minute after a change and five seconds between
/// two looks (`vm.dirty_expire_centisecs`, `vm.dirty_writeback_centisecs`), several times over.
pub const UNWRITTEN: Duration = Duration::from_secs(120);

/// What can go wrong with an index.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// SQLite said no.
    #[error("index {path}: {source}")]
    Sql {
        /// The database.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// Made by a later version.
    #[error("index {path} has format {found}, this program knows {FORMAT}: use a newer Farwrite")]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
    /// A row does not decode, or rows contradict each other.
    #[error("index {path} is damaged ({what}); remove it to start with a full compare")]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What was found.
        what: String,
    },
}

/// Where the index stands in the vault's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexState {
    /// This life of the index.
    pub epoch: Epoch,
    /// Last batch made.
    pub seq: BatchSeq,
    /// Its chain value.
    pub chain: [u8; 32],
    /// Its time.
    pub time: Timestamp,
    /// Last batch known to be durable at the vault.
    pub acked: BatchSeq,
    /// Next free node id.
    pub next_node: u64,
    /// A new epoch has not been announced to the vault yet: the next batch starts with `Clear`.
    pub fresh: bool,
}

/// See the module. One thread at a time.
pub struct Index {
    db: Database,
    path: PathBuf,
    state: IndexState,
    undo: Vec<Undo>,
    undo_sums: usize,
    /// Parts of the open batch's undo that are in the database already.
    undo_parts: i64,
    forgotten: HashSet<NodeId>,
    in_batch: bool,
}

type Result<T> = std::result::Result<T, IndexError>;

impl Index {
    /// Opens or creates the index at `path`. `cache_bytes` bounds SQLite's page cache.
    pub fn open(path: &Path, cache_bytes: usize) -> Result<Index> {
        let sql = |source| IndexError::Sql {
            path: path.to_owned(),
            source,
        };
        let db = Connection::open(path).map_err(sql)?;
        // Statements are not planned anew for each value that is bound to them.
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)
            .map_err(sql)?;
        farwrite_sql::write_ahead(&db).map_err(sql)?;
        db.pragma_update(None, "cache_size", -((cache_bytes / 1024) as i64))
            .map_err(sql)?;
        db.pragma_update(None, "temp_store", "MEMORY")
            .map_err(sql)?;
        db.set_prepared_statement_cache_capacity(64);
        let found: i64 = db
            .pragma_query_value(None, "user_version", |r| r.get(0))
            .map_err(sql)?;
        if found > FORMAT {
            return Err(IndexError::Newer {
                path: path.to_owned(),
                found,
            });
        }
        if found == 0 {
            db.execute_batch(SCHEMA).map_err(sql)?;
        }
        db.execute_batch(UNDO_PARTS).map_err(sql)?;
        let mut index = Index {
            db: Database::new(db),
            path: path.to_owned(),
            state: IndexState::default(),
            undo: Vec::new(),
            undo_sums: 0,
            undo_parts: 0,
            forgotten: HashSet::new(),
            in_batch: false,
        };
        match index.load_state()? {
            Some(s) => index.state = s,
            None => index.reset(
                BatchSeq(0),
                [0; 32],
                Timestamp::default(),
                Timestamp::from(std::time::SystemTime::now()),
            )?,
        }
        Ok(index)
    }

    /// Where the index stands.
    pub fn state(&self) -> IndexState {
        self.state
    }

    /// Empties the index and starts a new epoch behind `seq` of the vault's log. Node ids start at the time in
    /// microseconds, so that they never meet those of an earlier epoch.
    pub fn reset(
        &mut self,
        seq: BatchSeq,
        chain: [u8; 32],
        time: Timestamp,
        now: Timestamp,
    ) -> Result<()> {
        self.abandon()?;
        let mut epoch = Epoch::default();
        getrandom::fill(&mut epoch.0)
            .map_err(|e| self.damaged(&format!("no random numbers: {e}")))?;
        let next_node = (now.as_nanos() / 1000).max(2) as u64;
        self.state = IndexState {
            epoch,
            seq,
            chain,
            time,
            acked: seq,
            next_node,
            fresh: seq > BatchSeq(0),
        };
        self.exec("BEGIN IMMEDIATE; DELETE FROM nodes; DELETE FROM names; DELETE FROM sums; DELETE FROM undo; DELETE FROM undo_parts;")?;
        self.save_state()?;
        // Nothing of the tree is in it.
        self.set_incomplete(true)?;
        self.exec("COMMIT")
    }

    /// Starts a batch's transaction if none is open.
    pub fn begin(&mut self) -> Result<()> {
        if !self.in_batch {
            self.exec("BEGIN IMMEDIATE")?;
            self.in_batch = true;
        }
        Ok(())
    }

    /// Commits the open transaction as the batch of this commit record.
    pub fn commit_batch(&mut self, commit: &Commit) -> Result<()> {
        self.begin()?;
        let undo = postcard::to_stdvec(&UndoBatch {
            chain: self.state.chain,
            time: self.state.time,
            fresh: self.state.fresh,
            undo: std::mem::take(&mut self.undo),
        })
        .expect("encoding into memory");
        self.run(
            "INSERT OR REPLACE INTO undo(seq, data) VALUES (?1, ?2)",
            params![commit.seq.0 as i64, undo],
        )?;
        self.undo_parts = 0;
        self.state = IndexState {
            seq: commit.seq,
            chain: commit.chain,
            time: commit.time,
            next_node: commit.next_node.0,
            fresh: false,
            ..self.state
        };
        self.end()
    }

    /// Commits the open transaction although there is no batch: only what the vault need not know has changed.
    pub fn commit_quietly(&mut self) -> Result<()> {
        if !self.in_batch {
            return Ok(());
        }
        self.clear_undo()?;
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.save_state()?;
        self.exec("COMMIT")?;
        self.in_batch = false;
        self.undo_sums = 0;
        self.forgotten.clear();
        Ok(())
    }

    /// Drops the open transaction.
    pub fn abandon(&mut self) -> Result<()> {
        if std::mem::take(&mut self.in_batch) {
            self.undo.clear();
            self.undo_sums = 0;
            self.undo_parts = 0;
            self.forgotten.clear();
            self.exec("ROLLBACK")?;
            self.state = self.load_state()?.unwrap_or(self.state);
        }
        Ok(())
    }

    /// The vault has everything up to `seq`: what would take it back is no longer needed. Part of the open transaction, if
    /// there is one.
    pub fn acked(&mut self, seq: BatchSeq) -> Result<()> {
        if seq <= self.state.acked {
            return Ok(());
        }
        self.state.acked = seq;
        self.run("DELETE FROM undo WHERE seq <= ?1", params![seq.0 as i64])?;
        self.run(
            "DELETE FROM undo_parts WHERE seq <= ?1",
            params![seq.0 as i64],
        )?;
        match self.in_batch {
            true => Ok(()), // Saved at its end.
            false => self.save_state(),
        }
    }

    /// Chain value after batch `seq`, if that is the last one or still can be rolled back to.
    pub fn chain_at(&self, seq: BatchSeq) -> Result<Option<[u8; 32]>> {
        if seq == self.state.seq {
            return Ok(Some(self.state.chain));
        }
        Ok(self.undo_of(seq.next())?.map(|u| u.chain))
    }

    /// Takes every batch behind `seq` back. Returns how many. Fails if one of them is not there any more.
    pub fn roll_back_to(&mut self, seq: BatchSeq) -> Result<u64> {
        self.abandon()?;
        self.begin()?;
        let mut count = 0;
        let mut forgotten = Vec::new();
        while self.state.seq > seq {
            let at = self.state.seq;
            let batch = self
                .undo_of(at)?
                .ok_or_else(|| self.damaged(&format!("batch {at} cannot be taken back")))?;
            let (mut undo, mut part) = (batch.undo, self.parts_of(at)?);
            loop {
                for u in undo.into_iter().rev() {
                    match u {
                        Undo::ForgetSums(n) => forgotten.push(n),
                        other => self.take_back(other)?,
                    }
                }
                if part == 0 {
                    break;
                }
                part -= 1;
                undo = self.part_of(at, part)?;
            }
            self.run("DELETE FROM undo WHERE seq = ?1", params![at.0 as i64])?;
            self.run(
                "DELETE FROM undo_parts WHERE seq = ?1",
                params![at.0 as i64],
            )?;
            self.state.seq = BatchSeq(at.0 - 1);
            self.state.chain = batch.chain;
            self.state.time = batch.time;
            self.state.fresh = batch.fresh;
            count += 1;
        }
        // Last, or an older row would say again that its checksums are good.
        for n in forgotten {
            self.take_back(Undo::ForgetSums(n))?;
        }
        self.clear_undo()?;
        self.end()?;
        Ok(count)
    }

    /// Brings an index that is behind the vault's log forward by one batch of that log. Checksums of content
    /// are not in the log: files written become suspect and are compared at their next change.
    pub fn replay(&mut self, commit: &Commit, ops: &[Op]) -> Result<()> {
        if commit.seq != self.state.seq.next() || commit.epoch != self.state.epoch {
            return Err(self.damaged(&format!(
                "batch {} does not follow {}",
                commit.seq, self.state.seq
            )));
        }
        self.begin()?;
        let mut lost = Vec::new();
        for op in ops {
            self.replay_op(op, &mut lost)?;
        }
        self.remove_orphans(lost)?;
        for op in ops {
            if let Op::Node { node, .. } = op
                && let Some(mut row) = self.node(*node)?
                && self.names_of(*node)?.is_empty()
            {
                row.flags = row.flags.with(NodeFlags::STAGED, true);
                self.put_node(*node, &row)?;
            }
        }
        self.clear_undo()?;
        self.state = IndexState {
            seq: commit.seq,
            chain: commit.chain,
            time: commit.time,
            acked: commit.seq,
            next_node: commit.next_node.0.max(self.state.next_node),
            fresh: false,
            ..self.state
        };
        self.end()
    }

    fn replay_op(&mut self, op: &Op, lost: &mut Vec<NodeId>) -> Result<()> {
        match op {
            Op::Node {
                node, meta, origin, ..
            } => {
                let flags = NodeFlags::default().with(NodeFlags::SUSPECT, true);
                self.forget_sums(*node)?;
                self.put_node(
                    *node,
                    &NodeRow {
                        meta: meta.clone(),
                        origin: *origin,
                        flags,
                        sum: [0; 16],
                    },
                )
            }
            Op::Name { parent, name, node } => {
                lost.extend(
                    self.put_name(*parent, name, *node)?
                        .filter(|old| old != node),
                );
                Ok(())
            }
            Op::Unname { parent, name } => {
                lost.extend(self.del_name(*parent, name)?);
                Ok(())
            }
            Op::Drop { node } => self.del_node(*node),
            Op::Clear => self.exec("DELETE FROM nodes; DELETE FROM names; DELETE FROM sums;"),
            Op::Write { .. } | Op::Hole { .. } | Op::Copy { .. } => Ok(()),
        }
    }

    /// A node id never used before.
    pub fn new_node(&mut self) -> NodeId {
        let id = NodeId(self.state.next_node);
        self.state.next_node += 1;
        id
    }

    /// What was sent of a node.
    pub fn node(&self, id: NodeId) -> Result<Option<NodeRow>> {
        self.node_blob(id)?.map(|b| self.decode(&b)).transpose()
    }

    /// The node that is this very file.
    pub fn find(&self, slot: u32, stat: &Stat) -> Result<Option<(NodeId, NodeRow)>> {
        Ok(self
            .by_ino(slot, stat.id.ino)?
            .into_iter()
            .find(|(_, r)| r.is(slot, stat)))
    }

    /// Nodes with this inode number, newest first. More than one only while a deleted file's successor is already
    /// known.
    pub fn by_ino(&self, slot: u32, ino: u64) -> Result<Vec<(NodeId, NodeRow)>> {
        let sql = "SELECT id, data FROM nodes WHERE ino = ?1 AND slot = ?2 ORDER BY id DESC";
        let rows = self.rows(sql, params![ino as i64, slot], |r| {
            Ok((NodeId(r.get::<_, i64>(0)? as u64), r.get::<_, Vec<u8>>(1)?))
        })?;
        let decoded = rows
            .into_iter()
            .map(|(id, blob)| Ok((id, self.decode(&blob)?)));
        decoded.collect()
    }

    /// What has this name.
    pub fn lookup(&self, parent: NodeId, name: &Name) -> Result<Option<NodeId>> {
        let sql = "SELECT node FROM names WHERE parent = ?1 AND name = ?2";
        let row = |r: &Row<'_>| Ok(NodeId(r.get::<_, i64>(0)? as u64));
        self.db
            .with(sql, |s| {
                s.query_row(params![parent.0 as i64, name.as_bytes()], row)
                    .optional()
            })
            .map_err(|e| self.sql(e))
    }

    /// All names of a node.
    pub fn names_of(&self, node: NodeId) -> Result<Vec<(NodeId, Name)>> {
        let sql = "SELECT parent, name FROM names WHERE node = ?1";
        let rows = self.rows(sql, [node.0 as i64], |r| {
            Ok((NodeId(r.get::<_, i64>(0)? as u64), r.get::<_, Vec<u8>>(1)?))
        })?;
        let named = rows
            .into_iter()
            .map(|(parent, name)| Ok((parent, self.name(name)?)));
        named.collect()
    }

    /// A directory's entries with their rows, in byte order of names.
    pub fn children(&self, dir: NodeId) -> Result<Vec<(Name, NodeId, NodeRow)>> {
        let mut s = self.prepare(
            "SELECT names.name, names.node, nodes.data FROM names JOIN nodes ON nodes.id = names.node \
             WHERE names.parent = ?1 ORDER BY names.name",
        )?;
        let rows = s.query_map([dir.0 as i64], |r| {
            Ok((
                r.get::<_, Vec<u8>>(0)?,
                NodeId(r.get::<_, i64>(1)? as u64),
                r.get::<_, Vec<u8>>(2)?,
            ))
        });
        let mut out = Vec::new();
        for row in rows.map_err(|e| self.sql(e))? {
            let (name, node, data) = row.map_err(|e| self.sql(e))?;
            out.push((self.name(name)?, node, self.decode(&data)?));
        }
        Ok(out)
    }

    /// Sets a node's row.
    pub fn put_node(&mut self, id: NodeId, row: &NodeRow) -> Result<()> {
        let old = self.node_blob(id)?;
        let blob = postcard::to_stdvec(row).expect("encoding into memory");
        if old.as_deref() == Some(&blob) {
            return Ok(());
        }
        let same_keys = old.as_deref().is_some_and(|old| {
            self.decode(old)
                .is_ok_and(|old| key_columns(&old) == key_columns(row))
        });
        self.note_undo(Undo::Node(id, old.map(ByteBuf::from)))?;
        if same_keys {
            return self.run(
                "UPDATE nodes SET data = ?2 WHERE id = ?1",
                params![id.0 as i64, blob],
            );
        }
        self.write_node(id, &blob, row)
    }

    /// Adds the row of a node that has none.
    pub fn add_node(&mut self, id: NodeId, row: &NodeRow) -> Result<()> {
        let blob = postcard::to_stdvec(row).expect("encoding into memory");
        self.note_undo(Undo::Node(id, None))?;
        self.insert_node(INSERT_NODE, id, &blob, row)
    }

    /// Removes a node's row and checksums.
    pub fn del_node(&mut self, id: NodeId) -> Result<()> {
        if let Some(old) = self.node_blob(id)? {
            self.forget_sums(id)?;
            self.note_undo(Undo::Node(id, Some(ByteBuf::from(old))))?;
            self.run("DELETE FROM nodes WHERE id = ?1", params![id.0 as i64])?;
        }
        Ok(())
    }

    /// Gives a node a name; returns what had the name before.
    pub fn put_name(
        &mut self,
        parent: NodeId,
        name: &Name,
        node: NodeId,
    ) -> Result<Option<NodeId>> {
        let old = self.lookup(parent, name)?;
        if old != Some(node) {
            self.note_undo(Undo::Name(parent, name.clone(), old))?;
            let put = if old.is_none() { INSERT_NAME } else { PUT_NAME };
            self.insert_name(put, parent, name, node)?;
        }
        Ok(old)
    }

    /// Adds a name; false, and nothing is done, if something has it.
    pub fn add_name(&mut self, parent: NodeId, name: &Name, node: NodeId) -> Result<bool> {
        let added = self
            .prepare("INSERT OR IGNORE INTO names(parent, name, node) VALUES (?1, ?2, ?3)")?
            .execute(params![parent.0 as i64, name.as_bytes(), node.0 as i64])
            .map_err(|e| self.sql(e))?;
        if added == 0 {
            return Ok(false);
        }
        self.note_undo(Undo::Name(parent, name.clone(), None))?;
        Ok(true)
    }

    /// Is there anything in a directory?
    pub fn has_children(&self, dir: NodeId) -> Result<bool> {
        self.prepare("SELECT EXISTS(SELECT 1 FROM names WHERE parent = ?1)")?
            .query_row([dir.0 as i64], |r| r.get(0))
            .map_err(|e| self.sql(e))
    }

    /// Removes a name; returns what had it.
    pub fn del_name(&mut self, parent: NodeId, name: &Name) -> Result<Option<NodeId>> {
        let old = self.lookup(parent, name)?;
        if old.is_some() {
            self.note_undo(Undo::Name(parent, name.clone(), old))?;
            self.erase_name(parent, name)?;
        }
        Ok(old)
    }

    /// Removes those of `nodes` that have no name, directories with all that is below. Returns the directories that went.
    pub fn remove_orphans(&mut self, nodes: Vec<NodeId>) -> Result<Vec<NodeId>> {
        let mut gone = Vec::new();
        let mut stack = nodes;
        while let Some(id) = stack.pop() {
            let Some(row) = self.node(id)? else { continue };
            if row.flags.has(NodeFlags::STAGED) || !self.names_of(id)?.is_empty() {
                continue;
            }
            if row.is_dir() {
                for (name, child, _) in self.children(id)? {
                    self.del_name(id, &name)?;
                    stack.push(child);
                }
                gone.push(id);
            }
            self.del_node(id)?;
        }
        Ok(gone)
    }

    /// The block checksums of one group; `None`: all holes (if [`NodeFlags::SUMS`]) or not known.
    pub fn sums(&self, node: NodeId, group: u64) -> Result<Option<Vec<u8>>> {
        self.prepare("SELECT data FROM sums WHERE node = ?1 AND grp = ?2")?
            .query_row(params![node.0 as i64, group as i64], |r| r.get(0))
            .optional()
            .map_err(|e| self.sql(e))
    }

    /// Groups that have checksums, ascending.
    pub fn sum_groups(&self, node: NodeId) -> Result<Vec<u64>> {
        let mut s = self.prepare("SELECT grp FROM sums WHERE node = ?1 ORDER BY grp")?;
        let rows = s
            .query_map([node.0 as i64], |r| Ok(r.get::<_, i64>(0)? as u64))
            .map_err(|e| self.sql(e))?;
        rows.collect::<rusqlite::Result<_>>()
            .map_err(|e| self.sql(e))
    }

    /// Sets a group's checksums; `None` removes them.
    pub fn put_sums(&mut self, node: NodeId, group: u64, data: Option<&[u8]>) -> Result<()> {
        if self.undo_sums < UNDO_SUMS {
            let old = self.sums(node, group)?;
            self.note_undo(Undo::Sums(node, group, old.map(ByteBuf::from)))?;
            self.undo_sums += 1;
        } else if self.forgotten.insert(node) {
            self.note_undo(Undo::ForgetSums(node))?;
        }
        self.write_sums(node, group, data)
    }

    /// Removes all checksums of a node.
    pub fn forget_sums(&mut self, node: NodeId) -> Result<()> {
        for g in self.sum_groups(node)? {
            self.put_sums(node, g, None)?;
        }
        Ok(())
    }

    /// Rows that are staged: the first parts of transfers that did not end.
    pub fn staged(&self) -> Result<Vec<(NodeId, NodeRow)>> {
        self.sought(SOUGHT_STAGED)
    }

    /// Rows of files that have to be read again although nobody tells of a change: they changed while they were read, or
    /// were not found.
    pub fn owed(&self) -> Result<Vec<(NodeId, NodeRow)>> {
        self.sought(SOUGHT_OWED)
    }

    fn sought(&self, why: i64) -> Result<Vec<(NodeId, NodeRow)>> {
        let mut s = self.prepare("SELECT id, data FROM nodes WHERE staged = ?1")?;
        let rows = s.query_map([why], |r| {
            Ok((NodeId(r.get::<_, i64>(0)? as u64), r.get::<_, Vec<u8>>(1)?))
        });
        let mut out = Vec::new();
        for row in rows.map_err(|e| self.sql(e))? {
            let (id, blob) = row.map_err(|e| self.sql(e))?;
            out.push((id, self.decode(&blob)?));
        }
        Ok(out)
    }

    /// Was something left out that is to be tried again? A process that dies takes its list of that with it.
    pub fn is_incomplete(&self) -> Result<bool> {
        self.prepare("SELECT count(*) FROM meta WHERE key = 'incomplete'")?
            .query_row([], |r| r.get::<_, i64>(0))
            .map(|n| n > 0)
            .map_err(|e| self.sql(e))
    }

    /// See [`Index::is_incomplete`].
    pub fn set_incomplete(&mut self, on: bool) -> Result<()> {
        self.run(
            match on {
                true => "INSERT OR REPLACE INTO meta(key, value) VALUES ('incomplete', x'01')",
                false => "DELETE FROM meta WHERE key = 'incomplete'",
            },
            [],
        )
    }

    /// Notes by which start of the machine (`/proc/sys/kernel/random/boot_id`, random(4)) the index is used from now on. If it is
    /// another than before: a file that was written to just before the machine went down may have the times with which it was
    /// read, and older content, for a filesystem that journals metadata alone puts them on the disk first. Files that had changed
    /// within [`UNWRITTEN`] of the last batch are to be read again. Returns how many.
    pub fn note_boot(&mut self, boot: &str) -> Result<u64> {
        let known = self
            .prepare("SELECT value FROM meta WHERE key = 'boot'")?
            .query_row([], |r| r.get::<_, Vec<u8>>(0))
            .optional()
            .map_err(|e| self.sql(e))?;
        if known.as_deref() == Some(boot.as_bytes()) {
            return Ok(0);
        }
        self.begin()?;
        let (mut doubted, mut behind) = (0, i64::MIN);
        loop {
            let page = self.nodes_behind(behind)?;
            let Some((last, _)) = page.last() else { break };
            behind = *last;
            for (id, mut row) in page {
                let late = row.origin.ctime.after(UNWRITTEN) >= self.state.time;
                if late && row.meta.kind == Kind::File {
                    row.flags = row.flags.with(NodeFlags::SUSPECT, true);
                    self.put_node(NodeId(id as u64), &row)?;
                    doubted += 1;
                }
            }
        }
        self.run(
            "INSERT OR REPLACE INTO meta(key, value) VALUES ('boot', ?1)",
            params![boot.as_bytes()],
        )?;
        self.commit_quietly()?;
        Ok(doubted)
    }

    fn nodes_behind(&self, id: i64) -> Result<Vec<(i64, NodeRow)>> {
        let mut s =
            self.prepare("SELECT id, data FROM nodes WHERE id > ?1 ORDER BY id LIMIT 4096")?;
        let rows = s.query_map([id], |r| Ok((r.get(0)?, r.get::<_, Vec<u8>>(1)?)));
        let decoded = |row: rusqlite::Result<(i64, Vec<u8>)>| {
            let (id, blob) = row.map_err(|e| self.sql(e))?;
            Ok((id, self.decode(&blob)?))
        };
        rows.map_err(|e| self.sql(e))?.map(decoded).collect()
    }

    /// Nodes in the index.
    pub fn count(&self) -> Result<u64> {
        self.db
            .conn()
            .query_row("SELECT count(*) FROM nodes", [], |r| r.get::<_, i64>(0))
            .map(|n| n as u64)
            .map_err(|e| self.sql(e))
    }

    /// Verifies a chain built elsewhere against the state; for tests and for the unit.
    pub fn chain(&self) -> Chain {
        Chain::new(&self.state.chain)
    }

    fn take_back(&mut self, u: Undo) -> Result<()> {
        match u {
            Undo::Node(id, Some(blob)) => {
                let row = self.decode(&blob)?;
                self.write_node(id, &blob, &row)
            }
            Undo::Node(id, None) => {
                self.run("DELETE FROM nodes WHERE id = ?1", params![id.0 as i64])
            }
            Undo::Name(p, n, Some(node)) => self.insert_name(PUT_NAME, p, &n, node),
            Undo::Name(p, n, None) => self.erase_name(p, &n),
            Undo::Sums(n, g, old) => self.write_sums(n, g, old.as_ref().map(|b| b.as_slice())),
            Undo::ForgetSums(n) => {
                self.run("DELETE FROM sums WHERE node = ?1", params![n.0 as i64])?;
                if let Some(mut row) = self.node(n)? {
                    row.flags = row
                        .flags
                        .with(NodeFlags::SUMS, false)
                        .with(NodeFlags::SUSPECT, true);
                    let blob = postcard::to_stdvec(&row).expect("encoding into memory");
                    self.write_node(n, &blob, &row)?;
                }
                Ok(())
            }
        }
    }

    fn write_node(&self, id: NodeId, blob: &[u8], row: &NodeRow) -> Result<()> {
        self.insert_node(PUT_NODE, id, blob, row)
    }

    fn insert_node(&self, sql: &'static str, id: NodeId, blob: &[u8], row: &NodeRow) -> Result<()> {
        let (slot, ino, sought) = key_columns(row);
        self.run(sql, params![id.0 as i64, slot, ino, sought, blob])
    }

    fn insert_name(
        &self,
        sql: &'static str,
        parent: NodeId,
        name: &Name,
        node: NodeId,
    ) -> Result<()> {
        self.run(
            sql,
            params![parent.0 as i64, name.as_bytes(), node.0 as i64],
        )
    }

    fn erase_name(&self, parent: NodeId, name: &Name) -> Result<()> {
        self.run(
            "DELETE FROM names WHERE parent = ?1 AND name = ?2",
            params![parent.0 as i64, name.as_bytes()],
        )
    }

    fn write_sums(&self, node: NodeId, group: u64, data: Option<&[u8]>) -> Result<()> {
        match data {
            Some(d) => self.run(
                "INSERT OR REPLACE INTO sums(node, grp, data) VALUES (?1, ?2, ?3)",
                params![node.0 as i64, group as i64, d],
            ),
            None => self.run(
                "DELETE FROM sums WHERE node = ?1 AND grp = ?2",
                params![node.0 as i64, group as i64],
            ),
        }
    }

    fn node_blob(&self, id: NodeId) -> Result<Option<Vec<u8>>> {
        let sql = "SELECT data FROM nodes WHERE id = ?1";
        self.db
            .with(sql, |s| s.query_row([id.0 as i64], |r| r.get(0)).optional())
            .map_err(|e| self.sql(e))
    }

    /// Remembers what takes a change of the open batch back.
    fn note_undo(&mut self, undo: Undo) -> Result<()> {
        self.undo.push(undo);
        if self.undo.len() < UNDO_PART {
            return Ok(());
        }
        let part = postcard::to_stdvec(&self.undo).expect("encoding into memory");
        self.undo.clear();
        self.run(
            "INSERT INTO undo_parts(seq, part, data) VALUES (?1, ?2, ?3)",
            params![self.state.seq.next().0 as i64, self.undo_parts, part],
        )?;
        self.undo_parts += 1;
        Ok(())
    }

    /// What the open transaction changes is not to be taken back.
    fn clear_undo(&mut self) -> Result<()> {
        self.undo.clear();
        if std::mem::take(&mut self.undo_parts) > 0 {
            // Those of an open batch: all others are of batches up to the last.
            self.run(
                "DELETE FROM undo_parts WHERE seq > ?1",
                params![self.state.seq.0 as i64],
            )?;
        }
        Ok(())
    }

    /// How many parts a batch's undo has besides its last.
    fn parts_of(&self, seq: BatchSeq) -> Result<i64> {
        self.prepare("SELECT count(*) FROM undo_parts WHERE seq = ?1")?
            .query_row([seq.0 as i64], |r| r.get(0))
            .map_err(|e| self.sql(e))
    }

    fn part_of(&self, seq: BatchSeq, part: i64) -> Result<Vec<Undo>> {
        let blob: Vec<u8> = self
            .prepare("SELECT data FROM undo_parts WHERE seq = ?1 AND part = ?2")?
            .query_row(params![seq.0 as i64, part], |r| r.get(0))
            .map_err(|e| self.sql(e))?;
        postcard::from_bytes(&blob).map_err(|e| self.damaged(&e.to_string()))
    }

    fn undo_of(&self, seq: BatchSeq) -> Result<Option<UndoBatch>> {
        let blob: Option<Vec<u8>> = self
            .prepare("SELECT data FROM undo WHERE seq = ?1")?
            .query_row([seq.0 as i64], |r| r.get(0))
            .optional()
            .map_err(|e| self.sql(e))?;
        blob.map(|b| postcard::from_bytes(&b).map_err(|e| self.damaged(&e.to_string())))
            .transpose()
    }

    fn load_state(&self) -> Result<Option<IndexState>> {
        let blob: Option<Vec<u8>> = self
            .db
            .conn()
            .query_row("SELECT value FROM meta WHERE key = 'state'", [], |r| {
                r.get(0)
            })
            .optional()
            .map_err(|e| self.sql(e))?;
        let Some(b) = blob else { return Ok(None) };
        let s: StoredState = postcard::from_bytes(&b).map_err(|e| self.damaged(&e.to_string()))?;
        Ok(Some(IndexState {
            epoch: s.epoch,
            seq: s.seq,
            chain: s.chain,
            time: s.time,
            acked: s.acked,
            next_node: s.next_node,
            fresh: s.fresh,
        }))
    }

    fn save_state(&self) -> Result<()> {
        let s = &self.state;
        let stored = StoredState {
            epoch: s.epoch,
            seq: s.seq,
            chain: s.chain,
            time: s.time,
            acked: s.acked,
            next_node: s.next_node,
            fresh: s.fresh,
        };
        let blob = postcard::to_stdvec(&stored).expect("encoding into memory");
        self.run(
            "INSERT OR REPLACE INTO meta(key, value) VALUES ('state', ?1)",
            params![blob],
        )
    }

    fn decode(&self, blob: &[u8]) -> Result<NodeRow> {
        postcard::from_bytes(blob).map_err(|e| self.damaged(&e.to_string()))
    }

    fn name(&self, bytes: Vec<u8>) -> Result<Name> {
        Name::new(bytes).map_err(|e| self.damaged(&e.to_string()))
    }

    fn prepare(&self, sql: &str) -> Result<rusqlite::CachedStatement<'_>> {
        self.db.conn().prepare_cached(sql).map_err(|e| self.sql(e))
    }

    fn run(&self, sql: &'static str, p: impl rusqlite::Params) -> Result<()> {
        self.db
            .with(sql, |s| s.execute(p))
            .map(|_| ())
            .map_err(|e| self.sql(e))
    }

    fn rows<T>(
        &self,
        sql: &'static str,
        p: impl rusqlite::Params,
        row: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        self.db
            .with(sql, |s| s.query_map(p, row)?.collect())
            .map_err(|e| self.sql(e))
    }

    fn exec(&self, sql: &str) -> Result<()> {
        self.db.conn().execute_batch(sql).map_err(|e| self.sql(e))
    }

    fn sql(&self, source: rusqlite::Error) -> IndexError {
        IndexError::Sql {
            path: self.path.clone(),
            source,
        }
    }

    fn damaged(&self, what: &str) -> IndexError {
        IndexError::Damaged {
            path: self.path.clone(),
            what: what.to_owned(),
        }
    }
}

#[derive(serde::Serialize, serde::Deserialize)]
struct StoredState {
    epoch: Epoch,
    seq: BatchSeq,
    chain: [u8; 32],
    time: Timestamp,
    acked: BatchSeq,
    next_node: u64,
    fresh: bool,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct UndoBatch {
    chain: [u8; 32],
    time: Timestamp,
    fresh: bool,
    undo: Vec<Undo>,
}

/// What a row is found by: slot, inode, and what it is sought for.
fn key_columns(row: &NodeRow) -> (u32, i64, Option<i64>) {
    let sought = if row.flags.has(NodeFlags::STAGED) {
        Some(SOUGHT_STAGED)
    } else if row.flags.has(NodeFlags::SUSPECT) || row.flags.has(NodeFlags::UNSETTLED) {
        Some(SOUGHT_OWED)
    } else {
        None
    };
    (row.origin.slot, row.origin.ino as i64, sought)
}

// What is known to be new is not put with REPLACE: for a statement that may end in the middle SQLite keeps a journal of its
// own. With FAIL a row that is there all the same is an error; it ends the unit, and its transaction with it.
const PUT_NODE: &str =
    "INSERT OR REPLACE INTO nodes(id, slot, ino, staged, data) VALUES (?1, ?2, ?3, ?4, ?5)";
const INSERT_NODE: &str =
    "INSERT OR FAIL INTO nodes(id, slot, ino, staged, data) VALUES (?1, ?2, ?3, ?4, ?5)";
const PUT_NAME: &str = "INSERT OR REPLACE INTO names(parent, name, node) VALUES (?1, ?2, ?3)";
const INSERT_NAME: &str = "INSERT OR FAIL INTO names(parent, name, node) VALUES (?1, ?2, ?3)";

/// What does not fit into a row of `undo`, in the order in which it was noted; the row holds what came last.
const UNDO_PARTS: &str = "CREATE TABLE IF NOT EXISTS undo_parts(
    seq INTEGER NOT NULL, part INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY(seq, part)) WITHOUT ROWID";

const SCHEMA: &str = "
BEGIN;
CREATE TABLE meta(key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE nodes(id INTEGER PRIMARY KEY, slot INTEGER NOT NULL, ino INTEGER NOT NULL, staged INTEGER, data BLOB NOT NULL);
CREATE INDEX nodes_ino ON nodes(ino, slot);
CREATE INDEX nodes_staged ON nodes(staged) WHERE staged IS NOT NULL;
CREATE TABLE names(parent INTEGER NOT NULL, name BLOB NOT NULL, node INTEGER NOT NULL, PRIMARY KEY(parent, name)) WITHOUT ROWID;
CREATE INDEX names_node ON names(node);
CREATE TABLE sums(node INTEGER NOT NULL, grp INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY(node, grp)) WITHOUT ROWID;
CREATE TABLE undo(seq INTEGER PRIMARY KEY, data BLOB NOT NULL);
PRAGMA user_version = 1;
COMMIT;
";

#[cfg(test)]
mod tests {
    use super::*;
    use farwrite_core::{Meta, Origin};

    #[test]
    fn a_name_is_added_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut index = Index::open(&dir.path().join("index"), 1 << 20).unwrap();
        index.begin().unwrap();
        let (parent, name) = (NodeId(5), Name::new("a").unwrap());
        assert!(!index.has_children(parent).unwrap());
        assert!(index.add_name(parent, &name, NodeId(6)).unwrap());
        // A listing may tell the same name twice: what has it stays known, so that its end can be told.
        assert!(!index.add_name(parent, &name, NodeId(7)).unwrap());
        assert_eq!(index.lookup(parent, &name).unwrap(), Some(NodeId(6)));
        assert!(index.has_children(parent).unwrap());
        assert_eq!(
            index.put_name(parent, &name, NodeId(7)).unwrap(),
            Some(NodeId(6))
        );
    }

    #[test]
    fn after_another_start_of_the_machine_what_changed_last_is_doubted() {
        let dir = tempfile::tempdir().unwrap();
        let mut index = Index::open(&dir.path().join("index"), 1 << 20).unwrap();
        assert_eq!(index.note_boot("first").unwrap(), 0);
        let now = index.state().time;
        let at = |seconds| now.after(Duration::from_secs(seconds));
        // Changed when the last batch was closed, long before, and a directory.
        let row = |kind, ctime| NodeRow {
            meta: Meta {
                kind,
                ..Meta::plain_dir()
            },
            origin: Origin {
                slot: 1,
                ctime,
                ..Origin::default()
            },
            flags: NodeFlags::default(),
            sum: [0; 16],
        };
        index.begin().unwrap();
        let rows = [
            (2, row(Kind::File, at(10_000))),
            (3, row(Kind::File, at(1))),
            (4, row(Kind::Dir, at(10_000))),
        ];
        for (id, row) in &rows {
            index.add_node(NodeId(*id), row).unwrap();
        }
        let commit = Commit {
            seq: BatchSeq(1),
            epoch: index.state().epoch,
            time: at(10_000),
            clean: true,
            ops: 0,
            blocks: 0,
            next_node: NodeId(5),
            chain: [0; 32],
        };
        index.commit_batch(&commit).unwrap();
        assert_eq!(index.note_boot("first").unwrap(), 0);
        assert_eq!(index.owed().unwrap(), []);
        for (boot, doubted) in [("second", 1), ("second", 0)] {
            assert_eq!(index.note_boot(boot).unwrap(), doubted);
            let owed = index.owed().unwrap();
            assert_eq!(owed.iter().map(|(id, _)| id.0).collect::<Vec<_>>(), [2]);
        }
    }

    #[test]
    fn a_row_is_found_by_what_it_says_now() {
        let dir = tempfile::tempdir().unwrap();
        let mut index = Index::open(&dir.path().join("index"), 1 << 20).unwrap();
        index.begin().unwrap();
        let id = index.new_node();
        let row = |ino, flags| NodeRow {
            meta: Meta {
                mode: 0o644,
                ..Meta::plain_dir()
            },
            origin: Origin {
                slot: 3,
                ino,
                ..Origin::default()
            },
            flags,
            sum: [0; 16],
        };
        let none = NodeFlags::default();
        let owed = none.with(NodeFlags::SUSPECT, true);
        let known = |index: &Index, ino| {
            let found = index.by_ino(3, ino).unwrap();
            let sought = index.owed().unwrap().len();
            (found.len(), found.first().map(|f| f.1.meta.mode), sought)
        };
        index.add_node(id, &row(7, none)).unwrap();
        assert!(index.add_node(id, &row(8, none)).is_err());
        assert_eq!(known(&index, 7), (1, Some(0o644), 0));
        // The same keys, other attributes.
        let mut other = row(7, none);
        other.meta.mode = 0o600;
        index.put_node(id, &other).unwrap();
        assert_eq!(known(&index, 7), (1, Some(0o600), 0));
        index.put_node(id, &row(7, owed)).unwrap();
        assert_eq!(known(&index, 7), (1, Some(0o644), 1));
        index.put_node(id, &row(9, none)).unwrap();
        assert_eq!(known(&index, 7), (0, None, 0));
        assert_eq!(known(&index, 9), (1, Some(0o644), 0));
    }
}
