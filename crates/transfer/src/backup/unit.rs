//! The backup unit itself: carries out a round of backup commands and closes batches.

use super::ahead::ReadAhead;
use super::batch::{BatchWriter, RecordSink, SinkClosed};
use super::doubts::{MOUNTS_EVERY, untold};
use super::file::RANGES_HELD;
use super::index::{Index, IndexError, SLOT_NONE};
use super::rows::{NodeFlags, NodeRow};
use super::seen::{Now, Seen, Told};
use super::tree::{OpenDir, Root, RootSpec, Tree};
use farwrite_core::{
    BackupCommand, BatchSeq, BytePath, Change, ChangeOp, ChangeSeq, Clock, Commit, Extent, FileId,
    Kind, Meta, Name, NodeId, Op, Origin, Search, Target, Timestamp, What,
};
use farwrite_fs::{Dir, Stat, list_xattrs, read_meta_with};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Times are trusted to show a later change once the last read is this much later than them: more than one tick
/// of the slowest kernel clock (10 ms at HZ=100).
pub(super) const TICK: Duration = Duration::from_millis(25);
/// The same where a filesystem keeps whole seconds, or two of them (FAT, ext4 with small inodes, much of FUSE).
const COARSE_TICK: Duration = Duration::from_secs(2);
/// Files remembered as read in part, and as read too soon; of more, the index alone knows, and a compare reads them.
pub(super) const DOUBTS_HELD: usize = 100_000;
/// Files that could not be read are tried again after this time.
const RETRY: Duration = Duration::from_secs(30);
/// A round of this many commands about names and files is one of several.
const BACKLOG: usize = 2048;
/// Files that one round tells of.
pub const FILES_TOLD: usize = 256;
/// A file that was read whole in less time than this may be read again as often as it changes.
const LONG_SEARCH: Duration = Duration::from_micros(500);
/// Files that one round says of that they took long.
const SEARCHES_TOLD: usize = 256;
/// Problems remembered one by one; beyond that they are only counted.
const PROBLEMS: usize = 1000;

/// The tick of a file's times.
pub(super) fn tick_of(stat: &Stat) -> Duration {
    match stat.ctime.nsec == 0 && stat.mtime.nsec == 0 {
        true => COARSE_TICK,
        false => TICK,
    }
}

/// What ends the unit's work.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    /// The index failed.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The link was closed.
    #[error(transparent)]
    Closed(#[from] SinkClosed),
    /// A protected directory cannot be used.
    #[error("{path}: {why}")]
    Root {
        /// Which.
        path: BytePath,
        /// Why, and what to do.
        why: String,
    },
}

/// Something that could not be backed up. It is tried again every half minute and at every change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub path: BytePath,
    /// What the system said.
    pub why: String,
    /// Since when.
    pub since: Timestamp,
    pub(super) retry_at: Timestamp,
    pub(super) command: BackupCommand,
}

/// Counters since the unit was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackupStats {
    /// Backup commands carried out.
    pub commands: u64,
    /// Names looked at.
    pub entries: u64,
    /// Files whose content was read.
    pub files_read: u64,
    /// Bytes of content read.
    pub bytes_read: u64,
    /// Bytes of content that were new and went into batches.
    pub bytes_new: u64,
    /// Bytes of all records sent.
    pub bytes_sent: u64,
    /// Batches closed.
    pub batches: u64,
    /// Operations in them.
    pub ops: u64,
    /// Nodes that kept their content under another name.
    pub renames: u64,
    /// Files that changed while they were read.
    pub unsettled: u64,
    /// Times that something could not be read.
    pub problems: u64,
    /// Directories still to be compared.
    pub compares_open: u64,
}

/// A file whose content was sent, for those who watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentFile {
    /// Where it is.
    pub path: BytePath,
    /// Bytes of its content that were new, before compression.
    pub bytes_new: u64,
}

