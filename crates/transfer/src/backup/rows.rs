//! What the index keeps of one node, and how a batch's changes to it are taken back.

use farwrite_core::{Kind, Meta, Name, NodeId, Origin};
use farwrite_fs::Stat;
use serde::{Deserialize, Serialize};

/// Properties of a [`NodeRow`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFlags(u8);

impl NodeFlags {
    /// Read so soon after its last change that another change within the same clock tick would not show in
    /// its times.
    pub const RACY: NodeFlags = NodeFlags(1);
    /// What was sent may not be what is there: the file changed while it was read, or has not been found.
    pub const SUSPECT: NodeFlags = NodeFlags(2);
    /// The block checksums describe exactly what was sent.
    pub const SUMS: NodeFlags = NodeFlags(4);
    /// Holds the first part of a large transfer; has no name.
    pub const STAGED: NodeFlags = NodeFlags(8);

    /// The vault was told that another version follows, since the file changed while it was read.
    pub const UNSETTLED: NodeFlags = NodeFlags(16);

    /// The last look read only what a sensor had told of: the times are newer than what is known of the rest, whose messages
    /// may be on their way.
    pub const PARTIAL: NodeFlags = NodeFlags(32);

    /// Are all of these set?
    pub fn has(self, f: NodeFlags) -> bool {
        self.0 & f.0 == f.0
    }

    /// With these set or cleared.
    #[must_use]
    pub fn with(self, f: NodeFlags, on: bool) -> NodeFlags {
        NodeFlags(if on { self.0 | f.0 } else { self.0 & !f.0 })
    }
}

/// What was last sent of a node, and where it stood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    /// As sent.
    pub meta: Meta,
    /// As read.
    pub origin: Origin,
    /// See [`NodeFlags`].
    pub flags: NodeFlags,
    /// Checksum of a small file's whole content (with [`NodeFlags::SUMS`]).
    pub sum: [u8; 16],
}

impl NodeRow {
    /// Is it the same file (not only the same inode number)?
    pub fn is(&self, slot: u32, stat: &Stat) -> bool {
        self.origin.slot == slot
            && self.origin.ino == stat.id.ino
            && self.meta.kind == stat.kind
            && self.origin.btime == stat.btime
    }

    /// Do times and sizes say that nothing has changed since it was read?
    pub fn unchanged(&self, stat: &Stat) -> bool {
        self.origin.ctime == stat.ctime
            && self.meta.mtime == stat.mtime
            && self.meta.size == stat.content_bytes()
            && !self.flags.has(NodeFlags::RACY)
            && !self.flags.has(NodeFlags::PARTIAL)
            && !self.flags.has(NodeFlags::SUSPECT)
    }

    /// A directory row.
    pub fn is_dir(&self) -> bool {
        self.meta.kind == Kind::Dir
    }
}

/// One thing to take back, newest last.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Undo {
    Node(NodeId, Option<serde_bytes::ByteBuf>),
    Name(NodeId, Name, Option<NodeId>),
    Sums(NodeId, u64, Option<serde_bytes::ByteBuf>),
    /// Too many to keep: the checksums of this node become unknown.
    ForgetSums(NodeId),
}
