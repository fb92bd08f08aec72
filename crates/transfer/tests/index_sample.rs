//! An index of format version 1 as it was written then must be read for ever.
//! `FARWRITE_WRITE_SAMPLES=1` makes the sample anew: only for a new version.

use farwrite_core::meta::Xattr;
use farwrite_core::{BatchSeq, Commit, Kind, Meta, Name, NodeId, Origin, Timestamp};
use farwrite_transfer::backup::{Index, NodeFlags, NodeRow};
use std::fs;
use std::path::Path;

const FILE: NodeId = NodeId(1_790_000_000_000_001);

fn row() -> NodeRow {
    NodeRow {
        meta: Meta {
            kind: Kind::File,
            mode: 0o4755,
            uid: 1,
            gid: 2,
            size: 100_000,
            mtime: Timestamp { sec: -1, nsec: 5 },
            xattrs: vec![Xattr {
                name: b"user.x".to_vec(),
                value: vec![0, 255],
            }],
            ..Meta::plain_dir()
        },
        origin: Origin {
            slot: 1,
            ino: 77,
            btime: Timestamp { sec: 3, nsec: 4 },
            ctime: Timestamp { sec: 5, nsec: 6 },
        },
        flags: NodeFlags::SUMS,
        sum: [9; 16],
    }
}

fn commit(index: &Index, seq: u64) -> Commit {
    Commit {
        seq: BatchSeq(seq),
        epoch: index.state().epoch,
        time: Timestamp {
            sec: 1_790_000_000,
            nsec: 0,
        },
        clean: true,
        ops: 1,
        blocks: 0,
        next_node: NodeId(FILE.0 + 10),
        chain: [seq as u8; 32],
    }
}

#[test]
fn the_index_of_version_1_is_read() {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/format-v1/index.db");
    let name = Name::new(b"na\xffme").expect("valid");
    if std::env::var_os("FARWRITE_WRITE_SAMPLES").is_some() {
        fs::remove_file(&sample).ok();
        let mut index = Index::open(&sample, 1 << 20).expect("made");
        index.begin().expect("begins");
        index.put_node(FILE, &row()).expect("put");
        index.put_name(NodeId::ROOT, &name, FILE).expect("put");
        index.put_sums(FILE, 0, Some(&[7; 208])).expect("put");
        let c = commit(&index, 1);
        index.commit_batch(&c).expect("committed");
        index.begin().expect("begins");
        index.put_sums(FILE, 0, None).expect("removed");
        index.del_name(NodeId::ROOT, &name).expect("removed");
        let c = commit(&index, 2);
        index.commit_batch(&c).expect("committed");
    }
    let copy = tempfile::tempdir().expect("a directory");
    let path = copy.path().join("index.db");
    fs::copy(&sample, &path).expect("the sample is there");
    let mut index = Index::open(&path, 1 << 20).expect("opens");
    assert_eq!(index.state().seq, BatchSeq(2));
    assert_eq!(index.state().chain, [2; 32]);
    assert_eq!(index.lookup(NodeId::ROOT, &name).expect("answers"), None);
    assert_eq!(index.node(FILE).expect("answers"), Some(row()));
    assert_eq!(index.by_ino(1, 77).expect("answers").len(), 1);
    index
        .roll_back_to(BatchSeq(1))
        .expect("the undo of version 1 is understood");
    assert_eq!(
        index.lookup(NodeId::ROOT, &name).expect("answers"),
        Some(FILE)
    );
    assert_eq!(index.sums(FILE, 0).expect("answers"), Some(vec![7; 208]));
    assert_eq!(index.chain_at(BatchSeq(1)).expect("answers"), Some([1; 32]));
}

#[test]
fn a_departed_tree_of_many_files_is_taken_back() {
    const FILES: u64 = 60_000;
    let dir = tempfile::tempdir().expect("a directory");
    let mut index = Index::open(&dir.path().join("index.db"), 1 << 20).expect("made");
    let top = NodeId(100);
    let name = |i: u64| Name::new(format!("f{i}")).expect("valid");
    index.begin().expect("begins");
    let mut d = row();
    d.meta = Meta::plain_dir();
    index.put_node(top, &d).expect("put");
    index.put_name(NodeId::ROOT, &name(0), top).expect("put");
    for i in 1..=FILES {
        index.put_node(NodeId(100 + i), &row()).expect("put");
        index.put_name(top, &name(i), NodeId(100 + i)).expect("put");
    }
    let c = commit(&index, 1);
    index.commit_batch(&c).expect("committed");
    let before = index.children(top).expect("answers");
    assert_eq!(before.len() as u64, FILES);
    index.begin().expect("begins");
    index.del_name(NodeId::ROOT, &name(0)).expect("removed");
    assert_eq!(index.remove_orphans(vec![top]).expect("works"), vec![top]);
    assert_eq!(index.count().expect("answers"), 0);
    let c = commit(&index, 2);
    index.commit_batch(&c).expect("committed");
    assert_eq!(index.children(top).expect("answers"), []);
    // A batch that is given up leaves nothing behind that a later rollback would take for its own.
    index.begin().expect("begins");
    for i in 1..=FILES {
        index.put_node(NodeId(200_000 + i), &row()).expect("put");
    }
    index.abandon().expect("works");
    assert_eq!(index.roll_back_to(BatchSeq(1)).expect("works"), 1);
    assert_eq!(index.children(top).expect("answers"), before);
    assert_eq!(
        index.lookup(NodeId::ROOT, &name(0)).expect("answers"),
        Some(top)
    );
    assert_eq!(index.roll_back_to(BatchSeq(0)).expect("works"), 1);
    assert_eq!(index.node(top).expect("answers"), None);
}
