//! Brings the end of a log in order after a crash: everything up to the last whole batch stays, a torn tail goes.
//! It must never cut off a batch that is known to have been durable if its commit can be read, and whatever it cuts that looks like a
//! whole batch, or was durable once, is kept beside the log.

use super::scan::{Damage, Found, Scan};
use super::{LogError, Place, SEGMENT_HEADER_BYTES, list_segments, segment_path, sync_dir};
use farwrite_core::op::Chain;
use farwrite_core::{BatchSeq, Commit, RecordHeader, RecordKind, codec};
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What recovery found and did.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// The last whole batch.
    pub last: Option<Commit>,
    /// Where the log ends; `None` if there is no segment yet.
    pub end: Option<Place>,
    /// Bytes cut off the end.
    pub dropped_bytes: u64,
    /// Where cut bytes were put that held whole commits, or what was known to have been durable.
    pub set_aside: Vec<PathBuf>,
    /// Damage in front of the last whole batch, as far back as was looked.
    pub damage: Vec<Damage>,
    /// The last batch that was known, if the log ends before it now.
    pub lost: Option<BatchSeq>,
}

/// What another projection has seen of a log: that much was durable once.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Batches up to this one are kept even if they are damaged.
    seq: BatchSeq,
    /// That batch, and where it ends.
    last: Option<(Place, Commit)>,
}

impl From<BatchSeq> for Known {
    fn from(seq: BatchSeq) -> Self {
        Known { seq, last: None }
    }
}

impl From<Option<(Place, Commit)>> for Known {
    fn from(last: Option<(Place, Commit)>) -> Self {
        let seq = last.as_ref().map_or(BatchSeq(0), |(_, c)| c.seq);
        Known { seq, last }
    }
}

impl Known {
    /// Where the last known batch ends, if that is in this segment, and if this is the log that it was seen in: its chain, which
    /// is in its commit, is that of all that comes before.
    pub(crate) fn end_in(&self, dir: &Path, segment: u64) -> Option<(Place, &Commit)> {
        let (end, commit) = self.last.as_ref().filter(|(p, _)| p.segment == segment)?;
        let mut expected = Vec::new();
        codec::encode_commit(commit).write_to(&mut expected);
        let mut found = vec![0; expected.len()];
        let begin = end.offset.checked_sub(expected.len() as u64)?;
        let file = File::open(segment_path(dir, segment)).ok()?;
        file.read_exact_at(&mut found, begin).ok()?;
        (found == expected).then_some((*end, commit))
    }

    /// Does the last known batch end behind this place?
    fn is_behind(&self, segment: u64, offset: u64) -> bool {
        let last = self.last.as_ref().map(|(end, _)| end);
        last.is_some_and(|end| (end.segment, end.offset) > (segment, offset))
    }
}

/// See [`Recovered`].
pub(super) fn recover(dir: &Path, known: &Known) -> Result<Recovered, LogError> {
    let mut out = cut_torn_end(dir, known)?;
    let last = out.last.as_ref().map_or(BatchSeq(0), |c| c.seq);
    out.lost = Some(known.seq).filter(|seq| *seq > last);
    Ok(out)
}

/// Scans what is behind the last known batch; without that the last segment, and the one before if the last holds
/// no batch.
fn cut_torn_end(dir: &Path, known: &Known) -> Result<Recovered, LogError> {
    let mut out = Recovered::default();
    let segments = list_segments(dir)?;
    for (i, &segment) in segments.iter().enumerate().rev() {
        let mut tail = Tail::scan(dir, segment, known)?;
        if tail.last.is_none() && i > 0 {
            out.dropped_bytes += tail.len;
            remove_segment(dir, segment, &tail, &mut out)?;
            continue;
        }
        out.dropped_bytes += tail.len - tail.end;
        truncate(dir, segment, &tail, &mut out)?;
        if tail.last.is_none() && !tail.header_ok {
            // Nothing but a torn header of the very first segment.
            remove_segment(dir, segment, &tail, &mut out)?;
            return Ok(out);
        }
        tail.damage.retain(|d| d.place.offset < tail.end);
        out.damage = tail.damage;
        out.last = tail.last;
        out.end = Some(Place {
            segment,
            offset: tail.end,
        });
        return Ok(out);
    }
    Ok(out)
}

/// What a scan of the last segment says.
struct Tail {
    len: u64,
    /// Behind the last commit that counts.
    end: u64,
    last: Option<Commit>,
    damage: Vec<Damage>,
    header_ok: bool,
    /// There are commits behind `end`, or were once.
    lost_commits: bool,
    /// Zeros behind `len`, which a writer had in reserve.
    reserve: u64,
}

/// The batch being scanned.
struct Pending {
    /// `None` once it cannot be computed any more.
    chain: Option<Chain>,
}

