//! A head start for files that come in several batches. Their content is written as it comes, to a file of its own in the hold
//! directory, and that is moved to its place when its name comes: else a large file would be written to the mirror only
//! after the last of it has come. It must never decide what a file's content is: each piece counts only if the catalog has the
//! same bytes of the same block at that offset.

use super::{Mirror, MirrorError};
use crate::catalog::View;
use farwrite_core::history::BlockExtent;
use farwrite_core::{Extent, ExtentSet, Meta, Name, NodeId};
use farwrite_fs::{Dir, OpenMode};
use std::collections::HashMap;
use std::fs::File;

/// Files that get a head start at the same time.
const FILES: usize = 16;
/// Pieces remembered of one file; one of more gets none.
const PIECES: usize = 100_000;
/// Bytes that have to be free beside what a head start and the log may take.
const ROOM_LEFT: u64 = 256 << 20;
/// Bytes written of a file before they go to the disk.
const SETTLE_BYTES: u64 = 32 << 20;
/// Pieces asked of the catalog at once.
const PAGE: usize = 1024;

/// The files, by the node that their content comes under.
#[derive(Default)]
pub(super) struct Ahead(HashMap<NodeId, Written>);

/// What has been written of one, from its beginning and without gaps.
struct Written {
    file: File,
    pieces: Vec<BlockExtent>,
    end: u64,
    /// Up to here it is on the disk, and not in memory any more.
    settled: u64,
    /// Bytes since then that were not written, but are shared with the log.
    shared: u64,
}

impl Written {
    /// Large files go to the disk piece by piece: neither does the end wait for all of them, nor do they fill the memory.
    fn settle(&mut self, name: &Name) -> Result<(), MirrorError> {
        let len = self.end - self.settled - self.shared;
        if len >= SETTLE_BYTES {
            let synced = self.file.sync_data();
            synced.map_err(|e| MirrorError::io("write", name, e))?;
            farwrite_fs::forget_cached(&self.file, self.settled, self.end);
            (self.settled, self.shared) = (self.end, 0);
        }
        Ok(())
    }

    /// Does it have these bytes? `from`: where to look first, moved on to where they were found.
    fn has(&self, x: &BlockExtent, from: &mut usize) -> bool {
        while self
            .pieces
            .get(*from)
            .is_some_and(|p| p.offset + p.len <= x.offset)
        {
            *from += 1;
        }
        self.pieces.get(*from).is_some_and(|p| {
            p.block == x.block
                && p.offset <= x.offset
                && x.offset + x.len <= p.offset + p.len
                && u64::from(x.block_offset) == u64::from(p.block_offset) + x.offset - p.offset
        })
    }
}

fn ahead_name(node: NodeId) -> Name {
    Name::new(format!("ahead-{node}")).expect("digits make a name")
}

impl Mirror {
    /// Writes what has come of a file without a name. `new`: nothing had come before. What does not go on where the last left off
    /// ends the head start.
    pub(super) fn go_ahead(
        &mut self,
        view: View<'_>,
        node: NodeId,
        size: u64,
        ranges: &ExtentSet,
        new: bool,
    ) -> Result<(), MirrorError> {
        let begins = ranges.iter().next().is_some_and(|r| r.offset == 0);
        if new && begins && self.ahead.0.len() < FILES && self.has_room(size) {
            match self.begin_ahead(node) {
                Ok(written) => drop(self.ahead.0.insert(node, written)),
                Err(e) => tracing::debug!("no head start: {e}"),
            }
        }
        let Some(mut written) = self.ahead.0.remove(&node) else {
            return Ok(());
        };
        for range in ranges.iter() {
            let went = range.offset == written.end
                && match self.write_ahead(view, node, &mut written, range) {
                    // A full disk, say: there may be room for the file itself once this is gone.
                    Err(MirrorError::Io { .. }) => false,
                    other => other?,
                };
            if !went {
                return self.remove_ahead(node);
            }
        }
        self.ahead.0.insert(node, written);
        Ok(())
    }

    fn begin_ahead(&self, node: NodeId) -> std::io::Result<Written> {
        let name = ahead_name(node);
        self.hold.remove_tree(&name)?;
        Ok(Written {
            file: self.hold.open_file(&name, OpenMode::CreateNew(0o600))?,
            pieces: Vec::new(),
            end: 0,
            settled: 0,
            shared: 0,
        })
    }

    /// Is there room for the rest of the log and for the file, beside the one that it may replace?
    fn has_room(&self, size: u64) -> bool {
        rustix::fs::fstatvfs(&self.hold).is_ok_and(|s| {
            let free = s.f_bavail.saturating_mul(s.f_frsize);
            free >= size.saturating_mul(2).saturating_add(ROOM_LEFT)
        })
    }

