//! Files that processes hold open for writing, or have mapped so that stores go into them. fanotify and inotify are told nothing of
//! such a store, nor of a write by io_submit(2), until the file is closed, which databases and virtual machines never do. So now
//! and then it is looked up which files those are (proc(5)), and those with other times than before are told of, by identity.

use crate::clock::now;
use crate::wake::{Waker, deadline};
use crate::{ChangeSource, Continuity, ReadState, SensorError, SensorKind, SensorStats, WatchRoot};
use farwrite_core::{BytePath, Change, ChangeOp, FileId, Guarantee, Timestamp};
use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, makedev, statx};
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(30);
/// The same if somebody wants to know now: a look takes milliseconds, and a flush may come with each of many small changes.
const SOONEST: Duration = Duration::from_secs(5);
/// A look takes no more than one part in so many of the time; and of that of those who want to know now.
const SHARE: u32 = 500;
const URGENT_SHARE: u32 = 20;
/// Files looked at; of more, those that come later are left out.
const KNOWN: usize = 100_000;

/// Size, and seconds and nanoseconds of the last changes of content and inode.
type Times = [i64; 5];

/// A file that is held.
struct Held {
    times: Times,
    mapped: bool,
    /// Where the process that holds it sees it, if it can be told.
    path: Option<BytePath>,
}

/// A sensor that is not told of some writes while they go on, and is helped out.
pub(crate) struct WithHeld {
    inner: Box<dyn ChangeSource>,
    roots: Vec<WatchRoot>,
    every: Duration,
    due: Instant,
    /// Not before, even if somebody wants to know.
    soonest: Instant,
    known: HashMap<FileId, Held>,
    told: u64,
    /// What this process holds open it does not write to, or it is none of what is protected.
    own: u32,
}

impl WithHeld {
    pub(crate) fn new(inner: Box<dyn ChangeSource>, roots: &[WatchRoot]) -> Self {
        WithHeld {
            inner,
            roots: roots.to_vec(),
            every: EVERY,
            due: deadline(EVERY),
            soonest: Instant::now(),
            known: HashMap::new(),
            told: 0,
            own: std::process::id(),
        }
    }

    fn look(&mut self, out: &mut Vec<Change>) {
        let begin = Instant::now();
        let mut held = HashMap::new();
        let ours = fs::read_link("/proc/self/ns/mnt").ok();
        for_each_process(self.own, |process| {
            // In a container, say, a file of ours has another path.
            let elsewhere = fs::read_link(process.join("ns/mnt")).ok() != ours;
            let note = |link: &Path, mapped| self.note(&mut held, link, mapped, elsewhere);
            each_held(process, note);
        });
        let (time, before) = (now(), out.len());
        for (id, file) in &held {
            let known = self.known.get(id);
            let same = known.is_some_and(|k| (k.times, k.mapped) == (file.times, file.mapped));
            if !same && let Some(root) = self.roots.iter().find(|r| r.id.dev == id.dev) {
                out.push(told(root, *id, file, time));
            }
        }
        self.told += (out.len() - before) as u64;
        self.known = held;
        self.soonest = deadline(SOONEST.max(begin.elapsed() * URGENT_SHARE));
        self.due = deadline(self.every.max(begin.elapsed() * SHARE));
    }

    fn note(&self, held: &mut HashMap<FileId, Held>, link: &Path, mapped: bool, elsewhere: bool) {
        let Some((id, times, links)) = of_file(link) else {
            return;
        };
        if held.len() >= KNOWN || self.roots.iter().all(|r| r.id.dev != id.dev) {
            return;
        }
        let path = fs::read_link(link).ok();
        let path = path.and_then(|p| BytePath::try_from(p.as_path()).ok());
        let below = |p: &BytePath| self.roots.iter().any(|r| p.starts_with(&r.path));
        if elsewhere || links > 1 || path.as_ref().is_some_and(below) {
            let mapped = mapped || held.get(&id).is_some_and(|h| h.mapped);
            let held_now = Held {
                times,
                mapped,
                path,
            };
            held.insert(id, held_now);
        }
    }
}

