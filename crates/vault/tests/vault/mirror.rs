//! The mirror against the oracle: online, reconciled from any state, and in the face of planted entries.

use crate::catalog::first_difference;
use crate::common::model::{Chaos, Leaf, Model, Tree};
use crate::common::*;
use farwrite_core::meta::Xattr;
use farwrite_core::{BatchSeq, Kind, NodeId, Op, Record};
use farwrite_fs::{Dir, read_meta};
use farwrite_vault::catalog::{Catalog, Content};
use farwrite_vault::mirror::Mirror;
use farwrite_vault::segment::*;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

/// A tree on the disk, with inode numbers where the oracle has nodes.
pub fn tree_on_disk(root: &Path) -> Tree {
    let mut out = Tree::new();
    let mut todo = vec![(Dir::open(root).unwrap(), Vec::new())];
    while let Some((dir, path)) = todo.pop() {
        for e in dir.list().unwrap() {
            let mut path: Vec<u8> = path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(e.name.as_bytes());
            let stat = dir.stat(&e.name).unwrap();
            let meta = read_meta(&dir, &e.name, &stat).unwrap();
            let mut content = vec![];
            if meta.kind == Kind::File {
                let mut f = dir.open_file(&e.name, farwrite_fs::OpenMode::Read).unwrap();
                f.read_to_end(&mut content).unwrap();
            } else if meta.kind == Kind::Dir {
                todo.push((dir.open_dir(&e.name).unwrap(), path.clone()));
            }
            let node = NodeId(stat.id.ino);
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

/// Replaces node ids by the first path of the node, so that trees compare with their hard links.
pub fn by_first_path(tree: &Tree) -> Tree {
    let mut first: BTreeMap<NodeId, u64> = BTreeMap::new();
    let mut out = tree.clone();
    for (i, leaf) in out.values_mut().enumerate() {
        leaf.node = NodeId(*first.entry(leaf.node).or_insert(i as u64));
    }
    out
}

pub fn assert_same(disk: &Path, model: &Tree, what: &str) {
    let found = by_first_path(&tree_on_disk(disk));
    assert_eq!(
        first_difference(&found, &by_first_path(model)),
        None,
        "{what}"
    );
}

/// Log, catalog and mirror without threads.
pub struct Bench {
    pub dir: tempfile::TempDir,
    pub log: LogWriter,
    pub catalog: Catalog,
    pub mirror: Mirror,
    pub shown: BatchSeq,
    /// New files of which a delta knew the only piece.
    pub pieces: u64,
}

impl Bench {
    pub fn new() -> Self {
        Bench::within(tempfile::tempdir().unwrap())
    }

    pub fn within(dir: tempfile::TempDir) -> Self {
        std::fs::create_dir(dir.path().join("log")).unwrap();
        let (log, _) = LogWriter::open(&dir.path().join("log"), BatchSeq(0)).unwrap();
        Bench {
            catalog: Catalog::open(&dir.path().join("catalog.db"), None).unwrap(),
            mirror: Mirror::open(dir.path()).unwrap(),
            log,
            dir,
            shown: BatchSeq(0),
            pieces: 0,
        }
    }

    /// Applies batches to the log and, as one step, to catalog and mirror.
    pub fn feed(&mut self, batches: &[Vec<Record>]) {
        let delta = self.feed_catalog(batches);
        self.mirror
            .apply(&self.catalog, self.shown, &delta)
            .unwrap();
        self.shown = self.catalog.applied();
    }

    pub fn feed_catalog(&mut self, batches: &[Vec<Record>]) -> farwrite_vault::catalog::Delta {
        for r in batches.iter().flatten() {
            self.log.append(r).unwrap();
        }
        self.log.sync().unwrap();
        let mut reader = self
            .catalog
            .log_reader(&self.dir.path().join("log"))
            .unwrap();
        let mut logged = vec![];
        while let Some(b) = reader.next_batch(self.log.committed_end()).unwrap() {
            logged.push(b);
        }
        let applied = self.catalog.apply(&logged).unwrap();
        assert_eq!(applied.violation, None);
        let view = self.catalog.view(self.catalog.applied());
        for (node, made) in &applied.delta.made {
            let row = view.node(*node).unwrap();
            assert_eq!(row.map(|r| r.meta).as_ref(), Some(&made.meta), "{node}");
            let extents = view.extents(*node, 0, 3).unwrap();
            match made.content {
                Content::Hole => assert_eq!(extents, [], "{node}"),
                Content::Piece(x, place) => {
                    assert_eq!(extents, [x], "{node}");
                    let block = view.block(x.block).unwrap();
                    assert_eq!(block.map(|(place, _)| place), Some(place), "{node}");
                    self.pieces += 1;
                }
                Content::Unknown => {}
            }
        }
        for (node, moved) in &applied.delta.moved {
            let place = (moved.parent, moved.name.clone());
            assert_eq!(view.names_of(*node, 2).unwrap(), [place], "{node}");
            let row = view.node(*node).unwrap();
            assert_eq!(row.map(|r| r.meta.kind), Some(moved.kind), "{node}");
        }
        for (node, dir) in &applied.delta.ended {
            assert_eq!(view.node(*node).unwrap(), None, "{node}");
            assert_eq!(view.names_of(*node, 1).unwrap(), [], "{node}");
            let was = self.catalog.view(self.shown).node(*node).unwrap();
            let was = was.map(|r| r.meta.kind == Kind::Dir);
            assert!(was.is_none_or(|was| was == *dir), "{node}");
        }
        applied.delta
    }

    pub fn tree(&self) -> std::path::PathBuf {
        self.mirror.path().to_owned()
    }
}

#[test]
fn the_mirror_is_the_oracles_tree_after_every_step() {
    let (mut moved, mut pieces) = (0, 0);
    for seed in 100..130 {
        let mut chaos = Chaos::new(seed);
        let mut bench = Bench::new();
        if seed % 2 == 0 {
            // Every new file is made by another thread.
            bench.mirror.set_worth_writers(1);
        }
        for step in 0..60 {
            // Small steps, and such as a vault makes that is behind.
            let n = 1 + chaos.rng.next(if seed % 3 == 0 { 14 } else { 3 });
            let batches: Vec<_> = (0..n).map(|_| chaos.batch()).collect();
            bench.feed(&batches);
            assert_same(
                &bench.tree(),
                &chaos.model.tree(),
                &format!("seed {seed}, step {step}"),
            );
        }
        let stats = bench.mirror.stats();
        assert_eq!(stats.reconciles, 0, "seed {seed}: {stats:?}");
        pieces += bench.pieces;
        assert_eq!(
            std::fs::read_dir(bench.dir.path().join("hold"))
                .unwrap()
                .count(),
            0
        );
        assert!(stats.files_made > 20, "{stats:?}");
        moved += stats.moved;
    }
    assert!(moved > 300, "{moved} moved");
    assert!(pieces > 20, "{pieces} known");
}

#[test]
fn a_file_whose_end_is_damaged_in_the_log_keeps_its_size() {
    for worth in [1, usize::MAX] {
        let (mut maker, mut bench) = (Maker::new(), Bench::new());
        bench.mirror.set_worth_writers(worth);
        let mut rng = Rng(3);
        let (node, blocks) = (maker.node(), [rng.bytes(5000), rng.bytes(3000)]);
        let only = maker.node();
        let ops = [
            set(node, file_meta(8000, 1)),
            write(node, 0, 0, 0, 5000),
            write(node, 5000, 1, 0, 3000),
            link(NodeId::ROOT, "f", node),
            set(only, file_meta(3500, 1)),
            write(only, 0, 1, 0, 3000),
            link(NodeId::ROOT, "only", only),
        ];
        let delta = bench.feed_catalog(&[maker.batch(&ops, &blocks)]);
        let segment = bench.dir.path().join("log/00000001.seg");
        let mut log = std::fs::read(&segment).unwrap();
        let at = log
            .windows(100)
            .position(|w| w == &blocks[1][..100])
            .unwrap();
        log[at] ^= 1;
        std::fs::write(&segment, log).unwrap();
        bench
            .mirror
            .apply(&bench.catalog, BatchSeq(0), &delta)
            .unwrap();
        let file = std::fs::read(bench.tree().join("f")).unwrap();
        assert_eq!((file.len(), &file[..5000]), (8000, &blocks[0][..]));
        let file = std::fs::read(bench.tree().join("only")).unwrap();
        assert_eq!(file, [0; 3500]);
        assert_eq!((bench.pieces, bench.mirror.stats().damaged), (1, 2));
        bench.mirror.reconcile(&bench.catalog, BatchSeq(1)).unwrap();
        assert_eq!(bench.mirror.stats().repaired, 0, "nothing to repair");
    }
}

/// What is known of a new file's content does not outlive a change of it.
#[test]
fn a_new_file_that_changes_again_in_the_same_step_has_its_last_content() {
    for writers in [1, usize::MAX] {
        let (mut maker, mut bench) = (Maker::new(), Bench::new());
        bench.mirror.set_worth_writers(writers);
        let blocks = [Rng(1).bytes(4096), Rng(2).bytes(4096)];
        let nodes: Vec<NodeId> = (0..10).map(|_| maker.node()).collect();
        let mut first = Vec::new();
        for (i, node) in nodes.iter().enumerate() {
            first.extend([
                set(*node, file_meta(4096, 1)),
                write(*node, 0, 0, 0, 4096),
                link(NodeId::ROOT, format!("f{i}"), *node),
            ]);
        }
        let size = |i: usize, size| set(nodes[i], file_meta(size, 2));
        let change = |from: usize| {
            vec![
                // Cut off, and longer again: a hole is there now.
                size(from, 100),
                size(from, 3000),
                write(nodes[from + 1], 50, 1, 7, 90),
                Op::Hole {
                    node: nodes[from + 2],
                    offset: 1024,
                    len: 1024,
                },
                Op::Copy {
                    node: nodes[from + 3],
                    offset: 10,
                    len: 20,
                    from: nodes[from + 4],
                    from_offset: 2000,
                },
            ]
        };
        let [beyond, again, unnamed] = [(); 3].map(|()| maker.node());
        let others = |written| {
            vec![
                // More was written than its size is at the end, as the model has it.
                set(beyond, file_meta(100, 1)),
                write(beyond, 0, 0, 0, written),
                link(NodeId::ROOT, "beyond", beyond),
                // A number that is used again in the batch.
                set(again, file_meta(4096, 1)),
                write(again, 0, 0, 0, 4096),
                Op::Drop { node: again },
                set(again, file_meta(3000, 1)),
                link(NodeId::ROOT, "again", again),
                // Named by the next batch.
                set(unnamed, file_meta(4096, 1)),
                write(unnamed, 0, 1, 0, 4096),
            ]
        };
        // In the batch that makes it, and in the one after that.
        let batches = |written| {
            [
                [first.clone(), others(written), change(0)].concat(),
                [change(5), vec![link(NodeId::ROOT, "unnamed", unnamed)]].concat(),
            ]
        };
        let mut model = Model::default();
        for ops in batches(100) {
            model.apply(&ops, &blocks);
        }
        let records = batches(4096).map(|ops| maker.batch(&ops, &blocks));
        bench.feed(&records);
        assert_same(&bench.tree(), &model.tree(), "changed again");
        let stats = bench.mirror.stats();
        assert_eq!((stats.reconciles, stats.damaged), (0, 0), "{stats:?}");
        // f4 and f9 are only read from; and what has no name at first.
        assert_eq!(bench.pieces, 3);
    }
}

#[test]
fn many_new_files_are_made_side_by_side_and_a_foreign_one_among_them_is_noticed() {
    let (mut maker, mut bench) = (Maker::new(), Bench::new());
    let mut rng = Rng(7);
    let block = rng.bytes(4096);
    let mut ops = Vec::new();
    let mut model = Model::default();
    let dirs: Vec<NodeId> = (0..5).map(|_| maker.node()).collect();
    for (i, dir) in dirs.iter().enumerate() {
        ops.extend([
            set(*dir, dir_meta(i as i64)),
            link(NodeId::ROOT, format!("d{i}"), *dir),
        ]);
    }
    for i in 0..700u64 {
        let node = maker.node();
        let len = [0, 1, 700, 4096][(i % 4) as usize];
        // Some with a hole at the end.
        let size = len + [0, 5000][(i % 7 == 3) as usize];
        ops.push(set(node, file_meta(size, i as i64)));
        if len > 0 {
            ops.push(write(node, 0, 0, 4096 - len as u32, len as u32));
        }
        let dir = dirs[rng.next(5) as usize];
        ops.push(link(dir, format!("f{i}"), node));
        if i % 10 == 0 {
            ops.push(link(dirs[rng.next(5) as usize], format!("also{i}"), node));
        }
    }
    let blocks = [block];
    model.apply(&ops, &blocks);
    bench.feed(&[maker.batch(&ops, &blocks)]);
    assert_same(&bench.tree(), &model.tree(), "made");
    let stats = bench.mirror.stats();
    assert_eq!((stats.files_made, stats.reconciles), (700, 0), "{stats:?}");

    // All move to other names, while new ones take their old ones; somebody was there before.
    let names: Vec<_> = model.names.clone().into_iter().collect();
    let mut ops = Vec::new();
    for ((parent, old), node) in names.iter().filter(|((p, _), _)| *p != NodeId::ROOT) {
        let new = maker.node();
        ops.extend([
            link(*parent, [old.as_bytes(), b".1"].concat(), *node),
            set(new, file_meta(8, 5)),
            write(new, 0, 0, 0, 8),
            link(*parent, old.as_bytes(), new),
        ]);
    }
    std::fs::write(bench.tree().join("d3/planted.1"), b"foreign").unwrap();
    let planted = maker.node();
    ops.extend([
        set(planted, file_meta(0, 1)),
        link(dirs[3], "planted.1", planted),
    ]);
    model.apply(&ops, &blocks);
    bench.feed(&[maker.batch(&ops, &blocks)]);
    assert_same(&bench.tree(), &model.tree(), "moved");
    assert_eq!(bench.mirror.stats().reconciles, 1);
}

/// No source does so, but nothing keeps one from it.
#[test]
fn a_node_number_that_is_used_again_in_one_step_is_another_node() {
    let (mut maker, mut bench) = (Maker::new(), Bench::new());
    let mut model = Model::default();
    let blocks = [Rng(9).bytes(100)];
    let node = maker.node();
    let before = [
        set(node, file_meta(100, 1)),
        write(node, 0, 0, 0, 100),
        link(NodeId::ROOT, "a", node),
    ];
    let gone = [unlink(NodeId::ROOT, "a")];
    let again = [
        set(node, file_meta(40, 2)),
        write(node, 0, 0, 50, 40),
        link(NodeId::ROOT, "a", node),
        link(NodeId::ROOT, "b", node),
    ];
    model.apply(&before, &blocks);
    bench.feed(&[maker.batch(&before, &blocks)]);
    model.apply(&gone, &[]);
    model.apply(&again, &blocks);
    let step = [maker.batch(&gone, &[]), maker.batch(&again, &blocks)];
    bench.feed(&step);
    assert_same(&bench.tree(), &model.tree(), "used again");
    let inode = |n| std::fs::metadata(bench.tree().join(n)).unwrap().ino();
    assert_eq!(inode("a"), inode("b"), "two names of one file");
    // Also if the old one was changed in the same step, and the new one has no content of its own where that had some.
    let changed = [set(node, file_meta(40, 3))];
    let gone = [unlink(NodeId::ROOT, "a"), unlink(NodeId::ROOT, "b")];
    let hole = [
        set(node, file_meta(40, 4)),
        write(node, 30, 0, 0, 10),
        link(NodeId::ROOT, "a", node),
    ];
    let steps = [&changed[..], &gone, &hole];
    let batches = steps.map(|ops| {
        model.apply(ops, &blocks);
        maker.batch(ops, &blocks)
    });
    bench.feed(&batches);
    assert_same(&bench.tree(), &model.tree(), "used again after a change");
    // Come and gone within one batch.
    let other = maker.node();
    let made = [set(other, file_meta(0, 1))];
    let drop = || Op::Drop { node: other };
    let twice = [drop(), set(other, file_meta(0, 2)), drop()];
    let steps = [&made[..], &twice].map(|ops| {
        model.apply(ops, &[]);
        maker.batch(ops, &[])
    });
    bench.feed(&steps);
    assert_same(&bench.tree(), &model.tree(), "come and gone");
}

/// Names that are taken away or moved by others than the one who goes through the catalog: what they meet is told.
#[test]
fn a_foreign_change_where_names_go_is_noticed_by_whoever_takes_them_away() {
    let count = 700;
    // What is wrong with one name, once early and once at the end.
    type Spoil = fn(&Path, &str);
    let spoils: [(&str, Spoil); 3] = [
        ("removed", |top, name| {
            std::fs::remove_file(top.join("d").join(name)).unwrap()
        }),
        ("taken", |top, name| {
            std::fs::write(top.join("e").join(name), b"foreign").unwrap()
        }),
        ("a directory", |top, name| {
            let path = top.join("d").join(name);
            std::fs::remove_file(&path).unwrap();
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("in it"), b"foreign").unwrap();
        }),
    ];
    for (what, spoil) in spoils {
        for which in [None, Some(3), Some(count - 1)] {
            let (mut maker, mut bench) = (Maker::new(), Bench::new());
            let mut model = Model::default();
            let (d, e) = (maker.node(), maker.node());
            let mut ops = vec![
                set(d, dir_meta(1)),
                link(NodeId::ROOT, "d", d),
                set(e, dir_meta(2)),
                link(NodeId::ROOT, "e", e),
            ];
            let nodes: Vec<NodeId> = (0..count).map(|_| maker.node()).collect();
            for (i, node) in nodes.iter().enumerate() {
                ops.extend([set(*node, file_meta(0, 3)), link(d, format!("f{i}"), *node)]);
            }
            model.apply(&ops, &[]);
            bench.feed(&[maker.batch(&ops, &[])]);
            if let Some(i) = which {
                spoil(&bench.tree(), &format!("f{i}"));
            }
            // Half go, half move; where the target is to be taken, all move.
            let moves = |i: usize| what == "taken" || i.is_multiple_of(2);
            let mut ops = Vec::new();
            for (i, node) in nodes.iter().enumerate() {
                ops.push(unlink(d, format!("f{i}")));
                if moves(i) {
                    ops.insert(ops.len() - 1, link(e, format!("f{i}"), *node));
                }
            }
            model.apply(&ops, &[]);
            bench.feed(&[maker.batch(&ops, &[])]);
            assert_same(&bench.tree(), &model.tree(), what);
            let stats = bench.mirror.stats();
            assert_eq!(stats.reconciles, which.is_some() as u64, "{what} {which:?}");
            if which.is_none() {
                let moved = (0..count).filter(|i| moves(*i)).count() as u64;
                assert_eq!((stats.moved, stats.removed), (moved, count as u64 - moved));
            }
        }
    }
}

#[test]
fn a_directory_that_gets_its_name_in_a_later_step_has_all_its_attributes() {
    let (mut maker, mut bench) = (Maker::new(), Bench::new());
    let mut model = Model::default();
    let (dir, file) = (maker.node(), maker.node());
    let mut meta = dir_meta(7);
    meta.mode = 0o2751;
    meta.xattrs = vec![Xattr {
        name: b"user.of".to_vec(),
        value: b"mine".to_vec(),
    }];
    let staged = [
        set(dir, meta),
        set(file, file_meta(0, 1)),
        link(dir, "in it", file),
    ];
    let named = [link(NodeId::ROOT, "late", dir)];
    for ops in [&staged[..], &named] {
        model.apply(ops, &[]);
        bench.feed(&[maker.batch(ops, &[])]);
    }
    assert_same(&bench.tree(), &model.tree(), "late");
    assert_eq!(bench.mirror.stats().reconciles, 0);
}

/// Breaks what can be broken in a mirror without changing a file's size and mtime unseen.
fn scramble(root: &Path, rng: &mut Rng) {
    let tree = tree_on_disk(root);
    for (path, leaf) in &tree {
        let p = root.join(std::str::from_utf8(path).unwrap());
        if std::fs::symlink_metadata(&p).is_err() {
            continue;
        }
        match rng.next(12) {
            0 if leaf.meta.kind == Kind::Dir => std::fs::remove_dir_all(&p).unwrap(),
            0 => std::fs::remove_file(&p).unwrap(),
            1 if leaf.meta.kind == Kind::File => std::fs::write(&p, b"scrambled").unwrap(),
            2 if leaf.meta.kind != Kind::Dir => {
                std::fs::remove_file(&p).unwrap();
                std::fs::create_dir_all(p.join("planted/deep")).unwrap();
            }
            3 => {
                let to = p.with_file_name("moved by hand");
                let _ = std::fs::rename(&p, to);
            }
            4 if leaf.meta.kind == Kind::File => {
                std::fs::hard_link(&p, root.join(format!("extra link {}", leaf.node)))
                    .unwrap_or(());
            }
            5 => drop(std::os::unix::fs::lchown(&p, Some(77), Some(77))),
            6 if leaf.meta.kind == Kind::File => {
                let copy = std::fs::read(&p).unwrap();
                std::fs::remove_file(&p).unwrap();
                std::fs::write(&p, copy).unwrap();
            }
            7 if leaf.meta.kind == Kind::Dir => {
                std::fs::rename(&p, p.with_file_name("dir by hand")).unwrap_or(());
                let _ = std::os::unix::fs::symlink("/", &p);
            }
            _ => {}
        }
    }
    std::fs::write(root.join("foreign"), b"x").unwrap();
}

#[test]
fn a_scrambled_mirror_is_reconciled_with_the_catalog() {
    for seed in 200..210 {
        let mut chaos = Chaos::new(seed);
        let mut bench = Bench::new();
        for round in 0..6 {
            let batches: Vec<_> = (0..12).map(|_| chaos.batch()).collect();
            bench.feed(&batches);
            scramble(&bench.tree(), &mut chaos.rng);
            std::fs::write(bench.dir.path().join("hold/17"), b"left over").unwrap();
            bench.mirror.reconcile(&bench.catalog, bench.shown).unwrap();
            assert_same(
                &bench.tree(),
                &chaos.model.tree(),
                &format!("seed {seed}, round {round}"),
            );
            let before = bench.mirror.stats();
            bench.mirror.reconcile(&bench.catalog, bench.shown).unwrap();
            let after = bench.mirror.stats();
            assert_eq!(before.repaired, after.repaired, "nothing left to repair");
            assert_eq!(before.files_made, after.files_made);
        }
    }
}

#[test]
fn a_mirror_from_an_older_batch_or_from_nothing_catches_up() {
    let mut chaos = Chaos::new(300);
    let mut bench = Bench::new();
    bench.feed(&(0..30).map(|_| chaos.batch()).collect::<Vec<_>>());
    let trusted = bench.shown;
    bench.feed_catalog(&(0..30).map(|_| chaos.batch()).collect::<Vec<_>>());
    bench.mirror.reconcile(&bench.catalog, trusted).unwrap();
    assert_same(&bench.tree(), &chaos.model.tree(), "from batch 30");
    std::fs::remove_dir_all(bench.tree()).unwrap();
    bench.mirror = Mirror::open(bench.dir.path()).unwrap();
    bench
        .mirror
        .reconcile(&bench.catalog, bench.catalog.applied())
        .unwrap();
    assert_same(&bench.tree(), &chaos.model.tree(), "from nothing");
}

/// Two directories swap their names, and the crash comes before the mirror's do. The files in them look alike.
#[test]
fn what_is_below_a_directory_that_was_renamed_is_not_taken_for_what_it_looks_like() {
    let (mut maker, mut bench) = (Maker::new(), Bench::new());
    let nodes: Vec<NodeId> = (0..6).map(|_| maker.node()).collect();
    let [a, b, below_a, below_b, f, g] = nodes[..] else {
        unreachable!()
    };
    let ops = [
        set(a, dir_meta(1)),
        set(b, dir_meta(1)),
        set(below_a, dir_meta(1)),
        set(below_b, dir_meta(1)),
        set(f, file_meta(7, 1)),
        set(g, file_meta(7, 1)),
        write(f, 0, 0, 0, 7),
        write(g, 0, 1, 0, 7),
        link(NodeId::ROOT, "X", a),
        link(NodeId::ROOT, "X.new", b),
        link(a, "below", below_a),
        link(b, "below", below_b),
        link(below_a, "version", f),
        link(below_b, "version", g),
    ];
    bench.feed(&[maker.batch(&ops, &[b"4.17.20".to_vec(), b"4.17.21".to_vec()])]);
    let trusted = bench.shown;
    let ops = [
        unlink(NodeId::ROOT, "X"),
        link(NodeId::ROOT, "X.old", a),
        unlink(NodeId::ROOT, "X.new"),
        link(NodeId::ROOT, "X", b),
    ];
    bench.feed_catalog(&[maker.batch(&ops, &[])]);
    bench.mirror.reconcile(&bench.catalog, trusted).unwrap();
    let read = |dir: &str| std::fs::read(bench.tree().join(dir).join("below/version")).unwrap();
    assert_eq!(
        (read("X"), read("X.old")),
        (b"4.17.21".to_vec(), b"4.17.20".to_vec())
    );
}

#[test]
fn exchanges_chains_and_swaps_of_kind_keep_the_inodes() {
    let mut maker = Maker::new();
    let mut bench = Bench::new();
    let n: Vec<NodeId> = (0..6).map(|_| maker.node()).collect();
    let root = NodeId::ROOT;
    let first = [
        set(n[0], dir_meta(1)),
        set(n[1], dir_meta(2)),
        set(n[2], file_meta(1, 3)),
        set(n[3], file_meta(1, 4)),
        link(root, "a", n[0]),
        link(root, "b", n[1]),
        link(n[0], "f", n[2]),
        link(n[1], "f", n[3]),
        write(n[2], 0, 0, 0, 1),
        write(n[3], 0, 0, 1, 1),
    ];
    bench.feed(&[maker.batch(&first, &[b"xy".to_vec()])]);
    let ino = |p: &str| tree_on_disk(&bench.tree())[p.as_bytes()].node;
    let (a, b, fa, fb) = (ino("a"), ino("b"), ino("a/f"), ino("b/f"));
    // Two directories exchanged, their files exchanged with each other across, a new directory in front.
    let cross = [
        link(root, "a", n[1]),
        link(root, "b", n[0]),
        link(n[0], "f", n[3]),
        link(n[1], "f", n[2]),
        set(n[4], dir_meta(9)),
        link(root, "new", n[4]),
        link(n[4], "a", n[1]),
        unlink(root, "a"),
    ];
    bench.feed(&[maker.batch(&cross, &[])]);
    let ino = |p: &str| tree_on_disk(&bench.tree())[p.as_bytes()].node;
    assert_eq!(
        [ino("new/a"), ino("b"), ino("new/a/f"), ino("b/f")],
        [b, a, fa, fb]
    );
    // A file takes a directory's place, and the directory the file's, one level down.
    let swap = [
        link(root, "b", n[3]),
        link(n[4], "f", n[0]),
        unlink(n[0], "f"),
    ];
    bench.feed(&[maker.batch(&swap, &[])]);
    let ino = |p: &str| tree_on_disk(&bench.tree())[p.as_bytes()].node;
    assert_eq!([ino("b"), ino("new/f")], [fb, a]);
    assert_eq!(bench.mirror.stats().reconciles, 0);
}

#[test]
fn a_planted_link_is_never_followed_and_is_repaired() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("f"), b"precious").unwrap();
    let before = tree_on_disk(outside.path());
    let mut maker = Maker::new();
    let mut bench = Bench::new();
    let (d, f) = (maker.node(), maker.node());
    let ops = [
        set(d, dir_meta(1)),
        link(NodeId::ROOT, "d", d),
        set(f, file_meta(8, 1)),
        link(d, "f", f),
        write(f, 0, 0, 0, 8),
    ];
    bench.feed(&[maker.batch(&ops, &[b"original".to_vec()])]);
    let steps: Vec<Vec<Op>> = vec![
        vec![write(f, 0, 0, 0, 8), set(f, file_meta(8, 5))],
        vec![link(d, "g", f), unlink(d, "f")],
        vec![set(f, file_meta(0, 7)), set(d, dir_meta(8))],
        vec![unlink(d, "g")],
        vec![unlink(NodeId::ROOT, "d")],
    ];
    for (i, ops) in steps.iter().enumerate() {
        // The directory, and then the file in it, replaced by a link to the outside.
        let tree = bench.tree();
        std::fs::rename(tree.join("d"), tree.join("was d")).unwrap();
        if i % 2 == 0 {
            std::os::unix::fs::symlink(outside.path(), tree.join("d")).unwrap();
        } else {
            std::fs::create_dir(tree.join("d")).unwrap();
            for n in ["f", "g"] {
                std::os::unix::fs::symlink(outside.path().join("f"), tree.join("d").join(n))
                    .unwrap();
            }
        }
        // A fresh process has no handle from before.
        bench.mirror = Mirror::open(bench.dir.path()).unwrap();
        bench.feed(&[maker.batch(ops, &[b"modified".to_vec()][..usize::from(i == 0)])]);
        bench.mirror.reconcile(&bench.catalog, bench.shown).unwrap();
        assert_eq!(tree_on_disk(outside.path()), before, "step {i}");
    }
    assert!(tree_on_disk(&bench.tree()).is_empty());
}

