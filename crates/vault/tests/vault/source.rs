//! A source as the daemon sees it: events, reopening, failures; history, restore and verification of what it wrote.

use crate::catalog::first_difference;
use crate::common::model::{Chaos, Leaf, Tree};
use crate::common::*;
use crate::mirror::assert_same;
use farwrite_core::history::{Request, Response, VersionChange};
use farwrite_core::{BatchSeq, BytePath, Kind, NodeId, Record, SourceName, Timestamp};
use farwrite_vault::catalog::Catalog;
use farwrite_vault::segment::{Found, LogWriter, Scan, segment_path};
use farwrite_vault::*;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Collects events and waits for them.
#[derive(Clone, Default)]
struct Ear(Arc<(Mutex<Vec<Event>>, Condvar)>);

impl Ear {
    fn events(&self) -> Events {
        let this = self.clone();
        Arc::new(move |e| {
            this.0.0.lock().unwrap().push(e);
            this.0.1.notify_all();
        })
    }

    fn wait(&self, what: impl Fn(&Event) -> bool) {
        let heard = self.0.0.lock().unwrap();
        let (heard, late) = self
            .0
            .1
            .wait_timeout_while(heard, Duration::from_secs(60), |list| {
                !list.iter().any(&what)
            })
            .unwrap();
        assert!(!late.timed_out(), "never heard; heard {heard:?}");
    }
}

struct Site {
    dir: tempfile::TempDir,
    vault: Vault,
    name: SourceName,
}

impl Site {
    fn new(mirror: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::init(dir.path(), mirror, Timestamp::from_nanos(5)).unwrap();
        let name = SourceName::new("web-1").unwrap();
        let info = SourceInfo {
            name: name.clone(),
            fingerprint: "abc".into(),
            created: Timestamp::from_nanos(7),
        };
        vault.save_source(&info).unwrap();
        assert_eq!(vault.sources().unwrap(), [info]);
        Site { dir, vault, name }
    }

    fn open(&self, ear: &Ear) -> SourceVault {
        let options = Options {
            mirror: self.vault.info().mirror,
            events: ear.events(),
        };
        SourceVault::open(&self.vault, &self.name, options).unwrap()
    }

    fn source(&self) -> std::path::PathBuf {
        self.vault.source_dir(&self.name)
    }

    fn write(&self, batches: &[Vec<Record>]) {
        let source = self.open(&Ear::default());
        batches
            .iter()
            .flatten()
            .for_each(|r| source.submit(r.clone()).unwrap());
        source.close().unwrap();
    }
}

#[test]
fn batches_become_durable_then_mirrored_and_a_reopened_source_goes_on() {
    let site = Site::new(true);
    let mut chaos = Chaos::new(41);
    for round in 0..4 {
        let ear = Ear::default();
        let source = site.open(&ear);
        assert_eq!(
            source.last_commit().map_or(BatchSeq(0), |c| c.seq),
            chaos.maker.seq
        );
        for _ in 0..20 {
            let batch = chaos.batch();
            // A session that dies in the middle, and another that begins the batch again.
            if batch.len() > 1 {
                source.submit(batch[0].clone()).unwrap();
                source.abort_batch().unwrap();
            }
            batch.into_iter().for_each(|r| source.submit(r).unwrap());
        }
        let last = chaos.maker.seq;
        ear.wait(|e| *e == Event::Durable(last));
        ear.wait(|e| *e == Event::Mirrored(last));
        let options = Options {
            mirror: true,
            events: ear.events(),
        };
        assert!(
            SourceVault::open(&site.vault, &site.name, options).is_err(),
            "locked"
        );
        assert_same(
            &site.source().join("mirror"),
            &chaos.model.tree(),
            &format!("round {round}"),
        );
        let status = site.vault.status(&site.name).unwrap();
        assert_eq!((status.last_seq, status.mirror_seq), (last, last));
        assert_eq!(
            (status.batches, status.damaged, status.clean),
            (last.0, 0, true)
        );
        assert!(source.mirror_stats().reconciles == 0);
        source.close().unwrap();
        if round == 1 {
            std::fs::remove_file(site.source().join("catalog.db")).unwrap();
            std::fs::remove_file(site.source().join("mirror").join("foreign")).unwrap_or(());
            break;
        }
    }
    // Without its catalog: made anew from the log, and the mirror compared with it.
    let ear = Ear::default();
    let source = site.open(&ear);
    let batch = chaos.batch();
    batch.into_iter().for_each(|r| source.submit(r).unwrap());
    ear.wait(|e| *e == Event::Mirrored(chaos.maker.seq));
    assert_same(
        &site.source().join("mirror"),
        &chaos.model.tree(),
        "without catalog",
    );
}

