//! The conformance suite: every operation that changes a tree, through every sensor, on a disk filesystem and on
//! tmpfs. What each shows is asserted row by row and published in `docs/capture.md`, which the suite compares
//! with what it sees (`FARWRITE_UPDATE_DOCS=1` writes it).

use crate::more;
use crate::place::{On, Place, byte_path, drain, id_of, is_exact, sensor_on, sensors};
use farwrite_capture::SensorKind;
use farwrite_core::{Change, ChangeOp, FileId};
use rustix::fs::{self as rfs, AtFlags, CWD, FallocateFlags, Mode, OFlags, RenameFlags};
use std::any::Any;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What a row's operation keeps open while the sensor is read.
pub type Held = Box<dyn Any>;

/// Root and outside directory of one run.
pub struct Ctx {
    root: PathBuf,
    outside: PathBuf,
}

impl Ctx {
    pub fn p(&self, rel: &str) -> PathBuf {
        match rel.strip_prefix("OUT/") {
            Some(rest) => self.outside.join(rest),
            None if rel == "." => self.root.clone(),
            None => self.root.join(rel),
        }
    }
    pub fn rw(&self, rel: &str) -> File {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.p(rel))
            .unwrap()
    }
}

/// How an operation shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shown {
    NotSeen,
    Subtree,
    Identity,
    Named,
    ExactIdentity,
    Exact,
}
use Shown::{Exact, ExactIdentity, Identity, Named, NotSeen, Subtree};

impl Shown {
    fn text(self) -> &'static str {
        match self {
            Shown::NotSeen => "**not seen**",
            Shown::Subtree => "subtree",
            Shown::Identity => "whole file, by identity",
            Shown::Named => "whole file",
            Shown::ExactIdentity => "exact range, by identity",
            Shown::Exact => "exact range",
        }
    }
}

