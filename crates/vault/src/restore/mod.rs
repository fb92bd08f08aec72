//! Brings back what a history holds, from nothing but its answers, so that it works the same over a network. It must
//! never overwrite without being told, never leave a half-written file under its name, and never follow a link
//! in the place it restores to.

mod fetch;
mod file;
mod read;
mod write;

pub use read::write_content;

use crossbeam_channel::Sender;
use farwrite_core::history::{Entry, Request, Response};
use farwrite_core::{BatchSeq, BytePath, Kind, Meta, Name, NodeId, limits};
use farwrite_fs::{Dir, Skipped};
use fetch::{ASKERS, Fetch, Question, ask_for_others};
use file::{Settle, settle_for_others};
use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Scope;
use write::{PART_WRITERS, Writers, Written, write_parts, writers};

/// Asks the history, from several threads at once; an error ends the restore.
pub type Ask<'a> =
    &'a (dyn Fn(Request) -> Result<Response, Box<dyn std::error::Error + Send + Sync>> + Sync);

/// What to restore, and where.
pub struct Restore<'a> {
    /// The history.
    pub ask: Ask<'a>,
    /// Absolute paths at the source; each becomes `to_dir/<its last name>`, and `/` the content of `to_dir`.
    pub paths: Vec<BytePath>,
    /// The moment.
    pub at: BatchSeq,
    /// Where to; made if it does not exist.
    pub to_dir: PathBuf,
    /// Replace what is there. Directories are merged; what is only there stays.
    pub overwrite: bool,
    /// Count, but write nothing.
    pub dry_run: bool,
    /// Called after every entry, and for a large file after every piece of its content that came.
    pub progress: Option<&'a dyn Fn(&RestoreStats)>,
}

/// What a restore did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestoreStats {
    /// Names of files of all kinds but directories.
    pub files: u64,
    /// Directories.
    pub dirs: u64,
    /// Bytes of content, holes not counted (in a dry run: sizes of files).
    pub bytes: u64,
    /// Sizes of the files gone over so far, holes and further links included: adds up to what a dry run says.
    pub gone_over: u64,
    /// What could not be restored, by its path at the source, and why.
    pub failed: Vec<(BytePath, String)>,
    /// Attributes that this process or filesystem cannot set.
    pub skipped_attributes: Skipped,
}

/// Why a restore did not begin, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Nothing was at the path at that moment.
    #[error("{path}: nothing was there at batch {at}")]
    Nothing {
        /// At the source.
        path: BytePath,
        /// The moment.
        at: BatchSeq,
    },
    /// The place is taken.
    #[error("{0} exists already (overwriting was not asked for)")]
    Exists(PathBuf),
    /// Two paths would become one.
    #[error("two of the paths would both become {0}")]
    Twice(PathBuf),
    /// The question could not be asked or answered.
    #[error("history: {0}")]
    Ask(Box<dyn std::error::Error + Send + Sync>),
    /// The answer was to another question, or out of bounds.
    #[error("history: the answer makes no sense: {0}")]
    Answer(String),
    /// The place to restore to.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// A directory on the way: where it is below `to_dir`, and what it is.
struct DirTask {
    way: Vec<Name>,
    source: BytePath,
    node: NodeId,
    meta: Option<Meta>,
}

/// A restore under way.
struct Run<'a> {
    plan: &'a Restore<'a>,
    fetch: Fetch<'a>,
    settler: Option<Sender<Settle>>,
    writers: Option<Writers>,
    /// Up to here the present entry has been gone over.
    went: u64,
    to: Option<Dir>,
    stats: RestoreStats,
    /// First restored name of a node with several.
    linked: HashMap<NodeId, (Vec<Name>, Name)>,
    /// Directories made, parents first.
    made: Vec<(Vec<Name>, BytePath, Meta)>,
}

/// A directory that is being filled.
struct Here {
    way: Vec<Name>,
    /// None in a dry run; else why nothing can be made in it.
    dir: Option<Result<Arc<Dir>, String>>,
}

/// What happened to one entry.
enum Done {
    Made(Skipped, u64),
    Failed(String),
}