/// What became of a round.
#[derive(Debug, Default)]
pub struct RoundReport {
    /// Files that were sent, at most [`FILES_TOLD`] and only if [`BackupUnit::tell_files`] asked for them.
    pub files: Vec<SentFile>,
    /// To be looked at again; `true`: after the sensor has been emptied.
    pub put_back: Vec<(BackupCommand, bool)>,
    /// Last batch closed in the round.
    pub batch: Option<BatchSeq>,
    /// Files that took long to be read whole.
    pub searches: Vec<Search>,
}

/// See [`super`].
pub struct BackupUnit {
    pub(super) index: Index,
    pub(super) tree: Tree,
    pub(super) batch: BatchWriter,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) stats: BackupStats,
    pub(super) put_back: Vec<(BackupCommand, bool)>,
    searches: Vec<Search>,
    /// Files sent in this round, if somebody wants to know.
    pub(super) files: Option<Vec<SentFile>>,
    /// Directories whose names changed, with the first message about any of them.
    touched: BTreeMap<NodeId, (ChangeSeq, Timestamp)>,
    /// First message of the command that is being carried out, and its time.
    current: (ChangeSeq, Timestamp),
    /// This round is one of several: what it shares with the next can wait for that.
    backlog: bool,
    pub(super) lost: Vec<NodeId>,
    /// Directories whose recursive compare is in the queue, and the protected directory that each is in.
    pub(super) compares: HashMap<FileId, u32>,
    /// Directories that a compare has not found where they were: what is below them has not been compared.
    pub(super) missing: HashSet<NodeId>,
    /// Those of them that were new when they were put there: as long as nothing in them is known, all files are to be read.
    pub(super) new_dirs: HashMap<FileId, NodeId>,
    pub(super) ahead: ReadAhead,
    /// Protected directories that have not been compared since the start.
    pub(super) owed: HashSet<FileId>,
    /// More problems than are remembered.
    problems_lost: bool,
    /// When a compare for those was last asked for.
    lost_retry_at: Timestamp,
    /// Files read in this round.
    pub(super) read_now: HashSet<NodeId>,
    pub(super) seen: Seen,
    pub(super) now: Now,
    /// [`BackupStats::commands`] when it was idle last.
    commands_at_idle: u64,
    /// What was read within the tick of its last change, and from when on another change would have been told of.
    /// Of more than are remembered the index alone knows, and a compare reads them.
    pub(super) racy: HashMap<NodeId, Timestamp>,
    /// See [`BackupUnit::set_blind`].
    pub(super) blind: Arc<AtomicBool>,
    /// See [`NodeFlags::PARTIAL`]: when each was last read so.
    pub(super) partial: HashMap<NodeId, Timestamp>,
    pub(super) problems: BTreeMap<BytePath, Problem>,
    pub(super) boundaries: BTreeSet<BytePath>,
    /// When those were last looked at.
    pub(super) boundaries_at: Timestamp,
    last_batch: Option<BatchSeq>,
    last_clean: bool,
    /// The index says that something was left out ([`Index::is_incomplete`]).
    incomplete: bool,
    /// Nothing is left out any more once the vault has this batch.
    complete_at: Option<BatchSeq>,
    /// See [`BackupUnit::set_ranges_held`].
    pub(super) ranges_held: usize,
    /// See [`BackupUnit::set_backlog`].
    backlog_from: usize,
    /// See [`BackupUnit::set_helped`].
    pub(super) helped: bool,
    pub(super) writeback: Writeback,
}

/// Starts writing a file's dirty pages of a range to disk, after any such write of them that is under way.
pub type Writeback = Box<dyn Fn(&File, Extent) -> io::Result<()> + Send>;

impl BackupUnit {
    /// What starts writeback before mapped bytes are read ([`farwrite_core::ChangeOp::Mapped`]); without it such
    /// files are synced to disk.
    pub fn set_writeback(&mut self, writeback: Writeback) {
        self.writeback = writeback;
    }

    /// What tells the last message that had been told by the time of the call ([`BackupCommand::newest`]). It is asked before a
    /// file is read: what messages up to there are about need not be read again. Without it that holds within a round
    /// only.
    pub fn set_told(&mut self, told: Told) {
        self.now.told = told;
        self.ahead.set_now(self.now.clone());
    }

