//! Much data past the kernel's cache (open(2), `O_DIRECT`). What is read or written once, and is large, costs the processor more
//! in the cache, page by page, than everything else that is done with it; and it drives out what others have there.
//!
//! All of it is an offer: where the filesystem or the disk cannot, the same bytes are written as always.

use bytes::Bytes;
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What memory, offsets and lengths are multiples of: no disk in use has larger blocks (statx(2), `STATX_DIOALIGN`), and a page is
/// either the cache's or the disk's.
const ALIGN: usize = 4096;
/// Pieces written in one call at most (`IOV_MAX`, writev(2)).
const SLICES: usize = 1024;
/// Fewer are not worth it: a write that waits for the disk takes as long as the disk.
pub const DIRECT_LEAST_BYTES: usize = 256 << 10;
/// Filesystems that overwrite in place, by their magic numbers (statfs(2)): ext2 to ext4, and XFS. Others have to do more with what
/// is written than to put it on the disk (Btrfs compresses and sums up, network filesystems send it), and do it better in their own time.
const IN_PLACE: [u32; 2] = [0xef53, 0x5846_5342];

/// Is the file or directory on a filesystem that overwrites in place?
pub fn overwrites_in_place(fd: impl AsFd) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|s| IN_PLACE.contains(&(s.f_type as u32)))
}

/// Is the byte at `offset` in the kernel's cache? False where the filesystem cannot tell (preadv2(2), `RWF_NOWAIT`). If it is not,
/// the kernel begins to read it, and as many pages ahead as it sees fit (`POSIX_FADV_RANDOM`, posix_fadvise(2): none); should
/// that end at once, the answer is yes.
pub fn is_cached(file: &File, offset: u64) -> bool {
    let mut byte = [0];
    let mut into = [IoSliceMut::new(&mut byte)];
    rustix::io::preadv2(file, &mut into, offset, ReadWriteFlags::NOWAIT).is_ok_and(|n| n == 1)
}

/// Opens a file for [`read_direct`]; an error (`EINVAL`) where the filesystem cannot.
pub fn open_direct(path: &Path) -> io::Result<File> {
    let flags = OFlags::DIRECT.bits() as i32;
    File::options().read(true).custom_flags(flags).open(path)
}

