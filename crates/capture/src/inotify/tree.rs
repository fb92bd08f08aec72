//! The watched directories: watch descriptor <-> identity, parent and name. A directory's path is found by
//! going up, so that a rename above it costs nothing. No system call is made here.

use farwrite_core::{BytePath, FileId, Name, limits};
use std::collections::HashMap;

/// A watch descriptor.
pub(super) type Wd = i32;

/// One watched directory.
#[derive(Debug)]
pub(super) struct Node {
    pub id: FileId,
    /// Which root it belongs to.
    pub root: usize,
    /// Directory and name that hold it; `None` for a root.
    pub parent: Option<(Wd, Name)>,
    children: HashMap<Name, Wd>,
    /// Last walk that met it.
    pub epoch: u64,
}

/// All watched directories.
#[derive(Debug, Default)]
pub(super) struct Tree {
    nodes: HashMap<Wd, Node>,
    /// Directories whose place was given to another; most get a new one by the next message.
    displaced: Vec<Wd>,
}

impl Tree {
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn get(&self, wd: Wd) -> Option<&Node> {
        self.nodes.get(&wd)
    }

    pub fn child(&self, wd: Wd, name: &Name) -> Option<Wd> {
        self.nodes.get(&wd)?.children.get(name).copied()
    }

    /// Puts a directory at a place, known or not. `true` if it is new.
    pub fn put(
        &mut self,
        wd: Wd,
        id: FileId,
        root: usize,
        parent: Option<(Wd, Name)>,
        epoch: u64,
    ) -> bool {
        self.unlink(wd);
        if let Some((p, name)) = &parent
            && let Some(node) = self.nodes.get_mut(p)
        {
            let other = node.children.insert(name.clone(), wd);
            self.displaced.extend(other.filter(|o| *o != wd));
        }
        match self.nodes.get_mut(&wd) {
            Some(node) => {
                (node.id, node.parent, node.epoch) = (id, parent, epoch);
                if node.root != root {
                    self.set_root(wd, root);
                }
                false
            }
            None => {
                let node = Node {
                    id,
                    root,
                    parent,
                    children: HashMap::new(),
                    epoch,
                };
                self.nodes.insert(wd, node);
                true
            }
        }
    }

    /// Nothing has this name.
    pub fn vacate(&mut self, wd: Wd, name: &Name) {
        let node = self.nodes.get_mut(&wd);
        let child = node.and_then(|n| n.children.remove(name));
        self.displaced.extend(child);
    }

    /// Displaced directories that have no place of their own by now: they have left the roots.
    pub fn take_homeless(&mut self) -> Vec<Wd> {
        let list = std::mem::take(&mut self.displaced);
        let homeless = |wd: &Wd| {
            self.nodes.get(wd).is_some_and(|n| match &n.parent {
                Some((p, name)) => self.child(*p, name) != Some(*wd),
                None => false,
            })
        };
        list.into_iter().filter(homeless).collect()
    }

    fn set_root(&mut self, top: Wd, root: usize) {
        for wd in self.below(top) {
            if let Some(n) = self.nodes.get_mut(&wd) {
                n.root = root;
            }
        }
    }

    /// Takes a directory off its place; it stays watched.
    fn unlink(&mut self, wd: Wd) {
        let Some((p, name)) = self.nodes.get(&wd).and_then(|n| n.parent.clone()) else {
            return;
        };
        if let Some(node) = self.nodes.get_mut(&p)
            && node.children.get(&name) == Some(&wd)
        {
            node.children.remove(&name);
        }
    }

    /// Forgets one directory. Its children, if any are still known, keep pointing at it: they are gone as well.
    pub fn remove(&mut self, wd: Wd) {
        self.unlink(wd);
        self.nodes.remove(&wd);
    }

    /// A directory and all known below it.
    pub fn below(&self, top: Wd) -> Vec<Wd> {
        let mut all = vec![top];
        let mut at = 0;
        while let Some(wd) = all.get(at) {
            at += 1;
            if let Some(n) = self.nodes.get(wd)
                && all.len() <= self.nodes.len()
            {
                all.extend(n.children.values());
            }
        }
        all
    }

    /// Directories that the walk `epoch` did not meet.
    pub fn unmet(&self, epoch: u64) -> Vec<Wd> {
        let old = self.nodes.iter().filter(|(_, n)| n.epoch != epoch);
        old.map(|(wd, _)| *wd).collect()
    }

    /// Names from the root down to the directory, and which root; `None` if it hangs on nothing any more.
    pub fn names(&self, wd: Wd) -> Option<(usize, Vec<Name>)> {
        let mut names = Vec::new();
        let mut node = self.nodes.get(&wd)?;
        while let Some((p, name)) = &node.parent {
            if names.len() > limits::TREE_DEPTH {
                return None;
            }
            names.push(name.clone());
            node = self.nodes.get(p)?;
        }
        names.reverse();
        Some((node.root, names))
    }

    /// The directory's path below its root's.
    pub fn path(&self, wd: Wd, roots: &[crate::WatchRoot]) -> Option<BytePath> {
        let (root, names) = self.names(wd)?;
        let mut path = roots[root].path.clone();
        names.iter().for_each(|n| path.push(n));
        Some(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WatchRoot;

    fn id(ino: u64) -> FileId {
        FileId { dev: 1, ino }
    }

    fn name(s: &str) -> Name {
        Name::new(s).unwrap()
    }

    #[test]
    fn a_rename_above_moves_every_path_and_a_displaced_directory_is_kept() {
        let roots = [WatchRoot {
            path: BytePath::new("/r").unwrap(),
            id: id(1),
        }];
        let mut t = Tree::default();
        assert!(t.put(1, id(1), 0, None, 0));
        assert!(t.put(2, id(2), 0, Some((1, name("a"))), 0));
        assert!(t.put(3, id(3), 0, Some((2, name("x"))), 0));
        assert!(t.put(4, id(4), 0, Some((1, name("b"))), 0));
        let path = |t: &Tree, wd| t.path(wd, &roots).unwrap().to_string();
        assert_eq!(path(&t, 3), "/r/a/x");
        // Exchange of a and b.
        assert!(!t.put(2, id(2), 0, Some((1, name("b"))), 0));
        assert!(!t.put(4, id(4), 0, Some((1, name("a"))), 0));
        assert_eq!((path(&t, 3), path(&t, 4)), ("/r/b/x".into(), "/r/a".into()));
        assert_eq!(t.child(1, &name("b")), Some(2));
        assert_eq!(t.child(1, &name("a")), Some(4));
        assert_eq!(t.below(2), [2, 3]);
        assert_eq!(t.take_homeless(), [], "an exchange leaves both at home");
        assert!(t.put(5, id(5), 0, Some((1, name("a"))), 0));
        assert_eq!(t.take_homeless(), [4]);
        t.remove(4);
        t.remove(2);
        assert_eq!(t.path(3, &roots), None);
        assert_eq!(t.unmet(1).len(), 3);
    }
}
