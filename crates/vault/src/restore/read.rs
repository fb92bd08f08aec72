//! A file's content as it was, in order, for those who want bytes and not a file. Never gives a byte that does not match
//! its checksum, and never ends early without an error.

use super::fetch::Fetch;
use super::{Ask, RestoreError};
use farwrite_core::history::{BlockExtent, Entry};
use farwrite_core::{BatchSeq, Extent, Kind};
use std::io::{self, Write};

/// Zeros written at once for a hole.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Writes the content of the file that `entry` was at the moment `at`; holes are written as zeros.
pub fn write_content(
    ask: Ask<'_>,
    entry: &Entry,
    at: BatchSeq,
    out: &mut dyn Write,
) -> Result<(), RestoreError> {
    if entry.meta.kind != Kind::File {
        return Err(RestoreError::Answer("that is no file".into()));
    }
    let mut content = Content {
        fetch: Fetch::new(ask, None),
        size: entry.meta.size,
        done: 0,
        out,
    };
    match &entry.extents {
        Some(list) => {
            content.fetch.announce_extents(list.iter());
            content.pieces(list)?;
        }
        None => {
            let mut from = 0;
            loop {
                let (list, more) = content.fetch.extents(entry.node, at, from)?;
                content.fetch.announce_extents(list.iter());
                content.pieces(&list)?;
                match list.last() {
                    Some(x) if more && x.offset.saturating_add(x.len) > from => {
                        from = x.offset + x.len;
                    }
                    _ => break,
                }
            }
        }
    }
    content.zeros_to(content.size)
}

struct Content<'a> {
    fetch: Fetch<'a>,
    size: u64,
    /// Bytes written.
    done: u64,
    out: &'a mut dyn Write,
}

impl Content<'_> {
    fn pieces(&mut self, list: &[BlockExtent]) -> Result<(), RestoreError> {
        for x in list {
            // An extent may begin before what was asked for.
            let wanted = Extent::new(self.done, self.size - self.done);
            let Some(part) = wanted.intersect(Extent::new(x.offset, x.len)) else {
                continue;
            };
            self.zeros_to(part.offset)?;
            let block = self.fetch.block(x.block)?;
            let damaged = |why: String| {
                RestoreError::Answer(format!("content damaged at byte {}: {why}", part.offset))
            };
            let block = block.map_err(damaged)?;
            let start = x.block_offset as usize + (part.offset - x.offset) as usize;
            let piece = start
                .checked_add(part.len as usize)
                .and_then(|end| block.get(start..end))
                .ok_or_else(|| damaged("an extent reaches beyond its block".into()))?;
            self.out.write_all(piece).map_err(taken)?;
            self.done += part.len;
        }
        Ok(())
    }

    fn zeros_to(&mut self, end: u64) -> Result<(), RestoreError> {
        while self.done < end {
            let n = ZEROS.len().min((end - self.done) as usize);
            self.out.write_all(&ZEROS[..n]).map_err(taken)?;
            self.done += n as u64;
        }
        Ok(())
    }
}

/// Who reads does not take it.
fn taken(e: io::Error) -> RestoreError {
    RestoreError::Ask(Box::new(e))
}
