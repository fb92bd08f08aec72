//! The conformance suite: every operation that changes a tree, through every sensor, on a disk filesystem and on
//! tmpfs. What each shows is asserted row by row and published in `docs/capture.md`, which the suite compares
//! with what it sees (`FARWRITE_UPDATE_DOCS=1` writes it).

use crate::place::{On, Place, byte_path, drain, id_of, sensor_on};
use farwrite_capture::SensorKind;
use farwrite_core::{Change, ChangeOp, FileId};
use rustix::fs::{self as rfs, AtFlags, CWD, FallocateFlags, Mode, OFlags, RenameFlags};
use std::any::Any;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What a row's operation keeps open while the sensor is read.
type Held = Box<dyn Any>;

/// Root and outside directory of one run.
struct Ctx {
    root: PathBuf,
    outside: PathBuf,
}

impl Ctx {
    fn p(&self, rel: &str) -> PathBuf {
        match rel.strip_prefix("OUT/") {
            Some(rest) => self.outside.join(rest),
            None if rel == "." => self.root.clone(),
            None => self.root.join(rel),
        }
    }
    fn rw(&self, rel: &str) -> File {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.p(rel))
            .unwrap()
    }
}

/// How an operation shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Shown {
    NotSeen,
    Subtree,
    Identity,
    Named,
    Exact,
}
use Shown::{Identity, Named, NotSeen, Subtree};

impl Shown {
    fn text(self) -> &'static str {
        match self {
            Shown::NotSeen => "**not seen**",
            Shown::Subtree => "subtree",
            Shown::Identity => "whole file, by identity",
            Shown::Named => "whole file",
            Shown::Exact => "exact range",
        }
    }
}

