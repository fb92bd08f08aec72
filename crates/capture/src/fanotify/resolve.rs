//! From the kernel's file handles to identities and paths, and to the question whether it concerns us at all.
//!
//! Handles hold a generation, so the identity behind one never changes. Where a directory *is* may
//! change with every rename of a directory: [`Resolver::directories_moved`] makes every remembered place
//! stale, also that of directories outside the roots, since one of them may have come in.

use super::parse::{Handle, handle_key};
use crate::{SensorError, SensorOptions, WatchRoot, sys};
use farwrite_core::{BytePath, FileId, limits};
use lru::LruCache;
use rustix::fs::{self, AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Directories whose place is remembered.
const DIRS_CACHED: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");
/// Files whose identity is remembered.
const FILES_CACHED: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");
/// Times that a directory's handle is tried again before it is taken to be gone.
const GONE_TRIES: u32 = 8;
/// Times that a handle is tried again after an error that should pass.
const OPEN_TRIES: u32 = 100;
/// What /proc appends to the path of a removed directory.
const DELETED: &[u8] = b" (deleted)";

/// Where a directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// At or below a root.
    Inside(Dir),
    /// Below no root.
    Outside,
    /// In a tree that is skipped.
    Skipped,
    /// Removed; the message about its own name covers it.
    Gone,
}

/// A directory at or below a root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dir {
    pub id: FileId,
    pub path: Arc<BytePath>,
    pub root: usize,
}

/// A file by its handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileInfo {
    pub id: FileId,
    /// It has more than one name.
    pub linked: bool,
}

/// A root with what is needed to find its descendants.
struct Root {
    watch: WatchRoot,
    /// Its path as /proc shows it now: differs from `watch.path` once the root or a directory above it is
    /// renamed, or in a mount namespace of its own.
    now: Vec<u8>,
    fd: OwnedFd,
    fsid: [u8; 8],
    mount: i32,
    handle: Box<[u8]>,
}

/// Answers where a handle leads, with bounded memory.
pub(super) struct Resolver {
    roots: Vec<Root>,
    skip: Vec<BytePath>,
    dirs: LruCache<Box<[u8]>, (u64, Place)>,
    files: LruCache<Box<[u8]>, Option<FileInfo>>,
    generation: u64,
}

impl Resolver {
    /// Opens every root.
    pub fn open(roots: &[WatchRoot], opts: &SensorOptions) -> Result<Self, SensorError> {
        let open = |w: &WatchRoot| {
            Root::open(w).map_err(|source| SensorError::Root {
                path: w.path.clone(),
                source,
            })
        };
        Ok(Resolver {
            roots: roots.iter().map(open).collect::<Result<_, _>>()?,
            skip: opts.skip.clone(),
            dirs: LruCache::new(DIRS_CACHED),
            files: LruCache::new(FILES_CACHED),
            generation: 0,
        })
    }

    /// The roots' descriptors, in order.
    pub fn root_fds(&self) -> impl Iterator<Item = (&WatchRoot, &OwnedFd)> {
        self.roots.iter().map(|r| (&r.watch, &r.fd))
    }

    /// Distinct filesystems.
    pub fn filesystems(&self) -> usize {
        let ids: std::collections::HashSet<_> = self.roots.iter().map(|r| r.fsid).collect();
        ids.len()
    }

    /// Opens every root by its handle: without CAP_DAC_READ_SEARCH no event could be placed.
    pub fn check_handles(&mut self) -> Result<(), SensorError> {
        for i in 0..self.roots.len() {
            let key = self.roots[i].handle.clone();
            let ok = self.open_handle(i, Handle { key: &key }, true);
            if let Err(e) = ok {
                return Err(SensorError::Unavailable {
                    sensor: crate::SensorKind::Fanotify,
                    why: format!(
                        "file handles of {} cannot be opened: {e}",
                        self.roots[i].watch.path
                    ),
                    remedy: "grant CAP_DAC_READ_SEARCH, or use inotify".into(),
                });
            }
        }
        Ok(())
    }

    /// The root itself, if the handle is one's.
    pub fn root_by_handle(&self, h: Handle<'_>) -> Option<usize> {
        self.roots.iter().position(|r| *r.handle == *h.key)
    }

    /// The roots on the handle's filesystem; all if none is known to be.
    pub fn roots_on(&self, h: Handle<'_>) -> Vec<usize> {
        let on = |i: &usize| self.roots[*i].fsid == h.fsid();
        let found: Vec<_> = (0..self.roots.len()).filter(on).collect();
        if found.is_empty() {
            return (0..self.roots.len()).collect();
        }
        found
    }