/// The message: look at the file, its times tell. Its name is a hint.
fn told(root: &WatchRoot, id: FileId, file: &Held, time: Timestamp) -> Change {
    let inside = file.path.clone().filter(|p| p.starts_with(&root.path));
    let name = file.path.as_ref().and_then(BytePath::file_name);
    let path = match (inside, &name) {
        (Some(path), _) => path,
        (None, Some(name)) => root.path.join(name),
        (None, None) => root.path.clone(),
    };
    // A store changes the times only if the page had been written back since the one before: so that is begun before the file is
    // read.
    let op = match file.mapped {
        true => ChangeOp::Mapped(None),
        false => ChangeOp::Attrib,
    };
    Change {
        time,
        path,
        dir: root.id,
        name,
        file: Some(id),
        op,
    }
}

fn for_each_process(but: u32, mut each: impl FnMut(&Path)) {
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let number = process.file_name().to_str().and_then(|n| n.parse().ok());
        if number.is_some_and(|n: u32| n != but) {
            each(&process.path());
        }
    }
}

/// Links to the files that a process has open for writing, and (`true`) of which it has a mapping that is shared and writable. None
/// of one that has ended, or may not be looked at.
fn each_held(process: &Path, mut each: impl FnMut(&Path, bool)) {
    let open = fs::read_dir(process.join("fd"));
    for fd in open.into_iter().flatten().flatten() {
        if is_writable(&process.join("fdinfo").join(fd.file_name())) {
            each(&fd.path(), false);
        }
    }
    // proc_pid_maps(5). Paths in it may hold any bytes.
    let maps = fs::read(process.join("maps")).unwrap_or_default();
    for line in maps.split(|b| *b == b'\n') {
        let mut words = line.split(|b| *b == b' ');
        if let (Some(range), Some(mode)) = (words.next(), words.next())
            && mode.get(1) == Some(&b'w')
            && mode.get(3) == Some(&b's')
            && let Ok(range) = std::str::from_utf8(range)
        {
            each(&process.join("map_files").join(range), true);
        }
    }
}

/// `flags:` in octal, with the access mode in the lowest two bits (proc_pid_fdinfo(5)).
fn is_writable(info: &Path) -> bool {
    let text = fs::read_to_string(info).unwrap_or_default();
    let flags = text.lines().find_map(|l| l.strip_prefix("flags:"));
    flags
        .and_then(|f| u32::from_str_radix(f.trim(), 8).ok())
        .is_some_and(|f| f & 3 != 0)
}

/// A regular file, and how many names it has. What the kernel knows of it by itself: it may be on a server that does not answer, and
/// is none of ours then.
fn of_file(link: &Path) -> Option<(FileId, Times, u64)> {
    let want = StatxFlags::BASIC_STATS;
    let m = statx(CWD, link, AtFlags::STATX_DONT_SYNC, want).ok()?;
    if FileType::from_raw_mode(m.stx_mode.into()) != FileType::RegularFile {
        return None;
    }
    let id = FileId {
        dev: makedev(m.stx_dev_major, m.stx_dev_minor),
        ino: m.stx_ino,
    };
    let (mtime, ctime) = (m.stx_mtime, m.stx_ctime);
    let times = [
        m.stx_size as i64,
        mtime.tv_sec,
        mtime.tv_nsec.into(),
        ctime.tv_sec,
        ctime.tv_nsec.into(),
    ];
    Some((id, times, m.stx_nlink.into()))
}

impl ChangeSource for WithHeld {
    fn kind(&self) -> SensorKind {
        self.inner.kind()
    }

    fn guarantee(&self) -> Guarantee {
        self.inner.guarantee()
    }

