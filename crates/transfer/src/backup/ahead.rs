//! Reads the small files of new directories before the unit's thread comes to them: several at a time, so that the disk is not
//! asked for one after another, and beside that thread, which is busy with what was read before. Of a first backup
//! that is most of the work.
//!
//! What was read ahead decides nothing. It is used only if the file is, when the unit's thread looks at it, what it was before it
//! was read (identity, size, times and all); else that thread reads it itself. Nothing outlives the round for which it was read.

use super::content::{GROUP_BYTES, SMALL_BYTES, SmallContent, read_small};
use crossbeam_channel::{Receiver, Sender};
use farwrite_core::exclude::Excludes;
use farwrite_core::meta::Xattr;
use farwrite_core::{BytePath, Clock, FileId, Kind, Name, Timestamp};
use farwrite_fs::{Dir, Stat, expect_reads, list_file_xattrs};
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

/// A file as it was read.
pub(super) struct FileRead {
    /// What the kernel said of it before.
    pub stat: Stat,
    /// When the read began.
    pub started: Timestamp,
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

/// A directory that a reader has opened.
struct Opened {
    place: Arc<Place>,
    path: BytePath,
    dir: Dir,
}

/// What came of a piece: files that were read and, of a directory's first piece, what is still to be read.
#[derive(Default)]
struct Piece {
    reads: Vec<FileRead>,
    rest: Option<(Arc<Opened>, VecDeque<Name>)>,
}

enum Job {
    /// The first files of a directory.
    First(Arc<Place>, BytePath, FileId),
    /// Further ones.
    More(Arc<Opened>, Vec<Name>),
}

impl Job {
    fn run(self, clock: &dyn Clock) -> io::Result<Piece> {
        match self {
            Job::First(place, path, id) => {
                let above = place.path.names().count();
                let names: Vec<Name> = path.names().skip(above).collect();
                let dir = place.dir.open_beneath(&names)?;
                if dir.stat_self()?.id != id {
                    return Ok(Piece::default());
                }
                let mut entries = dir.list()?;
                entries.retain(|e| matches!(e.kind, None | Some(Kind::File)));
                entries.sort_unstable_by_key(|e| e.ino);
                let mut names: VecDeque<Name> = entries.into_iter().map(|e| e.name).collect();
                let first: Vec<Name> = names.drain(..names.len().min(PIECE_FILES)).collect();
                let opened = Opened { place, path, dir };
                let reads = opened.read(&first, clock);
                let rest = (!names.is_empty()).then(|| (Arc::new(opened), names));
                Ok(Piece { reads, rest })
            }
            Job::More(opened, names) => Ok(Piece {
                reads: opened.read(&names, clock),
                rest: None,
            }),
        }
    }
}

impl Opened {
    fn read(&self, names: &[Name], clock: &dyn Clock) -> Vec<FileRead> {
        let excludes = &self.place.excludes;
        let wanted =
            |n: &&Name| excludes.is_empty() || !excludes.excludes_entry(&self.path.join(n), false);
        let read = |n| self.read_file(n, clock).ok().flatten();
        names.iter().filter(wanted).filter_map(read).collect()
    }

    /// `None`: it is none to be read as a whole. Whatever fails here fails again, and is told of, when it is looked at.
    fn read_file(&self, name: &Name, clock: &dyn Clock) -> io::Result<Option<FileRead>> {
        let (file, stat) = self.dir.read_file(name)?;
        if stat.id.dev != self.place.dev || stat.mount_root {
            return Ok(None);
        }
        if stat.size > SMALL_BYTES {
            expect_reads(&file, GROUP_BYTES.min(stat.size));
            return Ok(None);
        }
        let started = clock.now();
        let content = read_small(&file, stat.size, stat.blocks * 512 < stat.size)?;
        let xattrs = list_file_xattrs(&file)?;
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
    clock: Arc<dyn Clock>,
}

impl Pool {
    fn start(clock: Arc<dyn Clock>) -> Pool {
        let (put, take) = crossbeam_channel::unbounded::<(Job, Sender<Piece>)>();
        for _ in 0..THREADS {
            let (jobs, clock) = (take.clone(), clock.clone());
            let work = move || jobs.into_iter().for_each(|job| do_it(job, &*clock));
            let thread = std::thread::Builder::new().name("farwrite-read".into());
            if let Err(e) = thread.spawn(work) {
                tracing::debug!("no thread to read in: {e}");
            }
        }
        Pool { put, take, clock }
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
                Ok(job) => do_it(job, &*self.clock),
                // Nobody who panics sends anything.
                Err(_) => return promise.recv().unwrap_or_default(),
            }
        }
    }
}

fn do_it((job, done): (Job, Sender<Piece>), clock: &dyn Clock) {
    // A hint that fails is none; and nobody may wait any more.
    let _ = done.send(job.run(clock).unwrap_or_default());
}

/// The directory that is being compared.
struct Here {
    promises: VecDeque<Promise>,
    rest: Option<(Arc<Opened>, VecDeque<Name>)>,
    /// In the order of the inode numbers, in which the files are looked at, too.
    reads: VecDeque<FileRead>,
}

/// See the module.
pub(super) struct ReadAhead {
    pool: Option<Pool>,
    clock: Arc<dyn Clock>,
    /// Directories to come in this round, in order: those that are begun with, then the others.
    begun: VecDeque<(FileId, Promise)>,
    coming: VecDeque<(Arc<Place>, BytePath, FileId)>,
    here: Option<Here>,
}

