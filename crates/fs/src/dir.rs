//! An open directory, and everything one does to the names in it.

use crate::Stat;
use farwrite_core::{BytePath, Kind, Name, limits};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawDir, RenameFlags, ResolveFlags, SeekFrom, linkat, mkdirat,
    mknodat, openat2, readlinkat, renameat, renameat_with, seek, symlinkat, unlinkat,
};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);
const DIR_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// Bytes of path given to one openat2 call.
const PATH_PIECE_BYTES: usize = 2048;

/// An open directory. All names given to its functions are single components, so none leaves it.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name.
    pub name: Name,
    /// Its inode number; of a mount point, that of the directory below.
    pub ino: u64,
    /// Its kind, where the filesystem tells without a stat.
    pub kind: Option<Kind>,
}

/// How [`Dir::open_file`] opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Reading, without touching the access time where that is allowed.
    Read,
    /// Reading and writing what exists.
    ReadWrite,
    /// Reading and writing a new file of this mode; fails if the name is taken.
    CreateNew(u32),
}

/// What [`Dir::remove_tree`] removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemovedTree {
    /// Directories.
    pub dirs: u64,
    /// Everything else.
    pub others: u64,
}

impl Dir {
    /// Opens a directory by a path given by a person; follows symbolic links in it.
    pub fn open(path: &Path) -> io::Result<Dir> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Dir {
            fd: rustix::fs::open(path, flags, Mode::empty())?,
        })
    }

    /// Opens an absolute path of any length, following no symbolic link.
    pub fn open_absolute(path: &BytePath) -> io::Result<Dir> {
        let names: Vec<Name> = path.names().collect();
        Dir::open(Path::new("/"))?.open_beneath(&names)
    }

    /// Wraps a directory that is already open.
    pub fn from_fd(fd: OwnedFd) -> Dir {
        Dir { fd }
    }

    /// Opens a directory in this one.
    pub fn open_dir(&self, name: &Name) -> io::Result<Dir> {
        Ok(Dir {
            fd: retry(|| {
                openat2(
                    &self.fd,
                    name.as_os_str(),
                    DIR_FLAGS,
                    Mode::empty(),
                    BENEATH,
                )
            })?,
        })
    }

    /// Opens a directory any number of levels below; no names give another handle on this one.
    pub fn open_beneath(&self, names: &[Name]) -> io::Result<Dir> {
        let mut at: Option<Dir> = None;
        let mut rest = names;
        loop {
            let mut piece = Vec::new();
            while let [first, more @ ..] = rest {
                if !piece.is_empty() {
                    piece.push(b'/');
                }
                piece.extend_from_slice(first.as_bytes());
                rest = more;
                if piece.len() > PATH_PIECE_BYTES {
                    break;
                }
            }
            if piece.is_empty() {
                piece.push(b'.');
            }
            let from = at.as_ref().unwrap_or(self);
            let fd = retry(|| {
                openat2(
                    &from.fd,
                    OsStr::from_bytes(&piece),
                    DIR_FLAGS,
                    Mode::empty(),
                    BENEATH,
                )
            })?;
            if rest.is_empty() {
                return Ok(Dir { fd });
            }
            at = Some(Dir { fd });
        }
    }

    /// Another handle on the same directory.
    pub fn try_clone(&self) -> io::Result<Dir> {
        Ok(Dir {
            fd: self.fd.try_clone()?,
        })
    }

    /// The directory itself.
    pub fn stat_self(&self) -> io::Result<Stat> {
        Stat::of(&self.fd)
    }

    /// A name in it, not following a symbolic link.
    pub fn stat(&self, name: &Name) -> io::Result<Stat> {
        Stat::at(&self.fd, name.as_ref())
    }

    /// As [`Dir::stat`], with `None` where there is nothing.
    pub fn stat_if_exists(&self, name: &Name) -> io::Result<Option<Stat>> {
        match self.stat(name) {
            Ok(s) => Ok(Some(s)),
            Err(e) if crate::is_absent(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All entries but `.` and `..`, in the order that the filesystem gives.
    pub fn list(&self) -> io::Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        self.for_each_entry(|e| entries.push(e))?;
        Ok(entries)
    }

    /// Calls `f` with every entry, without holding them all.
    pub fn for_each_entry(&self, mut f: impl FnMut(DirEntry)) -> io::Result<()> {
        seek(&self.fd, SeekFrom::Start(0))?;
        let mut buf = vec![MaybeUninit::uninit(); 32 << 10];
        let mut raw = RawDir::new(&self.fd, &mut buf);
        while let Some(entry) = raw.next() {
            let entry = entry?;
            let bytes = entry.file_name().to_bytes();
            if bytes == b"." || bytes == b".." {
                continue;
            }
            let name = Name::new(bytes).map_err(io::Error::other)?;
            f(DirEntry {
                name,
                ino: entry.ino(),
                kind: kind_of(entry.file_type()),
            });
        }
        Ok(())
    }

    /// Opens a regular file, following no link and never blocking on a pipe. Anything but a regular file is
    /// `InvalidInput`.
    pub fn open_file(&self, name: &Name, mode: OpenMode) -> io::Result<File> {
        let file = self.open_unlooked(name, mode)?;
        if !matches!(mode, OpenMode::CreateNew(_)) {
            regular(&file)?;
        }
        Ok(file)
    }

    fn open_unlooked(&self, name: &Name, mode: OpenMode) -> io::Result<File> {
        let base = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let open =
            |flags, mode| retry(|| openat2(&self.fd, name.as_os_str(), flags, mode, BENEATH));
        let fd = match mode {
            OpenMode::Read => match open(base | OFlags::RDONLY | OFlags::NOATIME, Mode::empty()) {
                Err(Errno::PERM) => open(base | OFlags::RDONLY, Mode::empty()),
                other => other,
            },
            OpenMode::ReadWrite => open(base | OFlags::RDWR, Mode::empty()),
            OpenMode::CreateNew(m) => open(
                base | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
                Mode::from_raw_mode(m),
            ),
        }?;
        Ok(File::from(fd))
    }

    /// As [`Dir::open_file`] for reading, with what the kernel says of the file.
    pub fn read_file(&self, name: &Name) -> io::Result<(File, Stat)> {
        let file = self.open_unlooked(name, OpenMode::Read)?;
        let stat = regular(&file)?;
        Ok((file, stat))
    }

    /// Makes a directory of this mode (less the umask).
    pub fn mkdir(&self, name: &Name, mode: u32) -> io::Result<()> {
        Ok(mkdirat(
            &self.fd,
            name.as_os_str(),
            Mode::from_raw_mode(mode),
        )?)
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, name: &Name, target: &[u8]) -> io::Result<()> {
        Ok(symlinkat(
            OsStr::from_bytes(target),
            &self.fd,
            name.as_os_str(),
        )?)
    }

    /// Where a symbolic link points to.
    pub fn read_link(&self, name: &Name) -> io::Result<Vec<u8>> {
        Ok(readlinkat(&self.fd, name.as_os_str(), Vec::new())?.into_bytes())
    }

    /// Makes a fifo, socket or device node; other kinds are `InvalidInput`.
    pub fn mknod(&self, name: &Name, kind: Kind, mode: u32, rdev: u64) -> io::Result<()> {
        let ty = match kind {
            Kind::Fifo => FileType::Fifo,
            Kind::Socket => FileType::Socket,
            Kind::Char => FileType::CharacterDevice,
            Kind::Block => FileType::BlockDevice,
            Kind::File => FileType::RegularFile,
            Kind::Dir | Kind::Symlink => return Err(io::ErrorKind::InvalidInput.into()),
        };
        Ok(mknodat(
            &self.fd,
            name.as_os_str(),
            ty,
            Mode::from_raw_mode(mode),
            rdev,
        )?)
    }

    /// Gives `name` here a second name there.
    pub fn link(&self, name: &Name, to_dir: &Dir, to_name: &Name) -> io::Result<()> {
        Ok(linkat(
            &self.fd,
            name.as_os_str(),
            &to_dir.fd,
            to_name.as_os_str(),
            AtFlags::empty(),
        )?)
    }

    /// Renames, replacing what is there.
    pub fn rename(&self, name: &Name, to_dir: &Dir, to_name: &Name) -> io::Result<()> {
        Ok(renameat(
            &self.fd,
            name.as_os_str(),
            &to_dir.fd,
            to_name.as_os_str(),
        )?)
    }

    /// Renames; `AlreadyExists` if the new name is taken. A filesystem without `RENAME_NOREPLACE` (NFS, OpenZFS before 2.2, some
    /// of FUSE: rename(2)) gets a second name and loses the first, or, where it has none of those either and for directories, is
    /// asked whether the name is there just before.
    pub fn rename_noreplace(&self, name: &Name, to_dir: &Dir, to_name: &Name) -> io::Result<()> {
        let flags = RenameFlags::NOREPLACE;
        let (from, to) = (name.as_os_str(), to_name.as_os_str());
        match renameat_with(&self.fd, from, &to_dir.fd, to, flags) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                self.rename_unless_taken(name, to_dir, to_name)
            }
            done => Ok(done?),
        }
    }

    /// [`Dir::rename_noreplace`] without help by the kernel.
    fn rename_unless_taken(&self, name: &Name, to_dir: &Dir, to_name: &Name) -> io::Result<()> {
        if self.stat(name)?.kind != Kind::Dir {
            match self.link(name, to_dir, to_name) {
                Ok(()) => return self.unlink(name),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(e),
                Err(_) => {}
            }
        }
        match to_dir.stat_if_exists(to_name)? {
            Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
            None => self.rename(name, to_dir, to_name),
        }
    }

    /// Swaps two names atomically.
    pub fn rename_exchange(&self, name: &Name, to_dir: &Dir, to_name: &Name) -> io::Result<()> {
        Ok(renameat_with(
            &self.fd,
            name.as_os_str(),
            &to_dir.fd,
            to_name.as_os_str(),
            RenameFlags::EXCHANGE,
        )?)
    }

    /// Removes a name that is not a directory.
    pub fn unlink(&self, name: &Name) -> io::Result<()> {
        Ok(unlinkat(&self.fd, name.as_os_str(), AtFlags::empty())?)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, name: &Name) -> io::Result<()> {
        Ok(unlinkat(&self.fd, name.as_os_str(), AtFlags::REMOVEDIR)?)
    }

    /// Removes a name with everything below it, following no link. Nothing there is not an error. Uses one open
    /// directory per level up to [`limits::TREE_DEPTH`], and no recursion.
    pub fn remove_tree(&self, name: &Name) -> io::Result<RemovedTree> {
        let mut removed = RemovedTree::default();
        match self.unlink(name) {
            Ok(()) => {
                removed.others += 1;
                return Ok(removed);
            }
            Err(e) if crate::is_absent(&e) => return Ok(removed),
            Err(e) => match self.stat(name) {
                Ok(s) if s.kind == Kind::Dir => {}
                _ => return Err(e),
            },
        }
        let mut stack: Vec<Level> = vec![Level::open(self, name)?];
        while let Some(top) = stack.last_mut() {
            if let Some(sub) = top.subdirs.pop() {
                if stack.len() >= limits::TREE_DEPTH {
                    return Err(io::Error::other("directories nested too deep"));
                }
                let level = Level::open(&stack.last().expect("just seen").dir, &sub)?;
                stack.push(level);
                continue;
            }
            removed.others += top.others;
            let done = stack.pop().expect("just seen");
            let parent = stack.last().map_or(self, |l| &l.dir);
            match parent.rmdir(&done.name) {
                Ok(()) => removed.dirs += 1,
                Err(e) if crate::is_absent(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(removed)
    }

    /// A path through `/proc` to a name in this directory, for the calls that know no directory handle. As long
    /// as the handle is open it leads nowhere else.
    pub(crate) fn proc_path(&self, name: Option<&Name>) -> PathBuf {
        let base = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        match name {
            Some(n) => Path::new(&base).join(n),
            None => PathBuf::from(base),
        }
    }

    /// Writes everything of this directory's filesystem to the disk (syncfs(2)).
    pub fn sync_filesystem(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.fd)?)
    }

    /// Makes the names in this directory durable.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.fd)?)
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A directory that is being emptied: its files are gone, its subdirectories wait.
struct Level {
    dir: Dir,
    name: Name,
    subdirs: Vec<Name>,
    others: u64,
}

impl Level {
    fn open(parent: &Dir, name: &Name) -> io::Result<Level> {
        let dir = parent.open_dir(name)?;
        let mut level = Level {
            dir,
            name: name.clone(),
            subdirs: Vec::new(),
            others: 0,
        };
        for e in level.dir.list()? {
            if e.kind == Some(Kind::Dir) {
                level.subdirs.push(e.name);
                continue;
            }
            match level.dir.unlink(&e.name) {
                Ok(()) => level.others += 1,
                Err(err) if crate::is_absent(&err) => {}
                Err(err) => match level.dir.stat(&e.name) {
                    Ok(s) if s.kind == Kind::Dir => level.subdirs.push(e.name),
                    _ => return Err(err),
                },
            }
        }
        Ok(level)
    }
}

/// What an open file is, if it is a regular one.
fn regular(file: &File) -> io::Result<Stat> {
    let stat = Stat::of(file)?;
    match stat.kind {
        Kind::File => Ok(stat),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        )),
    }
}

