//! Writes the log. It must never acknowledge what is not on the disk, never leave a batch that was refused, and
//! never touch a byte before the last durable commit.

use super::recover::{Known, Recovered, recover};
use super::{
    LogError, Place, RESERVE_BYTES, SEGMENT_HEADER_BYTES, SegmentHeader, segment_path, sync_dir,
};
use farwrite_core::op::Chain;
use farwrite_core::record::{Codec, HEADER_BYTES};
use farwrite_core::{BatchSeq, Commit, Op, Record, RecordKind, codec, limits};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A segment that has reached this size is closed at the next batch.
pub const SEGMENT_BYTES: u64 = 256 << 20;
/// Most bytes of decoded operations in one batch, in memory.
pub const BATCH_OPS_BYTES_MAX: u64 = 512 << 20;
/// Bytes gathered before they are written to the file.
const BUFFER_BYTES: usize = 256 << 10;
/// Payloads of this size or more are not gathered, but written from where they are.
const UNCOPIED_BYTES: usize = 64 << 10;
/// Raw payloads of this size or more begin at a multiple of [`ALIGN`] in the file.
const ALIGN_FROM_BYTES: u32 = 64 << 10;
const ALIGN: u64 = farwrite_fs::SHARED_UNIT_BYTES;
/// A reserve is a quarter of what the segment holds, but this much at least. With less than a quarter of that left there is a new one.
const RESERVE_LEAST_BYTES: u64 = 128 << 10;
/// With less free space than this there is no reserve.
const RESERVE_FREE_BYTES: u64 = 256 << 20;

/// The writer of one source's log. There must be only one: the caller holds the source's lock.
pub struct LogWriter {
    dir: PathBuf,
    segment_bytes: u64,
    file: Option<Arc<File>>,
    /// Where the next record goes.
    end: Place,
    buffer: Vec<u8>,
    /// Behind the last whole batch, in the segment of `end`.
    committed: u64,
    last: Option<Commit>,
    durable: BatchSeq,
    /// Behind the last durable batch, in the segment of `end`.
    durable_end: u64,
    /// The file's length, if there are zeros behind the end.
    reserved: u64,
    /// Does the filesystem gain by a reserve?
    in_place: bool,
    open: Option<OpenBatch>,
    /// Has a sync begun, and nobody said how it ended?
    syncing: bool,
    poisoned: Option<String>,
}

/// What [`LogWriter::begin_sync`] has begun to put on the disk: all that was appended until then.
pub struct Syncing {
    file: Arc<File>,
    path: PathBuf,
    commit: Commit,
    end: Place,
}

impl Syncing {
    /// Its last batch.
    pub fn commit(&self) -> &Commit {
        &self.commit
    }

    /// Behind its last batch.
    pub fn end(&self) -> Place {
        self.end
    }

    /// Waits for the disk: for any thread. To be told to [`LogWriter::end_sync`].
    pub fn wait(&self) -> Result<(), LogError> {
        #[cfg(test)]
        if let Some(refused) = slow_disk::wait(&self.path) {
            return Err(LogError::io("fsync", &self.path, refused));
        }
        let done = self.file.sync_data();
        done.map_err(|e| LogError::io("fsync", &self.path, e))
    }
}

/// What is known of the batch being written.
struct OpenBatch {
    seq: BatchSeq,
    chain: Chain,
    ops: u64,
    ops_bytes: u64,
    blocks: Vec<u32>,
    /// Operations that name a block which has not come yet.
    waiting: Vec<(u64, Op)>,
}

impl LogWriter {
    /// Opens the log in `dir` (which must exist), after bringing its end in order (see [`Recovered`]).
    /// `known`: what another projection has seen, so that it was durable once. It is kept even if damaged, and if it is known
    /// where it ends, only what is behind that is read.
    pub fn open(dir: &Path, known: impl Into<Known>) -> Result<(Self, Recovered), LogError> {
        Self::open_sized(dir, known, SEGMENT_BYTES)
    }

    /// As [`LogWriter::open`] with another size of segments.
    pub fn open_sized(
        dir: &Path,
        known: impl Into<Known>,
        segment_bytes: u64,
    ) -> Result<(Self, Recovered), LogError> {
        let recovered = recover(dir, &known.into())?;
        let file = match recovered.end {
            Some(end) => Some(Arc::new(open_segment(dir, end.segment)?)),
            None => None,
        };
        let end = recovered.end.unwrap_or(Place {
            segment: 0,
            offset: 0,
        });
        let writer = LogWriter {
            dir: dir.to_owned(),
            segment_bytes,
            file,
            end,
            buffer: Vec::new(),
            committed: end.offset,
            durable: recovered.last.as_ref().map_or(BatchSeq(0), |c| c.seq),
            durable_end: end.offset,
            reserved: 0,
            in_place: File::open(dir).is_ok_and(farwrite_fs::overwrites_in_place),
            last: recovered.last.clone(),
            open: None,
            syncing: false,
            poisoned: None,
        };
        Ok((writer, recovered))
    }