#[test]
fn paths_far_beyond_path_max_and_holes_work() {
    let mut maker = Maker::new();
    let mut bench = Bench::new();
    let (mut ops, mut dirs) = (vec![], vec![NodeId::ROOT]);
    for i in 0..40 {
        let d = maker.node();
        ops.extend([
            set(d, dir_meta(i)),
            link(dirs[i as usize], "d".repeat(250), d),
        ]);
        dirs.push(d);
    }
    let f = maker.node();
    ops.extend([
        set(f, file_meta(1 << 30, 1)),
        link(dirs[40], "deep", f),
        write(f, 1 << 29, 0, 0, 4096),
    ]);
    bench.feed(&[maker.batch(&ops, &[vec![1; 4096]])]);
    // The upper half moves into a new directory at the top; then a write at the bottom.
    let top = maker.node();
    let ops = [
        set(top, dir_meta(1)),
        link(NodeId::ROOT, "top", top),
        link(top, "x", dirs[20]),
        unlink(dirs[19], "d".repeat(250)),
        write(f, 0, 0, 0, 1),
        Op::Hole {
            node: f,
            offset: 1 << 29,
            len: 4096,
        },
    ];
    bench.mirror = Mirror::open(bench.dir.path()).unwrap();
    bench.feed(&[maker.batch(&ops, &[vec![7]])]);
    let mut at = Dir::open(&bench.tree()).unwrap();
    for n in ["top".into(), "x".into()]
        .into_iter()
        .chain((0..20).map(|_| "d".repeat(250)))
    {
        at = at.open_dir(&name(n)).unwrap();
    }
    let stat = at.stat(&name("deep")).unwrap();
    assert_eq!(stat.size, 1 << 30);
    assert!(stat.blocks <= 16, "holes are holes: {} blocks", stat.blocks);
    let file = at
        .open_file(&name("deep"), farwrite_fs::OpenMode::Read)
        .unwrap();
    let mut first = [0; 2];
    file.read_exact_at(&mut first, 0).unwrap();
    assert_eq!(first, [7, 0]);
    assert_eq!(bench.mirror.stats().reconciles, 0);
    bench.mirror.reconcile(&bench.catalog, bench.shown).unwrap();
    assert_eq!(bench.mirror.stats().repaired, 0);
    let kinds: BTreeSet<_> = at.list().unwrap().into_iter().map(|e| e.kind).collect();
    assert_eq!(kinds, BTreeSet::from([Some(Kind::File)]));
}

