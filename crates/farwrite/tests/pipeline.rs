//! Random operations on a real tree, told by a simulated sensor that is late, merges and loses messages, through
//! dirty set and backup unit into an in-memory projection of the log: at every clean point it equals the tree.

use farwrite_core::exclude::Excludes;
use farwrite_core::record::Record;
use farwrite_core::{
    BatchSeq, BytePath, Change, ChangeOp, ChangeSeq, Extent, FileId, Name, Search, SystemClock,
    Target, Timestamp,
};
use farwrite_schedule::DirtySet;
use farwrite_testkit::{Chance, Model, Snapshot};
use farwrite_transfer::backup::{BackupUnit, Index, RecordSink, RootSpec, SinkClosed};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[derive(Default)]
struct Vault {
    model: Model,
    /// The model after each batch.
    history: BTreeMap<BatchSeq, Model>,
}

struct Sink(Arc<Mutex<Vault>>);

impl RecordSink for Sink {
    fn send(&mut self, record: Record) -> Result<(), SinkClosed> {
        let mut v = self.0.lock().expect("not poisoned");
        if let Some(c) = v.model.take(&record) {
            let copy = v.model.clone();
            v.history.insert(c.seq, copy);
            while v.history.len() > 6 {
                v.history.pop_first();
            }
        }
        Ok(())
    }
}

struct Sim {
    _tmp: tempfile::TempDir,
    root: PathBuf,
    index_path: PathBuf,
    root_id: FileId,
    queue: Vec<Change>,
    seq: u64,
    dirty: DirtySet,
    unit: Option<BackupUnit>,
    vault: Arc<Mutex<Vault>>,
    chance: Chance,
    /// The sensor tells which bytes changed.
    exact: bool,
    /// See [`BackupUnit::set_ranges_held`].
    ranges_held: Option<usize>,
    /// See [`BackupUnit::set_backlog`].
    backlog: Option<usize>,
    excludes: Vec<String>,
    /// The unit is told how far the messages are.
    told: Option<Arc<AtomicU64>>,
    limit: usize,
    /// Messages that may not have reached the vault.
    journal: Vec<(ChangeSeq, Change)>,
    acked: BatchSeq,
    resumed: usize,
    /// Files rest until then, if it is still to come.
    now: Instant,
    /// Files that took long to be read whole.
    searches: Vec<Search>,
    trace: Vec<String>,
}

fn id_of(p: &Path) -> Option<FileId> {
    fs::symlink_metadata(p).ok().map(|m| FileId {
        dev: m.dev(),
        ino: m.ino(),
    })
}

fn byte_path(p: &Path) -> BytePath {
    BytePath::try_from(p).expect("absolute")
}

fn now() -> Timestamp {
    Timestamp::from(std::time::SystemTime::now())
}

impl Sim {
    fn new(mut chance: Chance) -> Sim {
        let tmp = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let root = tmp.path().canonicalize().expect("exists").join("src");
        fs::create_dir(&root).expect("created");
        let root_id = id_of(&root).expect("exists");
        let limit = if chance.one_in(2) { 40 } else { 100_000 };
        let exact = chance.one_in(2);
        let ranges_held = chance.one_in(2).then(|| 1 + chance.below(4) as usize);
        let backlog = chance.one_in(2).then(|| 1 + chance.below(12) as usize);
        let told = chance.one_in(2).then(Arc::default);
        let mut sim = Sim {
            index_path: tmp.path().join("index.db"),
            _tmp: tmp,
            dirty: DirtySet::new(limit, vec![(root_id, byte_path(&root))]),
            root,
            root_id,
            queue: Vec::new(),
            seq: 0,
            unit: None,
            vault: Arc::default(),
            chance,
            exact,
            ranges_held,
            backlog,
            excludes: vec!["*.skip".into()],
            told,
            limit,
            journal: Vec::new(),
            acked: BatchSeq(0),
            resumed: 0,
            now: Instant::now(),
            searches: Vec::new(),
            trace: Vec::new(),
        };
        sim.start();
        sim
    }

    fn start(&mut self) {
        let index = Index::open(&self.index_path, 1 << 20).expect("opens");
        self.start_with(index);
    }

    fn start_with(&mut self, index: Index) {
        let unit = self.unit_with(index);
        self.unit = Some(unit);
        self.compare_all();
    }

    fn compare_all(&mut self) {
        let whole = self.change(&self.root.clone(), ChangeOp::Subtree);
        self.insert(&[Change {
            name: None,
            dir: self.root_id,
            ..whole
        }]);
    }

    fn unit_with(&mut self, index: Index) -> BackupUnit {
        let path = byte_path(&self.root);
        let excludes = Excludes::new(path.clone(), &self.excludes, vec![]).expect("valid");
        let spec = RootSpec {
            slot: 1,
            path,
            excludes,
        };
        let sink = Box::new(Sink(self.vault.clone()));
        let mut unit = BackupUnit::new(index, vec![spec], sink, Arc::new(SystemClock::default()))
            .expect("starts");
        self.ranges_held.inspect(|&max| unit.set_ranges_held(max));
        self.backlog.inspect(|&many| unit.set_backlog(many));
        if let Some(told) = self.told.clone() {
            unit.set_told(Arc::new(move || ChangeSeq(told.load(Ordering::Relaxed))));
        }
        unit
    }

