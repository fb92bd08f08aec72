//! The catalog against the oracle: at every batch, rebuilt, applied twice, and under rules broken on purpose.

use crate::common::model::{Chaos, Leaf, Tree};
use crate::common::*;
use farwrite_core::{BatchSeq, Kind, NodeId, Op, Record};
use farwrite_vault::catalog::{Catalog, CatalogError, View};
use farwrite_vault::segment::*;
use std::path::Path;

pub fn tree_of(view: View<'_>, blocks: &mut BlockReader) -> Tree {
    let mut out = Tree::new();
    let mut todo = vec![(NodeId::ROOT, Vec::new())];
    while let Some((dir, path)) = todo.pop() {
        let (mut after, mut entries) = (None, vec![]);
        loop {
            let page = view.list(dir, after.as_ref(), 3).unwrap();
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            entries.extend(page);
        }
        for (n, node) in entries {
            let mut path: Vec<u8> = path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(n.as_bytes());
            assert_eq!(view.lookup(dir, &n).unwrap(), Some(node));
            assert!(view.names_of(node, 99).unwrap().contains(&(dir, n)));
            let meta = view.node(node).unwrap().expect("a named node exists").meta;
            let mut content = vec![0; meta.size as usize];
            for x in view.extents(node, 0, usize::MAX >> 1).unwrap() {
                let (place, _) = view.block(x.block).unwrap().unwrap();
                let bytes = blocks.read(place).unwrap();
                content[x.offset as usize..(x.offset + x.len) as usize].copy_from_slice(
                    &bytes[x.block_offset as usize..x.block_offset as usize + x.len as usize],
                );
            }
            if meta.kind == Kind::Dir {
                todo.push((node, path.clone()));
            }
            out.insert(
                path,
                Leaf {
                    node,
                    meta,
                    content,
                },
            );
        }
    }
    out
}

fn log_of(dir: &Path, batches: &[Vec<Record>]) -> LogWriter {
    let (mut log, _) = LogWriter::open_sized(dir, BatchSeq(0), 100_000).unwrap();
    for r in batches.iter().flatten() {
        log.append(r).unwrap();
    }
    log.sync().unwrap();
    log
}

pub fn first_difference(a: &Tree, b: &Tree) -> Option<String> {
    let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
    keys.into_iter().find(|k| a.get(*k) != b.get(*k)).map(|k| {
        let show = |t: &Tree| t.get(k).map(|l| (l.node, l.meta.clone(), l.content.len()));
        format!(
            "{:?}: {:?} / {:?}",
            farwrite_core::path::lossy(k),
            show(a),
            show(b)
        )
    })
}

#[test]
fn batches_that_may_not_stay_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut chaos = Chaos::new(77);
    let (mut batches, mut trees) = (vec![], vec![Tree::new()]);
    for _ in 0..30 {
        batches.push(chaos.batch());
        trees.push(chaos.model.tree());
    }
    let log = log_of(dir.path(), &batches);
    let mut catalog = Catalog::open(&dir.path().join("catalog.db"), log.last_commit()).unwrap();
    let mut blocks = BlockReader::new(dir.path());
    let mut reader = BatchReader::open(dir.path(), None).unwrap();
    while let Some(batch) = reader.next_batch(log.committed_end()).unwrap() {
        let before = catalog.applied();
        let mut asked = 0;
        let refused = catalog.apply_if(std::slice::from_ref(&batch), &mut || {
            asked += 1;
            false
        });
        assert!(refused.unwrap().is_none());
        assert_eq!((asked, catalog.applied()), (1, before));
        let found = tree_of(catalog.view(before), &mut blocks);
        assert_eq!(first_difference(&found, &trees[before.0 as usize]), None);
        // As if they had never been tried.
        catalog.apply(&[batch]).unwrap();
        let found = tree_of(catalog.view(catalog.applied()), &mut blocks);
        let expected = &trees[catalog.applied().0 as usize];
        assert_eq!(first_difference(&found, expected), None);
    }
    assert_eq!(catalog.applied(), BatchSeq(30));
}

