//! Finds the variant part of a file: compares what is there, block by block, with the checksums of what was
//! sent, and reads no more than it is told to when the sensor knew the extents.

use super::index::IndexError;
use super::rows::{NodeFlags, NodeRow};
use farwrite_core::limits::SUM_BLOCK_BYTES;
use farwrite_core::{Extent, ExtentSet};
use farwrite_fs::{Segments, read_start};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// Blocks in one group of checksums.
pub const GROUP_BLOCKS: u64 = 256;
/// Bytes of file that one group covers: 2 MiB.
pub const GROUP_BYTES: u64 = GROUP_BLOCKS * SUM_BLOCK_BYTES;
/// Files up to this size are sent whole and have one checksum.
pub const SMALL_BYTES: u64 = 64 << 10;
/// Bytes of one checksum.
pub const SUM_BYTES: usize = 16;
/// The checksum of a block that is a hole.
pub const HOLE: [u8; SUM_BYTES] = [0; SUM_BYTES];

/// XXH3-128 of a block of data; never that of a hole.
///
/// Tells changed from unchanged on the source's own disk only. Integrity on the wire and in the vault rests on
/// BLAKE3.
pub fn sum(data: &[u8]) -> [u8; SUM_BYTES] {
    nonzero(xxh3_128(data))
}

fn nonzero(h: u128) -> [u8; SUM_BYTES] {
    h.max(1).to_le_bytes()
}

/// What is different about a piece of a file.
pub enum Variant<'a> {
    /// These bytes are at this offset.
    Data(u64, &'a [u8]),
    /// This range is a hole.
    Hole(Extent),
    /// A group's checksums are these now; all its differences have been told. `None`: all holes.
    Sums(u64, Option<Vec<u8>>),
}

/// Why a comparison ended early.
#[derive(Debug, thiserror::Error)]
pub enum ContentError<E> {
    /// The file could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The index failed.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The receiver of the variants failed.
    #[error(transparent)]
    Receiver(E),
}

/// The small file's content and what it is: bytes, runs of data in them, checksum.
pub struct SmallContent {
    /// All bytes, holes as zeros.
    pub bytes: Vec<u8>,
    /// Runs: extent and whether it is a hole.
    pub runs: Vec<(Extent, bool)>,
    /// Over content and holes.
    pub sum: [u8; SUM_BYTES],
}

/// Reads a file of at most [`SMALL_BYTES`]; shorter content than `size` is an `UnexpectedEof`.
pub fn read_small(file: &File, size: u64, sparse: bool) -> io::Result<SmallContent> {
    let bytes = read_start(file, size as usize)?;
    let mut runs = Vec::new();
    if sparse {
        let mut segments = Segments::new(file, size);
        let mut at = 0;
        while let Some(s) = segments.next_from(at)? {
            runs.push((Extent::new(s.offset, s.len), s.hole));
            at = s.offset + s.len;
        }
    } else if size > 0 {
        runs.push((Extent::new(0, size), false));
    }
    let mut h = Xxh3::new();
    h.update(&bytes);
    for (e, hole) in &runs {
        if *hole {
            h.update(&e.offset.to_le_bytes());
            h.update(&e.len.to_le_bytes());
        }
    }
    Ok(SmallContent {
        bytes,
        runs,
        sum: nonzero(h.digest128()),
    })
}

impl SmallContent {
    /// If the file without holes only grew since it had `size` bytes with this checksum, what came behind them is all that
    /// there is to send.
    pub fn keep_appended(&mut self, size: u64, was: &[u8; SUM_BYTES]) {
        let end = self.bytes.len() as u64;
        let whole = self.runs == [(Extent::new(0, end), false)];
        if whole && 0 < size && size < end && sum(&self.bytes[..size as usize]) == *was {
            self.runs = vec![(Extent::new(size, end - size), false)];
        }
    }
}

/// Told every difference in order of offset.
pub type Receiver<'a, E> = &'a mut dyn FnMut(Variant<'_>) -> Result<(), E>;

/// Compares a large file with what was sent of `base` and tells `f` every difference in order of offset.
///
/// `sums` reads a group of the base's checksums; `groups` are those that exist. `extents`: look there only.
/// Returns the bytes read. A file that turns out shorter than `size` is an `UnexpectedEof`.
pub struct Comparison<'a> {
    /// The file.
    pub file: &'a File,
    /// Its size when it was opened.
    pub size: u64,
    /// What was sent before; `None` for a new file.
    pub base: Option<&'a NodeRow>,
    /// The bytes that changed, if known.
    pub extents: Option<&'a ExtentSet>,
    /// Groups of the base that have checksums.
    pub groups: BTreeSet<u64>,
}

