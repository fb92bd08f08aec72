//! Reads the small files of new directories before the unit's thread comes to them: several at a time, so that the disk is not
//! asked for one after another, and beside that thread, which is busy with what was read before. Of a first backup
//! that is most of the work.
//!
//! What was read ahead decides nothing. It is used only if the file was the same before the read, after it, and when the unit's
//! thread looks at it (identity, size, times and all); else that thread reads it itself. Nothing outlives the round for which it
//! was read.

use super::content::{SMALL_BYTES, SmallContent, read_small};
use super::seen::{Now, Start};
use crossbeam_channel::{Receiver, Sender};
use farwrite_core::exclude::Excludes;
use farwrite_core::meta::Xattr;
use farwrite_core::{BytePath, FileId, Kind, Name};
use farwrite_fs::{Dir, DirEntry, Stat, expect_reads, list_file_xattrs};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

/// Threads that read: more than processors, since most of what they do on a cold disk is to wait.
const THREADS: usize = 4;
/// Files in one piece of work.
const PIECE_FILES: usize = 16;
/// Pieces that are under way or wait to be used at most, of the directory that is being compared and again of those that come
/// next: with [`PIECE_FILES`] of [`SMALL_BYTES`] each, 16 MiB.
const PIECES: usize = 8;
/// Bytes of a larger file that the kernel is asked to have ready; once those are read it goes on by itself.
const LARGE_START: u64 = 256 << 10;
/// Bytes of xattrs with which a file is left to the unit's thread.
const XATTR_BYTES: usize = 4 << 10;
/// Entries of a directory to come, beyond which nothing of it is read before it is being compared.
const LISTED: usize = 1024;
/// Fewer new directories in a round, and fewer files in one, are not worth starting a thread for.
const WORTH_DIRS: usize = 4;
const WORTH_FILES: usize = 64;

/// A file as it was read.
pub(super) struct FileRead {
    /// What the kernel said of it before.
    pub stat: Stat,
    /// When the read began.
    pub started: Start,
    pub content: SmallContent,
    pub xattrs: Vec<Xattr>,
}

/// A protected directory, below which those to come are.
#[derive(Debug)]
pub(super) struct Place {
    pub dir: Arc<Dir>,
    pub path: BytePath,
    pub excludes: Excludes,
    pub dev: u64,
}

/// An open directory.
struct Opened {
    place: Arc<Place>,
    path: BytePath,
    dir: Arc<Dir>,
}

/// What came of a piece: files that were read, in the order of their inode numbers.
#[derive(Default)]
struct Piece {
    reads: Vec<FileRead>,
    /// Of a directory's first piece: it goes up to this inode number; `None`: all files were read.
    up_to: Option<u64>,
}

enum Job {
    /// The first files of a directory.
    First(Arc<Place>, BytePath, FileId),
    /// Some files.
    More(Arc<Opened>, Vec<Name>),
}

/// The regular files among entries. What else, or perhaps something else, is never opened.
fn files(entries: &[DirEntry]) -> impl Iterator<Item = &DirEntry> {
    entries.iter().filter(|e| e.kind == Some(Kind::File))
}

impl Job {
    fn run(self, now: &Now) -> io::Result<Piece> {
        match self {
            Job::First(place, path, id) => {
                let above = place.path.names().count();
                let names: Vec<Name> = path.names().skip(above).collect();
                let dir = place.dir.open_beneath(&names)?;
                if dir.stat_self()?.id != id {
                    return Ok(Piece::default());
                }
                let (mut entries, mut more) = (Vec::new(), false);
                dir.for_each_entry(|e| match entries.len() < LISTED {
                    true => entries.push(e),
                    false => more = true,
                })?;
                if more {
                    // Which of them will be looked at first is not known.
                    return Ok(Piece {
                        reads: Vec::new(),
                        up_to: Some(0),
                    });
                }
                entries.sort_unstable_by_key(|e| e.ino);
                let first: Vec<&DirEntry> = files(&entries).take(PIECE_FILES).collect();
                let up_to = first.last().filter(|_| first.len() == PIECE_FILES);
                let up_to = up_to.map(|e| e.ino);
                let names: Vec<Name> = first.into_iter().map(|e| e.name.clone()).collect();
                let dir = Arc::new(dir);
                let reads = Opened { place, path, dir }.read(&names, now);
                Ok(Piece { reads, up_to })
            }
            Job::More(opened, names) => Ok(Piece {
                reads: opened.read(&names, now),
                up_to: None,
            }),
        }
    }
}

