//! The edges: order, filters, overflow, limits, depth, odd names, mounts, the waker, letting go.

use crate::place::{On, Place, byte_path, drain, id_of, sensor_on, sensors};
use farwrite_capture::{
    ReadState, SensorChoice, SensorKind, SensorOptions, WatchRoot, open, probe,
};
use farwrite_core::{BytePath, Change, ChangeOp, Name};
use rustix::fs::{self as rfs, Mode, OFlags};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

const BOTH: [SensorKind; 2] = [SensorKind::Fanotify, SensorKind::Inotify];

/// Those of this run that tell of each change.
fn telling() -> Vec<SensorKind> {
    let mut all = sensors();
    all.retain(|k| *k != SensorKind::Scan);
    all
}

/// Longer than any of these tests should take.
const LONG: Duration = Duration::from_secs(60);

fn rel(root: &Path, p: &BytePath) -> String {
    let rest = p.strip_prefix(&byte_path(root)).expect("below the root");
    String::from_utf8_lossy(rest).into_owned()
}

fn short(root: &Path, changes: &[Change]) -> Vec<String> {
    let one = |c: &Change| {
        let p = rel(root, &c.path);
        match &c.op {
            ChangeOp::Create => format!("create {p}"),
            ChangeOp::Delete => format!("delete {p}"),
            ChangeOp::Rename { to_path, .. } => format!("rename {p} {}", rel(root, to_path)),
            ChangeOp::Write(_) => format!("write {p}"),
            other => format!("{other:?} {p}"),
        }
    };
    changes.iter().map(one).collect()
}

#[test]
fn messages_come_in_order() {
    for kind in telling() {
        let place = Place::new(On::Tmpfs);
        let r = place.root();
        fs::create_dir(r.join("d")).unwrap();
        let mut s = place.sensor(kind);
        fs::write(r.join("a"), b"1").unwrap();
        fs::rename(r.join("a"), r.join("d/b")).unwrap();
        fs::write(r.join("a"), b"2").unwrap();
        fs::remove_file(r.join("d/b")).unwrap();
        fs::rename(r.join("a"), r.join("d/b")).unwrap();
        fs::rename(r.join("d"), place.outside().join("d")).unwrap();
        fs::create_dir(r.join("d")).unwrap();
        let mut seen = short(&r, &drain(&mut *s));
        seen.retain(|l| {
            !l.starts_with("write") && !l.starts_with("Attrib") && !l.starts_with("Subtree")
        });
        seen.dedup();
        // The directory is outside when fanotify's handles are looked up: what happened in it is covered by its removal.
        let inside = [
            "create a",
            "rename a d/b",
            "create a",
            "delete d/b",
            "rename a d/b",
            "delete d",
            "create d",
        ];
        let left = [
            "create a", "delete a", "create a", "delete a", "delete d", "create d",
        ];
        match kind {
            SensorKind::Fanotify => assert_eq!(seen, left),
            _ => assert_eq!(seen, inside),
        }
    }
}

#[test]
fn what_happens_outside_or_in_skipped_trees_is_dropped() {
    for kind in telling() {
        let place = Place::new(On::Tmpfs);
        let r = place.root();
        fs::create_dir_all(r.join("vault/x")).unwrap();
        let opts = SensorOptions {
            skip: vec![byte_path(&r.join("vault"))],
            ..SensorOptions::default()
        };
        let mut s = place.sensor_with(kind, &opts);
        for i in 0..100 {
            fs::write(place.outside().join(format!("o{i}")), b"x").unwrap();
            fs::write(r.join(format!("vault/x/v{i}")), b"x").unwrap();
            fs::create_dir(r.join(format!("vault/d{i}"))).unwrap();
        }
        assert_eq!(short(&r, &drain(&mut *s)), Vec::<String>::new(), "{kind}");
        let stats = s.stats();
        if kind == SensorKind::Fanotify {
            assert!(stats.filtered >= 200, "{stats:?}");
        }
        fs::write(r.join("mine"), b"x").unwrap();
        assert!(short(&r, &drain(&mut *s)).contains(&"create mine".into()));
    }
}