impl Restore<'_> {
    /// Restores. Damage fails single files ([`RestoreStats::failed`]), everything else goes on.
    pub fn run(&self) -> Result<RestoreStats, RestoreError> {
        let (questions, others) = crossbeam_channel::unbounded();
        let (ask, over) = (self.ask, AtomicBool::new(false));
        std::thread::scope(|scope| {
            let over = &over;
            for _ in 0..ASKERS {
                let others = others.clone();
                help(scope, "restore-ask", move || {
                    ask_for_others(ask, &others, over);
                });
            }
            drop(others);
            let restored = if self.dry_run {
                self.run_with(Some(questions), None, None)
            } else {
                let (settler, settles) = crossbeam_channel::bounded(2);
                help(scope, "restore-settle", move || {
                    settle_for_others(&settles);
                });
                let (ends, work, parts) = Writers::new();
                for _ in 0..PART_WRITERS {
                    let parts = parts.clone();
                    help(scope, "restore-part", move || write_parts(&parts));
                }
                drop(parts);
                for _ in 0..writers() {
                    let work = work.clone();
                    help(scope, "restore-write", move || work.run());
                }
                drop(work);
                // They end when the last job is done and nobody can hand in another.
                self.run_with(Some(questions), Some(settler), Some(ends))
            };
            over.store(true, Ordering::Relaxed);
            restored
        })
    }

    fn run_with(
        &self,
        ahead: Option<Sender<Question>>,
        settler: Option<Sender<Settle>>,
        writers: Option<Writers>,
    ) -> Result<RestoreStats, RestoreError> {
        let mut run = Run {
            plan: self,
            fetch: Fetch::new(self.ask, ahead),
            settler,
            writers,
            went: 0,
            to: None,
            stats: RestoreStats::default(),
            linked: HashMap::new(),
            made: Vec::new(),
        };
        let (entries, roots) = run.look_up()?;
        run.check_free(&entries, &roots)?;
        if !self.dry_run {
            std::fs::create_dir_all(&self.to_dir).map_err(|e| self.fail("make", e))?;
            run.to = Some(Dir::open(&self.to_dir).map_err(|e| self.fail("open", e))?);
        }
        let mut todo = roots;
        let here = run.open(Vec::new());
        for (source, entry) in entries {
            run.entry(&here, source, entry, &mut todo)?;
        }
        loop {
            run.fetch
                .list_ahead(todo.iter().rev().map(|t| t.node), self.at);
            let Some(task) = todo.pop() else { break };
            run.directory(task, &mut todo)?;
        }
        run.wait_for_writers()?;
        run.finish_dirs();
        Ok(run.stats)
    }

    fn fail(&self, what: &'static str, source: io::Error) -> RestoreError {
        RestoreError::Io {
            what,
            path: self.to_dir.clone(),
            source,
        }
    }
}

/// A thread beside the one that restores. Without it that one does its work, too.
fn help<'s>(scope: &'s Scope<'s, '_>, name: &str, work: impl FnOnce() + Send + 's) {
    let thread = std::thread::Builder::new().name(name.into());
    if let Err(e) = thread.spawn_scoped(scope, work) {
        tracing::debug!("no thread {name}: {e}");
    }
}

