//! Reads single blocks by their place, with a cache of decoded ones. What is used here is checked against its checksum first;
//! what is only passed on is checked by who uses it.

use super::{LogError, Place, PrunedList, pruned_path, segment_path};
use bytes::Bytes;
use farwrite_core::record::{Codec, HEADER_BYTES};
use farwrite_core::{Record, RecordHeader, RecordKind};
use lru::LruCache;
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Segment files kept open.
const OPEN_SEGMENTS: NonZeroUsize = NonZeroUsize::new(16).expect("not zero");
/// Bytes of decoded blocks kept: small files that came together are in the same block, and are asked for one after another.
const CACHE_BYTES: usize = 8 << 20;

/// Records that follow each other are read together up to this.
const RUN_BYTES: u64 = 8 << 20;
/// A page of the kernel's cache.
const PAGE_BYTES: u64 = 4096;
/// Between two blocks there may be a filler, so that content begins at a page.
const FILLER_BYTES: u64 = 2 * PAGE_BYTES;

/// Reads records out of the segments of one directory.
pub struct SegmentFiles {
    dir: PathBuf,
    open: LruCache<u64, File>,
    run: Option<Run>,
}

/// Records that follow each other.
struct Run {
    first: Place,
    /// Behind the last.
    end: u64,
    /// All of them; nothing if they are to be read one by one.
    bytes: Bytes,
}

impl Run {
    fn contains(&self, place: Place) -> bool {
        place.segment == self.first.segment && (self.first.offset..self.end).contains(&place.offset)
    }

    /// What it has read from a place on.
    fn from(&self, place: Place) -> Option<Bytes> {
        let skip = place.offset.checked_sub(self.first.offset)?;
        let skip = usize::try_from(skip).ok().filter(|s| *s < self.bytes.len());
        skip.filter(|_| self.contains(place))
            .map(|skip| self.bytes.slice(skip..))
    }
}

impl SegmentFiles {
    /// Of the segments in `dir`.
    pub fn new(dir: &Path) -> Self {
        SegmentFiles {
            dir: dir.to_owned(),
            open: LruCache::new(OPEN_SEGMENTS),
            run: None,
        }
    }

    /// These blocks (their places, and the bytes of their records) will be read next, in this order. Those at the front that follow each
    /// other in the log, and are not in the kernel's cache, are read in one go and past it: who restores reads much, and each block
    /// once. Not in the newest segment, where a batch that is being written would have to wait.
    pub fn expect(&mut self, blocks: impl Iterator<Item = (Place, u64)>) {
        let mut blocks = blocks.peekable();
        let known = |run: &Run| blocks.peek().is_some_and(|(place, _)| run.contains(*place));
        if self.run.as_ref().is_some_and(known) {
            return;
        }
        self.run = run_of(blocks).map(|(first, end)| Run {
            first,
            end,
            // Whatever is wrong here shows when the block itself is read.
            bytes: self.read_run(first, end).unwrap_or_else(|e| {
                tracing::debug!("segment {}: {e}", first.segment);
                Bytes::new()
            }),
        });
    }

    fn read_run(&mut self, first: Place, end: u64) -> std::io::Result<Bytes> {
        let path = segment_path(&self.dir, first.segment);
        let file = self.file(first.segment)?;
        let direct = end - first.offset >= farwrite_fs::DIRECT_LEAST_BYTES as u64
            && farwrite_fs::overwrites_in_place(file)
            && segment_path(&self.dir, first.segment + 1).exists()
            && !farwrite_fs::is_cached(self.file(first.segment)?, first.offset);
        match direct {
            true => {
                let file = farwrite_fs::open_direct(&path)?;
                farwrite_fs::read_direct(&file, first.offset..end)
            }
            false => Ok(Bytes::new()),
        }
    }

    fn file(&mut self, segment: u64) -> std::io::Result<&File> {
        if !self.open.contains(&segment) {
            let file = File::open(segment_path(&self.dir, segment))?;
            self.open.put(segment, file);
        }
        Ok(self.open.get(&segment).expect("opened above"))
    }

    /// The block record at a place, checked. Damage is [`LogError::Damaged`], what retention has freed [`LogError::Pruned`].
    pub fn read_block(&mut self, place: Place) -> Result<Record, LogError> {
        let (header, whole) = self.read(place)?;
        self.check(place, header, &whole)
    }

    /// As [`SegmentFiles::read_block`], with header and padding, as it is stored, and with its payload *not* checked: who gets
    /// it has to do that, wherever it goes on its way. What retention has freed is told apart all the same. It is not kept in
    /// the system's cache: who restores reads much, and each block once.
    pub fn read_whole(&mut self, place: Place) -> Result<Bytes, LogError> {
        let (header, whole) = self.read(place)?;
        // The list is there before the first block that it names goes.
        if pruned_path(&self.dir, place.segment).exists() {
            self.check(place, header, &whole)?;
        }
        if let Some(file) = self.open.get(&place.segment) {
            // Whole pages: of half a one nothing is forgotten.
            let end = place.offset + whole.len() as u64;
            let from = place.offset - place.offset % PAGE_BYTES;
            farwrite_fs::forget_cached(file, from, end.next_multiple_of(PAGE_BYTES));
        }
        Ok(whole)
    }

