//! Sending a regular file: its variant part, staged where it is too large for one batch, then its attributes.

use super::ahead::FileRead;
use super::batch::{Piece, Run};
use super::content::{Comparison, ContentError, SMALL_BYTES, SmallContent, Variant, read_small};
use super::look::Present;
use super::rows::{NodeFlags, NodeRow};
use super::seen::Start;
use super::unit::{BackupUnit, DOUBTS_HELD, FILES_TOLD, SentFile, UnitError, tick_of};
use farwrite_core::meta::Xattr;
use farwrite_core::{BackupCommand, ChangeSeq, Extent, NodeId, Op};
use farwrite_fs::{Stat, list_file_xattrs, read_meta_with};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;

/// Files of this size or more may be compared by several threads.
const HELPED_BYTES: u64 = 32 << 20;
/// Reads of a small file that keeps changing, before it is sent as it is and looked at again.
const SMALL_TRIES: usize = 3;
/// Groups of checksums kept in memory during one file; beyond that they are staged.
const GROUPS_HELD: usize = 1024;
/// Holes kept in memory during one file; beyond that it is staged.
const HOLES_HELD: usize = 20_000;
/// Ranges of a staged node that are copied to the file one by one in its last batch; beyond that the unchanged
/// bytes between two are copied to the staged node first and the two become one.
pub(super) const RANGES_HELD: usize = 50_000;

/// The pending effect of one file's content.
#[derive(Default)]
struct Content {
    ops: Vec<Op>,
    holes: Vec<Op>,
    sums: BTreeMap<u64, Option<Vec<u8>>>,
    sum: [u8; 16],
    staged: Option<Staged>,
    bytes_new: u64,
}

/// A node that takes what is sent before the whole of it is there.
struct Staged {
    node: NodeId,
    ranges: Vec<Extent>,
}

impl Staged {
    /// Adds a range behind the others. Beyond `max` ranges it is joined with the last; returns the gap between them,
    /// which the staged node has to get.
    fn add(&mut self, e: Extent, max: usize) -> Option<Extent> {
        let full = self.ranges.len() >= max;
        match self.ranges.last_mut() {
            Some(last) if last.end() == e.offset => last.len += e.len,
            Some(last) if full => {
                let gap = Extent::new(last.end(), e.offset - last.end());
                last.len = e.end() - last.offset;
                return Some(gap);
            }
            _ => self.ranges.push(e),
        }
        None
    }
}

impl BackupUnit {
    /// Sends what differs of a file; `row` is what was sent before, `None` for a new one.
    pub(super) fn send_file(
        &mut self,
        e: &Present<'_>,
        node: NodeId,
        row: Option<NodeRow>,
        c: &BackupCommand,
        slot: u32,
    ) -> Result<(), UnitError> {
        let mapped = c.what.mapped || row.is_none() && self.seen.is_mapped(e.stat.id);
        if row.is_none()
            && !mapped
            && let Some(read) = self.ahead.file(&e.stat)
        {
            return self.send_read(e, node, read, c, slot);
        }
        let (file, mut stat) = match e.dir.dir.read_file(e.name) {
            Ok(f) => f,
            Err(err) if e.is_replaced(&err, c) => return self.lost_sight(node, c),
            Err(err) => return self.fail(&e.path, &err, c),
        };
        if stat.id != e.stat.id {
            return self.lost_sight(node, c);
        }
        let trusted = self.trusts(row.as_ref(), c);
        let (begun, before) = (self.now.look(), self.stats);
        // A file that is read as a whole may be mapped although this command does not say so.
        if mapped || row.is_some() && !trusted {
            let started = self.start_writeback(&file, c, trusted);
            match started.and_then(|()| Stat::of(&file)) {
                Ok(now) => stat = now,
                Err(err) => return self.fail(&e.path, &err, c),
            }
            // From here on stores are told of anew.
            self.seen.forget_mapped(stat.id);
        }
        let started = Start {
            at: self.clock.now(),
            ..begun
        };
        match self.read_content((&file, stat), e, node, row.as_ref(), c) {
            Ok((stat, settled, content)) => {
                self.solved(&e.path);
                if row.is_some() && !trusted {
                    let read = self.stats.bytes_read - before.bytes_read;
                    let new = self.stats.bytes_new - before.bytes_new;
                    let took = self.clock.now().since(begun.at);
                    self.searched(c, stat.id, took, (read, new));
                }
                self.finish_file(
                    e,
                    node,
                    row,
                    slot,
                    FileState {
                        xattrs: Xattrs::Of(&file),
                        stat,
                        settled,
                        trusted,
                        started,
                        content,
                    },
                    c,
                )
            }
            Err(ContentError::Io(err)) if err.kind() == io::ErrorKind::UnexpectedEof => {
                self.lost_sight(node, c)
            }
            Err(ContentError::Io(err)) => self.fail(&e.path, &err, c),
            Err(ContentError::Index(err)) => Err(err.into()),
            Err(ContentError::Receiver(err)) => Err(err),
        }
    }

