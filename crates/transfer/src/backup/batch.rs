//! Builds one batch after another: packs content into blocks, sends each block as soon as it is full, and
//! keeps the operations for the end.

use super::pack::{Packer, pack, pack_part};
use bytes::Bytes;
use farwrite_core::codec::{encode_commit, encode_ops};
use farwrite_core::op::Chain;
use farwrite_core::record::Record;
use farwrite_core::{BatchSeq, Commit, Op, limits};

/// Room for so many operations is kept from one batch to the next.
const OPS_KEPT: usize = 1 << 14;

/// Much content that is added at once begins at a multiple of [`ALIGN`] in its block, as it does in the vault's log: where the vault's
/// filesystem can, its mirror shares the log's blocks on the disk then.
const ALIGNED_BYTES: usize = 256 << 10;
const ALIGN: usize = farwrite_fs::SHARED_UNIT_BYTES as usize;

/// Where records go. Blocks while the network does not take more.
pub trait RecordSink {
    /// Sends one record; the records of a batch come in order and end with its `Commit`.
    fn send(&mut self, record: Record) -> Result<(), SinkClosed>;
}

/// The other side is gone for good (not: the connection is down).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SinkClosed(pub String);

/// A run of bytes that went into a block of the current batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Block of the batch.
    pub block: u32,
    /// First byte in it.
    pub block_offset: u32,
    /// Bytes.
    pub len: u32,
}

/// Content that goes into a batch.
pub enum Run<'a> {
    /// It is copied.
    Lent(&'a [u8]),
    /// It is not, if it is a whole block. It must not be a slice of more: all of that would stay in memory until it is acked.
    Given(Bytes),
}

impl Run<'_> {
    /// Its bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Run::Lent(bytes) => bytes,
            Run::Given(bytes) => bytes,
        }
    }

    fn len(&self) -> usize {
        self.as_slice().len()
    }
}

impl<'a> From<&'a [u8]> for Run<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Run::Lent(bytes)
    }
}

/// See the module.
pub struct BatchWriter {
    sink: Box<dyn RecordSink + Send>,
    seq: BatchSeq,
    chain: Chain,
    block: Vec<u8>,
    blocks: u32,
    packer: Packer,
    ops: Vec<Op>,
    /// Of content and of extended attributes.
    data_bytes: u64,
    sent_bytes: u64,
}

impl BatchWriter {
    /// The first batch will be `seq`, chained behind `chain`.
    pub fn new(sink: Box<dyn RecordSink + Send>, seq: BatchSeq, chain: &[u8; 32]) -> Self {
        BatchWriter {
            sink,
            seq,
            chain: Chain::new(chain),
            block: Vec::new(),
            blocks: 0,
            packer: Packer::default(),
            ops: Vec::new(),
            data_bytes: 0,
            sent_bytes: 0,
        }
    }

    /// The batch being built.
    pub fn seq(&self) -> BatchSeq {
        self.seq
    }

