//! Writes file content from the log's blocks. It must never turn a hole into data or data into a hole.

use super::{Mirror, MirrorError};
use crate::catalog::{Content, View};
use crate::segment::{LogError, Place};
use bytes::Bytes;
use farwrite_core::history::BlockExtent;
use farwrite_core::{Extent, ExtentSet, Meta, Name, NodeId};
use farwrite_fs::{Dir, OpenMode, mode_to_create};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Extents of a range asked of the catalog at first, and then at once.
pub(super) const FIRST_EXTENTS: usize = 16;
const EXTENTS: usize = 1024;
/// Zeros written at once where a filesystem cannot punch holes.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Content of at least this size is shared with the log where the filesystem can: to share costs the filesystem a few changes of its
/// own structures, whatever the length.
const SHARED_LEAST_BYTES: u64 = 64 << 10;

/// Some of a file's content.
pub(super) struct Piece {
    pub(super) bytes: Bytes,
    /// Where they lie in the log, if they do so as they are.
    stored: Option<Place>,
}

impl Mirror {
    /// Makes a regular file that is not there yet.
    pub(super) fn make_file(
        &mut self,
        view: View<'_>,
        (node, content): (NodeId, Content),
        meta: &Meta,
        (dir, name): (&Dir, &Name),
        inherits: bool,
    ) -> Result<(), MirrorError> {
        let fail = |e| MirrorError::io("write", name, e);
        let file = dir
            .open_file(name, OpenMode::CreateNew(mode_to_create(meta, inherits)))
            .map_err(|e| MirrorError::io("create", name, e))?;
        let whole = Extent::new(0, meta.size);
        let end = match content {
            _ if meta.size == 0 => 0,
            Content::Hole => 0,
            Content::Piece(x, place) => match whole.intersect(Extent::new(x.offset, x.len)) {
                Some(part) => self
                    .write_piece(view, (&x, Some(place)), part, &file, name)?
                    .unwrap_or(0),
                None => 0,
            },
            Content::Unknown => self.write_range(view, node, &file, name, whole, false)?,
        };
        if end < meta.size {
            file.set_len(meta.size).map_err(fail)?;
        }
        let skipped = farwrite_fs::apply_meta_fd(&file, meta, !inherits).map_err(fail)?;
        self.stats.skipped.add(skipped);
        Ok(())
    }