    /// Sends a new small file that was read ahead.
    fn send_read(
        &mut self,
        e: &Present<'_>,
        node: NodeId,
        read: FileRead,
        c: &BackupCommand,
        slot: u32,
    ) -> Result<(), UnitError> {
        self.stats.files_read += 1;
        self.stats.bytes_read += read.stat.size;
        self.read_now.insert(node);
        let small = SmallFile::new(read.content);
        let content = self.put_small(small, node, false)?;
        self.solved(&e.path);
        let state = FileState {
            xattrs: Xattrs::Read(read.xattrs),
            stat: read.stat,
            settled: true,
            trusted: false,
            started: read.started,
            content,
        };
        self.finish_file(e, node, None, slot, state, c)
    }

    /// Write-protects the pages that mappings may be changing: whoever stores into them from now on is told of again.
    fn start_writeback(&self, file: &File, c: &BackupCommand, trusted: bool) -> io::Result<()> {
        match &c.extents {
            Some(extents) if trusted => extents.iter().try_for_each(|x| (self.writeback)(file, x)),
            _ => (self.writeback)(file, Extent::to_end(0)),
        }
    }

    /// Are the command's extents all that has changed of what was sent?
    fn trusts(&self, row: Option<&NodeRow>, c: &BackupCommand) -> bool {
        // What failed before waits for its next try with the extents that it had.
        let nothing_left_out = !self.left_out();
        row.is_some_and(|r| {
            !r.flags.has(NodeFlags::SUSPECT)
                && r.meta.size > SMALL_BYTES
                && r.flags.has(NodeFlags::SUMS)
        }) && c.extents.as_ref().is_some_and(|x| !x.is_empty())
            && c.what.data
            && !c.what.doubt
            && !self.catching_up()
            && nothing_left_out
    }

    /// Another file has the name now: the one that was to be read is read wherever it turns up.
    fn lost_sight(&mut self, node: NodeId, c: &BackupCommand) -> Result<(), UnitError> {
        self.suspect(node)?;
        self.look_again(c)
    }

    fn read_content(
        &mut self,
        (file, mut before): (&File, Stat),
        e: &Present<'_>,
        node: NodeId,
        row: Option<&NodeRow>,
        c: &BackupCommand,
    ) -> Result<(Stat, bool, Content), ContentError<UnitError>> {
        self.stats.files_read += 1;
        if !self.trusts(row, c) {
            self.read_now.insert(node);
        }
        let mut tries = 0;
        loop {
            tries += 1;
            let small = before.size <= SMALL_BYTES;
            let read = match small {
                true => self.read_small_file(file, &before, node, row),
                false => self.read_large_file(file, &before, e, node, row, c),
            };
            let after = Stat::of(file)?;
            let settled =
                (after.ctime, after.mtime, after.size) == (before.ctime, before.mtime, before.size);
            match read {
                Err(ContentError::Io(err))
                    if err.kind() == io::ErrorKind::UnexpectedEof && tries < SMALL_TRIES => {}
                Err(err) => return Err(err),
                Ok(content) if settled || !small || tries == SMALL_TRIES => {
                    let content = match content {
                        Pending::Small(s) => self
                            .put_small(s, node, row.is_some())
                            .map_err(ContentError::Receiver)?,
                        Pending::Whole(c) => c,
                    };
                    self.stats.unsettled += u64::from(!settled);
                    // The size that the content goes with is that of before the read.
                    let stat = if settled { after } else { before };
                    return Ok((stat, settled, content));
                }
                Ok(_) => {}
            }
            before = after;
        }
    }

