//! What only the sensors inside the kernel promise: exact ranges, mapped stores, and recording that goes on without a reader.
//!
//! They run where such a sensor is to be had, in the virtual machines of vm/ (`FARWRITE_CONFORMANCE_SENSORS`); elsewhere there is
//! no sensor to loop over.

use crate::place::{On, Place, byte_path, drain, end, id_of, is_exact, sensor_on, sensors};
use farwrite_capture::{ChangeSource, Continuity, SensorKind, SensorOptions, WatchRoot};
use farwrite_core::{Change, ChangeOp, Extent};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const PAGE: u64 = 4096;
/// The process that is to be killed finds its root here.
const CHILD_ROOT: &str = "FARWRITE_CONFORMANCE_CHILD_ROOT";
const CHILD_KIND: &str = "FARWRITE_CONFORMANCE_CHILD_KIND";

fn kinds() -> Vec<SensorKind> {
    sensors().into_iter().filter(|k| is_exact(*k)).collect()
}

fn rw(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .unwrap()
}

/// What is told of a path, as text.
fn about(changes: &[Change], path: &Path) -> Vec<String> {
    let of = |c: &&Change| c.path == byte_path(path);
    let text = |c: &Change| c.describe().replace(path.to_str().unwrap(), "f");
    changes.iter().filter(of).map(text).collect()
}

fn wrote(changes: &[Change], path: &Path) -> bool {
    let is = |c: &Change| c.path == byte_path(path) && matches!(c.op, ChangeOp::Write(_));
    changes.iter().any(is)
}

/// Unmaps at its end.
struct Map(*mut u8, usize);

impl Map {
    fn new(f: &File, len: usize) -> Map {
        let (read, write) = (libc::PROT_READ, libc::PROT_WRITE);
        // SAFETY: a new shared mapping chosen by the kernel.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                read | write,
                libc::MAP_SHARED,
                f.as_raw_fd(),
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        Map(at.cast(), len)
    }
    fn store(&self, at: usize, byte: u8) {
        assert!(at < self.1);
        // SAFETY: in bounds; the file is as long as the mapping.
        unsafe { self.0.add(at).write_volatile(byte) };
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, unmapped only here.
        unsafe { libc::munmap(self.0.cast(), self.1) };
    }
}

#[test]
fn ranges_are_exactly_what_was_written() {
    for kind in kinds() {
        let place = Place::new(On::Disk);
        let path = place.root().join("f");
        fs::write(&path, vec![0; 100_000]).unwrap();
        let mut s = place.sensor(kind);
        // An earlier root may have had this one's inode number.
        drain(&mut *s);
        let f = rw(&path);
        f.write_all_at(b"abc", 5000).unwrap();
        f.write_all_at(b"abc", 50_000).unwrap();
        let mut tail = OpenOptions::new().append(true).open(&path).unwrap();
        tail.write_all(b"0123456789").unwrap();
        f.set_len(70_000).unwrap();
        let seen = about(&drain(&mut *s), &path);
        assert_eq!(
            seen,
            [
                "write    f [5000..5003]",
                "write    f [50000..50003]",
                "write    f [100000..100010]",
                "truncate f to 70000",
            ],
            "{kind}"
        );
        end(s);
    }
}

#[test]
fn a_store_after_writeback_is_told_of_again() {
    for kind in kinds() {
        let place = Place::new(On::Disk);
        if on_tmpfs(&place) {
            println!("tmpfs has no writeback: a mapping is told of once, and at its end");
            continue;
        }
        let path = place.root().join("f");
        fs::write(&path, vec![0; 10 * PAGE as usize]).unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
        let mut s = place.sensor(kind);
        let f = rw(&path);
        let map = Map::new(&f, 10 * PAGE as usize);
        for round in 0..5 {
            map.store(3 * PAGE as usize + round, b'a');
            let seen = drain(&mut *s);
            let mapped = |c: &Change| match c.op {
                ChangeOp::Mapped(Some(e)) => e.offset <= 3 * PAGE && e.end() >= 4 * PAGE,
                _ => false,
            };
            assert!(seen.iter().any(mapped), "{kind}, round {round}: {seen:?}");
            // As the reader of the bytes does before it reads.
            farwrite_capture::start_writeback(f.as_fd(), Extent::new(3 * PAGE, PAGE)).unwrap();
        }
        end(s);
    }
}

fn on_tmpfs(place: &Place) -> bool {
    rustix::fs::statfs(&place.base).unwrap().f_type == 0x0102_1994
}