#[test]
fn own_changes_are_dropped_only_if_asked() {
    let place = Place::new(On::Tmpfs);
    let opts = SensorOptions {
        ignore_pid: Some(std::process::id() as i32),
        ..SensorOptions::default()
    };
    let mut s = place.sensor_with(SensorKind::Fanotify, &opts);
    fs::write(place.root().join("own"), b"x").unwrap();
    let touch = std::process::Command::new("touch")
        .arg(place.root().join("other"))
        .status();
    assert!(touch.unwrap().success());
    let seen = short(&place.root(), &drain(&mut *s));
    assert!(seen.contains(&"create other".into()), "{seen:?}");
    assert!(!seen.iter().any(|l| l.contains("own")), "{seen:?}");
}

#[test]
fn an_overflow_is_told_and_survived() {
    for kind in BOTH {
        let place = Place::new(On::Tmpfs);
        let r = place.root();
        let limit = fs::read_to_string(format!("/proc/sys/fs/{kind}/max_queued_events")).unwrap();
        let limit: usize = limit.trim().parse().unwrap();
        let opts = SensorOptions {
            limited_queue: true,
            ..SensorOptions::default()
        };
        let mut s = place.sensor_with(kind, &opts);
        for i in 0..limit + 4000 {
            fs::File::create(r.join(format!("f{i}"))).unwrap();
        }
        fs::create_dir_all(r.join("new/below")).unwrap();
        let changes = drain(&mut *s);
        let overflow: Vec<_> = changes
            .iter()
            .filter(|c| c.op == ChangeOp::Overflow)
            .collect();
        assert_eq!(overflow.len(), 1, "{kind}");
        assert_eq!(
            (overflow[0].dir, &overflow[0].path),
            (id_of(&r), &byte_path(&r))
        );
        assert_eq!(s.stats().overflows, 1);
        fs::write(r.join("new/below/f"), b"after").unwrap();
        let seen = short(&r, &drain(&mut *s));
        assert!(
            seen.contains(&"create new/below/f".into()),
            "{kind}: {seen:?}"
        );
    }
}

#[test]
fn an_unlimited_queue_does_not_overflow() {
    let place = Place::new(On::Tmpfs);
    let mut s = place.sensor(SensorKind::Fanotify);
    for i in 0..20_000 {
        fs::File::create(place.root().join(format!("f{i}"))).unwrap();
    }
    let mut out = Vec::new();
    assert_eq!(
        s.read(&mut out, LONG).unwrap(),
        ReadState::More,
        "a call is bounded"
    );
    while s.read(&mut out, Duration::ZERO).unwrap() == ReadState::More {}
    let creates = out.iter().filter(|c| c.op == ChangeOp::Create).count();
    assert_eq!((creates, s.stats().overflows), (20_000, 0));
}

/// Whoever waits for what has happened so far does not wait for what goes on happening.
#[test]
fn a_queue_that_is_never_empty_is_still_drained_of_what_was_in_it() {
    let place = Place::new(On::Tmpfs);
    let mut s = place.sensor(SensorKind::Fanotify);
    let fill = |round: usize| {
        for i in 0..20_000 {
            fs::File::create(place.root().join(format!("{round}-{i}"))).unwrap();
        }
    };
    let mut seen = std::collections::HashSet::new();
    let mut names = |out: &mut Vec<Change>| {
        seen.extend(out.drain(..).filter_map(|c| c.name));
        seen.len()
    };
    let (mut out, mut reads) = (Vec::new(), 0);
    for round in 0..10 {
        fill(2 * round);
        // The first call stops at its bound; from then on there is always more.
        assert_eq!(s.read(&mut out, LONG).unwrap(), ReadState::More);
        fill(2 * round + 1);
        while s.read(&mut out, Duration::ZERO).unwrap() == ReadState::More {
            reads += 1;
            assert!(reads < 100, "it is never said to be drained");
        }
        assert!(names(&mut out) >= 20_000 * (2 * round + 1));
    }
    let mut before_the_end = vec![];
    let state = s.read(&mut before_the_end, Duration::ZERO).unwrap();
    assert!(!before_the_end.is_empty(), "the queue was empty: {state:?}");
}