impl Opened {
    fn read(&self, names: &[Name], now: &Now) -> Vec<FileRead> {
        let excludes = &self.place.excludes;
        let wanted =
            |n: &&Name| excludes.is_empty() || !excludes.excludes_entry(&self.path.join(n), false);
        let read = |n| self.read_file(n, now).ok().flatten();
        names.iter().filter(wanted).filter_map(read).collect()
    }

    /// `None`: it is none to be read as a whole. Whatever fails here fails again, and is told of, when it is looked at.
    fn read_file(&self, name: &Name, now: &Now) -> io::Result<Option<FileRead>> {
        let (file, stat) = self.dir.read_file(name)?;
        // One that has other names may be known by those.
        if stat.id.dev != self.place.dev || stat.mount_root || stat.nlink > 1 {
            return Ok(None);
        }
        if stat.size > SMALL_BYTES {
            expect_reads(&file, 0..LARGE_START.min(stat.size));
            return Ok(None);
        }
        let started = now.look();
        let content = read_small(&file, stat.size, stat.blocks * 512 < stat.size)?;
        let xattrs = list_file_xattrs(&file)?;
        let attr_bytes: usize = xattrs.iter().map(|x| x.name.len() + x.value.len()).sum();
        if attr_bytes > XATTR_BYTES || Stat::of(&file)? != stat {
            return Ok(None);
        }
        Ok(Some(FileRead {
            stat,
            started,
            content,
            xattrs,
        }))
    }
}

/// A piece that somebody is at work on, or will be.
type Promise = Receiver<Piece>;

struct Pool {
    put: Sender<(Job, Sender<Piece>)>,
    /// For work that the unit's thread takes back rather than wait.
    take: Receiver<(Job, Sender<Piece>)>,
    now: Now,
}

impl Pool {
    fn start(now: Now) -> Pool {
        let (put, take) = crossbeam_channel::unbounded::<(Job, Sender<Piece>)>();
        for _ in 0..THREADS {
            let (jobs, now) = (take.clone(), now.clone());
            let work = move || jobs.into_iter().for_each(|job| do_it(job, &now));
            let thread = std::thread::Builder::new().name("farwrite-read".into());
            if let Err(e) = thread.spawn(work) {
                tracing::debug!("no thread to read in: {e}");
            }
        }
        Pool { put, take, now }
    }

    fn begin(&self, job: Job) -> Promise {
        let (done, promise) = crossbeam_channel::bounded(1);
        self.put.send((job, done)).expect("this holds a receiver");
        promise
    }

    /// Waits for a piece, doing what nobody has begun with meanwhile.
    fn wait(&self, promise: &Promise) -> Piece {
        loop {
            if let Ok(piece) = promise.try_recv() {
                return piece;
            }
            match self.take.try_recv() {
                Ok(job) => do_it(job, &self.now),
                // Nobody who panics sends anything.
                Err(_) => return promise.recv().unwrap_or_default(),
            }
        }
    }
}

fn do_it((job, done): (Job, Sender<Piece>), now: &Now) {
    // A hint that fails is none; and nobody may wait any more.
    let _ = done.send(job.run(now).unwrap_or_default());
}

/// The directory that is being compared.
struct Here {
    opened: Arc<Opened>,
    promises: VecDeque<Promise>,
    /// What nobody reads yet, with inode numbers.
    rest: VecDeque<(u64, Name)>,
    /// The first piece is still to come: it says which of the rest are in it.
    first: bool,
    /// In the order of the inode numbers, in which the files are looked at, too.
    reads: VecDeque<FileRead>,
}

/// See the module.
pub(super) struct ReadAhead {
    pool: Option<Pool>,
    now: Now,
    /// Directories to come in this round, in order: those that are begun with, then the others.
    begun: VecDeque<(FileId, Promise)>,
    coming: VecDeque<(Arc<Place>, BytePath, FileId)>,
    here: Option<Here>,
}

impl ReadAhead {
    pub(super) fn new(now: Now) -> Self {
        ReadAhead {
            pool: None,
            now,
            begun: VecDeque::new(),
            coming: VecDeque::new(),
            here: None,
        }
    }

