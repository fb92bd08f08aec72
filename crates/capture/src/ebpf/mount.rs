//! Which filesystem a directory is on: its type, and the device number of its super block, which on btrfs is another than
//! stat(2) gives.

use crate::WatchRoot;
use rustix::fs::{AtFlags, OFlags, StatxFlags};
use std::io;
use std::os::fd::OwnedFd;

/// A root's directory, held open, and what it is on.
#[derive(Debug)]
pub(super) struct Mounted {
    /// Keeps the directory's name in the kernel, so that its removal is seen.
    pub dir: OwnedFd,
    /// As in `/proc/self/mountinfo`.
    pub fs_type: String,
    /// Of the super block, in the kernel's encoding.
    pub sb_dev: u32,
}

/// Looks the root up; `NotFound` if it is no longer the directory that it was.
pub(super) fn of(root: &WatchRoot) -> io::Result<Mounted> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    let dir = rustix::fs::open(root.path.as_path(), flags, rustix::fs::Mode::empty())?;
    if crate::sys::file_id(&rustix::fs::fstat(&dir)?) != root.id {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "another directory is there now",
        ));
    }
    let statx = rustix::fs::statx(&dir, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    let mounts = std::fs::read("/proc/self/mountinfo")?;
    let (fs_type, sb_dev) = find(&mounts, statx.stx_mnt_id)
        .ok_or_else(|| io::Error::other("its mount is not in /proc/self/mountinfo"))?;
    Ok(Mounted {
        dir,
        fs_type,
        sb_dev,
    })
}

/// Type and device of the mount with that id (proc_pid_mountinfo(5)).
fn find(mountinfo: &[u8], id: u64) -> Option<(String, u32)> {
    let id = id.to_string();
    mountinfo.split(|b| *b == b'\n').find_map(|line| {
        let mut fields = line.split(|b| *b == b' ');
        if fields.next()? != id.as_bytes() {
            return None;
        }
        let dev = std::str::from_utf8(fields.nth(1)?).ok()?;
        let (major, minor) = dev.split_once(':')?;
        let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
        let fs_type = fields.skip_while(|f| *f != b"-").nth(1)?;
        Some((
            String::from_utf8_lossy(fs_type).into_owned(),
            major << 20 | minor,
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_id() {
        let text = b"22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n\
            23 22 0:21 / /odd\\040name rw shared:5 master:2 - btrfs none rw\n\
            24 22 0:22 / /x rw - tmpfs - rw\n";
        assert_eq!(find(text, 22), Some(("ext4".into(), 254 << 20 | 1)));
        assert_eq!(find(text, 23), Some(("btrfs".into(), 21)));
        assert_eq!(find(text, 24), Some(("tmpfs".into(), 22)));
        assert_eq!(find(text, 2), None);
    }

    #[test]
    fn the_root_directory_is_on_something() {
        let root = WatchRoot::lookup(farwrite_core::BytePath::root()).unwrap();
        let m = of(&root).unwrap();
        assert!(!m.fs_type.is_empty());
        let mut wrong = root;
        wrong.id.ino += 1;
        assert_eq!(of(&wrong).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
