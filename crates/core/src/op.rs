//! The operations of the log. Index (at the source), catalog and mirror (at the vault) are all projections
//! of one sequence of batches of these.
//!
//! A batch applies as a whole: between its first operation and its [`Commit`] names may be crossed (an exchange is two
//! `Name`s), and only the state at the commit counts.

use crate::meta::BadMeta;
use crate::{BatchSeq, Epoch, Meta, Name, NodeId, Origin, Timestamp};
use serde::{Deserialize, Serialize};

/// One operation. Set semantics throughout: applying one twice changes nothing more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// The node exists and has these attributes. For a file, content at and beyond `meta.size` is cut off;
    /// growth is a hole until written.
    Node {
        /// Which.
        node: NodeId,
        /// All its attributes.
        meta: Meta,
        /// Where the source read it.
        origin: Origin,
        /// The source saw the file change while it was being read: another version follows.
        unsettled: bool,
    },
    /// `name` in `parent` is `node`; whatever had the name loses it.
    Name {
        /// Directory.
        parent: NodeId,
        /// Component.
        name: Name,
        /// What it names.
        node: NodeId,
    },
    /// Nothing in `parent` has this name any more. A node that has lost its last name at the commit is gone,
    /// a directory with all that is below it.
    Unname {
        /// Directory.
        parent: NodeId,
        /// Component.
        name: Name,
    },
    /// Bytes `offset .. offset + len` of `node` are those of block `block` of this batch (counted from 0)
    /// starting at `block_offset`.
    Write {
        /// File.
        node: NodeId,
        /// First byte in the file.
        offset: u64,
        /// Bytes; at least 1, at most [`crate::limits::BLOCK_RAW_BYTES`].
        len: u32,
        /// Block record of this batch.
        block: u32,
        /// First byte in the raw block.
        block_offset: u32,
    },
    /// Bytes `offset .. offset + len` of `node` are a hole.
    Hole {
        /// File.
        node: NodeId,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Bytes `offset .. offset + len` of `node` are those of `from` at `from_offset`, as they stand at this
    /// point of the batch. Costs no data.
    Copy {
        /// File written.
        node: NodeId,
        /// First byte written.
        offset: u64,
        /// Bytes.
        len: u64,
        /// File read; may not be named any more (staged), must not be the same range of `node` itself.
        from: NodeId,
        /// First byte read.
        from_offset: u64,
    },
    /// A staged node (one that never got a name) is no longer needed.
    Drop {
        /// Which.
        node: NodeId,
    },
    /// Every name below the root is gone: first operation of a new [`Epoch`].
    Clear,
}

impl Op {
    /// Checks the bounds that the type does not hold. `blocks`: raw sizes of the batch's blocks.
    pub fn check(&self, blocks: &[u32]) -> Result<(), BadOp> {
        match self {
            Op::Node { node, meta, .. } => {
                if *node == NodeId::ROOT {
                    return Err(BadOp::Root);
                }
                meta.check().map_err(BadOp::Meta)
            }
            Op::Name { node, .. } if *node == NodeId::ROOT => Err(BadOp::Root),
            Op::Write {
                offset,
                len,
                block,
                block_offset,
                ..
            } => {
                let raw = *blocks.get(*block as usize).ok_or(BadOp::NoBlock(*block))?;
                let inside = u64::from(*block_offset) + u64::from(*len) <= u64::from(raw);
                range(*offset, u64::from(*len))
                    .then_some(())
                    .filter(|()| inside)
                    .ok_or(BadOp::Range)
            }
            Op::Hole { offset, len, .. } => range(*offset, *len).then_some(()).ok_or(BadOp::Range),
            Op::Copy {
                offset,
                len,
                from_offset,
                ..
            } => (range(*offset, *len) && range(*from_offset, *len))
                .then_some(())
                .ok_or(BadOp::Range),
            _ => Ok(()),
        }
    }
}

fn range(offset: u64, len: u64) -> bool {
    len > 0
        && offset
            .checked_add(len)
            .is_some_and(|e| e <= i64::MAX as u64)
}

/// Why an [`Op`] was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadOp {
    /// See [`Meta::check`].
    #[error(transparent)]
    Meta(BadMeta),
    /// An empty range, one beyond the largest file, or one outside its block.
    #[error("byte range out of bounds")]
    Range,
    /// The batch has no such block.
    #[error("no block {0} in this batch")]
    NoBlock(u32),
    /// The root directory is not the source's to change.
    #[error("operation on the root directory")]
    Root,
}

/// Ends a batch. Its record is written last; a batch without it never happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// Position in the source's log at this vault: the one before plus 1.
    pub seq: BatchSeq,
    /// The index that made it.
    pub epoch: Epoch,
    /// Wall time at the source when the batch was closed; never earlier than the batch's before.
    pub time: Timestamp,
    /// Nothing was pending at the source when the batch was closed: the tree at this point is exactly
    /// the source's.
    pub clean: bool,
    /// `Op`s in the batch.
    pub ops: u64,
    /// Block records in the batch.
    pub blocks: u64,
    /// Node ids below this are used up.
    pub next_node: NodeId,
    /// BLAKE3 over the previous batch's chain and the payload hashes of this batch's `Block` and `Ops`
    /// records in order: a log with a batch changed, missing or from elsewhere does not link up.
    pub chain: [u8; 32],
}

/// Computes [`Commit::chain`] record by record.
#[derive(Clone, Debug)]
pub struct Chain(blake3::Hasher);

impl Chain {
    /// Starts a batch behind `previous` (zeros for the first).
    pub fn new(previous: &[u8; 32]) -> Self {
        let mut h = blake3::Hasher::new_derive_key("farwrite 2026 batch chain v1");
        h.update(previous);
        Chain(h)
    }

    /// Adds a record's payload hash.
    pub fn add(&mut self, payload_hash: &[u8; 16]) {
        self.0.update(payload_hash);
    }

    /// The batch's chain value.
    pub fn finish(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}