    fn insert(&mut self, changes: &[Change]) {
        for c in changes {
            self.trace.push(format!(
                "  told {} {:?} {:?}",
                c.describe(),
                c.dir.ino,
                c.file.map(|f| f.ino)
            ));
            self.seq += 1;
            self.dirty.insert(ChangeSeq(self.seq), c);
            self.journal.push((ChangeSeq(self.seq), c.clone()));
        }
        let seq = self.seq;
        self.told
            .iter()
            .for_each(|t| t.store(seq, Ordering::Relaxed));
    }

    fn change(&mut self, path: &Path, op: ChangeOp) -> Change {
        let dir = id_of(path.parent().expect("below /")).expect("exists");
        let name = Name::new(path.file_name().expect("has one").as_encoded_bytes()).expect("valid");
        let about_content = matches!(
            op,
            ChangeOp::Write(_) | ChangeOp::Truncate(_) | ChangeOp::Attrib
        );
        // Of a file with several names, one of which may be gone or excluded, only its identity leads to the others.
        let linked = fs::symlink_metadata(path).is_ok_and(|m| m.nlink() > 1);
        let excluded = path.to_string_lossy().contains(".skip");
        // A sensor that knows the bytes knows the file.
        let told = self.exact || excluded || linked || self.chance.one_in(2);
        let file = if about_content && told {
            id_of(path)
        } else {
            None
        };
        Change {
            time: now(),
            path: byte_path(path),
            dir,
            name: Some(name),
            file,
            op,
        }
    }

    fn tell(&mut self, path: &Path, op: ChangeOp) {
        let c = self.change(path, op);
        self.trace.push(format!(
            "DO {} ino {:?}",
            c.describe(),
            id_of(path).map(|i| i.ino)
        ));
        self.queue.push(c);
    }

    /// Some messages reach the dirty set; `all`: every one, and the queue is seen empty.
    fn deliver(&mut self, all: bool) {
        let n = if all {
            self.queue.len()
        } else {
            self.chance.below(self.queue.len() as u64 + 1) as usize
        };
        let now: Vec<Change> = self.queue.drain(..n).collect();
        self.insert(&now);
        if self.queue.is_empty() {
            self.dirty.note_drained();
        }
    }

    /// A round; some of the files in it rest afterwards.
    fn process(&mut self, max: usize) {
        self.now += Duration::from_secs(self.chance.below(3));
        let targets = self.round(max, Some(self.now));
        for target in targets {
            if self.chance.one_in(4) {
                let rest = Duration::from_secs(1 + self.chance.below(20));
                self.dirty.rest(target, self.now, self.now + rest);
            }
        }
    }

    /// Returns what was looked at.
    fn round(&mut self, max: usize, now: Option<Instant>) -> Vec<Target> {
        if self.chance.one_in(30) {
            // Beyond the tick within which a file's times are not relied on: else that would hide what is forgotten.
            std::thread::sleep(Duration::from_millis(60));
        }
        let taken = self.dirty.take(max, now);
        let targets = taken.commands.iter().map(|c| c.target.clone()).collect();
        for c in &taken.commands {
            self.trace.push(format!(
                "  look {} {:?} {:?} x{}",
                c.path, c.target, c.what, c.attempts
            ));
        }
        let unit = self.unit.as_mut().expect("running");
        let report = unit.execute(taken.commands, &mut || false).expect("works");
        self.trace.push(format!("  batch {:?}", report.batch));
        for (c, after_drain) in report.put_back {
            self.dirty.put_back(c, after_drain);
        }
        self.searches.extend(report.searches);
        if self.chance.one_in(3) {
            self.ack();
        }
        targets
    }

    /// A quiet moment, if it is one.
    fn idle(&mut self) {
        let quiet = self.queue.is_empty() && self.dirty.is_empty();
        let unit = self.unit.as_mut().expect("running");
        let due = unit.idle(&mut || quiet).expect("works");
        due.into_iter().for_each(|c| self.dirty.put_back(c, false));
    }

    /// The messages of what was under way are gone: everything is compared instead.
    fn forget(&mut self) {
        let oldest = self.journal.first().map_or(ChangeSeq(self.seq), |j| j.0);
        let commands = self.dirty.take(7, None).commands;
        self.trace
            .push(format!("FORGET {} commands", commands.len()));
        self.dirty.compare_roots(oldest, now());
    }

    /// The vault has everything up to now.
    fn ack(&mut self) {
        let unit = self.unit.as_mut().expect("running");
        self.acked = unit.index().state().seq;
        unit.acked(self.acked).expect("works");
        match self.dirty.oldest() {
            Some((oldest, _)) => self.journal.retain(|(seq, _)| *seq >= oldest),
            None => self.journal.clear(),
        }
    }