    /// Where the directory is now. `Err`: it could not be found out; the event counts as lost.
    pub fn dir(&mut self, h: Handle<'_>) -> io::Result<Place> {
        if let Some((generation, place)) = self.dirs.get(h.key)
            && *generation == self.generation
        {
            return Ok(place.clone());
        }
        let place = self.find_dir(h)?;
        self.dirs
            .put(h.key.into(), (self.generation, place.clone()));
        Ok(place)
    }

    fn find_dir(&self, h: Handle<'_>) -> io::Result<Place> {
        let mut mounts_tried = Vec::new();
        let mut place = Place::Outside;
        for i in self.roots_on(h) {
            if mounts_tried.contains(&self.roots[i].mount) {
                continue;
            }
            mounts_tried.push(self.roots[i].mount);
            let Some((fd, stat)) = self.open_handle(i, h, true)? else {
                return Ok(Place::Gone);
            };
            let Some(path) = path_of(&fd, &stat)? else {
                return Ok(Place::Gone);
            };
            match self.place(self.roots[i].mount, &path, sys::file_id(&stat)) {
                Place::Outside => {}
                found => place = found,
            }
        }
        Ok(place)
    }

    /// Which root's, if any, a path seen through a mount is; the innermost of nested roots.
    fn place(&self, mount: i32, path: &[u8], id: FileId) -> Place {
        let below = |r: &Root| {
            let rest = below(path, &r.now).filter(|_| r.mount == mount)?;
            let mut whole = r.watch.path.as_bytes().to_vec();
            whole.push(b'/');
            whole.extend_from_slice(rest);
            BytePath::new(&whole).ok()
        };
        let found = (self.roots.iter().enumerate())
            .filter_map(|(i, r)| Some((i, r.now.len(), below(r)?)))
            .max_by_key(|(_, len, _)| *len);
        let (root, path) = match found {
            Some((i, _, p)) => (Some(i), Some(p)),
            None => (None, BytePath::new(path).ok()),
        };
        if path
            .as_ref()
            .is_some_and(|p| self.skip.iter().any(|s| p.starts_with(s)))
        {
            return Place::Skipped;
        }
        match (root, path) {
            (Some(root), Some(path)) => Place::Inside(Dir {
                id,
                path: Arc::new(path),
                root,
            }),
            _ => Place::Outside,
        }
    }

    /// Identity of the directory that holds a directory.
    pub fn parent(&self, h: Handle<'_>, root: usize) -> io::Result<Option<FileId>> {
        let Some((fd, _)) = self.open_handle(root, h, true)? else {
            return Ok(None);
        };
        match fs::statat(&fd, "..", AtFlags::empty()) {
            Ok(stat) => Ok(Some(sys::file_id(&stat))),
            Err(Errno::NOENT | Errno::STALE) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Identity of a file or directory; `None` once it is gone.
    pub fn file(&mut self, h: Handle<'_>, is_dir: bool) -> io::Result<Option<FileInfo>> {
        if let Some(info) = self.files.get(h.key) {
            return Ok(*info);
        }
        let root = self.roots_on(h)[0];
        let info = self
            .open_handle(root, h, is_dir)?
            .map(|(_, stat)| FileInfo {
                id: sys::file_id(&stat),
                linked: stat.st_nlink > 1,
            });
        self.files.put(h.key.into(), info);
        Ok(info)
    }

    /// The file got or lost a name: what is remembered of it is stale.
    pub fn links_changed(&mut self, h: Handle<'_>) {
        self.files.pop(h.key);
    }

    /// A directory was renamed somewhere. `elsewhere`: neither end of the rename concerns a root, so that only
    /// a rename of a directory above one matters.
    pub fn directories_moved(&mut self, elsewhere: bool) {
        let mut changed = !elsewhere;
        for r in &mut self.roots {
            if let Ok(now) = read_link(&r.fd)
                && now != r.now
            {
                r.now = now;
                changed = true;
            }
        }
        if changed {
            self.generation += 1;
        }
    }

    /// Events were lost: nothing remembered can be relied on.
    pub fn forget(&mut self) {
        self.directories_moved(false);
        self.files.clear();
    }

    /// Opens a handle; `None` once the file is gone.
    fn open_handle(
        &self,
        root: usize,
        h: Handle<'_>,
        is_dir: bool,
    ) -> io::Result<Option<(OwnedFd, fs::Stat)>> {
        let (flags, gone_tries) = match is_dir {
            true => (OFlags::PATH | OFlags::DIRECTORY, GONE_TRIES),
            false => (OFlags::PATH, 0),
        };
        let flags = flags.bits() as i32;
        let mount = self.roots[root].fd.as_fd();
        let mut tries = 0;
        let fd = loop {
            match sys::open_by_handle(mount, h.kind(), h.bytes(), flags) {
                Ok(fd) => break fd,
                // Of a directory both also mean that one was renamed while the kernel looked for the way up from it
                // (`reconnect_path` in fs/exportfs/expfs.c), so neither is believed at once. Nothing is looked for above
                // a file.
                Err(e) => match e.raw_os_error() {
                    Some(libc::ESTALE | libc::ENOENT) if tries >= gone_tries => return Ok(None),
                    Some(libc::ESTALE | libc::ENOENT | libc::ENOMEM) if tries < OPEN_TRIES => {
                        tries += 1;
                        std::thread::yield_now();
                    }
                    _ => return Err(e),
                },
            }
        };
        let stat = fs::fstat(&fd)?;
        Ok((stat.st_nlink > 0).then_some((fd, stat)))
    }
}

impl Root {
    fn open(watch: &WatchRoot) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::open(watch.path.as_path(), flags, Mode::empty())?;
        if sys::file_id(&fs::fstat(&fd)?) != watch.id {
            return Err(io::Error::other("another directory has taken its place"));
        }
        let fsid = sys::fsid_of(fd.as_fd())?;
        let (kind, handle, mount) = sys::handle_of(fd.as_fd())?;
        Ok(Root {
            watch: watch.clone(),
            now: read_link(&fd)?,
            handle: handle_key(fsid, kind, &handle),
            fd,
            fsid,
            mount,
        })
    }
}

/// What follows `base` in `path`, without a leading slash; `None` if not at or below it.
fn below<'a>(path: &'a [u8], base: &[u8]) -> Option<&'a [u8]> {
    let base = base.strip_suffix(b"/").unwrap_or(base);
    match path.strip_prefix(base)? {
        [] => Some(&[]),
        [b'/', rest @ ..] => Some(rest),
        _ => None,
    }
}

