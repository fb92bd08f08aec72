//! The inotify sensor: a watch on every directory. Works without privileges; sees named operations without ranges; a
//! store through a shared mapping shows when the file is closed. Does not see a write through a hard link whose
//! directory is outside the roots.
//!
//! A new directory is watched first and then reported as `Subtree`, so what was put into it before the watch is found by the
//! consumer's comparison. A directory that cannot be watched is never passed over in silence: it is counted, told
//! in [`ChangeSource::state`], and reported for comparison at intervals.

mod parse;
mod tree;
mod walk;

use crate::clock::now;
use crate::mark::Mark;
use crate::wake::{Ready, Waker, deadline};
use crate::{
    ChangeSource, READ_CHANGES, ReadState, SensorError, SensorKind, SensorOptions, SensorStats,
    WatchRoot,
};
use farwrite_core::{BytePath, Change, ChangeOp, FileId, Guarantee, Name, Timestamp};
use libc::{
    IN_ATTRIB, IN_CLOSE_WRITE, IN_CREATE, IN_DELETE, IN_DELETE_SELF, IN_IGNORED, IN_ISDIR,
    IN_MODIFY, IN_MOVE_SELF, IN_MOVED_FROM, IN_MOVED_TO, IN_Q_OVERFLOW, IN_UNMOUNT,
};
use parse::{Event, Events};
use rustix::io::Errno;
use std::collections::{HashSet, VecDeque};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use tree::Wd;
use walk::{Adopted, At, Watches};

/// Bytes asked for in one read(2).
const BUFFER_BYTES: usize = 256 << 10;
/// Buffers read in one call at most.
const READ_BUFFERS: usize = 32;
/// Renames of which one half has come.
const HALVES: usize = 64;
/// How long an empty queue is given to bring the other half of a rename: the kernel queues the two one after the other.
const OTHER_HALF: Duration = Duration::from_millis(2);

/// Between two looks whether a root has been removed: the kernel does not tell while somebody has it open, as we do.
const LOOK_AT_ROOTS: Duration = Duration::from_secs(5);

/// See the module's text.
pub struct InotifySource {
    watches: Watches,
    waker: Waker,
    buf: Vec<u8>,
    halves: VecDeque<Half>,
    seen_now: HashSet<(Wd, Box<[u8]>, bool)>,
    /// Roots whose removal has been told of.
    removed: Vec<bool>,
    rescan: Duration,
    rescan_due: Instant,
    mark: Mark,
    stats: SensorStats,
}

/// A MOVED_FROM that waits for its MOVED_TO.
struct Half {
    cookie: u32,
    wd: Wd,
    name: Name,
    is_dir: bool,
    change: Change,
}

impl InotifySource {
    /// Watches all directories below the roots. A change made after the return is not missed; one made meanwhile is
    /// for the caller's first scan.
    pub fn open(roots: &[WatchRoot], opts: &SensorOptions) -> Result<Self, SensorError> {
        if roots.is_empty() {
            return Err(SensorError::NoRoots);
        }
        Ok(InotifySource {
            watches: Watches::open(roots, opts)?,
            waker: Waker::new()?,
            buf: vec![0; BUFFER_BYTES],
            halves: VecDeque::new(),
            seen_now: HashSet::new(),
            removed: vec![false; roots.len()],
            rescan: opts.rescan,
            rescan_due: deadline(opts.rescan),
            mark: Mark::default(),
            stats: SensorStats::default(),
        })
    }

