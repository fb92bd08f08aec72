//! Makes batches as a source would, for all tests of the vault.

pub mod model;

use farwrite_core::op::Chain;
use farwrite_core::{
    BatchSeq, Commit, Epoch, Kind, Meta, Name, NodeId, Op, Origin, Record, RecordKind, Timestamp,
    codec,
};
use std::path::PathBuf;

/// A source in a test: knows where its log stands.
pub struct Maker {
    pub seq: BatchSeq,
    pub chain: [u8; 32],
    pub epoch: Epoch,
    pub next_node: u64,
    /// Between two batches.
    pub step_ns: i64,
    pub clean: bool,
}

impl Maker {
    pub fn new() -> Self {
        Maker {
            seq: BatchSeq(0),
            chain: [0; 32],
            epoch: Epoch([7; 16]),
            next_node: 2,
            step_ns: 1_000_000,
            clean: true,
        }
    }

    /// The records of the next batch: blocks, operations, commit.
    pub fn batch(&mut self, ops: &[Op], blocks: &[Vec<u8>]) -> Vec<Record> {
        self.seq = self.seq.next();
        let mut records: Vec<Record> = blocks
            .iter()
            .map(|b| Record::new(RecordKind::Block, self.seq, b.clone()))
            .collect();
        records.extend(codec::encode_ops(self.seq, ops));
        let mut chain = Chain::new(&self.chain);
        records.iter().for_each(|r| chain.add(&r.header.hash));
        self.chain = chain.finish();
        records.push(codec::encode_commit(&Commit {
            seq: self.seq,
            epoch: self.epoch,
            time: self.time(self.seq),
            clean: self.clean,
            ops: ops.len() as u64,
            blocks: blocks.len() as u64,
            next_node: NodeId(self.next_node),
            chain: self.chain,
        }));
        records
    }

    /// When a batch was committed.
    pub fn time(&self, seq: BatchSeq) -> Timestamp {
        Timestamp::from_nanos(1_700_000_000_000_000_000 + seq.0 as i64 * self.step_ns)
    }

    pub fn node(&mut self) -> NodeId {
        self.next_node += 1;
        NodeId(self.next_node - 1)
    }
}

pub fn name(n: impl AsRef<[u8]>) -> Name {
    Name::new(n).unwrap()
}

pub fn file_meta(size: u64, mtime: i64) -> Meta {
    Meta {
        kind: Kind::File,
        mode: 0o644,
        size,
        mtime: Timestamp::from_nanos(1_600_000_000_000_000_000 + mtime),
        ..Meta::plain_dir()
    }
}

pub fn dir_meta(mtime: i64) -> Meta {
    Meta {
        mtime: Timestamp::from_nanos(1_600_000_000_000_000_000 + mtime),
        ..Meta::plain_dir()
    }
}

pub fn set(node: NodeId, meta: Meta) -> Op {
    Op::Node {
        node,
        meta,
        origin: Origin::default(),
        unsettled: false,
    }
}

pub fn link(parent: NodeId, n: impl AsRef<[u8]>, node: NodeId) -> Op {
    Op::Name {
        parent,
        name: name(n),
        node,
    }
}

pub fn unlink(parent: NodeId, n: impl AsRef<[u8]>) -> Op {
    Op::Unname {
        parent,
        name: name(n),
    }
}

pub fn write(node: NodeId, offset: u64, block: u32, block_offset: u32, len: u32) -> Op {
    Op::Write {
        node,
        offset,
        len,
        block,
        block_offset,
    }
}

/// Random numbers with a printed seed.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % n.max(1)
    }

    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next(256) as u8).collect()
    }
}

/// A filesystem in a file, for root.
pub struct Disk(tempfile::TempDir);

impl Disk {
    pub fn mount(mkfs: &[&str], bytes: u64) -> Disk {
        let disk = Disk::without_image();
        let file = std::fs::File::create(disk.image()).unwrap();
        file.set_len(bytes).unwrap();
        let mut make = std::process::Command::new(mkfs[0]);
        let make = make.args(&mkfs[1..]).arg(disk.image());
        assert!(make.status().unwrap().success(), "{mkfs:?}");
        disk.mounted()
    }

    /// As it would be if the power failed now.
    pub fn after_power_cut(&self) -> Disk {
        let disk = Disk::without_image();
        std::fs::copy(self.image(), disk.image()).unwrap();
        disk.mounted()
    }

    fn without_image() -> Disk {
        let disk = Disk(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
        std::fs::create_dir(disk.at()).unwrap();
        disk
    }

    fn mounted(self) -> Disk {
        let mut mount = std::process::Command::new("mount");
        let mount = mount.args(["-o", "loop"]).arg(self.image()).arg(self.at());
        assert!(mount.status().unwrap().success());
        self
    }

    fn image(&self) -> PathBuf {
        self.0.path().join("image")
    }

    /// Its root directory.
    pub fn at(&self) -> PathBuf {
        self.0.path().join("at")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let mut umount = std::process::Command::new("umount");
        let _ = umount.arg(self.at()).status();
    }
}
