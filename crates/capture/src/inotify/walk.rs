//! Opening watched directories through descriptors only, so that neither a path's length nor a symbolic link put
//! in its way matters, and setting watches on what is below them.

use super::tree::{Tree, Wd};
use crate::{SensorError, SensorKind, SensorOptions, WatchRoot, sys};
use farwrite_core::{BytePath, FileId, Name};
use lru::LruCache;
use rustix::fs::inotify::{self, WatchFlags};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Open directories that are kept to look files up quickly.
const FDS_CACHED: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");
/// Trees without a watch that are kept one by one; beyond that their root is compared as a whole.
const UNWATCHED_LISTED: usize = 4096;
/// What a watch asks for. Not `IN_EXCL_UNLINK`: a file written through a name that it has lost may have others.
const MASK: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);
const DIR: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Where a directory is: in a watched one under a name, or a root.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum At {
    Root(usize),
    Below(Wd, Name),
}

/// What became of a directory that was to be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Adopted {
    /// Watched and known already; now known at this place.
    Known(Wd),
    /// Watched anew, with all below it.
    New(Wd),
    /// No watch is left; it is compared at intervals.
    Unwatched(FileId),
    /// Not ours: gone, no directory, another filesystem, or skipped.
    Nothing,
}

/// The watches of one inotify instance.
pub(super) struct Watches {
    pub fd: OwnedFd,
    pub tree: Tree,
    pub roots: Vec<WatchRoot>,
    root_fds: Vec<OwnedFd>,
    skip: Vec<BytePath>,
    max: Option<usize>,
    fds: LruCache<Wd, Arc<OwnedFd>>,
    unwatched: HashMap<At, FileId>,
    /// More than could be listed: these roots are compared as a whole.
    unwatched_roots: Vec<bool>,
    /// Watched directories in which something could not be followed, since they were not where the messages read so
    /// far have them: to be walked again once the queue is empty.
    unsettled: BTreeSet<Wd>,
    epoch: u64,
}

