//! Random operations on a protected directory, through the real sensor, network and vault, against an oracle that lives
//! in memory and knows nothing but the operations: at every clean point mirror and restore equal it, and at any moment in between
//! each file is a state that it had.

use crate::rig::{Pair, Place, SOON, now};
use farwrite_testkit::Chance;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// One page: a program that reads sees all of a write of it or nothing.
const PAGE: u64 = 4096;

#[derive(Clone, PartialEq, Eq, Hash)]
enum Node {
    File { content: Vec<u8>, mode: u32 },
    Dir { mode: u32 },
    Link(PathBuf),
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Node::File { content, mode } => {
                let start = &content[..content.len().min(8)];
                write!(f, "file {mode:o}, {} bytes, {start:02x?}", content.len())
            }
            Node::Dir { mode } => write!(f, "directory {mode:o}"),
            Node::Link(to) => write!(f, "link to {to:?}"),
        }
    }
}

type Id = u64;

/// A tree as it is on no disk. Paths are relative; the root is not in it.
#[derive(Clone, Default)]
struct Tree {
    nodes: HashMap<Id, Node>,
    names: BTreeMap<PathBuf, Id>,
}

impl Tree {
    /// Names with what they name; the names of one node under its first.
    fn listing(&self) -> BTreeMap<PathBuf, (Node, PathBuf)> {
        let mut first: HashMap<Id, &PathBuf> = HashMap::new();
        let mut out = BTreeMap::new();
        for (path, id) in &self.names {
            let first = *first.entry(*id).or_insert(path);
            out.insert(path.clone(), (self.nodes[id].clone(), first.clone()));
        }
        out
    }

    fn below(&self, dir: &Path) -> Vec<PathBuf> {
        let all = self.names.keys();
        all.filter(|p| p.starts_with(dir)).cloned().collect()
    }
}

/// The same of a directory on disk.
fn listing_of(top: &Path) -> BTreeMap<PathBuf, (Node, PathBuf)> {
    let (mut out, mut first) = (BTreeMap::new(), HashMap::new());
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        let entries = fs::read_dir(top.join(&dir)).unwrap();
        for name in entries.map(|e| e.unwrap().file_name()) {
            let path = dir.join(name);
            let full = top.join(&path);
            let meta = fs::symlink_metadata(&full).unwrap();
            let mode = meta.mode() & 0o7777;
            let node = if meta.is_dir() {
                todo.push(path.clone());
                Node::Dir { mode }
            } else if meta.is_symlink() {
                Node::Link(fs::read_link(&full).unwrap())
            } else {
                let content = fs::read(&full).unwrap();
                Node::File { content, mode }
            };
            let names: &mut BTreeSet<PathBuf> = first.entry(meta.ino()).or_default();
            names.insert(path.clone());
            out.insert(path, (node, meta.ino()));
        }
    }
    let named = |(path, (node, ino))| (path, (node, first[&ino].first().unwrap().clone()));
    out.into_iter().map(named).collect()
}

struct World {
    top: PathBuf,
    tree: Tree,
    next: Id,
    /// Every state that anything ever had; contents are random, so no two files have one.
    had: HashSet<Node>,
    /// Also change files through one of several names. inotify tells the name alone: once that is gone or another
    /// file's, nobody knows which file it was (docs/capture.md).
    change_linked: bool,
    chance: Chance,
    trace: Vec<String>,
}

impl World {
    fn note(&mut self, what: String) {
        self.trace.push(what);
        for id in self.tree.names.values() {
            if !self.had.contains(&self.tree.nodes[id]) {
                self.had.insert(self.tree.nodes[id].clone());
            }
        }
    }

    fn new_node(&mut self, path: &Path, node: Node) {
        self.next += 1;
        self.tree.nodes.insert(self.next, node);
        self.tree.names.insert(path.to_owned(), self.next);
    }

    /// Some name, existing with a chance, in some directory that exists.
    fn name(&mut self) -> PathBuf {
        let mut dirs = vec![PathBuf::new()];
        let all = self.tree.names.iter();
        dirs.extend(
            all.filter(|(_, id)| matches!(self.tree.nodes[id], Node::Dir { .. }))
                .map(|(p, _)| p.clone()),
        );
        let dir = self.chance.pick(&dirs).unwrap().clone();
        dir.join(format!("n{}", self.chance.below(6)))
    }