/// What must be told of, about which path below the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    Write(&'static str),
    Attrib(&'static str),
    Create(&'static str),
    Delete(&'static str),
    Rename(&'static str, &'static str),
    Below(&'static str),
}

struct Row {
    name: &'static str,
    before: fn(&Ctx),
    run: fn(&Ctx) -> Held,
    wants: &'static [Want],
    fanotify: Shown,
    inotify: Shown,
}

fn row(name: &'static str, before: fn(&Ctx), run: fn(&Ctx) -> Held, wants: &'static [Want]) -> Row {
    Row {
        name,
        before,
        run,
        wants,
        fanotify: Named,
        inotify: Named,
    }
}

fn nothing(_: &Ctx) {}

fn file(c: &Ctx) {
    fs::write(c.p("f"), vec![b'x'; 10_000]).unwrap();
}

fn two_files(c: &Ctx) {
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
        row(
            "write",
            file,
            |c| {
                let mut f = c.rw("f");
                f.write_all(b"abc").unwrap();
                Box::new(f)
            },
            F,
        ),
        row(
            "pwrite",
            file,
            |c| {
                let f = c.rw("f");
                f.write_all_at(b"abc", 5000).unwrap();
                Box::new(f)
            },
            F,
        ),
        row(
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
        row(
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
        row(
            "copy by reflink or bytes (cp)",
            two_files,
            |c| {
                fs::copy(c.p("g"), c.p("f")).unwrap();
                Box::new(())
            },
            F,
        ),
        row(
            "append",
            file,
            |c| {
                let mut f = OpenOptions::new().append(true).open(c.p("f")).unwrap();
                f.write_all(b"abc").unwrap();
                Box::new(f)
            },
            F,
        ),
        row(
            "open with O_TRUNC",
            file,
            |c| Box::new(File::create(c.p("f")).unwrap()),
            F,
        ),
        row(
            "truncate, shorter",
            file,
            |c| {
                let f = c.rw("f");
                f.set_len(100).unwrap();
                Box::new(f)
            },
            F,
        ),
        row(
            "truncate, longer",
            file,
            |c| {
                let f = c.rw("f");
                f.set_len(1 << 20).unwrap();
                Box::new(f)
            },
            F,
        ),
        row(
            "fallocate",
            file,
            |c| {
                let f = c.rw("f");
                rfs::fallocate(&f, FallocateFlags::empty(), 0, 1 << 20).unwrap();
                Box::new(f)
            },
            F,
        ),
        row(
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
        row(
            "copy_file_range",
            two_files,
            |c| {
                let (f, g) = (c.rw("f"), c.rw("g"));
                assert_eq!(
                    rfs::copy_file_range(&g, None, &f, None, 5000).unwrap(),
                    5000
                );
                Box::new((f, g))
            },
            F,
        ),
        row(
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
        row(
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
            ..row(
                "mmap store and msync, still mapped",
                file,
                |c| Box::new(Map::store(c.rw("f"))),
                F,
            )
        },
        row(
            "mmap store, then munmap and close",
            file,
            |c| {
                drop(Map::store(c.rw("f")));
                Box::new(())
            },
            F,
        ),
        Row {
            fanotify: Identity,
            inotify: NotSeen,
            ..row(
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
            ..row(
                "O_TMPFILE, linkat, then write through the descriptor",
                nothing,
                |c| Box::new(tmpfile(c, "f")),
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
            |c| {
                done(rfs::renameat_with(
                    CWD,
                    c.p("f"),
                    CWD,
                    c.p("g"),
                    RenameFlags::EXCHANGE,
                ))
            },
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
                rfs::renameat_with(CWD, c.p("d"), CWD, c.p("n"), RenameFlags::EXCHANGE).unwrap();
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
            &[Want::Write("f")],
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
                    "user.x",
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
                rfs::setxattr(c.p("f"), "user.x", b"v", rfs::XattrFlags::empty()).unwrap();
            },
            |c| done(rfs::removexattr(c.p("f"), "user.x")),
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
    [content_rows(), name_rows(), attribute_rows()]
        .into_iter()
        .flatten()
        .collect()
}

/// How the changes show one thing.
fn shown(c: &Ctx, changes: &[Change], want: Want, ids: &dyn Fn(&Path) -> Option<FileId>) -> Shown {
    let one = |ch: &Change| -> Shown {
        let (rel, fits) = match (want, &ch.op) {
            (Want::Write(p), op) => (p, matches!(op, ChangeOp::Write(_) | ChangeOp::Truncate(_))),
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
        if fits && ch.path == path && (ch.name.is_some() || rel == ".") {
            return match ch.op {
                ChangeOp::Write(Some(_)) => Shown::Exact,
                _ => Named,
            };
        }
        if fits && ch.file.is_some() && ch.file == ids(&c.p(rel)) {
            return Identity;
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

fn run_row(place: &Place, kind: SensorKind, number: usize, row: &Row) -> Shown {
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
    let root = farwrite_capture::WatchRoot::lookup(byte_path(&c.root)).unwrap();
    let mut sensor = sensor_on(kind, root, &Default::default());
    let held = (row.run)(&c);
    let changes = drain(&mut *sensor);
    check_identities(&c, &changes, row.name);
    let ids = |p: &Path| p.symlink_metadata().ok().map(|_| id_of(p));
    let shown = row
        .wants
        .iter()
        .map(|w| shown(&c, &changes, *w, &ids))
        .min();
    let shown = shown.expect("every row wants something");
    let stats = sensor.stats();
    assert_eq!(
        (stats.lost, stats.overflows),
        (0, 0),
        "{}: {stats:?}",
        row.name
    );
    sensor.close();
    drop(held);
    if std::env::var_os("FARWRITE_SHOW").is_some() {
        println!("{kind} {}: {changes:#?}", row.name);
    }
    shown
}

/// Runs all rows; the table as markdown, and what is not as expected.
fn run(on: On) -> (String, Vec<String>) {
    let place = Place::new(on);
    let mut table = String::from("| operation | fanotify | inotify | scan |\n|---|---|---|---|\n");
    let mut wrong = Vec::new();
    for (i, row) in rows().iter().enumerate() {
        let expected = [
            (SensorKind::Fanotify, row.fanotify),
            (SensorKind::Inotify, row.inotify),
            (SensorKind::Scan, Subtree),
        ];
        table += &format!("| {} |", row.name);
        for (kind, want) in expected {
            let got = run_row(&place, kind, i, row);
            let below = kind == SensorKind::Scan && got == Named;
            if got != want && !below {
                wrong.push(format!(
                    "{kind} on {on:?}, {}: {got:?} instead of {want:?}",
                    row.name
                ));
            }
            table += &format!(" {} |", if below { Subtree } else { got }.text());
        }
        table += "\n";
    }
    (table, wrong)
}

#[test]
fn every_operation_shows_as_documented_on_disk() {
    let (table, wrong) = run(On::Disk);
    assert!(wrong.is_empty(), "{table}\n{}", wrong.join("\n"));
    documented(&table);
}

#[test]
fn every_operation_shows_as_documented_on_tmpfs() {
    let (table, wrong) = run(On::Tmpfs);
    assert!(wrong.is_empty(), "{table}\n{}", wrong.join("\n"));
    documented(&table);
}

/// The table in the docs is the one that was just seen.
fn documented(table: &str) {
    const BEGIN: &str = "<!-- conformance table: written by the conformance suite -->\n";
    const END: &str = "<!-- end of conformance table -->";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/capture.md");
    let doc = fs::read_to_string(&path).unwrap();
    let (head, rest) = doc.split_once(BEGIN).expect("the table's first marker");
    let (old, tail) = rest.split_once(END).expect("the table's last marker");
    if std::env::var_os("FARWRITE_UPDATE_DOCS").is_some() {
        fs::write(&path, format!("{head}{BEGIN}{table}{END}{tail}")).unwrap();
    } else {
        assert_eq!(
            old, table,
            "docs/capture.md is stale: run with FARWRITE_UPDATE_DOCS=1"
        );
    }
}