#[test]
fn a_wake_ends_a_blocked_read() {
    for kind in sensors() {
        let place = Place::new(On::Tmpfs);
        let mut s = place.sensor(kind);
        drain(&mut *s);
        let waker = s.waker();
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            sender.send(()).unwrap();
            let (begin, mut out) = (Instant::now(), Vec::new());
            let state = s.read(&mut out, LONG).unwrap();
            (begin.elapsed(), state)
        });
        receiver.recv().unwrap();
        waker.wake();
        let (took, state) = thread.join().unwrap();
        assert!(took < LONG / 2, "{kind}");
        assert_eq!(state, ReadState::Drained);
    }
}

/// Descriptors of this process whose fdinfo shows a mark or watch.
fn kernel_marks() -> usize {
    let dir = fs::read_dir("/proc/self/fdinfo").unwrap();
    let texts = dir.filter_map(|e| fs::read_to_string(e.ok()?.path()).ok());
    texts
        .flat_map(|t| t.lines().map(str::to_string).collect::<Vec<_>>())
        .filter(|l| l.starts_with("fanotify sdev") || l.starts_with("inotify wd"))
        .count()
}

#[test]
fn close_and_drop_let_go_of_the_kernel() {
    for kind in BOTH {
        let place = Place::new(On::Tmpfs);
        fs::create_dir_all(place.root().join("a/b")).unwrap();
        for by_drop in [false, true] {
            assert_eq!(kernel_marks(), 0);
            let s = place.sensor(kind);
            let stats = s.stats();
            let expected = if kind == SensorKind::Fanotify { 1 } else { 3 };
            assert_eq!(kernel_marks(), expected, "{kind}");
            assert_eq!(stats.marks + stats.watches, expected as u64);
            if by_drop {
                drop(s);
            } else {
                s.close();
            }
            assert_eq!(kernel_marks(), 0, "{kind}");
        }
    }
}

#[test]
fn directories_without_a_watch_are_told_of_and_compared() {
    let place = Place::new(On::Tmpfs);
    let r = place.root();
    for i in 0..10 {
        fs::create_dir_all(r.join(format!("d{i}/sub"))).unwrap();
    }
    let opts = SensorOptions {
        max_watches: Some(5),
        rescan: Duration::ZERO,
        ..SensorOptions::default()
    };
    let mut s = place.sensor_with(SensorKind::Inotify, &opts);
    let stats = s.stats();
    assert_eq!(stats.watches, 5);
    assert!(stats.unwatched >= 6, "{stats:?}");
    assert!(s.state().unwrap().contains("fs.inotify.max_user_watches"));
    for i in 0..10 {
        fs::write(r.join(format!("d{i}/sub/f")), b"x").unwrap();
    }
    fs::create_dir(r.join("late")).unwrap();
    fs::write(r.join("late/f"), b"x").unwrap();
    let changes = drain(&mut *s);
    for p in (0..10)
        .map(|i| format!("d{i}/sub/f"))
        .chain(["late/f".into()])
    {
        let p = byte_path(&r.join(p));
        let covered = |c: &Change| match c.op {
            ChangeOp::Subtree => p.starts_with(&c.path) && c.dir == id_of(c.path.as_path()),
            _ => c.path == p,
        };
        assert!(changes.iter().any(covered), "{p} in {changes:?}");
    }
}

