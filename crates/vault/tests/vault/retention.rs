//! Pruning against the oracle: whatever the policy and wherever it is killed, every kept moment is what it was, every other one is
//! refused by name, and log and catalog stay whole.

use crate::catalog::{first_difference, tree_of};
use crate::common::model::{Chaos, Tree};
use crate::common::*;
use farwrite_core::history::{Request, Response};
use farwrite_core::{BatchSeq, BytePath, NodeId, Record, SourceName, Timestamp};
use farwrite_vault::catalog::{Catalog, Forget};
use farwrite_vault::retention::*;
use farwrite_vault::segment::*;
use farwrite_vault::*;
use rusqlite::Connection;
use std::cell::Cell;
use std::path::{Path, PathBuf};

const SEGMENT: u64 = 60_000;

/// A source whose log is made of small segments.
struct Site {
    _dir: tempfile::TempDir,
    vault: Vault,
    name: SourceName,
    chaos: Chaos,
    trees: Vec<Tree>,
    now: Timestamp,
}

impl Site {
    fn new(seed: u64, step_minutes: i64) -> Site {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::init(dir.path(), true, Timestamp::default()).unwrap();
        let name = SourceName::new("web1").unwrap();
        let info = SourceInfo {
            name: name.clone(),
            fingerprint: "abc".into(),
            created: Timestamp::default(),
        };
        vault.save_source(&info).unwrap();
        std::fs::create_dir(vault.source_dir(&name).join("log")).unwrap();
        let mut chaos = Chaos::new(seed);
        chaos.maker.step_ns = step_minutes * 60 * 1_000_000_000;
        Site {
            _dir: dir,
            vault,
            name,
            chaos,
            trees: vec![Tree::new()],
            now: Timestamp::default(),
        }
    }

    fn dir(&self) -> PathBuf {
        self.vault.source_dir(&self.name)
    }

    fn log(&self) -> PathBuf {
        self.dir().join("log")
    }

    fn last(&self) -> BatchSeq {
        self.chaos.maker.seq
    }

    /// Appends random batches and applies them.
    fn grow(&mut self, count: u64) {
        let known = BatchSeq(0);
        let (mut log, recovered) = LogWriter::open_sized(&self.log(), known, SEGMENT).unwrap();
        assert_eq!(recovered.dropped_bytes, 0);
        assert_eq!(recovered.damage, []);
        for _ in 0..count {
            self.chaos.maker.clean = self.chaos.rng.next(3) > 0;
            for r in self.chaos.batch() {
                log.append(&r).unwrap();
            }
            self.trees.push(self.chaos.model.tree());
        }
        log.sync().unwrap();
        let mut catalog = Catalog::open(&self.dir().join("catalog.db"), log.last_commit()).unwrap();
        catalog.replay(&self.log(), log.committed_end()).unwrap();
        self.now = self.chaos.maker.time(self.last());
    }

    fn catalog(&self) -> Catalog {
        let (log, _) = LogWriter::open_sized(&self.log(), BatchSeq(0), SEGMENT).unwrap();
        let mut catalog = Catalog::open(&self.dir().join("catalog.db"), log.last_commit()).unwrap();
        catalog.replay(&self.log(), log.committed_end()).unwrap();
        catalog
    }

    fn options(&self, policy: Option<Policy>) -> PruneOptions {
        let now = self.now;
        PruneOptions { policy, now }
    }

    /// Prunes, and is stopped (`true`) or killed at the step with that number.
    fn prune(&self, policy: Option<Policy>, end: Option<(u64, bool)>) -> Option<PruneReport> {
        let mut catalog = self.catalog();
        let steps = Cell::new(0);
        let over = |stop: bool| {
            steps.set(steps.get() + 1);
            end.is_some_and(|(at, how)| how == stop && steps.get() > at)
        };
        let mut write = |what: Forget| {
            if over(false) {
                return Err("killed".to_string());
            }
            catalog.forget(&what).map_err(|e| e.to_string())
        };
        let options = self.options(policy);
        match prune(&self.vault, &self.name, &options, &mut write, &|| {
            !over(true)
        }) {
            Ok(report) => Some(report),
            Err(PruneError::Writer(_)) => None,
            Err(e) => panic!("{e}"),
        }
    }

    fn kept(&self) -> Kept {
        Kept::load(&self.dir()).unwrap()
    }