    /// Another process goes on: the kernel and the journal have kept all messages, and nothing is compared but what
    /// was left undone.
    fn resume(&mut self) {
        drop(self.unit.take());
        let mut index = Index::open(&self.index_path, 1 << 20).expect("opens");
        let kept = {
            let v = self.vault.lock().expect("not poisoned");
            let seqs = v.history.keys().filter(|s| **s >= self.acked);
            let seqs: Vec<BatchSeq> = seqs.copied().collect();
            self.chance.pick(&seqs).copied()
        };
        if let Some(kept) = kept {
            index.roll_back_to(kept).expect("rolls back");
            let mut v = self.vault.lock().expect("not poisoned");
            v.model = v.history[&kept].clone();
            v.history.retain(|s, _| *s <= kept);
        }
        self.trace.push(format!("RESUME: the vault has {kept:?}"));
        self.dirty = DirtySet::new(self.limit, vec![(self.root_id, byte_path(&self.root))]);
        let messages = std::mem::take(&mut self.journal);
        let messages: Vec<Change> = messages.into_iter().map(|(_, c)| c).collect();
        self.insert(&messages);
        let mut unit = self.unit_with(index);
        let owed = unit.resume().expect("works");
        self.unit = Some(unit);
        match owed {
            Some(owed) => {
                self.resumed += 1;
                self.insert(&owed);
            }
            None => self.compare_all(),
        }
    }

    fn settle(&mut self) {
        for round in 0.. {
            self.deliver(true);
            if self.dirty.is_empty() {
                break;
            }
            self.round(1 + round, None);
            assert!(
                round < 20_000,
                "does not come to rest: {:?}",
                self.dirty.take(3, None)
            );
        }
    }

    fn check(&mut self) {
        self.settle();
        self.idle();
        self.ack();
        self.settle();
        let mut real = Snapshot::of_dir(&self.root).expect("readable");
        real.retain(|p| !p.split(|b| *b == b'/').any(|n| n.ends_with(b".skip")));
        let v = self.vault.lock().expect("not poisoned");
        let ours = v
            .model
            .snapshot(&byte_path(&self.root))
            .expect("the root is in the log");
        let diff = real.differences(&ours, 5);
        if !diff.is_empty() {
            let from = self.trace.len().saturating_sub(400);
            panic!(
                "{}\ntree / log:\n{}",
                self.trace[from..].join("\n"),
                diff.join("\n")
            );
        }
        drop(v);
        // Once more over everything must find nothing to send and nothing to read.
        let unit = self.unit.as_mut().expect("running");
        let before = unit.index().state().seq;
        drop(self.unit.take());
        self.start();
        self.settle();
        assert_eq!(
            self.unit.as_ref().expect("running").index().state().seq,
            before,
            "a second look sent something"
        );
        self.idle();
        self.ack();
        if self.chance.one_in(2) {
            self.resume();
        }
    }

    /// The vault turns out not to have the last batches.
    fn crash(&mut self) {
        drop(self.unit.take());
        let kept = {
            let v = self.vault.lock().expect("not poisoned");
            let seqs = v.history.keys().filter(|s| **s >= self.acked);
            let seqs: Vec<BatchSeq> = seqs.copied().collect();
            self.chance.pick(&seqs).copied()
        };
        let Some(kept) = kept else {
            return self.start();
        };
        self.trace.push(format!("CRASH: the vault has {kept}"));
        let mut index = Index::open(&self.index_path, 1 << 20).expect("opens");
        index.roll_back_to(kept).expect("rolls back");
        {
            let mut v = self.vault.lock().expect("not poisoned");
            v.model = v.history[&kept].clone();
            v.history.retain(|s, _| *s <= kept);
            assert_eq!(
                index.state().chain,
                v.model.last.as_ref().expect("a batch").chain
            );
        }
        self.start_with(index);
    }

    fn paths(&self, want_dirs: bool) -> Vec<PathBuf> {
        let mut out = vec![];
        let mut stack = vec![self.root.clone()];
        while let Some(d) = stack.pop() {
            for e in fs::read_dir(&d).expect("readable").flatten() {
                let is_dir = e.file_type().expect("known").is_dir();
                if is_dir {
                    stack.push(e.path());
                }
                if is_dir == want_dirs {
                    out.push(e.path());
                }
            }
        }
        out.sort();
        out
    }

    fn fresh(&mut self) -> PathBuf {
        let mut dirs = self.paths(true);
        dirs.push(self.root.clone());
        let dir = self.chance.pick(&dirs).expect("the root").clone();
        // Few names, so that they are used again.
        let ext = if self.chance.one_in(20) { ".skip" } else { "" };
        dir.join(format!("n{}{ext}", self.chance.below(8)))
    }

    fn write_new(&mut self, p: &Path) {
        let sizes = [0, 1, 100, 4096, 65_536, 70_000, 2 << 20, 3_000_000];
        let most = if self.chance.one_in(10) { 8 } else { 6 };
        // Now and then one that does not fit into a batch.
        let len = if self.chance.one_in(60) {
            40 << 20
        } else {
            sizes[self.chance.below(most) as usize]
        };
        let bytes = self.chance.bytes(len);
        if fs::symlink_metadata(p).is_ok_and(|m| !m.is_file()) {
            // Not through a link that leads nowhere.
            self.remove(p);
        }
        let existed = p.exists();
        fs::write(p, bytes).expect("written");
        if !existed {
            self.tell(p, ChangeOp::Create);
        } else if self.exact {
            self.tell(p, ChangeOp::Truncate(0));
        }
        self.wrote(p, 0, len as u64);
    }

    fn wrote(&mut self, p: &Path, offset: u64, len: u64) {
        let extent = self.exact.then(|| Extent::new(offset, len));
        self.tell(p, ChangeOp::Write(extent));
    }

