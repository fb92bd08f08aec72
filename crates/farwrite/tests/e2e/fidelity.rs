//! Mirror and restore are the source: everything that a tree can hold, and everything that can be done to it.

use crate::harness::{
    DEEP, LONG, Listing, Pair, SHORT, assert_same, disk_bytes, farwrite, name, rsync_differences,
    run, sh,
};
use farwrite_core::Name;
use farwrite_fs::Dir;
use farwrite_testkit::Chance;
use farwrite_testkit::snapshot::data_map;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps,
    XattrFlags, fallocate, linkat, lsetxattr, makedev, mknodat, renameat_with, utimensat,
};
use rustix::process::Signal;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

/// Files in the directory that is renamed.
const MANY: usize = 2000;
/// What renaming it may cost.
const RENAME_WIRE_BYTES: u64 = 64 << 10;
/// A page of the disk.
const PAGE: u64 = 4096;
/// Levels of the deep tree, of names of [`DEEP_NAME_BYTES`] each: beyond `PATH_MAX`.
const DEEP_LEVELS: usize = 40;
const DEEP_NAME_BYTES: usize = 200;

/// What is on the disk is flushed first: where a file has holes is settled only then.
fn sync(dir: &Path) {
    Dir::open(dir).unwrap().sync_filesystem().unwrap();
}