/// The vault was killed, and the source never comes back.
#[test]
fn what_a_crash_left_out_of_the_catalog_is_brought_in_without_the_source() {
    let site = Site::new(true);
    let mut chaos = Chaos::new(43);
    site.write(&(0..20).map(|_| chaos.batch()).collect::<Vec<_>>());
    let root = |at| Request::Stat {
        path: BytePath::root(),
        at: BatchSeq(at),
    };
    let answer = |at| History::open(&site.source()).unwrap().answer(&root(at));
    assert!(matches!(answer(20), Response::Stat(Some(_))));
    assert!(!SourceVault::bring_forward(&site.vault, &site.name).unwrap());
    // A moment that the catalog does not know of yet is none that looks like the last one that it does.
    let Response::Error(why) = answer(21) else {
        panic!("a moment that is still to come");
    };
    assert!(why.contains("batch 21"), "{why}");

    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(site.source().join(format!("catalog.db{end}")));
    }
    assert!(matches!(answer(20), Response::Error(_)));
    let open = site.open(&Ear::default());
    assert!(!SourceVault::bring_forward(&site.vault, &site.name).unwrap());
    drop(open);
    std::fs::remove_file(site.source().join("catalog.db")).unwrap();
    assert!(SourceVault::bring_forward(&site.vault, &site.name).unwrap());
    assert!(!SourceVault::bring_forward(&site.vault, &site.name).unwrap());
    let history = History::open(&site.source()).unwrap();
    let found = history_tree(&|r| history.answer(&r), BatchSeq(20));
    let tree = chaos.model.tree();
    assert!(found.keys().eq(tree.keys()));
    // The mirror is compared when the source comes back.
    let ear = Ear::default();
    let source = site.open(&ear);
    ear.wait(|e| *e == Event::Mirrored(BatchSeq(20)));
    source.close().unwrap();
    assert_same(&site.source().join("mirror"), &tree, "brought forward");
}

/// Half of the log has gone with a disk: what the catalog and the mirror still tell is told nowhere else.
#[test]
fn a_log_that_is_shorter_than_its_catalog_changes_nothing_without_the_source() {
    let site = Site::new(true);
    let mut chaos = Chaos::new(47);
    site.write(&(0..20).map(|_| chaos.batch()).collect::<Vec<_>>());
    let (vault, name) = (&site.vault, &site.name);
    let reach = || {
        let last = SourceVault::last_logged(vault, name).unwrap();
        (SourceVault::last_shown(vault, name), last)
    };
    let doubted = || SourceVault::is_mirror_in_doubt(vault, name);
    assert_eq!(reach(), (BatchSeq(20), BatchSeq(20)));
    assert!(!doubted() && !SourceVault::is_behind(vault, name));

    let (log_dir, db) = (site.source().join("log"), site.source().join("catalog.db"));
    let end = LogWriter::open(&log_dir, None).unwrap().0.committed_end();
    let segment = segment_path(&log_dir, end.segment);
    let whole = std::fs::read(&segment).unwrap();
    let end = end.offset as usize;
    let zeros = [&whole[..end - 20], &[0; 20]].concat();
    let crash = || {
        let (log, _) = LogWriter::open(&log_dir, None).unwrap();
        drop(Catalog::open(&db, log.last_commit()).unwrap());
        assert!(SourceVault::is_behind(vault, name));
    };
    let alone = || {
        let options = Options {
            mirror: true,
            events: Ear::default().events(),
        };
        SourceVault::open_alone(vault, name, options).map(|s| s.close().unwrap())
    };
    alone().unwrap();
    // Closed in order, and after a crash. The last is whole, but its number is missing.
    for crashed in [false, true] {
        if crashed {
            crash();
        }
        for bad in [Some(&whole[..end / 2]), Some(&zeros), None] {
            match bad {
                Some(bad) => std::fs::write(&segment, bad).unwrap(),
                None => std::fs::rename(&segment, log_dir.join("00000009.seg")).unwrap(),
            }
            let before = std::fs::read(&db).unwrap();
            assert!(matches!(alone(), Err(VaultError::Short(_))));
            if crashed {
                let refused = SourceVault::bring_forward(vault, name);
                assert!(matches!(refused, Err(VaultError::Short(_))));
            }
            assert!(std::fs::read(&db).unwrap() == before, "the catalog");
            if let Some(bad) = bad {
                assert!(std::fs::read(&segment).unwrap() == bad, "the log");
            }
            assert_eq!(SourceVault::last_shown(vault, name), BatchSeq(20));
            assert_same(&site.source().join("mirror"), &chaos.model.tree(), "mirror");
            let _ = std::fs::remove_file(log_dir.join("00000009.seg"));
            std::fs::write(&segment, &whole).unwrap();
        }
    }
    assert!(SourceVault::bring_forward(vault, name).unwrap());
    assert!(doubted() && !SourceVault::is_behind(vault, name));
    std::fs::remove_file(&db).unwrap();
    assert_eq!(reach(), (BatchSeq(0), BatchSeq(20)));
}

