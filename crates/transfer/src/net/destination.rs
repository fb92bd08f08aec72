//! The seam to the vault: what a server needs to know of it. The vault crate stands behind it in the binary; tests
//! put a fake there.
//!
//! All calls may block: they are made on plain threads, never on the async runtime's.

use super::tls::Fingerprint;
use crate::message::{Behind, Refusal};
use farwrite_core::history::{Request, Response};
use farwrite_core::{BatchSeq, Epoch, Record, SourceName};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Answers the questions of one history session, several at a time.
pub type HistoryAnswers = Box<dyn Fn(&Request) -> Response + Send + Sync>;

/// A vault as its server sees it.
pub trait Destination: Send + Sync {
    /// Redeems an invite's token for the key `peer`. Called again with the same token and key (the answer got lost) it
    /// should give the same name.
    fn pair(&self, token: &[u8], peer: &Fingerprint) -> Result<SourceName, Refusal>;

    /// The source to which a key belongs.
    fn identify(&self, peer: &Fingerprint) -> Option<SourceName>;

    /// Opens a source's log for appending. Within one [`super::Service`] a source has at most one open sink: the one
    /// before has been aborted and dropped.
    fn open(&self, name: &SourceName, events: EventSender) -> Result<Arc<dyn SourceSink>, Refusal>;

    /// Opens a source's history. Any number may be open.
    fn history(&self, name: &SourceName) -> Result<HistoryAnswers, Refusal>;
}

/// One source's log, open for appending by one session.
pub trait SourceSink: Send + Sync {
    /// The last batch on stable storage and its chain value. At the time of the open this is the whole log: a batch that an
    /// earlier session left between submit and fsync is by now one or the other, durable or gone.
    fn last(&self) -> Option<(BatchSeq, [u8; 32])>;

    /// Epoch of the last batch.
    fn epoch(&self) -> Option<Epoch>;

    /// Is there a mirror, so that `mirrored` events will come?
    fn mirror(&self) -> bool;

    /// Takes the next record. Blocks while the log is behind: that is the backpressure. Called by one thread.
    fn submit(&self, record: Record) -> Result<(), SinkError>;

    /// How far behind the source says that it is. For people; by default it is passed over.
    fn behind(&self, _: Behind) {}

    /// Drops the records of an unfinished batch. Called once at the end of every session.
    fn abort(&self);

    /// Hands the `Ops` and `Commit` records behind `after` to `out`, in order, until it returns false.
    fn replay(&self, after: BatchSeq, out: &mut dyn FnMut(Record) -> bool)
    -> Result<(), SinkError>;
}

/// Why a sink did not take a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// The batch is wrong: sending it again would not help.
    #[error("{text}")]
    BadBatch {
        /// What is wrong with it.
        text: String,
    },
    /// The vault is in trouble: later it may work.
    #[error("{text}")]
    Failed {
        /// What happened.
        text: String,
        /// When the source should come back.
        retry_after: Duration,
    },
}

/// Who is at the other end, as far as the transport has proved it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Holds the private key to this fingerprint (TLS).
    Key(Fingerprint),
    /// Was let in under this name by ssh.
    Named(SourceName),
}

/// A failure that a sink reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkFailure {
    /// What happened.
    pub text: String,
    /// When the source should come back.
    pub retry_after: Duration,
}

/// What a sink has reported since it was last asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkEvents {
    /// Every batch up to this one is on stable storage.
    pub durable: Option<BatchSeq>,
    /// Every batch up to this one is in the mirror.
    pub mirrored: Option<BatchSeq>,
    /// The sink takes no more.
    pub failed: Option<SinkFailure>,
}

/// Through which a sink reports. Never blocks and never grows: both kinds of progress are cumulative, so that only the
/// latest counts. May be called from any thread, also during `open`.
#[derive(Clone, Debug)]
pub struct EventSender(Arc<Shared>);

/// The session's end of an [`EventSender`].
#[derive(Debug)]
pub struct EventReceiver(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    pending: Mutex<SinkEvents>,
    wake: Notify,
}

impl EventSender {
    /// Both ends.
    pub fn new() -> (EventSender, EventReceiver) {
        let shared = Arc::new(Shared::default());
        (EventSender(shared.clone()), EventReceiver(shared))
    }

    /// Every batch up to `seq` is on stable storage: it may be acked.
    pub fn durable(&self, seq: BatchSeq) {
        self.update(|e| e.durable = e.durable.max(Some(seq)));
    }

    /// Every batch up to `seq` is in the mirror. The source hears of it after the ack.
    pub fn mirrored(&self, seq: BatchSeq) {
        self.update(|e| e.mirrored = e.mirrored.max(Some(seq)));
    }

    /// The sink takes no more (disk full, fsync failed): the session ends, the source comes back later.
    pub fn failed(&self, text: impl Into<String>, retry_after: Duration) {
        let text = text.into();
        self.update(|e| e.failed = Some(SinkFailure { text, retry_after }));
    }

    fn update(&self, change: impl FnOnce(&mut SinkEvents)) {
        change(&mut self.0.pending.lock());
        self.0.wake.notify_one();
    }
}

impl EventReceiver {
    /// Waits until there is something, and takes it.
    pub async fn next(&mut self) -> SinkEvents {
        loop {
            let events = self.take();
            if events != SinkEvents::default() {
                return events;
            }
            self.0.wake.notified().await;
        }
    }

    /// Takes what there is.
    pub fn take(&mut self) -> SinkEvents {
        std::mem::take(&mut self.0.pending.lock())
    }
}