    fn read_small_file(
        &mut self,
        file: &File,
        stat: &Stat,
        node: NodeId,
        row: Option<&NodeRow>,
    ) -> Result<Pending, ContentError<UnitError>> {
        let sparse = stat.blocks * 512 < stat.size;
        let mut small = read_small(file, stat.size, sparse)?;
        self.stats.bytes_read += stat.size;
        if let Some(r) = row.filter(|r| r.flags.has(NodeFlags::SUMS)) {
            small.keep_appended(r.meta.size, &r.sum);
        }
        let mut content = Content {
            sum: small.sum,
            ..Content::default()
        };
        if row.is_some_and(|r| r.meta.size > SMALL_BYTES) {
            for g in self.index.sum_groups(node)? {
                content.sums.insert(g, None);
            }
        }
        let same = row.is_some_and(|r| {
            r.flags.has(NodeFlags::SUMS) && r.meta.size == stat.size && r.sum == small.sum
        });
        if same {
            return Ok(Pending::Whole(content));
        }
        Ok(Pending::Small(SmallFile {
            content,
            ..SmallFile::new(small)
        }))
    }

    /// Puts a small file's bytes into the batch; done once they are known to be settled.
    fn put_small(&mut self, s: SmallFile, node: NodeId, known: bool) -> Result<Content, UnitError> {
        let mut content = s.content;
        for (run, hole) in s.runs {
            if hole {
                if known {
                    content.holes.push(Op::Hole {
                        node,
                        offset: run.offset,
                        len: run.len,
                    });
                }
                continue;
            }
            let bytes = &s.bytes[run.offset as usize..run.end() as usize];
            self.put_run(node, run.offset, bytes.into(), &mut content)?;
        }
        Ok(content)
    }

    fn read_large_file(
        &mut self,
        file: &File,
        stat: &Stat,
        e: &Present<'_>,
        node: NodeId,
        row: Option<&NodeRow>,
        c: &BackupCommand,
    ) -> Result<Pending, ContentError<UnitError>> {
        let trusted = self.trusts(row, c);
        let comparison = Comparison {
            file,
            size: stat.size,
            base: row,
            extents: c.extents.as_ref().filter(|_| trusted),
            groups: if row.is_some() {
                self.index.sum_groups(node)?.into_iter().collect()
            } else {
                Default::default()
            },
            helped: self.helped && stat.size >= HELPED_BYTES,
        };
        let base = row.map_or(0, |r| r.meta.size);
        let mut content = Content::default();
        let cell = std::cell::RefCell::new(self);
        let read = comparison.run(
            &mut |group| cell.borrow().index.sums(node, group),
            &mut |v| {
                cell.borrow_mut()
                    .take_variant(v, (node, base), stat, e, &mut content)
            },
        );
        let unit = cell.into_inner();
        match read {
            Ok(read) => {
                unit.stats.bytes_read += read;
                Ok(Pending::Whole(content))
            }
            Err(err) => {
                if let Some(s) = content.staged {
                    unit.drop_staged(s.node).map_err(ContentError::Receiver)?;
                }
                Err(err)
            }
        }
    }

    /// `base`: size of what was sent of the file before.
    fn take_variant(
        &mut self,
        v: Variant<'_>,
        (node, base): (NodeId, u64),
        stat: &Stat,
        e: &Present<'_>,
        content: &mut Content,
    ) -> Result<(), UnitError> {
        match v {
            Variant::Data(offset, run) => {
                let target = content.staged.as_ref().map_or(node, |s| s.node);
                let extent = Extent::new(offset, run.as_slice().len() as u64);
                self.put_run(target, offset, run, content)?;
                self.add_to_staged(node, base, extent, content);
            }
            // Where nothing is written to the staged node, it has a hole.
            Variant::Hole(x) if content.staged.is_some() => {
                self.add_to_staged(node, base, x, content);
            }
            Variant::Hole(x) => push_hole(&mut content.holes, node, x),
            Variant::Sums(group, sums) => {
                content.sums.insert(group, sums);
                if self.batch.is_full()
                    || content.sums.len() > GROUPS_HELD
                    || content.ops.len() > HOLES_HELD
                    || content.holes.len() > HOLES_HELD
                {
                    self.stage(node, stat, e, content)?;
                }
            }
        }
        Ok(())
    }

    /// Notes that a range of the staged node goes to the file; a gap that this joins is copied from the file as it was.
    fn add_to_staged(&self, node: NodeId, base: u64, e: Extent, content: &mut Content) {
        let Some(s) = &mut content.staged else { return };
        let gap = s.add(e, self.ranges_held);
        if let Some(kept) = gap.and_then(|g| g.intersect(Extent::new(0, base))) {
            content.ops.push(Op::Copy {
                node: s.node,
                offset: kept.offset,
                len: kept.len,
                from: node,
                from_offset: kept.offset,
            });
        }
    }

