//! Reads a source's whole log and compares every byte with its checksums and every batch with the chain. It
//! must never stop at the first finding, and never change anything.

use crate::catalog;
use crate::segment::{Found, LogError, Place, Scan, list_segments};
use farwrite_core::op::Chain;
use farwrite_core::{BatchSeq, Commit, RecordKind, codec};
use std::path::Path;
use std::time::Duration;

/// What looks damaged in the last segment is looked at so often again, each time after a while: its writer puts a record in place within
/// microseconds, or longer if the system holds it back.
const LOOKS: u32 = 10;
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Most findings that are kept; more are counted.
const FINDINGS: usize = 10_000;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which segment.
    pub segment: u64,
    /// Where in it.
    pub offset: u64,
    /// Which batch, where known.
    pub seq: Option<BatchSeq>,
    /// What.
    pub what: String,
}

/// What a verification read and found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Segments read.
    pub segments: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Records whose checksums are right.
    pub records: u64,
    /// Whole batches that link up with the one before.
    pub batches: u64,
    /// Blocks whose content retention has freed, as the lists beside the segments say.
    pub pruned: u64,
    /// What is wrong, in order of place.
    pub findings: Vec<Finding>,
    /// Findings beyond the bound, not kept.
    pub more_findings: u64,
}

impl VerifyReport {
    /// Nothing wrong?
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.more_findings == 0
    }

    fn add(&mut self, place: Place, seq: Option<BatchSeq>, what: impl Into<String>) {
        if self.findings.len() >= FINDINGS {
            self.more_findings += 1;
            return;
        }
        self.findings.push(Finding {
            segment: place.segment,
            offset: place.offset,
            seq,
            what: what.into(),
        });
    }
}

/// Verifies the log of the source in `source_dir`. May run beside a writer: the batch being written at the end is not
/// a finding. `progress` hears of every segment.
pub fn verify_source(
    source_dir: &Path,
    progress: &mut dyn FnMut(&VerifyReport),
) -> Result<VerifyReport, LogError> {
    let dir = source_dir.join("log");
    let mut report = VerifyReport::default();
    let mut at = Position::default();
    // Asked before the log is read, which may grow meanwhile.
    let known = catalog::open_reader(&source_dir.join("catalog.db"))
        .and_then(|c| catalog::newest_batch(&c))
        .ok()
        .flatten();
    let segments = list_segments(&dir)?;
    let last = segments.last().copied();
    for (i, &segment) in segments.iter().enumerate() {
        let start = Place { segment, offset: 0 };
        if i > 0 && segments[i - 1] + 1 != segment {
            report.add(start, None, "segments before this one are missing");
            at = Position::default();
        }
        let (is_last, seen) = (last == Some(segment), known.as_ref().map(|k| k.commit.seq));
        verify_segment(&dir, segment, is_last, seen, &mut at, &mut report)?;
        report.segments += 1;
        progress(&report);
    }
    if let Some(known) = known
        && at.last.is_none_or(|c| c.seq < known.commit.seq)
    {
        let what = "the log ends before a batch that the catalog has seen";
        report.add(known.end, Some(known.commit.seq), what);
    }
    Ok(report)
}

/// Where the chain stands.
#[derive(Default)]
struct Position {
    last: Option<Commit>,
    /// `None` while it is not known.
    chain: Option<Chain>,
}

fn verify_segment(
    dir: &Path,
    segment: u64,
    is_last: bool,
    known: Option<BatchSeq>,
    at: &mut Position,
    report: &mut VerifyReport,
) -> Result<(), LogError> {
    let mut looks = if is_last { LOOKS } else { 0 };
    let mut scan = Scan::open(dir, segment)?;
    while looks > 0 && scan.header().is_err() {
        looks -= 1;
        std::thread::sleep(LOOK_AGAIN);
        scan = Scan::open(dir, segment)?;
    }
    let start = Place { segment, offset: 0 };
    match scan.header() {
        Err(e) => report.add(start, None, e.to_string()),
        Ok(h) => {
            let known = at.last.as_ref().map(|c| (c.chain, c.seq.next()));
            if known.is_some_and(|k| k != (h.chain, h.first_seq)) {
                report.add(start, None, "the segment does not follow the one before");
            }
            at.chain = Some(Chain::new(&h.chain));
        }
    }
    let mut open_damage = None;
    while let Some(found) = scan.next_found()? {
        match found {
            Found::Damage(d) if looks > 0 => {
                // Perhaps it is being written right now.
                looks -= 1;
                std::thread::sleep(LOOK_AGAIN);
                scan = Scan::open(dir, segment)?.start_at(d.place.offset);
            }
            Found::Damage(d) => {
                at.chain = None;
                let new = |seq| at.last.as_ref().is_none_or(|c| c.seq < seq);
                if is_last && d.seq.is_none_or(new) {
                    // Only a finding if something whole follows: else it may be a batch that was never committed.
                    open_damage = open_damage.or(Some(d));
                } else {
                    report.add(d.place, d.seq, d.what);
                }
            }
            Found::Pruned { header, .. } => {
                if let Some(d) = open_damage.take() {
                    report.add(d.place, d.seq, d.what);
                }
                report.pruned += 1;
                report.bytes += header.total_bytes();
                if let Some(chain) = &mut at.chain {
                    chain.add(&header.hash);
                }
            }
            Found::Record { place, record } => {
                if let Some(d) = open_damage.take() {
                    report.add(d.place, d.seq, d.what);
                }
                report.records += 1;
                report.bytes += record.header.total_bytes();
                match record.header.kind {
                    RecordKind::Commit => commit(place, &record, at, report),
                    RecordKind::Block | RecordKind::Ops => {
                        if record.header.kind == RecordKind::Ops
                            && let Err(e) = codec::decode_ops(&record)
                        {
                            report.add(place, Some(record.header.seq), e.to_string());
                        }
                        if let Some(chain) = &mut at.chain {
                            chain.add(&record.header.hash);
                        }
                    }
                    _ => {}
                }
            }
        }
    }
    if let Some(d) = open_damage {
        let last = at.last.as_ref().map(|c| c.seq);
        let was_durable = match known {
            Some(known) => last.is_none_or(|last| last < known),
            None => !d.what.contains("cut off"),
        };
        if was_durable {
            report.add(d.place, d.seq, d.what);
        }
    }
    Ok(())
}

fn commit(
    place: Place,
    record: &farwrite_core::Record,
    at: &mut Position,
    report: &mut VerifyReport,
) {
    let seq = Some(record.header.seq);
    let commit = match codec::decode_commit(record) {
        Ok(c) => c,
        Err(e) => {
            at.chain = None;
            return report.add(place, seq, e.to_string());
        }
    };
    if let Some(last) = &at.last
        && last.seq.next() != commit.seq
    {
        report.add(
            place,
            seq,
            format!("batch {} follows batch {}", commit.seq, last.seq),
        );
    }
    match &at.chain {
        Some(chain) if chain.finish() == commit.chain => report.batches += 1,
        Some(_) => report.add(place, seq, "the batch does not link up with the one before"),
        None => {}
    }
    at.chain = Some(Chain::new(&commit.chain));
    at.last = Some(commit);
}