#[test]
fn a_hostile_source_fails_by_name_and_the_history_stays_readable() {
    let site = Site::new(true);
    let mut maker = Maker::new();
    let f = maker.node();
    let good = [
        set(f, file_meta(3, 1)),
        link(NodeId::ROOT, "f", f),
        write(f, 0, 0, 0, 3),
    ];
    let ear = Ear::default();
    let source = site.open(&ear);
    let good = maker.batch(&good, &[b"abc".to_vec()]);
    let bad = maker.batch(&[link(f, "below a file", f)], &[]);
    good.into_iter()
        .chain(bad)
        .for_each(|r| source.submit(r).unwrap());
    ear.wait(|e| matches!(e, Event::Failed { what, retry: false } if what.contains("batch 2, operation 0")));
    assert!(source.submit(maker.batch(&[], &[])[0].clone()).is_err());
    assert!(source.close().is_err());
    let history = History::open(&site.source()).unwrap();
    let path = BytePath::new("/f").unwrap();
    match history.answer(&Request::Stat {
        path,
        at: BatchSeq(1),
    }) {
        Response::Stat(Some(e)) => assert_eq!(e.meta.size, 3),
        other => panic!("{other:?}"),
    }
}

fn history_tree(ask: &dyn Fn(Request) -> Response, at: BatchSeq) -> Tree {
    let mut out = Tree::new();
    let mut todo = vec![(NodeId::ROOT, Vec::new())];
    while let Some((dir, path)) = todo.pop() {
        let mut after = None;
        loop {
            let Response::List { entries, more } = ask(Request::List {
                dir,
                at,
                after,
                limit: 2,
            }) else {
                panic!("no list")
            };
            after = entries.last().and_then(|e| e.name.clone());
            for e in entries {
                let mut path: Vec<u8> = path.clone();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(e.name.unwrap().as_bytes());
                if e.meta.kind == Kind::Dir {
                    todo.push((e.node, path.clone()));
                }
                out.insert(
                    path,
                    Leaf {
                        node: e.node,
                        meta: e.meta,
                        content: vec![],
                    },
                );
            }
            if !more {
                break;
            }
        }
    }
    out
}

fn restore(history: &History, at: u64, to: &Path) -> RestoreStats {
    let ask = |r: Request| Ok(history.answer(&r));
    let gone_over = std::cell::Cell::new(0);
    let never_back = |s: &RestoreStats| {
        assert!(s.gone_over >= gone_over.get());
        gone_over.set(s.gone_over);
    };
    let mut restore = Restore {
        ask: &ask,
        paths: vec![BytePath::root()],
        at: BatchSeq(at),
        to_dir: to.to_owned(),
        overwrite: false,
        dry_run: true,
        progress: None,
    };
    let before = restore.run().unwrap();
    restore.dry_run = false;
    restore.progress = Some(&never_back);
    let stats = restore.run().unwrap();
    assert_eq!(before.gone_over, stats.gone_over, "the dry run's count");
    let failed = stats.failed.len() as u64;
    assert_eq!(
        before.files + before.dirs,
        stats.files + stats.dirs + failed
    );
    stats
}

