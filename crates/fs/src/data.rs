//! Where a file has data and where it has holes.

use rustix::buffer::spare_capacity;
use rustix::fs::{Advice, FallocateFlags, Mode, OFlags, SeekFrom, fallocate, seek};
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

/// The run that starts at `offset`, up to `size`; `None` at and behind `size`.
fn next_segment(fd: impl AsFd, offset: u64, size: u64) -> io::Result<Option<Segment>> {
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
        Ok(_) => data_from(fd, offset, size).map(Some),
        Err(Errno::NXIO) => Ok(segment(size, true)),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(segment(size, false)),
        Err(e) => Err(e.into()),
    }
}

/// The run of data that starts at `offset`.
fn data_from(fd: impl AsFd, offset: u64, size: u64) -> io::Result<Segment> {
    let end = match seek(&fd, SeekFrom::Hole(offset)) {
        Ok(hole) if hole > offset => hole,
        // Punched between the two calls: a byte of "data" that reads as zero does no harm.
        Ok(_) | Err(Errno::NXIO) => offset + 4096,
        Err(e) => return Err(e.into()),
    };
    Ok(Segment {
        offset,
        len: end.min(size) - offset,
        hole: false,
    })
}

/// Asks for the runs of a file from the front to the back, and for none twice: one system call (lseek(2)) for each run. What
/// becomes of a run once it is known, this does not see. Moves the file's position.
#[derive(Debug)]
pub struct Segments<F> {
    fd: F,
    size: u64,
    known: Option<Segment>,
}

impl<F: AsFd> Segments<F> {
    /// Of a file of `size` bytes.
    pub fn new(fd: F, size: u64) -> Self {
        Segments {
            fd,
            size,
            known: None,
        }
    }

    /// What is left of the run that `offset` is in; `None` at and behind the file's size. A filesystem that knows no holes gives
    /// one run of data.
    pub fn next_from(&mut self, offset: u64) -> io::Result<Option<Segment>> {
        let end = |s: Segment| s.offset + s.len;
        if let Some(s) = self.known
            && (s.offset..end(s)).contains(&offset)
        {
            return Ok(Some(Segment {
                offset,
                len: end(s) - offset,
                ..s
            }));
        }
        self.known = match self.known {
            // Behind a hole there is data.
            Some(s) if s.hole && end(s) == offset && offset < self.size => {
                Some(data_from(&self.fd, offset, self.size)?)
            }
            _ => next_segment(&self.fd, offset, self.size)?,
        };
        Ok(self.known)
    }
}

/// All runs of a file of `size` bytes.
pub fn data_segments(fd: impl AsFd, size: u64) -> io::Result<Vec<Segment>> {
    let mut out: Vec<Segment> = Vec::new();
    let mut segments = Segments::new(fd, size);
    let mut at = 0;
    while let Some(s) = segments.next_from(at)? {
        at = s.offset + s.len;
        match out.last_mut() {
            Some(last) if last.hole == s.hole => last.len += s.len,
            _ => out.push(s),
        }
    }
    Ok(out)
}

/// `len` bytes of a file; `UnexpectedEof` if it has fewer. Does not clear the memory first that they are read into.
pub fn read_range(fd: impl AsFd, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = offset + bytes.len() as u64;
        match rustix::io::pread(&fd, spare_capacity(&mut bytes), at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    // There may have been room for more.
    bytes.truncate(len);
    Ok(bytes)
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

/// Has the kernel read a range of a file into its cache, without waiting for it (posix_fadvise(2), `POSIX_FADV_WILLNEED`).
/// Only ever a hint.
pub fn expect_reads(fd: impl AsFd, range: std::ops::Range<u64>) {
    if let Some(len) = NonZeroU64::new(range.end.saturating_sub(range.start)) {
        let _ = rustix::fs::fadvise(fd, range.start, Some(len), Advice::WillNeed);
    }
}

/// Offsets of what two files share are multiples of this (ioctl_ficlonerange(2)).
pub const SHARED_UNIT_BYTES: u64 = 4096;

/// Can files in this directory share extents, at multiples of [`SHARED_UNIT_BYTES`]? `None` if no file can be made there. Two are,
/// without a name (open(2), `O_TMPFILE`): nobody sees them come and go.
pub fn shares_extents(dir: impl AsFd) -> Option<bool> {
    let unnamed = || {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        rustix::fs::openat(&dir, ".", flags, Mode::RUSR | Mode::WUSR).ok()
    };
    let (from, to) = (unnamed()?, unnamed()?);
    let unit = rustix::fs::fstatvfs(&from).ok()?.f_frsize;
    // Of an empty file it might say yes and do nothing.
    rustix::io::pwrite(&from, &[1; SHARED_UNIT_BYTES as usize], 0).ok()?;
    Some(unit <= SHARED_UNIT_BYTES && rustix::fs::ioctl_ficlone(&to, &from).is_ok())
}

/// Makes a range of `to` have the bytes of a range of `from`, of the same length: the same blocks on the disk where the filesystem
/// can (copy_file_range(2)), else a copy. Returns how many bytes it was; fewer than asked for if `from` ends before.
pub fn share_range(
    (from, mut offset): (impl AsFd, u64),
    (to, mut to_offset): (impl AsFd, u64),
    len: u64,
) -> io::Result<u64> {
    let end = offset + len;
    while offset < end {
        let (into, left) = (Some(&mut to_offset), (end - offset) as usize);
        match rustix::fs::copy_file_range(&from, Some(&mut offset), &to, into, left) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(len - (end - offset))
}

/// Makes a range a hole without changing the size. `Unsupported` where the filesystem cannot.
pub fn punch_hole(fd: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(fd, flags, offset, len)?)
}