    fn read(&mut self, out: &mut Vec<Change>, timeout: Duration) -> Result<ReadState, SensorError> {
        let left = self.due.saturating_duration_since(Instant::now());
        let state = self.inner.read(out, timeout.min(left))?;
        if state == ReadState::Drained && Instant::now() >= self.due {
            self.look(out);
        }
        Ok(state)
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }

    fn stats(&self) -> SensorStats {
        let mut stats = self.inner.stats();
        stats.delivered += self.told;
        stats
    }

    fn release(&mut self) -> Result<(), SensorError> {
        self.inner.release()
    }

    fn look_now(&mut self) {
        self.due = self.due.min(self.soonest);
        self.inner.look_now();
    }

    fn continuity(&self) -> Option<Continuity> {
        self.inner.continuity()
    }

    fn state(&self) -> Option<String> {
        self.inner.state()
    }

    fn close(self: Box<Self>) {
        self.inner.close();
    }

    fn leave(self: Box<Self>) {
        self.inner.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ScanSource, SensorOptions};
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;
    use std::process::{Command, Stdio};

    /// What is told of after a look.
    fn told(source: &mut WithHeld) -> Vec<(u64, ChangeOp)> {
        let mut out = Vec::new();
        source.due = Instant::now();
        source.read(&mut out, Duration::ZERO).unwrap();
        let about = out.into_iter().filter(|c| c.op != ChangeOp::Subtree);
        about.map(|c| (c.file.unwrap().ino, c.op)).collect()
    }

    #[test]
    fn what_others_hold_open_for_writing_is_told_of_when_its_times_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = |n: &str| dir.path().join(n);
        for name in ["written", "read", "mapped", "other"] {
            fs::write(path(name), [7; 8192]).unwrap();
        }
        let ino = |n: &str| fs::metadata(path(n)).unwrap().ino();
        let root = WatchRoot::lookup(BytePath::try_from(dir.path()).unwrap()).unwrap();
        let roots = [root];
        let scan = ScanSource::open(&roots, &SensorOptions::default()).unwrap();
        let mut source = WithHeld::new(Box::new(scan), &roots);
        let mut shell = Command::new("sh")
            .args(["-c", "exec 3<>written 4<read; read _"])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let ours = |all: Vec<(u64, ChangeOp)>| -> Vec<_> {
            let names = ["written", "read", "mapped", "other"].map(ino);
            all.into_iter().filter(|(i, _)| names.contains(i)).collect()
        };
        while ours(told(&mut source)) != [(ino("written"), ChangeOp::Attrib)] {
            assert!(Instant::now() < deadline);
        }
        assert_eq!(ours(told(&mut source)), []);
        fs::OpenOptions::new()
            .append(true)
            .open(path("written"))
            .unwrap()
            .write_all(b"more")
            .unwrap();
        assert_eq!(
            ours(told(&mut source)),
            [(ino("written"), ChangeOp::Attrib)]
        );

        // A mapping, of this process.
        source.own = 0;
        let mapped = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(path("mapped"))
            .unwrap();
        let (fd, mode) = (mapped.as_raw_fd(), libc::PROT_READ | libc::PROT_WRITE);
        let anywhere = std::ptr::null_mut();
        // SAFETY: a new mapping at an address that the kernel chooses, unmapped below and used by nobody in between.
        let at = unsafe { libc::mmap(anywhere, 8192, mode, libc::MAP_SHARED, fd, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        drop(mapped);
        assert_eq!(
            ours(told(&mut source)),
            [(ino("mapped"), ChangeOp::Mapped(None))]
        );
        assert_eq!(ours(told(&mut source)), []);
        // SAFETY: mapped above.
        assert_eq!(unsafe { libc::munmap(at, 8192) }, 0);
        drop(shell.stdin.take());
        shell.wait().unwrap();
        fs::write(path("written"), "closed").unwrap();
        assert_eq!(ours(told(&mut source)), []);
    }
}