    fn remove(&mut self, p: &Path) {
        let Ok(m) = fs::symlink_metadata(p) else {
            return;
        };
        if m.is_dir() {
            for e in fs::read_dir(p).expect("readable").flatten() {
                self.remove(&e.path());
            }
            fs::remove_dir(p).expect("empty");
        } else {
            fs::remove_file(p).expect("removed");
        }
        self.tell(p, ChangeOp::Delete);
    }

    fn rename(&mut self, a: &Path, b: &Path, exchange: bool) {
        let excluded = |p: &Path| p.to_string_lossy().contains(".skip");
        if b.starts_with(a) || a.starts_with(b) || excluded(a) != excluded(b) {
            return;
        }
        let mut c = self.change(a, ChangeOp::Delete);
        let to = self.change(b, ChangeOp::Create);
        let done = match exchange {
            true => rustix::fs::renameat_with(
                rustix::fs::CWD,
                a,
                rustix::fs::CWD,
                b,
                rustix::fs::RenameFlags::EXCHANGE,
            )
            .is_ok(),
            false => fs::rename(a, b).is_ok(),
        };
        if done {
            c.op = ChangeOp::Rename {
                to_path: to.path,
                to_dir: to.dir,
                to_name: to.name.expect("has one"),
            };
            self.trace
                .push(format!("DO {} exchange {exchange}", c.describe()));
            self.queue.push(c);
        }
    }

    fn change_file(&mut self, p: &Path) {
        let Ok(f) = fs::OpenOptions::new().write(true).read(true).open(p) else {
            return;
        };
        let Ok(m) = fs::symlink_metadata(p) else {
            return;
        };
        if !m.is_file() {
            return;
        }
        let size = m.len();
        match self.chance.below(6) {
            0 => {
                let n = self.chance.below(3000) as usize;
                let b = self.chance.bytes(n);
                f.write_all_at(&b, size).expect("appended");
                self.wrote(p, size, n as u64);
            }
            1 => {
                let len = self.chance.below(size * 2 + 10);
                f.set_len(len).expect("set");
                match self.exact {
                    true => self.tell(p, ChangeOp::Truncate(len)),
                    false => self.tell(p, ChangeOp::Write(None)),
                }
            }
            2 if size > 9000 => {
                let at = self.chance.below(size / 4096) * 4096;
                farwrite_fs::punch_hole(&f, at, 4096).expect("punched");
                self.wrote(p, at, 4096);
            }
            3 if size > 9000 => {
                // Here and there over the whole file.
                for _ in 0..self.chance.below(60) {
                    let at = self.chance.below(size);
                    let n = 1 + self.chance.below((size - at).min(20_000)) as usize;
                    let b = self.chance.bytes(n);
                    f.write_all_at(&b, at).expect("written");
                    self.wrote(p, at, n as u64);
                }
            }
            _ => {
                let n = self.chance.below(500) as usize;
                let b = self.chance.bytes(n);
                let at = self.chance.below(size + 1);
                f.write_all_at(&b, at).expect("written");
                self.wrote(p, at, n as u64);
            }
        }
        if self.chance.one_in(4) {
            // As tar does: the old time again.
            let times = fs::FileTimes::new().set_modified(m.modified().expect("has one"));
            f.set_times(times).expect("set");
            self.tell(p, ChangeOp::Attrib);
        }
    }

    fn step(&mut self) {
        let files = self.paths(false);
        let dirs = self.paths(true);
        let all: Vec<PathBuf> = files.iter().chain(&dirs).cloned().collect();
        match self.chance.below(16) {
            0..=2 => {
                let p = self.fresh();
                if fs::symlink_metadata(&p).is_ok_and(|m| !m.is_file()) {
                    self.remove(&p);
                }
                self.write_new(&p);
            }
            3 => {
                let p = self.fresh();
                self.remove(&p);
                fs::create_dir(&p).expect("made");
                self.tell(&p, ChangeOp::Create);
            }
            4..=6 => {
                if let Some(p) = self.chance.pick(&files).cloned() {
                    self.change_file(&p);
                }
            }
            7 | 8 => {
                let to = self.fresh();
                if let Some(p) = self.chance.pick(&all).cloned() {
                    self.rename(&p, &to, false);
                }
            }
            9 => {
                if let (Some(a), Some(b)) = (
                    self.chance.pick(&all).cloned(),
                    self.chance.pick(&all).cloned(),
                ) {
                    self.rename(&a, &b, true);
                }
            }
            10 => {
                let to = self.fresh();
                if let Some(p) = self.chance.pick(&files).cloned()
                    && fs::hard_link(&p, &to).is_ok()
                {
                    self.tell(&to, ChangeOp::Create);
                }
            }
            11 => {
                let to = self.fresh();
                if symlink("some/where", &to).is_ok() {
                    self.tell(&to, ChangeOp::Create);
                }
            }
            12 => {
                if let Some(p) = self.chance.pick(&all).cloned() {
                    self.remove(&p);
                }
            }
            13 => {
                if let Some(p) = self.chance.pick(&all).cloned()
                    && !p.is_symlink()
                {
                    let mode = 0o700 + self.chance.below(0o100) as u32;
                    fs::set_permissions(&p, fs::Permissions::from_mode(mode)).expect("set");
                    self.tell(&p, ChangeOp::Attrib);
                }
            }
            14 => {
                // Save as temporary, rename over.
                let p = self.fresh();
                let tmp = p.with_extension("tmp");
                if !p.is_dir() && !tmp.is_dir() {
                    self.write_new(&tmp);
                    self.rename(&tmp, &p, false);
                }
            }
            _ => {
                // The kernel's queue overflows.
                if self.chance.one_in(8) {
                    self.queue.clear();
                    let root = self.root.clone();
                    let c = self.change(&root, ChangeOp::Overflow);
                    self.queue.push(Change {
                        name: None,
                        dir: self.root_id,
                        ..c
                    });
                }
            }
        }
    }
}

