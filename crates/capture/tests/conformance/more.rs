//! Rows about the less common ways to change a file's bytes: io_uring, direct I/O, every mode of fallocate, reflinks, several and
//! huge mappings, 32-bit system calls.

use crate::table::{Ctx, Held, Row, Shown, Want, copy_range, data, file, two_files, unsupported};
use rustix::fs::{self as rfs, FallocateFlags, OFlags};
use rustix::io::{Errno, ReadWriteFlags};
use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

const F: &[Want] = &[Want::Write("f")];
/// Direct I/O is in units of this many bytes everywhere.
const BLOCK: usize = 4096;
/// `FICLONE` and `FICLONERANGE` of ioctl_ficlone(2).
const FICLONE: libc::c_ulong = 0x4004_9409;
const FICLONERANGE: libc::c_ulong = 0x4020_940d;

pub fn rows() -> Vec<Row> {
    [calls(), fallocate_modes(), clones(), mappings()]
        .into_iter()
        .flatten()
        .collect()
}

/// 64 KiB of one byte: several blocks, so that some stay as they are.
fn blocks(c: &Ctx) {
    std::fs::write(c.p("f"), vec![b'x'; 16 * BLOCK]).unwrap();
    settle(c);
}

/// 4 MiB, room for a huge page.
fn huge(c: &Ctx) {
    std::fs::write(c.p("f"), vec![b'x'; 4 << 20]).unwrap();
    settle(c);
}

fn settle(c: &Ctx) {
    File::open(c.p("f")).unwrap().sync_all().unwrap();
}

fn direct(c: &Ctx) -> std::io::Result<File> {
    std::fs::OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(c.p("f"))
}

/// An aligned block of `byte`.
struct Aligned {
    memory: Vec<u8>,
    at: usize,
}

impl Aligned {
    fn new(byte: u8) -> Aligned {
        let memory = vec![byte; 2 * BLOCK];
        let at = memory.as_ptr().align_offset(BLOCK);
        Aligned { memory, at }
    }
    fn block(&self) -> &[u8] {
        &self.memory[self.at..self.at + BLOCK]
    }
}

/// One write through io_uring; `None`: the kernel has it switched off.
fn uring_write(file: &File, bytes: &[u8], offset: u64) -> Option<i32> {
    use io_uring::{IoUring, opcode, types};
    let mut ring = match IoUring::new(4) {
        Ok(r) => r,
        Err(e) if matches!(e.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => return None,
        Err(e) => panic!("io_uring: {e}"),
    };
    let write = opcode::Write::new(
        types::Fd(file.as_raw_fd()),
        bytes.as_ptr(),
        bytes.len() as u32,
    )
    .offset(offset)
    .build();
    // SAFETY: `bytes` and `file` outlive the request, whose completion is awaited below.
    unsafe { ring.submission().push(&write).unwrap() };
    ring.submit_and_wait(1).unwrap();
    let done = ring.completion().next().map(|c| c.result());
    Some(done.expect("one completion"))
}

/// One write through io_submit(2).
fn aio_write(file: &File, bytes: &[u8], offset: u64) {
    // SAFETY: all zero is a request that is yet to be filled in, an event, and a context as io_setup(2) wants it.
    let (mut request, mut event): (libc::iocb, [u64; 4]) = unsafe { std::mem::zeroed() };
    request.aio_lio_opcode = 1; // IOCB_CMD_PWRITE
    request.aio_fildes = file.as_raw_fd() as u32;
    request.aio_buf = bytes.as_ptr() as u64;
    request.aio_nbytes = bytes.len() as u64;
    request.aio_offset = offset as i64;
    let mut context: u64 = 0;
    let requests = [&raw mut request];
    // SAFETY: all that the calls are given outlives the request, whose completion is awaited.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_io_setup, 4, &raw mut context), 0);
        let submitted = libc::syscall(libc::SYS_io_submit, context, 1, requests.as_ptr());
        assert_eq!(submitted, 1);
        let none = std::ptr::null::<libc::timespec>();
        let event = event.as_mut_ptr();
        let done = libc::syscall(libc::SYS_io_getevents, context, 1, 1, event, none);
        assert_eq!(done, 1);
        libc::syscall(libc::SYS_io_destroy, context);
    }
    // struct io_event: data, obj, res, res2.
    assert_eq!(event[2], bytes.len() as u64);
}