#[test]
fn every_moment_is_listed_and_restored_as_it_was() {
    let site = Site::new(false);
    let mut chaos = Chaos::new(77);
    let (mut batches, mut trees) = (vec![], vec![Tree::new()]);
    for _ in 0..40 {
        batches.push(chaos.batch());
        trees.push(chaos.model.tree());
    }
    site.write(&batches);
    let history = History::open(&site.source()).unwrap();
    for (at, tree) in trees.iter().enumerate() {
        let listed = history_tree(&|r| history.answer(&r), BatchSeq(at as u64));
        let mut bare = tree.clone();
        bare.values_mut().for_each(|l| l.content.clear());
        assert_eq!(first_difference(&listed, &bare), None, "batch {at}");
        let to = tempfile::tempdir().unwrap();
        let stats = restore(&history, at as u64, to.path());
        assert_eq!(stats.failed, [], "batch {at}");
        assert_same(to.path(), tree, &format!("restored batch {at}"));
    }
    assert!(trees.iter().any(|t| t.len() > 8));
    let diff = history.answer(&Request::Diff {
        path: BytePath::root(),
        from: BatchSeq(20),
        to: BatchSeq(40),
    });
    let Response::Diff {
        changes,
        truncated: false,
    } = diff
    else {
        panic!("{diff:?}")
    };
    let (a, b) = (&trees[20], &trees[40]);
    for path in a.keys().chain(b.keys()) {
        let key = BytePath::new([b"/", &path[..]].concat()).unwrap();
        let same = a.get(path).map(|l| (&l.meta, &l.content))
            == b.get(path).map(|l| (&l.meta, &l.content));
        let listed = changes.iter().any(|c| c.path == key);
        assert!(same || listed, "{key} differs and is not listed");
    }
}

#[test]
fn rsync_sees_no_difference_between_mirror_and_restore_and_nothing_is_overwritten() {
    let site = Site::new(true);
    let mut chaos = Chaos::new(9);
    site.write(&(0..80).map(|_| chaos.batch()).collect::<Vec<_>>());
    let history = History::open(&site.source()).unwrap();
    let to = tempfile::tempdir().unwrap();
    assert_eq!(restore(&history, 80, to.path()).failed, []);
    let rsync = std::process::Command::new("rsync")
        .args([
            "-aHAXnc",
            "--delete",
            "--numeric-ids",
            "--itemize-changes",
            "--omit-dir-times",
        ])
        .arg(format!("{}/", site.source().join("mirror").display()))
        .arg(format!("{}/", to.path().display()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&rsync.stdout);
    let said: Vec<&str> = said.lines().filter(|l| !l.contains(" ./")).collect();
    assert!(rsync.status.success() && said.is_empty(), "{said:?}");
    let ask = |r: Request| Ok(history.answer(&r));
    let again = Restore {
        ask: &ask,
        paths: vec![BytePath::root()],
        at: BatchSeq(80),
        to_dir: to.path().to_owned(),
        overwrite: false,
        dry_run: false,
        progress: None,
    };
    assert!(matches!(again.run(), Err(RestoreError::Exists(_))));
    let over = Restore {
        overwrite: true,
        ..again
    };
    assert_eq!(over.run().unwrap().failed, []);
    assert_same(to.path(), &chaos.model.tree(), "overwritten");
}

#[test]
fn versions_tell_what_happened_at_a_path() {
    let site = Site::new(false);
    let mut m = Maker::new();
    let (a, b, root) = (m.node(), m.node(), NodeId::ROOT);
    let text = |s: &str| vec![s.as_bytes().to_vec()];
    let batches = vec![
        m.batch(
            &[
                set(a, file_meta(3, 1)),
                link(root, "f", a),
                write(a, 0, 0, 0, 3),
            ],
            &text("one"),
        ),
        m.batch(
            &[set(a, file_meta(3, 2)), write(a, 0, 0, 0, 2)],
            &text("tw"),
        ),
        m.batch(
            &[set(
                a,
                farwrite_core::Meta {
                    mode: 0o600,
                    ..file_meta(3, 2)
                },
            )],
            &[],
        ),
        m.batch(
            &[
                set(b, file_meta(1, 1)),
                link(root, "tmp", b),
                write(b, 0, 0, 0, 1),
            ],
            &text("x"),
        ),
        m.batch(&[link(root, "f", b), unlink(root, "tmp")], &[]),
        m.batch(&[unlink(root, "f")], &[]),
    ];
    site.write(&batches);
    let history = History::open(&site.source()).unwrap();
    let versions = |path: &str| {
        let path = BytePath::new(path).unwrap();
        match history.answer(&Request::Versions { path, limit: 99 }) {
            Response::Versions(list) => list
                .iter()
                .map(|v| (v.moment.seq.0, v.what, v.bytes_new))
                .collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        }
    };
    use VersionChange::*;
    let expected = [
        (6, Removed, 0),
        (5, Replaced, 0),
        (3, Attributes, 0),
        (2, Content, 2),
        (1, Created, 3),
    ];
    assert_eq!(versions("/f"), expected);
    assert_eq!(versions("/tmp"), [(5, Removed, 0), (4, Created, 1)]);
    assert_eq!(versions("/never"), []);
}

#[test]
fn damage_is_found_named_and_costs_only_what_it_hit() {
    let site = Site::new(false);
    let mut m = Maker::new();
    let mut rng = Rng(5);
    let mut batches = vec![];
    for i in 0..5 {
        let n = m.node();
        let ops = [
            set(n, file_meta(500, 1)),
            link(NodeId::ROOT, format!("f{i}"), n),
            write(n, 0, 0, 0, 500),
        ];
        batches.push(m.batch(&ops, &[rng.bytes(500)]));
    }
    site.write(&batches);
    assert!(
        verify_source(&site.source(), &mut |_| ())
            .unwrap()
            .is_clean()
    );
    let segment = site.source().join("log/00000001.seg");
    let whole = std::fs::read(&segment).unwrap();
    for at in (64 + 50..whole.len()).step_by(37) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        std::fs::write(&segment, &bytes).unwrap();
        let report = verify_source(&site.source(), &mut |_| ()).unwrap();
        let history = History::open(&site.source()).unwrap();
        let to = tempfile::tempdir().unwrap();
        let stats = restore(&history, 5, to.path());
        assert_eq!(stats.files + stats.failed.len() as u64, 5);
        assert!(stats.failed.len() <= 1, "{:?}", stats.failed);
        assert!(stats.failed.is_empty() || !report.is_clean(), "byte {at}");
        for f in &report.findings {
            assert!(
                f.segment == 1 && f.offset as usize <= at + 1500,
                "{f:?} for byte {at}"
            );
        }
        let left = std::fs::read_dir(to.path()).unwrap().count();
        assert_eq!(left as u64, stats.files, "no half file under any name");
    }
    std::fs::write(&segment, &whole[..whole.len() - 700]).unwrap();
    assert!(
        !verify_source(&site.source(), &mut |_| ())
            .unwrap()
            .is_clean()
    );
    drop(site.dir);
}