#[test]
fn the_log_equals_the_tree_at_every_clean_point() {
    let mut resumed = 0;
    for _ in 0..8 {
        let mut sim = Sim::new(Chance::from_env());
        for _ in 0..6 {
            for _ in 0..60 {
                sim.step();
                if sim.chance.one_in(4) {
                    sim.deliver(false);
                }
                if sim.chance.one_in(4) {
                    let n = 1 + sim.chance.below(20) as usize;
                    sim.process(n);
                }
                if sim.chance.one_in(120) {
                    sim.crash();
                }
                if sim.chance.one_in(40) {
                    sim.resume();
                }
                if sim.chance.one_in(10) {
                    sim.idle();
                }
                if sim.chance.one_in(100) {
                    sim.forget();
                }
            }
            sim.check();
        }
        resumed += sim.resumed;
    }
    assert!(resumed > 0, "no start without a compare was tried");
}

fn file_of(sim: &mut Sim, len: usize) -> (PathBuf, fs::File) {
    let p = sim.root.join("file");
    let bytes = sim.chance.bytes(len);
    fs::write(&p, bytes).expect("written");
    sim.tell(&p, ChangeOp::Create);
    sim.wrote(&p, 0, len as u64);
    sim.settle();
    let f = fs::OpenOptions::new().write(true).open(&p).expect("opens");
    (p, f)
}

/// Bytes read and sent by `act`.
fn cost(sim: &mut Sim, act: impl FnOnce(&mut Sim)) -> (u64, u64) {
    let stats = |s: &Sim| s.unit.as_ref().expect("running").stats();
    let before = stats(sim);
    act(sim);
    sim.settle();
    let after = stats(sim);
    (
        after.bytes_read - before.bytes_read,
        after.bytes_new - before.bytes_new,
    )
}

#[test]
fn what_is_read_and_sent_follows_the_bytes_that_changed() {
    for exact in [true, false] {
        let mut sim = Sim::new(Chance::from_env());
        (sim.exact, sim.ranges_held) = (exact, None);
        let (p, f) = file_of(&mut sim, 16 << 20);
        sim.searches.clear();
        let (read, sent) = cost(&mut sim, |sim| {
            f.write_all_at(&[1; 4096], 8 << 20).expect("written");
            sim.wrote(&p, 8 << 20, 4096);
        });
        assert_eq!(sent, 8192, "the block that it is in");
        assert_eq!(read, if exact { 8192 } else { 16 << 20 });
        let in_vain: Vec<f64> = sim.searches.drain(..).map(|s| s.in_vain).collect();
        match exact {
            true => assert!(in_vain.is_empty(), "{in_vain:?}"),
            false => assert!(in_vain.iter().any(|v| *v > 0.999), "{in_vain:?}"),
        }
        // The end moves, and nothing else.
        let (read, sent) = cost(&mut sim, |sim| {
            f.set_len((16 << 20) - 100).expect("cut");
            sim.tell(&p, ChangeOp::Truncate((16 << 20) - 100));
        });
        assert_eq!(
            (read, sent),
            (8092, 8092),
            "the last block, by its new length"
        );
        sim.check();
    }
}

/// A simulation of rounds of one command, whose unit is told how far the messages are.
fn told_sim() -> Sim {
    let mut sim = Sim::new(Chance::from_env());
    (sim.exact, sim.ranges_held, sim.backlog) = (false, None, None);
    sim.told = Some(Arc::default());
    sim.start();
    sim.settle();
    sim
}