/// What must be told of, about which path below the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    Write(&'static str),
    /// The times: some sensors cannot tell that from a write.
    Times(&'static str),
    Attrib(&'static str),
    Create(&'static str),
    Delete(&'static str),
    Rename(&'static str, &'static str),
    Below(&'static str),
}

pub struct Row {
    pub name: &'static str,
    pub before: fn(&Ctx),
    pub run: fn(&Ctx) -> Held,
    pub wants: &'static [Want],
    pub fanotify: Shown,
    pub inotify: Shown,
    /// The module and the eBPF programs.
    pub exact: Shown,
    /// Those on tmpfs.
    pub exact_on_tmpfs: Shown,
}

/// A row about a file's bytes.
pub fn data(
    name: &'static str,
    before: fn(&Ctx),
    run: fn(&Ctx) -> Held,
    wants: &'static [Want],
) -> Row {
    Row {
        exact: Exact,
        exact_on_tmpfs: Exact,
        ..row(name, before, run, wants)
    }
}

/// Held by a row whose operation this filesystem or kernel does not have.
struct Unsupported;

pub fn unsupported() -> Held {
    Box::new(Unsupported)
}

fn row(name: &'static str, before: fn(&Ctx), run: fn(&Ctx) -> Held, wants: &'static [Want]) -> Row {
    Row {
        name,
        before,
        run,
        wants,
        fanotify: Named,
        inotify: Named,
        exact: Named,
        exact_on_tmpfs: Named,
    }
}

pub fn nothing(_: &Ctx) {}

pub fn file(c: &Ctx) {
    fs::write(c.p("f"), vec![b'x'; 10_000]).unwrap();
}

pub fn two_files(c: &Ctx) {
    file(c);
    fs::write(c.p("g"), vec![b'y'; 10_000]).unwrap();
}

fn dirs(c: &Ctx) {
    fs::create_dir_all(c.p("d/e")).unwrap();
    fs::write(c.p("d/e/f"), b"below").unwrap();
}

fn outside_dirs(c: &Ctx) {
    fs::create_dir_all(c.p("OUT/d/e")).unwrap();
    fs::write(c.p("OUT/d/e/f"), b"below").unwrap();
    fs::write(c.p("OUT/f"), b"outside").unwrap();
}

fn exchange_dirs(c: &Ctx) {
    dirs(c);
    outside_dirs(c);
}

fn swap(a: &Path, b: &Path) -> rustix::io::Result<()> {
    rfs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)
}

fn linked_outside(c: &Ctx) {
    file(c);
    fs::hard_link(c.p("f"), c.p("OUT/h")).unwrap();
}

fn done<T>(result: rustix::io::Result<T>) -> Held {
    result.unwrap();
    Box::new(())
}

/// The bytes of the xattr `system.posix_acl_access` for u::rw, u:1:r, g::r, m::r, o::- (acl(5)).
fn acl() -> Vec<u8> {
    let mut v = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in [
        (1u16, 6u16, u32::MAX),
        (2, 4, 1),
        (4, 4, u32::MAX),
        (16, 4, u32::MAX),
        (32, 0, u32::MAX),
    ] {
        v.extend_from_slice(&tag.to_le_bytes());
        v.extend_from_slice(&perm.to_le_bytes());
        v.extend_from_slice(&id.to_le_bytes());
    }
    v
}

/// A shared mapping of a file's first page.
struct Map {
    at: *mut libc::c_void,
    _file: File,
}

impl Map {
    fn store(file: File) -> Map {
        use std::os::fd::AsRawFd;
        // SAFETY: a new mapping chosen by the kernel, of a file that is longer than a page.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        // SAFETY: the page is mapped writable, and nothing else refers to it.
        unsafe {
            at.cast::<u8>().write_volatile(b'M');
            assert_eq!(libc::msync(at, 4096, libc::MS_SYNC), 0);
        }
        Map { at, _file: file }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: mapped in `store`, unmapped only here.
        unsafe { libc::munmap(self.at, 4096) };
    }
}

/// copy_file_range(2) until all is copied: a filesystem may copy in parts.
pub fn copy_range(from: &File, mut at: u64, to: &File, mut to_at: u64, len: usize) {
    let mut left = len;
    while left > 0 {
        let n = rfs::copy_file_range(from, Some(&mut at), to, Some(&mut to_at), left).unwrap();
        assert_ne!(n, 0);
        left -= n;
    }
}

fn tmpfile(c: &Ctx, name: &str) -> File {
    let flags = OFlags::TMPFILE | OFlags::RDWR;
    let fd = rfs::open(&c.root, flags, Mode::from_raw_mode(0o600)).unwrap();
    let f = File::from(fd);
    f.write_all_at(b"new", 0).unwrap();
    let magic = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&f));
    rfs::linkat(CWD, magic, CWD, c.p(name), AtFlags::SYMLINK_FOLLOW).unwrap();
    f
}

fn set_times(path: &Path, atime: bool) -> rustix::io::Result<()> {
    let at = |nsec| rfs::Timespec {
        tv_sec: 1_000_000,
        tv_nsec: nsec,
    };
    let times = rfs::Timestamps {
        last_access: at(if atime { 5 } else { rfs::UTIME_OMIT }),
        last_modification: at(7),
    };
    rfs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
}

fn content_rows() -> Vec<Row> {
    const F: &[Want] = &[Want::Write("f")];
    vec![
        data(
            "write",
            file,
            |c| {
                let mut f = c.rw("f");
                f.write_all(b"abc").unwrap();
                Box::new(f)
            },
            F,
        ),
        data(
            "pwrite",
            file,
            |c| {
                let f = c.rw("f");
                f.write_all_at(b"abc", 5000).unwrap();
                Box::new(f)
            },
            F,
        ),
        data(
            "writev",
            file,
            |c| {
                let f = c.rw("f");
                let bufs = [std::io::IoSlice::new(b"ab"), std::io::IoSlice::new(b"cd")];
                rustix::io::writev(&f, &bufs).unwrap();
                Box::new(f)
            },
            F,
        ),
        data(
            "pwritev2",
            file,
            |c| {
                let f = c.rw("f");
                let bufs = [std::io::IoSlice::new(b"ab")];
                rustix::io::pwritev2(&f, &bufs, 100, rustix::io::ReadWriteFlags::DSYNC).unwrap();
                Box::new(f)
            },
            F,
        ),
        data(
            "copy by reflink or bytes (cp)",
            two_files,
            |c| {
                fs::copy(c.p("g"), c.p("f")).unwrap();
                Box::new(())
            },
            F,
        ),
        data(
            "append",
            file,
            |c| {
                let mut f = OpenOptions::new().append(true).open(c.p("f")).unwrap();
                f.write_all(b"abc").unwrap();
                Box::new(f)
            },
            F,
        ),
        data(
            "open with O_TRUNC",
            file,
            |c| Box::new(File::create(c.p("f")).unwrap()),
            F,
        ),
        data(
            "truncate, shorter",
            file,
            |c| {
                let f = c.rw("f");
                f.set_len(100).unwrap();
                Box::new(f)
            },
            F,
        ),
        data(
            "truncate, longer",
            file,
            |c| {
                let f = c.rw("f");
                f.set_len(1 << 20).unwrap();
                Box::new(f)
            },
            F,
        ),
        data(
            "fallocate",
            file,
            |c| {
                let f = c.rw("f");
                rfs::fallocate(&f, FallocateFlags::empty(), 0, 1 << 20).unwrap();
                Box::new(f)
            },
            F,
        ),
        data(
            "fallocate, punch hole",
            file,
            |c| {
                let f = c.rw("f");
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rfs::fallocate(&f, flags, 0, 4096).unwrap();
                Box::new(f)
            },
            F,
        ),
        data(
            "copy_file_range",
            two_files,
            |c| {
                let (f, g) = (c.rw("f"), c.rw("g"));
                copy_range(&g, 0, &f, 0, 5000);
                Box::new((f, g))
            },
            F,
        ),
        data(
            "sendfile",
            two_files,
            |c| {
                assert_eq!(
                    rfs::sendfile(c.rw("f"), c.rw("g"), None, 5000).unwrap(),
                    5000
                );
                Box::new(())
            },
            F,
        ),
        data(
            "splice from a pipe",
            file,
            |c| {
                let (r, w) = rustix::pipe::pipe().unwrap();
                rustix::io::write(&w, b"spliced").unwrap();
                let flags = rustix::pipe::SpliceFlags::empty();
                assert_eq!(
                    rustix::pipe::splice(&r, None, c.rw("f"), None, 7, flags).unwrap(),
                    7
                );
                Box::new(())
            },
            F,
        ),
        Row {
            fanotify: NotSeen,
            inotify: NotSeen,
            exact_on_tmpfs: Named,
            ..data(
                "mmap store and msync, still mapped",
                file,
                |c| Box::new(Map::store(c.rw("f"))),
                F,
            )
        },
        Row {
            exact_on_tmpfs: Named,
            ..data(
                "mmap store, then munmap and close",
                file,
                |c| {
                    drop(Map::store(c.rw("f")));
                    Box::new(())
                },
                F,
            )
        },
        Row {
            fanotify: Identity,
            inotify: NotSeen,
            exact: ExactIdentity,
            exact_on_tmpfs: ExactIdentity,
            ..data(
                "write through a hard link outside the root",
                linked_outside,
                |c| {
                    let mut f = c.rw("OUT/h");
                    f.write_all(b"abc").unwrap();
                    Box::new(f)
                },
                F,
            )
        },
        Row {
            fanotify: Identity,
            inotify: Identity,
            exact: ExactIdentity,
            exact_on_tmpfs: ExactIdentity,
            ..data(
                "O_TMPFILE, linkat, then write through the descriptor",
                nothing,
                |c| {
                    let f = tmpfile(c, "f");
                    f.write_all_at(b"more", 3).unwrap();
                    Box::new(f)
                },
                &[Want::Write("f")],
            )
        },
    ]
}

fn name_rows() -> Vec<Row> {
    vec![
        row(
            "create",
            nothing,
            |c| Box::new(File::create_new(c.p("f")).unwrap()),
            &[Want::Create("f")],
        ),
        row(
            "unlink one of two names",
            |c| {
                file(c);
                fs::hard_link(c.p("f"), c.p("h")).unwrap();
            },
            |c| done(rfs::unlink(c.p("f"))),
            &[Want::Delete("f")],
        ),
        row(
            "O_TMPFILE and linkat",
            nothing,
            |c| Box::new(tmpfile(c, "f")),
            &[Want::Create("f")],
        ),
        row(
            "mkdir",
            nothing,
            |c| done(rfs::mkdir(c.p("d"), Mode::RWXU)),
            &[Want::Create("d")],
        ),
        row(
            "rmdir",
            dirs,
            |c| {
                fs::remove_file(c.p("d/e/f")).unwrap();
                done(rfs::rmdir(c.p("d/e")))
            },
            &[Want::Delete("d/e")],
        ),
        row(
            "mknod, fifo",
            nothing,
            |c| {
                done(rfs::mknodat(
                    CWD,
                    c.p("p"),
                    rfs::FileType::Fifo,
                    Mode::RWXU,
                    0,
                ))
            },
            &[Want::Create("p")],
        ),
        row(
            "mknod, device",
            nothing,
            |c| {
                let null = rfs::makedev(1, 3);
                done(rfs::mknodat(
                    CWD,
                    c.p("n"),
                    rfs::FileType::CharacterDevice,
                    Mode::RWXU,
                    null,
                ))
            },
            &[Want::Create("n")],
        ),
        row(
            "bind, socket",
            nothing,
            |c| {
                // The path of a socket is at most 108 bytes, shorter than where a build directory may be.
                let dir = File::open(&c.root).unwrap();
                let fd = std::os::fd::AsRawFd::as_raw_fd(&dir);
                let s = std::os::unix::net::UnixListener::bind(format!("/proc/self/fd/{fd}/s"));
                Box::new(s.unwrap())
            },
            &[Want::Create("s")],
        ),
        row(
            "symlink",
            nothing,
            |c| done(rfs::symlink("target", c.p("l"))),
            &[Want::Create("l")],
        ),
        row(
            "link",
            file,
            |c| done(rfs::link(c.p("f"), c.p("h"))),
            &[Want::Create("h")],
        ),
        row(
            "unlink",
            file,
            |c| done(rfs::unlink(c.p("f"))),
            &[Want::Delete("f")],
        ),
        row(
            "rename",
            file,
            |c| done(rfs::rename(c.p("f"), c.p("g"))),
            &[Want::Rename("f", "g")],
        ),
        row(
            "rename over a file",
            two_files,
            |c| done(rfs::rename(c.p("f"), c.p("g"))),
            &[Want::Rename("f", "g")],
        ),
        row(
            "rename, exchange",
            two_files,
            |c| done(swap(&c.p("f"), &c.p("g"))),
            &[Want::Rename("f", "g"), Want::Rename("g", "f")],
        ),
        row(
            "rename into the root",
            outside_dirs,
            |c| done(rfs::rename(c.p("OUT/f"), c.p("f"))),
            &[Want::Create("f")],
        ),
        row(
            "rename out of the root",
            file,
            |c| done(rfs::rename(c.p("f"), c.p("OUT/f"))),
            &[Want::Delete("f")],
        ),
        row(
            "rename a directory, then write below it",
            dirs,
            |c| {
                fs::rename(c.p("d"), c.p("n")).unwrap();
                let f = c.rw("n/e/f");
                f.write_all_at(b"abc", 0).unwrap();
                Box::new(f)
            },
            &[Want::Rename("d", "n"), Want::Write("n/e/f")],
        ),
        row(
            "exchange two directories, then write below both",
            |c| {
                dirs(c);
                fs::create_dir_all(c.p("n/e")).unwrap();
                fs::write(c.p("n/e/f"), b"other").unwrap();
            },
            |c| {
                swap(&c.p("d"), &c.p("n")).unwrap();
                fs::write(c.p("n/e/f"), b"1").unwrap();
                fs::write(c.p("d/e/f"), b"2").unwrap();
                Box::new(())
            },
            &[
                Want::Rename("d", "n"),
                Want::Rename("n", "d"),
                Want::Write("n/e/f"),
                Want::Write("d/e/f"),
            ],
        ),
        row(
            "rename a directory into the root, then write below it",
            outside_dirs,
            |c| {
                fs::rename(c.p("OUT/d"), c.p("d")).unwrap();
                fs::write(c.p("d/e/f"), b"abc").unwrap();
                Box::new(())
            },
            &[Want::Create("d"), Want::Below("d")],
        ),
        row(
            "exchange a directory with one outside",
            exchange_dirs,
            |c| done(swap(&c.p("d"), &c.p("OUT/d"))),
            &[Want::Create("d"), Want::Below("d")],
        ),
        row(
            "exchange a directory outside with one below the root",
            exchange_dirs,
            |c| done(swap(&c.p("OUT/d"), &c.p("d"))),
            &[Want::Create("d"), Want::Below("d")],
        ),
        row(
            "exchange a file with a directory outside",
            |c| {
                outside_dirs(c);
                file(c);
            },
            |c| done(swap(&c.p("f"), &c.p("OUT/d"))),
            &[Want::Create("f"), Want::Below("f")],
        ),
        row(
            "rename a directory out of the root",
            dirs,
            |c| done(rfs::rename(c.p("d"), c.p("OUT/d"))),
            &[Want::Delete("d")],
        ),
        Row {
            inotify: Subtree,
            ..row(
                "mkdir, mkdir below, create below",
                nothing,
                |c| {
                    fs::create_dir_all(c.p("a/b")).unwrap();
                    fs::write(c.p("a/b/f"), b"abc").unwrap();
                    Box::new(())
                },
                &[
                    Want::Create("a"),
                    Want::Create("a/b"),
                    Want::Create("a/b/f"),
                ],
            )
        },
    ]
}

fn attribute_rows() -> Vec<Row> {
    const F: &[Want] = &[Want::Attrib("f")];
    vec![
        row(
            "chmod",
            file,
            |c| {
                fs::set_permissions(c.p("f"), fs::Permissions::from_mode(0o600)).unwrap();
                Box::new(())
            },
            F,
        ),
        row(
            "chmod, directory",
            dirs,
            |c| {
                fs::set_permissions(c.p("d/e"), fs::Permissions::from_mode(0o700)).unwrap();
                Box::new(())
            },
            &[Want::Attrib("d/e")],
        ),
        row(
            "chmod, the root itself",
            nothing,
            |c| {
                fs::set_permissions(c.p("."), fs::Permissions::from_mode(0o700)).unwrap();
                Box::new(())
            },
            &[Want::Attrib(".")],
        ),
        row(
            "chown",
            file,
            |c| {
                std::os::unix::fs::chown(c.p("f"), Some(1), Some(1)).unwrap();
                Box::new(())
            },
            F,
        ),
        row(
            "utimes, atime and mtime",
            file,
            |c| done(set_times(&c.p("f"), true)),
            F,
        ),
        row(
            "utimes, mtime alone",
            file,
            |c| done(set_times(&c.p("f"), false)),
            &[Want::Times("f")],
        ),
        row(
            "utimes, mtime alone, directory",
            dirs,
            |c| done(set_times(&c.p("d/e"), false)),
            &[Want::Attrib("d/e")],
        ),
        row(
            "utimes, mtime alone, the root itself",
            nothing,
            |c| done(set_times(&c.root, false)),
            &[Want::Attrib(".")],
        ),
        row(
            "setxattr",
            file,
            |c| {
                done(rfs::setxattr(
                    c.p("f"),
                    "trusted.x",
                    b"v",
                    rfs::XattrFlags::empty(),
                ))
            },
            F,
        ),
        row(
            "removexattr",
            |c| {
                file(c);
                rfs::setxattr(c.p("f"), "trusted.x", b"v", rfs::XattrFlags::empty()).unwrap();
            },
            |c| done(rfs::removexattr(c.p("f"), "trusted.x")),
            F,
        ),
        row(
            "ACL",
            file,
            |c| {
                let flags = rfs::XattrFlags::empty();
                done(rfs::setxattr(
                    c.p("f"),
                    "system.posix_acl_access",
                    &acl(),
                    flags,
                ))
            },
            F,
        ),
    ]
}

fn rows() -> Vec<Row> {
    [content_rows(), more::rows(), name_rows(), attribute_rows()]
        .into_iter()
        .flatten()
        .collect()
}

/// How the changes show one thing.
fn shown(c: &Ctx, changes: &[Change], want: Want, ids: &dyn Fn(&Path) -> Option<FileId>) -> Shown {
    let one = |ch: &Change| -> Shown {
        let (rel, fits) = match (want, &ch.op) {
            (Want::Write(p), op) => (
                p,
                matches!(
                    op,
                    ChangeOp::Write(_) | ChangeOp::Truncate(_) | ChangeOp::Mapped(_)
                ),
            ),
            (Want::Times(p), op) => (p, matches!(op, ChangeOp::Write(_) | ChangeOp::Attrib)),
            (Want::Attrib(p), op) => (p, *op == ChangeOp::Attrib),
            (Want::Create(p), op) => (p, *op == ChangeOp::Create),
            (Want::Delete(p), op) => (p, *op == ChangeOp::Delete),
            (Want::Below(p), _) => (p, false),
            (Want::Rename(p, to), ChangeOp::Rename { to_path, .. }) => {
                (p, *to_path == byte_path(&c.p(to)))
            }
            (Want::Rename(p, _), _) => (p, false),
        };
        let path = byte_path(&c.p(rel));
        let is_exact = matches!(
            ch.op,
            ChangeOp::Write(Some(_)) | ChangeOp::Mapped(Some(_)) | ChangeOp::Truncate(_)
        );
        if fits && ch.path == path && (ch.name.is_some() || rel == ".") {
            return match is_exact {
                true => Exact,
                false => Named,
            };
        }
        if fits && ch.file.is_some() && ch.file == ids(&c.p(rel)) {
            return match is_exact {
                true => ExactIdentity,
                false => Identity,
            };
        }
        let whole = matches!(ch.op, ChangeOp::Subtree | ChangeOp::Overflow);
        if whole && path.starts_with(&ch.path) {
            // For "what is below a new directory", a subtree is all that can be asked for.
            return if matches!(want, Want::Below(_)) {
                Named
            } else {
                Subtree
            };
        }
        NotSeen
    };
    changes.iter().map(one).max().unwrap_or(NotSeen)
}

/// Every message must name the directory by its true identity.
fn check_identities(c: &Ctx, changes: &[Change], row: &str) {
    for ch in changes.iter().filter(|ch| ch.name.is_some()) {
        let (dir, _) = ch.path.split_last().unwrap();
        if dir.as_path().exists() {
            let moved = changes
                .iter()
                .any(|o| matches!(o.op, ChangeOp::Rename { .. } | ChangeOp::Delete));
            assert!(moved || id_of(dir.as_path()) == ch.dir, "{row}: {ch:?}");
        }
        if let ChangeOp::Rename {
            to_path, to_dir, ..
        } = &ch.op
        {
            let (dir, _) = to_path.split_last().unwrap();
            assert_eq!(id_of(dir.as_path()), *to_dir, "{row}: {ch:?}");
        }
        assert!(ch.path.starts_with(&byte_path(&c.root)), "{row}: {ch:?}");
    }
}

/// Every byte that is another one now must be covered by a message about the file: nothing else is read again.
fn check_coverage(c: &Ctx, changes: &[Change], before: &[u8], file: &str, row: &str) {
    let after = fs::read(c.p(file)).unwrap();
    let id = id_of(&c.p(file));
    let path = byte_path(&c.p(file));
    let about = |ch: &&Change| ch.path == path || (ch.name.is_none() && ch.file == Some(id));
    let covers = |ch: &Change, at: u64| match ch.op {
        ChangeOp::Write(Some(e)) | ChangeOp::Mapped(Some(e)) => e.offset <= at && at < e.end(),
        ChangeOp::Truncate(_) => at >= before.len().min(after.len()) as u64,
        ChangeOp::Write(None) | ChangeOp::Mapped(None) | ChangeOp::Create => true,
        _ => false,
    };
    let told: Vec<&Change> = changes.iter().filter(about).collect();
    for at in 0..before.len().max(after.len()) {
        let changed = before.get(at) != after.get(at);
        assert!(
            !changed || told.iter().any(|ch| covers(ch, at as u64)),
            "{row}: byte {at} changed, {told:#?}"
        );
    }
}

/// `None`: this filesystem or kernel does not have the operation.
fn run_row(place: &Place, kind: SensorKind, number: usize, row: &Row) -> Option<Shown> {
    let sub = |dir: PathBuf| {
        let d = dir.join(format!("{kind}-{number}"));
        fs::create_dir(&d).unwrap();
        d
    };
    let c = Ctx {
        root: sub(place.root()),
        outside: sub(place.outside()),
    };
    (row.before)(&c);
    let written: Vec<(&str, Vec<u8>)> = (row.wants.iter())
        .filter_map(|w| match w {
            Want::Write(p) => Some((*p, fs::read(c.p(p)).ok()?)),
            _ => None,
        })
        .collect();
    let root = farwrite_capture::WatchRoot::lookup(byte_path(&c.root)).unwrap();
    let mut sensor = sensor_on(kind, root, &Default::default());
    let held = (row.run)(&c);
    let changes = drain(&mut *sensor);
    sensor.release().unwrap();
    let stats = sensor.stats();
    // Loading programs takes longer than everything else: they stay for the next row.
    sensor.leave();
    if held.is::<Unsupported>() {
        return None;
    }
    if std::env::var_os("FARWRITE_SHOW").is_some() {
        println!("{kind} {}: {changes:#?}", row.name);
    }
    check_identities(&c, &changes, row.name);
    let ids = |p: &Path| p.symlink_metadata().ok().map(|_| id_of(p));
    let shown = row
        .wants
        .iter()
        .map(|w| shown(&c, &changes, *w, &ids))
        .min();
    let shown = shown.expect("every row wants something");
    assert_eq!(
        (stats.lost, stats.overflows),
        (0, 0),
        "{}: {stats:?}",
        row.name
    );
    if is_exact(kind) {
        for (file, before) in &written {
            check_coverage(&c, &changes, before, file, row.name);
        }
    }
    drop(held);
    Some(shown)
}

fn expected(row: &Row, kind: SensorKind, on_tmpfs: bool) -> Shown {
    match kind {
        SensorKind::Fanotify => row.fanotify,
        SensorKind::Inotify => row.inotify,
        SensorKind::Scan => Subtree,
        _ if on_tmpfs => row.exact_on_tmpfs,
        _ => row.exact,
    }
}

/// What each sensor showed of each row.
type Seen = Vec<(&'static str, Vec<Option<Shown>>)>;

/// Runs all rows. What is as expected on tmpfs only is left out of the result: the document is about disks.
fn run(on: On) -> (Seen, Vec<String>) {
    let place = Place::new(on);
    let kinds = sensors();
    let on_tmpfs = rfs::statfs(&place.base).unwrap().f_type == 0x0102_1994;
    let mut seen = Vec::new();
    let mut wrong = Vec::new();
    for (i, row) in rows().iter().enumerate() {
        let mut cells = Vec::new();
        for kind in &kinds {
            let want = expected(row, *kind, on_tmpfs);
            let got = run_row(&place, *kind, i, row).map(|got| {
                let below = *kind == SensorKind::Scan && got == Named;
                if below { Subtree } else { got }
            });
            match got {
                None => println!("{kind} on {on:?}, {}: not to be had here", row.name),
                Some(got) if got != want => wrong.push(format!(
                    "{kind} on {on:?}, {}: {got:?} instead of {want:?}",
                    row.name
                )),
                Some(_) => {}
            }
            cells.push(got.filter(|_| want == expected(row, *kind, false)));
        }
        seen.push((row.name, cells));
    }
    // What stayed for the next row goes.
    for kind in kinds.into_iter().filter(|k| is_exact(*k)) {
        sensor_on(kind, place.watch(), &Default::default()).close();
    }
    (seen, wrong)
}

#[test]
fn every_operation_shows_as_documented_on_disk() {
    let (seen, wrong) = run(On::Disk);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    documented(&seen);
}

#[test]
fn every_operation_shows_as_documented_on_tmpfs() {
    let (seen, wrong) = run(On::Tmpfs);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    documented(&seen);
}

#[test]
fn the_documented_table_is_complete() {
    let doc = published();
    let all: Vec<&str> = rows().iter().map(|r| r.name).collect();
    let listed: Vec<&str> = doc.rows.iter().map(|r| r[0].as_str()).collect();
    assert_eq!(listed, all);
    for (row, cells) in rows().iter().zip(&doc.rows) {
        for (kind, cell) in COLUMNS.iter().zip(&cells[1..]) {
            assert_eq!(
                cell,
                expected(row, *kind, false).text(),
                "{kind}, {}",
                row.name
            );
        }
    }
    let exact = rows().iter().map(|r| r.exact).min();
    assert!(
        exact > Some(NotSeen),
        "the kernel's own sensors see everything"
    );
}

/// The table's columns behind the name of the operation.
const COLUMNS: [SensorKind; 5] = [
    SensorKind::Kmod,
    SensorKind::Ebpf,
    SensorKind::Fanotify,
    SensorKind::Inotify,
    SensorKind::Scan,
];
const BEGIN: &str = "<!-- conformance table: written by the conformance suite -->\n";
const END: &str = "<!-- end of conformance table -->";

/// The table in the docs.
struct Published {
    rows: Vec<Vec<String>>,
}

fn doc_path() -> PathBuf {
    match std::env::var_os("FARWRITE_CONFORMANCE_DOC") {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/capture.md"),
    }
}

/// The table in the docs; `FARWRITE_UPDATE_DOCS=1` first writes it as the rows here expect it.
fn published() -> Published {
    let doc = fs::read_to_string(doc_path()).unwrap();
    let (head, rest) = doc.split_once(BEGIN).expect("the table's first marker");
    let (table, tail) = rest.split_once(END).expect("the table's last marker");
    let mut table = table.to_string();
    if std::env::var_os("FARWRITE_UPDATE_DOCS").is_some() {
        let names = COLUMNS.map(|k| format!(" {k} |")).concat();
        table = format!(
            "| operation |{names}\n|---|{}\n",
            "---|".repeat(COLUMNS.len())
        );
        for row in rows() {
            let cells = COLUMNS.map(|k| format!(" {} |", expected(&row, k, false).text()));
            table += &format!("| {} |{}\n", row.name, cells.concat());
        }
        fs::write(doc_path(), format!("{head}{BEGIN}{table}{END}{tail}")).unwrap();
    }
    let cells = |line: &str| {
        let cells = line.trim_matches('|').split('|');
        cells.map(|c| c.trim().to_string()).collect()
    };
    Published {
        rows: table.lines().skip(2).map(cells).collect(),
    }
}

/// The docs say what was just seen.
fn documented(seen: &Seen) {
    let doc = published();
    for (name, cells) in seen {
        let row = doc.rows.iter().find(|r| r[0] == *name);
        let row = row.unwrap_or_else(|| panic!("{name} is not in docs/capture.md"));
        for (kind, got) in sensors().into_iter().zip(cells) {
            let Some(got) = got else { continue };
            let column = 1 + COLUMNS.iter().position(|c| *c == kind).unwrap();
            assert_eq!(
                row[column],
                got.text(),
                "{kind}, {name}: docs/capture.md is stale: run with FARWRITE_UPDATE_DOCS=1"
            );
        }
    }
}
