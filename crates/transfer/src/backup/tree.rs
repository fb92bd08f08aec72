//! The protected directories, and open handles on the directories below them.

use super::ahead::Place;
use super::index::{Index, IndexError};
use super::rows::NodeRow;
use farwrite_core::exclude::Excludes;
use farwrite_core::{BytePath, FileId, Name, NodeId, limits};
use farwrite_fs::{Dir, HandleCache, Stat, is_absent};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;

/// Most directories of which it is remembered which node they are.
const IDS: usize = 4096;

/// A protected directory, as configured.
#[derive(Clone, Debug)]
pub struct RootSpec {
    /// Its number; never changes for one path.
    pub slot: u32,
    /// Absolute, without symbolic links.
    pub path: BytePath,
    /// What not to back up.
    pub excludes: Excludes,
}

/// A protected directory at work.
#[derive(Debug)]
pub struct Root {
    /// As configured.
    pub spec: RootSpec,
    /// Its node.
    pub node: NodeId,
    /// Its identity; all that is backed up below it is on the same device.
    pub id: FileId,
    place: Arc<Place>,
}

impl Root {
    /// Where it is, for who reads ahead.
    pub(super) fn place(&self) -> &Arc<Place> {
        &self.place
    }
}

/// A directory below a root, open.
#[derive(Clone, Debug)]
pub struct OpenDir {
    /// Its node.
    pub node: NodeId,
    /// Its present path, as far as the index knows.
    pub path: BytePath,
    /// Which root.
    pub root: usize,
    /// Its identity.
    pub id: FileId,
    /// The handle; stays on the directory wherever that is moved.
    pub dir: Arc<Dir>,
}

/// What [`Tree::by_file`] found.
#[derive(Debug)]
pub enum Found {
    /// The directory, open.
    Open(OpenDir),
    /// The index has it, but it is not where the index says: a message about that is still to come.
    Elsewhere(NodeId),
    /// It is where the index says, but it, or a directory above it, may not be opened.
    Refused(Refused),
    /// The index does not have it: it is new (and its own arrival looks at all that is in it), excluded, or none of
    /// ours.
    Unknown,
}

/// A directory that the system does not let us open.
#[derive(Debug)]
pub struct Refused {
    /// Which.
    pub path: BytePath,
    /// Which, as the index knows it.
    pub id: FileId,
    /// What the system said.
    pub error: io::Error,
}

/// See the module.
#[derive(Debug)]
pub struct Tree {
    roots: Vec<Root>,
    open: HandleCache<NodeId, OpenDir>,
    /// Nodes of open directories, and of some that were open: as long as a directory is, nothing else gets its identity.
    ids: HashMap<FileId, NodeId>,
}

impl Tree {
    /// No roots yet.
    pub fn new() -> Self {
        Tree {
            roots: Vec::new(),
            open: HandleCache::new(),
            ids: HashMap::new(),
        }
    }

    /// Adds an opened root.
    pub fn add_root(&mut self, spec: RootSpec, node: NodeId, dir: Dir, id: FileId) {
        let place = Arc::new(Place {
            dir: Arc::new(dir),
            path: spec.path.clone(),
            excludes: spec.excludes.clone(),
            dev: id.dev,
        });
        self.roots.push(Root {
            spec,
            node,
            id,
            place,
        });
    }

    /// All roots.
    pub fn roots(&self) -> &[Root] {
        &self.roots
    }

    /// The root with this number in [`Tree::roots`].
    pub fn root(&self, i: usize) -> &Root {
        &self.roots[i]
    }

    /// Identity of what a row is about, below this root.
    pub(super) fn file_id(&self, root: usize, row: &NodeRow) -> FileId {
        FileId {
            dev: self.roots[root].id.dev,
            ino: row.origin.ino,
        }
    }

    /// Forgets all handles below the roots: they would keep a filesystem busy.
    pub fn close_all(&mut self) {
        self.open.clear();
        self.ids.clear();
    }

    /// Forgets a directory's handle: the index does not have it any more.
    pub fn forget(&mut self, node: NodeId) {
        self.open.pop(&node);
    }

    /// A directory was renamed: the paths of all that is below are others now.
    pub fn renamed(&mut self) {
        self.close_all();
    }