    /// Sets how many ranges of a large file are kept apart while it is staged (at least 1): what a test makes small.
    pub fn set_ranges_held(&mut self, max: usize) {
        self.ranges_held = max.max(1);
    }

    /// Whether a large file may be compared by several threads: not where applications come first. So it is at first.
    pub fn set_helped(&mut self, helped: bool) {
        self.helped = helped;
    }

    /// While this is set no change is told of, all that happens is found by comparing: then what was read too soon after its last
    /// change is read once more by the next compare.
    pub fn set_blind(&mut self, blind: Arc<AtomicBool>) {
        self.blind = blind;
    }

    /// Sets from how many commands on a round counts as one of several (at least 1): what a test makes small.
    pub fn set_backlog(&mut self, commands: usize) {
        self.backlog_from = commands.max(1);
    }

    /// A unit over an index that has been settled with the vault (rolled back or replayed). Opens the protected
    /// directories and makes sure that they and the directories above them are in the index.
    pub fn new(
        mut index: Index,
        roots: Vec<RootSpec>,
        sink: Box<dyn RecordSink + Send>,
        clock: Arc<dyn Clock>,
    ) -> Result<BackupUnit, UnitError> {
        let state = index.state();
        let mut batch = BatchWriter::new(sink, state.seq.next(), &state.chain);
        if state.fresh {
            index.begin()?;
            batch.push(Op::Clear);
        }
        let mut unit = BackupUnit {
            index,
            tree: Tree::new(),
            batch,
            clock: clock.clone(),
            stats: BackupStats::default(),
            put_back: Vec::new(),
            searches: Vec::new(),
            files: None,
            touched: BTreeMap::new(),
            current: (ChangeSeq::UNKNOWN, Timestamp::default()),
            backlog: false,
            lost: Vec::new(),
            compares: HashMap::new(),
            missing: HashSet::new(),
            new_dirs: HashMap::new(),
            ahead: ReadAhead::new(Now::new(clock.clone())),
            owed: HashSet::new(),
            problems_lost: false,
            lost_retry_at: Timestamp::default(),
            read_now: HashSet::new(),
            seen: Seen::default(),
            now: Now::new(clock.clone()),
            commands_at_idle: 0,
            incomplete: false,
            complete_at: None,
            ranges_held: RANGES_HELD,
            backlog_from: BACKLOG,
            helped: false,
            writeback: Box::new(|file, _| file.sync_data()),
            racy: HashMap::new(),
            blind: Arc::default(),
            partial: HashMap::new(),
            problems: BTreeMap::new(),
            boundaries: BTreeSet::new(),
            boundaries_at: Timestamp::default(),
            last_batch: None,
            last_clean: false,
        };
        for spec in roots {
            unit.add_root(spec)?;
        }
        // First parts of transfers that an earlier run did not end.
        for (node, _) in unit.index.staged()? {
            unit.drop_staged(node)?;
        }
        unit.owed = unit.tree.roots().iter().map(|r| r.id).collect();
        unit.incomplete = unit.index.is_incomplete()?;
        // What was put into the index must not be committed without its batch.
        if unit.batch.is_empty() {
            unit.index.commit_quietly()?;
        } else {
            unit.close_as(false)?;
        }
        Ok(unit)
    }

    /// Goes on where an earlier process stopped, if all that has changed since is told of: nothing needs to be compared
    /// then, and what comes back is only what that process still owed. `None`: it left something out, compare.
    pub fn resume(&mut self) -> Result<Option<Vec<Change>>, UnitError> {
        if self.index.is_incomplete()? {
            return Ok(None);
        }
        let mut owed = Vec::new();
        for (_, row) in self.index.owed()? {
            let root = |slot| self.tree.roots().iter().find(move |r| r.spec.slot == slot);
            let Some(root) = root(row.origin.slot) else {
                return Ok(None);
            };
            owed.push(Change {
                time: self.clock.now(),
                path: root.spec.path.clone(),
                dir: root.id,
                name: None,
                file: Some(FileId {
                    dev: root.id.dev,
                    ino: row.origin.ino,
                }),
                op: ChangeOp::Write(None),
            });
        }
        self.owed.clear();
        Ok(Some(owed))
    }