#[test]
fn verification_beside_a_writer_finds_nothing() {
    let site = Site::new(false);
    let (ear, mut maker) = (Ear::default(), Maker::new());
    let source = site.open(&ear);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for i in 0..2000 {
                let node = maker.node();
                let ops = [
                    set(node, file_meta(9000, 1)),
                    link(NodeId::ROOT, format!("f{i}"), node),
                    write(node, 0, 0, 0, 9000),
                ];
                let batch = maker.batch(&ops, &[Rng(i).bytes(9000)]);
                batch.into_iter().for_each(|r| source.submit(r).unwrap());
                let seq = maker.seq;
                ear.wait(|e| *e == Event::Durable(seq));
            }
            source.close().unwrap();
        });
        let mut verified = 0;
        while !writer.is_finished() {
            let report = verify_source(&site.source(), &mut |_| ()).unwrap();
            assert!(report.is_clean(), "{:?}", report.findings);
            verified += 1;
        }
        assert!(verified > 3);
    });
    let report = verify_source(&site.source(), &mut |_| ()).unwrap();
    assert!(report.is_clean() && report.batches == 2000);
}

#[test]
fn a_torn_end_is_no_finding_but_zeros_in_an_earlier_segment_are() {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("log")).unwrap();
    let (mut log, _) = LogWriter::open_sized(&dir.path().join("log"), BatchSeq(0), 600).unwrap();
    let mut maker = Maker::new();
    for _ in 0..10 {
        let batch = maker.batch(&[], &[b"some content".to_vec()]);
        batch.iter().for_each(|r| {
            log.append(r).unwrap();
        });
    }
    log.sync().unwrap();
    let end = log.committed_end();
    Catalog::open(&dir.path().join("catalog.db"), None)
        .unwrap()
        .replay(&dir.path().join("log"), end)
        .unwrap();
    let append = |segment: u64, bytes: &[u8]| {
        let path = segment_path(&dir.path().join("log"), segment);
        let mut file = std::fs::File::options().append(true).open(path).unwrap();
        file.write_all(bytes).unwrap();
    };
    let findings = || {
        verify_source(dir.path(), &mut |_| ())
            .unwrap()
            .findings
            .into_iter()
            .map(|f| (f.segment, f.what))
            .collect::<Vec<_>>()
    };
    assert!(end.segment > 2);
    assert_eq!(findings(), []);
    // The middle of a record, and the rest of a reserve.
    append(end.segment, &[0xaa; 100]);
    append(end.segment, &[0; 5000]);
    assert_eq!(findings(), []);
    append(1, &[0; 64]);
    assert!(matches!(&findings()[..], [(1, _)]), "{:?}", findings());
}

