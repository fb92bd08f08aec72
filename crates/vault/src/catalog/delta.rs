//! What batches changed, for a mirror to follow. It must never say more than the catalog: what it leaves out is asked for there.

use crate::segment::Place;
use farwrite_core::history::BlockExtent;
use farwrite_core::{Extent, ExtentSet, Kind, Meta, Name, NodeId};
use std::collections::HashMap;

/// New nodes that a delta describes, and those of which it knows where they are, or that they are gone.
pub(super) const NODES_KEPT: usize = 20_000;
/// Ranges of one file that a delta keeps apart.
const DELTA_RANGES: usize = 256;

/// What batches changed in the present tree: what a mirror has to look at.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// Names that are now something else, or nothing. In a directory that is gone only those of nodes that live on
    /// elsewhere are sure to be here, and [`NamesNode::after`] is not to be relied upon.
    pub names: HashMap<(NodeId, Name), NamesNode>,
    /// Nodes that are new or have other attributes or content; `true`: they did not exist before.
    pub nodes: HashMap<NodeId, bool>,
    /// Nodes that did not exist before, as the catalog has them now: some, so that it need not be asked.
    pub made: HashMap<NodeId, Made>,
    /// Where nodes that lost a name are now, if that is one place: of some, so that the catalog need not be asked.
    pub moved: HashMap<NodeId, OnlyPlace>,
    /// Nodes that are gone; `true`: a directory. Also of some.
    pub ended: HashMap<NodeId, bool>,
    /// Ranges of files with other bytes.
    pub content: HashMap<NodeId, ExtentSet>,
    /// A new epoch began: nothing that was there before is there.
    pub cleared: bool,
}

/// A node that did not exist before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Its attributes.
    pub meta: Meta,
    /// Its content.
    pub content: Content,
}

/// What is known of the content of a new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing was written to it: whatever its size, it is a hole. So is what is no file.
    Hole,
    /// This was written to it, out of the block at this place, and nothing else. It does not reach beyond the file's size.
    Piece(BlockExtent, Place),
    /// The catalog has to be asked.
    Unknown,
}

impl Made {
    /// Something happens to the content: a first piece is known, and all that may follow on it is not.
    pub(super) fn changes(&mut self, first: Option<(BlockExtent, Place)>) {
        self.content = match (self.content, first) {
            (Content::Hole, Some((extent, place))) => Content::Piece(extent, place),
            _ => Content::Unknown,
        };
    }
}

/// What a name was before the first of the batches, and what it is after the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamesNode {
    /// Before.
    pub before: Option<NodeId>,
    /// After.
    pub after: Option<NodeId>,
}

/// The only place of a node that had another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnlyPlace {
    /// The directory.
    pub parent: NodeId,
    /// Its name there.
    pub name: Name,
    /// What it is.
    pub kind: Kind,
}

impl Delta {
    /// Adds what a later batch changed, that has ended these nodes; `true`: a directory.
    pub(super) fn merge(&mut self, later: Delta, ended: Vec<(NodeId, bool)>) {
        for (key, change) in later.names {
            for node in change.before.into_iter().chain(change.after) {
                self.moved.remove(&node);
            }
            self.name(key, change);
        }
        if later.cleared {
            self.made.clear();
            self.moved.clear();
            self.ended.clear();
        }
        for (node, dir) in ended {
            self.nodes.remove(&node);
            self.made.remove(&node);
            self.moved.remove(&node);
            self.content.remove(&node);
            if self.ended.len() < NODES_KEPT {
                self.ended.insert(node, dir);
            }
        }
        // One that has ended may be there again, as another: then it is a new one here.
        for (node, new) in later.nodes {
            self.made.remove(&node);
            self.ended.remove(&node);
            self.nodes.entry(node).or_insert(new);
        }
        let room = NODES_KEPT.saturating_sub(self.made.len());
        self.made.extend(later.made.into_iter().take(room));
        let room = NODES_KEPT.saturating_sub(self.moved.len());
        self.moved.extend(later.moved.into_iter().take(room));
        self.cleared |= later.cleared;
        for (node, ranges) in later.content {
            self.content
                .entry(node)
                .or_default()
                .merge(&ranges, DELTA_RANGES);
        }
    }

    pub(super) fn name(&mut self, key: (NodeId, Name), change: NamesNode) {
        self.names.entry(key).or_insert(change).after = change.after;
    }

    pub(super) fn range(&mut self, node: NodeId, e: Extent) {
        self.content
            .entry(node)
            .or_default()
            .insert(e, DELTA_RANGES);
    }
}
