//! Restores what is not a directory: first under a name of its own, then renamed into place. An interrupted restore
//! leaves at most a `.farwrite-restore-` file for each thread that writes.

use super::write::{PART_BYTES, Part, Piece, Whole};
use super::{Done, Here, RestoreError, Run};
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};
use farwrite_core::history::{BlockExtent, Entry};
use farwrite_core::{BytePath, Extent, Kind, Meta, Name, limits};
use farwrite_fs::{Dir, DirectFile, OpenMode, Scratch, Skipped};
use std::fs::File;
use std::io;
use std::sync::Arc;

/// Files up to this size are made by the writers as a whole.
const WHOLE_BYTES: u64 = limits::BLOCK_RAW_BYTES as u64;
/// Blocks that such a file's content may be in.
const WHOLE_BLOCKS: usize = 2;
/// From this size on a file is written in parts, past the kernel's cache where the filesystem can.
const LARGE_FROM_BYTES: u64 = 32 << 20;
/// Pieces of a part at most.
const PART_PIECES: usize = 1024;
/// Smaller pieces are copied.
const KEPT_BYTES: u64 = 512 << 10;
/// Bytes written of a large file before what of it is in the kernel's cache goes to the disk.
const SETTLE_BYTES: u64 = 32 << 20;
/// So long they may be on their way there, until they are let go from memory.
const LET_GO_BEHIND: u64 = 4 * SETTLE_BYTES;

/// A part of a large file, to be put on the disk and let go from memory while the rest is still being written.
pub(super) type Settle = (Arc<File>, Extent);

/// Does so until there is no more: for a thread beside the one that writes, since the kernel may wait for the disk. It does not
/// wait itself: a flush after each part would hold up all that is written.
pub(super) fn settle_for_others(jobs: &Receiver<Settle>) {
    for (file, part) in jobs {
        // What is not on the disk yet begins to be written (mm/fadvise.c), what has got there is let go.
        let from = part.offset.saturating_sub(LET_GO_BEHIND);
        farwrite_fs::forget_cached(&file, from, part.end());
    }
}

/// Why a file's content could not be written.
enum Stop {
    /// This file only.
    File(String),
    Io(io::Error),
    All(RestoreError),
}

impl From<io::Error> for Stop {
    fn from(e: io::Error) -> Self {
        Stop::Io(e)
    }
}

impl From<RestoreError> for Stop {
    fn from(e: RestoreError) -> Self {
        Stop::All(e)
    }
}