impl Comparison<'_> {
    /// Does the base have checksums that describe what was sent?
    fn known(&self) -> bool {
        self.base
            .as_ref()
            .is_some_and(|b| b.flags.has(NodeFlags::SUMS) && b.meta.size > SMALL_BYTES)
    }

    /// See [`Comparison`].
    pub fn run<E>(
        &self,
        sums: &mut dyn FnMut(u64) -> Result<Option<Vec<u8>>, IndexError>,
        f: Receiver<'_, E>,
    ) -> Result<u64, ContentError<E>> {
        let known = self.known();
        let mut buf = vec![0u8; GROUP_BYTES.min(self.size) as usize];
        let mut segments = Segments::new(self.file, self.size);
        let mut read = 0;
        let mut group = 0;
        while group * GROUP_BYTES < self.size {
            let start = group * GROUP_BYTES;
            let span = Extent::new(start, GROUP_BYTES.min(self.size - start));
            if known && self.untouched(span) {
                group += 1;
                continue;
            }
            let old = if known && self.groups.contains(&group) {
                sums(group)?
            } else {
                None
            };
            let first = segments.next_from(start)?;
            if let Some(s) = first.filter(|s| s.hole && s.len >= span.len) {
                if old.is_some() || (self.base.is_some() && !known) {
                    f(Variant::Hole(span)).map_err(ContentError::Receiver)?;
                }
                if old.is_some() {
                    f(Variant::Sums(group, None)).map_err(ContentError::Receiver)?;
                }
                group = self.behind_hole(group, s.offset + s.len, known);
                continue;
            }
            let data = data_in(span, &mut segments)?;
            read += self.group(group, (span, &data), old, &mut buf, f)?;
            group += 1;
        }
        // What lay behind the new end is cut off by the size; its checksums go.
        for &g in self
            .groups
            .iter()
            .filter(|g| **g * GROUP_BYTES >= self.size)
        {
            f(Variant::Sums(g, None)).map_err(ContentError::Receiver)?;
        }
        Ok(read)
    }

    /// Is the group or block outside of what the sensor named? The block at the old end has changed its length even if
    /// nobody wrote to it, and what lies between an old and a new end is new.
    fn untouched(&self, span: Extent) -> bool {
        let Some(extents) = self.extents else {
            return false;
        };
        let old = self.base.map_or(0, |b| b.meta.size);
        let tail = old != self.size && span.end() >= old.min(self.size);
        !tail && !extents.iter().any(|e| e.intersect(span).is_some())
    }

    /// The first group behind `group` that a hole up to `end` does not settle.
    fn behind_hole(&self, group: u64, end: u64, known: bool) -> u64 {
        let mut next = group + 1;
        if known || self.base.is_none() {
            while (next + 1) * GROUP_BYTES <= end && !self.groups.contains(&next) {
                next += 1;
            }
        }
        next
    }

    fn group<E>(
        &self,
        group: u64,
        (span, data): (Extent, &[Extent]),
        old: Option<Vec<u8>>,
        buf: &mut [u8],
        f: Receiver<'_, E>,
    ) -> Result<u64, ContentError<E>> {
        let buf = &mut buf[..span.len as usize];
        let was = |b: u64| {
            let at = b as usize * SUM_BYTES;
            old.as_ref().and_then(|o| o.get(at..at + SUM_BYTES))
        };
        let look: Vec<(u64, Extent)> = blocks_of(span)
            .filter(|(b, block)| was(*b).is_none() || !self.untouched(*block))
            .collect();
        let read = self.read_blocks(span, &look, data, buf)?;
        let old_unknown = self.base.is_some() && !self.known();
        let mut new = old.clone().unwrap_or_default();
        new.resize(span.len.div_ceil(SUM_BLOCK_BYTES) as usize * SUM_BYTES, 0);
        let mut run: Option<Extent> = None;
        for (b, block) in look {
            let bytes = &buf[(block.offset - span.offset) as usize..][..block.len as usize];
            let now = block_sum(bytes, block, data);
            new[b as usize * SUM_BYTES..][..SUM_BYTES].copy_from_slice(&now);
            let differs = match was(b) {
                Some(was) if was != now => Some(self.behind_old_end(block, was, bytes, data)),
                None if now != HOLE || old_unknown => Some(block),
                _ => None,
            };
            match (&mut run, differs) {
                (Some(r), Some(d)) if r.end() == d.offset => r.len += d.len,
                (_, differs) => {
                    if let Some(r) = std::mem::replace(&mut run, differs) {
                        self.tell(r, span, data, buf, f)?;
                    }
                }
            }
        }
        if let Some(r) = run {
            self.tell(r, span, data, buf, f)?;
        }
        if old.as_deref() != Some(&new) {
            f(Variant::Sums(group, Some(new))).map_err(ContentError::Receiver)?;
        }
        Ok(read)
    }

    /// Reads those blocks of `span` into their places in `buf`, holes as zeros. Returns the bytes read.
    fn read_blocks(
        &self,
        span: Extent,
        blocks: &[(u64, Extent)],
        data: &[Extent],
        buf: &mut [u8],
    ) -> io::Result<u64> {
        let mut runs: Vec<Extent> = Vec::new();
        for (_, block) in blocks {
            match runs.last_mut() {
                Some(last) if last.end() == block.offset => last.len += block.len,
                _ => runs.push(*block),
            }
        }
        let mut read = 0;
        for run in runs {
            buf[(run.offset - span.offset) as usize..][..run.len as usize].fill(0);
            for e in data.iter().filter_map(|e| e.intersect(run)) {
                let place = &mut buf[(e.offset - span.offset) as usize..][..e.len as usize];
                self.file.read_exact_at(place, e.offset)?;
                read += e.len;
            }
        }
        Ok(read)
    }

    /// What differs of a block whose checksum does: if the file has grown in it and what was there before is unchanged
    /// (a log that is appended to), only what came behind it.
    fn behind_old_end(&self, block: Extent, was: &[u8], bytes: &[u8], data: &[Extent]) -> Extent {
        let old = self.base.map_or(0, |b| b.meta.size);
        if old <= block.offset || old >= block.end() {
            return block;
        }
        let before = Extent::new(block.offset, old - block.offset);
        if block_sum(&bytes[..before.len as usize], before, data) != was {
            return block;
        }
        Extent::new(old, block.end() - old)
    }

    /// Tells a run of differing blocks as data and holes.
    fn tell<E>(
        &self,
        run: Extent,
        span: Extent,
        data: &[Extent],
        buf: &[u8],
        f: Receiver<'_, E>,
    ) -> Result<(), ContentError<E>> {
        let mut at = run.offset;
        let hole_to = |at: u64, to: u64, f: Receiver<'_, E>| match self.base {
            Some(_) if to > at => f(Variant::Hole(Extent::new(at, to - at))),
            _ => Ok(()),
        };
        for e in data.iter().filter_map(|e| e.intersect(run)) {
            hole_to(at, e.offset, f).map_err(ContentError::Receiver)?;
            let from = (e.offset - span.offset) as usize;
            f(Variant::Data(e.offset, &buf[from..from + e.len as usize]))
                .map_err(ContentError::Receiver)?;
            at = e.end();
        }
        hole_to(at, run.end(), f).map_err(ContentError::Receiver)
    }
}