#[test]
fn a_segment_that_becomes_shorter_while_it_is_read_just_ends() {
    let site = Site::new(false);
    let mut maker = Maker::new();
    site.write(&[maker.batch(&[], &[b"one".to_vec()]), maker.batch(&[], &[])]);
    let path = segment_path(&site.source().join("log"), 1);
    let len = std::fs::metadata(&path).unwrap().len();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(len + 1000).unwrap();
    let mut scan = Scan::open(&site.source().join("log"), 1).unwrap();
    let first = scan.next_found().unwrap();
    assert!(matches!(first, Some(Found::Record { .. })));
    file.set_len(len).unwrap();
    while let Some(found) = scan.next_found().unwrap() {
        assert!(matches!(found, Found::Record { .. }));
    }
    assert_eq!(scan.place().offset, len);
}

#[test]
fn blocks_are_asked_for_many_at_a_time_whatever_lies_between_them() {
    const BLOCK: u32 = 20_000;
    let site = Site::new(false);
    let mut maker = Maker::new();
    let mut batches = Vec::new();
    let mut want = Vec::new();
    // One file of many pieces among those of a few.
    for (name, pieces) in (0..60).map(|i| match i {
        20 => ("large".to_string(), 300),
        _ => (format!("{}{i:02}", if i < 20 { "a" } else { "z" }), 8u32),
    }) {
        let node = maker.node();
        let size = u64::from(pieces) * u64::from(BLOCK);
        let mut ops = vec![
            set(node, file_meta(size, 1)),
            link(NodeId::ROOT, &name, node),
        ];
        let block = |p| -> Vec<u8> {
            (0..BLOCK)
                .map(|b| (b * 7 + p * 13 + node.0 as u32) as u8)
                .collect()
        };
        let blocks: Vec<Vec<u8>> = (0..pieces).map(block).collect();
        ops.extend((0..pieces).map(|p| write(node, u64::from(p * BLOCK), p, 0, BLOCK)));
        batches.push(maker.batch(&ops, &blocks));
        want.push((name, blocks.concat()));
    }
    site.write(&batches);
    let history = History::open(&site.source()).unwrap();
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let ask = |r: Request| {
        let blocks = usize::from(matches!(r, Request::Blocks(_)));
        asked.fetch_add(blocks, std::sync::atomic::Ordering::Relaxed);
        Ok(history.answer(&r))
    };
    let to = tempfile::tempdir().unwrap();
    let restore = Restore {
        ask: &ask,
        paths: vec![BytePath::root()],
        at: BatchSeq(60),
        to_dir: to.path().to_owned(),
        overwrite: false,
        dry_run: false,
        progress: None,
    };
    assert_eq!(restore.run().unwrap().failed, []);
    for (name, content) in want {
        assert!(
            std::fs::read(to.path().join(&name)).unwrap() == content,
            "{name}"
        );
    }
    let asked = asked.into_inner();
    assert!(asked <= 40, "asked {asked} times for 772 blocks");
}

const MIB: u32 = 1 << 20;
const EXT4: [&str; 3] = ["/sbin/mkfs.ext4", "-q", "-F"];

/// Pieces of one file: where each goes, and its bytes. A hole in the middle, a run of small ones with gaps between them, sizes
/// that are no multiple of anything.
fn large_content(rng: &mut Rng) -> Vec<(u64, Vec<u8>)> {
    const MIB: u64 = 1 << 20;
    let mut pieces: Vec<(u64, Vec<u8>)> = Vec::new();
    pieces.extend((0..20).map(|i| (i * MIB, rng.bytes(MIB as usize))));
    pieces.push((20 * MIB, rng.bytes(1000)));
    pieces.extend((0..300).map(|i| (25 * MIB + i * 5000, rng.bytes(3000))));
    pieces.push((30 * MIB + 77, rng.bytes(900_000)));
    let next = 30 * MIB + 77 + 900_000;
    pieces.extend((0..12).map(|i| (next + i * MIB, rng.bytes(MIB as usize))));
    pieces
}