    /// Reads what is there; `false` once the queue is empty.
    fn read_buffer(&mut self, out: &mut Vec<Change>) -> Result<bool, Errno> {
        let n = match rustix::io::read(&self.watches.fd, &mut self.buf[..]) {
            Ok(0) | Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::INTR) => return Ok(true),
            other => other?,
        };
        self.mark.read(n as u64);
        let (buf, time) = (std::mem::take(&mut self.buf), now());
        let mut result = Ok(());
        for event in Events::new(&buf[..n]) {
            result = match event {
                Ok(ev) => self.event(&ev, time, out),
                Err(_) => {
                    self.stats.lost += 1;
                    self.lost(time, out)
                }
            };
            if result.is_err() {
                break;
            }
        }
        self.buf = buf;
        result.map(|()| true)
    }

    fn event(
        &mut self,
        ev: &Event<'_>,
        time: Timestamp,
        out: &mut Vec<Change>,
    ) -> Result<(), Errno> {
        self.stats.seen += 1;
        if ev.mask & IN_Q_OVERFLOW != 0 {
            self.stats.overflows += 1;
            return self.lost(time, out);
        }
        if ev.mask & IN_IGNORED != 0 {
            self.watches.forget(ev.wd);
            return Ok(());
        }
        let Some(node) = self.watches.tree.get(ev.wd) else {
            self.stats.filtered += 1;
            return Ok(());
        };
        let (root, is_root, dir) = (node.root, node.parent.is_none(), node.id);
        if ev.mask & IN_UNMOUNT != 0 {
            out.push(self.watches.roots[root].whole(time, ChangeOp::Overflow));
            return Ok(());
        }
        let Ok(name) = Name::new(ev.name) else {
            if is_root {
                self.root_itself(root, ev.mask, time, out);
            }
            return Ok(());
        };
        let Some(path) = self.watches.tree.path(ev.wd, &self.watches.roots) else {
            self.stats.filtered += 1;
            return Ok(());
        };
        let place = Place {
            wd: ev.wd,
            dir,
            path: path.join(&name),
            name,
            time,
        };
        if ev.mask & (IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO) != 0 {
            self.seen_now.clear();
            self.named(ev, place, out)
        } else {
            self.of_file(ev, place, out)
        }
    }

    /// Attributes of a root, or its removal or rename. Every other directory's parent tells of it.
    fn root_itself(&mut self, root: usize, mask: u32, time: Timestamp, out: &mut Vec<Change>) {
        let root = &self.watches.roots[root];
        if mask & (IN_ATTRIB | IN_MODIFY) != 0 {
            let change = root.whole(time, ChangeOp::Attrib);
            let file = Some(root.id);
            out.push(Change { file, ..change });
        }
        if mask & (IN_DELETE_SELF | IN_MOVE_SELF) != 0 {
            out.push(root.whole(time, ChangeOp::Subtree));
        }
    }

    /// Content or attributes.
    fn of_file(&mut self, ev: &Event<'_>, p: Place, out: &mut Vec<Change>) -> Result<(), Errno> {
        // utimensat(2) of the mtime alone shows as a modification, of a directory as well.
        let written = ev.mask & (IN_MODIFY | IN_CLOSE_WRITE) != 0;
        let op = if written && ev.mask & IN_ISDIR == 0 {
            ChangeOp::Write(None)
        } else if written || ev.mask & IN_ATTRIB != 0 {
            ChangeOp::Attrib
        } else {
            return Ok(());
        };
        let adopted = match ev.mask & IN_ISDIR != 0 && self.watches.is_unwatched(p.wd, &p.name) {
            // It may have become readable.
            true => self.watches.adopt(At::Below(p.wd, p.name.clone()))?,
            false => Adopted::Nothing,
        };
        if let Adopted::New(_) = adopted {
            self.new_directory(adopted, p.path.clone(), p.time, out);
        }
        let write = op != ChangeOp::Attrib;
        if !self
            .seen_now
            .insert((p.wd, p.name.as_bytes().into(), write))
        {
            self.stats.merged += 1;
            return Ok(());
        }
        let file = self.watches.file(p.wd, &p.name);
        let file = file.or_else(|| tmpfile(p.dir, &p.name));
        out.push(p.change(file, op));
        Ok(())
    }

    /// Names.
    fn named(&mut self, ev: &Event<'_>, p: Place, out: &mut Vec<Change>) -> Result<(), Errno> {
        let is_dir = ev.mask & IN_ISDIR != 0;
        let mate = self
            .halves
            .iter()
            .position(|h| ev.mask & IN_MOVED_TO != 0 && h.cookie == ev.cookie);
        let mate = mate.and_then(|i| self.halves.remove(i));
        // Both directories are locked during a rename: another event on names in the first one means that the other half will not
        // come.
        while let Some(i) = self.halves.iter().position(|h| h.wd == p.wd) {
            let half = self.halves.remove(i).expect("just found");
            self.moved_out(half, out)?;
        }
        if ev.mask & IN_MOVED_FROM != 0 {
            self.hold(ev.cookie, is_dir, p, out)?;
        } else if ev.mask & IN_DELETE != 0 {
            self.watches.name_gone(p.wd, &p.name);
            out.push(p.change(None, ChangeOp::Delete));
        } else if let Some(half) = mate {
            return self.renamed(half, p, out);
        } else {
            let at = At::Below(p.wd, p.name.clone());
            let adopted = if is_dir {
                self.watches.adopt(at)?
            } else {
                Adopted::Nothing
            };
            let (path, time) = (p.path.clone(), p.time);
            out.push(p.change(None, ChangeOp::Create));
            self.new_directory(adopted, path, time, out);
        }
        Ok(())
    }

    fn hold(
        &mut self,
        cookie: u32,
        is_dir: bool,
        p: Place,
        out: &mut Vec<Change>,
    ) -> Result<(), Errno> {
        if self.halves.len() >= HALVES
            && let Some(oldest) = self.halves.pop_front()
        {
            self.moved_out(oldest, out)?;
        }
        self.watches.name_gone(p.wd, &p.name);
        self.halves.push_back(Half {
            cookie,
            wd: p.wd,
            name: p.name.clone(),
            is_dir,
            change: p.change(None, ChangeOp::Delete),
        });
        Ok(())
    }

    /// The other half did not come: the name has left the roots.
    fn moved_out(&mut self, half: Half, out: &mut Vec<Change>) -> Result<(), Errno> {
        self.seen_now.clear();
        let (path, time) = (half.change.path.clone(), half.change.time);
        let create = Change {
            op: ChangeOp::Create,
            ..half.change.clone()
        };
        out.push(half.change);
        if !half.is_dir {
            return Ok(());
        }
        // In an exchange with a directory outside, the one that came in is told of before the one that left: what
        // has the name now may be here to stay.
        let known = self.watches.tree.child(half.wd, &half.name);
        let adopted = self.watches.adopt(At::Below(half.wd, half.name))?;
        if let (Adopted::Nothing, Some(wd)) = (adopted, known) {
            self.watches.drop_subtree(wd);
        }
        if adopted != Adopted::Nothing {
            out.push(create);
            self.new_directory(adopted, path, time, out);
        }
        Ok(())
    }

    fn renamed(&mut self, half: Half, to: Place, out: &mut Vec<Change>) -> Result<(), Errno> {
        let (path, time) = (to.path.clone(), to.time);
        let at = At::Below(to.wd, to.name.clone());
        let (old_path, old) = (half.change.path.clone(), (half.wd, half.name));
        let mut adopted = Adopted::Nothing;
        let mut left = Adopted::Nothing;
        if half.is_dir {
            adopted = self.watches.adopt_or_vacate(at)?;
            // Another directory may have the old name by now, or the event's own one have it again.
            if self.watches.tree.child(old.0, &old.1).is_some() {
                left = self.watches.adopt_or_vacate(At::Below(old.0, old.1))?;
            }
        }
        out.push(Change {
            op: ChangeOp::Rename {
                to_path: to.path,
                to_dir: to.dir,
                to_name: to.name,
            },
            ..half.change
        });
        self.new_directory(left, old_path, time, out);
        self.new_directory(adopted, path, time, out);
        Ok(())
    }

    /// A directory that was not watched until now is to be compared: it may have been filled before.
    fn new_directory(
        &mut self,
        adopted: Adopted,
        path: BytePath,
        time: Timestamp,
        out: &mut Vec<Change>,
    ) {
        let dir = match adopted {
            Adopted::New(wd) => self.watches.tree.get(wd).map(|n| n.id),
            Adopted::Unwatched(id) => Some(id),
            Adopted::Known(_) | Adopted::Nothing => None,
        };
        out.extend(dir.map(|dir| Change {
            time,
            path,
            dir,
            name: None,
            file: None,
            op: ChangeOp::Subtree,
        }));
    }

    /// Messages are missing: everything is to be compared, and the watches are set anew first.
    fn lost(&mut self, time: Timestamp, out: &mut Vec<Change>) -> Result<(), Errno> {
        tracing::warn!("the inotify queue overflowed: all watches are checked");
        while let Some(half) = self.halves.pop_front() {
            out.push(half.change);
        }
        self.seen_now.clear();
        self.watches.rebuild()?;
        let roots = self.watches.roots.iter();
        out.extend(roots.map(|r| r.whole(time, ChangeOp::Overflow)));
        Ok(())
    }

    /// Reports what no watch covers, and tries to watch it again.
    fn rescan(&mut self, out: &mut Vec<Change>) -> Result<(), Errno> {
        self.rescan_due = deadline(self.rescan);
        let (list, roots) = self.watches.take_unwatched();
        let time = now();
        for i in roots {
            self.watches.rebuild()?;
            out.push(self.watches.roots[i].whole(time, ChangeOp::Subtree));
        }
        for (at, dir) in list {
            let adopted = self.watches.adopt(at.clone())?;
            let path = match &at {
                At::Root(i) => Some(self.watches.roots[*i].path.clone()),
                At::Below(wd, name) => {
                    let parent = self.watches.tree.path(*wd, &self.watches.roots);
                    parent.map(|p| p.join(name))
                }
            };
            if let (Some(path), true) = (path, adopted != Adopted::Nothing) {
                out.push(Change {
                    time,
                    path,
                    dir,
                    name: None,
                    file: None,
                    op: ChangeOp::Subtree,
                });
            }
        }
        Ok(())
    }

    /// The queue is empty: what could not be followed before can be now.
    fn settle(&mut self, out: &mut Vec<Change>) -> Result<(), Errno> {
        let time = now();
        for wd in self.watches.settle()? {
            if let (Some(node), Some(path)) = (
                self.watches.tree.get(wd),
                self.watches.tree.path(wd, &self.watches.roots),
            ) {
                out.push(Change {
                    time,
                    path,
                    dir: node.id,
                    name: None,
                    file: None,
                    op: ChangeOp::Subtree,
                });
            }
        }
        for i in self.watches.removed_roots() {
            if !std::mem::replace(&mut self.removed[i], true) {
                out.push(self.watches.roots[i].whole(time, ChangeOp::Subtree));
            }
        }
        Ok(())
    }

    fn read_all(&mut self, out: &mut Vec<Change>, timeout: Duration) -> Result<ReadState, Errno> {
        let (start, until) = (out.len(), deadline(timeout));
        let (mut last, mut buffers) = (false, 0);
        self.seen_now.clear();
        if self.watches.unwatched() > 0 && Instant::now() >= self.rescan_due {
            // Once in a call: trying a watch that is over the limit leaves an event in the queue.
            self.rescan(out)?;
        }
        loop {
            if self.read_buffer(out)? {
                buffers += 1;
                if self.mark.is_reached() {
                    self.give_up_halves(out)?;
                    self.settle(out)?;
                    return Ok(ReadState::Drained);
                }
                if out.len() - start >= READ_CHANGES || buffers >= READ_BUFFERS {
                    let fd = &self.watches.fd;
                    self.mark.set(|| rustix::io::ioctl_fionread(fd))?;
                    return Ok(ReadState::More);
                }
                continue;
            }
            if !self.halves.is_empty() && self.other_half(out)? {
                continue;
            }
            self.mark.clear();
            self.settle(out)?;
            if last || out.len() > start || Instant::now() >= until {
                return Ok(ReadState::Drained);
            }
            let mut next = until.min(Instant::now() + LOOK_AT_ROOTS);
            if self.watches.unwatched() > 0 {
                next = next.min(self.rescan_due);
            }
            let fd = self.watches.fd.as_fd();
            // A rescan that is due comes with the next call.
            last = self.waker.wait(Some(fd), next)? != Ready::Events;
        }
    }

    /// The queue is empty while a rename waits for its other half: gives it a moment. `true`: more has come.
    fn other_half(&mut self, out: &mut Vec<Change>) -> Result<bool, Errno> {
        let fd = self.watches.fd.as_fd();
        if crate::wake::readable(fd, OTHER_HALF)? {
            return Ok(true);
        }
        self.give_up_halves(out)?;
        Ok(false)
    }

    /// The other halves of these renames will not come, or will be taken for arrivals of their own.
    fn give_up_halves(&mut self, out: &mut Vec<Change>) -> Result<(), Errno> {
        while let Some(half) = self.halves.pop_front() {
            self.moved_out(half, out)?;
        }
        Ok(())
    }
}