#[test]
fn a_mapping_made_before_is_seen_too() {
    for kind in kinds() {
        let place = Place::new(On::Disk);
        if on_tmpfs(&place) {
            println!("tmpfs: a mapping made before the sensor is not seen");
            continue;
        }
        let path = place.root().join("f");
        fs::write(&path, vec![0; 10 * PAGE as usize]).unwrap();
        let f = rw(&path);
        let map = Map::new(&f, 10 * PAGE as usize);
        map.store(0, b'a');
        // The page is dirty and writable: opening must make it clean.
        let mut s = place.sensor(kind);
        map.store(1, b'b');
        let seen = drain(&mut *s);
        let mapped = |c: &Change| matches!(c.op, ChangeOp::Mapped(_));
        assert!(seen.iter().any(mapped), "{kind}: {seen:?}");
        end(s);
    }
}

/// What a reader of only the told ranges has of a file.
struct Replica {
    bytes: Vec<u8>,
}

impl Replica {
    fn follow(&mut self, changes: &[Change], path: &Path) {
        let f = File::open(path).unwrap();
        for c in changes.iter().filter(|c| c.path == byte_path(path)) {
            let extent = match c.op {
                ChangeOp::Write(Some(e)) | ChangeOp::Mapped(Some(e)) => e,
                ChangeOp::Write(None) | ChangeOp::Mapped(None) => Extent::to_end(0),
                _ => Extent::new(0, 0),
            };
            if matches!(c.op, ChangeOp::Mapped(_)) {
                farwrite_capture::start_writeback(f.as_fd(), extent).unwrap();
            }
            let size = f.metadata().unwrap().len();
            self.bytes.resize(size as usize, 0);
            let (begin, end) = (extent.offset.min(size), extent.end().min(size));
            f.read_exact_at(&mut self.bytes[begin as usize..end as usize], begin)
                .unwrap();
        }
    }
}

#[test]
fn a_reader_of_only_the_told_ranges_has_the_file() {
    for kind in kinds() {
        for seed in 1..=3u64 {
            let place = Place::new(On::Disk);
            let path = place.root().join("f");
            fs::write(&path, vec![7; 64 * PAGE as usize]).unwrap();
            let f = rw(&path);
            let mut s = place.sensor(kind);
            let map = Map::new(&f, 64 * PAGE as usize);
            let mut replica = Replica {
                bytes: fs::read(&path).unwrap(),
            };
            let mut state = seed;
            let mut below = move |n: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % n
            };
            for round in 0..400u64 {
                change(&f, &map, &mut below, round as u8);
                // Sometimes many changes before one look.
                if below(4) == 0 {
                    replica.follow(&drain(&mut *s), &path);
                }
            }
            replica.follow(&drain(&mut *s), &path);
            if on_tmpfs(&place) {
                // Stores are told of for certain at the end of the mapping.
                drop((map, f));
                replica.follow(&drain(&mut *s), &path);
            }
            let is = fs::read(&path).unwrap();
            let first = (0..is.len().max(replica.bytes.len()))
                .find(|i| is.get(*i) != replica.bytes.get(*i));
            assert_eq!(first, None, "{kind}, seed {seed}: byte that differs");
            end(s);
        }
    }
}

/// One random change of a file that stays at least 64 pages long.
fn change(f: &File, map: &Map, below: &mut impl FnMut(u64) -> u64, byte: u8) {
    use rustix::fs::FallocateFlags;
    let at = below(63 * PAGE);
    match below(8) {
        0 | 1 => f
            .write_all_at(&vec![byte; 1 + below(9000) as usize], at)
            .unwrap(),
        2..=4 => map.store(at as usize, byte),
        5 => {
            f.set_len((64 + below(20)) * PAGE - 17 + 4096).unwrap();
        }
        6 => {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let _ = rustix::fs::fallocate(f, flags, at, 1 + below(3 * PAGE));
        }
        _ => f.sync_all().unwrap(),
    }
}

fn root_of(place: &Place) -> WatchRoot {
    place.watch()
}

fn goes_on(before: &Continuity, after: &Continuity) -> bool {
    (before.instance, before.epoch) == (after.instance, after.epoch)
        && after.roots.iter().all(|(_, known)| *known)
}