#[test]
fn a_large_file_is_restored_byte_for_byte_and_only_where_its_content_is_whole() {
    const SIZE: u64 = (48 << 20) + 5;
    let site = Site::new(false);
    let (mut maker, mut rng) = (Maker::new(), Rng(11));
    let pieces = large_content(&mut rng);
    let mut want = vec![0; SIZE as usize];
    let node = maker.node();
    let mut ops = vec![
        set(node, file_meta(SIZE, 1)),
        link(NodeId::ROOT, "large", node),
    ];
    for (i, (offset, bytes)) in pieces.iter().enumerate() {
        want[*offset as usize..][..bytes.len()].copy_from_slice(bytes);
        ops.push(write(node, *offset, i as u32, 0, bytes.len() as u32));
    }
    let blocks: Vec<Vec<u8>> = pieces.into_iter().map(|(_, bytes)| bytes).collect();
    site.write(&[maker.batch(&ops, &blocks)]);
    let history = History::open(&site.source()).unwrap();
    let to = || tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();

    let whole = to();
    let stats = restore(&history, 1, whole.path());
    let content: usize = blocks.iter().map(Vec::len).sum();
    assert_eq!((stats.files, stats.bytes), (1, content as u64));
    let path = whole.path().join("large");
    let file = std::fs::File::open(&path).unwrap();
    // Most of it has gone past the cache.
    if farwrite_fs::overwrites_in_place(&file) {
        assert!(!farwrite_fs::is_cached(&file, 5 << 20));
        assert!(!farwrite_fs::is_cached(&file, 35 << 20));
    }
    assert!(std::fs::read(&path).unwrap() == want);
    let runs = farwrite_fs::data_segments(&file, SIZE).unwrap();
    let run = |at: u64| runs.iter().rfind(|s| s.offset <= at).unwrap();
    assert!(run(22 << 20).hole && !run(10 << 20).hole, "{runs:?}");

    // One bit in the middle of it.
    let segment = site.source().join("log/00000001.seg");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[15 << 20] ^= 1;
    std::fs::write(&segment, &bytes).unwrap();
    let damaged = to();
    let ask = |r: Request| Ok(history.answer(&r));
    let again = Restore {
        ask: &ask,
        paths: vec![BytePath::root()],
        at: BatchSeq(1),
        to_dir: damaged.path().to_owned(),
        overwrite: false,
        dry_run: false,
        progress: None,
    };
    let stats = again.run().unwrap();
    assert_eq!((stats.files, stats.failed.len()), (0, 1));
    assert!(stats.failed[0].1.contains("content damaged at byte"));
    assert_eq!(std::fs::read_dir(damaged.path()).unwrap().count(), 0);
}

/// A vault that is not trusted must not choose the name under which something is written.
#[test]
fn what_is_restored_has_the_name_that_was_asked_for() {
    let site = Site::new(false);
    let mut maker = Maker::new();
    let node = maker.node();
    let ops = [
        set(node, file_meta(5, 1)),
        write(node, 0, 0, 0, 5),
        link(NodeId::ROOT, "report", node),
    ];
    site.write(&[maker.batch(&ops, &[b"bytes".to_vec()])]);
    let history = History::open(&site.source()).unwrap();
    let to = tempfile::tempdir().unwrap();
    std::fs::write(to.path().join(".bashrc"), "mine").unwrap();
    for (other, fails) in [
        (Some(name(".bashrc")), true),
        (None, true),
        (Some(name("report")), false),
    ] {
        let ask = |r: Request| {
            let mut answer = history.answer(&r);
            if let Response::Stat(Some(entry)) = &mut answer {
                entry.name.clone_from(&other);
            }
            Ok(answer)
        };
        let restore = Restore {
            ask: &ask,
            paths: vec![BytePath::new("/report").unwrap()],
            at: BatchSeq(1),
            to_dir: to.path().to_owned(),
            overwrite: true,
            dry_run: false,
            progress: None,
        };
        let done = restore.run();
        assert_eq!(
            matches!(done, Err(RestoreError::Answer(_))),
            fails,
            "{other:?}: {done:?}"
        );
    }
    assert_eq!(std::fs::read(to.path().join(".bashrc")).unwrap(), b"mine");
    assert_eq!(std::fs::read(to.path().join("report")).unwrap(), b"bytes");
}

