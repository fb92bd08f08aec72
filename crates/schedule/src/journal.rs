//! The journal: every file modification message in sequence, on disk, until the batch that covers it is acked by
//! every vault. Order is kept across restarts.
//!
//! Not fsynced: it must outlive the daemon, not the machine. After a reboot the sensors have lost messages
//! anyway, and the catch-up compare finds what changed.
//!
//! A file is a 32-byte header (magic `FWJRNL`, version, first sequence, CRC-32C) and records of a 4-byte length, a
//! 4-byte CRC-32C and a postcard payload, all little-endian; see docs/format.md.

use farwrite_core::{Change, ChangeSeq};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"FWJRNL\0\0";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 32;
/// A file is closed beyond this size.
const FILE_BYTES: u64 = 8 << 20;
/// Largest record.
const RECORD_BYTES: usize = 4 << 20;

/// What can go wrong with the journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system said no.
    #[error("journal {path}: {source}")]
    Io {
        /// File or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Made by a later version.
    #[error(
        "journal {path} has format {found}, this program knows up to {VERSION}: use a newer Farwrite"
    )]
    Newer {
        /// File.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// Counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalStats {
    /// Bytes on disk.
    pub bytes: u64,
    /// Files.
    pub files: usize,
    /// Last message put in.
    pub last: ChangeSeq,
    /// All messages up to this one are done with.
    pub checkpoint: ChangeSeq,
}

#[derive(Serialize, Deserialize)]
enum Entry {
    Change(ChangeSeq, Change),
    Checkpoint(ChangeSeq),
}

#[derive(Serialize)]
enum EntryRef<'a> {
    Change(ChangeSeq, &'a Change),
    Checkpoint(ChangeSeq),
}

struct JournalFile {
    path: PathBuf,
    last: ChangeSeq,
    bytes: u64,
}

/// The journal of a source. One process at a time.
pub struct Journal {
    dir: PathBuf,
    current: File,
    files: VecDeque<JournalFile>,
    number: u64,
    last: ChangeSeq,
    checkpoint: ChangeSeq,
    written_checkpoint: ChangeSeq,
}

/// What an opened journal still holds.
pub struct Recovered {
    /// Messages behind the checkpoint, in sequence.
    pub pending: Vec<(ChangeSeq, Change)>,
    /// Files with records that could not be read; what they held is unknown.
    pub damaged: Vec<PathBuf>,
    /// There was no journal at all.
    pub fresh: bool,
}