impl Tail {
    fn scan(dir: &Path, segment: u64, known: &Known) -> Result<Tail, LogError> {
        let mut scan = Scan::open(dir, segment)?;
        let path = segment_path(dir, segment);
        let len = std::fs::metadata(&path)
            .map_err(|e| LogError::io("look at", &path, e))?
            .len();
        let header = scan.header().ok().copied();
        let mut tail = Tail {
            len,
            end: len.min(SEGMENT_HEADER_BYTES),
            last: None,
            damage: Vec::new(),
            header_ok: header.is_some(),
            lost_commits: false,
            reserve: 0,
        };
        let mut next_seq = header.map(|h| h.first_seq);
        let mut pending = Pending::new(header.map(|h| h.chain));
        if let Some((end, commit)) = known.end_in(dir, segment) {
            scan = scan.start_at(end.offset);
            (tail.end, tail.last) = (end.offset, Some(commit.clone()));
            next_seq = Some(commit.seq.next());
            pending = Pending::new(Some(commit.chain));
        }
        let mut cut = false;
        while let Some(found) = scan.next_found()? {
            match found {
                Found::Damage(d) => {
                    tail.damage.push(d);
                    pending.chain = None;
                }
                Found::Record { record, .. } if record.header.kind == RecordKind::Commit => {
                    let Ok(commit) = codec::decode_commit(&record) else {
                        pending.chain = None;
                        continue;
                    };
                    let links = pending.links_to(&commit)
                        && next_seq.is_none_or(|expected| expected == commit.seq);
                    if cut || (!links && commit.seq > known.seq) {
                        cut = true;
                        tail.lost_commits = true;
                        continue;
                    }
                    tail.end = scan.place().offset;
                    next_seq = Some(commit.seq.next());
                    pending = Pending::new(Some(commit.chain));
                    tail.last = Some(commit);
                }
                Found::Record { record, .. } => pending.add(&record.header),
                Found::Pruned { header, .. } => pending.add(&header),
            }
        }
        tail.reserve = scan.reserve();
        tail.len -= tail.reserve;
        tail.lost_commits |= tail.end < tail.len && known.is_behind(segment, tail.end);
        Ok(tail)
    }
}

impl Pending {
    fn new(previous: Option<[u8; 32]>) -> Self {
        Pending {
            chain: previous.map(|p| Chain::new(&p)),
        }
    }

    fn add(&mut self, header: &RecordHeader) {
        if header.kind != RecordKind::Pad
            && let Some(chain) = &mut self.chain
        {
            chain.add(&header.hash);
        }
    }

    fn links_to(&self, commit: &Commit) -> bool {
        self.chain
            .as_ref()
            .is_some_and(|c| c.finish() == commit.chain)
    }
}

fn truncate(dir: &Path, segment: u64, tail: &Tail, out: &mut Recovered) -> Result<(), LogError> {
    let path = segment_path(dir, segment);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|e| LogError::io("open", &path, e))?;
    if tail.lost_commits {
        let aside = free_name(&path, tail.end);
        keep_from(&file, tail.end, &aside).map_err(|e| LogError::io("copy", &aside, e))?;
        sync_dir(dir)?;
        out.set_aside.push(aside);
    }
    if tail.end < tail.len + tail.reserve {
        file.set_len(tail.end)
            .map_err(|e| LogError::io("truncate", &path, e))?;
    }
    // What was read may still be in memory only: it counts as durable from here on.
    file.sync_all()
        .map_err(|e| LogError::io("fsync", &path, e))?;
    sync_dir(dir)
}

/// A name for what is cut off a segment at byte `end`: what was kept before stays, it may be the only copy.
fn free_name(segment: &Path, end: u64) -> PathBuf {
    let first = segment.with_extension(format!("cut-{end}"));
    let more = (2..).map(|n| segment.with_extension(format!("cut-{end}-{n}")));
    let mut names = std::iter::once(first).chain(more);
    names.find(|p| !p.exists()).expect("one is free")
}

/// Puts what is behind `from` into a file of its own; if it cannot, there is none.
fn keep_from(mut file: &File, from: u64, aside: &Path) -> std::io::Result<()> {
    let mut copy = File::create_new(aside)?;
    file.seek(SeekFrom::Start(from))?;
    let kept = std::io::copy(&mut file, &mut copy).and_then(|_| copy.sync_all());
    if kept.is_err() {
        let _ = std::fs::remove_file(aside);
    }
    kept
}

fn remove_segment(
    dir: &Path,
    segment: u64,
    tail: &Tail,
    out: &mut Recovered,
) -> Result<(), LogError> {
    let path = segment_path(dir, segment);
    if tail.lost_commits {
        let aside = free_name(&path, 0);
        std::fs::rename(&path, &aside).map_err(|e| LogError::io("rename", &path, e))?;
        out.set_aside.push(aside);
    } else {
        std::fs::remove_file(&path).map_err(|e| LogError::io("remove", &path, e))?;
    }
    sync_dir(dir)
}
