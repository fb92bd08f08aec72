//! Finds the variant part of a file: compares what is there, block by block, with the checksums of what was
//! sent, and reads no more than it is told to when the sensor knew the extents.

use super::batch::Run;
use super::in_order::InOrder;
use super::index::IndexError;
use super::rows::{NodeFlags, NodeRow};
use bytes::Bytes;
use farwrite_core::limits::SUM_BLOCK_BYTES;
use farwrite_core::{Extent, ExtentSet, limits};
use farwrite_fs::{Segments, expect_reads, read_range};
use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// Blocks in one group of checksums.
pub const GROUP_BLOCKS: u64 = 256;
/// Bytes of file that one group covers: 2 MiB.
pub const GROUP_BYTES: u64 = GROUP_BLOCKS * SUM_BLOCK_BYTES;
/// Bytes that are read and summed before the next are read, while there is no difference: they stay in the processor's cache.
const WINDOW_BYTES: u64 = 128 << 10;
/// Groups that are looked at ahead.
const GROUPS_AHEAD: usize = 8;
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
    Data(u64, Run<'a>),
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
    let bytes = read_range(file, 0, size as usize)?;
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
    /// May more than one processor be used?
    pub helped: bool,
}

/// What a comparison comes to next.
enum Step {
    /// A group that is nothing but a hole, and whether the base has checksums of it.
    Hole(u64, Extent, bool),
    Group(Group),
}

struct Group {
    number: u64,
    span: Extent,
    /// The runs of data in it.
    data: Vec<Extent>,
    /// Checksums of the base.
    old: Option<Vec<u8>>,
    /// A helper finds out how much of it is the same.
    helped: bool,
}

/// The next group that is to be looked at, and where the holes are.
struct Walk<'c> {
    group: u64,
    segments: Segments<&'c File>,
}

/// What was found of a group: how many bytes from its start are the same, and what was read behind those.
struct Looked {
    same: u64,
    differs: Vec<u8>,
}

/// Other threads compare groups ahead of the one that tells the differences, for as long as there are none.
struct Helpers {
    file: Arc<File>,
    work: InOrder<io::Result<Looked>>,
    /// So many groups are not given to them.
    pause: usize,
}

thread_local! {
    /// What a thread reads its windows into.
    static WINDOW: RefCell<Vec<u8>> = RefCell::new(vec![0; WINDOW_BYTES as usize]);
}

impl Helpers {
    fn give(&mut self, group: &mut Group) {
        let Some(old) = group.old.clone() else {
            return;
        };
        if self.pause > 0 {
            self.pause -= 1;
            return;
        }
        let (file, span) = (self.file.clone(), group.span);
        let look = move |window: &mut Vec<u8>| {
            let (same, read) = same(&file, span, &old, window)?;
            let differs = window[..(read - same) as usize].to_vec();
            Ok(Looked { same, differs })
        };
        self.work.put(move || WINDOW.with_borrow_mut(look));
        group.helped = true;
    }

