//! Threads that write, while the one that goes through the history fetches what comes next. A small file is a job as a whole for
//! one of several, a large one many jobs for threads of its own.

use super::file::{make_file, put_in_place};
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};
use farwrite_core::{BytePath, Meta, Name};
use farwrite_fs::{Dir, DirectFile, Scratch, Skipped};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Small files that wait at most; each holds on to one or two blocks.
const WAITING: usize = 32;
/// Parts of a large file that wait at most.
const PARTS_WAITING: usize = 4;
/// Bytes of a part, unless there are no more.
pub(super) const PART_BYTES: u64 = 4 << 20;
/// Threads for parts: so many are under way to the disk at once, which keeps one busy that is read, too.
pub(super) const PART_WRITERS: usize = 8;
/// Threads for small files at most.
const WRITERS: usize = 4;

/// How many there are for small files.
pub(super) fn writers() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(WRITERS))
}

/// Bytes and where they go in a file.
pub(super) type Piece = (u64, Bytes);

/// A part of a large file, and where to say how it went: pieces that follow each other.
pub(super) struct Part {
    pub(super) file: Arc<DirectFile>,
    pub(super) offset: u64,
    pub(super) pieces: Vec<Bytes>,
    pub(super) tell: Sender<io::Result<()>>,
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
    pub(super) wholes: Sender<Whole>,
    pub(super) written: Receiver<Written>,
    pub(super) parts: Sender<Part>,
}

/// The other end, for each of the threads that make small files.
#[derive(Clone)]
pub(super) struct Work {
    wholes: Receiver<Whole>,
    written: Sender<Written>,
}

impl Writers {
    pub(super) fn new() -> (Writers, Work, Receiver<Part>) {
        let (wholes, wholes_in) = crossbeam_channel::bounded(WAITING);
        let (parts, parts_in) = crossbeam_channel::bounded(PARTS_WAITING);
        let (written_out, written) = crossbeam_channel::unbounded();
        let work = Work {
            wholes: wholes_in,
            written: written_out,
        };
        let ends = Writers {
            wholes,
            written,
            parts,
        };
        (ends, work, parts_in)
    }
}

impl Work {
    /// Makes files until there is no more to come.
    pub(super) fn run(self) {
        for whole in self.wholes {
            let done = whole.write();
            let _ = self.written.send(Written {
                source: whole.source,
                size: whole.meta.size,
                done,
            });
        }
    }
}

/// Writes parts until there is no more to come.
pub(super) fn write_parts(parts: &Receiver<Part>) {
    let mut scratch = Scratch::default();
    for part in parts {
        // Who wanted to know may have given the file up.
        let _ = part.tell.send(part.write(&mut scratch));
    }
}

impl Part {
    pub(super) fn write(&self, scratch: &mut Scratch) -> io::Result<()> {
        self.file.write_all_at(&self.pieces, self.offset, scratch)
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
