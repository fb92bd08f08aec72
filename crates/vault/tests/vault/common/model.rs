//! The oracle: the operations' meaning in the simplest form, and a source that makes random ones.

use super::*;
use farwrite_core::meta::Xattr;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    pub node: NodeId,
    pub meta: Meta,
    pub content: Vec<u8>,
}

/// Path without leading slash to what is there.
pub type Tree = BTreeMap<Vec<u8>, Leaf>;

#[derive(Clone, Default)]
pub struct Model {
    pub nodes: BTreeMap<NodeId, (Meta, Vec<u8>)>,
    pub names: BTreeMap<(NodeId, Name), NodeId>,
    named: BTreeSet<NodeId>,
}

impl Model {
    pub fn apply(&mut self, ops: &[Op], blocks: &[Vec<u8>]) {
        for op in ops {
            match op {
                Op::Node { node, meta, .. } => {
                    let e = self.nodes.entry(*node).or_insert((meta.clone(), vec![]));
                    e.0 = meta.clone();
                    e.1.resize(meta.size as usize, 0);
                }
                Op::Name { parent, name, node } => {
                    self.names.insert((*parent, name.clone()), *node);
                    self.named.insert(*node);
                }
                Op::Unname { parent, name } => {
                    self.names.remove(&(*parent, name.clone()));
                }
                Op::Write {
                    node,
                    offset,
                    len,
                    block,
                    block_offset,
                } => {
                    let from = *block_offset as usize;
                    let data = blocks[*block as usize][from..from + *len as usize].to_vec();
                    self.put(*node, *offset, &data);
                }
                Op::Hole { node, offset, len } => self.put(*node, *offset, &vec![0; *len as usize]),
                Op::Copy {
                    node,
                    offset,
                    len,
                    from,
                    from_offset,
                } => {
                    let mut data = self.nodes[from].1.clone();
                    data.resize((*from_offset + *len) as usize, 0);
                    self.put(*node, *offset, &data[*from_offset as usize..]);
                }
                Op::Drop { node } => {
                    self.nodes.remove(node);
                }
                Op::Clear => *self = Model::default(),
            }
        }
        loop {
            let alive: BTreeSet<NodeId> = self.names.values().copied().collect();
            let gone: Vec<NodeId> = (self.nodes.keys().copied())
                .filter(|n| self.named.contains(n) && !alive.contains(n))
                .collect();
            if gone.is_empty() {
                return;
            }
            for n in gone {
                self.nodes.remove(&n);
                self.names.retain(|(p, _), _| *p != n);
            }
        }
    }

    fn put(&mut self, node: NodeId, offset: u64, data: &[u8]) {
        // The generator never writes behind the end.
        self.nodes.get_mut(&node).unwrap().1[offset as usize..offset as usize + data.len()]
            .copy_from_slice(data);
    }

    pub fn tree(&self) -> Tree {
        let mut out = Tree::new();
        let mut todo = vec![(NodeId::ROOT, Vec::new())];
        while let Some((dir, path)) = todo.pop() {
            for ((_, n), node) in self
                .names
                .range((dir, name("\u{1}"))..)
                .take_while(|((p, _), _)| *p == dir)
            {
                let mut path = path.clone();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(n.as_bytes());
                let (meta, content) = self.nodes[node].clone();
                if meta.kind == Kind::Dir {
                    todo.push((*node, path.clone()));
                }
                out.insert(
                    path,
                    Leaf {
                        node: *node,
                        meta,
                        content,
                    },
                );
            }
        }
        out
    }

    fn is_below(&self, node: NodeId, above: NodeId) -> bool {
        let mut at = node;
        while at != NodeId::ROOT {
            if at == above {
                return true;
            }
            match self.names.iter().find(|(_, n)| **n == at) {
                Some(((p, _), _)) => at = *p,
                None => return false,
            }
        }
        false
    }
}

/// A source that does random things.
pub struct Chaos {
    pub maker: Maker,
    pub model: Model,
    pub rng: Rng,
    staged: Vec<NodeId>,
    ops: Vec<Op>,
    blocks: Vec<Vec<u8>>,
    work: Model,
}

impl Chaos {
    pub fn new(seed: u64) -> Self {
        Chaos {
            maker: Maker::new(),
            model: Model::default(),
            rng: Rng(seed),
            staged: vec![],
            ops: vec![],
            blocks: vec![],
            work: Model::default(),
        }
    }

