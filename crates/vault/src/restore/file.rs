//! Restores what is not a directory: first under a name of its own, then renamed into place. An interrupted restore
//! leaves at most a `.farwrite-restore-` file.

use super::{Done, RestoreError, Run};
use crossbeam_channel::{Receiver, Sender};
use farwrite_core::history::{BlockExtent, Entry};
use farwrite_core::{Extent, Kind, Name};
use farwrite_fs::{Dir, OpenMode, Skipped};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes written of a large file before they go to the disk.
const SETTLE_BYTES: u64 = 32 << 20;

/// A part of a large file, to be put on the disk and let go from memory while the rest is still being written, and
/// where to say how that went.
pub(super) type Settle = (File, Extent, Sender<io::Result<()>>);

/// Does so until there is no more: for a thread beside the one that writes.
pub(super) fn settle_for_others(jobs: &Receiver<Settle>) {
    for (file, part, told) in jobs {
        let done = file.sync_data();
        if done.is_ok() {
            farwrite_fs::forget_cached(&file, part.offset, part.end());
        }
        // Who wrote may have given the file up.
        let _ = told.send(done);
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
    pub(super) fn make_other(
        &mut self,
        way: &[Name],
        name: &Name,
        entry: &Entry,
    ) -> Result<Done, RestoreError> {
        let Some(to) = &self.to else {
            return Ok(Done::Made(Skipped::default(), entry.meta.size));
        };
        let dir = match to.open_beneath(way) {
            Ok(dir) => dir,
            Err(e) => return Ok(Done::Failed(e.to_string())),
        };
        let temp = temp_name();
        let made = self.make_temp(&dir, &temp, entry).and_then(|done| {
            if self.plan.overwrite {
                if dir
                    .stat_if_exists(name)?
                    .is_some_and(|s| s.kind == Kind::Dir)
                {
                    dir.remove_tree(name)?;
                }
                dir.rename(&temp, &dir, name)?;
            } else {
                dir.rename_noreplace(&temp, &dir, name)?;
            }
            // Renaming one hard link of a file over another does nothing and leaves both.
            match dir.unlink(&temp) {
                Err(e) if !farwrite_fs::is_absent(&e) => return Err(e.into()),
                _ => {}
            }
            Ok(done)
        });
        if made.is_err() {
            let _ = dir.unlink(&temp);
        } else if entry.links > 1 {
            self.linked
                .entry(entry.node)
                .or_insert_with(|| (way.to_vec(), name.clone()));
        }
        match made {
            Ok(done) => self.outcome(Ok(done)),
            Err(Stop::Io(e)) => self.outcome(Err(e)),
            Err(Stop::File(why)) => Ok(Done::Failed(why)),
            Err(Stop::All(e)) => Err(e),
        }
    }

    fn make_temp(&mut self, dir: &Dir, temp: &Name, entry: &Entry) -> Result<(Skipped, u64), Stop> {
        let meta = &entry.meta;
        if let Some((way, name)) = self.linked.get(&entry.node) {
            let to = self.to.as_ref().expect("not a dry run");
            to.open_beneath(way)?.link(name, dir, temp)?;
            return Ok((Skipped::default(), 0));
        }
        match meta.kind {
            Kind::File => {
                let file = dir.open_file(temp, OpenMode::CreateNew(0o600))?;
                let bytes = self.content(&file, entry)?;
                // Not fresh: a default ACL of a directory that was there is inherited.
                let skipped = farwrite_fs::apply_meta_fd(&file, meta, false)?;
                return Ok((skipped, bytes));
            }
            Kind::Symlink => dir.symlink(temp, &meta.target)?,
            kind => dir.mknod(temp, kind, 0o600, meta.rdev)?,
        }
        Ok((farwrite_fs::apply_meta(dir, Some(temp), meta)?, 0))
    }

    fn content(&mut self, file: &File, entry: &Entry) -> Result<u64, Stop> {
        let mut bytes = 0;
        let (tell, told) = crossbeam_channel::unbounded();
        (self.settled, self.tell) = (0, Some(tell));
        let before = self.stats.gone_over;
        match &entry.extents {
            Some(list) => bytes += self.pieces(file, entry.meta.size, list, before)?,
            None => {
                let mut from = 0;
                loop {
                    let (list, more) = self.fetch.extents(entry.node, self.plan.at, from)?;
                    self.fetch.announce_first(&list);
                    bytes += self.pieces(file, entry.meta.size, &list, before)?;
                    match list.last() {
                        Some(x) if more && x.offset.saturating_add(x.len) > from => {
                            from = x.offset + x.len;
                        }
                        _ => break,
                    }
                }
            }
        }
        file.set_len(entry.meta.size)?;
        // An error is told once: whoever hears of it must not keep it to himself.
        self.tell = None;
        told.iter().collect::<io::Result<()>>()?;
        Ok(bytes)
    }

    fn pieces(
        &mut self,
        file: &File,
        size: u64,
        list: &[BlockExtent],
        before: u64,
    ) -> Result<u64, Stop> {
        let mut bytes = 0;
        for x in list {
            let inside = Extent::new(0, size).intersect(Extent::new(x.offset, x.len));
            let Some(part) = inside else { continue };
            let block = self.fetch.block(x.block)?;
            let block = block.map_err(|why| {
                Stop::File(format!("content damaged at byte {}: {why}", part.offset))
            })?;
            let start = x.block_offset as usize + (part.offset - x.offset) as usize;
            let piece = start
                .checked_add(part.len as usize)
                .and_then(|end| block.get(start..end))
                .ok_or_else(|| Stop::File("an extent reaches beyond its block".into()))?;
            file.write_all_at(piece, part.offset)?;
            bytes += part.len;
            self.settle(file, part.end())?;
            self.gone_over(before + part.end());
        }
        Ok(bytes)
    }
}

impl Run<'_> {
    /// What was written up to `end` may go to the disk.
    fn settle(&mut self, file: &File, end: u64) -> io::Result<()> {
        let len = end.saturating_sub(self.settled);
        if let (Some(settler), Some(tell)) = (&self.settler, &self.tell)
            && len >= SETTLE_BYTES
        {
            let part = Extent::new(self.settled, len);
            // If nobody is there, the system does it in its own time.
            let _ = settler.send((file.try_clone()?, part, tell.clone()));
            self.settled = end;
        }
        Ok(())
    }
}

fn temp_name() -> Name {
    let mut random = [0u8; 8];
    // Without randomness the name may be taken, which is an error and no danger.
    let _ = getrandom::fill(&mut random);
    let digits = u64::from_le_bytes(random);
    Name::new(format!(".farwrite-restore-{digits:016x}")).expect("letters and digits")
}
