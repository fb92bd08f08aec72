//! What a node is besides its bytes and its names.

use crate::{Timestamp, limits};
use serde::{Deserialize, Serialize};

/// What sort of file a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Unix-domain socket.
    Socket,
    /// Character device.
    Char,
    /// Block device.
    Block,
}

/// Attributes of a node: all that a restore sets besides the content.
///
/// POSIX ACLs are the xattrs `system.posix_acl_access` and `system.posix_acl_default` in the kernel's own
/// encoding (acl(5)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// What it is.
    pub kind: Kind,
    /// Permission bits with suid, sgid and sticky: `st_mode & 0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Timestamp,
    /// Bytes of a regular file; 0 for every other kind.
    pub size: u64,
    /// Device number (`st_rdev`) of a device node; 0 for every other kind.
    pub rdev: u64,
    /// Target of a symbolic link; empty for every other kind.
    #[serde(with = "serde_bytes")]
    pub target: Vec<u8>,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<Xattr>,
}

/// One extended attribute (xattr(7)).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Xattr {
    /// Name with its namespace: `user.x`, `security.y`.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// Any bytes.
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
}

/// Where a node stood at the source when it was read. Kept in the log so that a source that lost its
/// index can build it anew from the vault; a restore never uses it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Which protected directory, by its number in the source's index.
    pub slot: u32,
    /// Inode number.
    pub ino: u64,
    /// Birth time, zero where the filesystem has none.
    pub btime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
}

/// Why a [`Meta`] from the wire or the disk was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("attributes out of bounds: {0}")]
pub struct BadMeta(pub &'static str);

impl Meta {
    /// A directory of mode 0755, owned by root: the parents of a protected directory.
    pub fn plain_dir() -> Meta {
        Meta {
            kind: Kind::Dir,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            size: 0,
            rdev: 0,
            target: Vec::new(),
            xattrs: Vec::new(),
        }
    }

    /// Checks every bound; to be called on what comes from outside before it is used.
    pub fn check(&self) -> Result<(), BadMeta> {
        let bad = |s| Err(BadMeta(s));
        if self.mode & !0o7777 != 0 {
            return bad("mode beyond 07777");
        }
        if self.mtime.nsec >= 1_000_000_000 {
            return bad("mtime nanoseconds");
        }
        if self.kind != Kind::File && self.size != 0 {
            return bad("a size on something that is not a file");
        }
        if self.size > i64::MAX as u64 {
            return bad("file size");
        }
        let link = self.kind == Kind::Symlink;
        if link == self.target.is_empty()
            || self.target.len() > limits::TARGET_BYTES
            || self.target.contains(&0)
        {
            return bad("symbolic link target");
        }
        let (mut list, mut total) = (0, 0);
        for x in &self.xattrs {
            if x.name.is_empty() || x.name.len() > limits::NAME_BYTES || x.name.contains(&0) {
                return bad("xattr name");
            }
            list += x.name.len() + 1;
            total += x.name.len() + x.value.len();
        }
        if list > limits::XATTR_LIST_BYTES || total > limits::XATTR_BYTES {
            return bad("xattrs too large");
        }
        if !self.xattrs.is_sorted_by(|a, b| a.name <= b.name) {
            return bad("xattrs out of order");
        }
        Ok(())
    }
}
