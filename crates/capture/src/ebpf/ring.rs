//! Reading a BPF ring buffer without giving records up before they are released.
//!
//! libbpf's own reader frees each record as soon as its callback returns; here they stay until they are in the journal, so
//! that a daemon that dies finds them again. The layout is that of kernel/bpf/ringbuf.c, documented in
//! Documentation/bpf/ringbuf.rst: a page with the consumer's position, a page with the producer's, then the data twice in a
//! row, so that no record is cut. Whatever the memory holds, nothing outside the mapping is read.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Bytes before each record: its length with two flags, and an offset that only the kernel uses.
const HEADER: u64 = 8;
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;

/// Memory shared with the kernel; unmapped when dropped.
pub(super) struct Mapping {
    at: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory belongs to the mapping, not to a thread; all access to it is through atomics or to bytes that the kernel
// does not change any more.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `bytes` of a BPF map from `offset` on.
    pub(super) fn new(
        map: BorrowedFd<'_>,
        offset: usize,
        bytes: usize,
        write: bool,
    ) -> io::Result<Mapping> {
        let access = libc::PROT_READ | if write { libc::PROT_WRITE } else { 0 };
        // SAFETY: a new mapping at an address that the kernel chooses; the descriptor is open for the length of the call.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                access,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mmap gave address 0"))?;
        Ok(Mapping { at, bytes })
    }

    /// The value at the mapping's beginning.
    ///
    /// `T` must consist of atomic integers only.
    pub(super) fn shared<T>(&self) -> &T {
        assert!(size_of::<T>() <= self.bytes && align_of::<T>() <= 4096);
        // SAFETY: in bounds and aligned (a mapping begins at a page), lives as long as `self`, every bit pattern is a valid
        // atomic integer, and all access on both sides is atomic.
        unsafe { self.at.cast::<T>().as_ref() }
    }

    fn atomic64(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.bytes);
        // SAFETY: in bounds and aligned, see `shared`.
        unsafe { self.at.add(offset).cast::<AtomicU64>().as_ref() }
    }

    fn atomic32(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.bytes);
        // SAFETY: in bounds and aligned, see `shared`.
        unsafe { self.at.add(offset).cast::<AtomicU32>().as_ref() }
    }

    fn slice(&self, offset: usize, len: usize) -> &[u8] {
        assert!(offset <= self.bytes && len <= self.bytes - offset);
        // SAFETY: in bounds; the caller asks for committed, unreleased records only, which nobody changes.
        unsafe { std::slice::from_raw_parts(self.at.add(offset).as_ptr(), len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, unmapped only here, and no reference outlives `self`.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.bytes) };
    }
}

/// The reading side of the map `ring`.
pub(super) struct Ring {
    consumer: Mapping,
    rest: Mapping,
    page: usize,
    size: u64,
    read: u64,
}

/// What is at the reading position.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<'a> {
    /// A record; the position is behind it now.
    Record(&'a [u8]),
    /// None, or none that is complete.
    Empty,
    /// What is there cannot be: the ring is not to be trusted any more.
    Corrupt,
}

impl Ring {
    /// `size`: the map's max_entries, a power of two.
    pub(super) fn new(map: BorrowedFd<'_>, size: u32) -> io::Result<Ring> {
        let page = rustix::param::page_size();
        let consumer = Mapping::new(map, 0, page, true)?;
        let rest = Mapping::new(map, page, page + 2 * size as usize, false)?;
        let mut ring = Ring {
            consumer,
            rest,
            page,
            size: size.into(),
            read: 0,
        };
        ring.read = ring.released();
        Ok(ring)
    }

    /// Everything before this position has been released.
    fn released(&self) -> u64 {
        self.consumer.atomic64(0).load(Ordering::Acquire)
    }

    /// The end of what was recorded.
    pub(super) fn head(&self) -> u64 {
        self.rest.atomic64(0).load(Ordering::Acquire)
    }

    /// The reading position.
    pub(super) fn position(&self) -> u64 {
        self.read
    }