/// A file of `parts` blocks that comes in as many batches under a node of its own, and takes its place in the last one.
fn in_parts(
    maker: &mut Maker,
    parts: u8,
    node: NodeId,
    last: &[Op],
    blocks: &[Vec<u8>],
) -> (Vec<Vec<Record>>, Vec<u8>) {
    const PART: u64 = 100_000;
    let (staged, size) = (maker.node(), u64::from(parts) * PART);
    let mut batches = Vec::new();
    let mut content = Vec::new();
    for i in 0..parts {
        let mut ops = vec![write(staged, u64::from(i) * PART, 0, 0, PART as u32)];
        if i == 0 {
            ops.insert(0, set(staged, file_meta(size, 1)));
        }
        content.extend(vec![i + 1; PART as usize]);
        batches.push(maker.batch(&ops, &[vec![i + 1; PART as usize]]));
    }
    let mut ops = vec![
        set(node, file_meta(size, 2)),
        Op::Copy {
            node,
            offset: 0,
            len: size,
            from: staged,
            from_offset: 0,
        },
        Op::Drop { node: staged },
    ];
    ops.extend_from_slice(last);
    batches.push(maker.batch(&ops, blocks));
    (batches, content)
}

fn held(bench: &Bench) -> usize {
    std::fs::read_dir(bench.dir.path().join("hold"))
        .unwrap()
        .count()
}

