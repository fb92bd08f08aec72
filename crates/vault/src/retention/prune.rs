//! Prunes: plans, says durably what stays, thins the catalog, frees the content that nothing needs any more. It may be stopped
//! anywhere, by a kill too: what was begun is gone on with the next time, and each step leaves a state in which every kept
//! moment is whole. It must never write to the catalog itself (its one owner does, in small steps), nor go on with a catalog
//! that it has reason to doubt.

use super::brake::Brake;
use super::kept::Kept;
use super::live::Live;
use super::marks::MarksLock;
use super::plan::{Plan, Planner};
use super::policy::Policy;
use crate::catalog::{
    self, BATCH_COLUMNS, BatchRow, CATALOG_VERSION, Forget, MOMENT_COLUMNS, Mark, batch_row,
    moment_row,
};
use crate::segment::{DeadBlock, LogError, can_free, free_blocks, freeable};
use crate::vault::{Vault, VaultError};
use farwrite_core::{BatchSeq, SourceName, Timestamp};
use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Rows looked at in one step of thinning, and blocks in one step of freeing.
const STEP_ROWS: usize = 4096;

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct PruneOptions {
    /// What is to be kept; `None`: only go on with what was begun.
    pub policy: Option<Policy>,
    /// The time at the vault.
    pub now: Timestamp,
}

/// What was done, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneReport {
    /// Moments that can be asked for.
    pub moments_kept: u64,
    /// Moments that could be before, and cannot now.
    pub moments_dropped: u64,
    /// The oldest that can.
    pub oldest: Option<Timestamp>,
    /// Every moment from this one on is kept.
    pub every_since: Option<Timestamp>,
    /// Blocks whose content was freed.
    pub blocks: u64,
    /// Bytes given back to the filesystem.
    pub bytes_freed: u64,
    /// Bytes of content that nothing needs but that stay: pieces smaller than 4096 bytes.
    pub bytes_left: u64,
    /// Blocks left alone since the log has something else in their place.
    pub strangers: u64,
    /// It was stopped before its end, and will be gone on with.
    pub stopped: bool,
}

/// Why nothing (more) was pruned.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// There is nothing yet.
    #[error("there is no backup yet")]
    Empty,
    /// The log is damaged: first see what can be saved.
    #[error(
        "{0} batches are damaged, so it is not certain what is still needed: nothing is pruned (farwrite vault verify says more)"
    )]
    Damaged(u64),
    /// The brake is set.
    #[error(
        "the ransomware brake is set, so nothing is pruned: {0} (farwrite vault release lets go of it)"
    )]
    Brake(String),
    /// The catalog is not what it should be.
    #[error("catalog: {0}: nothing is pruned")]
    Catalog(String),
    /// It is not possible here.
    #[error("the filesystem of {0} cannot free parts of a file: nothing is pruned")]
    CannotFree(PathBuf),
    /// The catalog's owner could not do its part.
    #[error("{0}")]
    Writer(String),
    /// The vault's files.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Reading the catalog.
    #[error("catalog: {0}")]
    Sqlite(#[from] rusqlite::Error),
}

/// Takes rows out of the catalog; called with a few thousand at most.
pub type Write<'a> = &'a mut dyn FnMut(Forget) -> Result<(), String>;

type Done<T = ()> = Result<T, PruneError>;

/// What pruning would do now. Changes nothing, and needs no lock.
pub fn preview(vault: &Vault, name: &SourceName, options: &PruneOptions) -> Done<PruneReport> {
    let never = |_| Err("a preview writes nothing".to_string());
    Run::open(vault, name, options, &mut { never }, &|| true)?.preview()
}

/// Prunes one source. `write` takes rows out of the catalog; between steps `keep_going` is asked. The caller holds the source's
/// lock, and whoever owns the catalog does the writing.
pub fn prune(
    vault: &Vault,
    name: &SourceName,
    options: &PruneOptions,
    write: Write<'_>,
    keep_going: &dyn Fn() -> bool,
) -> Done<PruneReport> {
    let dir = vault.source_dir(name);
    if Brake::is_set(&dir) {
        let why = Brake::load(&dir).map_or_else(|| "its file cannot be read".into(), |b| b.why);
        return Err(PruneError::Brake(why));
    }
    let keep_going = || keep_going() && !Brake::is_set(&dir);
    Run::open(vault, name, options, write, &keep_going)?.prune()
}

