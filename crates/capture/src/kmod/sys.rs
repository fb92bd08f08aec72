//! The device `/dev/farwrite`: its requests, and the memory that it shares. All `unsafe` of this sensor is here.

use super::uapi::{
    DEVICE, IOC_ATTACH, IOC_INFO, IOC_RELEASE, IOC_SEEN, IOC_SWITCH, IOC_UNWATCH, IOC_WATCH, Info,
    PAGE, RingHeader, Watch,
};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

/// The open device.
pub(super) struct Device(File);

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Device {
    /// Opens it; takes CAP_SYS_ADMIN.
    pub fn open() -> io::Result<Device> {
        let file = OpenOptions::new().read(true).write(true).open(DEVICE)?;
        Ok(Device(file))
    }

    /// FARWRITE_IOC_INFO.
    pub fn info(&self) -> io::Result<Info> {
        let mut info = Info::default();
        // SAFETY: the request writes one `struct farwrite_info`, which `info` is (its size is part of the request's number).
        unsafe { self.request(IOC_INFO, (&raw mut info).cast()) }?;
        Ok(info)
    }

    /// FARWRITE_IOC_ATTACH.
    pub fn attach(&self) -> io::Result<()> {
        // SAFETY: takes no argument.
        unsafe { self.request(IOC_ATTACH, std::ptr::null_mut()) }
    }

    /// FARWRITE_IOC_WATCH.
    pub fn watch(&self, directory: BorrowedFd<'_>) -> io::Result<Watch> {
        let mut watch = Watch {
            dirfd: directory.as_raw_fd(),
            ..Watch::default()
        };
        // SAFETY: the request reads and writes one `struct farwrite_watch`, which `watch` is.
        unsafe { self.request(IOC_WATCH, (&raw mut watch).cast()) }?;
        Ok(watch)
    }

    /// FARWRITE_IOC_UNWATCH.
    pub fn unwatch(&self, root: usize) -> io::Result<()> {
        // SAFETY: the argument is a number, not an address.
        unsafe { self.request(IOC_UNWATCH, std::ptr::without_provenance_mut(root)) }
    }

    /// FARWRITE_IOC_SWITCH.
    pub fn switch(&self, on: bool) -> io::Result<()> {
        // SAFETY: the argument is a number, not an address.
        unsafe {
            self.request(
                IOC_SWITCH,
                std::ptr::without_provenance_mut(usize::from(on)),
            )
        }
    }

    /// FARWRITE_IOC_RELEASE.
    pub fn release(&self, position: u64) -> io::Result<()> {
        let mut position = position;
        // SAFETY: the request reads one 64-bit number.
        unsafe { self.request(IOC_RELEASE, (&raw mut position).cast()) }
    }

    /// FARWRITE_IOC_SEEN.
    pub fn seen(&self, position: u64) -> io::Result<()> {
        let mut position = position;
        // SAFETY: the request reads one 64-bit number.
        unsafe { self.request(IOC_SEEN, (&raw mut position).cast()) }
    }

    /// # Safety
    ///
    /// `argument` has to be what the request takes: for those with a pointer, valid for its reads and writes.
    unsafe fn request(&self, number: u64, argument: *mut libc::c_void) -> io::Result<()> {
        loop {
            // SAFETY: the descriptor is open, and the caller answers for the argument.
            if unsafe { libc::ioctl(self.0.as_raw_fd(), number, argument) } == 0 {
                return Ok(());
            }
            let e = io::Error::last_os_error();
            if e.kind() != io::ErrorKind::Interrupted {
                return Err(e);
            }
        }
    }

    /// Maps the ring, read-only.
    pub fn map(&self, ring_bytes: u64) -> io::Result<Memory> {
        let no = || io::Error::other("not the size of a ring");
        let data_bytes = usize::try_from(ring_bytes).map_err(|_| no())?;
        if !ring_bytes.is_power_of_two() || data_bytes < PAGE {
            return Err(no());
        }
        let bytes = PAGE.checked_add(data_bytes).ok_or_else(no)?;
        // SAFETY: a new read-only mapping at an address that the kernel chooses; the descriptor is open.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ,
                libc::MAP_SHARED,
                self.0.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mmap gave address 0"))?;
        Ok(Memory { at, data_bytes })
    }
}

/// The ring's memory: a page with the positions, then the data.
pub(super) struct Memory {
    at: NonNull<u8>,
    data_bytes: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only read.
unsafe impl Send for Memory {}

impl Memory {
    fn header(&self) -> &RingHeader {
        // SAFETY: the mapping begins with a `RingHeader` (it is a page long and page-aligned), which consists of atomics.
        unsafe { self.at.cast::<RingHeader>().as_ref() }
    }

    /// End of the last whole record: what is before it stays as it is until it is released.
    pub fn head(&self) -> u64 {
        self.header().head.load(Ordering::Acquire)
    }

    /// How many records were lost of which no record in the ring tells, and of which roots (bit n: root n). They go on being
    /// counted: ask until the number stays.
    pub fn lost(&self) -> (u64, u64) {
        let lost = self.header().lost.load(Ordering::Acquire);
        (lost, self.header().lost_roots.load(Ordering::Acquire))
    }

    /// Size of the data, a power of two.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes as u64
    }

    /// `len` bytes from the position on, or up to the ring's end. They stay as they are only until the position is released, so
    /// the borrow has to end before that.
    pub fn data(&self, position: u64, len: u64) -> &[u8] {
        let start = (position & (self.data_bytes as u64 - 1)) as usize;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let len = len.min(self.data_bytes - start);
        // SAFETY: `start + len` is at most `data_bytes`, which are mapped behind the first page; the module does not
        // change what is not released.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr().add(PAGE + start), len) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made by `map`, and nobody borrows from it any more.
        unsafe { libc::munmap(self.at.as_ptr().cast(), PAGE + self.data_bytes) };
    }
}
