//! Compresses and hashes full blocks beside the unit's thread, which goes on reading files meanwhile: of a first backup those are
//! half of the work. Records come out in the order in which their content went in.

use farwrite_core::BatchSeq;
use farwrite_core::record::{Record, RecordKind};
use std::collections::VecDeque;

/// Threads at most; one processor is left to the unit's thread.
const THREADS: usize = 3;
/// Blocks under way at most; one more, and the unit's thread packs one itself.
const UNDER_WAY: usize = 4;

struct Job {
    seq: BatchSeq,
    raw: Vec<u8>,
    done: crossbeam_channel::Sender<Record>,
}

impl Job {
    fn run(self) {
        // Nobody waits any more: the unit has ended.
        let _ = self.done.send(pack(self.seq, self.raw));
    }
}

/// Makes the record of a block.
pub(super) fn pack(seq: BatchSeq, raw: Vec<u8>) -> Record {
    Record::new(RecordKind::Block, seq, raw)
}

/// The threads, from the first block on; they end when this is dropped.
#[derive(Default)]
pub(super) struct Packer {
    jobs: Option<Jobs>,
    /// What went in and has not come out, the oldest first.
    under_way: VecDeque<crossbeam_channel::Receiver<Record>>,
}

struct Jobs {
    put: crossbeam_channel::Sender<Job>,
    /// For jobs that this thread takes back.
    take: crossbeam_channel::Receiver<Job>,
}

impl Jobs {
    fn start() -> Jobs {
        let (put, take) = crossbeam_channel::unbounded::<Job>();
        let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
        for _ in 0..(processors - 1).clamp(1, THREADS) {
            let jobs = take.clone();
            let thread = std::thread::Builder::new().name("farwrite-pack".into());
            if let Err(e) = thread.spawn(move || jobs.into_iter().for_each(Job::run)) {
                tracing::debug!("no thread to compress in: {e}");
            }
        }
        Jobs { put, take }
    }
}

impl Packer {
    /// Takes a block in.
    pub(super) fn put(&mut self, seq: BatchSeq, raw: Vec<u8>) {
        let jobs = self.jobs.get_or_insert_with(Jobs::start);
        let (done, record) = crossbeam_channel::bounded(1);
        let job = Job { seq, raw, done };
        if let Err(refused) = jobs.put.send(job) {
            refused.into_inner().run();
        }
        self.under_way.push_back(record);
    }

    /// The oldest record, if it is packed, or else if too many are under way.
    pub(super) fn ready(&mut self) -> Option<Record> {
        if self.under_way.len() > UNDER_WAY {
            return self.next();
        }
        let record = self.under_way.front()?.try_recv().ok()?;
        self.under_way.pop_front();
        Some(record)
    }

    /// The oldest record; waits for it. While there is one to be packed that no thread has begun with, this one does so.
    pub(super) fn next(&mut self) -> Option<Record> {
        let oldest = self.under_way.pop_front()?;
        loop {
            if let Ok(record) = oldest.try_recv() {
                return Some(record);
            }
            match self.jobs.as_ref().map(|j| j.take.try_recv()) {
                Some(Ok(job)) => job.run(),
                _ => return Some(oldest.recv().expect("each job is run")),
            }
        }
    }
}