    /// The directory with this identity.
    pub fn by_file(&mut self, index: &Index, id: FileId) -> Result<Found, IndexError> {
        if let Some(i) = self.roots.iter().position(|r| r.id == id) {
            return Ok(Found::Open(self.root_dir(i)));
        }
        if let Some(dir) = self.ids.get(&id).and_then(|node| self.open.get(node)) {
            return Ok(Found::Open(dir.clone()));
        }
        let (mut known, mut refused) = (None, None);
        let slots: Vec<u32> = self
            .roots
            .iter()
            .filter(|r| r.id.dev == id.dev)
            .map(|r| r.spec.slot)
            .collect();
        for slot in slots {
            for (node, row) in index.by_ino(slot, id.ino)? {
                if !row.is_dir() {
                    continue;
                }
                known = Some(node);
                match self.try_open(index, node)? {
                    Ok(Some(d)) => return Ok(Found::Open(d)),
                    Ok(None) => {}
                    Err(r) => refused = Some(r),
                }
            }
        }
        Ok(match (refused, known) {
            (Some(r), _) => Found::Refused(r),
            (None, Some(node)) => Found::Elsewhere(node),
            (None, None) => Found::Unknown,
        })
    }

    /// Opens a directory node by its path in the index. `None` if something else, or nothing, is there, or if it may not
    /// be opened.
    pub fn open_node(
        &mut self,
        index: &Index,
        node: NodeId,
    ) -> Result<Option<OpenDir>, IndexError> {
        Ok(self.try_open(index, node)?.ok().flatten())
    }

    /// As [`Tree::open_node`], and says so if it may not be opened.
    pub fn try_open(
        &mut self,
        index: &Index,
        node: NodeId,
    ) -> Result<Result<Option<OpenDir>, Refused>, IndexError> {
        let mut chain: Vec<(NodeId, Name)> = Vec::new();
        let mut at = node;
        let mut dir = loop {
            if let Some(i) = self.roots.iter().position(|r| r.node == at) {
                break self.root_dir(i);
            }
            if let Some(d) = self.open.get(&at) {
                break d.clone();
            }
            let Some((parent, name)) = index.names_of(at)?.into_iter().next() else {
                return Ok(Ok(None));
            };
            if chain.len() > limits::TREE_DEPTH || parent == NodeId::ROOT {
                return Ok(Ok(None));
            }
            chain.push((at, name));
            at = parent;
        };
        while let Some((child, name)) = chain.pop() {
            let root = &self.roots[dir.root];
            let handle = match dir.dir.open_dir(&name) {
                Ok(handle) => handle,
                Err(error) if is_absent(&error) => return Ok(Ok(None)),
                Err(error) => {
                    let Some(row) = index.node(child)? else {
                        return Ok(Ok(None));
                    };
                    let same = match dir.dir.stat(&name) {
                        Ok(stat) => row.is(root.spec.slot, &stat),
                        Err(e) => !is_absent(&e),
                    };
                    let refused = Refused {
                        path: dir.path.join(&name),
                        id: self.file_id(dir.root, &row),
                        error,
                    };
                    return Ok(if same { Err(refused) } else { Ok(None) });
                }
            };
            let id = match (handle.stat_self(), index.node(child)?) {
                (Ok(stat), Some(row))
                    if stat.id.dev == root.id.dev && row.is(root.spec.slot, &stat) =>
                {
                    stat.id
                }
                _ => return Ok(Ok(None)),
            };
            dir = OpenDir {
                node: child,
                path: dir.path.join(&name),
                root: dir.root,
                id,
                dir: Arc::new(handle),
            };
            self.open.put(child, dir.clone());
            if self.ids.len() >= IDS {
                self.ids.clear();
            }
            self.ids.insert(id, child);
        }
        Ok(Ok(Some(dir)))
    }

    /// Is the inode still there under this name?
    pub fn still_there(
        &mut self,
        index: &Index,
        parent: NodeId,
        name: &Name,
        id: FileId,
    ) -> Result<bool, IndexError> {
        // A directory out of sight was moved or removed: its own message says what that means for its names.
        let Some(dir) = self.open_node(index, parent)? else {
            return Ok(true);
        };
        Ok(dir.dir.stat(name).is_ok_and(|s: Stat| s.id == id))
    }

    fn root_dir(&self, i: usize) -> OpenDir {
        let r = &self.roots[i];
        OpenDir {
            node: r.node,
            path: r.spec.path.clone(),
            root: i,
            id: r.id,
            dir: r.place.dir.clone(),
        }
    }
}

impl Default for Tree {
    fn default() -> Self {
        Tree::new()
    }
}
