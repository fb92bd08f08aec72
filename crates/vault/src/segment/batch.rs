//! Reads whole batches back, for the projections. It never reads the content blocks (whoever needs one reads and
//! checks it by its place), and goes on behind damage with what is left, saying what is missing.

use super::scan::{Found, Scan};
use super::{LogError, Place, SEGMENT_HEADER_BYTES, list_segments};
use farwrite_core::{BatchSeq, Commit, Op, Record, RecordHeader, RecordKind, codec};
use std::path::{Path, PathBuf};

/// Bytes of operations in memory after which a step has enough.
const STEP_OPS_BYTES: u64 = 64 << 20;

/// Where a content block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockPlace {
    /// Where its header begins; segment 0, which never exists, if it is lost.
    pub place: Place,
    /// Its header; `None` if it is damaged beyond recognition.
    pub header: Option<RecordHeader>,
}

/// A batch as it is in the log.
#[derive(Clone, Debug)]
pub struct LoggedBatch {
    /// Its commit; made up if that record is damaged.
    pub commit: Commit,
    /// Its operations, in order.
    pub ops: Vec<Op>,
    /// Its blocks, in order.
    pub blocks: Vec<BlockPlace>,
    /// Behind its last record.
    pub end: Place,
    /// Bytes that it takes in the log.
    pub bytes: u64,
    /// Bytes that its operations take in memory.
    pub ops_bytes: u64,
    /// What is wrong with it; if not empty, operations may be missing.
    pub damage: Vec<String>,
}

/// Reads batches in order from any place.
pub struct BatchReader {
    dir: PathBuf,
    next: Place,
    /// Opened for this limit: a scan ends where the limit then was.
    limit: Option<Place>,
    scan: Option<Scan>,
    held: Option<(Place, Record)>,
    last: Option<Commit>,
}

/// The records of the batch being read.
#[derive(Default)]
struct Parts {
    seq: Option<BatchSeq>,
    ops: Vec<Op>,
    blocks: Vec<BlockPlace>,
    bytes: u64,
    ops_bytes: u64,
    damage: Vec<String>,
    /// Block count in front of the first damage.
    damaged_at: Option<usize>,
}

impl BatchReader {
    /// Starts behind `last`, which ended at `from`; with `None` at the first segment that exists.
    pub fn open(dir: &Path, from: Option<(Place, Commit)>) -> Result<Self, LogError> {
        let next = match &from {
            Some((place, _)) => *place,
            None => Place {
                segment: list_segments(dir)?.first().copied().unwrap_or(1),
                offset: SEGMENT_HEADER_BYTES,
            },
        };
        Ok(BatchReader {
            dir: dir.to_owned(),
            next,
            limit: None,
            scan: None,
            held: None,
            last: from.map(|(_, c)| c),
        })
    }

    /// The next batch that ends at or before `limit`; `None` if there is none yet.
    pub fn next_batch(&mut self, limit: Place) -> Result<Option<LoggedBatch>, LogError> {
        if self.limit != Some(limit) {
            // `next` is where a held record begins: it is read again.
            (self.limit, self.scan, self.held) = (Some(limit), None, None);
        }
        let mut parts = Parts::default();
        while let Some((place, found)) = self.next_found(limit)? {
            let record = match found {
                Found::Damage(d) => {
                    parts.damage(&d);
                    continue;
                }
                Found::Record { record, .. } => record,
                // Not seen by a scan that leaves block payloads out; the same as a block.
                Found::Pruned { header, .. } => Record {
                    header,
                    payload: bytes::Bytes::new(),
                },
            };
            if record.header.kind == RecordKind::Pad {
                parts.bytes += record.header.total_bytes();
                continue;
            }
            if parts.seq.is_some_and(|s| s != record.header.seq) {
                // The commit between the two is lost.
                self.held = Some((place, record));
                return Ok(Some(self.finish(parts, None, place)));
            }
            parts.seq = Some(record.header.seq);
            parts.bytes += record.header.total_bytes();
            match record.header.kind {
                RecordKind::Block => parts.blocks.push(BlockPlace {
                    place,
                    header: Some(record.header),
                }),
                RecordKind::Commit => {
                    let commit = codec::decode_commit(&record).ok();
                    let end = Place {
                        offset: place.offset + record.header.total_bytes(),
                        ..place
                    };
                    return Ok(Some(self.finish(parts, commit, end)));
                }
                _ => match codec::decode_ops(&record) {
                    Ok(ops) => {
                        parts.ops_bytes += u64::from(record.header.raw) + codec::memory_bytes(&ops);
                        parts.ops.extend(ops);
                    }
                    Err(e) => parts.damage.push(e.to_string()),
                },
            }
        }
        if parts.seq.is_some() || !parts.damage.is_empty() {
            // Damaged up to the end: nothing follows that could tell more.
            return Ok(Some(self.finish(parts, None, limit)));
        }
        Ok(None)
    }

