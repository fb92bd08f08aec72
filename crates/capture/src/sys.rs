//! System calls that have no safe wrapper, and the small facts around them. All `unsafe` of the project is here.

use farwrite_core::{Extent, FileId};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Most bytes of a file handle (`MAX_HANDLE_SZ` of name_to_handle_at(2)).
pub(crate) const HANDLE_BYTES: usize = 128;

/// Device and inode number out of a `stat`.
pub(crate) fn file_id(stat: &rustix::fs::Stat) -> FileId {
    FileId {
        dev: stat.st_dev,
        ino: stat.st_ino,
    }
}

/// `struct file_handle` with room for the largest handle.
#[repr(C)]
struct FileHandle {
    bytes: u32,
    kind: i32,
    data: [u8; HANDLE_BYTES],
}

const _: () = assert!(std::mem::offset_of!(FileHandle, data) == 8);

/// fanotify_init(2).
pub(crate) fn fanotify_init(flags: u32) -> io::Result<OwnedFd> {
    let event_flags = (libc::O_RDONLY | libc::O_CLOEXEC | libc::O_LARGEFILE) as u32;
    // SAFETY: takes two integers and touches no memory of ours.
    let fd = unsafe { libc::fanotify_init(flags, event_flags) };
    owned(fd.into())
}

/// fanotify_mark(2) on the object that `at` refers to.
pub(crate) fn fanotify_mark(
    group: BorrowedFd<'_>,
    flags: u32,
    mask: u64,
    at: BorrowedFd<'_>,
) -> io::Result<()> {
    // SAFETY: both descriptors are open for the length of the call; a null path names `at` itself.
    let r = unsafe {
        libc::fanotify_mark(
            group.as_raw_fd(),
            flags,
            mask,
            at.as_raw_fd(),
            std::ptr::null(),
        )
    };
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// open_by_handle_at(2): opens the file that the handle names, as seen through the mount that `mount` is
/// on. `mount` must not be an `O_PATH` descriptor.
pub(crate) fn open_by_handle(
    mount: BorrowedFd<'_>,
    kind: i32,
    handle: &[u8],
    flags: i32,
) -> io::Result<OwnedFd> {
    let mut h = FileHandle {
        bytes: handle.len() as u32,
        kind,
        data: [0; HANDLE_BYTES],
    };
    let Some(room) = h.data.get_mut(..handle.len()) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    room.copy_from_slice(handle);
    // SAFETY: `h` is laid out as `struct file_handle`, `h.bytes` is at most the size of `h.data`, and it outlives the
    // call, which only reads it.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            &raw const h,
            flags | libc::O_CLOEXEC,
        )
    };
    owned(fd)
}

/// name_to_handle_at(2) on an open file: type and bytes of its handle, and the id of the mount.
pub(crate) fn handle_of(fd: BorrowedFd<'_>) -> io::Result<(i32, Vec<u8>, i32)> {
    let mut h = FileHandle {
        bytes: HANDLE_BYTES as u32,
        kind: 0,
        data: [0; HANDLE_BYTES],
    };
    let mut mount_id: libc::c_int = 0;
    // SAFETY: `h` is laid out as `struct file_handle` and `h.bytes` says how much room there is; the path is a
    // NUL-terminated constant; `mount_id` is written by the call only.
    let r = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            fd.as_raw_fd(),
            c"".as_ptr(),
            &raw mut h,
            &raw mut mount_id,
            libc::AT_EMPTY_PATH,
        )
    };
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    let len = (h.bytes as usize).min(HANDLE_BYTES);
    Ok((h.kind, h.data[..len].to_vec(), mount_id))
}

/// `FS_IOC_GETVERSION` of ioctl(2): declared to give a `long`, and gives an `int`.
#[cfg(feature = "ebpf")]
const FS_IOC_GETVERSION: u32 = 0x8008_7601;

/// The generation of an inode: another one if its number is given to another file. Not every filesystem tells.
#[cfg(feature = "ebpf")]
pub(crate) fn generation_of(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut answer = [0u32; 2];
    // SAFETY: `answer` has room for a `long`, and outlives the call.
    let r = unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_GETVERSION as _, answer.as_mut_ptr()) };
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(answer[0])
}

/// `f_fsid` of the filesystem, as fanotify puts it into its events.
pub(crate) fn fsid_of(fd: BorrowedFd<'_>) -> io::Result<[u8; 8]> {
    let mut st = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: `st` has room for a `struct statfs`; the descriptor is open.
    if unsafe { libc::fstatfs(fd.as_raw_fd(), st.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all zeros is a valid `statfs`, and the call has filled it in.
    let st = unsafe { st.assume_init() };
    let fsid = &raw const st.f_fsid;
    assert!(size_of_val(&st.f_fsid) >= 8, "f_fsid is two 32-bit numbers");
    // SAFETY: `f_fsid` is plain integers (its type differs between C libraries) and at least 8 bytes long, asserted above.
    Ok(unsafe { fsid.cast::<[u8; 8]>().read_unaligned() })
}

/// Starts writeback of a range of a file's dirty pages, after any that is under way (sync_file_range(2)); does not wait
/// for its end. The pages are write-protected again: a later store through a shared mapping faults, and is seen.
pub fn start_writeback(fd: BorrowedFd<'_>, extent: Extent) -> io::Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE;
    // A length of 0 means "to the end of the file".
    let (offset, len) = match i64::try_from(extent.offset) {
        Ok(offset) => (offset, i64::try_from(extent.len).unwrap_or(0)),
        Err(_) => return Ok(()),
    };
    if extent.len == 0 {
        return Ok(());
    }
    let len = if offset.checked_add(len).is_none() {
        0
    } else {
        len
    };
    // SAFETY: takes a descriptor, open for the length of the call, and three numbers.
    if unsafe { libc::sync_file_range(fd.as_raw_fd(), offset, len, flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The magic link of an open descriptor.
pub(crate) fn proc_path(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_longer_than_any_is_refused_before_the_kernel_sees_it() {
        let dir = std::fs::File::open(".").unwrap();
        let e = open_by_handle(dir.as_fd(), 1, &[0; HANDLE_BYTES + 1], libc::O_PATH).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::EINVAL));
    }
}