    /// The batch is full in the middle of a file: what there is of it goes to a staged node, so that neither the
    /// mirror nor a restore ever shows half a file.
    fn stage(
        &mut self,
        node: NodeId,
        stat: &Stat,
        e: &Present<'_>,
        content: &mut Content,
    ) -> Result<(), UnitError> {
        let slot = self.tree.root(e.dir.root).spec.slot;
        if content.staged.is_none() {
            let staged = self.index.new_node();
            let row = NodeRow {
                meta: read_meta_with(stat, Vec::new(), Vec::new()),
                origin: stat.origin(slot),
                flags: NodeFlags::STAGED,
                sum: [0; 16],
            };
            self.send_node(staged, row)?;
            content.staged = Some(Staged {
                node: staged,
                ranges: Vec::new(),
            });
        }
        let s = content.staged.as_mut().expect("just made");
        for op in content.ops.drain(..) {
            match op {
                Op::Write {
                    offset,
                    len,
                    block,
                    block_offset,
                    node: target,
                } => {
                    if target == node {
                        push_range(&mut s.ranges, Extent::new(offset, u64::from(len)));
                    }
                    self.batch.push(Op::Write {
                        node: s.node,
                        offset,
                        len,
                        block,
                        block_offset,
                    });
                }
                other => self.batch.push(other),
            }
        }
        for (group, sums) in std::mem::take(&mut content.sums) {
            match sums {
                Some(sums) => self.index.put_sums(s.node, group, Some(&sums))?,
                // A group that became all holes: kept apart, an empty row means "remove".
                None => self.index.put_sums(s.node, group, Some(&[]))?,
            }
        }
        self.close_as(false)?;
        Ok(self.index.begin()?)
    }

    /// Writes a run of bytes into the batch.
    fn put_run(
        &mut self,
        node: NodeId,
        offset: u64,
        run: Run<'_>,
        content: &mut Content,
    ) -> Result<(), UnitError> {
        let mut at = offset;
        let ops = &mut content.ops;
        let len = run.as_slice().len() as u64;
        self.batch.put_data(run, |p: Piece| {
            ops.push(Op::Write {
                node,
                offset: at,
                len: p.len,
                block: p.block,
                block_offset: p.block_offset,
            });
            at += u64::from(p.len);
        })?;
        content.bytes_new += len;
        self.stats.bytes_new += len;
        Ok(())
    }

    /// All of a file's content is in the batch or staged: send what makes it the file's.
    fn finish_file(
        &mut self,
        e: &Present<'_>,
        node: NodeId,
        row: Option<NodeRow>,
        slot: u32,
        state: FileState<'_>,
        c: &BackupCommand,
    ) -> Result<(), UnitError> {
        let FileState {
            xattrs,
            stat,
            settled,
            trusted,
            started,
            content,
        } = state;
        let attrs_same = row
            .as_ref()
            .filter(|r| r.origin.ctime == stat.ctime && !c.what.attr);
        let (mut attrs_read, mut attrs_failed) = (false, false);
        let xattrs = match attrs_same {
            Some(r) => r.meta.xattrs.clone(),
            None => match xattrs.read() {
                Ok(x) => {
                    attrs_read = true;
                    x
                }
                Err(err) => {
                    attrs_failed = true;
                    self.problem(&e.path, &err, Some(c));
                    row.as_ref()
                        .map(|r| r.meta.xattrs.clone())
                        .unwrap_or_default()
                }
            },
        };
        let racy = stat.ctime.max(stat.mtime).after(tick_of(&stat)) >= started.at;
        let partial = trusted && stat.size > SMALL_BYTES;
        let flags = NodeFlags::SUMS
            .with(NodeFlags::RACY, racy)
            .with(NodeFlags::PARTIAL, partial)
            .with(NodeFlags::SUSPECT, !settled)
            .with(NodeFlags::UNSETTLED, !settled);
        let new = NodeRow {
            meta: read_meta_with(&stat, Vec::new(), xattrs),
            origin: stat.origin(slot),
            flags,
            sum: content.sum,
        };
        if !settled || attrs_failed {
            self.seen.forget(stat.id);
        } else if attrs_read && !partial {
            self.seen.note(stat.id, started.told);
        }
        let is_new = row.is_none();
        let writes =
            !(content.ops.is_empty() && content.holes.is_empty() && content.staged.is_none());
        if writes && row.as_ref().is_some_and(|r| r.meta == new.meta) {
            // Content alone changed: the catalog still needs to know when.
            self.batch.push(Op::Node {
                node,
                meta: new.meta.clone(),
                origin: new.origin,
                unsettled: !settled,
            });
        }
        match is_new {
            true => {
                self.send_new_node(node, &new)?;
                self.send_name_at(e, node)?;
            }
            false => self.send_node(node, new)?,
        }
        if let Some(files) = &mut self.files
            && files.len() < FILES_TOLD
        {
            files.push(SentFile {
                path: e.path.clone(),
                bytes_new: content.bytes_new,
            });
        }
        self.send_content(node, content)?;
        if racy && !self.blind.load(Ordering::Acquire) && self.racy.len() < DOUBTS_HELD {
            self.racy.insert(node, started.at.after(tick_of(&stat) * 2));
        } else {
            self.racy.remove(&node);
        }
        if partial && self.partial.len() < DOUBTS_HELD {
            self.partial.insert(node, started.at);
        } else {
            self.partial.remove(&node);
        }
        if !settled {
            self.look_again_at_file(c, e);
        }
        Ok(())
    }