    /// The last whole batch, durable or not.
    pub fn last_commit(&self) -> Option<&Commit> {
        self.last.as_ref()
    }

    /// Behind the last whole batch: a reader may go up to here once it is written out.
    pub fn committed_end(&self) -> Place {
        Place {
            segment: self.end.segment,
            offset: self.committed,
        }
    }

    /// Is the next batch the first of a new segment? Then [`LogWriter::append`] waits for the disk.
    pub fn ends_segment(&self) -> bool {
        self.open.is_none() && self.end.offset >= self.segment_bytes
    }

    /// The seq of the batch that is open, if one is.
    pub fn open_batch(&self) -> Option<BatchSeq> {
        self.open.as_ref().map(|b| b.seq)
    }

    /// Appends a `Block`, `Ops` or `Commit` record. On an error that is not I/O the whole open batch is rolled
    /// back; on an I/O error the writer is closed for good.
    pub fn append(&mut self, record: &Record) -> Result<Place, LogError> {
        if let Some(why) = &self.poisoned {
            return Err(LogError::Poisoned(why.clone()));
        }
        let done = self.check_and_write(record);
        match &done {
            Err(e) if e.is_io() => self.poisoned = Some(e.to_string()),
            Err(_) => self.abort_batch()?,
            Ok(_) => {}
        }
        done
    }

    fn check_and_write(&mut self, record: &Record) -> Result<Place, LogError> {
        let header = &record.header;
        if !matches!(
            header.kind,
            RecordKind::Block | RecordKind::Ops | RecordKind::Commit
        ) {
            return Err(LogError::Kind(header.kind));
        }
        let last = self.last.as_ref();
        let expected = match &self.open {
            Some(b) => b.seq,
            None => last.map_or(BatchSeq(1), |c| c.seq.next()),
        };
        if header.seq != expected {
            return Err(LogError::Sequence {
                expected,
                got: header.seq,
            });
        }
        if self.open.is_none() {
            self.begin_batch(expected)?;
        }
        let batch = self.open.as_mut().expect("begun above");
        let commit = match header.kind {
            RecordKind::Commit => Some(batch.check_commit(record, self.last.as_ref())?),
            RecordKind::Ops => batch.add_ops(record).map(|()| None)?,
            _ => batch.add_block(record).map(|()| None)?,
        };
        let place = self.write(record)?;
        if let Some(commit) = commit {
            self.last = Some(commit);
            self.committed = self.end.offset;
            self.open = None;
        }
        Ok(place)
    }

    fn begin_batch(&mut self, seq: BatchSeq) -> Result<(), LogError> {
        if self.file.is_none() || self.ends_segment() {
            self.roll(seq)?;
        }
        self.open = Some(OpenBatch {
            seq,
            chain: Chain::new(&self.previous_chain()),
            ops: 0,
            ops_bytes: 0,
            blocks: Vec::new(),
            waiting: Vec::new(),
        });
        Ok(())
    }

    fn previous_chain(&self) -> [u8; 32] {
        self.last.as_ref().map_or([0; 32], |c| c.chain)
    }

    /// Closes the segment and starts the next one: old bytes, new header and its name are durable when it returns.
    fn roll(&mut self, first_seq: BatchSeq) -> Result<(), LogError> {
        if self.syncing {
            let early = std::io::Error::other("its last bytes are still on their way to the disk");
            let path = segment_path(&self.dir, self.end.segment);
            return Err(LogError::io("end", &path, early));
        }
        if self.file.is_some() {
            // A full segment has none left: it ends with the segment.
            self.reserved = 0;
            if let Err(e) = self.flush_and_sync() {
                self.drop_what_is_not_durable();
                return Err(e);
            }
        }
        let segment = self.end.segment + 1;
        let path = segment_path(&self.dir, segment);
        let fail = |e| LogError::io("create", &path, e);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(fail)?;
        let header = SegmentHeader {
            segment,
            first_seq,
            chain: self.previous_chain(),
        };
        file.write_all_at(&header.encode(), 0).map_err(fail)?;
        file.sync_data().map_err(fail)?;
        sync_dir(&self.dir)?;
        self.file = Some(Arc::new(file));
        self.end = Place {
            segment,
            offset: SEGMENT_HEADER_BYTES,
        };
        self.committed = SEGMENT_HEADER_BYTES;
        self.durable_end = SEGMENT_HEADER_BYTES;
        Ok(())
    }