    /// Every kept moment is what it was, every other one is refused, and times lead to kept ones.
    fn check(&self, what: &str) {
        let (kept, catalog) = (self.kept(), self.catalog());
        let history = History::open(&self.dir()).unwrap();
        let mut blocks = BlockReader::new(&self.log());
        for (at, tree) in self.trees.iter().enumerate() {
            let seq = BatchSeq(at as u64);
            let answer = history.answer(&Request::Stat {
                path: BytePath::root(),
                at: seq,
            });
            if kept.contains(seq) {
                assert!(
                    matches!(answer, Response::Stat(Some(_))),
                    "{what}: {answer:?}"
                );
                let found = tree_of(catalog.view(seq), &mut blocks);
                assert_eq!(first_difference(&found, tree), None, "{what}, batch {at}");
            } else {
                assert!(matches!(&answer, Response::Error(e) if e.contains("no longer kept")));
            }
            let resolved = history.answer(&Request::Resolve(self.chaos.maker.time(seq)));
            let Response::Moment(resolved) = resolved else {
                panic!("{resolved:?}")
            };
            let wanted = kept.at_or_before(seq).filter(|s| s.0 > 0);
            assert_eq!(resolved.map(|m| m.seq), wanted, "{what}");
        }
        let report = verify_source(&self.dir(), &mut |_| ()).unwrap();
        assert!(report.is_clean(), "{what}: {:?}", report.findings);
        assert_eq!(report.batches, self.last().0);
    }

    /// The past tables, row by row.
    fn rows(&self) -> Vec<String> {
        let conn = Connection::open(self.dir().join("catalog.db")).unwrap();
        let mut out = Vec::new();
        for table in [
            "names_old",
            "attrs_old",
            "extents_old",
            "blocks",
            "names",
            "extents",
        ] {
            let mut sql = conn.prepare(&format!("SELECT * FROM {table}")).unwrap();
            let columns = sql.column_count();
            let mut rows = sql.query([]).unwrap();
            while let Some(r) = rows.next().unwrap() {
                let row: Vec<_> = (0..columns).map(|i| r.get_ref(i).unwrap()).collect();
                out.push(format!("{table} {row:?}"));
            }
        }
        out
    }
}

fn policy(text: &str) -> Policy {
    Policy::parse(text).unwrap()
}

fn random_policy(rng: &mut Rng) -> Policy {
    let mut hours = |max| Some(Span::Seconds(3600 * (1 + rng.next(max))));
    Policy {
        keep_all: hours(30),
        hourly: hours(60),
        daily: hours(400),
        weekly: None,
        monthly: Some(Span::Forever),
        brake_percent: None,
    }
}

/// Bytes that a directory's files take on the disk.
fn on_disk(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().metadata().unwrap().blocks() * 512)
        .sum()
}

#[test]
fn kept_moments_stay_whole_wherever_a_prune_is_stopped_or_killed() {
    let mut freed = 0;
    for seed in 0..12 {
        let mut rng = Rng(seed + 1000);
        let mut site = Site::new(seed, [20, 90, 400][rng.next(3) as usize]);
        let policy = random_policy(&mut rng);
        for round in 0..3 {
            site.grow(50);
            let what = format!("seed {seed}, round {round}, {policy:?}");
            if rng.next(2) == 0 {
                let at = site.chaos.maker.time(BatchSeq(1 + rng.next(site.last().0)));
                let name = format!("mark{round}");
                // All of that time may be gone already.
                match Marks::set(&site.dir(), &name, Some(at), "vault", site.now) {
                    Ok(_) | Err(MarkError::NoMoment) => {}
                    Err(e) => panic!("{e}"),
                }
            }
            let said = preview(&site.vault, &site.name, &site.options(Some(policy))).unwrap();
            let (mut bytes, mut counted, mut dropped) = (0, true, 0);
            for _ in 0..rng.next(4) {
                let stop = rng.next(2) == 0;
                let at = rng.next(14);
                let done = site.prune(Some(policy), Some((at, stop)));
                counted &= done.is_some();
                let done = done.unwrap_or_default();
                bytes += done.bytes_freed;
                dropped += done.moments_dropped;
                site.check(&format!("{what}, ended at {at}, stopped {stop}"));
                tear_lists(&site.log(), &mut rng);
            }
            let done = site.prune(Some(policy), None).unwrap();
            site.check(&what);
            assert!(!done.stopped);
            freed += done.bytes_freed;
            if counted {
                assert_eq!(bytes + done.bytes_freed, said.bytes_freed, "{what}");
                assert_eq!(
                    dropped + done.moments_dropped,
                    said.moments_dropped,
                    "{what}"
                );
            }
            assert_eq!(done.moments_kept, said.moments_kept, "{what}");
            // Once more: nothing left to do.
            let again = preview(&site.vault, &site.name, &site.options(Some(policy))).unwrap();
            assert_eq!((again.moments_dropped, again.bytes_freed), (0, 0), "{what}");
            for mark in Marks::load(&site.dir()).unwrap().list {
                assert!(site.kept().contains(mark.moment.seq), "{what}: {mark:?}");
            }
        }
        // The catalog is lost: made anew from the pruned log it is the same.
        let before = site.rows();
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(site.dir().join(format!("catalog.db{suffix}")));
        }
        site.check("a new catalog, not thinned yet");
        assert!(!site.prune(None, None).unwrap().stopped);
        assert_eq!(site.rows(), before, "seed {seed}");
        site.check("a new catalog");
    }
    assert!(freed > 0);
}