    /// Opens the transaction of the next round: what the index hears of until [`BackupUnit::execute`] costs no other.
    pub fn begin(&mut self) -> Result<(), IndexError> {
        self.index.begin()
    }

    /// Carries out commands in order. `quiet` empties the sensor and says whether nothing is waiting; it is
    /// asked before the last batch of the round is closed.
    pub fn execute(
        &mut self,
        commands: Vec<BackupCommand>,
        quiet: &mut dyn FnMut() -> bool,
    ) -> Result<RoundReport, UnitError> {
        self.index.begin()?;
        self.last_batch = None;
        self.read_now.clear();
        let newest = commands.iter().map(|c| c.newest);
        let known = newest.filter(|n| *n != ChangeSeq::UNKNOWN);
        self.seen.begin(known.max().unwrap_or_default());
        self.read_ahead(&commands)?;
        // A compare has its directories looked at one after the other, each once.
        let directory = |c: &&BackupCommand| matches!(c.target, Target::Directory(_));
        let directories = commands.iter().filter(directory).count();
        self.backlog = commands.len() - directories >= self.backlog_from;
        let mut departures = Vec::new();
        for c in commands {
            self.stats.commands += 1;
            self.current = (c.first, c.since);
            match c.target.clone() {
                Target::Name { dir, name } => self.look_at_name(c, dir, &name, &mut departures)?,
                Target::File(id) => self.look_at_file(c, id)?,
                Target::Directory(id) => self.look_at_directory(c, id)?,
            }
            self.close_if_full()?;
        }
        for (c, parent, name) in departures {
            self.current = (c.first, c.since);
            self.depart(c, &parent, &name)?;
            self.close_if_full()?;
        }
        self.ahead.end();
        match self.backlog {
            true => self.refresh_touched_later()?,
            false => self.refresh_touched()?,
        }
        self.close(quiet)?;
        self.note_completeness(&mut || false)?;
        Ok(RoundReport {
            files: self.files.as_mut().map(std::mem::take).unwrap_or_default(),
            put_back: std::mem::take(&mut self.put_back),
            batch: self.last_batch,
            searches: std::mem::take(&mut self.searches),
        })
    }

    /// Has the new directories of a round read, in its order.
    fn read_ahead(&mut self, commands: &[BackupCommand]) -> Result<(), UnitError> {
        let mut plan = Vec::new();
        let compares = commands.iter().filter(|c| c.what.compare);
        for c in compares.filter(|_| !self.new_dirs.is_empty()) {
            let Target::Directory(id) = c.target else {
                continue;
            };
            let above = |r: &&Root| r.id.dev == id.dev && c.path.starts_with(&r.spec.path);
            if let Some(node) = self.new_dirs.get(&id)
                && let Some(root) = self.tree.roots().iter().find(above)
                && !self.index.has_children(*node)?
            {
                plan.push((root.place().clone(), c.path.clone(), id));
            }
        }
        self.ahead.plan(plan);
        Ok(())
    }

    /// Whether rounds from now on tell which files they sent.
    pub fn tell_files(&mut self, wanted: bool) {
        self.files = wanted.then(Vec::new);
    }