#[test]
fn a_file_of_many_batches_is_written_as_they_come_and_only_once() {
    for (name_of, crash) in [("whole", false), ("patched", false), ("lost", true)] {
        let (mut maker, mut bench) = (Maker::new(), Bench::new());
        let node = maker.node();
        let mut last = vec![link(NodeId::ROOT, "large", node)];
        let blocks = [vec![99; 500]];
        if name_of == "patched" {
            last.push(write(node, 150_000, 0, 0, 500));
            last.push(Op::Hole {
                node,
                offset: 300_000,
                len: 50_000,
            });
        }
        let blocks = if name_of == "patched" {
            &blocks[..]
        } else {
            &[]
        };
        let (batches, mut content) = in_parts(&mut maker, 5, node, &last, blocks);
        let (end, parts) = batches.split_last().unwrap();
        for (i, part) in parts.iter().enumerate() {
            bench.feed(std::slice::from_ref(part));
            if crash && i == 2 {
                bench.mirror = Mirror::open(bench.dir.path()).unwrap();
            } else if !crash {
                let written = bench.mirror.stats().bytes_written;
                assert_eq!(written, 100_000 * (i as u64 + 1), "{name_of}");
            }
        }
        bench.feed(std::slice::from_ref(end));
        let written = bench.mirror.stats().bytes_written;
        match name_of {
            "patched" => {
                content[150_000..150_500].fill(99);
                content[300_000..350_000].fill(0);
                assert!(written < 502_000, "{written}");
            }
            "whole" => assert_eq!(written, 500_000),
            _ => assert_eq!(written, 500_000, "all of it after the new start"),
        }
        let file = bench.tree().join("large");
        assert!(std::fs::read(&file).unwrap() == content, "{name_of}");
        assert_eq!(held(&bench), 0, "{name_of}");
        assert_eq!(bench.mirror.stats().reconciles, 0);
        // Written anew as a whole: in one step, and in the same way.
        let (batches, content) = in_parts(&mut maker, 4, node, &[], &[]);
        let before = bench.mirror.stats().bytes_written;
        for b in &batches {
            bench.feed(std::slice::from_ref(b));
        }
        assert!(std::fs::read(&file).unwrap() == content, "{name_of}");
        assert_eq!(bench.mirror.stats().bytes_written - before, 400_000);
        assert_eq!(held(&bench), 0);
        bench.mirror.reconcile(&bench.catalog, bench.shown).unwrap();
        assert_eq!(bench.mirror.stats().repaired, 0, "{name_of}");
    }
}