    fn some(&mut self, file: bool) -> Option<PathBuf> {
        let names: Vec<PathBuf> = self
            .tree
            .names
            .iter()
            .filter(|(_, id)| !file || matches!(self.tree.nodes[id], Node::File { .. }))
            .map(|(p, _)| p.clone())
            .collect();
        self.chance.pick(&names).cloned()
    }

    /// Some file whose content or attributes may be changed.
    fn changeable(&mut self, file: bool) -> Option<PathBuf> {
        let path = self.some(file)?;
        let id = self.tree.names[&path];
        let names = self.tree.names.values().filter(|n| **n == id).count();
        (names == 1 || self.change_linked).then_some(path)
    }

    fn step(&mut self) {
        match self.chance.below(14) {
            0..=2 => self.create(),
            3..=5 => self.write(),
            6 => self.mkdir(),
            7 | 8 => self.rename(),
            9 => self.remove(),
            10 => self.link(),
            11 => self.chmod(),
            12 => self.truncate(),
            _ => self.symlink(),
        }
    }

    fn create(&mut self) {
        let path = self.name();
        if self.tree.names.contains_key(&path) {
            return;
        }
        File::create_new(self.top.join(&path)).unwrap();
        let (content, mode) = (vec![], 0o644);
        self.new_node(&path, Node::File { content, mode });
        self.note(format!("create {path:?}"));
    }

    fn write(&mut self) {
        let Some(path) = self.changeable(true) else {
            return;
        };
        let Node::File { content, .. } = self.tree.nodes.get_mut(&self.tree.names[&path]).unwrap()
        else {
            return;
        };
        let at = self.chance.below(PAGE.min(content.len() as u64 + 1));
        let len = 1 + self.chance.below(PAGE - at);
        let bytes = self.chance.bytes(len as usize);
        let end = (at + len) as usize;
        content.resize(content.len().max(end), 0);
        content[at as usize..end].copy_from_slice(&bytes);
        let file = File::options().write(true).open(self.top.join(&path));
        file.unwrap().write_all_at(&bytes, at).unwrap();
        self.note(format!("write {path:?} {at}+{len}"));
    }

    fn truncate(&mut self) {
        let Some(path) = self.changeable(true) else {
            return;
        };
        let Node::File { content, .. } = self.tree.nodes.get_mut(&self.tree.names[&path]).unwrap()
        else {
            return;
        };
        let len = self.chance.below(PAGE);
        content.resize(len as usize, 0);
        let file = File::options().write(true).open(self.top.join(&path));
        file.unwrap().set_len(len).unwrap();
        self.note(format!("truncate {path:?} {len}"));
    }

    fn mkdir(&mut self) {
        let path = self.name();
        if self.tree.names.contains_key(&path) {
            return;
        }
        fs::create_dir(self.top.join(&path)).unwrap();
        self.new_node(&path, Node::Dir { mode: 0o755 });
        self.note(format!("mkdir {path:?}"));
    }

    fn symlink(&mut self) {
        let path = self.name();
        if self.tree.names.contains_key(&path) {
            return;
        }
        let target = PathBuf::from(format!("to/{}", self.chance.below(1000)));
        std::os::unix::fs::symlink(&target, self.top.join(&path)).unwrap();
        self.new_node(&path, Node::Link(target));
        self.note(format!("symlink {path:?}"));
    }

    fn link(&mut self) {
        let Some(from) = self.some(true) else { return };
        let to = self.name();
        if self.tree.names.contains_key(&to) {
            return;
        }
        fs::hard_link(self.top.join(&from), self.top.join(&to)).unwrap();
        let id = self.tree.names[&from];
        self.tree.names.insert(to.clone(), id);
        self.note(format!("link {from:?} {to:?}"));
    }

    fn chmod(&mut self) {
        let Some(path) = self.changeable(false) else {
            return;
        };
        let new = 0o700 | self.chance.below(0o100) as u32;
        match self.tree.nodes.get_mut(&self.tree.names[&path]).unwrap() {
            Node::File { mode, .. } | Node::Dir { mode } => *mode = new,
            Node::Link(_) => return,
        }
        fs::set_permissions(self.top.join(&path), fs::Permissions::from_mode(new)).unwrap();
        self.note(format!("chmod {path:?} {new:o}"));
    }

