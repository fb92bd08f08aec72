//! Builds one batch after another: packs content into blocks, sends each block as soon as it is full, and
//! keeps the operations for the end.

use farwrite_core::codec::{encode_commit, encode_ops};
use farwrite_core::op::Chain;
use farwrite_core::record::{Record, RecordKind};
use farwrite_core::{BatchSeq, Commit, Op, limits};

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

/// See the module.
pub struct BatchWriter {
    sink: Box<dyn RecordSink + Send>,
    seq: BatchSeq,
    chain: Chain,
    block: Vec<u8>,
    blocks: u32,
    ops: Vec<Op>,
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
    pub fn put_data(
        &mut self,
        mut data: &[u8],
        mut f: impl FnMut(Piece),
    ) -> Result<(), SinkClosed> {
        self.data_bytes += data.len() as u64;
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
                self.flush_block()?;
            }
        }
        Ok(())
    }

    /// Adds an operation.
    pub fn push(&mut self, op: Op) {
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

    /// Bytes of content in the current batch.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
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
        self.flush_block()?;
        let ops = std::mem::take(&mut self.ops);
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
        Ok(commit)
    }

    fn flush_block(&mut self) -> Result<(), SinkClosed> {
        if self.block.is_empty() {
            return Ok(());
        }
        let raw = std::mem::take(&mut self.block);
        self.send(Record::new(RecordKind::Block, self.seq, raw))?;
        self.blocks += 1;
        Ok(())
    }

    fn send(&mut self, record: Record) -> Result<(), SinkClosed> {
        self.chain.add(&record.header.hash);
        self.sent_bytes += record.header.total_bytes();
        self.sink.send(record)
    }
}
