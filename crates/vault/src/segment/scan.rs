//! Reads a segment record by record and goes on behind damage: at the next 8-byte boundary that holds a valid
//! record header. It never stops at the first bad byte and never allocates more than one record.

use super::{
    LogError, Place, PrunedList, RESERVE_BYTES, SEGMENT_HEADER_BYTES, SegmentHeader, segment_path,
};
use bytes::Bytes;
use farwrite_core::record::{BadRecord, HEADER_BYTES};
use farwrite_core::{BatchSeq, Record, RecordHeader};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes read at once while looking for the next valid header.
const RESYNC_BYTES: usize = 1 << 20;

/// A damaged stretch of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where it begins.
    pub place: Place,
    /// Bytes up to the next valid record or the end of the file.
    pub bytes: u64,
    /// The batch, where it is known.
    pub seq: Option<BatchSeq>,
    /// The damaged record's header, where that much is whole.
    pub header: Option<RecordHeader>,
    /// What is wrong.
    pub what: String,
}

/// What a scan comes upon.
#[derive(Clone, Debug)]
pub enum Found {
    /// A whole record (without payload if the scan was told to skip it).
    Record {
        /// Where its header begins.
        place: Place,
        /// The record.
        record: Record,
    },
    /// A block whose content retention has freed; its header is whole.
    Pruned {
        /// Where its header begins.
        place: Place,
        /// Its header.
        header: RecordHeader,
    },
    /// Damage.
    Damage(Damage),
}

/// A scan over one segment.
pub struct Scan {
    file: File,
    dir: PathBuf,
    path: PathBuf,
    segment: u64,
    pruned: PrunedList,
    header: Result<SegmentHeader, LogError>,
    offset: u64,
    end: u64,
    reserve: u64,
    skip_block_payloads: bool,
}

impl Scan {
    /// Opens a segment. A damaged segment header is kept for [`Scan::header`] and does not stop the scan;
    /// a newer version does.
    pub fn open(dir: &Path, segment: u64) -> Result<Self, LogError> {
        let path = segment_path(dir, segment);
        let fail = |e| LogError::io("open", &path, e);
        let file = File::open(&path).map_err(fail)?;
        let end = file.metadata().map_err(fail)?.len();
        let mut head = [0u8; 64];
        let header = if end < SEGMENT_HEADER_BYTES {
            Err(LogError::Damaged {
                segment,
                offset: 0,
                seq: None,
                what: "segment header cut off".into(),
            })
        } else {
            file.read_exact_at(&mut head, 0).map_err(fail)?;
            SegmentHeader::decode(&head, &path, segment)
        };
        if let Err(e @ LogError::Newer { .. }) = header {
            return Err(e);
        }
        Ok(Scan {
            file,
            dir: dir.to_owned(),
            path,
            segment,
            pruned: PrunedList::default(),
            header,
            offset: SEGMENT_HEADER_BYTES,
            end,
            reserve: 0,
            skip_block_payloads: false,
        })
    }

    /// The segment's header, or what is wrong with it.
    pub fn header(&self) -> Result<&SegmentHeader, &LogError> {
        self.header.as_ref()
    }

    /// Go on at this offset instead of the first record.
    pub fn start_at(mut self, offset: u64) -> Self {
        self.offset = offset.max(SEGMENT_HEADER_BYTES);
        self
    }

    /// Look at nothing at or beyond this offset.
    pub fn stop_at(mut self, offset: u64) -> Self {
        self.end = self.end.min(offset);
        self
    }

    /// Do not read the payloads of block records: their records come with an empty payload, unchecked.
    pub fn skip_block_payloads(mut self) -> Self {
        self.skip_block_payloads = true;
        self
    }

    /// Where the next record begins.
    pub fn place(&self) -> Place {
        Place {
            segment: self.segment,
            offset: self.offset,
        }
    }

    /// Bytes of zeros behind the last record, once the end was reached: a writer's reserve, which only the last segment has.
    pub fn reserve(&self) -> u64 {
        self.reserve
    }

    /// The next record or damaged stretch; `None` at the end.
    pub fn next_found(&mut self) -> Result<Option<Found>, LogError> {
        loop {
            match self.found() {
                Err(LogError::Io { source, .. })
                    if source.kind() == std::io::ErrorKind::UnexpectedEof && self.has_shrunk() => {}
                other => return other,
            }
        }
    }

    /// Its writer gives back a reserve, or what it had of a batch that was not committed.
    fn has_shrunk(&mut self) -> bool {
        let len = self.file.metadata().map_or(self.end, |m| m.len());
        let shrunk = len < self.end;
        self.end = self.end.min(len);
        shrunk
    }