    /// The records of the next random batch; `model` is then as it stands behind it.
    pub fn batch(&mut self) -> Vec<Record> {
        self.ops.clear();
        self.blocks.clear();
        self.work = self.model.clone();
        for _ in 0..1 + self.rng.next(12) {
            self.one();
        }
        self.model.apply(&self.ops, &self.blocks);
        self.maker.batch(&self.ops, &self.blocks)
    }

    fn push(&mut self, op: Op) {
        // `work` follows operation by operation, without the settling at the commit.
        match &op {
            Op::Name { parent, name, node } => {
                self.work.names.insert((*parent, name.clone()), *node);
            }
            Op::Unname { parent, name } => {
                self.work.names.remove(&(*parent, name.clone()));
            }
            Op::Node { node, meta, .. } => {
                let e = self
                    .work
                    .nodes
                    .entry(*node)
                    .or_insert((meta.clone(), vec![]));
                e.0 = meta.clone();
                e.1.resize(meta.size as usize, 0);
            }
            Op::Drop { node } => {
                self.work.nodes.remove(node);
            }
            _ => {}
        }
        self.ops.push(op);
    }

    fn meta(&mut self, kind: Kind, size: u64) -> Meta {
        let xattrs = (0..self.rng.next(3))
            .map(|i| Xattr {
                name: format!("user.x{i}").into_bytes(),
                value: self.rng.bytes(5),
            })
            .collect();
        let device = matches!(kind, Kind::Char | Kind::Block);
        Meta {
            kind,
            mode: if kind == Kind::Symlink {
                0o777
            } else {
                [0o644, 0o755, 0o600, 0o4755, 0o2711, 0][self.rng.next(6) as usize]
            },
            uid: [0, 1000][self.rng.next(2) as usize],
            gid: [0, 100][self.rng.next(2) as usize],
            mtime: Timestamp::from_nanos(1_500_000_000_000_000_000 + self.rng.next(1 << 30) as i64),
            size,
            rdev: if device { 0x103 } else { 0 },
            target: if kind == Kind::Symlink {
                b"/etc/passwd".to_vec()
            } else {
                vec![]
            },
            xattrs: if matches!(kind, Kind::File | Kind::Dir) {
                xattrs
            } else {
                vec![]
            },
        }
    }

    fn pick<T: Clone>(&mut self, list: &[T]) -> Option<T> {
        (!list.is_empty()).then(|| list[self.rng.next(list.len() as u64) as usize].clone())
    }

    /// Directories and names that hang together from the root at this point.
    fn reachable(&self) -> (Vec<NodeId>, Vec<(NodeId, Name, NodeId)>) {
        let (mut dirs, mut names, mut todo) = (vec![NodeId::ROOT], vec![], vec![NodeId::ROOT]);
        while let Some(d) = todo.pop() {
            for ((p, n), node) in self.work.names.iter().filter(|((p, _), _)| *p == d) {
                names.push((*p, n.clone(), *node));
                if self.work.nodes[node].0.kind == Kind::Dir {
                    dirs.push(*node);
                    todo.push(*node);
                }
            }
        }
        (dirs, names)
    }

    fn kind_of(&self, n: NodeId) -> Kind {
        self.work.nodes[&n].0.kind
    }

    fn size_of(&self, n: NodeId) -> u64 {
        self.work.nodes[&n].0.size
    }

