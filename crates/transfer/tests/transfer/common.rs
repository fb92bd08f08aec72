//! A vault in memory, batches to send, and ways to wait: shared by the tests of this crate.

use bytes::BytesMut;
use farwrite_core::history::{BlockBytes, Request, Response};
use farwrite_core::{BatchSeq, Commit, Epoch, NodeId, Record, RecordKind, SourceName, Timestamp};
use farwrite_core::{codec, op::Chain};
use farwrite_transfer::message::{Refusal, RefusalCode};
use farwrite_transfer::net::tls::Fingerprint;
use farwrite_transfer::net::{Destination, EventSender, HistoryAnswers, SinkError, SourceSink};
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest that any condition may take to come true.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A source's name.
pub fn name(s: &str) -> SourceName {
    SourceName::new(s).unwrap()
}

/// Waits until `condition` gives something.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + DEADLINE;
    loop {
        if let Some(t) = condition() {
            return t;
        }
        assert!(Instant::now() < until, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

/// Makes batches that link up.
pub struct Maker {
    pub seq: BatchSeq,
    pub chain: [u8; 32],
}

impl Maker {
    pub fn new() -> Self {
        Maker {
            seq: BatchSeq(0),
            chain: [0; 32],
        }
    }

    /// The chain value behind a log that consists of this batch.
    pub fn after(&self, batch: &[Record]) -> [u8; 32] {
        codec::decode_commit(batch.last().unwrap()).unwrap().chain
    }

    /// The next batch, of `blocks` blocks of `bytes` bytes that do not compress.
    pub fn batch(&mut self, blocks: usize, bytes: usize) -> Vec<Record> {
        self.seq = self.seq.next();
        let mut chain = Chain::new(&self.chain);
        let mut records = Vec::new();
        for i in 0..blocks {
            let mut raw = vec![0; bytes];
            let mut h = blake3::Hasher::new();
            h.update(&self.seq.0.to_le_bytes()).update(&[i as u8]);
            h.finalize_xof().fill(&mut raw);
            records.push(Record::new(RecordKind::Block, self.seq, raw));
        }
        records.push(Record::new(
            RecordKind::Ops,
            self.seq,
            self.seq.0.to_le_bytes().to_vec(),
        ));
        records.iter().for_each(|r| chain.add(&r.header.hash));
        self.chain = chain.finish();
        records.push(codec::encode_commit(&Commit {
            seq: self.seq,
            epoch: Epoch([1; 16]),
            time: Timestamp::default(),
            clean: true,
            ops: 1,
            blocks: blocks as u64,
            next_node: NodeId(2),
            chain: self.chain,
        }));
        records
    }
}

/// One source's log in memory.
#[derive(Default)]
pub struct Log {
    /// Whole batches.
    pub batches: Vec<Vec<Record>>,
    open: Vec<Record>,
    pub aborts: u32,
    pub opens: u32,
    pub writers: u32,
}

impl Log {
    fn last(&self) -> Option<(BatchSeq, [u8; 32])> {
        let commit = codec::decode_commit(self.batches.last()?.last()?).unwrap();
        Some((commit.seq, commit.chain))
    }
}

/// A vault in memory.
#[derive(Default)]
pub struct FakeVault {
    pub logs: Mutex<HashMap<SourceName, Arc<Mutex<Log>>>>,
    pub keys: Mutex<HashMap<String, SourceName>>,
    pub tokens: Mutex<HashMap<Vec<u8>, SourceName>>,
    /// While true, `submit` blocks.
    pub stuck: Arc<(Mutex<bool>, Condvar)>,
    /// Submits that block now.
    pub blocked: Arc<Mutex<u32>>,
    /// Fails the next submit with this.
    pub trouble: Arc<Mutex<Option<SinkError>>>,
}

impl FakeVault {
    pub fn log(&self, source: &str) -> Arc<Mutex<Log>> {
        self.logs.lock().entry(name(source)).or_default().clone()
    }

    pub fn set_stuck(&self, stuck: bool) {
        *self.stuck.0.lock() = stuck;
        self.stuck.1.notify_all();
    }
}

impl Destination for FakeVault {
    fn pair(&self, token: &[u8], peer: &Fingerprint) -> Result<SourceName, Refusal> {
        let refused = || Refusal::new(RefusalCode::Invite, "no such invite");
        let name = self.tokens.lock().remove(token).ok_or_else(refused)?;
        self.keys.lock().insert(peer.to_string(), name.clone());
        Ok(name)
    }

    fn identify(&self, peer: &Fingerprint) -> Option<SourceName> {
        self.keys.lock().get(&peer.to_string()).cloned()
    }

    fn open(&self, name: &SourceName, events: EventSender) -> Result<Arc<dyn SourceSink>, Refusal> {
        let log = self.log(name.as_str());
        {
            let mut l = log.lock();
            l.opens += 1;
            l.writers += 1;
            assert_eq!(l.writers, 1, "two writers of one log");
        }
        Ok(Arc::new(FakeSink {
            log,
            events,
            stuck: self.stuck.clone(),
            blocked: self.blocked.clone(),
            trouble: self.trouble.clone(),
        }))
    }

    fn history(&self, name: &SourceName) -> Result<HistoryAnswers, Refusal> {
        let name = name.to_string();
        Ok(Box::new(move |request| match request {
            Request::Moments => Response::Moments(None),
            Request::Resolve(_) => panic!("a history that breaks"),
            Request::Versions { limit, .. } => Response::Error("y".repeat(*limit as usize)),
            Request::Blocks(ids) => Response::Blocks(ids.iter().map(|id| block(*id)).collect()),
            other => Response::Error(format!("{name}: {other:?}")),
        }))
    }
}

/// What a block is stored as; of every fifth something is wrong.
pub fn block(id: u64) -> BlockBytes {
    let content = id.to_le_bytes().repeat(id as usize % 50_000);
    let mut stored = Vec::new();
    Record::uncompressed(RecordKind::Block, BatchSeq(1), content).write_to(&mut stored);
    let record = match id % 5 {
        0 => Err(format!("{id} is damaged")),
        _ => Ok(stored.into()),
    };
    BlockBytes { block: id, record }
}

struct FakeSink {
    log: Arc<Mutex<Log>>,
    events: EventSender,
    stuck: Arc<(Mutex<bool>, Condvar)>,
    blocked: Arc<Mutex<u32>>,
    trouble: Arc<Mutex<Option<SinkError>>>,
}

impl Drop for FakeSink {
    fn drop(&mut self) {
        self.log.lock().writers -= 1;
    }
}

impl SourceSink for FakeSink {
    fn last(&self) -> Option<(BatchSeq, [u8; 32])> {
        self.log.lock().last()
    }

    fn epoch(&self) -> Option<Epoch> {
        self.last().map(|_| Epoch([1; 16]))
    }

    fn mirror(&self) -> bool {
        true
    }

    fn submit(&self, record: Record) -> Result<(), SinkError> {
        if let Some(e) = self.trouble.lock().take() {
            return Err(e);
        }
        let mut stuck = self.stuck.0.lock();
        *self.blocked.lock() += 1;
        while *stuck {
            self.stuck.1.wait(&mut stuck);
        }
        *self.blocked.lock() -= 1;
        drop(stuck);
        let mut log = self.log.lock();
        let (seq, commit) = (record.header.seq, record.header.kind == RecordKind::Commit);
        log.open.push(record);
        if commit {
            let batch = std::mem::take(&mut log.open);
            log.batches.push(batch);
            drop(log);
            self.events.durable(seq);
            self.events.mirrored(seq);
        }
        Ok(())
    }

    fn abort(&self) {
        let mut log = self.log.lock();
        log.open.clear();
        log.aborts += 1;
    }

    fn replay(
        &self,
        after: BatchSeq,
        out: &mut dyn FnMut(Record) -> bool,
    ) -> Result<(), SinkError> {
        let batches = self.log.lock().batches[after.0 as usize..].to_vec();
        let records = batches.into_iter().flatten();
        for record in records.filter(|r| r.header.kind != RecordKind::Block) {
            if !out(record) {
                break;
            }
        }
        Ok(())
    }
}

/// Bytes of records, as they travel.
pub fn wire(records: &[Record]) -> Vec<u8> {
    let mut bytes = Vec::new();
    records.iter().for_each(|r| r.write_to(&mut bytes));
    bytes
}

/// Takes all of a buffer.
pub fn take(out: &mut BytesMut) -> Vec<u8> {
    out.split().to_vec()
}