impl ReadAhead {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        ReadAhead {
            pool: None,
            clock,
            begun: VecDeque::new(),
            coming: VecDeque::new(),
            here: None,
        }
    }

    /// These will be compared, in this order; nothing in them is known.
    pub(super) fn plan(&mut self, dirs: Vec<(Arc<Place>, BytePath, FileId)>) {
        self.coming = dirs.into();
        self.begin();
    }

    /// The comparison of a directory begins.
    pub(super) fn enter(&mut self, dir: FileId) {
        self.here = None;
        let mut promise = None;
        if let Some(at) = self.begun.iter().position(|(id, _)| *id == dir) {
            // Those before it were passed over.
            promise = self.begun.drain(..=at).next_back().map(|(_, p)| p);
        } else if let Some(at) = self.coming.iter().position(|(_, _, id)| *id == dir) {
            self.begun.clear();
            self.coming.drain(..=at);
        }
        self.here = promise.map(|p| Here {
            promises: [p].into(),
            rest: None,
            reads: VecDeque::new(),
        });
        self.begin();
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
            if piece.rest.is_some() {
                here.rest = piece.rest;
            }
            here.begin(pool);
        }
    }

    /// Gives the readers what there is room for.
    fn begin(&mut self) {
        while self.begun.len() < PIECES
            && let Some((place, path, id)) = self.coming.pop_front()
        {
            let start = || Pool::start(self.clock.clone());
            let pool = self.pool.get_or_insert_with(start);
            let promise = pool.begin(Job::First(place, path, id));
            self.begun.push_back((id, promise));
        }
    }
}

impl Here {
    fn begin(&mut self, pool: &Pool) {
        let Some((opened, names)) = &mut self.rest else {
            return;
        };
        while self.promises.len() < PIECES && !names.is_empty() {
            let some = names.drain(..names.len().min(PIECE_FILES)).collect();
            let promise = pool.begin(Job::More(opened.clone(), some));
            self.promises.push_back(promise);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farwrite_core::SystemClock;
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
            let clock = Arc::new(SystemClock::default());
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
    fn stats(dir: &Path) -> Vec<(Name, Stat)> {
        let dir = Dir::open(dir).unwrap();
        let mut entries = dir.list().unwrap();
        entries.sort_unstable_by_key(|e| e.ino);
        let stat = |n: Name| dir.stat(&n).map(|s| (n, s)).unwrap();
        entries.into_iter().map(|e| stat(e.name)).collect()
    }

    #[test]
    fn all_small_files_of_several_directories_are_read() {
        let mut rig = Rig::new(&[]);
        // Of the middle one there is more than may be under way at once.
        for (d, files) in [("a", 3), ("b", PIECE_FILES * PIECES * 3 + 5), ("c", 1)] {
            for i in 0..files {
                rig.write(&format!("{d}/{i}"), format!("{d} {i}").as_bytes());
            }
        }
        rig.write("a/large", &vec![7; SMALL_BYTES as usize + 1]);
        let ids = rig.plan(&["a", "b", "c"]);
        for (d, id) in ["a", "b", "c"].iter().zip(ids) {
            rig.ahead.enter(id);
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
    fn what_changed_since_it_was_read_is_not_taken() {
        let mut rig = Rig::new(&[]);
        for i in 0..10 {
            rig.write(&format!("d/{i}"), b"before");
        }
        let ids = rig.plan(&["d"]);
        rig.ahead.enter(ids[0]);
        // All are of the first piece: once one is there, all are read.
        let first = stats(&rig.dir.path().join("d")).remove(0).1;
        assert!(rig.ahead.file(&first).is_some());
        rig.write("d/3", b"other content");
        std::fs::remove_file(rig.dir.path().join("d/5")).unwrap();
        rig.write("d/new", b"new");
        for (name, stat) in stats(&rig.dir.path().join("d")).into_iter().skip(1) {
            let read = rig.ahead.file(&stat);
            match name.as_bytes() {
                // May have the inode number of the one that was removed, but none of its times.
                b"3" | b"new" => assert!(read.is_none()),
                _ => assert_eq!(read.unwrap().content.bytes, b"before"),
            }
        }
    }

    #[test]
    fn excluded_files_and_replaced_directories_are_left_alone() {
        let mut rig = Rig::new(&["*.tmp"]);
        rig.write("d/a.tmp", b"x");
        rig.write("d/a.txt", b"y");
        rig.write("e/b.txt", b"z");
        let ids = rig.plan(&["d"]);
        rig.ahead.enter(ids[0]);
        for (name, stat) in stats(&rig.dir.path().join("d")) {
            assert_eq!(rig.ahead.file(&stat).is_some(), name.as_bytes() == b"a.txt");
        }
        // Another directory has the name by the time that it is opened.
        let other = ids[0];
        let path = BytePath::try_from(rig.dir.path().join("e").as_path()).unwrap();
        rig.ahead.plan(vec![(rig.place.clone(), path, other)]);
        rig.ahead.enter(other);
        let (_, stat) = stats(&rig.dir.path().join("e")).remove(0);
        assert!(rig.ahead.file(&stat).is_none());
        rig.ahead.rest();
        assert!(rig.ahead.pool.is_none() && rig.ahead.file(&stat).is_none());
    }
}