#[test]
fn the_tree_at_every_batch_is_the_oracles() {
    for seed in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let mut chaos = Chaos::new(seed);
        let (mut batches, mut trees) = (vec![], vec![Tree::new()]);
        for _ in 0..60 {
            batches.push(chaos.batch());
            trees.push(chaos.model.tree());
        }
        let log = log_of(dir.path(), &batches);
        let db = dir.path().join("catalog.db");
        let mut catalog = Catalog::open(&db, log.last_commit()).unwrap();
        catalog
            .replay(dir.path(), log.committed_end())
            .unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let mut blocks = BlockReader::new(dir.path());
        for (at, tree) in trees.iter().enumerate() {
            let found = tree_of(catalog.view(BatchSeq(at as u64)), &mut blocks);
            assert_eq!(
                first_difference(&found, tree),
                None,
                "seed {seed}, batch {at}"
            );
        }
        // Applied again: nothing changes.
        let mut reader = BatchReader::open(dir.path(), None).unwrap();
        while let Some(b) = reader.next_batch(log.committed_end()).unwrap() {
            assert!(catalog.apply(&[b]).unwrap().delta.names.is_empty());
        }
        assert_eq!(catalog.applied(), BatchSeq(60));
        drop(catalog);
        // Damaged, it is set aside and made anew.
        std::fs::write(
            &db,
            b"this is no database, nor was it ever one, whatever its name says",
        )
        .unwrap();
        let mut catalog = Catalog::open(&db, log.last_commit()).unwrap();
        assert!(
            catalog
                .set_aside()
                .unwrap()
                .ends_with("catalog.db.damaged-1")
        );
        catalog.replay(dir.path(), log.committed_end()).unwrap();
        for (at, tree) in trees.iter().enumerate() {
            let found = tree_of(catalog.view(BatchSeq(at as u64)), &mut blocks);
            assert_eq!(
                first_difference(&found, tree),
                None,
                "rebuilt: seed {seed}, batch {at}"
            );
        }
    }
}

#[test]
fn a_catalog_of_another_log_or_ahead_of_its_log_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let mut chaos = Chaos::new(5);
    let batches: Vec<_> = (0..3).map(|_| chaos.batch()).collect();
    let log = log_of(dir.path(), &batches);
    let db = dir.path().join("catalog.db");
    let mut catalog = Catalog::open(&db, log.last_commit()).unwrap();
    catalog.replay(dir.path(), log.committed_end()).unwrap();
    catalog.close().unwrap();
    let mut other = log.last_commit().unwrap().clone();
    other.chain[0] ^= 1;
    assert_eq!(
        Catalog::open(&db, Some(&other)).unwrap().applied(),
        BatchSeq(0)
    );
    let mut catalog = Catalog::open(&db, log.last_commit()).unwrap();
    catalog.replay(dir.path(), log.committed_end()).unwrap();
    drop(catalog);
    other.seq = BatchSeq(2);
    let catalog = Catalog::open(&db, Some(&other)).unwrap();
    assert_eq!(catalog.applied(), BatchSeq(0));
    assert!(catalog.set_aside().is_some());
}

/// A disk without room for what SQLite keeps beside the database, say, or a process without descriptors.
#[test]
fn a_catalog_that_cannot_be_opened_now_is_not_thrown_away() {
    let dir = tempfile::tempdir().unwrap();
    let batches = [Maker::new().batch(&[], &[])];
    let log = log_of(dir.path(), &batches);
    let db = dir.path().join("catalog.db");
    let mut catalog = Catalog::open(&db, log.last_commit()).unwrap();
    catalog.replay(dir.path(), log.committed_end()).unwrap();
    drop(catalog);
    let before = std::fs::read(&db).unwrap();
    // Where its log would be.
    let wal = dir.path().join("catalog.db-wal");
    let _ = std::fs::remove_file(&wal);
    std::fs::create_dir(&wal).unwrap();
    let opened = Catalog::open(&db, log.last_commit());
    assert!(matches!(opened, Err(CatalogError::Sqlite { .. })));
    assert!(std::fs::read(&db).unwrap() == before);
    std::fs::remove_dir(&wal).unwrap();
    let catalog = Catalog::open(&db, log.last_commit()).unwrap();
    assert_eq!(
        (catalog.set_aside(), catalog.applied()),
        (None, BatchSeq(1))
    );
}