    fn write(&mut self, record: &Record) -> Result<Place, LogError> {
        let h = &record.header;
        let large = h.codec == Codec::Raw && h.stored >= ALIGN_FROM_BYTES;
        if h.kind == RecordKind::Block
            && large
            && let Some(pad) = pad_to_align(self.end.offset, h.seq)
        {
            pad.write_to(&mut self.buffer);
            self.end.offset += pad.header.total_bytes();
        }
        let place = self.end;
        if record.payload.len() >= UNCOPIED_BYTES {
            self.buffer.extend_from_slice(&h.encode());
            self.end.offset += HEADER_BYTES as u64;
            self.flush_with(&[&record.payload, record.padding()])?;
        } else {
            record.write_to(&mut self.buffer);
            self.end.offset += h.total_bytes();
            if self.buffer.len() >= BUFFER_BYTES {
                self.flush()?;
            }
        }
        Ok(place)
    }

    fn flush(&mut self) -> Result<(), LogError> {
        self.flush_with(&[])
    }

    /// Writes what has been gathered, and behind it what need not be.
    fn flush_with(&mut self, more: &[&[u8]]) -> Result<(), LogError> {
        let at = self.end.offset - self.buffer.len() as u64;
        if let Some(file) = &self.file {
            match more {
                [] => file.write_all_at(&self.buffer, at),
                _ => {
                    let pieces = [&[&self.buffer[..]], more].concat();
                    farwrite_fs::write_pieces_at(file, &pieces, at)
                }
            }
            .map_err(|e| LogError::io("write", &segment_path(&self.dir, self.end.segment), e))?;
        }
        self.end.offset += more.iter().map(|p| p.len() as u64).sum::<u64>();
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER_BYTES);
        Ok(())
    }

    fn flush_and_sync(&mut self) -> Result<(), LogError> {
        self.flush()?;
        if let Some(file) = &self.file {
            file.sync_data().map_err(|e| {
                LogError::io("fsync", &segment_path(&self.dir, self.end.segment), e)
            })?;
        }
        self.durable = self.last.as_ref().map_or(BatchSeq(0), |c| c.seq);
        self.durable_end = self.committed;
        Ok(())
    }

    /// Writes zeros behind the end, if there are few: a batch that goes into them changes neither the file's length nor its blocks,
    /// and fdatasync(2) of it needs no commit of the filesystem's journal. Only if all that was appended is durable. Zeros that cannot
    /// be written are done without; if they cannot be synced the writer is closed for good.
    pub fn reserve(&mut self) -> Result<(), LogError> {
        let end = self.end.offset;
        if let Some(why) = &self.poisoned {
            return Err(LogError::Poisoned(why.clone()));
        }
        let (Some(file), true) = (&self.file, self.in_place) else {
            return Ok(());
        };
        let room = (end / 4)
            .clamp(RESERVE_LEAST_BYTES, RESERVE_BYTES)
            .min(self.segment_bytes.saturating_sub(end));
        let enough = room == 0 || self.reserved >= end + room / 4;
        if enough || self.open.is_some() || self.durable_end != end {
            return Ok(());
        }
        let free = rustix::fs::fstatvfs(file).map_or(0, |s| s.f_bavail * s.f_frsize);
        if free < RESERVE_FREE_BYTES {
            return Ok(());
        }
        let from = self.reserved.max(end);
        let zeros = vec![0; (end + room - from) as usize];
        // Some of them may be there if the rest is refused.
        self.reserved = end + room;
        if let Err(e) = file.write_all_at(&zeros, from) {
            tracing::debug!("no reserve: {e}");
            self.in_place = false;
            return self.drop_reserve();
        }
        file.sync_data().map_err(|e| {
            self.poisoned = Some(e.to_string());
            LogError::io("fsync", &segment_path(&self.dir, self.end.segment), e)
        })
    }

    /// Gives the reserve back: for a writer that is done. Without it the next [`LogWriter::open_sized`] does. An error is final for
    /// this writer.
    pub fn drop_reserve(&mut self) -> Result<(), LogError> {
        if self.reserved > self.end.offset
            && self.poisoned.is_none()
            && let Some(file) = &self.file
            && let Err(e) = file.set_len(self.end.offset - self.buffer.len() as u64)
        {
            self.poisoned = Some(e.to_string());
            let path = segment_path(&self.dir, self.end.segment);
            return Err(LogError::io("truncate", &path, e));
        }
        self.reserved = 0;
        Ok(())
    }

    /// After a sync that failed the system may hold pages for clean that never came to the disk (fsync(2), "EIO"): whoever reads
    /// the log anew would take them for durable. So they go; the source has not been told of them, and sends them again.
    fn drop_what_is_not_durable(&self) {
        if let Some(Err(e)) = self.file.as_ref().map(|f| f.set_len(self.durable_end)) {
            tracing::warn!("what could not be synced stays in the log: {e}");
        }
    }

    /// Hands everything appended so far to the system: a reader may go up to [`LogWriter::committed_end`] then, though it
    /// may not be there any more after a loss of power. An error is final for this writer.
    pub fn write_out(&mut self) -> Result<(), LogError> {
        if let Some(why) = &self.poisoned {
            return Err(LogError::Poisoned(why.clone()));
        }
        let done = self.flush();
        if let Err(e) = &done {
            self.poisoned = Some(e.to_string());
        }
        done
    }

    /// Puts everything appended so far on the disk; returns the last whole batch, durable now (0: none).
    /// An error is final for this writer.
    pub fn sync(&mut self) -> Result<BatchSeq, LogError> {
        if let Some(syncing) = self.begin_sync()? {
            let done = syncing.wait();
            self.end_sync(&syncing, done)?;
        }
        Ok(self.durable)
    }

    /// Hands everything appended so far to the system, to be put on the disk while more is appended ([`Syncing::wait`]); `None` if the
    /// last whole batch is durable. [`LogWriter::end_sync`] has to come before the next sync and before a new segment
    /// ([`LogWriter::ends_segment`]), whatever else fails: an error of the disk is told to one of those who ask (fsync(2)). What is taken
    /// away meanwhile lies behind it. An error is final for this writer.
    pub fn begin_sync(&mut self) -> Result<Option<Syncing>, LogError> {
        self.write_out()?;
        let (Some(file), Some(last)) = (&self.file, &self.last) else {
            return Ok(None);
        };
        let syncing = (self.durable != last.seq).then(|| Syncing {
            file: file.clone(),
            path: segment_path(&self.dir, self.end.segment),
            commit: last.clone(),
            end: self.committed_end(),
        });
        self.syncing = syncing.is_some();
        Ok(syncing)
    }

    /// How [`Syncing::wait`] ended. An error is final for this writer.
    pub fn end_sync(
        &mut self,
        syncing: &Syncing,
        done: Result<(), LogError>,
    ) -> Result<(), LogError> {
        self.syncing = false;
        match done {
            Ok(()) => {
                self.durable = syncing.commit.seq;
                self.durable_end = syncing.end.offset;
                Ok(())
            }
            Err(e) => {
                self.poisoned = Some(e.to_string());
                self.drop_what_is_not_durable();
                Err(e)
            }
        }
    }

    /// Drops the open batch, if any: the next record may begin it again.
    pub fn abort_batch(&mut self) -> Result<(), LogError> {
        if let Some(why) = &self.poisoned {
            return Err(LogError::Poisoned(why.clone()));
        }
        self.open = None;
        let flushed = self.end.offset - self.buffer.len() as u64;
        if self.committed >= flushed {
            self.buffer.truncate((self.committed - flushed) as usize);
        } else {
            self.buffer.clear();
            let path = segment_path(&self.dir, self.end.segment);
            if let Some(Err(e)) = self.file.as_ref().map(|f| f.set_len(self.committed)) {
                self.poisoned = Some(e.to_string());
                return Err(LogError::io("truncate", &path, e));
            }
            self.reserved = 0;
        }
        self.end.offset = self.committed;
        Ok(())
    }
}

