//! What statx(2) says about a file.

use farwrite_core::{FileId, Kind, Origin, Timestamp};
use rustix::fs::{AtFlags, FileType, Statx, StatxFlags, StatxTimestamp, makedev, statx};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

/// Identity, kind and attributes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Device and inode number.
    pub id: FileId,
    /// What it is.
    pub kind: Kind,
    /// `st_mode & 0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names that the inode has.
    pub nlink: u32,
    /// `st_size`, of whatever kind.
    pub size: u64,
    /// 512-byte units that are allocated.
    pub blocks: u64,
    /// Device number of a device node, else 0.
    pub rdev: u64,
    /// Last modification.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Birth; zero where the filesystem has none.
    pub btime: Timestamp,
    /// It is the root of a mount.
    pub mount_root: bool,
}

impl Stat {
    /// Of `name` in `dir`, not following a symbolic link; an empty name means `dir` itself.
    pub(crate) fn at(dir: impl AsFd, name: &Path) -> io::Result<Stat> {
        let mut flags =
            AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_SYNC_AS_STAT;
        if name.as_os_str().is_empty() {
            flags |= AtFlags::EMPTY_PATH;
        }
        Ok(Self::from(&statx(
            dir,
            name,
            flags,
            StatxFlags::BASIC_STATS | StatxFlags::BTIME,
        )?))
    }

    /// Of an open file.
    pub fn of(fd: impl AsFd) -> io::Result<Stat> {
        Self::at(fd, Path::new(""))
    }

    /// Bytes of content: the size of a regular file, 0 of anything else.
    pub fn content_bytes(&self) -> u64 {
        if self.kind == Kind::File {
            self.size
        } else {
            0
        }
    }

    /// What the log keeps of where the file stood.
    pub fn origin(&self, slot: u32) -> Origin {
        Origin {
            slot,
            ino: self.id.ino,
            btime: self.btime,
            ctime: self.ctime,
        }
    }
}

const STATX_ATTR_MOUNT_ROOT: u64 = 0x2000;

impl From<&Statx> for Stat {
    fn from(s: &Statx) -> Self {
        let raw = u32::from(s.stx_mode);
        let kind = match FileType::from_raw_mode(raw) {
            FileType::Directory => Kind::Dir,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::CharacterDevice => Kind::Char,
            FileType::BlockDevice => Kind::Block,
            _ => Kind::File,
        };
        let device = matches!(kind, Kind::Char | Kind::Block);
        Stat {
            id: FileId {
                dev: makedev(s.stx_dev_major, s.stx_dev_minor),
                ino: s.stx_ino,
            },
            kind,
            mode: raw & 0o7777,
            uid: s.stx_uid,
            gid: s.stx_gid,
            nlink: s.stx_nlink,
            size: s.stx_size,
            blocks: s.stx_blocks,
            rdev: if device {
                makedev(s.stx_rdev_major, s.stx_rdev_minor)
            } else {
                0
            },
            mtime: timestamp(&s.stx_mtime),
            ctime: timestamp(&s.stx_ctime),
            btime: timestamp(&s.stx_btime),
            mount_root: s.stx_attributes.bits() & STATX_ATTR_MOUNT_ROOT != 0,
        }
    }
}

fn timestamp(t: &StatxTimestamp) -> Timestamp {
    Timestamp {
        sec: t.tv_sec,
        nsec: t.tv_nsec,
    }
}
