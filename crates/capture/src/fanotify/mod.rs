//! The fanotify sensor: one mark on each root's whole filesystem, events with directory handle, name and
//! target (Linux 5.17). Sees every operation that goes through the kernel's file interface, without ranges; a store
//! through a shared mapping shows when the file is closed.
//!
//! Needs CAP_SYS_ADMIN for the mark and CAP_DAC_READ_SEARCH to open handles. Never asks for permission
//! events: no application ever waits for this reader.

mod intake;
mod parse;
mod resolve;

use crate::clock::now;
use crate::mark::Mark;
use crate::wake::{Ready, Waker, deadline};
use crate::{
    ChangeSource, READ_CHANGES, ReadState, SensorError, SensorKind, SensorOptions, SensorStats,
    WatchRoot, sys,
};
use farwrite_core::{Change, ChangeOp, FileId, Guarantee, Name, Timestamp};
use intake::{EVENT_UNIT, Intake};
use libc::{
    FAN_ATTRIB, FAN_CLOSE_WRITE, FAN_CREATE, FAN_DELETE, FAN_FS_ERROR, FAN_MODIFY, FAN_ONDIR,
    FAN_Q_OVERFLOW, FAN_RENAME,
};
use parse::{Entry, Event, Events, Handle};
use resolve::{Dir, Place, Resolver};
use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// Events looked at in one step; what ends a read is looked at between two.
const STEP_EVENTS: usize = 1024;
/// Events looked at in one call at most, about, so that noise elsewhere on the filesystem cannot hold a caller.
const READ_EVENTS: usize = 128 << 10;
/// Drained reads, this one included, after which the `Subtree` of a directory that came in has been looked at.
const CAME_IN: u8 = 2;
/// What the mark asks for.
const MASK: u64 = FAN_CREATE
    | FAN_DELETE
    | FAN_RENAME
    | FAN_MODIFY
    | FAN_ATTRIB
    | FAN_CLOSE_WRITE
    | FAN_ONDIR
    | FAN_FS_ERROR;
/// Events that are about a file's content or attributes, not about a name.
const OF_FILE: u64 = FAN_MODIFY | FAN_CLOSE_WRITE | FAN_ATTRIB;
/// What to do when the kernel says no.
const REMEDY_CAPS: &str =
    "run as root or grant CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH, or use inotify";
const REMEDY_KERNEL: &str = "use Linux 5.17 or newer, or inotify";

/// See the module's text.
pub struct FanotifySource {
    intake: Intake,
    /// Taken in, and looked at up to `at`.
    buf: Vec<u8>,
    at: usize,
    taken: Timestamp,
    waker: Waker,
    watch: Vec<WatchRoot>,
    resolver: Resolver,
    ignore_pid: Option<i32>,
    seen_now: HashSet<(FileId, Box<[u8]>, bool)>,
    /// A directory came in lately: reads to go until its `Subtree` can be taken to have been looked at.
    came_in: u8,
    mark: Mark,
    stats: SensorStats,
}

/// Creates a notification group; the error says what is missing and what to do.
pub(crate) fn init(limited_queue: bool) -> Result<OwnedFd, SensorError> {
    let mut flags = libc::FAN_CLASS_NOTIF
        | libc::FAN_CLOEXEC
        | libc::FAN_NONBLOCK
        | libc::FAN_REPORT_DFID_NAME_TARGET;
    if !limited_queue {
        flags |= libc::FAN_UNLIMITED_QUEUE;
    }
    sys::fanotify_init(flags).map_err(|e| {
        let (why, remedy) = match e.raw_os_error() {
            Some(libc::EPERM) => ("not permitted to create a group".into(), REMEDY_CAPS),
            Some(libc::EINVAL | libc::ENOSYS) => (
                "the kernel is too old or built without it".into(),
                REMEDY_KERNEL,
            ),
            Some(libc::EMFILE) => (
                "too many groups or open files".into(),
                "raise fs.fanotify.max_user_groups or the open file limit",
            ),
            _ => (e.to_string(), REMEDY_KERNEL),
        };
        unavailable(why, remedy)
    })
}

fn unavailable(why: String, remedy: &str) -> SensorError {
    SensorError::Unavailable {
        sensor: SensorKind::Fanotify,
        why,
        remedy: remedy.into(),
    }
}

fn unreadable(source: io::Error) -> SensorError {
    SensorError::Read {
        sensor: SensorKind::Fanotify,
        source,
    }
}