    /// False if the range has gaps, is damaged in the log, or has too many pieces.
    fn write_ahead(
        &mut self,
        view: View<'_>,
        node: NodeId,
        written: &mut Written,
        range: Extent,
    ) -> Result<bool, MirrorError> {
        let name = ahead_name(node);
        while written.end < range.end() {
            let page = view.extents(node, written.end, PAGE)?;
            let before = written.end;
            for x in page {
                let Some(part) = range.intersect(Extent::new(x.offset, x.len)) else {
                    continue;
                };
                if part.offset != written.end || written.pieces.len() >= PIECES {
                    return Ok(false);
                }
                let Some(piece) = self.piece(view, (&x, None), part, &name)? else {
                    return Ok(false);
                };
                let done = self.put(&piece, &written.file, part.offset);
                written.shared += done.map_err(|e| MirrorError::io("write", &name, e))?;
                written.pieces.push(BlockExtent {
                    offset: part.offset,
                    len: part.len,
                    block: x.block,
                    block_offset: x.block_offset + (part.offset - x.offset) as u32,
                });
                written.end = part.end();
                written.settle(&name)?;
            }
            if written.end == before {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The node whose content begins as the file's does, if one had a head start.
    fn ahead_of(&self, view: View<'_>, node: NodeId) -> Result<Option<NodeId>, MirrorError> {
        if self.ahead.0.is_empty() {
            return Ok(None);
        }
        let Some(first) = view.extents(node, 0, 1)?.pop() else {
            return Ok(None);
        };
        let mut all = self.ahead.0.iter();
        Ok(all.find(|(_, w)| w.has(&first, &mut 0)).map(|(n, _)| *n))
    }

    /// Makes a regular file out of one that had a head start, in one step also where it takes the place of another; false if
    /// none had, or too little.
    pub(super) fn place_ahead(
        &mut self,
        view: View<'_>,
        node: NodeId,
        meta: &Meta,
        (dir, name): (&Dir, &Name),
        replace: bool,
    ) -> Result<bool, MirrorError> {
        let Some(from) = self.ahead_of(view, node)? else {
            return Ok(false);
        };
        let written = self.ahead.0.remove(&from).expect("just found");
        if written.end < meta.size / 2 {
            return self.remove_ahead(from).map(|()| false);
        }
        self.complete(view, node, meta, &written, name)?;
        let held = ahead_name(from);
        match replace {
            true => self.hold.rename(&held, dir, name),
            false => self.hold.rename_noreplace(&held, dir, name),
        }
        .map_err(|e| MirrorError::io("place", name, e))?;
        Ok(true)
    }

    /// Makes what was written exactly what the catalog says, attributes too.
    fn complete(
        &mut self,
        view: View<'_>,
        node: NodeId,
        meta: &Meta,
        written: &Written,
        name: &Name,
    ) -> Result<(), MirrorError> {
        let fail = |e| MirrorError::io("write", name, e);
        let file = &written.file;
        file.set_len(meta.size).map_err(fail)?;
        // Up to `right` it is as it should be.
        let (mut at, mut right, mut found) = (0, 0, 0);
        loop {
            let page = view.extents(node, at, PAGE)?;
            for x in page.iter().filter(|x| written.has(x, &mut found)) {
                if right < x.offset {
                    let other = Extent::new(right, x.offset - right);
                    self.write_range(view, node, file, name, other, true)?;
                }
                right = x.offset + x.len;
            }
            match page.last() {
                Some(last) if page.len() == PAGE => at = last.offset + last.len,
                _ => break,
            }
        }
        if right < meta.size {
            let other = Extent::new(right, meta.size - right);
            self.write_range(view, node, file, name, other, true)?;
        }
        // Made in the hold directory, which hands no default ACL on.
        let skipped = farwrite_fs::apply_meta_fd(file, meta, true).map_err(fail)?;
        self.stats.skipped.add(skipped);
        Ok(())
    }

    fn remove_ahead(&mut self, node: NodeId) -> Result<(), MirrorError> {
        let name = ahead_name(node);
        let removed = self.hold.remove_tree(&name).map(drop);
        removed.map_err(|e| MirrorError::io("remove", &name, e))
    }

    /// Removes what a process left that was killed.
    pub(super) fn remove_all_ahead(&self) -> std::io::Result<()> {
        for entry in self.hold.list()? {
            if entry.name.as_bytes().starts_with(b"ahead-") {
                self.hold.remove_tree(&entry.name)?;
            }
        }
        Ok(())
    }

    /// Ends the head starts of nodes that are not there any more.
    pub(super) fn tidy_ahead(&mut self, view: View<'_>) -> Result<(), MirrorError> {
        let mut gone = Vec::new();
        for node in self.ahead.0.keys() {
            if view.node(*node)?.is_none() {
                gone.push(*node);
            }
        }
        for node in gone {
            self.ahead.0.remove(&node);
            self.remove_ahead(node)?;
        }
        Ok(())
    }

    /// Ends all of them.
    pub(crate) fn forget_ahead(&mut self) {
        for node in std::mem::take(&mut self.ahead.0).into_keys() {
            if let Err(e) = self.remove_ahead(node) {
                tracing::debug!("{e}");
            }
        }
    }
}
