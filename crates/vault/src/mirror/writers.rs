//! Threads that make new small files, while the one that goes through the catalog is at the next: making a file is mostly the
//! kernel's work. They only ever make what is not there, and a step waits for all of them before it goes on to anything else.

use super::content::FIRST_EXTENTS;
use super::{Mirror, MirrorError};
use crate::catalog::View;
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};
use farwrite_core::{Extent, Kind, Meta, Name, NodeId};
use farwrite_fs::{Dir, OpenMode, Skipped, mode_to_create};
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Files up to this size are made by them.
const FILE_BYTES: u64 = 256 << 10;
/// Blocks that one file's content may be in.
const FILE_BLOCKS: usize = 2;
/// Files that are handed over together: to wake a thread up for each would cost as much as to make it.
const TOGETHER: usize = 8;
/// As many of those wait at most. Who hands them over waits then: two that make files in one directory only wait for its lock.
const WAITING: usize = 4;
/// Threads at most.
const THREADS: usize = 3;
/// Fewer new names than this are not worth waking anybody for.
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

/// Makes all of them, up to the first that fails.
fn make_all(files: &[NewFile]) -> Result<Skipped, MirrorError> {
    let mut skipped = Skipped::default();
    for file in files {
        let made = catch_unwind(AssertUnwindSafe(|| file.make()));
        let gone = |_| {
            let why = io::Error::other("its writer panicked");
            Err(MirrorError::io("make", &file.name, why))
        };
        skipped.add(made.unwrap_or_else(gone)?);
    }
    Ok(skipped)
}

/// The threads of one step; they end when this is dropped.
pub(super) struct Writers {
    files: Sender<Vec<NewFile>>,
    made: Receiver<Result<Skipped, MirrorError>>,
    /// To be handed over once there are enough.
    next: Vec<NewFile>,
    under_way: usize,
}

impl Writers {
    /// None if there is no thread to be had.
    fn start() -> Option<Writers> {
        let (files, files_in) = crossbeam_channel::bounded::<Vec<NewFile>>(WAITING);
        let (made_out, made) = crossbeam_channel::unbounded();
        // One processor is left to whoever hands out.
        let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
        for _ in 0..(processors - 1).clamp(1, THREADS) {
            let (files, made) = (files_in.clone(), made_out.clone());
            let work = move || {
                for some in files {
                    // Nobody listens any more: the mirror is gone.
                    let _ = made.send(make_all(&some));
                }
            };
            let thread = std::thread::Builder::new().name("vault-write".into());
            thread.spawn(work).ok()?;
        }
        Some(Writers {
            files,
            made,
            next: Vec::with_capacity(TOGETHER),
            under_way: 0,
        })
    }

    /// Gives away what there is.
    fn give_away(&mut self) -> Result<Skipped, MirrorError> {
        if self.next.is_empty() {
            return Ok(Skipped::default());
        }
        let some = std::mem::replace(&mut self.next, Vec::with_capacity(TOGETHER));
        match self.files.send(some) {
            Ok(()) => {
                self.under_way += 1;
                Ok(Skipped::default())
            }
            Err(refused) => make_all(&refused.into_inner()),
        }
    }
}

impl Mirror {
    /// Starts the writers of a step.
    pub(super) fn start_writers(&mut self) {
        self.writers = Writers::start();
    }

    /// Ends them, once they have been waited for.
    pub(super) fn end_writers(&mut self) {
        self.writers = None;
    }

    /// Gives a node that is not there yet to the writers; false if it is not one for them.
    pub(super) fn hand_over(
        &mut self,
        view: View<'_>,
        node: NodeId,
        meta: &Meta,
        (dir, name): (&Arc<Dir>, &Name),
        inherits: bool,
    ) -> Result<bool, MirrorError> {
        if meta.kind != Kind::File || meta.size > FILE_BYTES || self.writers.is_none() {
            return Ok(false);
        }
        let whole = Extent::new(0, meta.size);
        let extents = match meta.size {
            0 => Vec::new(),
            _ => view.extents(node, 0, FIRST_EXTENTS)?,
        };
        // A piece keeps the whole of its block in memory while it waits.
        let mut blocks = extents.iter().map(|x| x.block).collect::<Vec<_>>();
        blocks.dedup();
        if extents.len() == FIRST_EXTENTS || blocks.len() > FILE_BLOCKS {
            return Ok(false);
        }
        self.take_reports()?;
        let mut pieces = Vec::with_capacity(extents.len());
        for x in extents {
            if let Some(part) = whole.intersect(Extent::new(x.offset, x.len))
                && let Some(bytes) = self.piece(view, &x, part, name)?
            {
                self.stats.bytes_written += part.len;
                pieces.push((part.offset, bytes));
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
        writers.next.push(file);
        if writers.next.len() == TOGETHER {
            self.stats.skipped.add(writers.give_away()?);
        }
        self.stats.files_made += 1;
        Ok(true)
    }

    /// What has failed so far; then no more need be begun.
    fn take_reports(&mut self) -> Result<(), MirrorError> {
        let Some(writers) = &mut self.writers else {
            return Ok(());
        };
        while let Ok(made) = writers.made.try_recv() {
            writers.under_way -= 1;
            self.stats.skipped.add(made?);
        }
        Ok(())
    }

    /// Returns once all that was handed over is made; the first error if not all could be.
    pub(super) fn wait_for_writers(&mut self) -> Result<(), MirrorError> {
        let Some(writers) = &mut self.writers else {
            return Ok(());
        };
        let mut all = match writers.give_away() {
            Ok(skipped) => {
                self.stats.skipped.add(skipped);
                Ok(())
            }
            Err(e) => Err(e),
        };
        while writers.under_way > 0 {
            writers.under_way -= 1;
            let made = writers
                .made
                .recv()
                .expect("a report of all that were handed over");
            match made {
                Ok(skipped) => self.stats.skipped.add(skipped),
                Err(e) => all = all.and(Err(e)),
            }
        }
        all
    }
}