fn set_times(path: &Path, sec: i64, nsec: i64) {
    let t = Timespec {
        tv_sec: sec,
        tv_nsec: nsec,
    };
    let times = Timestamps {
        last_access: t,
        last_modification: t,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn xattr(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn node(path: &Path, kind: FileType, rdev: u64) {
    mknodat(CWD, path, kind, Mode::from_raw_mode(0o640), rdev).unwrap();
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// The directory at the bottom of the deep tree.
fn deep_bottom(src: &Path) -> Dir {
    let mut at = Dir::open(&src.join(DEEP)).unwrap();
    for level in 0..DEEP_LEVELS {
        let name = Name::new(format!("{level:0DEEP_NAME_BYTES$}")).unwrap();
        if at.stat_if_exists(&name).unwrap().is_none() {
            at.mkdir(&name, 0o755).unwrap();
        }
        at = at.open_dir(&name).unwrap();
    }
    at
}

fn write_deep(src: &Path, file: &str, content: &[u8]) {
    use farwrite_fs::OpenMode::CreateNew;
    let name = Name::new(file).unwrap();
    let mut f = deep_bottom(src).open_file(&name, CreateNew(0o644)).unwrap();
    f.write_all(content).unwrap();
}

/// One tree with everything in it.
fn build(src: &Path, chance: &mut Chance) {
    contents(src, chance);
    attributes(src);
    links_and_nodes(src);
    names(src);
    fs::create_dir(src.join(DEEP)).unwrap();
    write_deep(src, "at the bottom", b"deep");
    fs::create_dir_all(src.join("many")).unwrap();
    for i in 0..MANY {
        fs::write(src.join(format!("many/{i}")), format!("{i}\n")).unwrap();
    }
    // Last: what is done in a directory changes its time.
    set_times(&src.join("empty dir"), 1, 999_999_999);
    set_times(&src.join("names"), 1_000_000_000, 123_456_789);
    set_times(src, 1_600_000_000, 987_654_321);
}

fn contents(src: &Path, chance: &mut Chance) {
    let d = src.join("contents");
    fs::create_dir(&d).unwrap();
    fs::write(d.join("empty"), b"").unwrap();
    for size in [1, 4095, 4096, 4097, 65_535, 65_536, 65_537, 3_000_001] {
        fs::write(d.join(format!("random {size}")), chance.bytes(size)).unwrap();
    }
    fs::write(d.join("text"), "the same line again\n".repeat(100_000)).unwrap();
    fs::write(d.join("zeros, written"), vec![0; 300_000]).unwrap();

    let small = File::create_new(d.join("small holes")).unwrap();
    small.write_all_at(b"start", 0).unwrap();
    small.write_all_at(b"middle", 5 * PAGE).unwrap();
    small.set_len(9 * PAGE + 7).unwrap();
    let large = File::create_new(d.join("large holes")).unwrap();
    large.write_all_at(&chance.bytes(10_000), 3 << 20).unwrap();
    large
        .write_all_at(&chance.bytes(5_000_000), 21 << 20)
        .unwrap();
    large.set_len(40 << 20).unwrap();
    let hole = File::create_new(d.join("only a hole")).unwrap();
    hole.set_len((9 << 20) + 1).unwrap();
}

fn attributes(src: &Path) {
    let d = src.join("attributes");
    fs::create_dir(&d).unwrap();
    let file = |n: &str| {
        let p = d.join(n);
        fs::write(&p, n).unwrap();
        p
    };
    for bits in [0o0, 0o400, 0o755, 0o1644, 0o2755, 0o4755, 0o6711, 0o7777] {
        mode(&file(&format!("mode {bits:o}")), bits);
    }
    for bits in [0o700, 0o1777, 0o2775] {
        let p = d.join(format!("dir {bits:o}"));
        fs::create_dir(&p).unwrap();
        mode(&p, bits);
    }
    let owned = file("owned, suid");
    lchown(&owned, Some(12_345), Some(54_321)).unwrap();
    mode(&owned, 0o4755);
    lchown(file("largest ids"), Some(u32::MAX - 1), Some(u32::MAX - 1)).unwrap();

    let x = file("xattrs");
    xattr(&x, "user.text", b"value");
    xattr(&x, "user.empty", b"");
    xattr(&x, "user.bytes", &[0, 255, 10, 0]);
    xattr(&x, "user.large", &[b'x'; 2000]);
    xattr(&x, "trusted.one", b"root only");
    xattr(&x, "security.farwrite", b"a module's");
    // cap_net_raw+ep, version 2: what setcap writes.
    let mut caps = [0u8; 20];
    caps[..8].copy_from_slice(&[1, 0, 0, 2, 0, 0x20, 0, 0]);
    xattr(&file("capability"), "security.capability", &caps);
    let dir = d.join("dir with xattr");
    fs::create_dir(&dir).unwrap();
    xattr(&dir, "user.on a dir", b"yes");

    let acl = file("acl");
    let inherits = d.join("dir with default acl");
    fs::create_dir(&inherits).unwrap();
    sh(
        "setfacl",
        [
            OsStr::new("-m"),
            name(b"u:1234:rw,g:99:r,m::rwx"),
            acl.as_os_str(),
        ],
        SHORT,
    );
    sh(
        "setfacl",
        [
            OsStr::new("-m"),
            name(b"u:1234:rwx,d:u:1234:rx,d:g:5:rwx"),
            inherits.as_os_str(),
        ],
        SHORT,
    );
    fs::write(inherits.join("inherited"), b"").unwrap();
    fs::create_dir(inherits.join("inherited too")).unwrap();

    set_times(&file("before 1970"), -1_000_000, 1);
    set_times(&file("a nanosecond"), 1_234_567_890, 1);
    set_times(&file("year 2200"), 7_258_118_400, 999_999_999);
}

fn links_and_nodes(src: &Path) {
    let d = src.join("links");
    fs::create_dir_all(d.join("a/b")).unwrap();
    fs::create_dir(d.join("c")).unwrap();
    fs::write(d.join("a/first"), b"of many names").unwrap();
    fs::hard_link(d.join("a/first"), d.join("a/b/across")).unwrap();
    for i in 0..100 {
        fs::hard_link(d.join("a/first"), d.join(format!("c/{i}"))).unwrap();
    }
    symlink("no such thing", d.join("dangling")).unwrap();
    symlink("a", d.join("to a dir")).unwrap();
    symlink("/etc/passwd", d.join("to outside")).unwrap();
    symlink(name(b"\xff\xfe\n"), d.join("to odd bytes")).unwrap();
    symlink("x".repeat(4000), d.join("long target")).unwrap();
    symlink("owned", d.join("symlink owned")).unwrap();
    lchown(d.join("symlink owned"), Some(7), Some(8)).unwrap();
    set_times(&d.join("symlink owned"), 1_111_111_111, 111_111_111);
    fs::hard_link(d.join("dangling"), d.join("c/second name of a symlink")).unwrap();

    let d = src.join("nodes");
    fs::create_dir(&d).unwrap();
    node(&d.join("fifo"), FileType::Fifo, 0);
    drop(UnixListener::bind(d.join("socket")).unwrap());
    node(&d.join("char"), FileType::CharacterDevice, makedev(1, 3));
    node(&d.join("whiteout"), FileType::CharacterDevice, 0);
    node(&d.join("block"), FileType::BlockDevice, makedev(7, 200));
    node(
        &d.join("large minor"),
        FileType::BlockDevice,
        makedev(4000, 1_000_000),
    );
    fs::hard_link(d.join("fifo"), d.join("fifo again")).unwrap();
    lchown(d.join("char"), Some(3), Some(4)).unwrap();
    mode(&d.join("char"), 0o666);
    fs::create_dir(src.join("empty dir")).unwrap();
}

fn names(src: &Path) {
    let d = src.join("names");
    fs::create_dir(&d).unwrap();
    let mut all: Vec<Vec<u8>> = vec![
        b"\xff\xfe\xfd".to_vec(),
        b"new\nline".to_vec(),
        b"\x01\x1b[31m\x7f".to_vec(),
        b" leading and trailing ".to_vec(),
        b"-n".to_vec(),
        b"*?[]{}\\'\"$`".to_vec(),
        "e\u{301} or \u{e9}".into(),
        "\u{e9} or e\u{301}".into(),
        b"...".to_vec(),
        vec![b'l'; 255],
    ];
    all.extend((1..=255u8).filter(|b| !b"/.".contains(b)).map(|b| vec![b]));
    for n in &all {
        fs::write(d.join(name(n)), n).unwrap();
    }
    fs::create_dir(d.join(name(b"dir \xff"))).unwrap();
    fs::write(d.join(name(b"dir \xff/\x80")), b"").unwrap();
}

/// What is done to the tree while it is watched, one after the other.
type Operation = (&'static str, fn(&Path, &mut Chance));

const OPERATIONS: &[Operation] = &[
    ("a file becomes a directory", |s, _| {
        fs::remove_file(s.join("contents/text")).unwrap();
        fs::create_dir(s.join("contents/text")).unwrap();
        fs::write(s.join("contents/text/in it"), b"x").unwrap();
    }),
    ("and a file again", |s, _| {
        fs::remove_dir_all(s.join("contents/text")).unwrap();
        fs::write(s.join("contents/text"), b"a file").unwrap();
    }),
    ("a directory becomes a symlink to where it went", |s, _| {
        fs::rename(s.join("links/a"), s.join("links/moved")).unwrap();
        symlink("moved", s.join("links/a")).unwrap();
    }),
    ("rename over an existing name", |s, _| {
        fs::rename(s.join("contents/random 4097"), s.join("contents/random 1")).unwrap();
    }),
    ("written beside and renamed over", |s, c| {
        let new = s.join("contents/.random 65537.new");
        fs::write(&new, c.bytes(70_000)).unwrap();
        fs::rename(new, s.join("contents/random 65537")).unwrap();
    }),
    ("a chain of renames", |s, _| {
        let d = s.join("contents");
        for (from, to) in [
            ("random 4096", "t"),
            ("random 4095", "random 4096"),
            ("t", "random 4095"),
        ] {
            fs::rename(d.join(from), d.join(to)).unwrap();
        }
    }),
    ("two files exchanged", |s, _| {
        exchange(
            &s.join("contents/random 65536"),
            &s.join("contents/random 65535"),
        );
    }),
    ("a file and a directory exchanged, far apart", |s, _| {
        exchange(&s.join("attributes/acl"), &s.join("links/c"));
    }),
    ("two directories exchanged", |s, _| {
        exchange(&s.join("names"), &s.join("nodes"));
    }),
    ("a directory goes into its former child's place", |s, _| {
        fs::create_dir_all(s.join("up/down/bottom")).unwrap();
        fs::write(s.join("up/down/f"), b"f").unwrap();
        fs::rename(s.join("up/down"), s.join("down")).unwrap();
        fs::rename(s.join("up"), s.join("down/up")).unwrap();
    }),
    ("made without a name and linked", |s, c| unnamed(s, c)),
    ("hard links come and go", |s, _| {
        fs::hard_link(s.join("contents/empty"), s.join("empty dir/linked")).unwrap();
        fs::hard_link(s.join("contents/random 3000001"), s.join("large, linked")).unwrap();
        fs::remove_file(s.join("contents/random 3000001")).unwrap();
        fs::remove_file(s.join("links/moved/first")).unwrap();
    }),
    ("written through one of two names", |s, c| {
        let f = File::options()
            .write(true)
            .open(s.join("empty dir/linked"))
            .unwrap();
        f.write_all_at(&c.bytes(100), 0).unwrap();
    }),
    ("modes, owners and attributes of a whole tree", |s, _| {
        let (many, attributes) = (s.join("many"), s.join("attributes"));
        let path = [many.as_os_str(), attributes.as_os_str()];
        let with = |args: &[&'static str]| {
            let args = args.iter().copied().map(OsStr::new);
            args.chain(path).collect::<Vec<_>>()
        };
        sh("chmod", with(&["-R", "u+rwX,o+t"]), SHORT);
        sh("chown", with(&["-R", "33:44"]), SHORT);
        sh("setfacl", with(&["-R", "-m", "u:77:r"]), SHORT);
        sh(
            "setfattr",
            with(&["-n", "user.all", "-v", "of them"]),
            SHORT,
        );
    }),
    ("attributes taken away", |s, _| {
        let d = s.join("attributes");
        sh(
            "setfacl",
            [OsStr::new("-R"), OsStr::new("-b"), d.as_os_str()],
            SHORT,
        );
        rustix::fs::lremovexattr(d.join("xattrs"), "user.large").unwrap();
        rustix::fs::lremovexattr(d.join("xattrs"), "trusted.one").unwrap();
        set_times(&d.join("year 2200"), 0, 0);
        lchown(s.join("links/dangling"), Some(9), Some(9)).unwrap();
    }),
    ("truncated, down and up", |s, _| {
        let open = |n: &str| File::options().write(true).open(s.join(n)).unwrap();
        open("large, linked").set_len(1_234_567).unwrap();
        open("contents/random 65537").set_len(1_000_000).unwrap();
        let there_and_back = open("contents/large holes");
        there_and_back.set_len(22 << 20).unwrap();
        there_and_back.set_len(50 << 20).unwrap();
        open("contents/zeros, written").set_len(0).unwrap();
    }),
    ("holes punched, zeros and space allocated", |s, _| {
        let f = File::options()
            .write(true)
            .open(s.join("large, linked"))
            .unwrap();
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&f, punch, 64 * PAGE, 100 * PAGE).unwrap();
        let f = File::options()
            .write(true)
            .open(s.join("contents/random 65537"))
            .unwrap();
        // Where zeros were allocated, what has been read counts as data: no hole to compare.
        fallocate(&f, FallocateFlags::ZERO_RANGE, 20 * PAGE + 5, 3 * PAGE).unwrap();
        fallocate(&f, FallocateFlags::empty(), 900_000, 300_000).unwrap();
    }),
    ("a page cut out and one put in", |s, _| {
        let f = File::options()
            .write(true)
            .open(s.join("large, linked"))
            .unwrap();
        fallocate(&f, FallocateFlags::COLLAPSE_RANGE, 2 * PAGE, PAGE).unwrap();
        fallocate(&f, FallocateFlags::INSERT_RANGE, 7 * PAGE, PAGE).unwrap();
    }),
    ("stored through a shared mapping", |s, c| {
        map_and_store(s, c)
    }),
    ("deep below PATH_MAX", |s, c| {
        write_deep(s, "another", &c.bytes(5000))
    }),
    ("deep tree renamed", |s, _| {
        let top = Dir::open(&s.join(DEEP)).unwrap();
        let name = |b: u8| Name::new(format!("{b:0DEEP_NAME_BYTES$}")).unwrap();
        top.rename(&name(0), &top, &name(9)).unwrap();
    }),
    ("out of the tree and back under another name", |s, _| {
        let out = s.parent().unwrap().join("outside");
        fs::rename(s.join("many"), &out).unwrap();
        fs::write(out.join("7"), b"changed while away").unwrap();
        fs::rename(out, s.join("many again")).unwrap();
    }),
    ("names of any bytes renamed", |s, _| {
        // The two directories were exchanged.
        let d = s.join("nodes");
        fs::rename(d.join(name(b"\xff\xfe\xfd")), d.join(name(b"\n\xff"))).unwrap();
        fs::rename(d.join(name(b"dir \xff")), d.join(name(b"dir \xfe"))).unwrap();
    }),
    ("made, filled and removed at once", |s, _| {
        for i in 0..20 {
            let d = s.join("short-lived");
            fs::create_dir_all(d.join("a/b/c")).unwrap();
            fs::write(d.join("a/b/c/f"), format!("{i}")).unwrap();
            fs::remove_dir_all(d).unwrap();
        }
    }),
    ("a whole tree removed", |s, _| {
        fs::remove_dir_all(s.join("many again")).unwrap();
        fs::remove_dir_all(s.join("attributes")).unwrap();
    }),
];

fn exchange(a: &Path, b: &Path) {
    renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).unwrap();
}

fn unnamed(src: &Path, chance: &mut Chance) {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let fd = rustix::fs::open(src.join("contents"), flags, Mode::from_raw_mode(0o640)).unwrap();
    let f = File::from(fd);
    f.write_all_at(&chance.bytes(200_000), 0).unwrap();
    let proc = format!("/proc/self/fd/{}", f.as_raw_fd());
    let to = src.join("contents/had no name");
    linkat(CWD, proc, CWD, to, AtFlags::SYMLINK_FOLLOW).unwrap();
    f.write_all_at(b"written after it was linked", 1000)
        .unwrap();
}

/// `mmap(2)` needs `unsafe`, which tests do without: a few lines of C, built by the compiler that builds SQLite.
const MAPPER: &str = r#"
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
int main(int argc, char **argv) {
    int fd = open(argv[1], O_RDWR);
    char *p = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (argc != 2 || p == MAP_FAILED) return 1;
    memset(p + 5000, 'm', 10000);
    memset(p + 700000, 'n', 1);
    return munmap(p, 1 << 20) || close(fd);
}
"#;

fn map_and_store(src: &Path, chance: &mut Chance) {
    let target = src.join("contents/random 65537");
    fs::write(&target, chance.bytes(1 << 20)).unwrap();
    let program = src.parent().unwrap().join("mapper");
    let mut cc = Command::new("cc")
        .args(["-x", "c", "-", "-o"])
        .arg(&program)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    cc.stdin
        .take()
        .unwrap()
        .write_all(MAPPER.as_bytes())
        .unwrap();
    assert!(cc.wait().unwrap().success());
    run(Command::new(program).arg(target), SHORT).good();
}

/// The files whose holes have to be where they are at the source.
const SPARSE: &[&str] = &[
    "contents/small holes",
    "contents/large holes",
    "contents/only a hole",
];

fn assert_same_holes(what: &str, original: &Path, copy: &Path, files: &[&str]) {
    for f in files {
        let (a, b) = (
            data_map(&original.join(f)).unwrap(),
            data_map(&copy.join(f)).unwrap(),
        );
        assert_eq!(a, b, "{what}: data of {f}");
    }
}

/// Everything there is, every operation there is, and the final state restored.
fn everything(sensor: &str) {
    let mut chance = Chance::new(7);
    let mut pair = Pair::new();
    let src = pair.dir.clone();
    build(&src, &mut chance);
    sync(&src);
    pair.source.start(&["--sensor", sensor]);
    assert_eq!(pair.source.status()["sensor"]["kind"], sensor);
    pair.flush_and_compare("first backup");
    sync(&src);
    assert_same_holes("first backup", &src, &pair.mirror(), SPARSE);
    let (here, there) = (disk_bytes(&src), disk_bytes(&pair.mirror()));
    assert!(
        there <= here + (1 << 20),
        "{there} bytes on the disk instead of {here}"
    );

    let before = pair.source.number("/wire_bytes");
    fs::rename(src.join("many"), src.join("many, renamed")).unwrap();
    pair.source.flush();
    let cost = pair.source.number("/wire_bytes") - before;
    assert!(
        cost < RENAME_WIRE_BYTES,
        "{cost} bytes for a renamed directory"
    );
    assert_same("directory renamed", &src, &pair.mirror());
    fs::rename(src.join("many, renamed"), src.join("many")).unwrap();

    for (what, operation) in OPERATIONS {
        println!("{what}");
        operation(&src, &mut chance);
        pair.flush_and_compare(&format!("{sensor}: {what}"));
    }
    sync(&src);
    assert_same_holes("at the end", &src, &pair.mirror(), SPARSE);
    assert_same_holes("at the end", &src, &pair.mirror(), &["large, linked"]);

    let restored = pair
        .source
        .restore(&src, None, &pair.place.path("back"), LONG);
    assert_same("restored", &src, &restored);
    sync(&src);
    assert_same_holes("restored", &src, &restored, SPARSE);
    let status = pair.source.status();
    assert_eq!(status["sensor"]["overflows"], 0, "{status:#}");
    assert_eq!(status["vaults"][0]["problem_count"], 0, "{status:#}");
    assert_eq!(status["vaults"][0]["reconnects"], 0, "{status:#}");
    from_the_directory_alone(&mut pair);
}

/// The source is gone and nothing is served: the vault's directory is enough.
fn from_the_directory_alone(pair: &mut Pair) {
    assert!(pair.source.end(Signal::TERM).success());
    assert!(pair.vault.end(Signal::TERM).success());
    let vault = &pair.vault.dir;
    run(farwrite().args(["vault", "verify"]).arg(vault), LONG).good();
    let to = pair.place.path("from the directory");
    let mut command = farwrite();
    command.arg("restore").arg(&pair.dir).arg("--to").arg(&to);
    command
        .arg("--vault-dir")
        .arg(vault)
        .args(["--source", "me"]);
    run(&mut command, LONG).good();
    assert_same("from the directory", &pair.dir, &to.join("src"));
}

#[test]
fn everything_with_fanotify() {
    everything("fanotify");
}

#[test]
fn everything_with_inotify() {
    everything("inotify");
}

/// All operations in one go, as fast as they can be done: what the backup unit finds is then rarely what the message said.
fn all_at_once(sensor: &str) {
    let mut chance = Chance::new(8);
    let mut pair = Pair::new();
    let src = pair.dir.clone();
    build(&src, &mut chance);
    pair.source.start(&["--sensor", sensor]);
    pair.source.flush();
    for (_, operation) in OPERATIONS {
        operation(&src, &mut chance);
    }
    pair.flush_and_compare(&format!("{sensor}: all operations at once"));
}

#[test]
fn all_operations_at_once_with_fanotify() {
    all_at_once("fanotify");
}

#[test]
fn all_operations_at_once_with_inotify() {
    all_at_once("inotify");
}

/// The comparisons above would be worth nothing if they could not fail.
#[test]
fn the_judges_see_differences() {
    let pair = Pair::new();
    let (a, b) = (pair.dir.clone(), pair.place.dir("copy"));
    build(&a, &mut Chance::new(9));
    // Not even cp reaches so deep.
    let top = Dir::open(&a).unwrap();
    top.remove_tree(&Name::new(DEEP).unwrap()).unwrap();
    sh(
        "cp",
        [OsStr::new("-aT"), a.as_os_str(), b.as_os_str()],
        SHORT,
    );
    assert_same("copied", &a, &b);
    type Spoil = (&'static str, fn(&Path));
    let spoil: [Spoil; 5] = [
        ("one byte, same time", |b| {
            let p = b.join("contents/text");
            let f = File::options().write(true).open(&p).unwrap();
            let mtime = f.metadata().unwrap().modified().unwrap();
            f.write_all_at(b"T", 1_000_000).unwrap();
            f.set_modified(mtime).unwrap();
        }),
        ("a nanosecond", |b| {
            set_times(&b.join("attributes/a nanosecond"), 1_234_567_890, 2)
        }),
        ("an attribute", |b| {
            xattr(&b.join("attributes/xattrs"), "user.text", b"other")
        }),
        ("a link that is a copy", |b| {
            let p = b.join("links/c/50");
            sh(
                "cp",
                [
                    OsStr::new("-a"),
                    p.as_os_str(),
                    b.join("links/t").as_os_str(),
                ],
                SHORT,
            );
            fs::rename(b.join("links/t"), p).unwrap();
        }),
        ("a missing name", |b| {
            fs::remove_file(b.join(name(b"names/\xff\xfe\xfd"))).unwrap()
        }),
    ];
    for (what, spoil) in spoil {
        let before = Listing::of(&b);
        spoil(&b);
        assert!(!before.differences(&Listing::of(&b)).is_empty(), "{what}");
    }
    let seen = rsync_differences(&a, &b, &[DEEP], SHORT);
    assert!(seen.lines().count() >= 5, "{seen}");
}
