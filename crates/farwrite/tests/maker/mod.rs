//! Makes batches as a source would, at chosen times, and puts them into a vault: for tests of what reads a vault.

use farwrite_core::op::Chain;
use farwrite_core::{
    BatchSeq, Commit, Epoch, Kind, Meta, Name, NodeId, Op, Origin, Record, RecordKind, SourceName,
    Timestamp, codec,
};
use farwrite_vault::{Options, SourceInfo, SourceVault, Vault};
use std::path::Path;
use std::sync::Arc;

/// Seconds since 1970 of 2026-05-01 12:00:00 UTC.
pub const NOON: i64 = 1_777_636_800;

/// A source in a test: knows where its log stands.
#[derive(Default)]
pub struct Maker {
    pub seq: BatchSeq,
    pub chain: [u8; 32],
}

impl Maker {
    /// The records of the next batch: blocks, operations, commit. `time` is milliseconds after [`NOON`].
    pub fn batch(&mut self, time: i64, clean: bool, ops: &[Op], blocks: &[&[u8]]) -> Vec<Record> {
        self.seq = self.seq.next();
        let block = |b: &&[u8]| Record::new(RecordKind::Block, self.seq, b.to_vec());
        let mut records: Vec<Record> = blocks.iter().map(block).collect();
        records.extend(codec::encode_ops(self.seq, ops));
        let mut chain = Chain::new(&self.chain);
        records.iter().for_each(|r| chain.add(&r.header.hash));
        self.chain = chain.finish();
        records.push(codec::encode_commit(&Commit {
            seq: self.seq,
            epoch: Epoch([7; 16]),
            time: Timestamp::from_nanos(NOON * 1_000_000_000 + time * 1_000_000),
            clean,
            ops: ops.len() as u64,
            blocks: blocks.len() as u64,
            next_node: NodeId(100),
            chain: self.chain,
        }));
        records
    }
}

/// A node with these attributes.
pub fn node(node: u64, kind: Kind, mode: u32, size: u64) -> Op {
    let target = if kind == Kind::Symlink {
        b"a.txt".to_vec()
    } else {
        Vec::new()
    };
    let meta = Meta {
        kind,
        mode,
        size,
        target,
        mtime: Timestamp { sec: NOON, nsec: 5 },
        ..Meta::plain_dir()
    };
    Op::Node {
        node: NodeId(node),
        meta,
        origin: Origin::default(),
        unsettled: false,
    }
}

/// A name for a node.
pub fn name(parent: u64, name: impl AsRef<[u8]>, node: u64) -> Op {
    Op::Name {
        parent: NodeId(parent),
        name: Name::new(name).unwrap(),
        node: NodeId(node),
    }
}

/// The whole content of a file is the batch's only block.
pub fn write(node: u64, len: u32) -> Op {
    Op::Write {
        node: NodeId(node),
        offset: 0,
        len,
        block: 0,
        block_offset: 0,
    }
}

/// A vault with one source and this history:
///
/// ```text
/// 12:00:00.000  /data, /data/a.txt "one", /data/sub, /data/sub/\x1b[31m\xff (empty), /data/ln -> a.txt
/// 12:10:00.250  /data/a.txt "two!!"
/// 12:10:00.750  /data/a.txt mode 0600
/// 12:20:00.000  /data/a.txt removed; not a clean point
/// ```
pub fn sample_vault(dir: &Path, source: &SourceName) -> Vault {
    let vault = Vault::init(dir, true, Timestamp { sec: NOON, nsec: 0 }).unwrap();
    let created = Timestamp { sec: NOON, nsec: 0 };
    vault
        .save_source(&SourceInfo {
            name: source.clone(),
            fingerprint: "test".into(),
            created,
        })
        .unwrap();
    let log = SourceVault::open(
        &vault,
        source,
        Options {
            mirror: true,
            events: Arc::new(|_| {}),
        },
    )
    .unwrap();
    sample_batches()
        .into_iter()
        .flatten()
        .for_each(|r| log.submit(r).unwrap());
    log.close().unwrap();
    vault
}

/// The records of [`sample_vault`], batch by batch.
pub fn sample_batches() -> Vec<Vec<Record>> {
    let mut m = Maker::default();
    let first = [
        Op::Clear,
        node(2, Kind::Dir, 0o755, 0),
        name(1, "data", 2),
        node(3, Kind::File, 0o644, 3),
        write(3, 3),
        name(2, "a.txt", 3),
        node(4, Kind::Dir, 0o700, 0),
        name(2, "sub", 4),
        node(5, Kind::File, 0o644, 0),
        name(4, b"\x1b[31m\xff", 5),
        node(6, Kind::Symlink, 0o777, 0),
        name(2, "ln", 6),
    ];
    vec![
        m.batch(0, true, &first, &[b"one"]),
        m.batch(
            600_250,
            true,
            &[node(3, Kind::File, 0o644, 5), write(3, 5)],
            &[b"two!!"],
        ),
        m.batch(600_750, true, &[node(3, Kind::File, 0o600, 5)], &[]),
        m.batch(
            1_200_000,
            false,
            &[Op::Unname {
                parent: NodeId(2),
                name: Name::new("a.txt").unwrap(),
            }],
            &[],
        ),
    ]
}