    /// For quiet moments: settles what was too fresh to trust, marks a clean point, closes handles. Returns commands
    /// whose time to be tried again has come.
    pub fn idle(
        &mut self,
        quiet: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<BackupCommand>, UnitError> {
        // Asked once: nothing is looked at in between.
        let mut asked = None;
        let quiet: &mut dyn FnMut() -> bool = &mut || *asked.get_or_insert_with(&mut *quiet);
        self.tree.close_all();
        self.ahead.rest();
        // One that is busy is told to be idle now and then, too.
        if std::mem::replace(&mut self.commands_at_idle, self.stats.commands) == self.stats.commands
        {
            let open = self.left_out() || self.catching_up();
            self.seen.clear(!open);
        }
        if self.compares.is_empty() {
            self.new_dirs.clear();
        }
        self.settle_racy(quiet)?;
        self.settle_partial(quiet)?;
        self.settle_missing(quiet);
        self.note_completeness(quiet)?;
        if !self.last_clean && self.index.state().seq > BatchSeq(0) && quiet() {
            self.close_as(true)?;
        }
        let now = self.clock.now();
        let mut due = self.leave_boundaries(now);
        for p in self.problems.values_mut().filter(|p| p.retry_at <= now) {
            p.retry_at = now.after(RETRY);
            due.push(p.command.clone());
        }
        if self.problems_lost && self.problems.len() < PROBLEMS && self.lost_retry_at <= now {
            // There were more than could be remembered: only a compare finds the others.
            self.problems_lost = false;
            self.lost_retry_at = now.after(RETRY);
            let what = What {
                compare: true,
                recursive: true,
                ..What::default()
            };
            due.extend(self.tree.roots().iter().map(|r| {
                let target = Target::Directory(r.id);
                untold(target, r.spec.path.clone(), what, now)
            }));
        }
        Ok(due)
    }

    /// In what time there is something to do for [`BackupUnit::idle`] if nothing changes; `None`: never.
    pub fn next_duty(&self) -> Option<Duration> {
        let unclean = !self.last_clean && self.index.state().seq > BatchSeq(0);
        let incomplete = self.incomplete && self.complete_at.is_none() && !self.left_out();
        if unclean || incomplete || !self.racy.is_empty() || !self.partial.is_empty() {
            return Some(TICK * 2);
        }
        let now = self.clock.now();
        let retries = self.problems.values().map(|p| p.retry_at);
        let lost = self.problems_lost.then_some(self.lost_retry_at);
        let mounted = !self.boundaries.is_empty();
        let mounts = mounted.then(|| self.boundaries_at.after(MOUNTS_EVERY));
        let all = retries.chain(lost).chain(mounts);
        all.min().map(|at| at.since(now))
    }

    /// Tells the unit that the vault has everything up to `seq`.
    pub fn acked(&mut self, seq: BatchSeq) -> Result<(), IndexError> {
        self.index.acked(seq)?;
        if self.complete_at.is_some_and(|at| at <= seq) {
            self.complete_at = None;
            self.incomplete = false;
            self.index.set_incomplete(false)?;
        }
        Ok(())
    }

    /// What would be left undone if this process ended now stays written in the index, until
    /// the vault has all of it.
    fn note_completeness(&mut self, quiet: &mut dyn FnMut() -> bool) -> Result<(), UnitError> {
        if self.left_out() || self.catching_up() {
            self.complete_at = None;
            if !self.incomplete {
                self.incomplete = true;
                self.index.set_incomplete(true)?;
            }
        } else if self.incomplete && self.complete_at.is_none() && quiet() {
            let state = self.index.state();
            self.complete_at = Some(state.seq);
            self.acked(state.acked)?;
        }
        Ok(())
    }

    /// The command that compares everything: first backup, and catch-up after a time without a sensor. Until that is done
    /// and the vault has it, a process after this one has to do so, too.
    pub fn compare_all(&mut self) -> Result<Vec<(FileId, BytePath)>, UnitError> {
        self.note_completeness(&mut || false)?;
        let roots = self.tree.roots().iter();
        Ok(roots.map(|r| (r.id, r.spec.path.clone())).collect())
    }

    /// Counters.
    pub fn stats(&self) -> BackupStats {
        BackupStats {
            bytes_sent: self.batch.sent_bytes(),
            compares_open: self.compares.len() as u64,
            ..self.stats
        }
    }

    /// What cannot be backed up at present, at most [`PROBLEMS`] of them.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.values()
    }

    /// Directories where another filesystem is mounted (or another subvolume begins): backed up as empty
    /// directories.
    pub fn boundaries(&self) -> impl Iterator<Item = &BytePath> {
        self.boundaries.iter()
    }

    /// The index, for questions.
    pub fn index(&self) -> &Index {
        &self.index
    }