#[test]
fn paths_beyond_path_max_are_followed() {
    for kind in BOTH {
        for before in [true, false] {
            let place = Place::new(On::Tmpfs);
            let early = (!before).then(|| place.sensor(kind));
            let name = "n".repeat(250);
            let mut dir = rfs::open(place.root(), OFlags::DIRECTORY, Mode::empty()).unwrap();
            let mut path = byte_path(&place.root());
            for _ in 0..20 {
                rfs::mkdirat(&dir, &name, Mode::RWXU).unwrap();
                dir = rfs::openat(&dir, &name, OFlags::DIRECTORY, Mode::empty()).unwrap();
                path.push(&Name::new(&name).unwrap());
            }
            let mut s = early.unwrap_or_else(|| place.sensor(kind));
            drain(&mut *s);
            let flags = OFlags::CREATE | OFlags::WRONLY;
            let f = rfs::openat(&dir, "deep", flags, Mode::RUSR).unwrap();
            rustix::io::write(&f, b"x").unwrap();
            rfs::fchmod(&dir, Mode::RUSR | Mode::XUSR).unwrap();
            let changes = drain(&mut *s);
            let id = rfs::fstat(&dir).unwrap().st_ino;
            let create = changes.iter().find(|c| c.op == ChangeOp::Create);
            let create = create.unwrap_or_else(|| panic!("{kind}, {before}: {changes:?}"));
            assert!(create.path.as_bytes().len() > 4096);
            assert_eq!(create.path, path.join(&Name::new("deep").unwrap()));
            assert_eq!(create.dir.ino, id);
            let chmod = changes
                .iter()
                .find(|c| c.op == ChangeOp::Attrib && c.path == path);
            assert!(chmod.is_some(), "{kind}: {changes:?}");
        }
    }
}

#[test]
fn names_of_any_bytes_come_through() {
    for kind in telling() {
        let place = Place::new(On::Tmpfs);
        let long = vec![0xfe; 255];
        let names: [&[u8]; 6] = [
            b"\xff\xfe",
            b"a\nb",
            b" (deleted)",
            b"x (deleted)",
            b"...",
            &long,
        ];
        let mut s = place.sensor(kind);
        for n in names {
            let d = place.root().join(OsStr::from_bytes(n));
            fs::create_dir(&d).unwrap();
            let before = drain(&mut *s);
            assert!(
                before
                    .iter()
                    .any(|c| c.op == ChangeOp::Create && c.path == byte_path(&d))
            );
            fs::write(d.join(OsStr::from_bytes(n)), b"x").unwrap();
            let f = byte_path(&d.join(OsStr::from_bytes(n)));
            let seen = drain(&mut *s);
            let write = seen.iter().find(|c| matches!(c.op, ChangeOp::Write(_)));
            let write = write.unwrap_or_else(|| panic!("{kind} {n:?}: {seen:?}"));
            assert_eq!((&write.path, write.dir), (&f, id_of(&d)));
            assert_eq!(write.file, Some(id_of(f.as_path())));
        }
    }
}

#[test]
fn a_bind_mount_is_seen_under_its_own_path_and_from_the_other_side() {
    for kind in telling() {
        let mut place = Place::new(On::Tmpfs);
        let (r, m) = (place.root(), place.base.join("mnt"));
        fs::create_dir_all(r.join("sub")).unwrap();
        fs::create_dir(&m).unwrap();
        place.mount("none", &r, m.clone(), libc::MS_BIND);
        let mut s = sensor_on(
            kind,
            WatchRoot::lookup(byte_path(&m)).unwrap(),
            &SensorOptions::default(),
        );
        fs::write(m.join("sub/a"), b"x").unwrap();
        fs::write(r.join("sub/b"), b"x").unwrap();
        let seen = short(&m, &drain(&mut *s));
        assert!(seen.contains(&"create sub/a".into()), "{kind}: {seen:?}");
        assert!(seen.contains(&"create sub/b".into()), "{kind}: {seen:?}");
    }
}

#[test]
fn a_root_that_is_moved_or_removed_is_told_of() {
    for kind in telling() {
        let place = Place::new(On::Tmpfs);
        let (r, away) = (place.root(), place.outside().join("away"));
        let mut s = place.sensor(kind);
        fs::rename(&r, &away).unwrap();
        fs::write(away.join("f"), b"x").unwrap();
        let seen = drain(&mut *s);
        let root = place.base.join("root");
        assert!(
            seen.iter()
                .any(|c| c.op == ChangeOp::Subtree && c.path == byte_path(&root)),
            "{kind}: {seen:?}"
        );
        assert!(
            seen.iter()
                .any(|c| c.op == ChangeOp::Create && c.path == byte_path(&root.join("f"))),
            "{kind}: {seen:?}"
        );
        fs::remove_dir_all(&away).unwrap();
        let seen = drain(&mut *s);
        assert!(
            seen.iter()
                .any(|c| c.op == ChangeOp::Subtree && c.name.is_none()),
            "{kind}: {seen:?}"
        );
    }
}