    /// What reads that begin from now on go by.
    pub(super) fn set_now(&mut self, now: Now) {
        self.rest();
        self.now = now;
    }

    /// These will be compared, in this order; nothing in them is known.
    pub(super) fn plan(&mut self, dirs: Vec<(Arc<Place>, BytePath, FileId)>) {
        if dirs.len() >= WORTH_DIRS {
            self.coming = dirs.into();
            self.begin();
        }
    }

    /// The comparison of a directory begins in which nothing is known: `entries` will be looked at in this order, which is that of
    /// their inode numbers.
    pub(super) fn enter(
        &mut self,
        place: &Arc<Place>,
        (path, dir, id): (&BytePath, &Arc<Dir>, FileId),
        entries: &[DirEntry],
    ) {
        self.here = None;
        let mut promise = None;
        if let Some(at) = self.begun.iter().position(|(begun, _)| *begun == id) {
            // Those before it were passed over.
            promise = self.begun.drain(..=at).next_back().map(|(_, p)| p);
        } else if let Some(at) = self.coming.iter().position(|(_, _, coming)| *coming == id) {
            self.begun.clear();
            self.coming.drain(..=at);
        }
        let rest: VecDeque<_> = files(entries).map(|e| (e.ino, e.name.clone())).collect();
        if promise.is_some() || rest.len() >= WORTH_FILES {
            let opened = Opened {
                place: place.clone(),
                path: path.clone(),
                dir: dir.clone(),
            };
            let mut here = Here {
                opened: Arc::new(opened),
                first: promise.is_some(),
                promises: promise.into_iter().collect(),
                rest,
                reads: VecDeque::new(),
            };
            if !here.first {
                here.begin(self.pool());
            }
            self.here = Some(here);
        }
        self.begin();
    }

    fn pool(&mut self) -> &Pool {
        self.pool
            .get_or_insert_with(|| Pool::start(self.now.clone()))
    }

    /// It ends; what was read in it and not used is let go.
    pub(super) fn leave(&mut self) {
        self.here = None;
    }

    /// The round ends.
    pub(super) fn end(&mut self) {
        self.here = None;
        self.begun.clear();
        self.coming.clear();
        if let Some(pool) = &self.pool {
            while pool.take.try_recv().is_ok() {}
        }
    }

    /// There is nothing to do for a while: the threads end.
    pub(super) fn rest(&mut self) {
        self.end();
        self.pool = None;
    }

    /// A file of the directory that is being compared, if it was read and is now what it was then.
    pub(super) fn file(&mut self, now: &Stat) -> Option<FileRead> {
        if now.size > SMALL_BYTES {
            return None;
        }
        let (here, pool) = (self.here.as_mut()?, self.pool.as_ref()?);
        loop {
            while here
                .reads
                .front()
                .is_some_and(|r| r.stat.id.ino < now.id.ino)
            {
                here.reads.pop_front();
            }
            if let Some(next) = here.reads.front() {
                let found = next.stat == *now;
                return found.then(|| here.reads.pop_front()).flatten();
            }
            let piece = pool.wait(&here.promises.pop_front()?);
            here.reads = piece.reads.into();
            if std::mem::take(&mut here.first) {
                match piece.up_to {
                    Some(ino) => here.rest.retain(|(other, _)| *other > ino),
                    None => here.rest.clear(),
                }
            }
            here.begin(pool);
        }
    }

    /// Gives the readers what there is room for.
    fn begin(&mut self) {
        while self.begun.len() < PIECES
            && let Some((place, path, id)) = self.coming.pop_front()
        {
            let promise = self.pool().begin(Job::First(place, path, id));
            self.begun.push_back((id, promise));
        }
    }
}