impl Watches {
    pub fn open(roots: &[WatchRoot], opts: &SensorOptions) -> Result<Self, SensorError> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let fd = inotify::init(flags).map_err(|e| SensorError::Unavailable {
            sensor: SensorKind::Inotify,
            why: std::io::Error::from(e).to_string(),
            remedy: "raise fs.inotify.max_user_instances".into(),
        })?;
        let mut w = Watches {
            fd,
            tree: Tree::default(),
            roots: roots.to_vec(),
            root_fds: Vec::new(),
            skip: opts.skip.clone(),
            max: opts.max_watches,
            fds: LruCache::new(FDS_CACHED),
            unwatched: HashMap::new(),
            unwatched_roots: vec![false; roots.len()],
            unsettled: BTreeSet::new(),
            epoch: 0,
        };
        for r in roots {
            let root_fd = open_root(r).map_err(|source| SensorError::Root {
                path: r.path.clone(),
                source,
            })?;
            w.root_fds.push(root_fd);
        }
        for (i, root) in roots.iter().enumerate() {
            w.adopt(At::Root(i)).map_err(|e| SensorError::Mark {
                sensor: SensorKind::Inotify,
                path: root.path.clone(),
                source: e.into(),
            })?;
        }
        Ok(w)
    }

    /// Watches a directory and all below it, or notes the new place of one that is watched.
    pub fn adopt(&mut self, at: At) -> Result<Adopted, Errno> {
        let first = self.adopt_one(&at)?;
        let Adopted::New(top) = first else {
            return Ok(first);
        };
        let mut todo = vec![top];
        while let Some(wd) = todo.pop() {
            for name in self.subdirectories(wd)? {
                if let Adopted::New(child) = self.adopt_one(&At::Below(wd, name))? {
                    todo.push(child);
                }
            }
        }
        Ok(first)
    }

    fn adopt_one(&mut self, at: &At) -> Result<Adopted, Errno> {
        let (root, fd) = match at {
            At::Root(i) => (*i, rustix::io::dup(&self.root_fds[*i])?),
            At::Below(parent, name) => {
                let Some(root) = self.tree.get(*parent).map(|n| n.root) else {
                    return Ok(Adopted::Nothing);
                };
                if self.skips(*parent, name) {
                    return Ok(Adopted::Nothing);
                }
                let Some(dir) = self.open_dir(*parent)? else {
                    self.unsettled.insert(*parent);
                    return Ok(Adopted::Nothing);
                };
                match fs::openat(&*dir, name.as_bytes(), OFlags::PATH | DIR, Mode::empty()) {
                    Ok(fd) => (root, fd),
                    Err(e) if is_gone(e) => return Ok(Adopted::Nothing),
                    Err(e) => return Err(e),
                }
            }
        };
        let id = sys::file_id(&fs::fstat(&fd)?);
        if id.dev != self.roots[root].id.dev {
            return Ok(Adopted::Nothing);
        }
        self.watch(at, root, fd, id)
    }

    fn watch(&mut self, at: &At, root: usize, fd: OwnedFd, id: FileId) -> Result<Adopted, Errno> {
        let wd = match inotify::add_watch(&self.fd, sys::proc_path(&fd), MASK) {
            Ok(wd) => wd,
            Err(Errno::NOSPC | Errno::NOMEM | Errno::ACCESS) => {
                return Ok(self.note_unwatched(at, root, id));
            }
            Err(e) if is_gone(e) => return Ok(Adopted::Nothing),
            Err(e) => return Err(e),
        };
        // Only the kernel knows whether the directory was watched already, under whatever name.
        if self.max.is_some_and(|max| self.tree.len() >= max) && self.tree.get(wd).is_none() {
            inotify::remove_watch(&self.fd, wd)?;
            return Ok(self.note_unwatched(at, root, id));
        }
        self.unwatched.remove(at);
        let parent = match at {
            At::Root(_) => None,
            At::Below(p, name) => Some((*p, name.clone())),
        };
        let new = self.tree.put(wd, id, root, parent, self.epoch);
        self.fds.put(wd, Arc::new(fd));
        Ok(if new {
            Adopted::New(wd)
        } else {
            Adopted::Known(wd)
        })
    }

    /// Watches what has the name now; if nothing has, whatever we had there is without a place until a later message
    /// gives it one.
    pub fn adopt_or_vacate(&mut self, at: At) -> Result<Adopted, Errno> {
        let adopted = self.adopt(at.clone())?;
        if let (Adopted::Nothing, At::Below(wd, name)) = (adopted, &at) {
            self.tree.vacate(*wd, name);
        }
        Ok(adopted)
    }

    fn note_unwatched(&mut self, at: &At, root: usize, id: FileId) -> Adopted {
        if self.unwatched.len() < UNWATCHED_LISTED {
            self.unwatched.insert(at.clone(), id);
        } else {
            self.unwatched_roots[root] = true;
        }
        Adopted::Unwatched(id)
    }

    fn skips(&self, parent: Wd, name: &Name) -> bool {
        if self.skip.is_empty() {
            return false;
        }
        let path = self.tree.path(parent, &self.roots).map(|p| p.join(name));
        path.is_some_and(|p| self.skip.contains(&p))
    }

    /// A descriptor of a watched directory; `None` if it is not where we know it to be. The nearest directory above
    /// that is still open saves the way from the root.
    pub fn open_dir(&mut self, wd: Wd) -> Result<Option<Arc<OwnedFd>>, Errno> {
        let (mut at, mut names, mut base) = (wd, Vec::new(), None);
        while base.is_none() {
            if let Some(fd) = self.fds.get(&at) {
                base = Some(fd.clone());
            } else {
                let Some(node) = self.tree.get(at) else {
                    return Ok(None);
                };
                match &node.parent {
                    Some((p, name)) if names.len() < farwrite_core::limits::TREE_DEPTH => {
                        names.push(name.clone());
                        at = *p;
                    }
                    Some(_) => return Ok(None),
                    None => base = Some(Arc::new(rustix::io::dup(&self.root_fds[node.root])?)),
                }
            }
        }
        let mut fd = base.expect("the loop ends with one");
        for name in names.iter().rev() {
            match fs::openat(&*fd, name.as_bytes(), OFlags::PATH | DIR, Mode::empty()) {
                Ok(next) => fd = Arc::new(next),
                Err(e) if is_gone(e) => return Ok(None),
                Err(e) => return Err(e),
            }
        }
        let id = sys::file_id(&fs::fstat(&*fd)?);
        if self.tree.get(wd).is_none_or(|n| n.id != id) {
            return Ok(None);
        }
        self.fds.put(wd, fd.clone());
        Ok(Some(fd))
    }

    /// Names of the directories in a watched directory.
    fn subdirectories(&mut self, wd: Wd) -> Result<Vec<Name>, Errno> {
        let Some(dir) = self.open_dir(wd)? else {
            self.unsettled.insert(wd);
            return Ok(Vec::new());
        };
        let flags = OFlags::RDONLY | DIR;
        let dir = match fs::openat(&*dir, ".", flags, Mode::empty()) {
            Ok(d) => d,
            Err(Errno::ACCESS) => {
                // The watch stands, but what is below cannot be known.
                tracing::warn!(path = ?self.tree.path(wd, &self.roots), "a directory cannot be listed");
                return Ok(Vec::new());
            }
            Err(e) if is_gone(e) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut names = Vec::new();
        for entry in fs::Dir::read_from(&dir)? {
            let entry = entry?;
            let is_dir = match entry.file_type() {
                FileType::Directory => true,
                FileType::Unknown => fs::statat(&dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)
                    .is_ok_and(|s| FileType::from_raw_mode(s.st_mode).is_dir()),
                _ => false,
            };
            names.extend(
                Name::new(entry.file_name().to_bytes())
                    .ok()
                    .filter(|_| is_dir),
            );
        }
        Ok(names)
    }

    /// Identity of what has the name now.
    pub fn file(&mut self, wd: Wd, name: &Name) -> Option<FileId> {
        let dir = self.open_dir(wd).ok()??;
        let stat = fs::statat(&*dir, name.as_bytes(), AtFlags::SYMLINK_NOFOLLOW).ok()?;
        Some(sys::file_id(&stat))
    }

    /// A directory has left the roots: nothing below it concerns us.
    pub fn drop_subtree(&mut self, top: Wd) {
        for wd in self.tree.below(top) {
            // EINVAL: the kernel has removed it already.
            let _ = inotify::remove_watch(&self.fd, wd);
            self.forget(wd);
        }
    }

    /// The kernel has removed a watch, or is about to.
    pub fn forget(&mut self, wd: Wd) {
        self.fds.pop(&wd);
        self.tree.remove(wd);
        self.unwatched
            .retain(|at, _| !matches!(at, At::Below(p, _) if *p == wd));
    }

    /// A name is gone: if a directory without a watch had it, that is no longer there to be compared.
    pub fn name_gone(&mut self, wd: Wd, name: &Name) {
        if !self.unwatched.is_empty() {
            self.unwatched.remove(&At::Below(wd, name.clone()));
        }
    }

    /// Events were lost: walks all roots again, and drops what is no longer below one.
    pub fn rebuild(&mut self) -> Result<(), Errno> {
        self.epoch += 1;
        self.fds.clear();
        self.unsettled.clear();
        self.unwatched.clear();
        self.unwatched_roots.fill(false);
        for i in 0..self.roots.len() {
            let Adopted::Known(top) = self.adopt(At::Root(i))? else {
                continue;
            };
            let mut todo = vec![top];
            while let Some(wd) = todo.pop() {
                for name in self.subdirectories(wd)? {
                    match self.adopt(At::Below(wd, name))? {
                        Adopted::Known(child) => todo.push(child),
                        Adopted::New(_) | Adopted::Unwatched(_) | Adopted::Nothing => {}
                    }
                }
            }
        }
        for wd in self.tree.unmet(self.epoch) {
            let _ = inotify::remove_watch(&self.fd, wd);
            self.forget(wd);
        }
        Ok(())
    }

    /// Walks the directories again that could not be followed; returns those that now could.
    pub fn settle(&mut self) -> Result<Vec<Wd>, Errno> {
        let mut settled = Vec::new();
        for wd in std::mem::take(&mut self.unsettled) {
            for name in self.subdirectories(wd)? {
                self.adopt(At::Below(wd, name))?;
            }
            if self.tree.get(wd).is_some() && !self.unsettled.contains(&wd) {
                settled.push(wd);
            }
        }
        for wd in self.tree.take_homeless() {
            self.drop_subtree(wd);
        }
        self.unsettled.retain(|wd| self.tree.get(*wd).is_some());
        Ok(settled)
    }

    /// Roots that have been removed. A descriptor of ours keeps the kernel from telling.
    pub fn removed_roots(&self) -> Vec<usize> {
        let gone = |fd: &OwnedFd| fs::fstat(fd).is_ok_and(|s| s.st_nlink == 0);
        let fds = self.root_fds.iter().enumerate();
        fds.filter(|(_, fd)| gone(fd)).map(|(i, _)| i).collect()
    }

    /// Trees that no watch covers.
    pub fn unwatched(&self) -> usize {
        self.unwatched.len() + self.unwatched_roots.iter().filter(|r| **r).count()
    }

    /// Is this directory one that could not be watched?
    pub fn is_unwatched(&self, wd: Wd, name: &Name) -> bool {
        !self.unwatched.is_empty() && self.unwatched.contains_key(&At::Below(wd, name.clone()))
    }

    /// Takes the list of them, to try again.
    pub fn take_unwatched(&mut self) -> (Vec<(At, FileId)>, Vec<usize>) {
        let roots = (0..self.roots.len()).filter(|i| self.unwatched_roots[*i]);
        let roots = roots.collect();
        self.unwatched_roots.fill(false);
        (self.unwatched.drain().collect(), roots)
    }
}

fn open_root(r: &WatchRoot) -> std::io::Result<OwnedFd> {
    let fd = fs::open(r.path.as_path(), OFlags::PATH | DIR, Mode::empty())?;
    if sys::file_id(&fs::fstat(&fd)?) != r.id {
        return Err(std::io::Error::other(
            "another directory has taken its place",
        ));
    }
    Ok(fd)
}

/// Gone, replaced, or closed to us: nothing that is an error of the sensor.
fn is_gone(e: Errno) -> bool {
    matches!(
        e,
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE | Errno::ACCESS
    )
}