impl Journal {
    /// Opens or creates the journal in `dir`. A record cut off at the very end is dropped silently (the daemon died
    /// while writing it); anything else unreadable is named in [`Recovered::damaged`].
    pub fn open(dir: &Path) -> Result<(Journal, Recovered), JournalError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| JournalError::Io { path, source }
        };
        fs::create_dir_all(dir).map_err(at(dir))?;
        let mut numbers = Vec::new();
        for e in fs::read_dir(dir).map_err(at(dir))? {
            let name = e.map_err(at(dir))?.file_name();
            if let Some(n) = name
                .to_str()
                .and_then(|n| n.strip_suffix(".jnl"))
                .and_then(|n| n.parse::<u64>().ok())
            {
                numbers.push(n);
            }
        }
        numbers.sort_unstable();
        let mut found = Recovered {
            pending: Vec::new(),
            damaged: Vec::new(),
            fresh: numbers.is_empty(),
        };
        let (mut files, mut checkpoint, mut last) = (VecDeque::new(), ChangeSeq(0), ChangeSeq(0));
        for (i, &n) in numbers.iter().enumerate() {
            let path = file_path(dir, n);
            let read = read_file(&path)?;
            let cut_at_the_end = read.torn && i + 1 == numbers.len();
            let gap = i > 0 && read.first_minus_one > last;
            if read.damaged || (read.torn && !cut_at_the_end) || gap {
                found.damaged.push(path.clone());
            }
            for e in read.entries {
                match e {
                    Entry::Change(seq, c) => {
                        last = last.max(seq);
                        found.pending.push((seq, c));
                    }
                    Entry::Checkpoint(s) => checkpoint = checkpoint.max(s),
                }
            }
            last = last.max(read.first_minus_one);
            files.push_back(JournalFile {
                path,
                last,
                bytes: read.bytes,
            });
        }
        found.pending.retain(|(s, _)| *s > checkpoint);
        found.pending.sort_by_key(|(s, _)| *s);
        last = last.max(checkpoint);
        let number = numbers.last().map_or(1, |n| n + 1);
        let current = create_file(dir, number, last.next())?;
        files.push_back(JournalFile {
            path: file_path(dir, number),
            last,
            bytes: HEADER_BYTES as u64,
        });
        let mut j = Journal {
            dir: dir.to_owned(),
            current,
            files,
            number,
            last,
            checkpoint,
            written_checkpoint: checkpoint,
        };
        j.remove_done()?;
        Ok((j, found))
    }

    /// Puts messages in, with one write. Returns the sequence of the first.
    pub fn append(&mut self, changes: &[Change]) -> Result<ChangeSeq, JournalError> {
        let first = self.last.next();
        let mut buf = Vec::with_capacity(changes.len() * 96);
        for (i, c) in changes.iter().enumerate() {
            put_record(
                &mut buf,
                &EntryRef::Change(ChangeSeq(first.0 + i as u64), c),
            );
        }
        self.write(&buf)?;
        self.last = ChangeSeq(self.last.0 + changes.len() as u64);
        self.files.back_mut().expect("a current file").last = self.last;
        self.roll_if_large()?;
        Ok(first)
    }

    /// All messages up to `seq` are done with; files that hold no others are removed.
    pub fn set_checkpoint(&mut self, seq: ChangeSeq) -> Result<(), JournalError> {
        if seq <= self.checkpoint {
            return Ok(());
        }
        self.checkpoint = seq.min(self.last);
        self.remove_done()
    }

    /// Writes the checkpoint down, so that a restart does not look again at what is done. Cheap; to be called at quiet
    /// moments and at the end.
    pub fn note_checkpoint(&mut self) -> Result<(), JournalError> {
        if self.written_checkpoint == self.checkpoint {
            return Ok(());
        }
        let mut buf = Vec::new();
        put_record(&mut buf, &EntryRef::Checkpoint(self.checkpoint));
        self.write(&buf)?;
        self.written_checkpoint = self.checkpoint;
        self.roll_if_large()
    }

    /// Replaces everything by these messages, which stand for all that was pending.
    pub fn restart_with(&mut self, changes: &[Change]) -> Result<ChangeSeq, JournalError> {
        self.roll()?;
        let before = self.last;
        let first = self.append(changes)?;
        self.checkpoint = before;
        self.note_checkpoint()?;
        self.remove_done()?;
        Ok(first)
    }

    /// Counters.
    pub fn stats(&self) -> JournalStats {
        JournalStats {
            bytes: self.files.iter().map(|f| f.bytes).sum(),
            files: self.files.len(),
            last: self.last,
            checkpoint: self.checkpoint,
        }
    }

    fn write(&mut self, buf: &[u8]) -> Result<(), JournalError> {
        let file = self.files.back_mut().expect("a current file");
        match self.current.write_all(buf) {
            Ok(()) => {
                file.bytes += buf.len() as u64;
                Ok(())
            }
            Err(source) => {
                // Half a record would hide what comes after it: take it back.
                let undone = self
                    .current
                    .set_len(file.bytes)
                    .and_then(|()| self.current.seek(SeekFrom::End(0)));
                let path = file.path.clone();
                Err(JournalError::Io {
                    path,
                    source: undone.err().unwrap_or(source),
                })
            }
        }
    }

    fn roll_if_large(&mut self) -> Result<(), JournalError> {
        if self.files.back().expect("a current file").bytes > FILE_BYTES {
            self.roll()
        } else {
            Ok(())
        }
    }

    fn roll(&mut self) -> Result<(), JournalError> {
        // A number is used once even if this fails: half a file may be in its place.
        self.number += 1;
        let file = create_file(&self.dir, self.number, self.last.next())?;
        self.current = file;
        let path = file_path(&self.dir, self.number);
        self.files.push_back(JournalFile {
            path,
            last: self.last,
            bytes: HEADER_BYTES as u64,
        });
        // The newest file must tell the checkpoint by itself once the older ones are gone.
        let mut buf = Vec::new();
        put_record(&mut buf, &EntryRef::Checkpoint(self.checkpoint));
        self.write(&buf)
    }

    fn remove_done(&mut self) -> Result<(), JournalError> {
        while self.files.len() > 1 && self.files[0].last <= self.checkpoint {
            self.note_checkpoint()?;
            let f = self.files.pop_front().expect("more than one");
            match fs::remove_file(&f.path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(JournalError::Io {
                        path: f.path,
                        source: e,
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn file_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:08}.jnl"))
}

fn create_file(dir: &Path, number: u64, first: ChangeSeq) -> Result<File, JournalError> {
    let path = file_path(dir, number);
    let mut header = [0u8; HEADER_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..24].copy_from_slice(&first.0.to_le_bytes());
    let crc = crc32c::crc32c(&header[..24]);
    header[24..28].copy_from_slice(&crc.to_le_bytes());
    let open = || -> io::Result<File> {
        let mut f = OpenOptions::new()
            .append(true)
            .create_new(true)
            .open(&path)?;
        f.write_all(&header)?;
        Ok(f)
    };
    open().map_err(|source| JournalError::Io {
        path: path.clone(),
        source,
    })
}

fn put_record(buf: &mut Vec<u8>, e: &EntryRef<'_>) {
    let at = buf.len();
    buf.extend_from_slice(&[0; 8]);
    let taken = std::mem::take(buf);
    *buf = postcard::to_extend(e, taken).expect("encoding into memory");
    let len = (buf.len() - at - 8) as u32;
    let crc = crc32c::crc32c(&buf[at + 8..]);
    buf[at..at + 4].copy_from_slice(&len.to_le_bytes());
    buf[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
}

struct FileRead {
    entries: Vec<Entry>,
    first_minus_one: ChangeSeq,
    bytes: u64,
    torn: bool,
    damaged: bool,
}

fn read_file(path: &Path) -> Result<FileRead, JournalError> {
    let io_at = |source| JournalError::Io {
        path: path.to_owned(),
        source,
    };
    let mut raw = Vec::new();
    File::open(path)
        .and_then(|mut f| f.read_to_end(&mut raw))
        .map_err(io_at)?;
    let mut out = FileRead {
        entries: Vec::new(),
        first_minus_one: ChangeSeq(0),
        bytes: raw.len() as u64,
        torn: false,
        damaged: false,
    };
    let word = |b: &[u8], at: usize| u32::from_le_bytes(b[at..at + 4].try_into().expect("4 bytes"));
    if raw.len() < HEADER_BYTES {
        out.torn = true;
        return Ok(out);
    }
    if &raw[..8] != MAGIC || crc32c::crc32c(&raw[..24]) != word(&raw, 24) {
        out.damaged = true;
        return Ok(out);
    }
    if word(&raw, 8) > VERSION {
        return Err(JournalError::Newer {
            path: path.to_owned(),
            found: word(&raw, 8),
        });
    }
    let first = u64::from_le_bytes(raw[16..24].try_into().expect("8 bytes"));
    out.first_minus_one = ChangeSeq(first.saturating_sub(1));
    let mut rest = &raw[HEADER_BYTES..];
    while !rest.is_empty() {
        if rest.len() < 8 {
            out.torn = true;
            break;
        }
        let (len, crc) = (word(rest, 0) as usize, word(rest, 4));
        let Some(payload) = rest.get(8..8 + len).filter(|_| len <= RECORD_BYTES) else {
            out.torn = true;
            break;
        };
        match (crc32c::crc32c(payload) == crc).then(|| postcard::from_bytes(payload)) {
            Some(Ok(e)) => out.entries.push(e),
            _ => out.damaged = true,
        }
        rest = &rest[8 + len..];
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use farwrite_core::{BytePath, ChangeOp, FileId, Name, Timestamp};

    fn change(n: u64) -> Change {
        Change {
            time: Timestamp::from_nanos(n as i64),
            path: BytePath::new(format!("/x/{n}")).unwrap(),
            dir: FileId { dev: 1, ino: 2 },
            name: Some(Name::new(n.to_string()).unwrap()),
            file: None,
            op: ChangeOp::Create,
        }
    }

    fn seqs(r: &Recovered) -> Vec<u64> {
        r.pending.iter().map(|(s, _)| s.0).collect()
    }

    #[test]
    fn order_survives_a_restart_and_a_checkpoint_ends_entries() {
        let t = tempfile::tempdir().unwrap();
        let (mut j, r) = Journal::open(t.path()).unwrap();
        assert!(r.pending.is_empty());
        assert_eq!(
            j.append(&[change(1), change(2), change(3)]).unwrap(),
            ChangeSeq(1)
        );
        drop(j);
        let (mut j, r) = Journal::open(t.path()).unwrap();
        assert_eq!(seqs(&r), [1, 2, 3]);
        assert_eq!(r.pending[1].1, change(2));
        j.set_checkpoint(ChangeSeq(2)).unwrap();
        assert_eq!(j.append(&[change(4)]).unwrap(), ChangeSeq(4));
        j.note_checkpoint().unwrap();
        drop(j);
        let (mut j, r) = Journal::open(t.path()).unwrap();
        assert_eq!(seqs(&r), [3, 4]);
        j.set_checkpoint(ChangeSeq(4)).unwrap();
        drop(j);
        let (mut j, r) = Journal::open(t.path()).unwrap();
        assert_eq!(seqs(&r), [] as [u64; 0]);
        assert_eq!(
            j.append(&[change(5)]).unwrap(),
            ChangeSeq(5),
            "a number is never used twice"
        );
    }

    #[test]
    fn a_cut_at_any_byte_loses_only_the_cut_record() {
        let t = tempfile::tempdir().unwrap();
        let (mut j, _) = Journal::open(t.path()).unwrap();
        let mut ends = Vec::new();
        for n in 1..=3 {
            j.append(&[change(n)]).unwrap();
            ends.push(j.stats().bytes);
        }
        let path = j.files.back().unwrap().path.clone();
        let whole = fs::read(&path).unwrap();
        drop(j);
        for cut in 0..whole.len() {
            let t = tempfile::tempdir().unwrap();
            fs::write(file_path(t.path(), 1), &whole[..cut]).unwrap();
            let (mut j, r) = Journal::open(t.path()).unwrap();
            let kept = ends.iter().filter(|e| **e <= cut as u64).count();
            assert_eq!(r.pending.len(), kept, "cut at {cut}");
            assert!(r.damaged.is_empty());
            j.append(&[change(9)]).unwrap();
        }
        for at in HEADER_BYTES..whole.len() {
            let t = tempfile::tempdir().unwrap();
            let mut bad = whole.clone();
            bad[at] ^= 0x10;
            fs::write(file_path(t.path(), 1), &bad).unwrap();
            fs::write(file_path(t.path(), 2), &whole[..HEADER_BYTES]).unwrap();
            let (_, r) = Journal::open(t.path()).unwrap();
            assert!(!r.damaged.is_empty(), "flip at {at} unnoticed");
            assert!(r.pending.len() < 3);
        }
    }

    #[test]
    fn files_go_once_they_are_done_with() {
        let t = tempfile::tempdir().unwrap();
        let (mut j, _) = Journal::open(t.path()).unwrap();
        let many: Vec<_> = (0..60_000).map(change).collect();
        for _ in 0..6 {
            j.append(&many).unwrap();
        }
        assert!(j.stats().files > 1, "{:?}", j.stats());
        j.set_checkpoint(ChangeSeq(360_000)).unwrap();
        assert_eq!(j.stats().files, 1);
        j.append(&many).unwrap();
        j.restart_with(&[change(7)]).unwrap();
        drop(j);
        let (_, r) = Journal::open(t.path()).unwrap();
        assert_eq!(r.pending.len(), 1);
        assert_eq!(r.pending[0].1, change(7));
    }

    #[test]
    fn a_newer_format_is_refused_with_a_clear_error() {
        let t = tempfile::tempdir().unwrap();
        let (j, _) = Journal::open(t.path()).unwrap();
        drop(j);
        let p = file_path(t.path(), 1);
        let mut raw = fs::read(&p).unwrap();
        raw[8] = 2;
        let crc = crc32c::crc32c(&raw[..24]);
        raw[24..28].copy_from_slice(&crc.to_le_bytes());
        fs::write(&p, raw).unwrap();
        assert!(matches!(
            Journal::open(t.path()),
            Err(JournalError::Newer { found: 2, .. })
        ));
    }
}