    /// Adds content; `f` gets the pieces it went to, in order.
    pub fn put_data<'r>(
        &mut self,
        data: impl Into<Run<'r>>,
        mut f: impl FnMut(Piece),
    ) -> Result<(), SinkClosed> {
        let data = data.into();
        self.data_bytes += data.len() as u64;
        if data.len() >= ALIGNED_BYTES && !self.block.len().is_multiple_of(ALIGN) {
            // It keeps no room that it will not use: until it is acked it stays in memory.
            self.block.shrink_to_fit();
            self.end_block()?;
        }
        match data {
            Run::Lent(bytes) => self.copy_in(bytes, &mut f),
            Run::Given(bytes)
                if self.block.is_empty() && bytes.len() == limits::BLOCK_RAW_BYTES =>
            {
                f(Piece {
                    block: self.blocks,
                    block_offset: 0,
                    len: bytes.len() as u32,
                });
                let seq = self.seq;
                self.pack(move || pack_part(seq, bytes))
            }
            Run::Given(bytes) => self.copy_in(&bytes, &mut f),
        }
    }

    fn copy_in(&mut self, mut data: &[u8], f: &mut impl FnMut(Piece)) -> Result<(), SinkClosed> {
        while !data.is_empty() {
            let room = limits::BLOCK_RAW_BYTES - self.block.len();
            let (now, later) = data.split_at(room.min(data.len()));
            f(Piece {
                block: self.blocks,
                block_offset: self.block.len() as u32,
                len: now.len() as u32,
            });
            self.block.extend_from_slice(now);
            data = later;
            if self.block.len() == limits::BLOCK_RAW_BYTES {
                self.end_block()?;
            }
        }
        Ok(())
    }

    fn end_block(&mut self) -> Result<(), SinkClosed> {
        let raw = std::mem::replace(&mut self.block, Vec::with_capacity(limits::BLOCK_RAW_BYTES));
        let seq = self.seq;
        self.pack(move || pack(seq, raw))
    }

    /// `pack` makes the record of the next block.
    fn pack(&mut self, pack: impl FnOnce() -> Record + Send + 'static) -> Result<(), SinkClosed> {
        self.packer.put(pack);
        self.blocks += 1;
        while let Some(record) = self.packer.ready() {
            self.send(record)?;
        }
        Ok(())
    }

    /// Adds an operation.
    pub fn push(&mut self, op: Op) {
        if let Op::Node { meta, .. } = &op {
            let attributes = meta.xattrs.iter().map(|x| x.name.len() + x.value.len());
            self.data_bytes += attributes.sum::<usize>() as u64;
        }
        self.ops.push(op);
    }

    /// Is it time to close the batch?
    pub fn is_full(&self) -> bool {
        self.data_bytes >= limits::BATCH_DATA_BYTES || self.ops.len() >= limits::BATCH_OPS
    }

    /// Anything in it?
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty() && self.blocks == 0 && self.block.is_empty()
    }

    /// Bytes of all records sent so far, headers included.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Ends the batch. `commit` has everything but the counts and the chain, which are filled in; `save` makes the
    /// batch's effect on the index durable before the `Commit` record goes out.
    pub fn finish<E: From<SinkClosed>>(
        &mut self,
        mut commit: Commit,
        save: impl FnOnce(&Commit) -> Result<(), E>,
    ) -> Result<Commit, E> {
        self.last_blocks()?;
        let mut ops = std::mem::take(&mut self.ops);
        for record in encode_ops(self.seq, &ops) {
            self.send(record)?;
        }
        commit.seq = self.seq;
        commit.ops = ops.len() as u64;
        commit.blocks = u64::from(self.blocks);
        commit.chain = self.chain.finish();
        save(&commit)?;
        let record = encode_commit(&commit);
        self.sent_bytes += record.header.total_bytes();
        self.sink.send(record)?;
        self.seq = self.seq.next();
        self.chain = Chain::new(&commit.chain);
        self.blocks = 0;
        self.data_bytes = 0;
        if ops.capacity() <= OPS_KEPT {
            ops.clear();
            self.ops = ops;
        }
        Ok(commit)
    }

    fn last_blocks(&mut self) -> Result<(), SinkClosed> {
        let raw = std::mem::take(&mut self.block);
        // Of most batches it is the only one: no other thread is to be woken for it.
        let last = (!raw.is_empty()).then(|| pack(self.seq, raw));
        while let Some(record) = self.packer.next() {
            self.send(record)?;
        }
        match last {
            Some(record) => {
                self.blocks += 1;
                self.send(record)
            }
            None => Ok(()),
        }
    }

    fn send(&mut self, record: Record) -> Result<(), SinkClosed> {
        self.chain.add(&record.header.hash);
        self.sent_bytes += record.header.total_bytes();
        self.sink.send(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farwrite_core::record::RecordKind;
    use farwrite_core::{Epoch, NodeId, Timestamp};
    use std::sync::{Arc, Mutex};

    struct Kept(Arc<Mutex<Vec<Record>>>);

    impl RecordSink for Kept {
        fn send(&mut self, record: Record) -> Result<(), SinkClosed> {
            self.0.lock().unwrap().push(record);
            Ok(())
        }
    }

    fn unfinished() -> Commit {
        Commit {
            seq: BatchSeq(0),
            epoch: Epoch([1; 16]),
            time: Timestamp::default(),
            clean: false,
            ops: 0,
            blocks: 0,
            next_node: NodeId(1),
            chain: [0; 32],
        }
    }

    #[test]
    fn blocks_that_are_packed_side_by_side_go_out_in_order() {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let mut writer = BatchWriter::new(Box::new(Kept(kept.clone())), BatchSeq(1), &[7; 32]);
        let mut before = [7; 32];
        // Blocks that are quick and slow to pack by turns; the last batch ends with a full one.
        for (batch, len) in [(1, (9 << 20) + 17), (2, 100), (3, 5 << 20)] {
            let data: Vec<u8> = (0..len as u32)
                .map(|i| match (i >> 20) % 2 {
                    0 => (i >> 20) as u8,
                    _ => (i.wrapping_mul(2_654_435_761) >> 13) as u8,
                })
                .collect();
            let mut pieces = Vec::new();
            for part in data.chunks(70_001) {
                writer.put_data(part, |p| pieces.push(p)).unwrap();
            }
            let commit = writer
                .finish::<SinkClosed>(unfinished(), |_| Ok(()))
                .unwrap();
            let records = std::mem::take(&mut *kept.lock().unwrap());
            let mut chain = Chain::new(&before);
            let (mut blocks, mut ended) = (Vec::new(), false);
            for r in &records {
                assert_eq!(r.header.seq, BatchSeq(batch));
                match r.header.kind {
                    RecordKind::Commit => ended = true,
                    _ => chain.add(&r.header.hash),
                }
                if r.header.kind == RecordKind::Block {
                    blocks.push(r.decode().unwrap());
                }
            }
            assert!(ended);
            assert_eq!(commit.blocks, blocks.len() as u64);
            assert_eq!(commit.chain, chain.finish());
            before = commit.chain;
            let sent: Vec<u8> = pieces
                .iter()
                .flat_map(|p| {
                    &blocks[p.block as usize][p.block_offset as usize..][..p.len as usize]
                })
                .copied()
                .collect();
            assert!(sent == data, "batch {batch}");
        }
    }

    #[test]
    fn what_is_given_and_makes_a_block_is_not_copied() {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let mut writer = BatchWriter::new(Box::new(Kept(kept.clone())), BatchSeq(1), &[7; 32]);
        let mut noise = vec![0; limits::BLOCK_RAW_BYTES];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let bytes = Bytes::from(noise);
        let half = bytes.slice(..bytes.len() / 2);
        let mut pieces = Vec::new();
        let odd = b"what came before";
        writer.put_data(&odd[..], |p| pieces.push(p)).unwrap();
        // Behind an odd end, behind a whole block, and behind half a block.
        for given in [&bytes, &bytes, &half, &bytes] {
            let run = Run::Given(given.clone());
            writer.put_data(run, |p| pieces.push(p)).unwrap();
        }
        let done = writer.finish::<SinkClosed>(unfinished(), |_| Ok(()));
        let records = std::mem::take(&mut *kept.lock().unwrap());
        let blocks = &records[..done.unwrap().blocks as usize];
        let sent = pieces.iter().flat_map(|p| {
            let block = &blocks[p.block as usize].payload;
            &block[p.block_offset as usize..][..p.len as usize]
        });
        let all = [&odd[..], &bytes, &bytes, &half, &bytes].concat();
        assert!(sent.copied().eq(all));
        let begin = bytes.as_ptr().addr();
        let is_the_same = |r: &Record| {
            let at = r.payload.as_ptr().addr();
            (begin..begin + bytes.len()).contains(&at)
        };
        let same: Vec<bool> = blocks.iter().map(is_the_same).collect();
        assert_eq!(same, [false, true, true, false, false]);
    }

    #[test]
    fn much_at_once_begins_at_a_page_of_its_block() {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let mut writer = BatchWriter::new(Box::new(Kept(kept.clone())), BatchSeq(1), &[7; 32]);
        let parts = [10, ALIGNED_BYTES, 30, ALIGNED_BYTES - 1, 50, 2 << 20];
        let parts = parts.map(|len| (0..len).map(|i| (len + i) as u8).collect::<Vec<u8>>());
        let mut all = Vec::new();
        for part in &parts {
            let mut pieces = Vec::new();
            writer.put_data(&part[..], |p| pieces.push(p)).unwrap();
            if part.len() >= ALIGNED_BYTES {
                let mut offsets = pieces.iter().map(|p| p.block_offset as usize);
                assert!(offsets.all(|o| o.is_multiple_of(ALIGN)), "{pieces:?}");
            }
            all.extend(pieces);
        }
        // A block's end for each that had something odd before it, and no other.
        let blocks = all.last().unwrap().block + 1;
        assert_eq!(blocks, 1 + 1 + 2, "{all:?}");
        let done = writer.finish::<SinkClosed>(unfinished(), |_| Ok(()));
        assert_eq!(done.unwrap().blocks, 4);
        let records = std::mem::take(&mut *kept.lock().unwrap());
        let blocks: Vec<_> = records
            .iter()
            .take(4)
            .map(|r| r.decode().unwrap())
            .collect();
        let sent = all.iter().flat_map(|p| {
            let block = &blocks[p.block as usize];
            &block[p.block_offset as usize..][..p.len as usize]
        });
        assert!(sent.copied().eq(parts.concat()));
    }
}