    /// Brings changed ranges of an existing file up to the view, and its size and attributes.
    pub(super) fn update_file(
        &mut self,
        view: View<'_>,
        node: NodeId,
        meta: &Meta,
        (dir, name): (&Dir, &Name),
        ranges: &ExtentSet,
    ) -> Result<(), MirrorError> {
        let fail = |e| MirrorError::io("write", name, e);
        let file = match dir.open_file(name, OpenMode::ReadWrite) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                let mut passable = meta.clone();
                passable.mode |= 0o600;
                self.set_meta(dir, Some(name), &passable)?;
                dir.open_file(name, OpenMode::ReadWrite)
            }
            other => other,
        };
        let file = file.map_err(|e| MirrorError::io("open", name, e))?;
        let size = file.metadata().map_err(fail)?.len();
        if size != meta.size {
            file.set_len(meta.size).map_err(fail)?;
        }
        for range in ranges.iter() {
            if let Some(range) = range.intersect(Extent::new(0, meta.size)) {
                self.write_range(view, node, &file, name, range, true)?;
            }
        }
        let skipped = farwrite_fs::apply_meta_fd(&file, meta, false).map_err(fail)?;
        self.stats.skipped.add(skipped);
        Ok(())
    }

    /// Writes the part of a file's content that lies in `range`, and punches what lies between if `punch`; returns
    /// the end of the last byte written.
    pub(super) fn write_range(
        &mut self,
        view: View<'_>,
        node: NodeId,
        file: &File,
        name: &Name,
        range: Extent,
        punch: bool,
    ) -> Result<u64, MirrorError> {
        let fail = |e| MirrorError::io("write", name, e);
        // Most ranges are small ones.
        let (mut at, mut most, mut end) = (range.offset, FIRST_EXTENTS, range.offset);
        loop {
            let page = view.extents(node, at, most)?;
            // Pages may lie behind the range altogether, and go on for long.
            let done =
                page.len() < most || page.last().is_none_or(|x| x.offset + x.len >= range.end());
            for x in page {
                let Some(part) = range.intersect(Extent::new(x.offset, x.len)) else {
                    continue;
                };
                if punch && part.offset > at {
                    make_hole(file, at, part.offset - at).map_err(fail)?;
                }
                if let Some(written) = self.write_piece(view, (&x, None), part, file, name)? {
                    end = written;
                } else if punch {
                    make_hole(file, part.offset, part.len).map_err(fail)?;
                }
                at = part.end();
            }
            if done {
                break;
            }
            most = EXTENTS;
        }
        if punch && at < range.end() {
            make_hole(file, at, range.end() - at).map_err(fail)?;
        }
        Ok(end)
    }

    /// Writes a part of an extent; returns its end, or `None`, counted, if the log is damaged there.
    fn write_piece(
        &mut self,
        view: View<'_>,
        x: (&BlockExtent, Option<Place>),
        part: Extent,
        file: &File,
        name: &Name,
    ) -> Result<Option<u64>, MirrorError> {
        let Some(piece) = self.piece(view, x, part, name)? else {
            return Ok(None);
        };
        let written = self.put(&piece, file, part.offset);
        written.map_err(|e| MirrorError::io("write", name, e))?;
        Ok(Some(part.end()))
    }

    /// Writes content to a file; returns how many bytes of it are shared with the log and not written.
    pub(super) fn put(&mut self, piece: &Piece, file: &File, offset: u64) -> io::Result<u64> {
        let shared = self.share(piece, file, offset);
        file.write_all_at(&piece.bytes[shared as usize..], offset + shared)?;
        self.stats.bytes_written += piece.bytes.len() as u64;
        self.stats.bytes_shared += shared;
        Ok(shared)
    }

    /// Shares the beginning of a piece with the log, if that can be; returns how much. Its bytes were checked a moment ago.
    fn share(&mut self, piece: &Piece, file: &File, offset: u64) -> u64 {
        const UNIT: u64 = farwrite_fs::SHARED_UNIT_BYTES;
        let whole = piece.bytes.len() as u64 / UNIT * UNIT;
        let Some(from) = piece.stored else {
            return 0;
        };
        let aligned = from.offset.is_multiple_of(UNIT) && offset.is_multiple_of(UNIT);
        if !self.shares || !aligned || whole < SHARED_LEAST_BYTES {
            return 0;
        }
        // What was shared before an error is written over. Of a full disk the write tells.
        let shared = self.blocks.share(from, (file, offset), whole);
        shared.unwrap_or_else(|e| {
            tracing::debug!("mirror: not shared with the log: {e}");
            0
        })
    }

    /// The content of a part of an extent, whose block is at this place if that is known; `None`, counted, if the log is damaged
    /// there.
    pub(super) fn piece(
        &mut self,
        view: View<'_>,
        (x, place): (&BlockExtent, Option<Place>),
        part: Extent,
        name: &Name,
    ) -> Result<Option<Piece>, MirrorError> {
        let start = x.block_offset as usize + (part.offset - x.offset) as usize;
        let range = start..start + part.len as usize;
        let place = match place {
            Some(place) => Some(place),
            None => view.block(x.block)?.map(|(place, _)| place),
        };
        let read = match place {
            Some(place) => self.blocks.read_with_place(place),
            None => Err(LogError::Damaged {
                segment: 0,
                offset: 0,
                seq: None,
                what: format!("block {} is missing", x.block),
            }),
        };
        match read {
            Ok((bytes, stored)) if range.end <= bytes.len() => Ok(Some(Piece {
                stored: stored.map(|from| Place {
                    offset: from.offset + range.start as u64,
                    ..from
                }),
                bytes: bytes.slice(range),
            })),
            Err(e) if e.is_io() => Err(e.into()),
            other => {
                let why = other
                    .err()
                    .map_or("block too short".into(), |e| e.to_string());
                tracing::warn!("mirror: {name} at {}: {why}", part.offset);
                self.stats.damaged += 1;
                Ok(None)
            }
        }
    }
}

/// A hole where the filesystem can, zeros where it cannot.
fn make_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
    match farwrite_fs::punch_hole(file, offset, len) {
        Err(e) if e.kind() == io::ErrorKind::Unsupported => {
            let mut at = offset;
            while at < offset + len {
                let n = (offset + len - at).min(ZEROS.len() as u64);
                file.write_all_at(&ZEROS[..n as usize], at)?;
                at += n;
            }
            Ok(())
        }
        other => other,
    }
}