/// write(2) as a 32-bit program does it; the negative error number if it fails.
#[cfg(target_arch = "x86_64")]
fn write_32(fd: RawFd, bytes: &[u8]) -> i32 {
    // SAFETY: a new private mapping at an address that fits into 32 bits.
    let low = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            BLOCK,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
            -1,
            0,
        )
    };
    assert_ne!(low, libc::MAP_FAILED);
    assert!(bytes.len() <= BLOCK);
    let mut result: u64 = 4;
    // SAFETY: the buffer is mapped and large enough; the system call reads it and changes no register but rax (r8 to r11 are
    // told to be lost); rbx, which the compiler keeps for itself, is put back.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), low.cast(), bytes.len());
        std::arch::asm!(
            "xchg {fd}, rbx",
            "int 0x80",
            "xchg {fd}, rbx",
            fd = inout(reg) fd as u64 => _,
            inout("rax") result,
            in("rcx") low,
            in("rdx") bytes.len(),
            out("r8") _,
            out("r9") _,
            out("r10") _,
            out("r11") _,
        );
        libc::munmap(low, BLOCK);
    }
    result as i32
}

#[cfg(not(target_arch = "x86_64"))]
fn write_32(_: RawFd, _: &[u8]) -> i32 {
    -libc::ENOSYS
}

/// 2^64 - `errno` in the 64-bit register, if the call was not to be had: the process is killed by a signal where the kernel
/// has no 32-bit entry, so ask first.
fn has_32_bit_calls() -> bool {
    let config = std::fs::read_to_string("/proc/sys/abi/vsyscall32");
    config.is_ok()
}

fn calls() -> Vec<Row> {
    vec![
        data(
            "pwritev2, RWF_APPEND",
            file,
            |c| {
                let f = c.rw("f");
                let bufs = [IoSlice::new(b"tail")];
                rustix::io::pwritev2(&f, &bufs, 0, ReadWriteFlags::APPEND).unwrap();
                Box::new(f)
            },
            F,
        ),
        data(
            "write, O_DIRECT",
            blocks,
            |c| {
                let block = Aligned::new(b'd');
                let Ok(f) = direct(c) else {
                    return unsupported();
                };
                f.write_all_at(block.block(), 3 * BLOCK as u64).unwrap();
                Box::new(f)
            },
            F,
        ),
        data(
            "io_uring write",
            file,
            |c| {
                let f = c.rw("f");
                match uring_write(&f, b"ring", 4000) {
                    None => unsupported(),
                    Some(n) => {
                        assert_eq!(n, 4);
                        Box::new(f)
                    }
                }
            },
            F,
        ),
        data(
            "io_uring write, O_DIRECT",
            blocks,
            |c| {
                let block = Aligned::new(b'd');
                let Ok(f) = direct(c) else {
                    return unsupported();
                };
                match uring_write(&f, block.block(), 5 * BLOCK as u64) {
                    None => unsupported(),
                    Some(n) => {
                        assert_eq!(n, BLOCK as i32);
                        Box::new(f)
                    }
                }
            },
            F,
        ),
        unseen_while_open(data(
            "io_submit write",
            file,
            |c| {
                let f = c.rw("f");
                aio_write(&f, b"late", 4000);
                Box::new(f)
            },
            F,
        )),
        unseen_while_open(data(
            "io_submit write, O_DIRECT",
            blocks,
            |c| {
                let block = Aligned::new(b'd');
                let Ok(f) = direct(c) else {
                    return unsupported();
                };
                aio_write(&f, block.block(), 5 * BLOCK as u64);
                Box::new(f)
            },
            F,
        )),
        data(
            "write by a 32-bit system call",
            file,
            |c| {
                let f = c.rw("f");
                if !has_32_bit_calls() {
                    return unsupported();
                }
                assert_eq!(write_32(f.as_raw_fd(), b"old"), 3);
                Box::new(f)
            },
            F,
        ),
    ]
}