    /// The next batches that end at or before `limit`, for one step of whoever applies them: so many, with so many operations, and
    /// with so much in memory, at most; but one, if there is one.
    pub fn next_batches(
        &mut self,
        limit: Place,
        most: usize,
        most_ops: usize,
    ) -> Result<Vec<LoggedBatch>, LogError> {
        let (mut batches, mut ops, mut bytes) = (Vec::new(), 0, 0);
        while batches.len() < most && ops < most_ops && bytes < STEP_OPS_BYTES {
            match self.next_batch(limit)? {
                Some(b) => {
                    ops += b.ops.len();
                    bytes += b.ops_bytes;
                    batches.push(b);
                }
                None => break,
            }
        }
        Ok(batches)
    }

    fn finish(&mut self, mut parts: Parts, commit: Option<Commit>, end: Place) -> LoggedBatch {
        let commit = commit.unwrap_or_else(|| {
            parts.damage.push("its commit is missing".into());
            let last = self.last.as_ref();
            let seq = parts.seq.or_else(|| last.map(|c| c.seq.next()));
            Commit {
                seq: seq.unwrap_or(BatchSeq(1)),
                epoch: last.map(|c| c.epoch).unwrap_or_default(),
                time: last.map(|c| c.time).unwrap_or_default(),
                clean: false,
                ops: parts.ops.len() as u64,
                blocks: parts.blocks.len() as u64,
                next_node: last.map_or(farwrite_core::NodeId(2), |c| c.next_node),
                chain: [0; 32],
            }
        });
        let expected = self.last.as_ref().map_or(BatchSeq(1), |c| c.seq.next());
        if commit.seq != expected {
            let lost = format!(
                "batch {expected} was expected, batch {} came: batches are missing",
                commit.seq
            );
            parts.damage.push(lost);
        }
        if let Some(at) = parts.damaged_at {
            // Blocks lost in the damage keep their numbers, so that those behind it are still found.
            let found = parts.blocks.len();
            let lost = (commit.blocks as usize).saturating_sub(found);
            if lost <= farwrite_core::limits::BATCH_BLOCKS_MAX as usize {
                let nowhere = BlockPlace {
                    place: Place {
                        segment: 0,
                        offset: 0,
                    },
                    header: None,
                };
                parts.blocks.splice(at..at, vec![nowhere; lost]);
            }
        }
        self.next = end;
        self.last = Some(commit.clone());
        LoggedBatch {
            commit,
            ops: parts.ops,
            blocks: parts.blocks,
            end,
            bytes: parts.bytes,
            ops_bytes: parts.ops_bytes,
            damage: parts.damage,
        }
    }

    fn next_found(&mut self, limit: Place) -> Result<Option<(Place, Found)>, LogError> {
        if let Some((place, record)) = self.held.take() {
            return Ok(Some((place, Found::Record { place, record })));
        }
        loop {
            if self.next.segment > limit.segment || self.next >= limit {
                self.scan = None;
                return Ok(None);
            }
            if self.scan.is_none() {
                let scan = match Scan::open(&self.dir, self.next.segment) {
                    Err(LogError::Io { source, .. })
                        if source.kind() == std::io::ErrorKind::NotFound =>
                    {
                        self.next_segment();
                        continue;
                    }
                    other => other?,
                };
                let scan = scan.start_at(self.next.offset).skip_block_payloads();
                self.scan = Some(if self.next.segment == limit.segment {
                    scan.stop_at(limit.offset)
                } else {
                    scan
                });
            }
            let scan = self.scan.as_mut().expect("opened above");
            let place = scan.place();
            if let Some(found) = scan.next_found()? {
                self.next = scan.place();
                return Ok(Some((place, found)));
            }
            self.next_segment_or_stop(limit);
        }
    }

    fn next_segment_or_stop(&mut self, limit: Place) {
        if self.next.segment < limit.segment {
            self.next_segment();
        } else {
            self.next = self.next.max(limit);
        }
    }

    fn next_segment(&mut self) {
        self.scan = None;
        self.next = Place {
            segment: self.next.segment + 1,
            offset: SEGMENT_HEADER_BYTES,
        };
    }
}

impl Parts {
    fn damage(&mut self, d: &super::Damage) {
        self.damaged_at.get_or_insert(self.blocks.len());
        self.bytes += d.bytes;
        self.damage.push(format!(
            "segment {}, offset {}: {}",
            d.place.segment, d.place.offset, d.what
        ));
    }
}