/// The runs of data in a range.
fn data_in(span: Extent, segments: &mut Segments<&File>) -> io::Result<Vec<Extent>> {
    let mut data: Vec<Extent> = Vec::new();
    let mut at = span.offset;
    while at < span.end() {
        let Some(s) = segments.next_from(at)? else {
            break;
        };
        let run = Extent::new(at, s.len.min(span.end() - at));
        at = run.end();
        match data.last_mut() {
            Some(last) if !s.hole && last.end() == run.offset => last.len += run.len,
            _ if !s.hole => data.push(run),
            _ => {}
        }
    }
    Ok(data)
}

/// The blocks of a group, with their numbers in it.
fn blocks_of(span: Extent) -> impl Iterator<Item = (u64, Extent)> {
    (0..span.len.div_ceil(SUM_BLOCK_BYTES)).map(move |b| {
        let from = b * SUM_BLOCK_BYTES;
        let len = SUM_BLOCK_BYTES.min(span.len - from);
        (b, Extent::new(span.offset + from, len))
    })
}

/// Checksum of a block of which `data` names the parts that are not holes.
fn block_sum(bytes: &[u8], block: Extent, data: &[Extent]) -> [u8; SUM_BYTES] {
    let mut parts = data.iter().filter_map(|e| e.intersect(block)).peekable();
    match parts.peek() {
        None => HOLE,
        Some(e) if *e == block => sum(bytes),
        Some(_) => {
            let mut h = Xxh3::new();
            h.update(bytes);
            for e in parts {
                h.update(&e.offset.to_le_bytes());
                h.update(&e.len.to_le_bytes());
            }
            nonzero(h.digest128())
        }
    }
}