impl Run<'_> {
    /// All paths, before anything is written.
    #[expect(clippy::type_complexity, reason = "two lists, used once")]
    fn look_up(&mut self) -> Result<(Vec<(BytePath, Entry)>, Vec<DirTask>), RestoreError> {
        let (mut entries, mut roots) = (Vec::new(), Vec::new());
        for path in &self.plan.paths {
            let at = self.plan.at;
            let path = path.clone();
            let entry = self.fetch.stat(&path, at)?;
            match entry.ok_or(RestoreError::Nothing {
                path: path.clone(),
                at,
            })? {
                e if e.name.is_none() => roots.push(DirTask {
                    way: Vec::new(),
                    source: path,
                    node: e.node,
                    meta: None,
                }),
                e => entries.push((path, e)),
            }
        }
        Ok((entries, roots))
    }

    fn check_free(
        &mut self,
        entries: &[(BytePath, Entry)],
        roots: &[DirTask],
    ) -> Result<(), RestoreError> {
        let mut names: Vec<Name> = entries.iter().filter_map(|e| e.1.name.clone()).collect();
        for root in roots {
            let mut after = None;
            loop {
                let (page, more) = self.fetch.list(root.node, self.plan.at, after)?;
                names.extend(page.iter().filter_map(|e| e.name.clone()));
                after = page.last().and_then(|e| e.name.clone());
                if !more || after.is_none() {
                    break;
                }
            }
        }
        names.sort();
        let place = |n: &Name| self.plan.to_dir.join(n);
        if let Some(w) = names.windows(2).find(|w| w[0] == w[1]) {
            return Err(RestoreError::Twice(place(&w[0])));
        }
        let exists = |n: &&Name| std::fs::symlink_metadata(place(n)).is_ok();
        match names.iter().find(exists) {
            Some(n) if !self.plan.overwrite => Err(RestoreError::Exists(place(n))),
            _ => Ok(()),
        }
    }

    fn directory(&mut self, task: DirTask, todo: &mut Vec<DirTask>) -> Result<(), RestoreError> {
        if task.way.len() > limits::TREE_DEPTH {
            let why = "directories nested too deep".to_string();
            self.stats.failed.push((task.source, why));
            return Ok(());
        }
        if let Some(meta) = task.meta {
            self.made
                .push((task.way.clone(), task.source.clone(), meta));
        }
        let here = self.open(task.way);
        let mut after = None;
        loop {
            let (page, more) = self.fetch.list(task.node, self.plan.at, after)?;
            if !self.plan.dry_run {
                self.fetch.announce(&page);
            }
            after = page.last().and_then(|e| e.name.clone());
            for entry in page {
                let Some(name) = &entry.name else { continue };
                let source = task.source.join(name);
                self.entry(&here, source, entry, todo)?;
            }
            if !more || after.is_none() {
                return Ok(());
            }
        }
    }

    fn open(&self, way: Vec<Name>) -> Here {
        let dir = self.to.as_ref().map(|to| match to.open_beneath(&way) {
            Ok(dir) => Ok(Arc::new(dir)),
            Err(e) => Err(e.to_string()),
        });
        Here { way, dir }
    }

    fn entry(
        &mut self,
        here: &Here,
        source: BytePath,
        entry: Entry,
        todo: &mut Vec<DirTask>,
    ) -> Result<(), RestoreError> {
        let name = entry.name.clone().expect("only the root has none");
        if let Err(e) = entry.meta.check() {
            self.stats.failed.push((source, e.to_string()));
            return Ok(());
        }
        let is_dir = entry.meta.kind == Kind::Dir;
        self.take_reports()?;
        if !is_dir {
            if let Some(done) = self.make_other(here, &name, &source, &entry)? {
                self.count_file(source, done);
                self.went(entry.meta.size);
            }
            self.went = 0;
            return Ok(());
        }
        match self.make_dir(here, &name)? {
            Done::Failed(why) => self.stats.failed.push((source, why)),
            Done::Made(..) => {
                self.stats.dirs += 1;
                todo.push(DirTask {
                    way: here.way.iter().cloned().chain([name]).collect(),
                    source,
                    node: entry.node,
                    meta: Some(entry.meta),
                });
            }
        }
        self.tell();
        Ok(())
    }

    fn count_file(&mut self, source: BytePath, done: Done) {
        match done {
            Done::Failed(why) => self.stats.failed.push((source, why)),
            Done::Made(skipped, bytes) => {
                self.stats.skipped_attributes.add(skipped);
                self.stats.bytes += bytes;
                self.stats.files += 1;
            }
        }
    }

    /// The present entry has been gone over up to `end`.
    fn went(&mut self, end: u64) {
        self.stats.gone_over += end.saturating_sub(self.went);
        self.went = self.went.max(end);
        self.tell();
    }

    fn tell(&self) {
        if let Some(progress) = self.plan.progress {
            progress(&self.stats);
        }
    }

    fn take_reports(&mut self) -> Result<(), RestoreError> {
        let reports = match &self.writers {
            Some(w) => w.written.try_iter().collect(),
            None => Vec::new(),
        };
        reports.into_iter().try_for_each(|r| self.report(r))
    }

    fn report(&mut self, written: Written) -> Result<(), RestoreError> {
        let done = self.outcome(written.done)?;
        self.count_file(written.source, done);
        self.stats.gone_over += written.size;
        self.tell();
        Ok(())
    }

    fn wait_for_writers(&mut self) -> Result<(), RestoreError> {
        let Some(Writers {
            wholes, written, ..
        }) = self.writers.take()
        else {
            return Ok(());
        };
        drop(wholes);
        written.iter().try_for_each(|r| self.report(r))
    }

    fn make_dir(&mut self, here: &Here, name: &Name) -> Result<Done, RestoreError> {
        let dir = match &here.dir {
            None => return Ok(Done::Made(Skipped::default(), 0)),
            Some(Ok(dir)) => dir,
            Some(Err(why)) => return Ok(Done::Failed(why.clone())),
        };
        let make = || {
            match dir.stat_if_exists(name)? {
                Some(s) if s.kind == Kind::Dir && self.plan.overwrite => return Ok(()),
                Some(_) if self.plan.overwrite => drop(dir.remove_tree(name)?),
                _ => {}
            }
            dir.mkdir(name, 0o700)
        };
        self.outcome(make().map(|()| (Skipped::default(), 0)))
    }

    /// A full disk ends the restore; any other refusal fails the one entry.
    fn outcome(&self, done: io::Result<(Skipped, u64)>) -> Result<Done, RestoreError> {
        match done {
            Ok((skipped, bytes)) => Ok(Done::Made(skipped, bytes)),
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                Err(self.plan.fail("write to", e))
            }
            Err(e) => Ok(Done::Failed(e.to_string())),
        }
    }

    /// Attributes of directories, deepest first, when nothing changes in them any more.
    fn finish_dirs(&mut self) {
        let Some(to) = &self.to else { return };
        for (way, source, meta) in std::mem::take(&mut self.made).into_iter().rev() {
            let done = to
                .open_beneath(&way)
                .and_then(|dir| farwrite_fs::apply_meta(&dir, None, &meta));
            match done {
                Ok(skipped) => self.stats.skipped_attributes.add(skipped),
                Err(e) => self.stats.failed.push((source, e.to_string())),
            }
        }
    }
}