impl FanotifySource {
    /// Marks the filesystems of all roots. From the return on, no change is missed.
    pub fn open(roots: &[WatchRoot], opts: &SensorOptions) -> Result<Self, SensorError> {
        if roots.is_empty() {
            return Err(SensorError::NoRoots);
        }
        let fd = init(opts.limited_queue)?;
        let mut resolver = Resolver::open(roots, opts)?;
        let mut stats = SensorStats::default();
        for (root, root_fd) in resolver.root_fds() {
            let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
            sys::fanotify_mark(fd.as_fd(), flags, MASK, root_fd.as_fd()).map_err(|source| {
                if source.raw_os_error() == Some(libc::EPERM) {
                    return unavailable("not permitted to mark a filesystem".into(), REMEDY_CAPS);
                }
                SensorError::Mark {
                    sensor: SensorKind::Fanotify,
                    path: root.path.clone(),
                    source,
                }
            })?;
        }
        resolver.check_handles()?;
        stats.marks = resolver.filesystems() as u64;
        Ok(FanotifySource {
            intake: Intake::new(fd),
            buf: Vec::new(),
            at: 0,
            taken: now(),
            waker: Waker::new()?,
            watch: roots.to_vec(),
            resolver,
            ignore_pid: opts.ignore_pid,
            seen_now: HashSet::new(),
            came_in: 0,
            mark: Mark::default(),
            stats,
        })
    }

    /// Looks at some of the events that are there, and says at how many; none once the queue is empty.
    fn step(&mut self, out: &mut Vec<Change>) -> Result<usize, SensorError> {
        if self.at == self.buf.len() {
            self.at = 0;
            self.intake.take(&mut self.buf).map_err(unreadable)?;
            self.taken = now();
        }
        let (buf, time) = (std::mem::take(&mut self.buf), self.taken);
        let mut events = Events::new(&buf[self.at..]);
        let mut n = 0;
        for event in events.by_ref().take(STEP_EVENTS) {
            let done = event
                .map_err(io::Error::other)
                .and_then(|ev| self.event(&ev, time, out));
            if let Err(e) = done {
                tracing::warn!(error = %e, "an event could not be placed: everything is to be compared");
                self.stats.lost += 1;
                self.lost(time, out);
            }
            n += 1;
        }
        self.at = buf.len() - events.left();
        self.buf = buf;
        Ok(n)
    }

    fn event(&mut self, ev: &Event<'_>, time: Timestamp, out: &mut Vec<Change>) -> io::Result<()> {
        self.stats.seen += 1;
        self.mark.read(EVENT_UNIT);
        if ev.mask & FAN_Q_OVERFLOW != 0 {
            self.stats.overflows += 1;
            self.lost(time, out);
            return Ok(());
        }
        if ev.mask & FAN_FS_ERROR != 0 {
            self.stats.fs_errors += 1;
            tracing::error!("the kernel reports an error of a protected filesystem");
            return Ok(());
        }
        if self.ignore_pid == Some(ev.pid) {
            self.stats.filtered += 1;
            return Ok(());
        }
        let before = out.len() as u64 + self.stats.merged;
        if ev.mask & FAN_RENAME != 0 {
            self.rename(ev, time, out)?;
        } else if let Some(entry) = ev.entry {
            self.named(ev, entry, time, out)?;
        } else if let Some(target) = ev.target {
            self.nameless(ev, target, time, out)?;
        } else {
            return Err(io::Error::other("neither a name nor a file in it"));
        }
        if before == out.len() as u64 + self.stats.merged {
            self.stats.filtered += 1;
        }
        Ok(())
    }

    /// Messages may be missing: all roots are to be compared, and nothing remembered holds.
    fn lost(&mut self, time: Timestamp, out: &mut Vec<Change>) {
        self.resolver.forget();
        self.seen_now.clear();
        out.extend(self.watch.iter().map(|r| r.whole(time, ChangeOp::Overflow)));
    }

    /// An event on a name in a directory.
    fn named(
        &mut self,
        ev: &Event<'_>,
        entry: Entry<'_>,
        time: Timestamp,
        out: &mut Vec<Change>,
    ) -> io::Result<()> {
        let dir = match self.resolver.dir(entry.dir)? {
            Place::Inside(dir) => dir,
            Place::Skipped => return Ok(()),
            Place::Outside | Place::Gone => return self.elsewhere(ev, time, out),
        };
        let Ok(name) = Name::new(entry.name) else {
            return self.directory_itself(entry.dir, &dir, time, out);
        };
        let is_dir = ev.mask & FAN_ONDIR != 0;
        let file = match ev.target {
            Some(t) if ev.mask & OF_FILE != 0 => self.resolver.file(t, is_dir)?.map(|f| f.id),
            _ => None,
        };
        // Bits of one event have no order among themselves; whoever looks at the tree after the last of these sees
        // what is.
        let ops = [
            (FAN_CREATE, ChangeOp::Create),
            (FAN_MODIFY | FAN_CLOSE_WRITE, ChangeOp::Write(None)),
            (FAN_ATTRIB, ChangeOp::Attrib),
            (FAN_DELETE, ChangeOp::Delete),
        ];
        for (_, op) in ops.into_iter().filter(|(bits, _)| ev.mask & bits != 0) {
            let file = file.filter(|_| matches!(op, ChangeOp::Write(_) | ChangeOp::Attrib));
            if self.is_new(dir.id, name.as_bytes(), &op) {
                out.push(Change {
                    time,
                    path: dir.path.join(&name),
                    dir: dir.id,
                    name: Some(name.clone()),
                    file,
                    op,
                });
            }
        }
        Ok(())
    }