#[test]
fn what_was_begun_ahead_and_given_up_leaves_nothing() {
    let (mut maker, mut bench) = (Maker::new(), Bench::new());
    let node = maker.node();
    let (batches, _) = in_parts(&mut maker, 3, node, &[], &[]);
    bench.feed(&batches[..1]);
    assert_eq!(held(&bench), 1);
    bench.feed(&batches[1..3]);
    // The source begins anew instead of ending it: what there is of it goes.
    maker.seq = BatchSeq(3);
    maker.chain = bench.log.last_commit().unwrap().chain;
    let staged = NodeId(node.0 + 1);
    let drop = maker.batch(&[Op::Drop { node: staged }], &[]);
    bench.feed(&[drop]);
    assert_eq!(held(&bench), 0);
    let (batches, _) = in_parts(&mut maker, 3, NodeId(50), &[], &[]);
    bench.feed(&batches[..2]);
    assert_eq!(held(&bench), 1);
    bench.mirror = Mirror::open(bench.dir.path()).unwrap();
    assert_eq!(held(&bench), 0, "removed when it was closed");
}

#[test]
fn a_hole_where_a_file_without_a_name_begins_ends_its_head_start() {
    let (mut maker, mut bench) = (Maker::new(), Bench::new());
    let node = maker.node();
    let ops = [
        set(node, file_meta(1 << 20, 1)),
        Op::Hole {
            node,
            offset: 0,
            len: 4096,
        },
        write(node, 8192, 0, 0, 100),
    ];
    let first = maker.batch(&ops, &[vec![7; 100]]);
    bench.feed(&[first]);
    assert_eq!(held(&bench), 0);
    let last = maker.batch(&[link(NodeId::ROOT, "late", node)], &[]);
    bench.feed(&[last]);
    let content = std::fs::read(bench.tree().join("late")).unwrap();
    assert_eq!(content.len(), 1 << 20);
    let at = content.iter().position(|b| *b != 0);
    assert_eq!((at, content[8192..8292] == [7; 100]), (Some(8192), true));
}

#[test]
fn a_hole_before_thousands_of_pieces_ends() {
    let (mut maker, mut bench) = (Maker::new(), Bench::new());
    let node = maker.node();
    let size = 4 << 20;
    let mut ops = vec![
        set(node, file_meta(size, 1)),
        link(NodeId::ROOT, "sparse", node),
    ];
    ops.extend((100..1600).map(|i| write(node, i * 2048, 0, 0, 700)));
    let first = maker.batch(&ops, &[vec![5; 700]]);
    bench.feed(&[first]);
    let hole = Op::Hole {
        node,
        offset: 8192,
        len: 4096,
    };
    let second = maker.batch(&[set(node, file_meta(size, 2)), hole], &[]);
    bench.feed(&[second]);
    let mut want = vec![0; size as usize];
    for i in 100..1600 {
        want[i * 2048..i * 2048 + 700].fill(5);
    }
    assert!(std::fs::read(bench.tree().join("sparse")).unwrap() == want);
}
