//! Where a file has data and where it has holes.

use rustix::fs::{Advice, FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::AsFd;

/// A run of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// A hole, not data.
    pub hole: bool,
}

/// The run that starts at `offset`, up to `size`; `None` at and behind `size`. A filesystem that knows no holes
/// gives one run of data. Moves the file's position.
pub fn next_segment(fd: impl AsFd, offset: u64, size: u64) -> io::Result<Option<Segment>> {
    if offset >= size {
        return Ok(None);
    }
    let segment = |end: u64, hole| {
        Some(Segment {
            offset,
            len: end.min(size) - offset,
            hole,
        })
    };
    match seek(&fd, SeekFrom::Data(offset)) {
        Ok(data) if data > offset => Ok(segment(data, true)),
        Ok(_) => match seek(&fd, SeekFrom::Hole(offset)) {
            Ok(hole) if hole > offset => Ok(segment(hole, false)),
            // Punched between the two calls: a byte of "data" that reads as zero does no harm.
            Ok(_) | Err(Errno::NXIO) => Ok(segment((offset + 4096).min(size), false)),
            Err(e) => Err(e.into()),
        },
        Err(Errno::NXIO) => Ok(segment(size, true)),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(segment(size, false)),
        Err(e) => Err(e.into()),
    }
}

/// All runs of a file of `size` bytes.
pub fn data_segments(fd: impl AsFd, size: u64) -> io::Result<Vec<Segment>> {
    let mut out: Vec<Segment> = Vec::new();
    let mut at = 0;
    while let Some(s) = next_segment(&fd, at, size)? {
        at = s.offset + s.len;
        match out.last_mut() {
            Some(last) if last.hole == s.hole => last.len += s.len,
            _ => out.push(s),
        }
    }
    Ok(out)
}

/// Lets the kernel forget what it has cached of a range, as far as that is on the disk (posix_fadvise(2),
/// `POSIX_FADV_DONTNEED`): what passes through once must not drive out what others have in memory. Only ever a hint.
///
/// From `from` up to `to`; `u64::MAX`: to the end of the file.
pub fn forget_cached(fd: impl AsFd, from: u64, to: u64) {
    let len = NonZeroU64::new(to.saturating_sub(from));
    if to == u64::MAX || len.is_some() {
        // No length: to the end.
        let len = len.filter(|_| to < u64::MAX);
        let _ = rustix::fs::fadvise(fd, from, len, Advice::DontNeed);
    }
}

/// Makes a range a hole without changing the size. `Unsupported` where the filesystem cannot.
pub fn punch_hole(fd: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(fd, flags, offset, len)?)
}