impl OpenBatch {
    fn add_block(&mut self, record: &Record) -> Result<(), LogError> {
        let limit = limits::BATCH_BLOCKS_MAX;
        if self.blocks.len() as u64 >= limit {
            return Err(self.too_many("blocks", limit));
        }
        if record.header.raw as usize > limits::BLOCK_RAW_BYTES {
            return Err(self.too_many("bytes in a block", limits::BLOCK_RAW_BYTES as u64));
        }
        self.blocks.push(record.header.raw);
        self.chain.add(&record.header.hash);
        Ok(())
    }

    fn add_ops(&mut self, record: &Record) -> Result<(), LogError> {
        self.ops_bytes += u64::from(record.header.raw);
        if self.ops_bytes > BATCH_OPS_BYTES_MAX {
            return Err(self.too_many("bytes of operations", BATCH_OPS_BYTES_MAX));
        }
        let seq = self.seq;
        let ops = codec::decode_ops(record).map_err(|source| LogError::Record { seq, source })?;
        self.ops_bytes += codec::memory_bytes(&ops);
        if self.ops_bytes > BATCH_OPS_BYTES_MAX {
            return Err(self.too_many("bytes of operations", BATCH_OPS_BYTES_MAX));
        }
        if self.ops + ops.len() as u64 > limits::BATCH_OPS_MAX {
            return Err(self.too_many("operations", limits::BATCH_OPS_MAX));
        }
        for op in ops {
            match &op {
                Op::Write { block, .. } if *block as usize >= self.blocks.len() => {
                    self.waiting.push((self.ops, op));
                }
                _ => self.check_op(self.ops, &op)?,
            }
            self.ops += 1;
        }
        self.chain.add(&record.header.hash);
        Ok(())
    }