fn kind_of(t: FileType) -> Option<Kind> {
    Some(match t {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::CharacterDevice => Kind::Char,
        FileType::BlockDevice => Kind::Block,
        FileType::Unknown => return None,
    })
}

/// Can what is beneath a directory be opened here? Everything in this crate stands on openat2(2), which filters of system calls refuse
/// that cannot look into its argument, as the one of `RestrictSUIDSGID=` does (systemd.exec(5)). The error says so.
pub fn check_openat2() -> io::Result<()> {
    let refused = "this process may not use the system call openat2: a filter forbids it (RestrictSUIDSGID=yes in a systemd unit, \
                   or one of a container), or the kernel is older than 5.6";
    match Dir::open(Path::new("/"))?.open_beneath(&[]) {
        Ok(_) => Ok(()),
        Err(e) => match Errno::from_io_error(&e) {
            Some(Errno::NOSYS | Errno::PERM) => Err(io::Error::new(e.kind(), refused)),
            _ => Err(e),
        },
    }
}

/// openat2 with RESOLVE_BENEATH may say EAGAIN when a rename runs at the same time (openat2(2)); a few tries
/// are enough in practice, and the error stands if they are not.
fn retry<T>(mut f: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    const TRIES: usize = 64;
    for _ in 1..TRIES {
        match f() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    f()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_kernels_help_a_rename_takes_no_name_either() {
        let top = tempfile::tempdir().unwrap();
        let dir = Dir::open(top.path()).unwrap();
        let name = |n: &str| Name::new(n).unwrap();
        std::fs::write(top.path().join("file"), "new").unwrap();
        std::fs::write(top.path().join("taken"), "old").unwrap();
        std::fs::create_dir(top.path().join("dir")).unwrap();
        for from in ["file", "dir"] {
            let taken = dir.rename_unless_taken(&name(from), &dir, &name("taken"));
            assert_eq!(taken.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            let to = name(&format!("{from} moved"));
            dir.rename_unless_taken(&name(from), &dir, &to).unwrap();
            assert!(dir.stat_if_exists(&name(from)).unwrap().is_none());
        }
        let read = |n: &str| std::fs::read(top.path().join(n)).unwrap();
        assert_eq!(
            (read("file moved"), read("taken")),
            (b"new".to_vec(), b"old".to_vec())
        );
        assert!(top.path().join("dir moved").is_dir());
    }
}