impl Here {
    fn begin(&mut self, pool: &Pool) {
        while self.promises.len() < PIECES && !self.rest.is_empty() {
            let some = self.rest.drain(..self.rest.len().min(PIECE_FILES));
            let names = some.map(|(_, name)| name).collect();
            let promise = pool.begin(Job::More(self.opened.clone(), names));
            self.promises.push_back(promise);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farwrite_core::{Clock, SystemClock, Timestamp};
    use std::path::Path;

    struct Rig {
        dir: tempfile::TempDir,
        place: Arc<Place>,
        ahead: ReadAhead,
    }

    impl Rig {
        fn new(patterns: &[&str]) -> Rig {
            let dir = tempfile::tempdir().unwrap();
            let path = BytePath::try_from(dir.path()).unwrap();
            let patterns: Vec<String> = patterns.iter().map(|p| p.to_string()).collect();
            let open = Dir::open(dir.path()).unwrap();
            let place = Place {
                dev: open.stat_self().unwrap().id.dev,
                dir: Arc::new(open),
                excludes: Excludes::new(path.clone(), &patterns, Vec::new()).unwrap(),
                path,
            };
            let clock = Now::new(Arc::new(SystemClock::default()));
            Rig {
                dir,
                place: Arc::new(place),
                ahead: ReadAhead::new(clock),
            }
        }

        fn write(&self, name: &str, content: &[u8]) {
            let path = self.dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }

        fn make_dirs(&self, names: &[&str]) {
            for name in names {
                std::fs::create_dir(self.dir.path().join(name)).unwrap();
            }
        }

        fn plan(&mut self, dirs: &[&str]) -> Vec<FileId> {
            let root = self.dir.path();
            let id = |d: &&str| Dir::open(&root.join(d)).unwrap().stat_self().unwrap().id;
            let ids: Vec<FileId> = dirs.iter().map(id).collect();
            let path = |d: &str| BytePath::try_from(root.join(d).as_path()).unwrap();
            let plan = dirs.iter().zip(&ids);
            let plan = plan.map(|(d, id)| (self.place.clone(), path(d), *id));
            self.ahead.plan(plan.collect());
            ids
        }
    }

    /// What is there now, in the order in which a comparison looks at it.
    fn listed(dir: &Dir) -> Vec<DirEntry> {
        let mut entries = dir.list().unwrap();
        entries.sort_unstable_by_key(|e| e.ino);
        entries
    }

    fn stats(dir: &Path) -> Vec<(Name, Stat)> {
        let dir = Dir::open(dir).unwrap();
        let stat = |n: Name| dir.stat(&n).map(|s| (n, s)).unwrap();
        listed(&dir).into_iter().map(|e| stat(e.name)).collect()
    }

    impl Rig {
        fn enter(&mut self, name: &str, id: FileId) {
            let at = self.dir.path().join(name);
            let dir = Arc::new(Dir::open(&at).unwrap());
            let path = BytePath::try_from(at.as_path()).unwrap();
            let entries = listed(&dir);
            self.ahead.enter(&self.place, (&path, &dir, id), &entries);
        }
    }

    #[test]
    fn all_small_files_of_several_directories_are_read() {
        let mut rig = Rig::new(&[]);
        // Of the second there is more than may be under way at once, of the last more than is read ahead of its turn.
        let many = [3, PIECE_FILES * PIECES * 3 + 5, 1, LISTED + 50];
        let names = ["a", "b", "c", "d"];
        for (d, files) in names.iter().zip(many) {
            for i in 0..files {
                rig.write(&format!("{d}/{i}"), format!("{d} {i}").as_bytes());
            }
        }
        rig.write("a/large", &vec![7; SMALL_BYTES as usize + 1]);
        let ids = rig.plan(&names);
        for (d, id) in names.iter().zip(ids) {
            rig.enter(d, id);
            for (name, stat) in stats(&rig.dir.path().join(d)) {
                let read = rig.ahead.file(&stat);
                if stat.size > SMALL_BYTES {
                    assert!(read.is_none());
                    continue;
                }
                let read = read.expect("it was read");
                let is = std::fs::read(rig.dir.path().join(d).join(name.as_os_str())).unwrap();
                assert_eq!(read.content.bytes, is, "{d}/{name}");
                let here = rig.ahead.here.as_ref().unwrap();
                assert!(here.reads.len() <= PIECE_FILES && here.promises.len() <= PIECES);
            }
            rig.ahead.leave();
        }
    }

    #[test]
    fn one_directory_is_worth_it_if_there_is_much_in_it() {
        let mut rig = Rig::new(&[]);
        for i in 0..WORTH_FILES {
            rig.write(&format!("much/{i}"), b"x");
        }
        rig.write("little/1", b"x");
        for (name, read) in [("little", false), ("much", true)] {
            let ids = rig.plan(&[name]);
            rig.enter(name, ids[0]);
            let all = stats(&rig.dir.path().join(name));
            assert!(all.iter().all(|(_, s)| rig.ahead.file(s).is_some() == read));
            assert_eq!(rig.ahead.pool.is_some(), read);
        }
    }

    #[test]
    fn what_changed_since_it_was_read_is_not_taken() {
        let mut rig = Rig::new(&[]);
        for i in 0..10 {
            rig.write(&format!("d/{i}"), b"before");
        }
        rig.make_dirs(&["x", "y", "z"]);
        let ids = rig.plan(&["d", "x", "y", "z"]);
        rig.enter("d", ids[0]);
        // All are of the first piece: once one is there, all are read.
        let first = stats(&rig.dir.path().join("d")).remove(0).1;
        assert!(rig.ahead.file(&first).is_some());
        rig.write("d/3", b"other content");
        std::fs::remove_file(rig.dir.path().join("d/5")).unwrap();
        rig.write("d/new", b"new");
        let others = stats(&rig.dir.path().join("d")).into_iter();
        // A new file's inode number may be lower than that of the first.
        for (name, stat) in others.filter(|(_, s)| s.id != first.id) {
            let read = rig.ahead.file(&stat);
            match name.as_bytes() {
                // May have the inode number of the one that was removed, but none of its times.
                b"3" | b"new" => assert!(read.is_none()),
                _ => assert_eq!(read.unwrap().content.bytes, b"before"),
            }
        }
    }

    /// Somebody writes to a file whenever a reader looks at the clock, which is between its first look at it and its read.
    struct Meddler(std::path::PathBuf);

    impl Clock for Meddler {
        fn now(&self) -> Timestamp {
            std::fs::write(&self.0, b"after it, and longer").unwrap();
            SystemClock::default().now()
        }
        fn monotonic(&self) -> std::time::Duration {
            SystemClock::default().monotonic()
        }
    }

    #[test]
    fn what_changes_while_it_is_read_is_not_taken() {
        let mut rig = Rig::new(&[]);
        rig.write("d/file", b"before");
        rig.make_dirs(&["x", "y", "z"]);
        let stat = stats(&rig.dir.path().join("d")).remove(0).1;
        rig.ahead = ReadAhead::new(Now::new(Arc::new(Meddler(rig.dir.path().join("d/file")))));
        let ids = rig.plan(&["d", "x", "y", "z"]);
        rig.enter("d", ids[0]);
        // The unit's thread has looked before all that, and nothing has changed since the reader's first look.
        assert!(rig.ahead.file(&stat).is_none());
    }

    #[test]
    fn what_is_not_to_be_read_is_left_alone() {
        let mut rig = Rig::new(&["*.tmp"]);
        rig.write("d/a.tmp", b"x");
        rig.write("d/a.txt", b"y");
        rig.write("d/linked", b"z");
        rig.write("e/b.txt", b"z");
        let top = rig.dir.path();
        std::fs::hard_link(top.join("d/linked"), top.join("other")).unwrap();
        // Whoever waits for a reader of it must go on waiting.
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, top.join("d/fifo"), fifo, mode, 0).unwrap();
        rig.make_dirs(&["x", "y", "z"]);
        let ids = rig.plan(&["d", "x", "y", "z"]);
        rig.enter("d", ids[0]);
        for (name, stat) in stats(&rig.dir.path().join("d")) {
            let read = rig.ahead.file(&stat).is_some();
            assert_eq!(read, name.as_bytes() == b"a.txt", "{name}");
        }
        // Another directory has the name by the time that it is opened.
        let other = ids[0];
        let path = BytePath::try_from(rig.dir.path().join("e").as_path()).unwrap();
        let plan = vec![(rig.place.clone(), path, other); WORTH_DIRS];
        rig.ahead.plan(plan);
        let promise = rig.ahead.begun.pop_front().unwrap().1;
        let piece = rig.ahead.pool.as_ref().unwrap().wait(&promise);
        assert!(piece.reads.is_empty());
        rig.ahead.rest();
        let (_, stat) = stats(&rig.dir.path().join("e")).remove(0);
        assert!(rig.ahead.pool.is_none() && rig.ahead.file(&stat).is_none());
    }
}