/// As if the machine had stopped while the next entries were written: nothing was freed for those.
fn tear_lists(log: &Path, rng: &mut Rng) {
    for segment in list_segments(log).unwrap() {
        let path = pruned_path(log, segment);
        if path.exists() && rng.next(2) == 0 {
            let mut bytes = std::fs::read(&path).unwrap();
            let torn = rng.next(70) as usize;
            bytes.extend(rng.bytes(torn));
            std::fs::write(&path, bytes).unwrap();
        }
    }
}

/// One file of 300 KiB that is written anew in each batch.
fn rewritten(site: &mut Site, batches: u64) {
    let (mut log, _) = LogWriter::open_sized(&site.log(), BatchSeq(0), SEGMENT).unwrap();
    for i in 0..batches {
        let mut ops = vec![write(NodeId(2), 0, 0, 0, 300 << 10)];
        if site.last().0 == 0 {
            ops.insert(0, link(NodeId::ROOT, "f", NodeId(2)));
            ops.insert(0, set(NodeId(2), file_meta(300 << 10, 1)));
        }
        let block = Rng(i + 7).bytes(300 << 10);
        site.chaos.model.apply(&ops, std::slice::from_ref(&block));
        for r in site.chaos.maker.batch(&ops, &[block]) {
            log.append(&r).unwrap();
        }
        site.trees.push(site.chaos.model.tree());
    }
    log.sync().unwrap();
    drop(log);
    site.catalog();
    site.now = site.chaos.maker.time(site.last());
}

#[test]
fn what_is_freed_is_what_was_said_and_what_the_disk_has_back() {
    let mut site = Site::new(1, 60);
    rewritten(&mut site, 40);
    let before = on_disk(&site.log());
    let policy = policy("keep_all = \"5h\"\ndaily = \"1y\"");
    let said = preview(&site.vault, &site.name, &site.options(Some(policy))).unwrap();
    assert_eq!(on_disk(&site.log()), before, "a preview changes nothing");
    assert_eq!(site.kept(), Kept::default());
    let done = site.prune(Some(policy), None).unwrap();
    assert_eq!(done, said);
    // 40 hours, three days begun: 6 moments in the window, the one before it, and two days before that of today.
    assert_eq!((done.moments_kept, done.moments_dropped), (9, 31));
    assert_eq!(done.bytes_freed, 31 * (300 << 10));
    let lists: u64 = 40 * 4096;
    let after = on_disk(&site.log());
    assert!(
        before - after + lists >= done.bytes_freed,
        "{before} {after}"
    );
    site.check("pruned");
    let report = verify_source(&site.dir(), &mut |_| ()).unwrap();
    assert_eq!(report.pruned, 31);
    let toml = std::fs::read_to_string(site.vault.dir().join("vault.toml")).unwrap();
    assert!(
        toml.contains("format = 2"),
        "older programs must keep away: {toml}"
    );
    assert!(Vault::open(site.vault.dir()).is_ok());
}