    /// Header and the whole record, of the size that the header says.
    fn read(&mut self, place: Place) -> Result<(RecordHeader, Bytes), LogError> {
        let path = segment_path(&self.dir, place.segment);
        let fail = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                damaged(place, "the record is cut off".into(), None)
            }
            std::io::ErrorKind::NotFound => damaged(place, "the segment is missing".into(), None),
            _ => LogError::io("read", &path, e),
        };
        if let Some(held) = self.run.as_ref().and_then(|run| run.from(place))
            && let Some(head) = held.first_chunk::<HEADER_BYTES>()
        {
            let header = block_header(place, head)?;
            let total = header.total_bytes() as usize;
            if held.len() >= total {
                return Ok((header, held.slice(..total)));
            }
        }
        let file = self.file(place.segment).map_err(fail)?;
        let mut head = [0; HEADER_BYTES];
        file.read_exact_at(&mut head, place.offset).map_err(fail)?;
        let header = block_header(place, &head)?;
        let total = header.total_bytes() as usize;
        let mut whole = Vec::with_capacity(total);
        whole.extend_from_slice(&head);
        while whole.len() < total {
            let at = place.offset + whole.len() as u64;
            match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut whole), at) {
                Ok(0) => return Err(fail(std::io::ErrorKind::UnexpectedEof.into())),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(fail(e.into())),
                Ok(_) => {}
            }
        }
        // There may have been room for more.
        whole.truncate(total);
        Ok((header, Bytes::from(whole)))
    }

    fn check(&self, place: Place, header: RecordHeader, whole: &Bytes) -> Result<Record, LogError> {
        let payload = whole.slice(HEADER_BYTES..HEADER_BYTES + header.stored as usize);
        Record::from_parts(header, payload).map_err(|e| {
            match PrunedList::load(&self.dir, place.segment) {
                Ok(list) if list.contains(place.offset, &header) => {
                    LogError::Pruned { seq: header.seq }
                }
                Ok(_) => damaged(place, e.to_string(), Some(header)),
                Err(list) => list,
            }
        })
    }
}

/// Where the first run of blocks that follow each other begins, and behind what it ends.
fn run_of(mut blocks: impl Iterator<Item = (Place, u64)>) -> Option<(Place, u64)> {
    let (first, bytes) = blocks.next()?;
    let mut end = first.offset.checked_add(bytes)?;
    for (place, bytes) in blocks {
        let filler = place.offset.checked_sub(end);
        let follows = place.segment == first.segment && filler.is_some_and(|n| n <= FILLER_BYTES);
        match place.offset.checked_add(bytes) {
            Some(behind) if follows && behind - first.offset <= RUN_BYTES => end = behind,
            _ => break,
        }
    }
    Some((first, end))
}

fn block_header(place: Place, head: &[u8; HEADER_BYTES]) -> Result<RecordHeader, LogError> {
    let header = RecordHeader::decode(head).map_err(|e| damaged(place, e.to_string(), None))?;
    match header.kind {
        RecordKind::Block => Ok(header),
        _ => Err(damaged(place, "not a content block".into(), Some(header))),
    }
}

fn damaged(place: Place, what: String, header: Option<RecordHeader>) -> LogError {
    LogError::Damaged {
        segment: place.segment,
        offset: place.offset,
        seq: header.map(|h| h.seq),
        what,
    }
}

/// A block's raw bytes.
#[derive(Clone)]
struct Decoded {
    bytes: Bytes,
    /// Do they lie in the log as they are?
    raw: bool,
}

/// [`SegmentFiles`] with a cache of decoded blocks.
pub struct BlockReader {
    files: SegmentFiles,
    cache: LruCache<Place, Decoded>,
    cached_bytes: usize,
}

impl BlockReader {
    /// Of the segments in `dir`.
    pub fn new(dir: &Path) -> Self {
        BlockReader {
            files: SegmentFiles::new(dir),
            cache: LruCache::unbounded(),
            cached_bytes: 0,
        }
    }

    /// Gives the decoded blocks back.
    pub fn forget(&mut self) {
        self.cache.clear();
        self.cached_bytes = 0;
    }

    /// A block's raw bytes.
    pub fn read(&mut self, place: Place) -> Result<Bytes, LogError> {
        self.decoded(place).map(|block| block.bytes)
    }

    /// A block's raw bytes, and where in the log they begin if they lie there as they are (not compressed, say).
    pub fn read_with_place(&mut self, place: Place) -> Result<(Bytes, Option<Place>), LogError> {
        let block = self.decoded(place)?;
        let payload = Place {
            offset: place.offset + HEADER_BYTES as u64,
            ..place
        };
        Ok((block.bytes, block.raw.then_some(payload)))
    }

    /// See [`farwrite_fs::share_range`].
    pub fn share(
        &mut self,
        from: Place,
        (to, offset): (&File, u64),
        len: u64,
    ) -> std::io::Result<u64> {
        let segment = self.files.file(from.segment)?;
        farwrite_fs::share_range((segment, from.offset), (to, offset), len)
    }

    fn decoded(&mut self, place: Place) -> Result<Decoded, LogError> {
        if let Some(block) = self.cache.get(&place) {
            return Ok(block.clone());
        }
        let record = self.files.read_block(place)?;
        let bytes = record
            .decode()
            .map_err(|e| damaged(place, e.to_string(), Some(record.header)))?;
        let raw = record.header.codec == Codec::Raw;
        let block = Decoded { bytes, raw };
        self.cached_bytes += block.bytes.len();
        self.cache.put(place, block.clone());
        while self.cached_bytes > CACHE_BYTES {
            match self.cache.pop_lru() {
                Some((_, b)) => self.cached_bytes -= b.bytes.len(),
                None => break,
            }
        }
        Ok(block)
    }
}