    fn remove(&mut self) {
        let Some(path) = self.some(false) else { return };
        match self.tree.nodes[&self.tree.names[&path]] {
            Node::Dir { .. } => fs::remove_dir_all(self.top.join(&path)).unwrap(),
            _ => fs::remove_file(self.top.join(&path)).unwrap(),
        }
        for gone in self.tree.below(&path) {
            self.tree.names.remove(&gone);
        }
        self.note(format!("remove {path:?}"));
    }

    /// Also over what is there, where rename(2) allows it.
    fn rename(&mut self) {
        let Some(from) = self.some(false) else { return };
        let to = self.name();
        if to.starts_with(&from) || from.starts_with(&to) {
            return;
        }
        if fs::rename(self.top.join(&from), self.top.join(&to)).is_err() {
            // A directory over a file, or over one that is not empty.
            return;
        }
        if self.tree.names.get(&to) != Some(&self.tree.names[&from]) {
            for path in self.tree.below(&from) {
                let id = self.tree.names.remove(&path).unwrap();
                let rest = path.strip_prefix(&from).unwrap();
                let new = match rest.as_os_str().is_empty() {
                    true => to.clone(),
                    false => to.join(rest),
                };
                self.tree.names.insert(new, id);
            }
        }
        self.note(format!("rename {from:?} {to:?}"));
    }
}

fn check(world: &World, at: &Tree, dir: &Path, what: &str) {
    let (ours, theirs) = (at.listing(), listing_of(dir));
    if ours == theirs {
        return;
    }
    let all: BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
    let differing: Vec<_> = all
        .into_iter()
        .filter(|p| ours.get(*p) != theirs.get(*p))
        .take(3)
        .map(|p| {
            format!(
                "{p:?}\n  oracle {:?}\n  {what} {:?}",
                ours.get(p),
                theirs.get(p)
            )
        })
        .collect();
    panic!(
        "{}\n{what}:\n{}",
        world.trace.join("\n"),
        differing.join("\n")
    );
}

fn run(sensor: &str) {
    let place = Place::new();
    let mut pair = Pair::new(&place);
    let mut world = World {
        top: pair.src.clone(),
        tree: Tree::default(),
        next: 0,
        had: HashSet::new(),
        change_linked: sensor != "inotify",
        chance: Chance::from_env(),
        trace: vec![],
    };
    pair.source = pair.source.with(&["--sensor", sensor]);
    pair.source.start();
    let (mut clean, mut between) = (vec![], vec![]);
    // Nothing but the directory itself is a tree, too.
    pair.source.flush(SOON);
    check(&world, &world.tree, &pair.mirror(), "mirror");
    for _ in 0..30 {
        for _ in 0..world.chance.below(120) {
            world.step();
            if world.chance.one_in(40) {
                between.push(now());
            }
        }
        pair.source.flush(SOON);
        check(&world, &world.tree, &pair.mirror(), "mirror");
        clean.push((now(), world.tree.clone()));
    }
    for (i, (at, tree)) in clean.iter().enumerate() {
        let to = place.top.join(format!("clean{i}"));
        let ran = pair
            .vault
            .restore(crate::rig::NAME, &pair.src, Some(at), &to);
        ran.good();
        check(&world, tree, &to.join("src"), "restored");
    }
    for (i, at) in between.iter().enumerate() {
        let to = place.top.join(format!("between{i}"));
        let ran = pair
            .vault
            .restore(crate::rig::NAME, &pair.src, Some(at), &to);
        if ran.code != Some(0) {
            assert!(ran.err.contains("before"), "{}", ran.err);
            continue;
        }
        for (path, (node, _)) in listing_of(&to.join("src")) {
            assert!(
                world.had.contains(&node),
                "{}\nat {at} {path:?} is in a state that it never had: {node:?}",
                world.trace.join("\n")
            );
        }
    }
}

#[test]
fn random_operations_end_where_the_oracle_is_with_fanotify() {
    run("fanotify");
}

#[test]
fn random_operations_end_where_the_oracle_is_with_inotify() {
    run("inotify");
}