struct Run<'a> {
    vault: &'a Vault,
    dir: PathBuf,
    options: &'a PruneOptions,
    write: Write<'a>,
    keep_going: &'a dyn Fn() -> bool,
    conn: Connection,
    newest: BatchRow,
    report: PruneReport,
}

impl<'a> Run<'a> {
    fn open(
        vault: &'a Vault,
        name: &SourceName,
        options: &'a PruneOptions,
        write: Write<'a>,
        keep_going: &'a dyn Fn() -> bool,
    ) -> Done<Self> {
        let dir = vault.source_dir(name);
        let db = dir.join("catalog.db");
        if !db.exists() {
            return Err(PruneError::Empty);
        }
        let conn = catalog::open_reader(&db)?;
        let newest = catalog::newest_batch(&conn)?.ok_or(PruneError::Empty)?;
        check(&conn)?;
        Ok(Run {
            vault,
            dir,
            options,
            write,
            keep_going,
            conn,
            newest,
            report: PruneReport::default(),
        })
    }

    fn preview(mut self) -> Done<PruneReport> {
        let marks = super::Marks::load(&self.dir)?;
        let plan = self.plan(&Kept::load(&self.dir)?, &marks.seqs())?;
        self.describe(&plan)?;
        if plan.kept.horizon.0 == 0 {
            return Ok(self.report);
        }
        // One snapshot: the scan and the blocks belong together.
        let tx = self.conn.unchecked_transaction()?;
        if let Some(live) = Live::scan(&self.conn, &plan.kept, self.keep_going)? {
            let mut after = -1;
            while let Some(step) = dead_blocks(&self.conn, &live, after, self.closed_before())? {
                after = step.last;
                step.dead
                    .values()
                    .flatten()
                    .for_each(|b| count(&mut self.report, &b.1));
            }
        }
        drop(tx);
        Ok(self.report)
    }

    fn prune(mut self) -> Done<PruneReport> {
        let kept = self.decide()?;
        let done = catalog::read_mark(&self.conn, Mark::Thinned)?;
        if kept.horizon.0 == 0 || done == self.stamp(&kept) {
            return Ok(self.report);
        }
        self.report.stopped = !self.take_away(&kept)?;
        Ok(self.report)
    }

    /// Settles what is kept. When it returns, that is on the disk, and nothing has been taken away yet.
    fn decide(&mut self) -> Done<Kept> {
        // No mark is set between the look at the marks and the list.
        let lock = MarksLock::take(&self.dir)?;
        // All that came before may have taken minutes.
        if let Some(brake) = Brake::load(&self.dir) {
            return Err(PruneError::Brake(brake.why));
        }
        let old = Kept::load(&self.dir)?;
        if self.newest.commit.seq < old.horizon {
            let why = "it is still being made anew from the log".into();
            return Err(PruneError::Catalog(why));
        }
        let plan = self.plan(&old, &lock.marks()?.seqs())?;
        self.describe(&plan)?;
        let wanted = plan.kept.horizon.0 > 0;
        if wanted && !plan.kept.is_saved(&self.dir) {
            if !can_free(&self.dir.join("log"))? {
                return Err(PruneError::CannotFree(self.dir.clone()));
            }
            self.vault.note_pruning()?;
            plan.kept.save(&self.dir)?;
        }
        Ok(plan.kept)
    }

    fn plan(&self, old: &Kept, marks: &[BatchSeq]) -> Done<Plan> {
        let newest = self.newest.commit.time;
        // Without a policy nothing more is dropped.
        let policy = self.options.policy.unwrap_or_default();
        let mut planner = Planner::new(&policy, marks, newest, self.options.now);
        let mut moments = self.conn.prepare(&format!(
            "SELECT {MOMENT_COLUMNS} FROM batches WHERE seq<=?1 ORDER BY seq"
        ))?;
        let mut rows = moments.query([self.newest.commit.seq.0 as i64])?;
        while let Some(r) = rows.next()? {
            let moment = moment_row(r)?;
            if old.contains(moment.seq) {
                planner.push(moment);
            }
        }
        Ok(planner.finish(old))
    }

    fn describe(&mut self, plan: &Plan) -> Done {
        self.report.moments_kept = plan.moments_kept;
        self.report.moments_dropped = plan.moments_dropped;
        self.report.oldest = self.time_of(plan.kept.first())?;
        self.report.every_since = self.time_of(plan.kept.horizon.max(BatchSeq(1)))?;
        Ok(())
    }