#[test]
fn recording_goes_on_without_a_reader() {
    for kind in kinds() {
        let place = Place::new(On::Disk);
        let (r, root) = (place.root(), root_of(&place));
        // Whatever earlier tests left: a new life.
        sensor_on(kind, root.clone(), &SensorOptions::default()).close();
        let mut s = sensor_on(kind, root.clone(), &SensorOptions::default());
        let before = s.continuity().unwrap();
        assert_eq!(before.roots, [(root.id, false)]);
        fs::write(r.join("first"), b"1").unwrap();
        assert!(wrote(&drain(&mut *s), &r.join("first")));
        s.release().unwrap();
        fs::write(r.join("second"), b"2").unwrap();
        // Read, and not released: told again.
        assert!(wrote(&drain(&mut *s), &r.join("second")));
        s.leave();
        fs::write(r.join("third"), b"3").unwrap();
        let mut s = sensor_on(kind, root.clone(), &SensorOptions::default());
        let after = s.continuity().unwrap();
        assert!(goes_on(&before, &after), "{before:?} {after:?}");
        let seen = drain(&mut *s);
        assert!(!wrote(&seen, &r.join("first")), "{kind}: {seen:?}");
        assert!(wrote(&seen, &r.join("second")), "{kind}: {seen:?}");
        assert!(wrote(&seen, &r.join("third")), "{kind}: {seen:?}");
        s.close();
        // Off is off: what comes next is another life.
        let s = sensor_on(kind, root, &SensorOptions::default());
        let later = s.continuity().unwrap();
        assert!(!goes_on(&before, &later), "{before:?} {later:?}");
        s.close();
    }
}

/// Not a test of its own: opens the sensor and waits to be killed, if it is started as a child.
#[test]
fn child_that_is_killed() {
    let Some(root) = std::env::var_os(CHILD_ROOT) else {
        return;
    };
    let name = std::env::var(CHILD_KIND).unwrap();
    let kind = sensors().into_iter().find(|k| k.to_string() == name);
    let root = WatchRoot::lookup(byte_path(&PathBuf::from(root))).unwrap();
    let mut s = sensor_on(kind.unwrap(), root, &SensorOptions::default());
    let c = s.continuity().unwrap();
    println!("\nopen {:?}", c.instance);
    drain(&mut *s);
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn a_killed_reader_loses_nothing() {
    for kind in kinds() {
        let place = Place::new(On::Disk);
        let (r, root) = (place.root(), root_of(&place));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "exact::child_that_is_killed", "--nocapture"])
            .env(CHILD_ROOT, &r)
            .env(CHILD_KIND, kind.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let opened = lines.map(Result::unwrap).find(|l| l.starts_with("open "));
        fs::write(r.join("before"), b"1").unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        fs::write(r.join("after"), b"2").unwrap();
        let mut s = sensor_on(kind, root, &SensorOptions::default());
        let c = s.continuity().unwrap();
        assert_eq!(Some(format!("open {:?}", c.instance)), opened);
        assert!(c.roots.iter().all(|(_, known)| *known));
        let seen = drain(&mut *s);
        for name in ["before", "after"] {
            assert!(wrote(&seen, &r.join(name)), "{kind}, {name}: {seen:?}");
        }
        end(s);
    }
}

#[test]
fn only_one_reader_at_a_time() {
    for kind in kinds() {
        let place = Place::new(On::Disk);
        let s = place.sensor(kind);
        let second = farwrite_capture::open(
            match kind {
                SensorKind::Kmod => farwrite_capture::SensorChoice::Kmod,
                SensorKind::Ebpf => farwrite_capture::SensorChoice::Ebpf,
                other => panic!("{other}"),
            },
            &[place.watch()],
            &SensorOptions::default(),
        );
        let e = second.err().expect("refused").to_string();
        assert!(e.contains("another"), "{e}");
        fs::write(place.root().join("f"), b"x").unwrap();
        let mut s = s;
        assert!(wrote(&drain(&mut *s), &place.root().join("f")));
        end(s);
    }
}