fn read_link(fd: &OwnedFd) -> io::Result<Vec<u8>> {
    let link = fs::readlinkat(CWD, sys::proc_path(fd), Vec::new())?;
    Ok(link.into_bytes())
}

/// The path of an open directory; `None` if it has been removed.
fn path_of(fd: &OwnedFd, stat: &fs::Stat) -> io::Result<Option<Vec<u8>>> {
    match read_link(fd) {
        Ok(path) if path.ends_with(DELETED) => {
            // A directory may really be called so.
            let there = fs::stat(&path[..]).is_ok_and(|s| sys::file_id(&s) == sys::file_id(stat));
            Ok(there.then_some(path))
        }
        Err(e) if e.raw_os_error() == Some(libc::ENAMETOOLONG) => climb(fd, stat),
        other => other.map(Some),
    }
}

/// The path of a directory so deep that /proc cannot show it: goes up, looking for each directory's name in
/// the one above, until /proc can.
fn climb(fd: &OwnedFd, stat: &fs::Stat) -> io::Result<Option<Vec<u8>>> {
    let mut names: Vec<Vec<u8>> = Vec::new();
    let mut id = sys::file_id(stat);
    let mut here = rustix::io::dup(fd)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    while names.len() < limits::TREE_DEPTH {
        let up = fs::openat(&here, "..", flags, Mode::empty())?;
        let Some(name) = name_in(&up, id)? else {
            return Ok(None);
        };
        names.push(name);
        match read_link(&up) {
            Ok(mut path) => {
                for n in names.iter().rev() {
                    path.push(b'/');
                    path.extend_from_slice(n);
                }
                return Ok(Some(path));
            }
            Err(e) if e.raw_os_error() == Some(libc::ENAMETOOLONG) => {}
            Err(e) => return Err(e),
        }
        id = sys::file_id(&fs::fstat(&up)?);
        here = up;
    }
    Err(Errno::NAMETOOLONG.into())
}

/// The name that a directory has in the one above; `None` if it is not there any more.
fn name_in(dir: &OwnedFd, id: FileId) -> io::Result<Option<Vec<u8>>> {
    let is = |name: &std::ffi::CStr| {
        fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|s| sys::file_id(&s) == id)
    };
    for entry in fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let dots = matches!(name.to_bytes(), b"." | b"..");
        if !dots && entry.ino() == id.ino && is(name) {
            return Ok(Some(name.to_bytes().to_vec()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::below;

    #[test]
    fn below_stops_at_whole_components() {
        assert_eq!(below(b"/a/b/c", b"/a"), Some(&b"b/c"[..]));
        assert_eq!(below(b"/a", b"/a"), Some(&b""[..]));
        assert_eq!(below(b"/ab", b"/a"), None);
        assert_eq!(below(b"/x/y", b"/"), Some(&b"x/y"[..]));
        assert_eq!(below(b"/", b"/"), Some(&b""[..]));
    }
}