/// A name in a watched directory.
struct Place {
    wd: Wd,
    dir: FileId,
    path: BytePath,
    name: Name,
    time: Timestamp,
}

impl Place {
    fn change(self, file: Option<FileId>, op: ChangeOp) -> Change {
        Change {
            time: self.time,
            path: self.path,
            dir: self.dir,
            name: Some(self.name),
            file,
            op,
        }
    }
}

/// A file opened with `O_TMPFILE` is written under the name `#` + inode number, whatever name it got since.
fn tmpfile(dir: FileId, name: &Name) -> Option<FileId> {
    let digits = name.as_bytes().strip_prefix(b"#")?;
    let ino = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(FileId { dev: dir.dev, ino })
}

impl ChangeSource for InotifySource {
    fn kind(&self) -> SensorKind {
        SensorKind::Inotify
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee {
            extents: false,
            mmap: false,
            persists: false,
        }
    }

    fn read(&mut self, out: &mut Vec<Change>, timeout: Duration) -> Result<ReadState, SensorError> {
        let start = out.len();
        let state = self.read_all(out, timeout);
        self.stats.delivered += (out.len() - start) as u64;
        state.map_err(|e| SensorError::Read {
            sensor: SensorKind::Inotify,
            source: e.into(),
        })
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn stats(&self) -> SensorStats {
        SensorStats {
            watches: self.watches.tree.len() as u64,
            unwatched: self.watches.unwatched() as u64,
            ..self.stats
        }
    }

    fn state(&self) -> Option<String> {
        let n = self.watches.unwatched();
        (n > 0).then(|| {
            format!(
                "{n} directory trees are not watched and are compared every {} s instead: the limit of {} watches is reached \
                 (raise it with: sysctl fs.inotify.max_user_watches=<more>, or use fanotify)",
                self.rescan.as_secs(),
                self.watches.tree.len()
            )
        })
    }

    fn close(self: Box<Self>) {}
}