    fn found(&mut self) -> Result<Option<Found>, LogError> {
        if self.offset >= self.end {
            return Ok(None);
        }
        let place = self.place();
        match self.record_at(self.offset)? {
            Ok(record) => {
                self.offset += record.header.total_bytes();
                Ok(Some(Found::Record { place, record }))
            }
            Err((BadRecord::PayloadChecksum, Some(header))) if self.is_pruned(&header)? => {
                self.offset += header.total_bytes();
                Ok(Some(Found::Pruned { place, header }))
            }
            Err((_, None)) if self.only_zeros()? => {
                self.reserve = self.end - self.offset;
                self.end = self.offset;
                Ok(None)
            }
            Err((why, header)) => {
                let next = self.resync(header)?;
                let damage = Damage {
                    place,
                    bytes: next - self.offset,
                    seq: header.map(|h| h.seq),
                    header,
                    what: why.to_string(),
                };
                self.offset = next;
                Ok(Some(Found::Damage(damage)))
            }
        }
    }

    /// Is the record at the present offset in the segment's list? It is read anew for one that is not: it may have grown.
    fn is_pruned(&mut self, header: &RecordHeader) -> Result<bool, LogError> {
        if !self.pruned.contains(self.offset, header) {
            self.pruned = PrunedList::load(&self.dir, self.segment)?;
        }
        Ok(self.pruned.contains(self.offset, header))
    }

    /// Is there nothing but a writer's reserve from here on?
    fn only_zeros(&self) -> Result<bool, LogError> {
        if segment_path(&self.dir, self.segment + 1).exists() {
            // A closed segment has none: these are damage.
            return Ok(false);
        }
        let mut rest = vec![0; (self.end - self.offset).min(RESERVE_BYTES + 1) as usize];
        self.read(&mut rest, self.offset)?;
        Ok(rest.len() as u64 <= RESERVE_BYTES && rest.iter().all(|b| *b == 0))
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> Result<(), LogError> {
        self.file
            .read_exact_at(bytes, offset)
            .map_err(|e| LogError::io("read", &self.path, e))
    }

    fn record_at(
        &self,
        offset: u64,
    ) -> Result<Result<Record, (BadRecord, Option<RecordHeader>)>, LogError> {
        let cut = || BadRecord::Decode("the record is cut off".into());
        if offset + HEADER_BYTES as u64 > self.end {
            return Ok(Err((cut(), None)));
        }
        let mut head = [0u8; HEADER_BYTES];
        self.read(&mut head, offset)?;
        let header = match RecordHeader::decode(&head) {
            Ok(h) => h,
            Err(e) => return Ok(Err((e, None))),
        };
        if offset + header.total_bytes() > self.end {
            return Ok(Err((cut(), Some(header))));
        }
        if self.skip_block_payloads && header.kind == farwrite_core::RecordKind::Block {
            let payload = Bytes::new();
            return Ok(Ok(Record { header, payload }));
        }
        let mut payload = vec![0; header.stored as usize];
        self.read(&mut payload, offset + HEADER_BYTES as u64)?;
        Ok(Record::from_parts(header, payload.into()).map_err(|e| (e, Some(header))))
    }

    /// Offset of the next valid header behind the damaged record at `self.offset`.
    fn resync(&self, damaged: Option<RecordHeader>) -> Result<u64, LogError> {
        if let Some(h) = damaged {
            let behind = self.offset + h.total_bytes();
            if behind == self.end || (behind < self.end && self.is_header(behind)?) {
                return Ok(behind);
            }
        }
        let mut at = self.offset + 8;
        let mut window = vec![0u8; RESYNC_BYTES + HEADER_BYTES];
        while at + (HEADER_BYTES as u64) <= self.end {
            let n = window.len().min((self.end - at) as usize);
            self.read(&mut window[..n], at)?;
            for i in (0..=n - HEADER_BYTES).step_by(8) {
                let head = window[i..i + HEADER_BYTES].try_into().expect("48 bytes");
                if RecordHeader::decode(head).is_ok() {
                    return Ok(at + i as u64);
                }
            }
            at += ((n - HEADER_BYTES) / 8 * 8 + 8) as u64;
        }
        Ok(self.end)
    }

    fn is_header(&self, offset: u64) -> Result<bool, LogError> {
        let mut head = [0u8; HEADER_BYTES];
        if offset + HEADER_BYTES as u64 > self.end {
            return Ok(false);
        }
        self.read(&mut head, offset)?;
        Ok(RecordHeader::decode(&head).is_ok())
    }
}