    /// Not a repetition of a `Write` or `Attrib` in this read? Any change of names starts anew, so that none is
    /// drawn in front of it.
    fn is_new(&mut self, dir: FileId, name: &[u8], op: &ChangeOp) -> bool {
        let write = match op {
            ChangeOp::Write(_) => true,
            ChangeOp::Attrib => false,
            _ => {
                self.seen_now.clear();
                return true;
            }
        };
        let new = self.seen_now.insert((dir, name.into(), write));
        self.stats.merged += u64::from(!new);
        new
    }

    /// Attributes of a directory, reported with itself as the place.
    fn directory_itself(
        &mut self,
        handle: Handle<'_>,
        dir: &Dir,
        time: Timestamp,
        out: &mut Vec<Change>,
    ) -> io::Result<()> {
        let root = &self.watch[dir.root];
        if dir.id == root.id {
            let file = Some(root.id);
            let change = root.whole(time, ChangeOp::Attrib);
            out.push(Change { file, ..change });
            return Ok(());
        }
        let Some(parent) = self.resolver.parent(handle, dir.root)? else {
            return Ok(());
        };
        let name = dir.path.file_name();
        if let Some(name) = name.filter(|n| self.is_new(parent, n.as_bytes(), &ChangeOp::Attrib)) {
            out.push(Change {
                time,
                path: (*dir.path).clone(),
                dir: parent,
                name: Some(name),
                file: Some(dir.id),
                op: ChangeOp::Attrib,
            });
        }
        Ok(())
    }

    /// An event in a directory that is not ours. It still concerns us if the file has other names, which may be below a
    /// root, or if it is about a root itself.
    fn elsewhere(
        &mut self,
        ev: &Event<'_>,
        time: Timestamp,
        out: &mut Vec<Change>,
    ) -> io::Result<()> {
        let Some(target) = ev.target else {
            return Ok(());
        };
        if ev.mask & FAN_ONDIR != 0 {
            self.root_itself(target, time, out);
            return Ok(());
        }
        if ev.mask & OF_FILE != 0
            && let Some(file) = self.resolver.file(target, false)?
            && file.linked
        {
            self.by_identity(ev.mask, target, file.id, time, out);
        }
        Ok(())
    }

    /// A root was removed or renamed: what is (not) at its path now is to be looked at.
    fn root_itself(&mut self, target: Handle<'_>, time: Timestamp, out: &mut Vec<Change>) {
        if let Some(i) = self.resolver.root_by_handle(target) {
            out.push(self.watch[i].whole(time, ChangeOp::Subtree));
        }
    }

    /// An event without a name: the link count changed, or the file was opened by handle (a file server).
    fn nameless(
        &mut self,
        ev: &Event<'_>,
        target: Handle<'_>,
        time: Timestamp,
        out: &mut Vec<Change>,
    ) -> io::Result<()> {
        if ev.mask & FAN_ATTRIB != 0 {
            self.resolver.links_changed(target);
        }
        let is_dir = ev.mask & FAN_ONDIR != 0;
        if let Some(file) = self.resolver.file(target, is_dir)? {
            self.by_identity(ev.mask, target, file.id, time, out);
        }
        Ok(())
    }

    /// Reports a file to every root on its filesystem, by identity alone.
    fn by_identity(
        &mut self,
        mask: u64,
        target: Handle<'_>,
        file: FileId,
        time: Timestamp,
        out: &mut Vec<Change>,
    ) {
        let op = match mask & (FAN_MODIFY | FAN_CLOSE_WRITE) {
            0 => ChangeOp::Attrib,
            _ => ChangeOp::Write(None),
        };
        if !self.is_new(file, b"", &op) {
            return;
        }
        for i in self.resolver.roots_on(target) {
            let change = self.watch[i].whole(time, op.clone());
            out.push(Change {
                file: Some(file),
                ..change
            });
        }
    }