/// The kernel tells fanotify and inotify nothing of it (`aio_write` of fs/aio.c), until the file is closed.
fn unseen_while_open(row: Row) -> Row {
    Row {
        fanotify: Shown::NotSeen,
        inotify: Shown::NotSeen,
        ..row
    }
}

fn fallocate(c: &Ctx, flags: FallocateFlags, offset: usize, len: usize) -> Held {
    let f = c.rw("f");
    match rfs::fallocate(&f, flags, offset as u64, len as u64) {
        Err(Errno::OPNOTSUPP) => unsupported(),
        r => {
            r.unwrap();
            Box::new(f)
        }
    }
}

fn fallocate_modes() -> Vec<Row> {
    const KEEP: FallocateFlags = FallocateFlags::KEEP_SIZE;
    vec![
        Row {
            // Nothing of it can be seen in the file.
            ..data(
                "fallocate, keep size",
                blocks,
                |c| fallocate(c, KEEP, 16 * BLOCK, 16 * BLOCK),
                F,
            )
        },
        data(
            "fallocate, collapse range",
            numbered,
            |c| fallocate(c, FallocateFlags::COLLAPSE_RANGE, 2 * BLOCK, 3 * BLOCK),
            F,
        ),
        data(
            "fallocate, insert range",
            numbered,
            |c| fallocate(c, FallocateFlags::INSERT_RANGE, 2 * BLOCK, 3 * BLOCK),
            F,
        ),
        data(
            "fallocate, zero range",
            blocks,
            |c| fallocate(c, FallocateFlags::ZERO_RANGE, 5000, 9000),
            F,
        ),
        data(
            "fallocate, zero range beyond the end",
            blocks,
            |c| fallocate(c, FallocateFlags::ZERO_RANGE, 15 * BLOCK, 4 * BLOCK),
            F,
        ),
    ]
}

/// Every block has another content, so that one that is moved shows.
fn numbered(c: &Ctx) {
    let bytes: Vec<u8> = (0..16).flat_map(|i| vec![i as u8; BLOCK]).collect();
    std::fs::write(c.p("f"), bytes).unwrap();
    settle(c);
}

fn two_of_blocks(c: &Ctx) {
    two_files(c);
    numbered(c);
    std::fs::write(c.p("g"), vec![b'y'; 16 * BLOCK]).unwrap();
}

/// `struct file_clone_range`.
#[repr(C)]
struct CloneRange {
    fd: i64,
    offset: u64,
    len: u64,
    to: u64,
}

fn clone(c: &Ctx, range: Option<CloneRange>) -> Held {
    let (f, g) = (c.rw("f"), c.rw("g"));
    let r = match range {
        // SAFETY: both descriptors are open; the request takes a descriptor as its argument.
        None => unsafe { libc::ioctl(f.as_raw_fd(), FICLONE as _, g.as_raw_fd()) },
        Some(mut range) => {
            range.fd = g.as_raw_fd().into();
            // SAFETY: `range` is laid out as the request wants it and outlives the call.
            unsafe { libc::ioctl(f.as_raw_fd(), FICLONERANGE as _, &raw const range) }
        }
    };
    if r == 0 {
        return Box::new((f, g));
    }
    let e = std::io::Error::last_os_error();
    match e.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOTTY) => unsupported(),
        _ => panic!("reflink: {e}"),
    }
}

fn clones() -> Vec<Row> {
    vec![
        data("reflink", two_of_blocks, |c| clone(c, None), F),
        data(
            "reflink of a range",
            two_of_blocks,
            |c| {
                clone(
                    c,
                    Some(CloneRange {
                        fd: 0,
                        offset: 0,
                        len: 2 * BLOCK as u64,
                        to: 7 * BLOCK as u64,
                    }),
                )
            },
            F,
        ),
        data(
            "copy_file_range, appending",
            two_of_blocks,
            |c| {
                let (f, g) = (c.rw("f"), c.rw("g"));
                copy_range(&g, 10, &f, 16 * BLOCK as u64, 5000);
                Box::new((f, g))
            },
            F,
        ),
    ]
}