#[test]
fn a_root_that_joins_has_to_be_compared_and_the_others_go_on() {
    for kind in kinds() {
        let place = Place::new(On::Disk);
        let (a, b) = (place.root().join("a"), place.root().join("b"));
        fs::create_dir(&a).unwrap();
        fs::create_dir(&b).unwrap();
        let root = |p: &Path| WatchRoot::lookup(byte_path(p)).unwrap();
        let choice = match kind {
            SensorKind::Kmod => farwrite_capture::SensorChoice::Kmod,
            SensorKind::Ebpf => farwrite_capture::SensorChoice::Ebpf,
            other => panic!("{other}"),
        };
        let open = |roots: &[WatchRoot]| -> Box<dyn ChangeSource> {
            farwrite_capture::open(choice, roots, &SensorOptions::default())
                .unwrap()
                .0
        };
        open(&[root(&a)]).leave();
        fs::write(a.join("f"), b"x").unwrap();
        fs::write(b.join("f"), b"x").unwrap();
        let mut s = open(&[root(&b), root(&a)]);
        let c = s.continuity().unwrap();
        assert_eq!(c.roots, [(id_of(&b), false), (id_of(&a), true)]);
        fs::write(b.join("g"), b"x").unwrap();
        let seen = drain(&mut *s);
        assert!(wrote(&seen, &a.join("f")) && wrote(&seen, &b.join("g")));
        assert!(!wrote(&seen, &b.join("f")), "{seen:?}");
        s.release().unwrap();
        s.leave();
        // One leaves: what happens there is no longer told of.
        let mut s = open(&[root(&b)]);
        fs::write(a.join("h"), b"x").unwrap();
        fs::write(b.join("h"), b"x").unwrap();
        let seen = drain(&mut *s);
        assert!(wrote(&seen, &b.join("h")) && !wrote(&seen, &a.join("h")));
        assert_eq!(s.continuity().unwrap().roots, [(id_of(&b), true)]);
        end(s);
    }
}

#[test]
fn a_full_ring_is_told_of_until_that_is_released() {
    for kind in kinds() {
        let place = Place::new(On::Disk);
        let root = root_of(&place);
        // Long names make large records.
        let mut dir = place.root();
        for _ in 0..12 {
            dir.push("n".repeat(250));
        }
        fs::create_dir_all(&dir).unwrap();
        let f = rw(&dir.join("f"));
        let mut s = sensor_on(kind, root.clone(), &SensorOptions::default());
        for i in 0..8_000 {
            f.write_all_at(b"x", i).unwrap();
        }
        let overflow = |seen: &[Change]| {
            let is = |c: &&Change| c.op == ChangeOp::Overflow && c.dir == root.id;
            seen.iter().filter(is).count()
        };
        assert_eq!(overflow(&drain(&mut *s)), 1, "{kind}");
        assert_eq!(s.stats().overflows, 1);
        // Not released: the next reader is told again.
        s.leave();
        let mut s = sensor_on(kind, root.clone(), &SensorOptions::default());
        assert_eq!(overflow(&drain(&mut *s)), 1, "{kind}");
        s.release().unwrap();
        f.write_all_at(b"after", 0).unwrap();
        let seen = drain(&mut *s);
        assert_eq!(overflow(&seen), 0, "{kind}: {}", seen.len());
        assert!(wrote(&seen, &dir.join("f")));
        end(s);
    }
}

#[test]
fn a_filesystem_that_was_unmounted_is_not_taken_for_the_same() {
    for kind in kinds() {
        let mut place = Place::new(On::Disk);
        let at = place.base.join("mnt");
        fs::create_dir(&at).unwrap();
        place.mount("tmpfs", "tmpfs".as_ref(), at.clone(), 0);
        let root = |p: &Path| WatchRoot::lookup(byte_path(p)).unwrap();
        sensor_on(kind, root(&at), &SensorOptions::default()).leave();
        place.unmount(&at);
        place.mount("tmpfs", "tmpfs".as_ref(), at.clone(), 0);
        let mut s = sensor_on(kind, root(&at), &SensorOptions::default());
        let c = s.continuity().unwrap();
        assert_eq!(c.roots, [(id_of(&at), false)], "{kind}");
        fs::write(at.join("f"), b"x").unwrap();
        assert!(wrote(&drain(&mut *s), &at.join("f")));
        end(s);
    }
}

#[test]
fn a_directory_in_place_of_a_skipped_one_is_not_skipped() {
    for kind in kinds() {
        let place = Place::new(On::Disk);
        let (vault, other) = (place.root().join("vault"), place.root().join("other"));
        fs::create_dir(&vault).unwrap();
        let ino = id_of(&vault);
        let opts = SensorOptions {
            skip: vec![byte_path(&vault)],
            ..SensorOptions::default()
        };
        let mut s = place.sensor_with(kind, &opts);
        drain(&mut *s);
        fs::write(vault.join("f"), b"x").unwrap();
        assert_eq!(
            about(&drain(&mut *s), &vault.join("f")),
            Vec::<String>::new()
        );
        fs::remove_dir_all(&vault).unwrap();
        fs::create_dir(&other).unwrap();
        if id_of(&other) != ino {
            println!("{kind}: the inode number was not given again at once");
        }
        fs::write(other.join("f"), b"x").unwrap();
        let seen = drain(&mut *s);
        assert!(wrote(&seen, &other.join("f")), "{kind}: {seen:?}");
        end(s);
    }
}