    fn send_content(&mut self, node: NodeId, content: Content) -> Result<(), UnitError> {
        // What came after the last staging was written to the staged node too and is in its ranges: hence before
        // the copies.
        for op in content.ops {
            self.batch.push(op);
        }
        if let Some(s) = &content.staged {
            for r in &s.ranges {
                self.batch.push(Op::Copy {
                    node,
                    offset: r.offset,
                    len: r.len,
                    from: s.node,
                    from_offset: r.offset,
                });
            }
        }
        for op in content.holes {
            self.batch.push(op);
        }
        if let Some(s) = content.staged {
            for group in self.index.sum_groups(s.node)? {
                let sums = self.index.sums(s.node, group)?.filter(|b| !b.is_empty());
                self.index.put_sums(node, group, sums.as_deref())?;
            }
            for (group, sums) in content.sums {
                self.index.put_sums(node, group, sums.as_deref())?;
            }
            return self.drop_staged(s.node);
        }
        for (group, sums) in content.sums {
            self.index.put_sums(node, group, sums.as_deref())?;
        }
        Ok(())
    }

    /// The file changed while it was read: the next look reads it again.
    fn look_again_at_file(&mut self, c: &BackupCommand, e: &Present<'_>) {
        let mut again = c.clone();
        again.target = farwrite_core::Target::File(e.stat.id);
        again.what = farwrite_core::What {
            data: true,
            attr: true,
            ..Default::default()
        };
        again.extents = None;
        again.path = e.path.clone();
        again.attempts += 1;
        // The read began after the message: only what came since is owed.
        again.first = ChangeSeq::UNKNOWN;
        self.put_back.push((again, true));
    }
}

/// A file as it was read.
struct FileState<'a> {
    xattrs: Xattrs<'a>,
    stat: Stat,
    settled: bool,
    /// Only what was told of was read.
    trusted: bool,
    started: Start,
    content: Content,
}

/// Extended attributes, read or to be read.
enum Xattrs<'a> {
    Of(&'a File),
    Read(Vec<Xattr>),
}

impl Xattrs<'_> {
    fn read(self) -> io::Result<Vec<Xattr>> {
        match self {
            Xattrs::Of(file) => list_file_xattrs(file),
            Xattrs::Read(xattrs) => Ok(xattrs),
        }
    }
}

/// A small file read but not yet in the batch.
struct SmallFile {
    content: Content,
    bytes: Vec<u8>,
    runs: Vec<(Extent, bool)>,
}

impl SmallFile {
    fn new(read: SmallContent) -> Self {
        SmallFile {
            content: Content {
                sum: read.sum,
                ..Content::default()
            },
            bytes: read.bytes,
            runs: read.runs,
        }
    }
}

enum Pending {
    Small(SmallFile),
    Whole(Content),
}

/// Adds a range behind the last one, joined with it where they touch.
fn push_range(ranges: &mut Vec<Extent>, e: Extent) {
    match ranges.last_mut() {
        Some(last) if last.end() == e.offset => last.len += e.len,
        _ => ranges.push(e),
    }
}

/// Adds a hole behind the last one, joined with it where they touch.
fn push_hole(holes: &mut Vec<Op>, node: NodeId, x: Extent) {
    match holes.last_mut() {
        Some(Op::Hole { offset, len, .. }) if *offset + *len == x.offset => *len += x.len,
        _ => holes.push(Op::Hole {
            node,
            offset: x.offset,
            len: x.len,
        }),
    }
}
