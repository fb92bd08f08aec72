//! Reads single blocks by their place, with a cache of decoded ones. What is used here is checked against its checksum first;
//! what is only passed on is checked by who uses it.

use super::{LogError, Place, PrunedList, pruned_path, segment_path};
use bytes::Bytes;
use farwrite_core::record::HEADER_BYTES;
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

/// Reads records out of the segments of one directory.
pub struct SegmentFiles {
    dir: PathBuf,
    open: LruCache<u64, File>,
}

impl SegmentFiles {
    /// Of the segments in `dir`.
    pub fn new(dir: &Path) -> Self {
        SegmentFiles {
            dir: dir.to_owned(),
            open: LruCache::new(OPEN_SEGMENTS),
        }
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
            farwrite_fs::forget_cached(file, place.offset, place.offset + whole.len() as u64);
        }
        Ok(whole)
    }

    /// Header and the whole record, of the size that the header says.
    fn read(&mut self, place: Place) -> Result<(RecordHeader, Bytes), LogError> {
        let path = segment_path(&self.dir, place.segment);
        let damaged = |what, header| damaged(place, what, header);
        let fail = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => damaged("the record is cut off".into(), None),
            std::io::ErrorKind::NotFound => damaged("the segment is missing".into(), None),
            _ => LogError::io("read", &path, e),
        };
        if !self.open.contains(&place.segment) {
            self.open
                .put(place.segment, File::open(&path).map_err(fail)?);
        }
        let file = self.open.get(&place.segment).expect("opened above");
        let mut head = [0; HEADER_BYTES];
        file.read_exact_at(&mut head, place.offset).map_err(fail)?;
        let header = RecordHeader::decode(&head).map_err(|e| damaged(e.to_string(), None))?;
        if header.kind != RecordKind::Block {
            return Err(damaged("not a content block".into(), Some(header)));
        }
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

fn damaged(place: Place, what: String, header: Option<RecordHeader>) -> LogError {
    LogError::Damaged {
        segment: place.segment,
        offset: place.offset,
        seq: header.map(|h| h.seq),
        what,
    }
}

/// [`SegmentFiles`] with a cache of decoded blocks.
pub struct BlockReader {
    files: SegmentFiles,
    cache: LruCache<Place, Bytes>,
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
        if let Some(bytes) = self.cache.get(&place) {
            return Ok(bytes.clone());
        }
        let record = self.files.read_block(place)?;
        let bytes = record
            .decode()
            .map_err(|e| damaged(place, e.to_string(), Some(record.header)))?;
        self.cached_bytes += bytes.len();
        self.cache.put(place, bytes.clone());
        while self.cached_bytes > CACHE_BYTES {
            match self.cache.pop_lru() {
                Some((_, b)) => self.cached_bytes -= b.len(),
                None => break,
            }
        }
        Ok(bytes)
    }
}