    /// Takes the next record. It stays in the ring until [`Ring::release`].
    pub(super) fn next(&mut self) -> Next<'_> {
        loop {
            let head = self.head();
            let left = head.wrapping_sub(self.read);
            if left == 0 {
                return Next::Empty;
            }
            if left > self.size || left < HEADER {
                return Next::Corrupt;
            }
            let at = self.page + (self.read & (self.size - 1)) as usize;
            let header = self.rest.atomic32(at).load(Ordering::Acquire);
            if header & BUSY != 0 {
                return Next::Empty;
            }
            let len = u64::from(header & !DISCARDED);
            let whole = HEADER + len.next_multiple_of(8);
            if whole > left {
                return Next::Corrupt;
            }
            self.read += whole;
            if header & DISCARDED == 0 {
                return Next::Record(self.rest.slice(at + HEADER as usize, len as usize));
            }
        }
    }

    /// Is there something at the reading position that [`Ring::next`] would give or pass over?
    pub(super) fn is_ready(&self) -> bool {
        if self.head() == self.read {
            return false;
        }
        let at = self.page + (self.read & (self.size - 1)) as usize;
        self.rest.atomic32(at).load(Ordering::Acquire) & BUSY == 0
    }

    /// Gives everything that was read back to the kernel.
    pub(super) fn release(&mut self) {
        self.consumer
            .atomic64(0)
            .store(self.read, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, OwnedFd};

    const SIZE: u32 = 4096;

    /// A file laid out as the map's memory: the data is there once, as far as a test needs it.
    struct Fake {
        file: OwnedFd,
        page: usize,
    }

    impl Fake {
        fn new() -> Fake {
            let file = rustix::fs::memfd_create("ring", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            let page = rustix::param::page_size();
            let len = (2 * page + 2 * SIZE as usize) as u64;
            rustix::fs::ftruncate(&file, len).unwrap();
            Fake { file, page }
        }
        fn put(&self, at: usize, bytes: &[u8]) {
            let n = rustix::io::pwrite(&self.file, bytes, at as u64).unwrap();
            assert_eq!(n, bytes.len());
        }
        fn header(&self, at: u64, header: u32) {
            self.put(2 * self.page + at as usize, &header.to_ne_bytes());
        }
        fn record(&self, at: u64, flags: u32, data: &[u8]) {
            self.header(at, data.len() as u32 | flags);
            self.put(2 * self.page + at as usize + 8, data);
        }
        fn head(&self, head: u64) {
            self.put(self.page, &head.to_ne_bytes());
        }
        fn ring(&self) -> Ring {
            Ring::new(self.file.as_fd(), SIZE).unwrap()
        }
    }

    #[test]
    fn records_are_read_in_order_and_stay_until_released() {
        let fake = Fake::new();
        fake.record(0, 0, b"0123456789");
        fake.record(24, DISCARDED, b"wakes us");
        fake.record(40, 0, b"second");
        fake.head(56);
        let mut ring = fake.ring();
        assert_eq!(ring.next(), Next::Record(b"0123456789"));
        assert_eq!(ring.next(), Next::Record(b"second"));
        assert_eq!(ring.next(), Next::Empty);
        assert_eq!(fake.ring().next(), Next::Record(b"0123456789"));
        ring.release();
        assert_eq!(fake.ring().next(), Next::Empty);
        assert_eq!(ring.position(), 56);
    }

    #[test]
    fn a_record_under_way_is_waited_for() {
        let fake = Fake::new();
        fake.record(0, BUSY, b"half");
        fake.head(16);
        let mut ring = fake.ring();
        assert!(!ring.is_ready());
        assert_eq!(ring.next(), Next::Empty);
        fake.record(0, 0, b"done");
        assert!(ring.is_ready());
        assert_eq!(ring.next(), Next::Record(b"done"));
    }

    #[test]
    fn what_cannot_be_is_refused_and_nothing_outside_is_read() {
        for (head, header) in [
            (16, SIZE),
            (16, 0x3fff_ffff),
            (16, 17),
            (4, 0),
            (u64::from(SIZE) + 8, 8),
            (u64::MAX, 8),
        ] {
            let fake = Fake::new();
            fake.header(0, header);
            fake.head(head);
            assert_eq!(fake.ring().next(), Next::Corrupt, "{head} {header:#x}");
        }
    }
}