#[test]
fn what_was_told_before_a_file_was_read_does_not_have_it_read_again() {
    let mut sim = told_sim();
    let dir = sim.root.join("d");
    fs::create_dir(&dir).expect("made");
    sim.tell(&dir, ChangeOp::Create);
    let file = |n: usize| dir.join(format!("f{n}"));
    let write = |sim: &mut Sim, n: usize, bytes: &[u8]| {
        fs::write(file(n), bytes).expect("written");
        let mut told = sim.change(&file(n), ChangeOp::Write(None));
        told.file = id_of(&file(n));
        sim.queue.push(told);
    };
    for n in 0..40 {
        write(&mut sim, n, &[n as u8; 1000]);
        sim.tell(&file(n), ChangeOp::Create);
    }
    // Later than the tick within which times say nothing.
    std::thread::sleep(Duration::from_millis(60));
    // The directory is compared before the messages about what is in it are looked at.
    sim.deliver(true);
    let (read, sent) = cost(&mut sim, |sim| {
        for _ in 0..200 {
            let now = sim.dirty.take(500, None).commands;
            let (compares, others): (Vec<_>, Vec<_>) = now.into_iter().partition(|c| {
                matches!(c.target, Target::Directory(_)) || c.path == byte_path(&dir)
            });
            let round = if compares.is_empty() {
                others
            } else {
                others
                    .into_iter()
                    .for_each(|c| sim.dirty.put_back(c, false));
                compares
            };
            let unit = sim.unit.as_mut().expect("running");
            for c in round {
                let report = unit.execute(vec![c], &mut || false).expect("works");
                report
                    .put_back
                    .into_iter()
                    .for_each(|(c, after)| sim.dirty.put_back(c, after));
            }
        }
    });
    assert_eq!((read, sent), (40_000, 40_000));
    // What comes afterwards does.
    let (read, sent) = cost(&mut sim, |sim| {
        for n in 0..10 {
            write(sim, n, &[n as u8 + 1; 1000]);
        }
        sim.deliver(true);
    });
    assert_eq!((read, sent), (10_000, 10_000));
    // Also if a file has gone to another name meanwhile, and one message is older than the read and one is not.
    let (read, _) = cost(&mut sim, |sim| {
        write(sim, 1, &[77; 1000]);
        sim.settle();
        write(sim, 1, &[78; 1000]);
        fs::rename(file(1), dir.join("other")).expect("renamed");
        let op = ChangeOp::Rename {
            to_path: byte_path(&dir.join("other")),
            to_dir: id_of(&dir).expect("there"),
            to_name: Name::new("other").expect("valid"),
        };
        let mut told = sim.change(&file(2), op);
        told.path = byte_path(&file(1));
        told.name = Some(Name::new("f1").expect("valid"));
        sim.queue.push(told);
        sim.deliver(true);
    });
    assert_eq!(read, 2000);
    sim.check();
}

/// What happens between the moment at which the unit asks for the last message and its read: a file is written to, and that is
/// told of.
#[test]
fn a_change_between_the_last_message_and_the_read_is_not_lost() {
    // Few files are read by the unit itself, many are read ahead.
    for files in [1, 80] {
        let mut sim = told_sim();
        let dir = sim.root.join("d");
        fs::create_dir(&dir).expect("made");
        for n in 0..files {
            fs::write(dir.join(format!("f{n}")), [1; 1000]).expect("written");
        }
        sim.tell(&dir, ChangeOp::Create);
        std::thread::sleep(Duration::from_millis(60));
        sim.deliver(true);
        let told = sim.told.clone().expect("told");
        let (counter, at) = (told.clone(), dir.clone());
        let written: Arc<Mutex<Vec<(u64, PathBuf)>>> = Arc::default();
        let log = written.clone();
        sim.unit
            .as_mut()
            .expect("running")
            .set_told(Arc::new(move || {
                let mut log = log.lock().expect("not poisoned");
                let n = log.len();
                if n < files {
                    let p = at.join(format!("f{n}"));
                    fs::write(&p, [2; 1000]).expect("written");
                    log.push((counter.fetch_add(1, Ordering::Relaxed) + 1, p));
                }
                ChangeSeq(counter.load(Ordering::Relaxed))
            }));
        sim.settle();
        sim.seq = told.load(Ordering::Relaxed);
        let written = std::mem::take(&mut *written.lock().expect("not poisoned"));
        assert_eq!(written.len(), files);
        for (seq, p) in written {
            let c = sim.change(&p, ChangeOp::Write(None));
            sim.dirty.insert(ChangeSeq(seq), &c);
        }
        // Without a compare, which would find it by the times.
        sim.settle();
        let v = sim.vault.lock().expect("not poisoned");
        let ours = v.model.snapshot(&byte_path(&sim.root)).expect("there");
        let real = Snapshot::of_dir(&sim.root).expect("readable");
        assert_eq!(real.differences(&ours, 5), Vec::<String>::new());
    }
}

#[test]
fn writeback_of_a_mapped_file_that_is_not_known_starts_before_its_first_read() {
    // Few files are read by the unit itself, many are read ahead.
    for files in [1, 80] {
        let mut sim = told_sim();
        let calls: Arc<Mutex<Vec<u64>>> = Arc::default();
        let seen = calls.clone();
        let unit = sim.unit.as_mut().expect("running");
        unit.set_writeback(Box::new(move |f, _| {
            seen.lock().expect("not poisoned").push(f.metadata()?.ino());
            Ok(())
        }));
        let dir = sim.root.join("d");
        fs::create_dir(&dir).expect("made");
        for n in 0..files {
            fs::write(dir.join(format!("f{n}")), [1; 1000]).expect("written");
        }
        let mapped = dir.join("f0");
        let id = id_of(&mapped);
        let told = sim.change(&mapped, ChangeOp::Mapped(None));
        sim.insert(&[Change { file: id, ..told }]);
        sim.round(9, None);
        assert_eq!(*calls.lock().expect("not poisoned"), [0; 0]);
        sim.tell(&dir, ChangeOp::Create);
        sim.settle();
        let ino = id.expect("there").ino;
        assert_eq!(*calls.lock().expect("not poisoned"), [ino]);
        // Once that has been done it is a file as any other.
        let told = sim.change(&mapped, ChangeOp::Mapped(None));
        sim.insert(&[Change { file: id, ..told }]);
        sim.settle();
        assert_eq!(*calls.lock().expect("not poisoned"), [ino, ino]);
    }
}