impl Run<'_> {
    /// Makes an entry; `None`: a writer does, and its report will come.
    pub(super) fn make_other(
        &mut self,
        here: &Here,
        name: &Name,
        source: &BytePath,
        entry: &Entry,
    ) -> Result<Option<Done>, RestoreError> {
        let dir = match &here.dir {
            None => return Ok(Some(Done::Made(Skipped::default(), entry.meta.size))),
            Some(Ok(dir)) => dir.clone(),
            Some(Err(why)) => return Ok(Some(Done::Failed(why.clone()))),
        };
        let made = match self.hand_over(&dir, name, source, entry) {
            Ok(true) => return Ok(None),
            Ok(false) => {
                let linked = self.linked.contains_key(&entry.node);
                let overwrite = self.plan.overwrite;
                put_in_place(&dir, name, overwrite, linked, |temp| {
                    self.make_temp(&dir, temp, entry)
                })
            }
            Err(stop) => Err(stop),
        };
        if made.is_ok() && entry.links > 1 {
            self.linked
                .entry(entry.node)
                .or_insert_with(|| (here.way.clone(), name.clone()));
        }
        match made {
            Ok(done) => self.outcome(Ok(done)),
            Err(Stop::Io(e)) => self.outcome(Err(e)),
            Err(Stop::File(why)) => Ok(Done::Failed(why)),
            Err(Stop::All(e)) => Err(e),
        }
        .map(Some)
    }

    /// Gives a small file to the writers; false if it is not one for them.
    fn hand_over(
        &mut self,
        dir: &Arc<Dir>,
        name: &Name,
        source: &BytePath,
        entry: &Entry,
    ) -> Result<bool, Stop> {
        let meta = &entry.meta;
        let small = meta.kind == Kind::File && entry.links <= 1 && meta.size <= WHOLE_BYTES;
        let (true, Some(list), true) = (small, &entry.extents, self.writers.is_some()) else {
            return Ok(false);
        };
        // A piece keeps the whole of its block in memory while it waits.
        let mut blocks: Vec<u64> = list.iter().map(|x| x.block).collect();
        blocks.dedup();
        if blocks.len() > WHOLE_BLOCKS {
            return Ok(false);
        }
        let mut pieces = Vec::with_capacity(list.len());
        for x in list {
            pieces.extend(self.piece(x, meta.size)?);
        }
        let whole = Whole {
            dir: dir.clone(),
            name: name.clone(),
            meta: meta.clone(),
            pieces,
            overwrite: self.plan.overwrite,
            source: source.clone(),
        };
        let writers = self.writers.as_ref();
        Ok(writers.is_some_and(|w| w.wholes.send(whole).is_ok()))
    }

    fn make_temp(&mut self, dir: &Dir, temp: &Name, entry: &Entry) -> Result<(Skipped, u64), Stop> {
        let meta = &entry.meta;
        if let Some((way, name)) = self.linked.get(&entry.node) {
            let to = self.to.as_ref().expect("not a dry run");
            to.open_beneath(way)?.link(name, dir, temp)?;
            return Ok((Skipped::default(), 0));
        }
        match meta.kind {
            Kind::File => return make_file(dir, temp, meta, |file| self.content(file, entry)),
            Kind::Symlink => dir.symlink(temp, &meta.target)?,
            kind => dir.mknod(temp, kind, 0o600, meta.rdev)?,
        }
        Ok((farwrite_fs::apply_meta(dir, Some(temp), meta)?, 0))
    }

    /// Writes a file's content; where its last byte is, and how many they are.
    fn content(&mut self, file: &Arc<File>, entry: &Entry) -> Result<(u64, u64), Stop> {
        let (tell, told) = crossbeam_channel::unbounded();
        // What is not so large is on its way to the disk when its last byte comes; and a part is waited for before the next file.
        let large = entry.meta.size >= LARGE_FROM_BYTES;
        let mut target = Target {
            file: Arc::new(DirectFile::new(file.clone(), large)),
            part_bytes: if large { PART_BYTES } else { 0 },
            size: entry.meta.size,
            end: 0,
            bytes: 0,
            waiting: Vec::new(),
            waiting_bytes: 0,
            begin: 0,
            settled: 0,
            tell,
            told,
        };
        match &entry.extents {
            Some(list) => self.pieces(&mut target, list)?,
            None => {
                let mut from = 0;
                loop {
                    let (list, more) = self.fetch.extents(entry.node, self.plan.at, from)?;
                    self.fetch.announce_first(&list);
                    self.pieces(&mut target, &list)?;
                    match list.last() {
                        Some(x) if more && x.offset.saturating_add(x.len) > from => {
                            from = x.offset + x.len;
                        }
                        _ => break,
                    }
                }
            }
        }
        self.part(&mut target)?;
        // Until the last writer has said how it went.
        drop(target.tell);
        target.told.iter().collect::<io::Result<()>>()?;
        if large {
            // Before it has its name, and may replace what is there: an error of the disk is told here, or to nobody.
            file.set_len(entry.meta.size)?;
            file.sync_data()?;
            farwrite_fs::forget_cached(file, 0, u64::MAX);
        }
        Ok((target.end, target.bytes))
    }

    fn pieces(&mut self, target: &mut Target, list: &[BlockExtent]) -> Result<(), Stop> {
        // Nothing is set aside for what cannot be there.
        let block_bytes = limits::BLOCK_RAW_BYTES as u64;
        if list.iter().any(|x| x.len > block_bytes) {
            return Err(Stop::File("an extent reaches beyond its block".into()));
        }
        for part in stretches(list, target.size) {
            target.file.allocate(part.offset, part.len)?;
        }
        for x in list {
            let Some((offset, bytes)) = self.piece(x, target.size)? else {
                continue;
            };
            let len = bytes.len() as u64;
            if offset != target.end {
                self.part(target)?;
            }
            if target.waiting.is_empty() {
                target.begin = offset;
            }
            // A piece that waits keeps all of its block in memory.
            target.waiting.push(match len < KEPT_BYTES {
                true => Bytes::copy_from_slice(&bytes),
                false => bytes,
            });
            target.waiting_bytes += len;
            target.end = offset + len;
            target.bytes += len;
            if target.waiting_bytes >= target.part_bytes || target.waiting.len() >= PART_PIECES {
                self.part(target)?;
            }
            self.went(offset + len);
        }
        Ok(())
    }

    /// Has what waits written.
    fn part(&self, target: &mut Target) -> io::Result<()> {
        let pieces = std::mem::take(&mut target.waiting);
        target.waiting_bytes = 0;
        if pieces.is_empty() {
            return Ok(());
        }
        let part = Part {
            file: target.file.clone(),
            offset: target.begin,
            pieces,
            tell: target.tell.clone(),
        };
        match &self.writers {
            Some(w) => match w.parts.send(part) {
                Ok(()) => {}
                Err(nobody) => nobody.into_inner().write(&mut Scratch::default())?,
            },
            None => part.write(&mut Scratch::default())?,
        }
        self.settle(target);
        target.told.try_iter().collect()
    }

    /// What an extent says is in a file of this size.
    fn piece(&mut self, x: &BlockExtent, size: u64) -> Result<Option<Piece>, Stop> {
        let inside = Extent::new(0, size).intersect(Extent::new(x.offset, x.len));
        let Some(part) = inside else { return Ok(None) };
        let block: Result<Bytes, String> = self.fetch.block(x.block)?;
        let block = block
            .map_err(|why| Stop::File(format!("content damaged at byte {}: {why}", part.offset)))?;
        let start = x.block_offset as usize + (part.offset - x.offset) as usize;
        let end = start.checked_add(part.len as usize);
        match end.filter(|end| *end <= block.len()) {
            Some(end) => Ok(Some((part.offset, block.slice(start..end)))),
            None => Err(Stop::File("an extent reaches beyond its block".into())),
        }
    }

    /// What was handed out may go to the disk.
    fn settle(&self, target: &mut Target) {
        let len = target.end.saturating_sub(target.settled);
        if let Some(settler) = &self.settler
            && len >= SETTLE_BYTES
        {
            let part = Extent::new(target.settled, len);
            // If nobody is there, the system does it in its own time.
            let file = target.file.file().clone();
            let _ = settler.send((file, part));
            target.settled = target.end;
        }
    }
}