    /// What was found of the oldest group that was given to them.
    fn take(&mut self, span: Extent) -> io::Result<Looked> {
        let looked = self.work.next().expect("it was given")?;
        if looked.same < span.len {
            // It may well have been written anew, all of it.
            self.pause = GROUPS_AHEAD;
        }
        Ok(looked)
    }
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
        let mut buf = Vec::new();
        let mut walk = Walk {
            group: 0,
            segments: Segments::new(self.file, self.size),
        };
        let mut helpers = self.helpers();
        let ahead = helpers.as_ref().map_or(1, |_| GROUPS_AHEAD);
        let mut steps = VecDeque::new();
        let mut read = 0;
        loop {
            while steps.len() < ahead {
                let Some(mut step) = self.step(&mut walk, sums)? else {
                    break;
                };
                if let (Some(helpers), Step::Group(group)) = (&mut helpers, &mut step)
                    && group.data == [group.span]
                {
                    helpers.give(group);
                }
                steps.push_back(step);
            }
            match steps.pop_front() {
                None => break,
                Some(Step::Hole(group, span, had_sums)) => {
                    if had_sums || (self.base.is_some() && !self.known()) {
                        f(Variant::Hole(span)).map_err(ContentError::Receiver)?;
                    }
                    if had_sums {
                        f(Variant::Sums(group, None)).map_err(ContentError::Receiver)?;
                    }
                }
                Some(Step::Group(group)) => {
                    let looked = match &mut helpers {
                        Some(helpers) if group.helped => Some(helpers.take(group.span)?),
                        _ => None,
                    };
                    read += self.group(group, looked, &mut buf, f)?;
                }
            }
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

    /// Other threads that help, where that pays.
    fn helpers(&self) -> Option<Helpers> {
        let processors = || std::thread::available_parallelism().map_or(1, |n| n.get());
        if !self.helped || !self.known() || self.extents.is_some() || processors() == 1 {
            return None;
        }
        Some(Helpers {
            // Without a descriptor to be had it goes without help.
            file: Arc::new(self.file.try_clone().ok()?),
            work: InOrder::new("farwrite-compare"),
            pause: 0,
        })
    }

    fn step<E>(
        &self,
        walk: &mut Walk<'_>,
        sums: &mut dyn FnMut(u64) -> Result<Option<Vec<u8>>, IndexError>,
    ) -> Result<Option<Step>, ContentError<E>> {
        let known = self.known();
        while walk.group * GROUP_BYTES < self.size {
            let number = walk.group;
            let start = number * GROUP_BYTES;
            let span = Extent::new(start, GROUP_BYTES.min(self.size - start));
            walk.group += 1;
            if known && self.untouched(span) {
                continue;
            }
            let old = if known && self.groups.contains(&number) {
                sums(number)?
            } else {
                None
            };
            let first = walk.segments.next_from(start)?;
            if let Some(s) = first.filter(|s| s.hole && s.len >= span.len) {
                walk.group = self.behind_hole(number, s.offset + s.len, known);
                return Ok(Some(Step::Hole(number, span, old.is_some())));
            }
            return Ok(Some(Step::Group(Group {
                number,
                span,
                data: data_in(span, &mut walk.segments)?,
                old,
                helped: false,
            })));
        }
        Ok(None)
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

    /// `looked`: what a helper has found, if it was asked.
    fn group<E>(
        &self,
        group: Group,
        looked: Option<Looked>,
        buf: &mut Vec<u8>,
        f: Receiver<'_, E>,
    ) -> Result<u64, ContentError<E>> {
        let Group {
            number, span, old, ..
        } = group;
        let data = &group.data[..];
        if old.is_none() && data == [span] {
            return self.new_group(number, span, f);
        }
        // Of all groups, by the first that needs it.
        if buf.is_empty() {
            buf.resize(GROUP_BYTES.min(self.size) as usize, 0);
        }
        let buf = &mut buf[..span.len as usize];
        let was = |b: u64| {
            let at = b as usize * SUM_BYTES;
            old.as_ref().and_then(|o| o.get(at..at + SUM_BYTES))
        };
        // With extents it is known where the differences are.
        let (same, read) = match (&old, looked) {
            (_, Some(Looked { same, differs })) => {
                buf[same as usize..][..differs.len()].copy_from_slice(&differs);
                (same, same + differs.len() as u64)
            }
            (Some(old), None) if self.extents.is_none() && data == [span] => {
                let (same, read) = same(self.file, span, old, buf)?;
                buf.copy_within(..(read - same) as usize, same as usize);
                (same, read)
            }
            _ => (0, 0),
        };
        let look: Vec<(u64, Extent)> = blocks_of(span)
            .filter(|(_, block)| block.offset >= span.offset + same)
            .filter(|(b, block)| was(*b).is_none() || !self.untouched(*block))
            .collect();
        let unread = look.iter().map(|(_, block)| *block);
        let unread = unread.filter(|block| block.offset >= span.offset + read);
        let read = read + self.read_blocks(span, unread, data, buf)?;
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
            f(Variant::Sums(number, Some(new))).map_err(ContentError::Receiver)?;
        }
        Ok(read)
    }

    /// A group without holes of which nothing is known.
    fn new_group<E>(
        &self,
        number: u64,
        span: Extent,
        f: Receiver<'_, E>,
    ) -> Result<u64, ContentError<E>> {
        let mut sums = Vec::with_capacity(GROUP_BLOCKS as usize * SUM_BYTES);
        let mut at = span.offset;
        while at < span.end() {
            let len = (span.end() - at).min(limits::BLOCK_RAW_BYTES as u64);
            let bytes = Bytes::from(read_range(self.file, at, len as usize)?);
            sums.extend(bytes.chunks(SUM_BLOCK_BYTES as usize).flat_map(sum));
            f(Variant::Data(at, Run::Given(bytes))).map_err(ContentError::Receiver)?;
            at += len;
        }
        f(Variant::Sums(number, Some(sums))).map_err(ContentError::Receiver)?;
        Ok(span.len)
    }

    /// Reads those blocks of `span` into their places in `buf`, holes as zeros. Returns the bytes read.
    fn read_blocks(
        &self,
        span: Extent,
        blocks: impl Iterator<Item = Extent>,
        data: &[Extent],
        buf: &mut [u8],
    ) -> io::Result<u64> {
        let mut runs: Vec<Extent> = Vec::new();
        for block in blocks {
            match runs.last_mut() {
                Some(last) if last.end() == block.offset => last.len += block.len,
                _ => runs.push(block),
            }
        }
        let place = |from: u64, to: u64| (from - span.offset) as usize..(to - span.offset) as usize;
        let mut read = 0;
        for run in runs {
            let mut at = run.offset;
            for e in data.iter().filter_map(|e| e.intersect(run)) {
                buf[place(at, e.offset)].fill(0);
                self.file
                    .read_exact_at(&mut buf[place(e.offset, e.end())], e.offset)?;
                read += e.len;
                at = e.end();
            }
            buf[place(at, run.end())].fill(0);
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
            let bytes = &buf[from..from + e.len as usize];
            f(Variant::Data(e.offset, bytes.into())).map_err(ContentError::Receiver)?;
            at = e.end();
        }
        hole_to(at, run.end(), f).map_err(ContentError::Receiver)
    }
}

/// How many bytes of a group without holes, from its start, are whole windows that are as their checksums say, and how many are
/// read: those between the two, of the first window that is not, are at the start of `buf`.
fn same(file: &File, span: Extent, old: &[u8], buf: &mut [u8]) -> io::Result<(u64, u64)> {
    let window_blocks = (WINDOW_BYTES / SUM_BLOCK_BYTES) as usize;
    let mut at = 0;
    for sums in old.chunks(window_blocks * SUM_BYTES) {
        let len = WINDOW_BYTES.min(span.len - at);
        if len == 0 {
            break;
        }
        let window = &mut buf[..len as usize];
        file.read_exact_at(window, span.offset + at)?;
        if at == 0 {
            // The kernel reads ahead by what it is asked for.
            expect_reads(file, span.end()..span.end() + GROUP_BYTES);
        }
        let blocks = window.chunks(SUM_BLOCK_BYTES as usize);
        if !blocks.map(sum).eq(sums.chunks(SUM_BYTES)) {
            return Ok((at, at + len));
        }
        at += len;
    }
    Ok((at, at))
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

#[cfg(test)]
mod tests {
    use super::*;
    use farwrite_fs::{Stat, read_meta_with};
    use std::collections::BTreeMap;
    use std::convert::Infallible;

    type Sums = BTreeMap<u64, Vec<u8>>;

    /// What a comparison told: the runs of data with their bytes, and the groups whose checksums are others now.
    #[derive(Debug, Default, PartialEq)]
    struct Told {
        data: Vec<(u64, Vec<u8>)>,
        holes: Vec<Extent>,
        sums: BTreeMap<u64, Option<Vec<u8>>>,
        read: u64,
    }

    /// Bytes of which no two blocks are alike.
    fn varied(len: u64) -> Vec<u8> {
        (0..(len / 4) as u32)
            .flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes())
            .collect()
    }

    /// With helpers and without.
    fn compare(file: &File, base: Option<&NodeRow>, sums: &Sums) -> Told {
        let told = compared(file, base, sums, false);
        assert!(told == compared(file, base, sums, true));
        told
    }

    fn compared(file: &File, base: Option<&NodeRow>, sums: &Sums, helped: bool) -> Told {
        let mut told = Told::default();
        let comparison = Comparison {
            file,
            size: file.metadata().expect("stat").len(),
            base,
            extents: None,
            groups: sums.keys().copied().collect(),
            helped,
        };
        let read = comparison.run::<Infallible>(&mut |g| Ok(sums.get(&g).cloned()), &mut |v| {
            match v {
                Variant::Data(at, run) => told.data.push((at, run.as_slice().to_vec())),
                Variant::Hole(x) => told.holes.push(x),
                Variant::Sums(group, new) => drop(told.sums.insert(group, new)),
            }
            Ok(())
        });
        told.read = read.expect("compares");
        told
    }

    /// The file as it was sent, and the checksums of that.
    fn sent(file: &File) -> (NodeRow, Sums) {
        let stat = Stat::of(file).expect("stat");
        let row = NodeRow {
            meta: read_meta_with(&stat, Vec::new(), Vec::new()),
            origin: stat.origin(0),
            flags: NodeFlags::SUMS,
            sum: [0; SUM_BYTES],
        };
        let sums = compare(file, None, &Sums::new()).sums.into_iter();
        (row, sums.map(|(g, s)| (g, s.expect("data"))).collect())
    }

    #[test]
    fn what_differs_is_told_wherever_it_is_and_everything_is_read_once() {
        let bytes = varied(2 * GROUP_BYTES + 5 * SUM_BLOCK_BYTES + 100);
        let len = bytes.len() as u64;
        let edges = [
            WINDOW_BYTES,
            2 * WINDOW_BYTES,
            GROUP_BYTES,
            2 * GROUP_BYTES,
            len,
        ];
        let mut places: Vec<Vec<u64>> = vec![vec![], vec![0], vec![0, len - 1]];
        places.extend(edges.iter().map(|e| vec![e - 1]));
        places.extend(edges[..4].iter().map(|e| vec![*e]));
        // In two windows of one group, and in blocks beside each other over an edge.
        places.push(vec![5, 3 * WINDOW_BYTES + SUM_BLOCK_BYTES]);
        places.push(vec![
            WINDOW_BYTES - 1,
            WINDOW_BYTES,
            GROUP_BYTES - 1,
            GROUP_BYTES,
        ]);
        for at in places {
            let file = tempfile::tempfile().expect("made");
            file.write_all_at(&bytes, 0).expect("written");
            let (row, sums) = sent(&file);
            for &p in &at {
                file.write_all_at(&[!bytes[p as usize]], p)
                    .expect("written");
            }
            let told = compare(&file, Some(&row), &sums);
            assert_eq!(told.read, len, "changed at {at:?}");
            let mut now = bytes.clone();
            for (offset, data) in &told.data {
                now[*offset as usize..][..data.len()].copy_from_slice(data);
            }
            let mut file_now = vec![0; bytes.len()];
            file.read_exact_at(&mut file_now, 0).expect("read");
            assert!(
                now == file_now,
                "changed at {at:?}: what was told makes another file"
            );
            let blocks: BTreeSet<u64> = at.iter().map(|p| p / SUM_BLOCK_BYTES).collect();
            let of = |b: &u64| SUM_BLOCK_BYTES.min(len - b * SUM_BLOCK_BYTES);
            let expected: u64 = blocks.iter().map(of).sum();
            let sent_bytes: usize = told.data.iter().map(|(_, d)| d.len()).sum();
            assert_eq!(sent_bytes as u64, expected, "changed at {at:?}");
            let mut known = sums.clone();
            known.extend(told.sums.into_iter().map(|(g, s)| (g, s.expect("data"))));
            assert_eq!(known, sent(&file).1, "changed at {at:?}: the checksums");
        }
    }

    #[test]
    fn many_groups_are_told_in_order_whoever_looked_at_them() {
        let groups = 2 * GROUPS_AHEAD as u64 + 4;
        let bytes = varied(groups * GROUP_BYTES + 3 * SUM_BLOCK_BYTES);
        let at = |group: u64, block: u64| group * GROUP_BYTES + block * SUM_BLOCK_BYTES;
        let every: Vec<u64> = (0..=groups).map(|g| at(g, g % 3)).collect();
        let some = vec![at(2, 9), at(3, 0), at(11, 255), at(groups, 2)];
        for places in [vec![], vec![at(groups - 1, 255)], some, every] {
            let file = tempfile::tempfile().expect("made");
            file.write_all_at(&bytes, 0).expect("written");
            let (row, sums) = sent(&file);
            for &p in &places {
                file.write_all_at(&[!bytes[p as usize]], p)
                    .expect("written");
            }
            let told = compare(&file, Some(&row), &sums);
            assert_eq!(told.read, bytes.len() as u64);
            let offsets: Vec<u64> = told.data.iter().map(|(offset, _)| *offset).collect();
            assert_eq!(offsets, places);
            let right = |(offset, data): &(u64, Vec<u8>)| {
                let mut was = bytes[*offset as usize..][..data.len()].to_vec();
                was[0] = !was[0];
                was == *data
            };
            assert!(told.data.iter().all(right));
            let changed: Vec<u64> = places.iter().map(|p| p / GROUP_BYTES).collect();
            assert!(told.sums.keys().eq(&changed));
        }
    }

    #[test]
    fn a_file_that_has_grown_or_was_cut_is_told_right() {
        let bytes = varied(2 * GROUP_BYTES + WINDOW_BYTES);
        let sizes = [
            SMALL_BYTES + 1,
            WINDOW_BYTES - 1,
            WINDOW_BYTES,
            WINDOW_BYTES + 1,
            WINDOW_BYTES + SUM_BLOCK_BYTES,
            GROUP_BYTES,
            GROUP_BYTES + 1,
            GROUP_BYTES + WINDOW_BYTES,
            2 * GROUP_BYTES + WINDOW_BYTES,
        ];
        for (was, is) in sizes
            .iter()
            .flat_map(|a| sizes.iter().map(move |b| (*a, *b)))
        {
            let file = tempfile::tempfile().expect("made");
            file.write_all_at(&bytes[..was as usize], 0)
                .expect("written");
            let (row, sums) = sent(&file);
            file.set_len(is).expect("cut");
            file.write_all_at(&bytes[..is as usize], 0)
                .expect("written");
            let told = compare(&file, Some(&row), &sums);
            assert_eq!(told.read, is, "from {was} to {is}");
            let mut now = bytes[..was.min(is) as usize].to_vec();
            now.resize(is as usize, 0xa5);
            for (offset, data) in &told.data {
                now[*offset as usize..][..data.len()].copy_from_slice(data);
            }
            assert!(now == bytes[..is as usize], "from {was} to {is}");
            let told_bytes: u64 = told.data.iter().map(|(_, d)| d.len() as u64).sum();
            let grown = is.saturating_sub(was);
            // A block that was cut is another one.
            let cut = is.min(was) % SUM_BLOCK_BYTES;
            assert!(
                told_bytes <= grown + cut,
                "from {was} to {is}: {told_bytes} bytes"
            );
            let mut known = sums;
            for (group, new) in told.sums {
                match new {
                    Some(new) => drop(known.insert(group, new)),
                    None => drop(known.remove(&group)),
                }
            }
            assert_eq!(known, sent(&file).1, "from {was} to {is}: the checksums");
        }
    }

    #[test]
    fn holes_are_holes_whatever_was_read_before_them() {
        // Blocks of the filesystem, half of ours; behind a group that is all data, and before data.
        let bytes = varied(2 * GROUP_BYTES);
        let holes = [
            Extent::new(GROUP_BYTES, 4096),
            Extent::new(GROUP_BYTES + 5 * SUM_BLOCK_BYTES + 4096, 4096),
            Extent::new(2 * GROUP_BYTES - 4096, 4096),
        ];
        let file = tempfile::tempfile().expect("made");
        file.write_all_at(&bytes, 0).expect("written");
        let (row, sums) = sent(&file);
        for h in holes {
            farwrite_fs::punch_hole(&file, h.offset, h.len).expect("punched");
        }
        let told = compare(&file, Some(&row), &sums);
        let mut now = bytes.clone();
        for (offset, data) in &told.data {
            now[*offset as usize..][..data.len()].copy_from_slice(data);
        }
        for h in &told.holes {
            now[h.offset as usize..h.end() as usize].fill(0);
        }
        let mut file_now = vec![0; bytes.len()];
        file.read_exact_at(&mut file_now, 0).expect("read");
        assert!(now == file_now, "what was told makes another file");
        assert_eq!(told.holes, holes);
        let mut known = sums;
        known.extend(told.sums.into_iter().map(|(g, s)| (g, s.expect("data"))));
        assert_eq!(known, sent(&file).1, "the checksums");
        // Nothing has changed since: nothing is told.
        let (row, sums) = sent(&file);
        let again = compare(&file, Some(&row), &sums);
        assert_eq!((again.data, again.holes, again.sums), Default::default());
    }
}