    fn check_op(&self, number: u64, op: &Op) -> Result<(), LogError> {
        op.check(&self.blocks).map_err(|source| LogError::Op {
            seq: self.seq,
            op: number,
            source,
        })
    }

    fn check_commit(&self, record: &Record, last: Option<&Commit>) -> Result<Commit, LogError> {
        let seq = self.seq;
        let commit =
            codec::decode_commit(record).map_err(|source| LogError::Record { seq, source })?;
        if commit.seq != seq {
            return Err(LogError::Sequence {
                expected: seq,
                got: commit.seq,
            });
        }
        for (what, said, found) in [
            ("operations", commit.ops, self.ops),
            ("blocks", commit.blocks, self.blocks.len() as u64),
        ] {
            if said != found {
                return Err(LogError::Count {
                    seq,
                    what,
                    said,
                    found,
                });
            }
        }
        for (number, op) in &self.waiting {
            self.check_op(*number, op)?;
        }
        if commit.chain != self.chain.finish() {
            return Err(LogError::Chain { seq });
        }
        let same_epoch = last.filter(|l| l.epoch == commit.epoch);
        if commit.time.nsec >= 1_000_000_000 || same_epoch.is_some_and(|l| commit.time < l.time) {
            return Err(LogError::Time { seq });
        }
        Ok(commit)
    }

    fn too_many(&self, what: &'static str, limit: u64) -> LogError {
        LogError::TooMany {
            seq: self.seq,
            what,
            limit,
        }
    }
}

fn open_segment(dir: &Path, segment: u64) -> Result<File, LogError> {
    let path = segment_path(dir, segment);
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|e| LogError::io("open", &path, e))
}

/// The filler in front of a record at `offset` whose payload is to begin at a multiple of [`ALIGN`].
fn pad_to_align(offset: u64, seq: BatchSeq) -> Option<Record> {
    let head = HEADER_BYTES as u64;
    let mut gap = (offset + head).next_multiple_of(ALIGN) - (offset + head);
    if gap == 0 {
        return None;
    }
    if gap < head {
        gap += ALIGN;
    }
    let zeros = vec![0; (gap - head) as usize];
    let header = farwrite_core::RecordHeader {
        kind: RecordKind::Pad,
        codec: Codec::Raw,
        stored: zeros.len() as u32,
        raw: zeros.len() as u32,
        seq,
        hash: farwrite_core::record::hash16(&zeros),
    };
    Some(Record {
        header,
        payload: zeros.into(),
    })
}

/// A disk that answers when a test wants it to.
#[cfg(test)]
pub(crate) mod slow_disk {
    use crossbeam_channel::Receiver;
    use parking_lot::Mutex;
    use std::io;
    use std::path::{Path, PathBuf};

    /// Whether it refuses.
    type Answers = Receiver<Option<io::Error>>;

    static DISKS: Mutex<Vec<(PathBuf, Answers)>> = Mutex::new(Vec::new());

    /// The disk under this file answers as it is told.
    pub(crate) fn make(file: &Path, answers: Answers) {
        DISKS.lock().push((file.to_owned(), answers));
    }

    pub(super) fn wait(file: &Path) -> Option<io::Error> {
        let disks = DISKS.lock();
        let answers = disks.iter().find(|(at, _)| at == file)?.1.clone();
        drop(disks);
        answers.recv().unwrap()
    }
}