#[test]
fn pruned_is_never_taken_for_damaged_nor_damage_for_pruned() {
    let mut site = Site::new(1, 60);
    rewritten(&mut site, 30);
    let segments = list_segments(&site.log()).unwrap();
    let first_block = Connection::open(site.dir().join("catalog.db"))
        .unwrap()
        .query_row(
            "SELECT offset FROM blocks WHERE segment = ?1",
            [segments[0] as i64],
            |r| r.get::<_, i64>(0),
        )
        .unwrap();
    site.prune(Some(policy("keep_all = \"5h\"")), None).unwrap();
    // The end of the log is lost with the catalog: recovery meets segments that were pruned, and cuts nothing off.
    let work = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(site.log()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, work.path().join(path.file_name().unwrap())).unwrap();
    }
    for &s in &segments[10..] {
        std::fs::remove_file(segment_path(work.path(), s)).unwrap();
    }
    assert!(
        !PrunedList::load(work.path(), segments[9])
            .unwrap()
            .is_empty()
    );
    let (log, recovered) = LogWriter::open_sized(work.path(), BatchSeq(0), SEGMENT).unwrap();
    assert_eq!((recovered.dropped_bytes, recovered.set_aside.len()), (0, 0));
    assert_eq!(log.last_commit().unwrap().seq, BatchSeq(10));

    // Who passes a block on without checking it never takes one that was freed for one that is there.
    let place = Place {
        segment: segments[0],
        offset: first_block as u64,
    };
    let read = || SegmentFiles::new(&site.log()).read_whole(place);
    assert!(
        matches!(read(), Err(LogError::Pruned { .. })),
        "{:?}",
        read()
    );

    // Without its list, a freed block is damage; and a kept one that is zeroed is damage whatever the lists say.
    let list = pruned_path(&site.log(), segments[0]);
    let aside = list.with_extension("aside");
    std::fs::rename(&list, &aside).unwrap();
    let report = verify_source(&site.dir(), &mut |_| ()).unwrap();
    assert_eq!(report.findings.len(), 1, "{:?}", report.findings);
    assert!(Record::from_bytes(&read().unwrap()).is_err());
    std::fs::rename(&aside, &list).unwrap();
    let last = segment_path(&site.log(), *segments.last().unwrap());
    let mut bytes = std::fs::read(&last).unwrap();
    bytes[9000..20_000].fill(0);
    std::fs::write(&last, bytes).unwrap();
    let report = verify_source(&site.dir(), &mut |_| ()).unwrap();
    assert_eq!(report.findings.len(), 1, "{:?}", report.findings);
}

#[test]
fn nothing_is_pruned_on_doubt() {
    let mut site = Site::new(3, 60);
    site.grow(60);
    let policy = policy("keep_all = \"5h\"");
    let files = || {
        let mut all: Vec<_> = list_segments(&site.log()).unwrap();
        all.retain(|s| pruned_path(&site.log(), *s).exists());
        all
    };
    let try_it = || {
        let mut write = |_| -> Result<(), String> { panic!("nothing may be written") };
        prune(
            &site.vault,
            &site.name,
            &site.options(Some(policy)),
            &mut write,
            &|| true,
        )
        .unwrap_err()
        .to_string()
    };
    let db = site.dir().join("catalog.db");
    let conn = Connection::open(&db).unwrap();
    conn.execute("UPDATE batches SET damage='x' WHERE seq=4", [])
        .unwrap();
    assert!(try_it().contains("1 batches are damaged"));
    conn.execute("UPDATE batches SET damage=NULL", []).unwrap();
    conn.execute("DELETE FROM batches WHERE seq=9", []).unwrap();
    assert!(try_it().contains("missing"));
    drop(conn);
    std::fs::write(site.dir().join("marks.toml"), "no toml").unwrap();
    assert!(preview(&site.vault, &site.name, &site.options(Some(policy))).is_err());
    std::fs::remove_file(site.dir().join("marks.toml")).unwrap();
    for p in Kept::paths(&site.dir()) {
        std::fs::write(p, "damaged").unwrap();
    }
    try_it();
    let answer = History::open(&site.dir())
        .unwrap()
        .answer(&Request::Moments);
    assert!(matches!(answer, Response::Error(_)), "{answer:?}");
    assert_eq!(files(), Vec::<u64>::new());
}

