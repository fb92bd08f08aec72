//! Threads that make new small files, and take away and move old ones, while the one that goes through the catalog is at the
//! next: each is mostly the kernel's work.
//!
//! Nothing that they have at the same time depends on another: each old name is taken away once; one that becomes another was
//! nobody's before and is to be nobody else's; directories are found by their handles, and are never among what is handed over;
//! and a step waits for all of it before it makes anything new, and again before it goes on.

use super::content::FIRST_EXTENTS;
use super::{Mirror, MirrorError};
use crate::catalog::{Content, View};
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};
use farwrite_core::{Extent, Kind, Meta, Name, NodeId};
use farwrite_fs::{Dir, OpenMode, Skipped, mode_to_create};
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

/// Files up to this size are made by them.
const FILE_BYTES: u64 = 256 << 10;
/// Blocks that one file's content may be in.
const FILE_BLOCKS: usize = 2;
/// Files that are handed over together: to wake a thread up for each would cost as much as to make it.
const TOGETHER: usize = 8;
/// Names likewise. Each holds the handles of one or two directories.
const NAMES_TOGETHER: usize = 16;
/// As many of those wait at most. Who hands over files waits then: two that make files in one directory only wait for its lock.
/// Names are mostly in many directories: who hands those over goes on with them himself.
const WAITING: usize = 4;
/// Threads at most.
const THREADS: usize = 3;
/// Fewer names, new or old, than this are not worth waking anybody for.
pub(super) const WORTH_IT: usize = 64;

/// A file that is to be made.
struct NewFile {
    dir: Arc<Dir>,
    name: Name,
    meta: Meta,
    pieces: Vec<(u64, Bytes)>,
    inherits: bool,
}

impl NewFile {
    fn make(&self) -> Result<Skipped, MirrorError> {
        let name = &self.name;
        let fail = |e| MirrorError::io("write", name, e);
        let file = self
            .dir
            .open_file(
                name,
                OpenMode::CreateNew(mode_to_create(&self.meta, self.inherits)),
            )
            .map_err(|e| MirrorError::io("create", name, e))?;
        let mut end = 0;
        for (offset, bytes) in &self.pieces {
            file.write_all_at(bytes, *offset).map_err(fail)?;
            end = offset + bytes.len() as u64;
        }
        if end < self.meta.size {
            file.set_len(self.meta.size).map_err(fail)?;
        }
        farwrite_fs::apply_meta_fd(&file, &self.meta, !self.inherits).map_err(fail)
    }
}

/// A name of what is no directory, that goes or becomes another.
struct OldName {
    dir: Arc<Dir>,
    name: Name,
    /// Where nothing is.
    to: Option<(Arc<Dir>, Name)>,
}

impl OldName {
    fn run(&self) -> Result<(), MirrorError> {
        let name = &self.name;
        match &self.to {
            None => self
                .dir
                .unlink(name)
                .map_err(|e| MirrorError::io("remove", name, e)),
            Some((into, new)) => self
                .dir
                .rename_noreplace(name, into, new)
                .map_err(|e| MirrorError::io("move", name, e)),
        }
    }
}

/// What is handed over together.
enum Job {
    Make(Vec<NewFile>),
    TakeAway(Vec<OldName>),
}

impl Job {
    /// Does all of it, up to the first that fails.
    fn run(&self) -> Result<Skipped, MirrorError> {
        let mut skipped = Skipped::default();
        match self {
            Job::Make(files) => {
                for file in files {
                    skipped.add(guarded(&file.name, || file.make())?);
                }
            }
            Job::TakeAway(names) => {
                for old in names {
                    guarded(&old.name, || old.run())?;
                }
            }
        }
        Ok(skipped)
    }
}

/// A panic is an error like others: somebody waits for the report.
fn guarded<T>(name: &Name, f: impl FnOnce() -> Result<T, MirrorError>) -> Result<T, MirrorError> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| {
        let why = io::Error::other("its writer panicked");
        Err(MirrorError::io("write", name, why))
    })
}

/// The threads of one step; they end when this is dropped.
pub(super) struct Writers {
    /// None once they are to end.
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
    done: Receiver<Result<Skipped, MirrorError>>,
    /// To be handed over once there are enough.
    files: Vec<NewFile>,
    names: Vec<OldName>,
    under_way: usize,
}

impl Writers {
    /// None if there is no thread to be had.
    fn start() -> Option<Writers> {
        let (jobs, jobs_in) = crossbeam_channel::bounded::<Job>(WAITING);
        let (done_out, done) = crossbeam_channel::unbounded();
        // One processor is left to whoever hands out.
        let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
        let mut writers = Writers {
            jobs: Some(jobs),
            threads: Vec::new(),
            done,
            files: Vec::with_capacity(TOGETHER),
            names: Vec::with_capacity(NAMES_TOGETHER),
            under_way: 0,
        };
        for _ in 0..(processors - 1).clamp(1, THREADS) {
            let (jobs, done) = (jobs_in.clone(), done_out.clone());
            let run = move || {
                for job in jobs {
                    // Nobody listens any more: the step has ended in a panic.
                    let _ = done.send(job.run());
                }
            };
            let thread = std::thread::Builder::new().name("vault-write".into());
            writers.threads.push(thread.spawn(run).ok()?);
        }
        Some(writers)
    }

