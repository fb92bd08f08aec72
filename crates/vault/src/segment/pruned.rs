//! The list beside a closed segment that says which blocks' content has been freed. It is on the disk before the first byte goes, so
//! that "pruned" is never taken for "damaged", nor the other way round. It only grows.
//!
//! ```text
//! offset size
//!   0     8   magic "FWPRUNED"
//!   8     4   version, 1
//!  12     4   0
//!  16     8   segment number
//!  24     4   CRC-32C over bytes 0..24
//!  28     4   0
//!  32  entries of 32 bytes each:
//!   0     8   offset of the block's record in the segment
//!   8    16   payload hash, as in the record's header
//!  24     4   stored, as in the record's header
//!  28     4   CRC-32C over the segment number (8 bytes) and bytes 0..28 of the entry
//! ```
//! An entry that does not match its checksum is passed over: it was being written when the machine stopped, and nothing was
//! freed for it. The header of a pruned record stays whole, and with it the chain.

use super::{LogError, segment_path, sync_dir};
use farwrite_core::record::HEADER_BYTES;
use farwrite_core::{BatchSeq, RecordHeader, RecordKind};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const MAGIC: [u8; 8] = *b"FWPRUNED";
const VERSION: u32 = 1;
const HEAD: usize = 32;
const ENTRY: usize = 32;
/// Only whole pieces of this size are freed.
pub const FREE_UNIT_BYTES: u64 = 4096;
/// Most entries: every record of the largest segment could be one.
const ENTRIES_MAX: u64 = 64 << 20;

/// The blocks of one segment whose content has been freed, or is about to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrunedList(HashMap<u64, ([u8; 16], u32)>);

/// Where the list of a segment is.
pub fn pruned_path(dir: &Path, segment: u64) -> PathBuf {
    segment_path(dir, segment).with_extension("pruned")
}

/// The part of a record's payload that can be freed: whole pieces of [`FREE_UNIT_BYTES`]; offset and length, which may be 0.
pub fn freeable(offset: u64, stored: u32) -> (u64, u64) {
    let begin = (offset + HEADER_BYTES as u64).next_multiple_of(FREE_UNIT_BYTES);
    let end =
        (offset + HEADER_BYTES as u64 + u64::from(stored)) / FREE_UNIT_BYTES * FREE_UNIT_BYTES;
    (begin, end.saturating_sub(begin))
}

impl PrunedList {
    /// Reads a segment's list; empty if there is none.
    pub fn load(dir: &Path, segment: u64) -> Result<Self, LogError> {
        let path = pruned_path(dir, segment);
        let fail = |e| LogError::io("read", &path, e);
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(PrunedList::default()),
            other => other.map_err(fail)?,
        };
        let len = file.metadata().map_err(fail)?.len();
        if len > HEAD as u64 + ENTRIES_MAX * ENTRY as u64 {
            return Err(LogError::Damaged {
                segment,
                offset: 0,
                seq: None,
                what: "the list of what was pruned is too large".into(),
            });
        }
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, 0).map_err(fail)?;
        if bytes.get(..8) == Some(&MAGIC[..]) && bytes.len() >= HEAD {
            let version = u32::from_le_bytes(bytes[8..12].try_into().expect("4 bytes"));
            let crc = crc32c::crc32c(&bytes[..24]).to_le_bytes();
            if version != VERSION && crc == bytes[24..28] {
                return Err(LogError::Newer { path, version });
            }
        }
        let mut list = HashMap::new();
        for entry in bytes.get(HEAD..).unwrap_or_default().chunks_exact(ENTRY) {
            if entry_crc(segment, entry) == entry[28..32] {
                let offset = u64::from_le_bytes(entry[..8].try_into().expect("8 bytes"));
                let hash = entry[8..24].try_into().expect("16 bytes");
                let stored = u32::from_le_bytes(entry[24..28].try_into().expect("4 bytes"));
                list.insert(offset, (hash, stored));
            }
        }
        Ok(PrunedList(list))
    }

    /// Has the content of this record been freed?
    pub fn contains(&self, offset: u64, header: &RecordHeader) -> bool {
        header.kind == RecordKind::Block
            && self.0.get(&offset) == Some(&(header.hash, header.stored))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// None at all?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn entry_crc(segment: u64, entry: &[u8]) -> [u8; 4] {
    let crc = crc32c::crc32c(&segment.to_le_bytes());
    crc32c::crc32c_append(crc, &entry[..28]).to_le_bytes()
}