/// A shared mapping; unmapped when dropped.
struct Map {
    at: *mut u8,
    len: usize,
}

impl Map {
    fn new(f: &File, len: usize) -> Map {
        // SAFETY: a new mapping chosen by the kernel.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                f.as_raw_fd(),
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        Map { at: at.cast(), len }
    }
    fn store(&self, offset: usize, byte: u8) {
        assert!(offset < self.len);
        // SAFETY: in bounds of the mapping, whose file is at least as long.
        unsafe { self.at.add(offset).write_volatile(byte) };
    }
    fn load(&self, offset: usize) -> u8 {
        assert!(offset < self.len);
        // SAFETY: as in `store`.
        unsafe { self.at.add(offset).read_volatile() }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, unmapped only here.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}

/// A mapped store shows to sensors without ranges at the close only, and on tmpfs not page by page.
fn mapping(row: Row) -> Row {
    Row {
        fanotify: Shown::NotSeen,
        inotify: Shown::NotSeen,
        exact_on_tmpfs: Shown::Named,
        ..row
    }
}

fn mappings() -> Vec<Row> {
    vec![
        mapping(data(
            "mmap stores through two mappings",
            blocks,
            |c| {
                let f = c.rw("f");
                let (a, b) = (Map::new(&f, 8 * BLOCK), Map::new(&f, 16 * BLOCK));
                a.store(10, b'a');
                b.store(11, b'b');
                b.store(9 * BLOCK, b'c');
                a.store(3 * BLOCK, b'd');
                Box::new((f, a, b))
            },
            F,
        )),
        mapping(data(
            "mmap store to a page that was read first",
            blocks,
            |c| {
                let f = c.rw("f");
                let m = Map::new(&f, 16 * BLOCK);
                assert_eq!(m.load(6 * BLOCK), b'x');
                m.store(6 * BLOCK, b'w');
                Box::new((f, m))
            },
            F,
        )),
        mapping(data(
            "mmap stores, MADV_HUGEPAGE",
            huge,
            |c| {
                let f = c.rw("f");
                let m = Map::new(&f, 4 << 20);
                // SAFETY: advice about our own mapping; where there are no huge pages it is refused, which is as well.
                unsafe { libc::madvise(m.at.cast(), m.len, libc::MADV_HUGEPAGE) };
                m.store(5 * BLOCK, b'h');
                m.store(77 * BLOCK, b'i');
                m.store(3 << 20, b'j');
                Box::new((f, m))
            },
            F,
        )),
        mapping(data(
            "mmap store of a mapping whose file is closed",
            blocks,
            |c| {
                let m = Map::new(&c.rw("f"), 16 * BLOCK);
                m.store(2 * BLOCK + 5, b'z');
                Box::new(m)
            },
            F,
        )),
        mapping(data(
            "read(2) into a shared mapping",
            two_of_blocks,
            |c| {
                let (f, g) = (c.rw("f"), c.rw("g"));
                let m = Map::new(&f, 16 * BLOCK);
                // SAFETY: the kernel writes 100 bytes inside the mapping, which no reference points into.
                let n = unsafe { libc::read(g.as_raw_fd(), m.at.add(4 * BLOCK + 50).cast(), 100) };
                assert_eq!(n, 100);
                Box::new((f, g, m))
            },
            F,
        )),
        data(
            "O_TRUNC through a symbolic link",
            |c| {
                file(c);
                std::os::unix::fs::symlink("f", c.p("l")).unwrap();
            },
            |c| {
                let flags = OFlags::TRUNC | OFlags::WRONLY;
                Box::new(rfs::open(c.p("l"), flags, rfs::Mode::empty()).unwrap())
            },
            F,
        ),
    ]
}