/// A disk that is full ends the restore, whether its blocks are set aside first or one of several writers finds it so, and
/// nothing half stands under any name.
#[test]
fn a_large_file_that_does_not_fit_ends_the_restore() {
    for (len, every) in [(MIB, MIB), (100 << 10, 104 << 10)] {
        let count = (40 << 20) / every;
        let site = with_large_file(count, len, every, |i| vec![i as u8; len as usize]);
        let disk = Disk::mount(&EXT4, 24 << 20);
        let history = History::open(&site.source()).unwrap();
        let ask = |r: Request| Ok(history.answer(&r));
        let to = disk.at().join("restored");
        let restore = Restore {
            ask: &ask,
            paths: vec![BytePath::root()],
            at: BatchSeq(1),
            to_dir: to.clone(),
            overwrite: false,
            dry_run: false,
            progress: None,
        };
        let done = restore.run();
        assert!(matches!(done, Err(RestoreError::Io { .. })), "{done:?}");
        assert_eq!(std::fs::read_dir(&to).unwrap().count(), 0);
    }
}

/// A source with one file, `large`, of so many pieces of `len` bytes, `every` bytes from each other.
fn with_large_file(count: u32, len: u32, every: u32, block: impl Fn(u32) -> Vec<u8>) -> Site {
    let site = Site::new(false);
    let mut maker = Maker::new();
    let node = maker.node();
    let mut ops = vec![
        set(node, file_meta(u64::from(count) * u64::from(every), 1)),
        link(NodeId::ROOT, "large", node),
    ];
    ops.extend((0..count).map(|i| write(node, u64::from(i * every), i, 0, len)));
    let blocks: Vec<Vec<u8>> = (0..count).map(block).collect();
    site.write(&[maker.batch(&ops, &blocks)]);
    site
}

#[test]
fn a_large_file_is_on_the_disk_and_not_in_memory_once_it_is_restored() {
    let mut rng = Rng(12);
    let content = rng.bytes(40 << 20);
    let site = with_large_file(40, MIB, MIB, |i| {
        content[i as usize * MIB as usize..][..MIB as usize].to_vec()
    });
    let history = History::open(&site.source()).unwrap();
    for mkfs in [&EXT4[..], &["/sbin/mkfs.btrfs", "-q"]] {
        let disk = Disk::mount(mkfs, 256 << 20);
        let restored = disk.at().join("restored");
        restore(&history, 1, &restored);
        let file = std::fs::File::open(restored.join("large")).unwrap();
        assert!(
            !(0..40).any(|i| farwrite_fs::is_cached(&file, i * u64::from(MIB))),
            "{mkfs:?}"
        );
        // The directory and the name go there when the system likes.
        rustix::fs::fsync(std::fs::File::open(&restored).unwrap()).unwrap();
        rustix::fs::fsync(std::fs::File::open(disk.at()).unwrap()).unwrap();
        let later = disk.after_power_cut();
        let there = std::fs::read(later.at().join("restored/large")).unwrap();
        assert!(there == content, "{mkfs:?}");
    }
}

#[test]
fn an_extent_that_no_block_can_hold_fails_its_file_only() {
    let site = with_large_file(40, MIB, MIB, |i| vec![i as u8; MIB as usize]);
    let history = History::open(&site.source()).unwrap();
    let ask = |r: Request| {
        let mut answer = history.answer(&r);
        match &mut answer {
            Response::Stat(Some(entry)) => entry.meta.size = 1 << 60,
            Response::Extents { extents, .. } => extents.last_mut().unwrap().len = 1 << 59,
            _ => {}
        }
        Ok(answer)
    };
    let to = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let restore = Restore {
        ask: &ask,
        paths: vec![BytePath::new("/large").unwrap()],
        at: BatchSeq(1),
        to_dir: to.path().to_owned(),
        overwrite: false,
        dry_run: false,
        progress: None,
    };
    let stats = restore.run().unwrap();
    assert_eq!((stats.files, stats.failed.len()), (0, 1), "{stats:?}");
    assert_eq!(std::fs::read_dir(to.path()).unwrap().count(), 0);
}