    fn add_root(&mut self, spec: RootSpec) -> Result<(), UnitError> {
        let failed = |why: String| UnitError::Root {
            path: spec.path.clone(),
            why,
        };
        let dir =
            Dir::open_absolute(&spec.path).map_err(|e| failed(format!("cannot be opened: {e}")))?;
        let stat = dir.stat_self().map_err(|e| failed(e.to_string()))?;
        self.index.begin()?;
        let mut parent = NodeId::ROOT;
        let mut path = BytePath::root();
        let names: Vec<Name> = spec.path.names().collect();
        for (i, name) in names.iter().enumerate() {
            path.push(name);
            let is_root = i + 1 == names.len();
            let known = self.index.lookup(parent, name)?;
            let (slot, st) = match is_root {
                true => (spec.slot, stat),
                false => {
                    let above = Dir::open_absolute(&path).and_then(|d| d.stat_self());
                    (
                        SLOT_NONE,
                        above.map_err(|e| failed(format!("{path}: {e}")))?,
                    )
                }
            };
            let node = known.unwrap_or_else(|| self.index.new_node());
            if let Some(row) = self
                .index
                .node(node)?
                .filter(|_| is_root && known.is_some())
            {
                let emptied = !row.is(slot, &stat)
                    && row.origin.slot == slot
                    && row.origin.ino != stat.id.ino;
                if emptied
                    && !self.index.children(node)?.is_empty()
                    && dir.list().is_ok_and(|l| l.is_empty())
                {
                    return Err(failed(
                        "is another, empty directory than the one that was protected: is its disk mounted? \
                         (nothing was deleted in the vault)"
                            .into(),
                    ));
                }
            }
            if !is_root && known.is_some() {
                parent = node;
                continue;
            }
            let here = Dir::open_absolute(&path).map_err(|e| failed(e.to_string()))?;
            let xattrs = list_xattrs(&here, None).unwrap_or_default();
            let mut row = NodeRow {
                meta: read_meta_with(&st, Vec::new(), xattrs),
                origin: st.origin(slot),
                flags: NodeFlags::default(),
                sum: [0; 16],
            };
            if !is_root {
                // Directories above are not watched: their mtime would only be wrong later.
                row.meta.mtime = Timestamp::default();
            }
            self.send_node(node, row)?;
            self.send_name(parent, name, node)?;
            if is_root && known.is_none() {
                self.new_dirs.insert(stat.id, node);
            }
            parent = node;
        }
        self.tree.add_root(spec, parent, dir, stat.id);
        Ok(())
    }

    /// Sends a node's attributes if they differ from what was sent, and keeps the row.
    pub(super) fn send_node(&mut self, node: NodeId, row: NodeRow) -> Result<(), UnitError> {
        let old = self.index.node(node)?;
        let unsettled = row.flags.has(NodeFlags::UNSETTLED);
        if old
            .as_ref()
            .is_none_or(|o| o.meta != row.meta || o.flags.has(NodeFlags::UNSETTLED) != unsettled)
        {
            self.batch.push(Op::Node {
                node,
                meta: row.meta.clone(),
                origin: row.origin,
                unsettled,
            });
        }
        Ok(self.index.put_node(node, &row)?)
    }

    /// Sends a node of which the index knows nothing.
    pub(super) fn send_new_node(&mut self, node: NodeId, row: &NodeRow) -> Result<(), UnitError> {
        self.batch.push(Op::Node {
            node,
            meta: row.meta.clone(),
            origin: row.origin,
            unsettled: row.flags.has(NodeFlags::UNSETTLED),
        });
        Ok(self.index.add_node(node, row)?)
    }

    /// Sends a name that the index is thought not to have in this directory.
    pub(super) fn send_new_name(
        &mut self,
        parent: NodeId,
        name: &Name,
        node: NodeId,
    ) -> Result<(), UnitError> {
        if !self.index.add_name(parent, name, node)? {
            // A directory that changes while it is listed may tell a name twice.
            return self.send_name(parent, name, node);
        }
        self.batch.push(Op::Name {
            parent,
            name: name.clone(),
            node,
        });
        Ok(())
    }

    /// Sends a name if the index does not have it.
    pub(super) fn send_name(
        &mut self,
        parent: NodeId,
        name: &Name,
        node: NodeId,
    ) -> Result<(), UnitError> {
        let old = self.index.put_name(parent, name, node)?;
        if old != Some(node) {
            self.batch.push(Op::Name {
                parent,
                name: name.clone(),
                node,
            });
            self.lost.extend(old);
        }
        Ok(())
    }

