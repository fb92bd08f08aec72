//! Threads that write, while the one that goes through the history fetches what comes next. A small file is a job as a whole, a large
//! one many.

use super::file::{make_file, put_in_place};
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};
use farwrite_core::{BytePath, Meta, Name};
use farwrite_fs::{Dir, Skipped};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Jobs that wait at most; each holds on to one or two blocks.
const WAITING: usize = 32;
/// Threads at most.
const WRITERS: usize = 4;

/// How many there are.
pub(super) fn writers() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(WRITERS))
}

/// Bytes and where they go in a file.
pub(super) type Piece = (u64, Bytes);

pub(super) enum Job {
    Whole(Whole),
    /// A part of a large file, and where to say how it went.
    Part(Arc<File>, Piece, Sender<io::Result<()>>),
}

/// A file with one name, all of whose content is at hand.
pub(super) struct Whole {
    pub(super) dir: Arc<Dir>,
    pub(super) name: Name,
    pub(super) meta: Meta,
    pub(super) pieces: Vec<Piece>,
    pub(super) overwrite: bool,
    /// At the source, for the report.
    pub(super) source: BytePath,
}

/// What became of a [`Whole`].
pub(super) struct Written {
    pub(super) source: BytePath,
    pub(super) size: u64,
    pub(super) done: io::Result<(Skipped, u64)>,
}

/// One end of a set of writers.
pub(super) struct Writers {
    pub(super) jobs: Sender<Job>,
    pub(super) written: Receiver<Written>,
}

/// The other end, for each of the threads.
#[derive(Clone)]
pub(super) struct Work {
    jobs: Receiver<Job>,
    written: Sender<Written>,
}

impl Writers {
    pub(super) fn new() -> (Writers, Work) {
        let (jobs, jobs_in) = crossbeam_channel::bounded(WAITING);
        let (written_out, written) = crossbeam_channel::unbounded();
        let work = Work {
            jobs: jobs_in,
            written: written_out,
        };
        (Writers { jobs, written }, work)
    }
}

impl Work {
    /// Writes until there is no more to come.
    pub(super) fn run(self) {
        for job in self.jobs {
            match job {
                Job::Part(file, (offset, bytes), tell) => {
                    // Who wanted to know may have given the file up.
                    let _ = tell.send(file.write_all_at(&bytes, offset));
                }
                Job::Whole(whole) => {
                    let done = whole.write();
                    let _ = self.written.send(Written {
                        source: whole.source,
                        size: whole.meta.size,
                        done,
                    });
                }
            }
        }
    }
}

impl Whole {
    fn write(&self) -> io::Result<(Skipped, u64)> {
        put_in_place(&self.dir, &self.name, self.overwrite, false, |temp| {
            make_file(&self.dir, temp, &self.meta, |file| {
                let mut bytes = 0;
                for (offset, piece) in &self.pieces {
                    file.write_all_at(piece, *offset)?;
                    bytes += piece.len() as u64;
                }
                let end = self.pieces.last().map_or(0, |(o, p)| o + p.len() as u64);
                Ok((end, bytes))
            })
        })
    }
}