#[test]
fn a_directory_that_was_moved_out_is_none_of_ours_any_more() {
    let mut sim = told_sim();
    let dir = sim.root.join("d");
    fs::create_dir(&dir).expect("made");
    fs::write(dir.join("a"), b"a").expect("written");
    sim.tell(&dir, ChangeOp::Create);
    sim.tell(&dir.join("a"), ChangeOp::Create);
    sim.settle();
    let (mut gone, id) = (sim.change(&dir, ChangeOp::Delete), id_of(&dir));
    let mut late = sim.change(&dir.join("a"), ChangeOp::Create);
    late.name = Some(Name::new("late").expect("valid"));
    let outside = sim.root.parent().expect("there").join("outside");
    fs::rename(&dir, &outside).expect("moved");
    fs::write(outside.join("late"), b"late").expect("written");
    (gone.file, gone.time) = (id, now());
    sim.insert(&[gone]);
    sim.dirty.note_drained();
    for _ in 0..4 {
        sim.round(9, None);
        sim.dirty.note_drained();
    }
    // The model refuses a name in a directory that does not exist.
    sim.insert(&[late]);
    sim.check();
}

#[test]
fn what_is_left_behind_by_a_backlog_is_not_waited_for_by_what_comes() {
    let mut sim = told_sim();
    sim.unit.as_mut().expect("running").set_backlog(1);
    let mut oldest = Vec::new();
    for lap in 0..30 {
        for n in 0..8 {
            let p = sim.root.join(format!("f{lap}-{n}"));
            fs::write(&p, b"x").expect("written");
            sim.tell(&p, ChangeOp::Create);
        }
        sim.deliver(true);
        sim.round(8, None);
        oldest.push(sim.dirty.oldest().map(|(seq, _)| seq.0));
    }
    let waited = sim.seq - oldest.last().expect("some").expect("waits");
    assert!(waited < 60, "{oldest:?} of {}", sim.seq);
    sim.check();
}

#[test]
fn a_directory_that_round_after_round_touches_is_sent_once() {
    for (backlog, times) in [(9, 5), (8, 1)] {
        let mut sim = told_sim();
        let dir = sim.root.join("d");
        fs::create_dir(&dir).expect("made");
        sim.tell(&dir, ChangeOp::Create);
        sim.settle();
        let unit = sim.unit.as_mut().expect("running");
        unit.set_backlog(backlog);
        let before = unit.stats().ops;
        for n in 0..40 {
            let p = dir.join(format!("f{n}"));
            fs::write(&p, b"x").expect("written");
            sim.tell(&p, ChangeOp::Create);
        }
        sim.deliver(true);
        for round in 0..5 {
            // Each round sees the directory with other times.
            std::thread::sleep(Duration::from_millis(20));
            fs::write(dir.join(format!("{round}.skip")), b"x").expect("written");
            sim.round(8, None);
        }
        sim.settle();
        let ops = sim.unit.as_ref().expect("running").stats().ops - before;
        // A node, a name and the content of each file.
        assert_eq!(ops, 40 * 3 + times);
        sim.check();
    }
}

#[test]
fn of_a_file_that_is_appended_to_only_the_new_bytes_are_sent() {
    for exact in [true, false] {
        for len in [100, 60_000, 3 << 20] {
            let mut sim = Sim::new(Chance::from_env());
            (sim.exact, sim.ranges_held) = (exact, None);
            let (p, f) = file_of(&mut sim, len);
            // Not over the size from which on a file is kept in blocks, which costs it once.
            let (read, sent) = cost(&mut sim, |sim| {
                for i in 0..50 {
                    let (at, line) = (len as u64 + i * 100, sim.chance.bytes(100));
                    f.write_all_at(&line, at).expect("appended");
                    sim.wrote(&p, at, 100);
                    sim.settle();
                }
            });
            assert_eq!(sent, 50 * 100, "from {len}");
            if exact && len > 1 << 20 {
                assert!(
                    read <= 50 * 2 * 8192,
                    "{read}: the last block or two each time"
                );
            }
            sim.check();
        }
    }
}

#[test]
fn writeback_of_mapped_bytes_starts_before_they_are_read() {
    let mut sim = Sim::new(Chance::from_env());
    (sim.exact, sim.ranges_held) = (true, None);
    let (p, f) = file_of(&mut sim, 4 << 20);
    let calls: Arc<Mutex<Vec<Extent>>> = Arc::default();
    let (seen, path) = (calls.clone(), p.clone());
    let unit = sim.unit.as_mut().expect("running");
    unit.set_writeback(Box::new(move |_, extent| {
        // What is stored up to here is in what is read afterwards.
        let f = fs::OpenOptions::new().write(true).open(&path)?;
        f.write_all_at(b"stored", extent.offset)?;
        seen.lock().expect("not poisoned").push(extent);
        Ok(())
    }));
    f.write_all_at(&[7; 100], 1 << 20).expect("written");
    sim.tell(&p, ChangeOp::Mapped(Some(Extent::new(1 << 20, 4096))));
    sim.settle();
    assert_eq!(
        *calls.lock().expect("not poisoned"),
        [Extent::new(1 << 20, 4096)]
    );
    let v = sim.vault.lock().expect("not poisoned");
    let ours = v.model.snapshot(&byte_path(&sim.root)).expect("there");
    let diff = Snapshot::of_dir(&sim.root)
        .expect("readable")
        .differences(&ours, 5);
    assert_eq!(diff, Vec::<String>::new());
}