    fn time_of(&self, seq: BatchSeq) -> Done<Option<Timestamp>> {
        let sql = format!("SELECT {BATCH_COLUMNS} FROM batches WHERE seq=?1");
        let row = self.conn.query_row(&sql, [seq.0 as i64], batch_row);
        Ok(row.optional()?.map(|r| r.commit.time))
    }

    /// Segments before this one hold nothing that recovery could ever cut off.
    fn closed_before(&self) -> i64 {
        self.newest.end.segment as i64
    }

    /// Stands for a prune that came to its end: as long as it does not change there is nothing to do.
    fn stamp(&self, kept: &Kept) -> u64 {
        kept.fingerprint(self.newest.end.segment)
    }

    fn write(&mut self, what: Forget) -> Done {
        (self.write)(what).map_err(PruneError::Writer)
    }

    /// False if it was stopped.
    fn take_away(&mut self, kept: &Kept) -> Done<bool> {
        let stamp = self.stamp(kept);
        if !(self.thin_names(kept)? && self.thin_attrs(kept)? && self.thin_extents(kept)?) {
            return Ok(false);
        }
        // After a power cut the catalog must not be one that still needs what is freed below.
        self.write(Forget::Note(Mark::Thinning, stamp))?;
        let Some(live) = Live::scan(&self.conn, kept, self.keep_going)? else {
            return Ok(false);
        };
        let (mut after, log) = (-1, self.dir.join("log"));
        while let Some(step) = dead_blocks(&self.conn, &live, after, self.closed_before())? {
            after = step.last;
            for (segment, blocks) in step.dead {
                if !(self.keep_going)() {
                    return Ok(false);
                }
                self.free(&log, segment, &blocks)?;
            }
        }
        self.write(Forget::Note(Mark::Thinned, stamp))?;
        Ok(true)
    }

    fn free(&mut self, log: &Path, segment: u64, blocks: &[(i64, DeadBlock)]) -> Done {
        let mut report = PruneReport::default();
        blocks.iter().for_each(|(_, b)| count(&mut report, b));
        let large: Vec<DeadBlock> = blocks
            .iter()
            .map(|(_, b)| *b)
            .filter(|b| freeable(b.offset, b.stored).1 > 0)
            .collect();
        if !large.is_empty() {
            let freed = free_blocks(log, segment, &large)?;
            report.bytes_freed = freed.bytes;
            self.report.strangers += freed.strangers;
            if freed.strangers > 0 {
                // Which ones does not matter: all rows stay, and are looked at again the next time.
                self.add(&report);
                return Ok(());
            }
        }
        self.write(Forget::Blocks(blocks.iter().map(|(id, _)| *id).collect()))?;
        self.add(&report);
        Ok(())
    }

    fn add(&mut self, more: &PruneReport) {
        self.report.blocks += more.blocks;
        self.report.bytes_freed += more.bytes_freed;
        self.report.bytes_left += more.bytes_left;
    }

    fn thin_names(&mut self, kept: &Kept) -> Done<bool> {
        let mut after = (i64::MIN, Vec::new(), i64::MIN);
        loop {
            let page: Vec<(i64, Vec<u8>, i64, i64)> = self
                .conn
                .prepare_cached(
                    "SELECT parent, name, to_seq, from_seq FROM names_old
                     WHERE (parent, name, to_seq) > (?1, ?2, ?3) ORDER BY parent, name, to_seq LIMIT ?4",
                )?
                .query_map((after.0, &after.1, after.2, STEP_ROWS as i64), |r| {
                    Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?))
                })?
                .collect::<Result<_, _>>()?;
            let Some(last) = page.last() else {
                return Ok(true);
            };
            after = (last.0, last.1.clone(), last.2);
            let gone = page.into_iter().filter(|r| !kept.needs(r.3, r.2));
            let gone: Vec<_> = gone.map(|r| (r.0, r.1, r.2)).collect();
            if !(self.keep_going)() {
                return Ok(false);
            }
            if !gone.is_empty() {
                self.write(Forget::Names(gone))?;
            }
        }
    }

    fn thin_attrs(&mut self, kept: &Kept) -> Done<bool> {
        let mut after = (i64::MIN, i64::MIN);
        loop {
            let page: Vec<(i64, i64, i64)> = self
                .conn
                .prepare_cached(
                    "SELECT node, to_seq, from_seq FROM attrs_old
                     WHERE (node, to_seq) > (?1, ?2) ORDER BY node, to_seq LIMIT ?3",
                )?
                .query_map((after.0, after.1, STEP_ROWS as i64), |r| {
                    Ok((r.get(0)?, r.get(1)?, r.get(2)?))
                })?
                .collect::<Result<_, _>>()?;
            let Some(last) = page.last() else {
                return Ok(true);
            };
            after = (last.0, last.1);
            let gone = page.into_iter().filter(|r| !kept.needs(r.2, r.1));
            let gone: Vec<_> = gone.map(|r| (r.0, r.1)).collect();
            if !(self.keep_going)() {
                return Ok(false);
            }
            if !gone.is_empty() {
                self.write(Forget::Attrs(gone))?;
            }
        }
    }

    fn thin_extents(&mut self, kept: &Kept) -> Done<bool> {
        let mut after = (i64::MIN, i64::MIN, i64::MIN);
        loop {
            let page: Vec<(i64, i64, i64, i64)> = self
                .conn
                .prepare_cached(
                    "SELECT node, to_seq, offset, from_seq FROM extents_old
                     WHERE (node, to_seq, offset) > (?1, ?2, ?3) ORDER BY node, to_seq, offset LIMIT ?4",
                )?
                .query_map((after.0, after.1, after.2, STEP_ROWS as i64), |r| {
                    Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?))
                })?
                .collect::<Result<_, _>>()?;
            let Some(last) = page.last() else {
                return Ok(true);
            };
            after = (last.0, last.1, last.2);
            let gone = page.into_iter().filter(|r| !kept.needs(r.3, r.1));
            let gone: Vec<_> = gone.map(|r| (r.0, r.1, r.2)).collect();
            if !(self.keep_going)() {
                return Ok(false);
            }
            if !gone.is_empty() {
                self.write(Forget::Extents(gone))?;
            }
        }
    }
}