    fn one(&mut self) {
        let (dirs, names) = self.reachable();
        let files: Vec<NodeId> = names
            .iter()
            .map(|e| e.2)
            .filter(|n| self.kind_of(*n) == Kind::File)
            .collect();
        let dir = self.pick(&dirs).unwrap();
        let free =
            name(["a", "b", "c", "d", "e", "f", "\u{1}\n", "\u{fc}"][self.rng.next(8) as usize]);
        match self.rng.next(16) {
            0..=2 => {
                let kind = [
                    Kind::File,
                    Kind::File,
                    Kind::File,
                    Kind::Dir,
                    Kind::Dir,
                    Kind::Symlink,
                    Kind::Fifo,
                    Kind::Socket,
                    Kind::Char,
                ][self.rng.next(9) as usize];
                let node = self.maker.node();
                let size = if kind == Kind::File {
                    self.rng.next(20_000)
                } else {
                    0
                };
                let meta = self.meta(kind, size);
                self.push(set(node, meta));
                if self.rng.next(8) == 0 && kind == Kind::File {
                    self.staged.push(node);
                } else {
                    self.push(link(dir, free.as_bytes(), node));
                }
                if kind == Kind::File {
                    self.write_some(node);
                }
            }
            3..=6 => {
                if let Some(f) = self.pick(&files) {
                    self.write_some(f);
                }
            }
            7 => {
                if let Some(f) = self.pick(&files) {
                    let size = self.rng.next(20_000);
                    let meta = self.meta(Kind::File, size);
                    self.push(set(f, meta));
                }
            }
            8 => {
                if let Some((_, _, n)) = self.pick(&names) {
                    let meta = self.meta(self.kind_of(n), self.size_of(n));
                    self.push(set(n, meta));
                }
            }
            9 | 10 => {
                if let Some((p, n, _)) = self.pick(&names) {
                    self.push(unlink(p, n.as_bytes()));
                }
            }
            11 | 12 => {
                if let Some((p, n, node)) = self.pick(&names) {
                    let is_dir = self.kind_of(node) == Kind::Dir;
                    if !(is_dir && self.work.is_below(dir, node)) && (p, &n) != (dir, &free) {
                        // What is replaced must not hold the place it is replaced from.
                        let there = self.work.names.get(&(dir, free.clone())).copied();
                        if there.is_none_or(|t| t != node && !self.work.is_below(p, t)) {
                            self.push(link(dir, free.as_bytes(), node));
                            self.push(unlink(p, n.as_bytes()));
                        }
                    }
                }
            }
            13 => {
                if let (Some((p, n, a)), Some((q, m, b))) = (self.pick(&names), self.pick(&names))
                    && a != b
                    && !self.work.is_below(q, a)
                    && !self.work.is_below(p, b)
                {
                    self.push(link(p, n.as_bytes(), b));
                    self.push(link(q, m.as_bytes(), a));
                }
            }
            14 => {
                if let Some(f) = self.pick(&files) {
                    let there = self.work.names.get(&(dir, free.clone()));
                    if there.is_none_or(|t| self.kind_of(*t) != Kind::Dir) {
                        self.push(link(dir, free.as_bytes(), f));
                    }
                }
            }
            _ => {
                let staged = self.staged.clone();
                if let Some(s) = self.pick(&staged) {
                    self.staged.retain(|x| *x != s);
                    if self.rng.next(2) == 0 {
                        self.push(Op::Drop { node: s });
                    } else {
                        self.push(link(dir, free.as_bytes(), s));
                    }
                }
            }
        }
    }

    fn write_some(&mut self, node: NodeId) {
        let size = self.size_of(node);
        for _ in 0..self.rng.next(4) {
            if size < 2 {
                return;
            }
            let offset = self.rng.next(size);
            let len = 1 + self.rng.next((size - offset).min(9000));
            let len = len.min(size - offset);
            match self.rng.next(6) {
                0 => self.push(Op::Hole { node, offset, len }),
                1 => {
                    let mut from: Vec<NodeId> = self.staged.clone();
                    from.extend(
                        self.work
                            .nodes
                            .iter()
                            .filter(|(_, (m, _))| m.kind == Kind::File)
                            .map(|(n, _)| *n),
                    );
                    from.retain(|f| self.size_of(*f) >= len);
                    if let Some(f) = self.pick(&from) {
                        let from_offset = self.rng.next(self.size_of(f) - len + 1);
                        if f != node || from_offset != offset {
                            self.push(Op::Copy {
                                node,
                                offset,
                                len,
                                from: f,
                                from_offset,
                            });
                        }
                    }
                }
                _ => {
                    if self.blocks.is_empty() || self.rng.next(2) == 0 {
                        let n = 1 + self.rng.next(12_000) as usize;
                        let block = self.rng.bytes(n);
                        self.blocks.push(block);
                    }
                    let block = self.blocks.len() - 1;
                    let raw = self.blocks[block].len() as u64;
                    let at = self.rng.next(raw);
                    let len = len.min(raw - at);
                    self.push(write(node, offset, block as u32, at as u32, len as u32));
                }
            }
        }
    }
}