/// The bytes of a range; fewer if the file ends before.
///
/// # Panics
/// If the range is turned around.
pub fn read_direct(file: &File, range: Range<u64>) -> io::Result<Bytes> {
    let begin = range.start - range.start % ALIGN as u64;
    let skip = (range.start - begin) as usize;
    let want = skip + usize::try_from(range.end - range.start).expect("fits into memory");
    let mut buffer = Aligned::new(want.next_multiple_of(ALIGN));
    let mut got = 0;
    while got < want {
        match rustix::io::pread(file, &mut buffer.bytes_mut()[got..], begin + got as u64) {
            Ok(0) => break,
            Ok(n) => {
                got += n;
                // It ends there, and from there nothing can be read.
                if !n.is_multiple_of(ALIGN) {
                    break;
                }
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let end = got.min(want);
    Ok(buffer.into_bytes(skip.min(end)..end))
}

/// Memory that begins at a multiple of [`ALIGN`].
struct Aligned {
    memory: Vec<u8>,
    from: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let memory = vec![0; len + ALIGN];
        let from = memory.as_ptr().addr().next_multiple_of(ALIGN) - memory.as_ptr().addr();
        Aligned { memory, from, len }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.from..self.from + self.len]
    }

    fn into_bytes(self, part: Range<usize>) -> Bytes {
        let from = self.from;
        Bytes::from(self.memory).slice(from + part.start..from + part.end)
    }
}

/// A large file that is written to, by several threads at once if need be.
pub struct DirectFile {
    file: Arc<File>,
    /// The same, opened anew for what goes past the cache.
    direct: Option<OwnedFd>,
    /// Has it been refused?
    refused: AtomicBool,
}

impl DirectFile {
    /// Of a file that is open for writing. Without `direct` all goes through the cache.
    pub fn new(file: Arc<File>, direct: bool) -> Self {
        let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC;
        let anew = || {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            rustix::fs::open(path, flags, Mode::empty()).ok()
        };
        DirectFile {
            direct: (direct && overwrites_in_place(&*file)).then(anew).flatten(),
            file,
            refused: AtomicBool::new(false),
        }
    }

    /// The file as it was opened.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Does what is written go past the cache?
    pub fn is_direct(&self) -> bool {
        self.direct.is_some() && !self.refused.load(Ordering::Relaxed)
    }

    /// Sets blocks of the disk aside for a range in which nothing is yet, and makes the file as long (fallocate(2)): only then several
    /// writes past the cache are under way at once, else the file is locked for each. Does nothing for what goes through the cache, or
    /// where the filesystem cannot. An error (`ENOSPC`) if there are not so many.
    pub fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        if !self.is_direct() || len < DIRECT_LEAST_BYTES as u64 {
            return Ok(());
        }
        loop {
            match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), offset, len) {
                Err(Errno::INTR) => {}
                Err(e @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG | Errno::IO)) => {
                    return Err(e.into());
                }
                // Whatever else is against it need not be against writing.
                _ => return Ok(()),
            }
        }
    }

    /// Writes pieces one behind the other, from `offset` on. What is short of a page at either end, and what is little, goes through
    /// the cache.
    pub fn write_all_at(
        &self,
        pieces: &[Bytes],
        offset: u64,
        scratch: &mut Scratch,
    ) -> io::Result<()> {
        let pieces: Vec<&[u8]> = pieces.iter().map(|p| &p[..]).collect();
        let total: usize = pieces.iter().map(|p| p.len()).sum();
        let before = (offset.next_multiple_of(ALIGN as u64) - offset) as usize;
        let whole = total.saturating_sub(before) / ALIGN * ALIGN;
        let direct = self.direct.as_ref().filter(|_| self.is_direct());
        let Some(direct) = direct.filter(|_| whole >= DIRECT_LEAST_BYTES) else {
            return write_pieces_at(&self.file, &pieces, offset);
        };
        let (head, rest) = split(&pieces, before);
        let (middle, tail) = split(&rest, whole);
        let (begin, end) = (offset + before as u64, offset + (before + whole) as u64);
        write_pieces_at(&self.file, &head, offset)?;
        let aligned =
            |p: &&[u8]| p.as_ptr().addr().is_multiple_of(ALIGN) && p.len().is_multiple_of(ALIGN);
        let wrote = match middle.iter().all(aligned) {
            true => write_pieces_at(direct, &middle, begin),
            false => write_pieces_at(direct, &[scratch.of(&middle, whole)], begin),
        };
        match wrote {
            // A disk with larger blocks, or a filesystem that cannot.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                self.refused.store(true, Ordering::Relaxed);
                write_pieces_at(&self.file, &middle, begin)?;
            }
            other => other?,
        }
        write_pieces_at(&self.file, &tail, end)
    }
}

/// Memory for [`DirectFile::write_all_at`], to be used again and again: for what is not aligned as it comes.
#[derive(Default)]
pub struct Scratch(Option<Aligned>);

impl Scratch {
    fn of(&mut self, pieces: &[&[u8]], len: usize) -> &[u8] {
        let enough = self.0.take_if(|have| have.len >= len);
        let have = self.0.insert(enough.unwrap_or_else(|| Aligned::new(len)));
        let mut at = 0;
        for piece in pieces {
            have.bytes_mut()[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        }
        &have.bytes_mut()[..len]
    }
}

/// Cuts pieces in two: the first `at` bytes, and the others.
fn split<'p>(pieces: &[&'p [u8]], mut at: usize) -> (Vec<&'p [u8]>, Vec<&'p [u8]>) {
    let (mut front, mut back) = (Vec::new(), Vec::new());
    for piece in pieces {
        let (a, b) = piece.split_at(at.min(piece.len()));
        at -= a.len();
        front.extend((!a.is_empty()).then_some(a));
        back.extend((!b.is_empty()).then_some(b));
    }
    (front, back)
}

/// Writes pieces one behind the other, from `offset` on, without putting them together first.
pub fn write_pieces_at(fd: impl AsFd, pieces: &[&[u8]], mut offset: u64) -> io::Result<()> {
    let some = pieces.iter().filter(|p| !p.is_empty());
    let mut slices: Vec<IoSlice<'_>> = some.map(|p| IoSlice::new(p)).collect();
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        match rustix::io::pwritev(&fd, &rest[..rest.len().min(SLICES)], offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                IoSlice::advance_slices(&mut rest, n);
                offset += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}