    fn rename(&mut self, ev: &Event<'_>, time: Timestamp, out: &mut Vec<Change>) -> io::Result<()> {
        let is_dir = ev.mask & FAN_ONDIR != 0;
        let old = self.side(ev.old)?;
        let new = self.side(ev.new)?;
        if is_dir {
            let elsewhere = matches!((&old, &new), (Side::Outside, Side::Outside));
            self.resolver.directories_moved(elsewhere);
            if let Some(target) = ev.target {
                self.root_itself(target, time, out);
            }
        }
        let change = |(dir, name): (Dir, Name), op| Change {
            time,
            path: dir.path.join(&name),
            dir: dir.id,
            name: Some(name),
            file: None,
            op,
        };
        let compare = match (old, new) {
            (Side::Inside(o), Side::Inside(n)) => {
                let op = ChangeOp::Rename {
                    to_path: n.0.path.join(&n.1),
                    to_dir: n.0.id,
                    to_name: n.1,
                };
                out.push(change(o, op));
                // What happened in it may have been dropped while it, or a directory above, was outside; and it may have
                // left the directory that came in before anybody looked there.
                is_dir && self.came_in > 0
            }
            (Side::Inside(o), _) => {
                out.push(change(o, ChangeOp::Delete));
                false
            }
            (_, Side::Inside(n)) => {
                out.push(change(n, ChangeOp::Create));
                self.came_in = if is_dir { CAME_IN } else { self.came_in };
                is_dir
            }
            _ => return Ok(()),
        };
        self.seen_now.clear();
        if let (true, Some(target)) = (compare, ev.target)
            && let Place::Inside(dir) = self.resolver.dir(target)?
        {
            out.push(Change {
                time,
                path: (*dir.path).clone(),
                dir: dir.id,
                name: None,
                file: None,
                op: ChangeOp::Subtree,
            });
        }
        Ok(())
    }

    fn side(&mut self, entry: Option<Entry<'_>>) -> io::Result<Side> {
        let Some(entry) = entry else {
            return Ok(Side::Unknown);
        };
        let name = Name::new(entry.name).map_err(io::Error::other)?;
        Ok(match self.resolver.dir(entry.dir)? {
            Place::Inside(dir) => Side::Inside((dir, name)),
            Place::Outside => Side::Outside,
            Place::Skipped | Place::Gone => Side::Unknown,
        })
    }
}

/// One side of a rename.
enum Side {
    Inside((Dir, Name)),
    Outside,
    Unknown,
}

impl ChangeSource for FanotifySource {
    fn kind(&self) -> SensorKind {
        SensorKind::Fanotify
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee {
            extents: false,
            mmap: false,
            persists: false,
        }
    }

    fn read(&mut self, out: &mut Vec<Change>, timeout: Duration) -> Result<ReadState, SensorError> {
        let (start, until) = (out.len(), deadline(timeout));
        let (mut last, mut events) = (false, 0);
        self.seen_now.clear();
        let state = loop {
            let n = self.step(out)?;
            if n > 0 {
                events += n;
                if self.mark.is_reached() {
                    break ReadState::Drained;
                }
                if out.len() - start >= READ_CHANGES || events >= READ_EVENTS {
                    let waiting = || {
                        let here = parse::count(&self.buf[self.at..]);
                        Ok(self.intake.waiting()? + EVENT_UNIT * here)
                    };
                    self.mark.set(waiting).map_err(unreadable)?;
                    break ReadState::More;
                }
                continue;
            }
            self.mark.clear();
            if last || out.len() > start || Instant::now() >= until {
                break ReadState::Drained;
            }
            if !self.intake.rest() {
                continue;
            }
            let ready = self.waker.wait(Some(self.intake.fd()), until);
            last = ready.map_err(|e| unreadable(e.into()))? != Ready::Events;
        };
        if state == ReadState::Drained {
            self.came_in = self.came_in.saturating_sub(1);
        }
        self.stats.delivered += (out.len() - start) as u64;
        Ok(state)
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn stats(&self) -> SensorStats {
        self.stats
    }

    fn close(self: Box<Self>) {}
}

impl Drop for FanotifySource {
    fn drop(&mut self) {
        // Closing the last descriptor would do; the flush also holds if a copy of it is still open somewhere.
        if let Some((_, fd)) = self.resolver.root_fds().next() {
            let flags = libc::FAN_MARK_FLUSH | libc::FAN_MARK_FILESYSTEM;
            if let Err(e) = sys::fanotify_mark(self.intake.fd(), flags, 0, fd.as_fd()) {
                tracing::warn!(error = %e, "removing the fanotify marks");
            }
        }
    }
}