fn count(report: &mut PruneReport, block: &DeadBlock) {
    let (_, len) = freeable(block.offset, block.stored);
    report.blocks += u64::from(len > 0);
    report.bytes_freed += len;
    report.bytes_left += u64::from(block.stored) - len;
}

/// Reasons to doubt the catalog. What it says decides what is freed, so it has to be beyond doubt.
fn check(conn: &Connection) -> Done {
    let version: i64 = conn.pragma_query_value(None, "user_version", |r| r.get(0))?;
    if version != CATALOG_VERSION {
        return Err(PruneError::Catalog("it is of another version".into()));
    }
    let (count, first, last, damaged): (i64, i64, i64, i64) = conn.query_row(
        "SELECT count(*), min(seq), max(seq), count(damage) FROM batches",
        [],
        |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?)),
    )?;
    if damaged > 0 {
        return Err(PruneError::Damaged(damaged as u64));
    }
    if first != 1 || last != count {
        return Err(PruneError::Catalog("batches are missing in it".into()));
    }
    // Whatever its size: content that it wrongly takes for unneeded is gone for good.
    let answer: String = conn.query_row("PRAGMA quick_check(1)", [], |r| r.get(0))?;
    if answer != "ok" {
        return Err(PruneError::Catalog(answer));
    }
    Ok(())
}

/// Dead blocks among the next few, by segment, with their ids.
struct DeadStep {
    dead: BTreeMap<u64, Vec<(i64, DeadBlock)>>,
    last: i64,
}

/// `None` once there are no more blocks in closed segments.
fn dead_blocks(
    conn: &Connection,
    live: &Live,
    after: i64,
    closed_before: i64,
) -> rusqlite::Result<Option<DeadStep>> {
    let mut sql = conn.prepare_cached(
        // Not the last one: its row has to stay, and would be counted again each time.
        "SELECT id, segment, offset, stored, seq FROM blocks
         WHERE id>?1 AND segment<?2 AND id<(SELECT max(id) FROM blocks) ORDER BY id LIMIT ?3",
    )?;
    let mut rows = sql.query((after, closed_before, STEP_ROWS as i64))?;
    let (mut dead, mut last): (BTreeMap<u64, Vec<_>>, _) = (BTreeMap::new(), None);
    while let Some(r) = rows.next()? {
        let id: i64 = r.get(0)?;
        last = Some(id);
        let segment = r.get::<_, i64>(1)? as u64;
        // Segment 0: lost.
        if segment > 0 && !live.contains(id as u64) {
            let block = DeadBlock {
                offset: r.get::<_, i64>(2)? as u64,
                stored: r.get(3)?,
                seq: BatchSeq(r.get::<_, i64>(4)? as u64),
            };
            dead.entry(segment).or_default().push((id, block));
        }
    }
    Ok(last.map(|last| DeadStep { dead, last }))
}