    /// Sends the end of a name.
    pub(super) fn send_unname(&mut self, parent: NodeId, name: &Name) -> Result<(), UnitError> {
        if let Some(old) = self.index.del_name(parent, name)? {
            self.batch.push(Op::Unname {
                parent,
                name: name.clone(),
            });
            self.lost.push(old);
            self.touch(parent);
        }
        Ok(())
    }

    /// A directory's names changed, or may have: its times have, too.
    pub(super) fn touch(&mut self, dir: NodeId) {
        let first = self.touched.entry(dir).or_insert(self.current);
        *first = self.current.min(*first);
    }

    /// Brings the attributes of directories whose names changed up to date: their mtime changed without a message.
    fn refresh_touched(&mut self) -> Result<(), UnitError> {
        for (node, first) in std::mem::take(&mut self.touched) {
            let Some(dir) = self.open_touched(node, first)? else {
                continue;
            };
            let (Ok(stat), Some(row)) = (dir.dir.stat_self(), self.index.node(node)?) else {
                continue;
            };
            if row.origin.ctime != stat.ctime || row.meta.mtime != stat.mtime {
                self.refresh_dir(&dir, row, &stat)?;
            }
        }
        Ok(())
    }

    fn open_touched(
        &mut self,
        node: NodeId,
        first: (ChangeSeq, Timestamp),
    ) -> Result<Option<OpenDir>, UnitError> {
        let dir = self.tree.open_node(&self.index, node)?;
        if dir.is_none() && self.index.node(node)?.is_some() {
            // Moved, and the message about it is still to come: once more then.
            self.touched.insert(node, first);
        }
        Ok(dir)
    }

    /// Puts the same into the queue: with many commands waiting, a directory is touched by round after round.
    fn refresh_touched_later(&mut self) -> Result<(), UnitError> {
        for (node, (first, since)) in std::mem::take(&mut self.touched) {
            let Some(dir) = self.open_touched(node, (first, since))? else {
                continue;
            };
            let later = BackupCommand {
                path: dir.path,
                target: Target::Directory(dir.id),
                what: What {
                    attr: true,
                    ..What::default()
                },
                extents: None,
                first,
                since,
                newest: ChangeSeq(0),
                attempts: 0,
            };
            self.put_back.push((later, false));
        }
        Ok(())
    }

    /// Sends a directory's own attributes.
    pub(super) fn refresh_dir(
        &mut self,
        dir: &OpenDir,
        mut row: NodeRow,
        stat: &Stat,
    ) -> Result<(), UnitError> {
        match list_xattrs(&dir.dir, None) {
            Ok(xattrs) => row.meta = read_meta_with(stat, Vec::new(), xattrs),
            Err(e) => self.problem(&dir.path, &e, None),
        }
        row.origin = stat.origin(row.origin.slot);
        self.send_node(dir.node, row)
    }

    pub(super) fn close_if_full(&mut self) -> Result<(), UnitError> {
        if self.batch.is_full() {
            if !self.backlog {
                self.refresh_touched()?;
            }
            self.close(&mut || false)?;
            self.index.begin()?;
        }
        Ok(())
    }

    /// Closes the batch if there is anything in it.
    fn close(&mut self, quiet: &mut dyn FnMut() -> bool) -> Result<(), UnitError> {
        if self.batch.is_empty() {
            return Ok(self.index.commit_quietly()?);
        }
        let clean = self.put_back.is_empty() && self.compares.is_empty() && quiet();
        self.close_as(clean)
    }