/// A large file that is being written.
struct Target {
    file: Arc<DirectFile>,
    size: u64,
    /// Behind the last byte.
    end: u64,
    bytes: u64,
    /// What is to be written together, up to the end, and where that begins.
    waiting: Vec<Bytes>,
    waiting_bytes: u64,
    begin: u64,
    /// So much is written together.
    part_bytes: u64,
    /// Up to here it goes to the disk already.
    settled: u64,
    /// Where others say how their part of it went.
    tell: Sender<io::Result<()>>,
    told: Receiver<io::Result<()>>,
}

/// What extents cover of a file of this size, those that follow each other as one.
fn stretches(list: &[BlockExtent], size: u64) -> Vec<Extent> {
    let inside = |x: &BlockExtent| Extent::new(0, size).intersect(Extent::new(x.offset, x.len));
    let mut all: Vec<Extent> = Vec::new();
    for part in list.iter().filter_map(inside) {
        match all.last_mut() {
            Some(last) if last.end() == part.offset => last.len += part.len,
            _ => all.push(part),
        }
    }
    all
}

/// Makes a regular file with its attributes. `write` says where its last byte is, and how many it wrote.
pub(super) fn make_file<E: From<io::Error>>(
    dir: &Dir,
    temp: &Name,
    meta: &Meta,
    write: impl FnOnce(&Arc<File>) -> Result<(u64, u64), E>,
) -> Result<(Skipped, u64), E> {
    let file = Arc::new(dir.open_file(temp, OpenMode::CreateNew(0o600))?);
    let (end, bytes) = write(&file)?;
    if end != meta.size {
        file.set_len(meta.size)?;
    }
    // Not fresh: a default ACL of a directory that was there is inherited.
    let skipped = farwrite_fs::apply_meta_fd(&file, meta, false)?;
    Ok((skipped, bytes))
}

/// Lets `make` make something under a name of its own, then renames it to its place. `linked`: it may be a hard link of
/// what is there.
pub(super) fn put_in_place<T, E: From<io::Error>>(
    dir: &Dir,
    name: &Name,
    overwrite: bool,
    linked: bool,
    make: impl FnOnce(&Name) -> Result<T, E>,
) -> Result<T, E> {
    let temp = temp_name();
    let made = make(&temp).and_then(|made| {
        if overwrite {
            let is_dir = |s: farwrite_fs::Stat| s.kind == Kind::Dir;
            if dir.stat_if_exists(name)?.is_some_and(is_dir) {
                dir.remove_tree(name)?;
            }
            dir.rename(&temp, dir, name)?;
        } else {
            dir.rename_noreplace(&temp, dir, name)?;
        }
        // Renaming one hard link of a file over another does nothing and leaves both.
        if linked
            && let Err(e) = dir.unlink(&temp)
            && !farwrite_fs::is_absent(&e)
        {
            return Err(e.into());
        }
        Ok(made)
    });
    if made.is_err() {
        let _ = dir.unlink(&temp);
    }
    made
}

fn temp_name() -> Name {
    let mut random = [0u8; 8];
    // Without randomness the name may be taken, which is an error and no danger.
    let _ = getrandom::fill(&mut random);
    let digits = u64::from_le_bytes(random);
    Name::new(format!(".farwrite-restore-{digits:016x}")).expect("letters and digits")
}