#[test]
fn a_batch_that_breaks_the_tree_is_refused_whole() {
    let (d1, d2, f) = (NodeId(2), NodeId(3), NodeId(4));
    let good = vec![
        set(d1, dir_meta(1)),
        set(d2, dir_meta(1)),
        set(f, file_meta(10, 1)),
        link(NodeId::ROOT, "d1", d1),
        link(d1, "d2", d2),
        link(d2, "f", f),
    ];
    let hostile: Vec<(&str, Vec<Op>)> = vec![
        ("no node", vec![link(d1, "x", NodeId(99))]),
        ("no node", vec![link(NodeId(99), "x", f)]),
        ("not a directory", vec![link(f, "x", d2)]),
        ("two names", vec![link(NodeId::ROOT, "x", d2)]),
        (
            "below itself",
            vec![link(d2, "x", d1), unlink(NodeId::ROOT, "d1")],
        ),
        (
            "below itself",
            vec![link(d1, "self", d1), unlink(NodeId::ROOT, "d1")],
        ),
        ("another kind", vec![set(f, dir_meta(1))]),
        (
            "not a regular file",
            vec![Op::Hole {
                node: d1,
                offset: 0,
                len: 1,
            }],
        ),
        (
            "no node",
            vec![Op::Copy {
                node: f,
                offset: 0,
                len: 1,
                from: NodeId(99),
                from_offset: 0,
            }],
        ),
        ("has a name", vec![Op::Drop { node: f }]),
        ("not the first", vec![unlink(NodeId::ROOT, "d1"), Op::Clear]),
    ];
    for (why, ops) in hostile {
        let dir = tempfile::tempdir().unwrap();
        let mut maker = Maker::new();
        let mut with_good = vec![link(d1, "before", f)];
        with_good.extend(ops);
        let batches = [
            maker.batch(&good, &[]),
            maker.batch(&with_good, &[]),
            maker.batch(&[], &[]),
        ];
        let log = log_of(dir.path(), &batches);
        let mut catalog = Catalog::open(&dir.path().join("c.db"), log.last_commit()).unwrap();
        match catalog.replay(dir.path(), log.committed_end()) {
            Err(CatalogError::Violation(v)) => {
                assert_eq!(v.seq, BatchSeq(2));
                assert!(v.to_string().contains(why), "{v} / {why}");
            }
            other => panic!("{why}: {other:?}"),
        }
        assert_eq!(catalog.applied(), BatchSeq(1));
        assert_eq!(
            catalog
                .view(BatchSeq(2))
                .lookup(d1, &name("before"))
                .unwrap(),
            None,
            "{why}"
        );
    }
}

#[test]
fn a_range_of_very_many_extents_is_taken_away_whole() {
    const PIECES: u64 = 10_000;
    let dir = tempfile::tempdir().unwrap();
    let mut maker = Maker::new();
    let file = maker.node();
    let mut ops = vec![
        set(file, file_meta(2 * PIECES, 1)),
        link(NodeId::ROOT, "file", file),
    ];
    // With a gap behind each byte, so that none joins the one before.
    ops.extend((0..PIECES).map(|i| write(file, 2 * i, 0, 0, 1)));
    let hole = Op::Hole {
        node: file,
        offset: 1,
        len: 2 * PIECES - 3,
    };
    let batches = [maker.batch(&ops, &[vec![7]]), maker.batch(&[hole], &[])];
    let log = log_of(dir.path(), &batches);
    let mut catalog = Catalog::open(&dir.path().join("c.db"), log.last_commit()).unwrap();
    catalog.replay(dir.path(), log.committed_end()).unwrap();
    let at = |seq| -> Vec<u64> {
        let extents = catalog
            .view(BatchSeq(seq))
            .extents(file, 0, usize::MAX >> 1);
        extents.unwrap().iter().map(|x| x.offset).collect()
    };
    assert_eq!(at(1), (0..PIECES).map(|i| 2 * i).collect::<Vec<_>>());
    assert_eq!(at(2), [0, 2 * PIECES - 2]);
}

#[test]
fn a_clear_begins_a_new_tree_and_keeps_the_old_history() {
    let dir = tempfile::tempdir().unwrap();
    let mut chaos = Chaos::new(8);
    let mut batches: Vec<_> = (0..10).map(|_| chaos.batch()).collect();
    let before = chaos.model.tree();
    assert!(!before.is_empty());
    let (d, f) = (NodeId(2), NodeId(3));
    chaos.maker.epoch = farwrite_core::Epoch([9; 16]);
    let ops = [
        Op::Clear,
        set(d, dir_meta(1)),
        link(NodeId::ROOT, "n", d),
        set(f, file_meta(3, 1)),
        link(d, "f", f),
        write(f, 0, 0, 0, 3),
    ];
    batches.push(chaos.maker.batch(&ops, &[b"abc".to_vec()]));
    let log = log_of(dir.path(), &batches);
    let mut catalog = Catalog::open(&dir.path().join("c.db"), log.last_commit()).unwrap();
    catalog.replay(dir.path(), log.committed_end()).unwrap();
    let mut blocks = BlockReader::new(dir.path());
    let found = tree_of(catalog.view(BatchSeq(10)), &mut blocks);
    assert_eq!(first_difference(&found, &before), None);
    let now = tree_of(catalog.view(BatchSeq(11)), &mut blocks);
    assert_eq!(
        now.keys().map(|k| &k[..]).collect::<Vec<_>>(),
        [&b"n"[..], b"n/f"]
    );
    assert_eq!(now[&b"n/f"[..]].content, b"abc");
}
