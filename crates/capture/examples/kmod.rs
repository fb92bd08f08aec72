//! Checks the module's sensor against a loaded module: `kmod DIR`, as root, DIR empty. vm/tests/kmod-source.sh runs it in a
//! machine of its own; it has no place in `cargo test`, since the module is loaded for the whole machine.

use farwrite_capture::{
    ChangeSource, Continuity, KmodSource, ReadState, SensorChoice, SensorError, SensorKind,
    SensorOptions, WatchRoot, probe,
};
use farwrite_core::{BytePath, Change, ChangeOp, Extent};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for a message.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().expect("usage: kmod DIR [hold]"));
    if args.next().is_some() {
        return hold(&dir);
    }
    messages(&dir);
    nothing_is_lost_while_nobody_reads(&dir);
    a_killed_reader_releases_nothing(&dir);
    off_is_off_and_on_is_another_epoch(&dir);
    an_overflow_is_told_and_survived(&dir);
    one_reader_at_a_time(&dir);
    println!("all as it should be");
}

fn root(dir: &Path) -> WatchRoot {
    WatchRoot::lookup(BytePath::new(dir.to_str().expect("plain")).expect("absolute"))
        .expect("there")
}

fn open(dir: &Path) -> Box<dyn ChangeSource> {
    let opts = SensorOptions::default();
    let (source, why) =
        farwrite_capture::open(SensorChoice::Auto, &[root(dir)], &opts).expect("opens");
    assert_eq!(source.kind(), SensorKind::Kmod, "{why}");
    source
}

/// Reads until drained.
fn drain(s: &mut dyn ChangeSource) -> Vec<Change> {
    let mut out = Vec::new();
    while s.read(&mut out, Duration::ZERO).expect("reads") == ReadState::More {}
    out
}

fn lines(dir: &Path, changes: &[Change]) -> Vec<String> {
    let prefix = format!("{}/", dir.display());
    let line = |c: &Change| c.describe().replace(&prefix, "");
    changes.iter().map(line).collect()
}

fn known(c: &Continuity) -> bool {
    c.roots.iter().all(|(_, known)| *known)
}

fn messages(dir: &Path) {
    let mut s = open(dir);
    let g = s.guarantee();
    assert!(g.extents && g.mmap && g.persists);
    assert!(
        !known(&s.continuity().expect("persists")),
        "a new root has to be compared"
    );
    drain(&mut *s);
    s.release().expect("releases");
    let file = File::create(dir.join("a")).expect("creates");
    file.write_all_at(b"hello", 100).expect("writes");
    file.write_all_at(b"hello", 105).expect("writes");
    fs::rename(dir.join("a"), dir.join("b")).expect("renames");
    file.set_len(50).expect("truncates");
    fs::remove_file(dir.join("b")).expect("removes");
    let changes = drain(&mut *s);
    assert_eq!(
        lines(dir, &changes),
        [
            "create   a",
            "write    a [100..110]",
            "rename   a -> b",
            "truncate b to 50",
            "delete   b"
        ]
    );
    let stats = s.stats();
    assert!(stats.replaced > 40 && stats.hooked > 20, "{stats:?}");
    assert_eq!(
        (stats.merged, stats.lost, stats.overflows),
        (1, 0, 0),
        "{stats:?}"
    );

    // A blocked reader is woken by a change, and by its waker.
    s.release().expect("releases");
    let waker = s.waker();
    let path = dir.join("later");
    let other = std::thread::spawn(move || fs::write(path, b"x").expect("writes"));
    let mut out = Vec::new();
    let start = Instant::now();
    while out.is_empty() {
        s.read(&mut out, PATIENCE).expect("reads");
        assert!(
            start.elapsed() < PATIENCE,
            "a change does not wake the reader"
        );
    }
    other.join().expect("ends");
    // Unreleased messages do not keep it from sleeping.
    drain(&mut *s);
    waker.wake();
    s.read(&mut out, PATIENCE).expect("reads");
    assert!(
        start.elapsed() < PATIENCE,
        "the waker does not wake the reader"
    );
    let asleep = Instant::now();
    s.read(&mut out, Duration::from_millis(300)).expect("reads");
    assert!(
        asleep.elapsed() >= Duration::from_millis(290),
        "what is not released keeps it awake"
    );
    s.release().expect("releases");
    s.leave();
    println!("messages");
}