#[test]
fn a_root_that_is_exchanged_is_told_of() {
    for kind in telling() {
        let place = Place::new(On::Tmpfs);
        let (r, other) = (place.root(), place.outside());
        let mut s = place.sensor(kind);
        let swap = |a, b| {
            let exchange = rustix::fs::RenameFlags::EXCHANGE;
            rustix::fs::renameat_with(rustix::fs::CWD, a, rustix::fs::CWD, b, exchange).unwrap();
        };
        // The first time it is the second name's that is the root, then the first name's.
        for _ in 0..2 {
            drain(&mut *s);
            swap(&other, &r);
            let seen = drain(&mut *s);
            let told = |c: &Change| c.op == ChangeOp::Subtree && c.path == byte_path(&r);
            assert!(seen.iter().any(told), "{kind}: {seen:?}");
        }
    }
}

#[test]
fn an_empty_root_that_is_removed_ends_a_long_wait() {
    let begin = Instant::now();
    for kind in telling() {
        let place = Place::new(On::Tmpfs);
        let mut s = place.sensor(kind);
        drain(&mut *s);
        let (to_me, from_reader) = std::sync::mpsc::channel();
        let seen = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                to_me.send(rustix::thread::gettid()).unwrap();
                let mut out = Vec::new();
                while out.is_empty() && begin.elapsed() < LONG {
                    s.read(&mut out, LONG).unwrap();
                }
                out
            });
            let thread = from_reader.recv().unwrap().as_raw_nonzero();
            let stat = format!("/proc/self/task/{thread}/stat");
            while !fs::read_to_string(&stat).unwrap().contains(") S ") {
                std::thread::yield_now();
            }
            fs::remove_dir(place.root()).unwrap();
            reader.join().unwrap()
        });
        assert!(
            seen.iter()
                .any(|c| c.op == ChangeOp::Subtree && c.name.is_none()),
            "{kind}: {seen:?}"
        );
    }
    assert!(begin.elapsed() < LONG);
}

#[test]
fn repeated_writes_of_one_read_are_one_message() {
    for kind in telling() {
        let place = Place::new(On::Tmpfs);
        let files: Vec<_> = (0..3)
            .map(|i| fs::File::create(place.root().join(format!("f{i}"))).unwrap())
            .collect();
        let mut s = place.sensor(kind);
        for i in 0..300 {
            std::os::unix::fs::FileExt::write_all_at(&files[i % 3], b"x", i as u64 / 3).unwrap();
        }
        let changes = drain(&mut *s);
        assert_eq!(changes.len(), 3, "{kind}: {changes:?}");
    }
}

#[test]
fn auto_takes_the_best_that_the_probe_finds_available() {
    let place = Place::new(On::Tmpfs);
    let probes = probe();
    let (s, why) = open(
        SensorChoice::Auto,
        &[place.watch()],
        &SensorOptions::default(),
    )
    .unwrap();
    let best = probes.iter().find(|p| p.available).unwrap();
    assert_eq!(s.kind(), best.kind, "{why}; {probes:?}");
    s.close();
    let of = |kind| probes.iter().find(|p| p.kind == kind).unwrap();
    for kind in [SensorKind::Fanotify, SensorKind::Inotify, SensorKind::Scan] {
        assert!(of(kind).available, "{probes:?}");
    }
    let ebpf = of(SensorKind::Ebpf);
    // Where it is refused, it is said why, and what to do.
    assert_eq!(ebpf.available, ebpf.remedy.is_empty(), "{ebpf:?}");
    assert!(!ebpf.why.is_empty());
    assert!(
        of(SensorKind::Inotify)
            .limits
            .iter()
            .any(|(n, v)| n == "fs.inotify.max_user_watches" && *v > 0)
    );
    let mut wrong = place.watch();
    wrong.id.ino += 1;
    for choice in [SensorChoice::Auto, SensorChoice::Inotify] {
        assert!(open(choice, &[wrong.clone()], &SensorOptions::default()).is_err());
        assert!(open(choice, &[], &SensorOptions::default()).is_err());
    }
}