#[test]
fn a_source_that_is_open_is_pruned_on_request_and_by_its_policy() {
    let mut site = Site::new(1, 60);
    rewritten(&mut site, 30);
    let options = Options {
        mirror: true,
        events: std::sync::Arc::new(|_| ()),
    };
    let source = SourceVault::open(&site.vault, &site.name, options.clone()).unwrap();
    let request = PruneRequest::send(&site.dir(), Some(&policy("keep_all = \"20h\""))).unwrap();
    let answer = wait_for(|| request.answer(&site.dir()));
    assert_eq!(answer.error, None);
    // And what stood when the window began.
    assert_eq!(answer.report.moments_kept, 22);
    // Now nobody looks for an hour: the thread has to be woken.
    let request = PruneRequest::send(&site.dir(), Some(&policy("keep_all = \"20h\""))).unwrap();
    let answer = wait_for(|| request.answer(&site.dir()));
    assert_eq!(answer.error, None);
    assert_eq!(answer.report.moments_kept, 22);
    // More comes in, and the mirror follows as ever.
    let mut ops = vec![
        set(NodeId(50), file_meta(3, 1)),
        link(NodeId::ROOT, "g", NodeId(50)),
    ];
    ops.push(write(NodeId(50), 0, 0, 0, 3));
    site.chaos.model.apply(&ops, &[b"abc".to_vec()]);
    for r in site.chaos.maker.batch(&ops, &[b"abc".to_vec()]) {
        source.submit(r).unwrap();
    }
    site.trees.push(site.chaos.model.tree());
    source.close().unwrap();
    crate::mirror::assert_same(
        &site.dir().join("mirror"),
        site.trees.last().unwrap(),
        "mirror",
    );
    site.check("by request");

    // By the policy in its file, the next day.
    let mut last = LastPrune::load(&site.dir()).unwrap();
    last.time.sec -= 2 * 86_400;
    farwrite_vault::vault::save_toml(&site.dir().join("prune.toml"), &last).unwrap();
    policy("keep_all = \"5h\"").save(&site.dir()).unwrap();
    let source = SourceVault::open(&site.vault, &site.name, options.clone()).unwrap();
    let last = wait_for(|| LastPrune::load(&site.dir()).filter(|l| l.report.moments_kept == 7));
    assert_eq!(last.report.bytes_freed, 16 * (300 << 10), "{last:?}");
    source.close().unwrap();
    site.check("by policy");

    // Catalog and mirror are lost: both are made anew from the pruned log, and the catalog is thinned at once.
    let rows = site.rows();
    for file in ["catalog.db", "catalog.db-wal", "catalog.db-shm"] {
        let _ = std::fs::remove_file(site.dir().join(file));
    }
    std::fs::remove_dir_all(site.dir().join("mirror")).unwrap();
    let source = SourceVault::open(&site.vault, &site.name, options).unwrap();
    wait_for(|| (site.rows() == rows).then_some(()));
    assert_eq!(source.mirror_stats().damaged, 0);
    source.close().unwrap();
    crate::mirror::assert_same(
        &site.dir().join("mirror"),
        site.trees.last().unwrap(),
        "mirror",
    );
}

fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let begun = std::time::Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            begun.elapsed() < std::time::Duration::from_secs(60),
            "never came"
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn a_reader_under_way_gets_the_right_bytes_or_is_told() {
    let mut site = Site::new(1, 60);
    rewritten(&mut site, 30);
    let history = History::open(&site.dir()).unwrap();
    let ask = |r: Request| history.answer(&r);
    let at = BatchSeq(3);
    let Response::Extents { extents, .. } = ask(Request::Extents {
        node: NodeId(2),
        at,
        from: 0,
    }) else {
        panic!("no extents")
    };
    site.prune(Some(policy("keep_all = \"5h\"")), None).unwrap();
    let Response::Blocks(blocks) = ask(Request::Blocks(vec![extents[0].block])) else {
        panic!("no blocks")
    };
    let told = blocks[0].record.as_ref().unwrap_err();
    assert!(told.contains("pruned"), "{told}");
    // A place that was looked up before, read afterwards.
    let mut files = SegmentFiles::new(&site.log());
    let mut scan = Scan::open(&site.log(), 1).unwrap().skip_block_payloads();
    let block = std::iter::from_fn(|| scan.next_found().unwrap()).find_map(|f| match f {
        Found::Record { place, record } if record.header.raw == 300 << 10 => Some(place),
        _ => None,
    });
    let told = files.read_block(block.unwrap()).unwrap_err();
    assert!(matches!(told, LogError::Pruned { .. }), "{told}");
    let versions = ask(Request::Versions {
        path: BytePath::new("/f").unwrap(),
        limit: 99,
    });
    let Response::Versions(versions) = versions else {
        panic!("{versions:?}")
    };
    let kept = site.kept();
    assert_eq!(versions.len() as u64, 7);
    assert!(versions.iter().all(|v| kept.contains(v.moment.seq)));
    match ask(Request::Moments) {
        Response::Moments(Some((first, last))) => {
            assert_eq!((first.seq, last.seq), (BatchSeq(24), BatchSeq(30)));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn marks_keep_their_moments_and_a_name_is_given_once() {
    let mut site = Site::new(1, 60);
    rewritten(&mut site, 30);
    let time = |n| site.chaos.maker.time(BatchSeq(n));
    let dir = site.dir();
    let set = |name: &str, at: Option<u64>| Marks::set(&dir, name, at.map(time), "vault", time(30));
    assert_eq!(set("early", Some(4)).unwrap().moment.seq, BatchSeq(4));
    assert_eq!(set("now", None).unwrap().moment.seq, BatchSeq(30));
    assert!(matches!(set("early", Some(9)), Err(MarkError::Exists(_))));
    let long = "x".repeat(65);
    for bad in ["", "a/b", "ü", "a b", &long] {
        assert!(matches!(set(bad, None), Err(MarkError::Name(_))), "{bad:?}");
    }
    site.prune(Some(policy("keep_all = \"5h\"")), None).unwrap();
    // With what stood when the window began.
    assert_eq!(site.kept().before, [BatchSeq(4), BatchSeq(24)]);
    site.check("marked");
    // Between kept moments: the one before, and the mark says so.
    assert_eq!(set("later", Some(20)).unwrap().moment.seq, BatchSeq(4));
    assert!(matches!(set("none", Some(2)), Err(MarkError::NoMoment)));
    Marks::remove(&dir, "early").unwrap();
    assert!(matches!(
        Marks::remove(&dir, "early"),
        Err(MarkError::Missing(_))
    ));
    site.prune(Some(policy("keep_all = \"5h\"")), None).unwrap();
    let before = site.kept().before;
    assert_eq!(before, [BatchSeq(4), BatchSeq(24)], "another mark holds it");
    Marks::remove(&dir, "later").unwrap();
    site.prune(Some(policy("keep_all = \"5h\"")), None).unwrap();
    assert_eq!(site.kept().before, [BatchSeq(24)]);
    site.check("unmarked");
    for i in 0..600 {
        let done = Marks::set(&dir, &format!("m{i}"), None, "source", time(30));
        assert_eq!(done.is_ok(), i < 500, "{i}");
    }
    set("the vault still may", None).unwrap_err();
    set("the-vault-still-may", None).unwrap();
}

/// A source with `count` files of text, sent and applied.
fn texts(site: &mut Site, source: &SourceVault, count: u64) {
    for part in 0..count / 50 {
        let (mut ops, mut blocks) = (Vec::new(), Vec::new());
        for i in 0..50 {
            let n = part * 50 + i;
            let node = NodeId(1000 + n);
            ops.push(set(node, file_meta(2000, 1)));
            ops.push(link(NodeId::ROOT, format!("f{n}.txt"), node));
            ops.push(write(node, 0, i as u32, 0, 2000));
            blocks.push(format!("file {n:06} ").repeat(200).into_bytes()[..2000].to_vec());
        }
        send(site, source, &ops, &blocks);
    }
}

fn send(site: &mut Site, source: &SourceVault, ops: &[farwrite_core::Op], blocks: &[Vec<u8>]) {
    for r in site.chaos.maker.batch(ops, blocks) {
        source.submit(r).unwrap();
    }
}

/// Everything sent so far is applied.
fn settle(site: &Site) {
    let last = site.last();
    wait_for(|| (site.vault.status(&site.name).unwrap().last_seq == last).then_some(()));
}

fn open(site: &Site) -> SourceVault {
    let options = Options {
        mirror: false,
        events: std::sync::Arc::new(|_| ()),
    };
    SourceVault::open(&site.vault, &site.name, options).unwrap()
}

#[test]
fn a_tree_that_is_encrypted_sets_the_brake_and_ordinary_storms_do_not() {
    let noise = |n: u64| Rng(n + 5).bytes(2000);
    type Storm = fn(u64, &dyn Fn(u64) -> Vec<u8>) -> (Vec<farwrite_core::Op>, Vec<Vec<u8>>);
    let storms: [(&str, bool, Storm); 7] = [
        ("rewritten in place", true, |n, noise| {
            (vec![write(NodeId(1000 + n), 0, 0, 0, 2000)], vec![noise(n)])
        }),
        ("another file in its place", true, |n, noise| {
            let new = NodeId(5000 + n);
            let ops = vec![
                set(new, file_meta(2000, 2)),
                write(new, 0, 0, 0, 2000),
                link(NodeId::ROOT, format!("f{n}.txt"), new),
            ];
            (ops, vec![noise(n)])
        }),
        ("renamed", true, |n, _| {
            let ops = vec![
                link(NodeId::ROOT, format!("f{n}.txt.locked"), NodeId(1000 + n)),
                unlink(NodeId::ROOT, format!("f{n}.txt")),
            ];
            (ops, vec![])
        }),
        ("saved again", false, |n, _| {
            let text = format!("other text {n:05} ").repeat(200).into_bytes();
            (
                vec![write(NodeId(1000 + n), 0, 0, 0, 2000)],
                vec![text[..2000].to_vec()],
            )
        }),
        ("unpacked", false, |n, noise| {
            let new = NodeId(5000 + n);
            let ops = vec![
                set(new, file_meta(2000, 2)),
                write(new, 0, 0, 0, 2000),
                link(NodeId::ROOT, format!("new{n}.jpg"), new),
            ];
            (ops, vec![noise(n)])
        }),
        ("compressed", false, |n, _| {
            let ops = vec![
                link(NodeId::ROOT, format!("f{n}.txt.gz"), NodeId(1000 + n)),
                unlink(NodeId::ROOT, format!("f{n}.txt")),
            ];
            (ops, vec![])
        }),
        ("chmod of all", false, |n, _| {
            let meta = farwrite_core::Meta {
                mode: 0o600,
                ..file_meta(2000, 1)
            };
            (vec![set(NodeId(1000 + n), meta)], vec![])
        }),
    ];
    for (what, brakes, storm) in storms {
        let mut site = Site::new(1, 1);
        let source = open(&site);
        texts(&mut site, &source, 400);
        let before = site.last();
        settle(&site);
        // Somebody who wants that moment to go has taken the mark's name for another.
        let time = |n| site.chaos.maker.time(n);
        let taken = format!("brake-{before}");
        Marks::set(
            &site.dir(),
            &taken,
            Some(time(BatchSeq(1))),
            "source",
            time(before),
        )
        .unwrap();
        for n in 0..200 {
            let (ops, blocks) = storm(n, &noise);
            send(&mut site, &source, &ops, &blocks);
        }
        settle(&site);
        let brake = Brake::load(&site.dir());
        assert_eq!(brake.is_some(), brakes, "{what}: {brake:?}");
        if let Some(brake) = brake {
            let marks = Marks::load(&site.dir()).unwrap();
            let mark = marks.get(brake.mark.as_deref().unwrap()).unwrap();
            assert_eq!((mark.moment.seq, &mark.by[..]), (before, "brake"), "{what}");
            let refused = source.prune(Some(policy("keep_all = \"1h\""))).unwrap_err();
            assert!(refused.to_string().contains("brake"), "{what}: {refused}");
            // It outlives the process, and the backup never stopped.
            source.close().unwrap();
            let source = open(&site);
            assert!(site.vault.status(&site.name).unwrap().brake.is_some());
            assert!(source.prune(Some(policy("keep_all = \"1h\""))).is_err());
            assert!(Brake::release(&site.dir()).unwrap());
            assert!(!Brake::release(&site.dir()).unwrap());
            source.prune(Some(policy("keep_all = \"1h\""))).unwrap();
            assert!(site.kept().contains(before), "{what}: the mark stays");
            source.close().unwrap();
        }
    }
}

#[test]
fn most_of_a_tree_deleted_at_once_sets_the_brake_but_not_what_git_packs() {
    for (text, brakes) in [(true, true), (false, false)] {
        let mut site = Site::new(1, 1);
        let source = open(&site);
        let dir = NodeId(900);
        let mut ops = vec![set(dir, dir_meta(1)), link(NodeId::ROOT, "objects", dir)];
        let mut blocks = Vec::new();
        for n in 0..700u64 {
            let node = NodeId(1000 + n);
            ops.push(set(node, file_meta(2000, 1)));
            ops.push(link(dir, format!("{n:x}"), node));
            ops.push(write(node, 0, n as u32, 0, 2000));
            blocks.push(match text {
                true => format!("file {n:06} ").repeat(200).into_bytes()[..2000].to_vec(),
                false => Rng(n).bytes(2000),
            });
        }
        send(&mut site, &source, &ops, &blocks);
        settle(&site);
        send(&mut site, &source, &[unlink(NodeId::ROOT, "objects")], &[]);
        settle(&site);
        assert_eq!(Brake::load(&site.dir()).is_some(), brakes);
        source.close().unwrap();
    }
}

/// What a prune leaves, as it is on the disk, stays readable. `FARWRITE_WRITE_SAMPLES=1` writes it anew, which is right only before
/// its release.
#[test]
fn the_sample_of_a_pruned_source_reads_as_it_was_written() {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/pruned-v1");
    let policy = policy("keep_all = \"3h\"\nhourly = \"6h\"\nbrake_percent = 35");
    let mut site = Site::new(4, 25);
    site.grow(24);
    let good = site.chaos.maker.time(BatchSeq(2));
    Marks::set(&site.dir(), "good", Some(good), "vault", site.now).unwrap();
    if std::env::var_os("FARWRITE_WRITE_SAMPLES").is_some() {
        policy.save(&site.dir()).unwrap();
        assert!(site.prune(Some(policy), None).unwrap().bytes_freed > 0);
        copy_source(&site.dir(), &sample);
    } else {
        std::fs::remove_dir_all(site.dir()).unwrap();
        copy_source(&sample, &site.dir());
    }
    let kept = site.kept();
    // The mark, and three moments that stand for an hour.
    let before: Vec<u64> = kept.before.iter().map(|s| s.0).collect();
    assert_eq!(
        (kept.horizon, &before[..]),
        (BatchSeq(17), &[2, 11, 13, 16][..])
    );
    let own = site.vault.policy(&site.name).unwrap();
    assert_eq!(own, (policy, true));
    let marks = Marks::load(&site.dir()).unwrap();
    assert_eq!((marks.list.len(), &marks.list[0].by[..]), (1, "vault"));
    let report = verify_source(&site.dir(), &mut |_| ()).unwrap();
    assert!(report.pruned > 0, "{report:?}");
    site.check("sample");
}

/// Everything of a source but its catalog and locks.
fn copy_source(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to.join("log")).unwrap();
    for dir in ["", "log"] {
        for entry in std::fs::read_dir(from.join(dir)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let other = name.starts_with("catalog") || name.ends_with("lock");
            if path.is_file() && !other {
                std::fs::copy(&path, to.join(dir).join(name)).unwrap();
            }
        }
    }
}

#[test]
fn who_only_prunes_lets_go_of_a_source_that_somebody_wants() {
    let mut site = Site::new(5, 400);
    site.grow(120);
    let open = || {
        let options = Options {
            mirror: false,
            events: std::sync::Arc::new(|_| {}),
        };
        SourceVault::open(&site.vault, &site.name, options).unwrap()
    };
    let (policy, before) = (policy("keep_all = \"1h\""), on_disk(&site.log()));
    let source = open();
    SourceVault::ask_for(&site.vault, &site.name);
    assert!(source.prune(Some(policy)).unwrap().stopped);
    source.close().unwrap();
    assert_eq!(on_disk(&site.log()), before);
    // Whoever has it now is not in anybody's way.
    let source = open();
    assert!(!source.prune(Some(policy)).unwrap().stopped);
    source.close().unwrap();
    assert!(on_disk(&site.log()) < before);
    site.check("gone on with");
}

#[test]
fn one_at_a_time_asks_for_a_prune() {
    let site = Site::new(6, 60);
    let first = PruneRequest::alone(&site.dir()).unwrap();
    let second = PruneRequest::alone(&site.dir());
    assert!(second.is_err_and(|e| e.is_busy()));
    drop(first);
    PruneRequest::alone(&site.dir()).unwrap();
}