    fn jobs(&self) -> &Sender<Job> {
        self.jobs.as_ref().expect("they have not ended")
    }

    fn give_away(&mut self, job: Job) -> Result<Skipped, MirrorError> {
        match self.jobs().send(job) {
            Ok(()) => {
                self.under_way += 1;
                Ok(Skipped::default())
            }
            Err(refused) => refused.into_inner().run(),
        }
    }

    /// Gives away the files that there are, if they are at least so many.
    fn give_files(&mut self, least: usize) -> Result<Skipped, MirrorError> {
        if self.files.len() < least {
            return Ok(Skipped::default());
        }
        let files = std::mem::replace(&mut self.files, Vec::with_capacity(TOGETHER));
        self.give_away(Job::Make(files))
    }

    /// The same of names.
    fn give_names(&mut self, least: usize) -> Result<Skipped, MirrorError> {
        if self.names.len() < least {
            return Ok(Skipped::default());
        }
        let names = std::mem::replace(&mut self.names, Vec::with_capacity(NAMES_TOGETHER));
        match self.jobs().try_send(Job::TakeAway(names)) {
            Ok(()) => {
                self.under_way += 1;
                Ok(Skipped::default())
            }
            Err(refused) => refused.into_inner().run(),
        }
    }
}

/// What they have been given is done, or has failed, when they are gone: whoever comes next finds nobody at work.
impl Drop for Writers {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Mirror {
    /// Starts the writers of a step, if they are not there yet.
    pub(super) fn start_writers(&mut self) {
        if self.writers.is_none() {
            self.writers = Writers::start();
        }
    }

    /// Ends them, once they have been waited for.
    pub(super) fn end_writers(&mut self) {
        self.writers = None;
    }

    /// Gives a node that is not there yet to the writers; false if it is not one for them.
    pub(super) fn hand_over(
        &mut self,
        view: View<'_>,
        (node, content): (NodeId, Content),
        meta: &Meta,
        (dir, name): (&Arc<Dir>, &Name),
        inherits: bool,
    ) -> Result<bool, MirrorError> {
        if meta.kind != Kind::File || meta.size > FILE_BYTES || self.writers.is_none() {
            return Ok(false);
        }
        let whole = Extent::new(0, meta.size);
        let extents = match content {
            _ if meta.size == 0 => Vec::new(),
            Content::Hole => Vec::new(),
            Content::Piece(x, place) => vec![(x, Some(place))],
            Content::Unknown => {
                let all = view.extents(node, 0, FIRST_EXTENTS)?;
                // A piece keeps the whole of its block in memory while it waits.
                let mut blocks = all.iter().map(|x| x.block).collect::<Vec<_>>();
                blocks.dedup();
                if all.len() == FIRST_EXTENTS || blocks.len() > FILE_BLOCKS {
                    return Ok(false);
                }
                all.into_iter().map(|x| (x, None)).collect()
            }
        };
        self.take_reports()?;
        let mut pieces = Vec::with_capacity(extents.len());
        for (x, place) in extents {
            if let Some(part) = whole.intersect(Extent::new(x.offset, x.len))
                && let Some(piece) = self.piece(view, (&x, place), part, name)?
            {
                self.stats.bytes_written += part.len;
                pieces.push((part.offset, piece.bytes));
            }
        }
        let file = NewFile {
            dir: dir.clone(),
            name: name.clone(),
            meta: meta.clone(),
            pieces,
            inherits,
        };
        let writers = self.writers.as_mut().expect("looked at above");
        writers.files.push(file);
        self.stats.skipped.add(writers.give_files(TOGETHER)?);
        self.stats.files_made += 1;
        Ok(true)
    }

    /// Takes a name of what is no directory away, or gives it another, `to`, that is free: by the writers, if there are any.
    pub(super) fn hand_over_name(
        &mut self,
        dir: &Arc<Dir>,
        name: &Name,
        to: Option<(Arc<Dir>, Name)>,
    ) -> Result<(), MirrorError> {
        self.take_reports()?;
        let old = OldName {
            dir: dir.clone(),
            name: name.clone(),
            to,
        };
        let Some(writers) = &mut self.writers else {
            return old.run();
        };
        writers.names.push(old);
        writers.give_names(NAMES_TOGETHER).map(drop)
    }

    /// What has failed so far; then no more need be begun.
    fn take_reports(&mut self) -> Result<(), MirrorError> {
        let Some(writers) = &mut self.writers else {
            return Ok(());
        };
        while let Ok(done) = writers.done.try_recv() {
            writers.under_way -= 1;
            self.stats.skipped.add(done?);
        }
        Ok(())
    }

    /// Returns once all that was handed over is done; the first error if not all could be.
    pub(super) fn wait_for_writers(&mut self) -> Result<(), MirrorError> {
        let Some(writers) = &mut self.writers else {
            return Ok(());
        };
        let mut all = Ok(());
        let mut add = |done: Result<Skipped, MirrorError>| match done {
            Ok(skipped) => self.stats.skipped.add(skipped),
            Err(e) => all = std::mem::replace(&mut all, Ok(())).and(Err(e)),
        };
        add(writers.give_names(1));
        add(writers.give_files(1));
        while writers.under_way > 0 {
            writers.under_way -= 1;
            let done = writers.done.recv();
            add(done.expect("a report of all that was handed over"));
        }
        all
    }
}