    pub(super) fn close_as(&mut self, clean: bool) -> Result<(), UnitError> {
        self.index.begin()?;
        let lost = std::mem::take(&mut self.lost);
        for dir in self.index.remove_orphans(lost)? {
            self.tree.forget(dir);
        }
        let state = self.index.state();
        let commit = Commit {
            seq: self.batch.seq(),
            epoch: state.epoch,
            time: self.clock.now().max(state.time),
            clean: clean && !self.left_out(),
            ops: 0,
            blocks: 0,
            next_node: NodeId(state.next_node),
            chain: [0; 32],
        };
        let index = &mut self.index;
        let commit = self
            .batch
            .finish(commit, |c| index.commit_batch(c).map_err(UnitError::from))?;
        self.stats.batches += 1;
        self.stats.ops += commit.ops;
        self.last_clean = clean;
        self.last_batch = Some(commit.seq);
        Ok(())
    }

    /// Notes how long it took to read a known file whole, and what that was good for, if it took long.
    pub(super) fn searched(
        &mut self,
        c: &BackupCommand,
        id: FileId,
        took: Duration,
        (read, new): (u64, u64),
    ) {
        if took < LONG_SEARCH || self.searches.len() >= SEARCHES_TOLD {
            return;
        }
        let in_vain = read.saturating_sub(new) as f64 / read.max(1) as f64;
        let named = matches!(c.target, Target::Name { .. }).then(|| c.target.clone());
        for target in named.into_iter().chain([Target::File(id)]) {
            self.searches.push(Search {
                target,
                took,
                in_vain,
            });
        }
    }

    /// Could something not be read, and is to be tried again?
    pub(super) fn left_out(&self) -> bool {
        !self.problems.is_empty() || self.problems_lost
    }

    /// Is there something whose changes nobody has watched, and that has not been compared yet?
    pub(super) fn catching_up(&self) -> bool {
        !self.owed.is_empty() || !self.compares.is_empty()
    }

    /// Notes that something could not be backed up; `command` is tried again later.
    pub(super) fn problem(
        &mut self,
        path: &BytePath,
        e: &io::Error,
        command: Option<&BackupCommand>,
    ) {
        self.stats.problems += 1;
        tracing::warn!(%path, error = %e, "cannot be backed up");
        let now = self.clock.now();
        let since = self.problems.get(path).map_or(now, |p| p.since);
        if let Some(c) = command
            && (self.problems.len() < PROBLEMS || self.problems.contains_key(path))
        {
            let mut command = c.clone();
            if let Some(p) = self.problems.get(path)
                && p.command.target == command.target
            {
                // What was to be done there before still is.
                let before = &p.command;
                command.what = command.what.or(before.what);
                command.extents = None;
                (command.first, command.since) =
                    (command.first, command.since).min((before.first, before.since));
                command.newest = command.newest.max(before.newest);
            }
            let p = Problem {
                path: path.clone(),
                why: e.to_string(),
                since,
                retry_at: now.after(RETRY),
                command,
            };
            self.problems.insert(path.clone(), p);
        } else {
            self.problems_lost = true;
        }
    }

    /// What was to be looked at is gone, or has been looked at in another way: so is the problem with it.
    pub(super) fn gone(&mut self, target: &Target) {
        if !self.problems.is_empty() {
            self.problems.retain(|_, p| p.command.target != *target);
        }
    }

    /// It can be backed up. Returns whether it could not before.
    pub(super) fn solved(&mut self, path: &BytePath) -> bool {
        !self.problems.is_empty() && self.problems.remove(path).is_some()
    }

    pub(super) fn boundary(&mut self, path: &BytePath) {
        self.boundaries.insert(path.clone());
    }

    /// A command like `c` about something else that `c` led to.
    pub(super) fn follow_up(
        c: &BackupCommand,
        path: BytePath,
        target: Target,
        what: What,
    ) -> BackupCommand {
        BackupCommand {
            path,
            target,
            what,
            extents: None,
            first: c.first,
            since: c.since,
            newest: c.newest,
            attempts: 0,
        }
    }

    /// The attributes under which a mount point is backed up: an empty directory.
    pub(super) fn mount_point_row(stat: &Stat) -> NodeRow {
        let origin = Origin {
            slot: SLOT_NONE,
            ..Origin::default()
        };
        let meta = Meta {
            kind: Kind::Dir,
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            ..Meta::plain_dir()
        };
        NodeRow {
            meta,
            origin,
            flags: NodeFlags::default(),
            sum: [0; 16],
        }
    }
}
