//! The file modification message: what a sensor says happened.

use crate::{BytePath, Extent, FileId, Name, Timestamp};
use serde::{Deserialize, Serialize};

/// One file modification message. Has at least the file's path (directory and name); a rename has both.
///
/// A message is a hint of what to look at, the tree itself is the truth: one message too many costs a
/// `statx`, and messages may come late or twice. What must hold is that nothing changes without one (see
/// [`Guarantee`]), or that an [`ChangeOp::Overflow`] names where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// When the sensor read it (the kernel's own time where it gives one).
    pub time: Timestamp,
    /// Path as the sensor knew it at that time, for people, filters and backup commands.
    pub path: BytePath,
    /// The directory that holds the name. Identity, so that a rename of a directory above changes nothing.
    pub dir: FileId,
    /// The name in that directory; `None` when the message is about `dir` itself ([`ChangeOp::Subtree`]).
    pub name: Option<Name>,
    /// The file itself, where the sensor knows it.
    pub file: Option<FileId>,
    /// What happened.
    pub op: ChangeOp,
}

/// What happened to a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeOp {
    /// The name appeared: create, mkdir, mknod, symlink, link.
    Create,
    /// The name disappeared.
    Delete,
    /// The name went to another place, over whatever was there.
    Rename {
        /// Path of the new name.
        to_path: BytePath,
        /// Directory of the new name.
        to_dir: FileId,
        /// The new name.
        to_name: Name,
    },
    /// Bytes were written. `None`: the sensor does not know which.
    Write(Option<Extent>),
    /// The size was set.
    Truncate(u64),
    /// Mode, owner, times, xattr or ACL.
    Attrib,
    /// Anything at and below this directory may have changed: first backup, catch-up, collapse.
    Subtree,
    /// The sensor lost messages: anything at and below this directory may have changed.
    Overflow,
    /// A shared mapping of these bytes has become writable: stores may have changed them, now or later. Who reads them
    /// starts their writeback first, so that the next store is told of again. `None`: no writeback tells of later
    /// stores (tmpfs); the whole file may have changed.
    Mapped(Option<Extent>),
}

/// What a sensor promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guarantee {
    /// Reports the bytes that changed.
    pub extents: bool,
    /// Sees stores through shared mappings when they happen (else at the close, or not at all).
    pub mmap: bool,
    /// Goes on recording while the daemon is away.
    pub persists: bool,
}

impl Change {
    /// One line for people: operation, path, extent.
    pub fn describe(&self) -> String {
        let p = &self.path;
        match &self.op {
            ChangeOp::Create => format!("create   {p}"),
            ChangeOp::Delete => format!("delete   {p}"),
            ChangeOp::Rename { to_path, .. } => format!("rename   {p} -> {to_path}"),
            ChangeOp::Write(None) => format!("write    {p}"),
            ChangeOp::Write(Some(e)) => format!("write    {p} [{}..{}]", e.offset, e.end()),
            ChangeOp::Truncate(n) => format!("truncate {p} to {n}"),
            ChangeOp::Attrib => format!("attrib   {p}"),
            ChangeOp::Subtree => format!("compare  {p}/"),
            ChangeOp::Overflow => format!("overflow {p}/"),
            ChangeOp::Mapped(None) => format!("mmap     {p}"),
            ChangeOp::Mapped(Some(e)) => format!("mmap     {p} [{}..{}]", e.offset, e.end()),
        }
    }
}