/// A block that nothing needs any more, as the catalog describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadBlock {
    /// Where its record begins in the segment.
    pub offset: u64,
    /// Bytes of its payload.
    pub stored: u32,
    /// Its batch.
    pub seq: BatchSeq,
}

/// What [`free_blocks`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    /// Bytes that are holes now.
    pub bytes: u64,
    /// Blocks left alone: what is in the log is not what the catalog says.
    pub strangers: u64,
}

/// Frees the content of blocks of one closed segment: writes the list, makes it durable, then frees. Blocks that are in the
/// list already are freed again, which does nothing more. The caller knows that nothing needs them and that the
/// segment is closed for good; that each is the block that is meant is checked against its header.
pub fn free_blocks(dir: &Path, segment: u64, dead: &[DeadBlock]) -> Result<Freed, LogError> {
    let path = segment_path(dir, segment);
    let fail = |e| LogError::io("free parts of", &path, e);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(fail)?;
    let known = PrunedList::load(dir, segment)?;
    let (mut freed, mut found, mut new) = (Freed::default(), Vec::new(), Vec::new());
    for block in dead {
        match header_of(&file, block).map_err(fail)? {
            Some(header) => {
                if !known.contains(block.offset, &header) {
                    new.push((block.offset, header));
                }
                found.push(*block);
            }
            None => freed.strangers += 1,
        }
    }
    if !new.is_empty() {
        append(dir, segment, &new)?;
    }
    for block in &found {
        let (at, len) = freeable(block.offset, block.stored);
        if len > 0 {
            farwrite_fs::punch_hole(&file, at, len).map_err(fail)?;
            freed.bytes += len;
        }
    }
    if !found.is_empty() {
        file.sync_all().map_err(fail)?;
    }
    Ok(freed)
}

/// The header of a block, if it is whole and the one that is meant.
fn header_of(file: &File, block: &DeadBlock) -> io::Result<Option<RecordHeader>> {
    let mut head = [0; HEADER_BYTES];
    match file.read_exact_at(&mut head, block.offset) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    Ok(RecordHeader::decode(&head)
        .ok()
        .filter(|h| h.kind == RecordKind::Block && h.stored == block.stored && h.seq == block.seq))
}

fn append(dir: &Path, segment: u64, new: &[(u64, RecordHeader)]) -> Result<(), LogError> {
    let path = pruned_path(dir, segment);
    let fail = |e| LogError::io("write", &path, e);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(fail)?;
    let len = file.metadata().map_err(fail)?.len();
    let mut head = [0u8; HEAD];
    head[..8].copy_from_slice(&MAGIC);
    head[8..12].copy_from_slice(&VERSION.to_le_bytes());
    head[16..24].copy_from_slice(&segment.to_le_bytes());
    let crc = crc32c::crc32c(&head[..24]);
    head[24..28].copy_from_slice(&crc.to_le_bytes());
    // Always: the first attempt may have been cut off.
    file.write_all_at(&head, 0).map_err(fail)?;
    let mut bytes = Vec::with_capacity(new.len() * ENTRY);
    for (offset, header) in new {
        let mut entry = [0u8; ENTRY];
        entry[..8].copy_from_slice(&offset.to_le_bytes());
        entry[8..24].copy_from_slice(&header.hash);
        entry[24..28].copy_from_slice(&header.stored.to_le_bytes());
        let crc = entry_crc(segment, &entry);
        entry[28..].copy_from_slice(&crc);
        bytes.extend_from_slice(&entry);
    }
    // Behind the last whole entry: a torn one is written over.
    let at = HEAD as u64 + len.saturating_sub(HEAD as u64) / ENTRY as u64 * ENTRY as u64;
    file.write_all_at(&bytes, at).map_err(fail)?;
    file.sync_all().map_err(fail)?;
    sync_dir(dir)
}

/// Can the filesystem of this directory free parts of a file?
pub fn can_free(dir: &Path) -> Result<bool, LogError> {
    let path = dir.join("free.test");
    let fail = |e| LogError::io("try to free a part of", &path, e);
    let tried = File::create(&path).and_then(|file| {
        file.set_len(2 * FREE_UNIT_BYTES)?;
        farwrite_fs::punch_hole(&file, 0, FREE_UNIT_BYTES)
    });
    std::fs::remove_file(&path).map_err(fail)?;
    match tried {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(false),
        Err(e) => Err(fail(e)),
    }
}