fn nothing_is_lost_while_nobody_reads(dir: &Path) {
    let s = open(dir);
    let before = s.continuity();
    assert!(
        known(before.as_ref().expect("persists")),
        "it has been recorded since"
    );
    s.leave();
    fs::write(dir.join("away"), b"12345").expect("writes");
    let mut s = open(dir);
    assert_eq!(s.continuity(), before, "recording has never stopped");
    let changes = drain(&mut *s);
    assert_eq!(
        lines(dir, &changes),
        ["create   away", "write    away [0..5]"]
    );
    s.release().expect("releases");
    s.leave();
    println!("recording while away");
}

/// Opens, reads, and waits to be killed.
fn hold(dir: &Path) {
    let mut s = open(dir);
    fs::write(dir.join("held"), b"1").expect("writes");
    assert!(!drain(&mut *s).is_empty());
    println!("held");
    std::io::stdout().flush().expect("flushes");
    std::thread::sleep(PATIENCE);
}

fn a_killed_reader_releases_nothing(dir: &Path) {
    let mut child = Command::new(std::env::current_exe().expect("known"))
        .args([dir, Path::new("hold")])
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut said = [0; 4];
    let out = child.stdout.as_mut().expect("piped");
    std::io::Read::read_exact(out, &mut said).expect("holds");
    child.kill().expect("killed");
    child.wait().expect("gone");
    fs::write(dir.join("after"), b"1").expect("writes");
    let mut s = open(dir);
    assert!(known(&s.continuity().expect("persists")));
    let changes = lines(dir, &drain(&mut *s));
    for line in [
        "create   held",
        "write    held [0..1]",
        "create   after",
        "write    after [0..1]",
    ] {
        assert!(
            changes.iter().any(|l| l == line),
            "{line} is not in {changes:?}"
        );
    }
    s.release().expect("releases");
    s.leave();
    println!("a kill");
}

fn replaced() -> usize {
    let list = "/sys/kernel/tracing/enabled_functions";
    fs::read_to_string(list).expect("tracefs").lines().count()
}

fn off_is_off_and_on_is_another_epoch(dir: &Path) {
    let s = open(dir);
    let before = s.continuity().expect("persists");
    assert!(replaced() > 60);
    s.close();
    assert_eq!(replaced(), 0, "off puts the originals back");
    fs::write(dir.join("unseen"), b"1").expect("writes");
    let mut s = open(dir);
    let after = s.continuity().expect("persists");
    assert_eq!(after.instance, before.instance);
    assert_eq!(after.epoch, before.epoch + 1);
    assert!(!known(&after), "has to be compared");
    let changes = lines(dir, &drain(&mut *s));
    assert!(changes.is_empty(), "{changes:?}");
    s.close();
    println!("off and on");
}

fn an_overflow_is_told_and_survived(dir: &Path) {
    let mut s = open(dir);
    drain(&mut *s);
    s.release().expect("releases");
    let file = File::create(dir.join("full")).expect("creates");
    // Each record takes at least 112 bytes of a ring of 16 MiB.
    for i in 0..160_000u64 {
        file.write_all_at(b"x", i % 7 * 2).expect("writes");
    }
    let changes = drain(&mut *s);
    s.release().expect("releases");
    file.write_all_at(b"x", 1000).expect("writes");
    let mut rest = drain(&mut *s);
    rest.splice(0..0, changes);
    let overflow = rest
        .iter()
        .position(|c| c.op == ChangeOp::Overflow)
        .expect("is told");
    assert_eq!(rest[overflow].dir, root(dir).id);
    let last = &rest.last().expect("one").op;
    assert_eq!(
        *last,
        ChangeOp::Write(Some(Extent::new(1000, 1))),
        "goes on behind the loss"
    );
    assert!(s.stats().overflows > 0);
    s.close();
    println!("an overflow");
}

fn one_reader_at_a_time(dir: &Path) {
    let s = open(dir);
    let second = KmodSource::open(&[root(dir)], &SensorOptions::default());
    match second.err() {
        Some(SensorError::Unavailable { why, .. }) => {
            assert!(why.contains("another process"), "{why}")
        }
        other => panic!("{other:?}"),
    }
    let probed = &probe()[0];
    assert!(
        probed.kind == SensorKind::Kmod && probed.available,
        "{probed:?}"
    );
    s.close();
    let proc = KmodSource::open(&[root(Path::new("/proc"))], &SensorOptions::default());
    assert!(
        matches!(proc.err(), Some(SensorError::Unavailable { .. })),
        "proc cannot be watched"
    );
    assert_eq!(replaced(), 0, "an opening that fails leaves nothing behind");
    println!("one reader at a time");
}