#[test]
fn what_has_another_kind_by_the_time_it_is_opened_is_looked_at_again() {
    let mut sim = told_sim();
    let (file, link) = (sim.root.join("file"), sim.root.join("link"));
    fs::write(&file, "bytes").expect("written");
    symlink("nowhere", &link).expect("made");
    sim.compare_all();
    sim.check();
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while done.load(Ordering::Acquire) == 0 {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let exchanged = rustix::fs::renameat_with(
                    rustix::fs::CWD,
                    &file,
                    rustix::fs::CWD,
                    &link,
                    flags,
                );
                exchanged.expect("exchanged");
            }
        });
        for _ in 0..2000 {
            sim.tell(&file, ChangeOp::Write(None));
            sim.tell(&link, ChangeOp::Write(None));
            sim.deliver(true);
            sim.round(usize::MAX, None);
        }
        done.store(1, Ordering::Release);
    });
    assert_eq!(sim.unit.as_ref().expect("running").stats().problems, 0);
    sim.tell(&file, ChangeOp::Create);
    sim.tell(&link, ChangeOp::Create);
    sim.check();
}

/// The message of a rename.
fn renamed(sim: &mut Sim, from: &Path, to: &Path) {
    let op = ChangeOp::Rename {
        to_path: byte_path(to),
        to_dir: id_of(to.parent().expect("below /")).expect("there"),
        to_name: Name::new(to.file_name().expect("has one").as_encoded_bytes()).expect("valid"),
    };
    let told = sim.change(from, op);
    fs::rename(from, to).expect("renamed");
    sim.queue.push(told);
}

#[test]
fn a_directory_that_moves_behind_a_compare_is_compared_all_the_same() {
    let mut sim = told_sim();
    let dirs = ["p", "q"].map(|n| sim.root.join(n));
    dirs.iter().for_each(|d| fs::create_dir(d).expect("made"));
    // In this order they are compared.
    let [first, last] = match id_of(&dirs[0]) < id_of(&dirs[1]) {
        true => [&dirs[0], &dirs[1]],
        false => [&dirs[1], &dirs[0]],
    };
    let (from, to) = (last.join("X"), first.join("X"));
    fs::create_dir(&from).expect("made");
    fs::write(from.join("f"), "old").expect("written");
    sim.compare_all();
    sim.check();

    // While nobody watches.
    drop(sim.unit.take());
    fs::write(from.join("f"), "newer").expect("written");
    sim.start();
    sim.round(1, None);
    sim.round(1, None);
    renamed(&mut sim, &from, &to);
    sim.round(1, None);
    sim.check();
}

#[test]
fn what_is_excluded_by_its_place_is_looked_at_when_it_has_another() {
    let mut sim = told_sim();
    sim.excludes.push("/staging/uploads/".into());
    drop(sim.unit.take());
    sim.start();
    let (staging, live) = (sim.root.join("staging"), sim.root.join("live"));
    fs::create_dir_all(staging.join("uploads/deep")).expect("made");
    fs::write(staging.join("uploads/deep/f"), "bytes").expect("written");
    sim.tell(&staging, ChangeOp::Create);
    sim.settle();
    let has_it = |sim: &Sim, place: &Path| {
        let v = sim.vault.lock().expect("not poisoned");
        let ours = v.model.snapshot(&byte_path(&sim.root)).expect("there");
        let real = Snapshot::of_dir(&sim.root).expect("readable");
        assert!(place.exists());
        real.differences(&ours, 5).is_empty()
    };
    assert!(!has_it(&sim, &staging));
    renamed(&mut sim, &staging, &live);
    sim.settle();
    assert!(has_it(&sim, &live));
    renamed(&mut sim, &live, &staging);
    sim.settle();
    assert!(!has_it(&sim, &staging));
}

#[test]
fn what_was_beneath_a_mount_is_looked_at_once_that_has_gone() {
    let mut sim = told_sim();
    let place = sim.root.join("data");
    fs::create_dir(&place).expect("made");
    let run = |program: &str, args: &[&str]| {
        let mut command = std::process::Command::new(program);
        let done = command.args(args).arg(&place).status();
        assert!(done.expect("runs").success(), "{program}");
    };
    run("mount", &["-t", "tmpfs", "farwrite-test"]);
    fs::write(place.join("other"), "not ours").expect("written");
    sim.tell(&place, ChangeOp::Create);
    sim.settle();
    let boundaries = |sim: &Sim| {
        let unit = sim.unit.as_ref().expect("running");
        unit.boundaries().cloned().collect::<Vec<_>>()
    };
    assert_eq!(boundaries(&sim), [byte_path(&place)]);
    run("umount", &[]);
    fs::write(place.join("ours"), "bytes").expect("written");
    sim.idle();
    assert_eq!(boundaries(&sim), []);
    sim.check();
}
