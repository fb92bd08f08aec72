//! The log's meaning in the plainest code: what index, catalog and mirror must agree with.

use crate::snapshot::{Snapshot, SnapshotEntry};
use farwrite_core::codec::{decode_commit, decode_ops};
use farwrite_core::op::Chain;
use farwrite_core::record::{Record, RecordKind};
use farwrite_core::{BatchSeq, BytePath, Commit, Kind, Meta, Name, NodeId, Op};
use std::collections::{BTreeMap, HashMap, HashSet};

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Model {
    nodes: HashMap<NodeId, (Meta, Vec<u8>)>,
    names: BTreeMap<(NodeId, Name), NodeId>,
    /// Nodes that have had a name.
    named: HashSet<NodeId>,
    /// Last commit.
    pub last: Option<Commit>,
    pending_ops: Vec<Op>,
    pending_blocks: Vec<Vec<u8>>,
    chain: Option<Chain>,
    /// Bytes of all records taken.
    pub bytes: u64,
    /// `Write` bytes taken.
    pub written: u64,
}

impl Model {
    /// Takes one record; applies the batch at its commit.
    ///
    /// # Panics
    /// If the record breaks a rule of the log.
    pub fn take(&mut self, record: &Record) -> Option<Commit> {
        self.bytes += record.header.total_bytes();
        let last = self.last.as_ref().map_or([0; 32], |c| c.chain);
        let chain = self.chain.get_or_insert_with(|| Chain::new(&last));
        match record.header.kind {
            RecordKind::Block => {
                chain.add(&record.header.hash);
                self.pending_blocks
                    .push(record.decode().expect("a whole block").to_vec());
                None
            }
            RecordKind::Ops => {
                chain.add(&record.header.hash);
                self.pending_ops
                    .extend(decode_ops(record).expect("whole operations"));
                None
            }
            RecordKind::Commit => {
                let commit = decode_commit(record).expect("a whole commit");
                assert_eq!(
                    commit.seq,
                    self.last.as_ref().map_or(BatchSeq(1), |c| c.seq.next()),
                    "batches follow each other"
                );
                assert_eq!(commit.chain, chain.finish(), "the chain links up");
                assert_eq!(commit.ops, self.pending_ops.len() as u64);
                assert_eq!(commit.blocks, self.pending_blocks.len() as u64);
                assert!(
                    self.last.as_ref().is_none_or(|l| l.time <= commit.time),
                    "time does not go back"
                );
                self.apply();
                self.chain = None;
                self.last = Some(commit.clone());
                Some(commit)
            }
            other => panic!("{other:?} in a log"),
        }
    }

    fn apply(&mut self) {
        let blocks = std::mem::take(&mut self.pending_blocks);
        let raw: Vec<u32> = blocks.iter().map(|b| b.len() as u32).collect();
        for op in std::mem::take(&mut self.pending_ops) {
            op.check(&raw).unwrap_or_else(|e| panic!("{e}: {op:?}"));
            self.apply_op(op, &blocks);
        }
        loop {
            let alive: HashSet<NodeId> = self.names.values().copied().collect();
            let dead: Vec<NodeId> = self
                .nodes
                .keys()
                .filter(|n| self.named.contains(n) && !alive.contains(n))
                .copied()
                .collect();
            if dead.is_empty() {
                break;
            }
            for n in dead {
                self.nodes.remove(&n);
                self.names.retain(|(p, _), _| *p != n);
            }
        }
    }

    fn apply_op(&mut self, op: Op, blocks: &[Vec<u8>]) {
        match op {
            Op::Node { node, meta, .. } => {
                let content = self.nodes.remove(&node).map(|(_, c)| c).unwrap_or_default();
                let mut content = content;
                content.resize(meta.size as usize, 0);
                self.nodes.insert(node, (meta, content));
            }
            Op::Name { parent, name, node } => {
                let is_dir = |n: NodeId| {
                    n == NodeId::ROOT || self.nodes.get(&n).is_some_and(|x| x.0.kind == Kind::Dir)
                };
                assert!(is_dir(parent), "{name} in {parent}, which is no directory");
                assert!(self.nodes.contains_key(&node), "{name} names nothing");
                if is_dir(node) {
                    let other = self
                        .names
                        .iter()
                        .find(|((p, n), v)| **v == node && (*p, n) != (parent, &name));
                    assert!(other.is_none(), "directory {name} with two names");
                    let mut at = parent;
                    while at != NodeId::ROOT {
                        assert_ne!(at, node, "{name} below itself");
                        // A directory may be without a name in the middle of a batch.
                        match self.names.iter().find(|(_, v)| **v == at) {
                            Some(((p, _), _)) => at = *p,
                            None => break,
                        }
                    }
                }
                self.named.insert(node);
                self.names.insert((parent, name), node);
            }
            Op::Unname { parent, name } => {
                self.names.remove(&(parent, name));
            }
            Op::Write {
                node,
                offset,
                len,
                block,
                block_offset,
            } => {
                let from =
                    &blocks[block as usize][block_offset as usize..(block_offset + len) as usize];
                self.written += u64::from(len);
                let content = &mut self.nodes.get_mut(&node).expect("a node").1;
                content[offset as usize..offset as usize + len as usize].copy_from_slice(from);
            }
            Op::Hole { node, offset, len } => {
                let content = &mut self.nodes.get_mut(&node).expect("a node").1;
                content[offset as usize..(offset + len) as usize].fill(0);
            }
            Op::Copy {
                node,
                offset,
                len,
                from,
                from_offset,
            } => {
                let bytes = self.nodes[&from].1[from_offset as usize..(from_offset + len) as usize]
                    .to_vec();
                let content = &mut self.nodes.get_mut(&node).expect("a node").1;
                content[offset as usize..(offset + len) as usize].copy_from_slice(&bytes);
            }
            Op::Drop { node } => {
                assert!(!self.named.contains(&node), "drop of a named node");
                self.nodes.remove(&node);
            }
            Op::Clear => self.names.clear(),
        }
    }

    /// Nodes, named or staged.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// The tree below an absolute path, as a snapshot.
    pub fn snapshot(&self, top: &BytePath) -> Option<Snapshot> {
        let mut at = NodeId::ROOT;
        for n in top.names() {
            at = *self.names.get(&(at, n))?;
        }
        let mut out = BTreeMap::new();
        let mut by_node: HashMap<NodeId, Vec<Vec<u8>>> = HashMap::new();
        let mut stack = vec![(Vec::new(), at)];
        while let Some((path, node)) = stack.pop() {
            let (meta, content) = self.nodes.get(&node)?.clone();
            by_node.entry(node).or_default().push(path.clone());
            for ((_, name), child) in self
                .names
                .range((node, first_name())..)
                .take_while(|((p, _), _)| *p == node)
            {
                let mut p = path.clone();
                if !p.is_empty() {
                    p.push(b'/');
                }
                p.extend_from_slice(name.as_bytes());
                stack.push((p, *child));
            }
            out.insert(
                path.clone(),
                SnapshotEntry {
                    meta,
                    content,
                    first_link: path,
                },
            );
        }
        for paths in by_node.values().filter(|p| p.len() > 1) {
            let first = paths.iter().min().expect("more than one").clone();
            for p in paths {
                out.get_mut(p).expect("inserted").first_link = first.clone();
            }
        }
        Some(Snapshot(out))
    }
}

/// The least of all names.
fn first_name() -> Name {
    Name::new([1u8]).expect("a name")
}
