//! The vault's end of a session: takes a hello, then either batches, questions or a pairing, in the order that the
//! protocol allows and in no other.
//!
//! Trusts nothing: whatever is out of state, out of order or over a bound ends the session with a refusal, and is
//! counted. Must never hand on a record of a batch that is already durable, nor ack one that is not.

use super::source::append;
use super::{
    ALIVE_EVERY, DEAD_AFTER, Framer, HELLO_BYTES, LONE_BATCH_BYTES, REQUESTS_IN_FLIGHT,
    UNCOPIED_BYTES,
};
use crate::answer::Piece;
use crate::message::{
    Behind, Hello, Message, PROTOCOL_MAX, PROTOCOL_MIN, Purpose, Refusal, RefusalCode,
    SOFTWARE_BYTES, TEXT_BYTES, TOKEN_BYTES, Welcome, printable,
};
use bytes::{Bytes, BytesMut};
use farwrite_core::history::Request;
use farwrite_core::record::{BadRecord, Record, RecordKind};
use farwrite_core::{BatchSeq, Epoch, SourceName, codec, limits};
use std::collections::{HashSet, VecDeque};
use std::time::Duration;

/// Most records of one batch: blocks, operations and the commit.
const BATCH_RECORDS_MAX: u64 = 2 * limits::BATCH_BLOCKS_MAX;

/// What the driver has to do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VaultAction {
    /// Redeem the token, then call [`VaultSession::paired`] or [`VaultSession::refuse`].
    Pair {
        /// As received, of the right length.
        token: Vec<u8>,
    },
    /// Open the source's log, then call [`VaultSession::welcome_backup`] or [`VaultSession::refuse`].
    OpenBackup {
        /// What the source says of itself, made safe to show.
        software: String,
        /// The source's epoch, for log messages.
        epoch: Option<Epoch>,
        /// The first batch that it still holds, for log messages.
        next: BatchSeq,
    },
    /// Open the source's history, then call [`VaultSession::welcome_history`] or [`VaultSession::refuse`].
    OpenHistory {
        /// What the source says of itself, made safe to show.
        software: String,
    },
    /// How far behind the source says that it is, for people.
    Behind(Behind),
    /// Append to the log.
    Submit(Record),
    /// Send the records behind this batch with [`VaultSession::replay_record`], then [`VaultSession::replay_end`].
    Replay(BatchSeq),
    /// Answer with [`VaultSession::response`].
    Ask {
        /// Of the request.
        id: u32,
        /// The question.
        request: Request,
    },
}

/// Why a session is over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionEnd {
    /// The source said goodbye, or its pairing is done.
    #[error("done")]
    Done,
    /// This end sent a refusal.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// This end failed and said so.
    #[error("failed: {0}")]
    Failed(String),
    /// Nothing came for too long.
    #[error("nothing heard for too long")]
    Silent,
    /// The connection broke or was closed by the other side.
    #[error("connection lost: {0}")]
    Lost(String),
}

/// Counts of one session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionCounters {
    /// Records of batches handed on.
    pub records: u64,
    /// Bytes of them.
    pub record_bytes: u64,
    /// Records of batches that were already durable, dropped.
    pub duplicates: u64,
    /// Sessions ended because the source broke the protocol: 0 or 1.
    pub violations: u64,
    /// Requests of a history session.
    pub requests: u64,
}

#[derive(Debug)]
enum State {
    New,
    Opening { version: u16 },
    Backup(Backup),
    History { asked: HashSet<u32> },
    Closed(SessionEnd),
}

#[derive(Debug)]
struct Backup {
    window: u64,
    durable: BatchSeq,
    mirrored: BatchSeq,
    /// What the source was told of `mirrored`: never more than is acked.
    mirrored_told: BatchSeq,
    /// Batch whose records are due.
    due: BatchSeq,
    /// Bytes and records of the unfinished batch.
    open: (u64, u64),
    /// Finished batches that are not durable, with their bytes.
    unacked: VecDeque<(BatchSeq, u64)>,
    unacked_bytes: u64,
    replaying: bool,
    started: bool,
}

/// See the module.
#[derive(Debug)]
pub struct VaultSession {
    state: State,
    version: u16,
    framer: Framer,
    out: BytesMut,
    /// What comes behind `out`: large pieces, which are not copied, each with what comes behind it.
    behind: VecDeque<(Bytes, BytesMut)>,
    actions: VecDeque<VaultAction>,
    counters: SessionCounters,
    heard: Duration,
    said: Duration,
}

/// A violation of the protocol in words.
type Violation = String;

impl VaultSession {
    /// A session on a connection that stands since `now`.
    pub fn new(now: Duration) -> Self {
        VaultSession {
            state: State::New,
            version: PROTOCOL_MIN,
            framer: Framer::default(),
            out: BytesMut::new(),
            behind: VecDeque::new(),
            actions: VecDeque::new(),
            counters: SessionCounters::default(),
            heard: now,
            said: now,
        }
    }

    /// Bytes came in: [`VaultSession::space`] and [`VaultSession::arrived`] at once.
    pub fn received(&mut self, now: Duration, bytes: &[u8]) {
        self.space().extend_from_slice(bytes);
        self.arrived(now);
    }

    /// Where bytes that come in may be appended.
    pub fn space(&mut self) -> &mut BytesMut {
        self.framer.space()
    }

    /// Bytes were appended to [`VaultSession::space`]. Take all actions before appending more: they are bounded by those bytes.
    pub fn arrived(&mut self, now: Duration) {
        self.heard = now;
        while self.ended().is_none() {
            let bound = match self.state {
                State::New | State::Opening { .. } => HELLO_BYTES,
                _ => limits::RECORD_BYTES,
            };
            let done = match self.framer.next(bound) {
                Ok(None) => break,
                Ok(Some(record)) => self.record(record),
                Err(e @ BadRecord::Unknown { .. }) => Err(e.to_string()),
                Err(e) => Err(format!("damaged or foreign bytes: {e}")),
            };
            if let Err(violation) = done {
                self.counters.violations += 1;
                self.refuse(Refusal::new(RefusalCode::Protocol, violation));
            }
        }
    }

    fn record(&mut self, record: Record) -> Result<(), Violation> {
        match record.header.kind {
            RecordKind::Message => {
                let message = Message::from_record(&record).map_err(|e| e.to_string())?;
                self.message(message)
            }
            RecordKind::Block | RecordKind::Ops | RecordKind::Commit => self.batch_record(record),
            RecordKind::Pad => Err("a filler record on the wire".into()),
        }
    }

    fn message(&mut self, message: Message) -> Result<(), Violation> {
        match (&mut self.state, message) {
            (State::New, Message::Hello(hello)) => self.hello(hello),
            (State::New, _) => Err("the first message must be a hello".into()),
            (_, Message::Ping { id }) => {
                self.say(&Message::Pong { id });
                Ok(())
            }
            (_, Message::Bye) => {
                self.end(SessionEnd::Done);
                Ok(())
            }
            (State::Backup(b), Message::ReplayFrom(after)) => {
                if b.started || b.replaying {
                    return Err("a replay must be the first thing asked for".into());
                }
                if after > b.durable {
                    return Err(format!(
                        "a replay behind batch {after}, but the last is {}",
                        b.durable
                    ));
                }
                b.replaying = true;
                self.actions.push_back(VaultAction::Replay(after));
                Ok(())
            }
            (State::Backup(_), Message::Behind(behind)) => {
                self.actions.push_back(VaultAction::Behind(behind));
                Ok(())
            }
            (State::History { asked }, Message::Request { id, request }) => {
                if asked.len() >= REQUESTS_IN_FLIGHT {
                    return Err(format!("more than {REQUESTS_IN_FLIGHT} requests at once"));
                }
                if !asked.insert(id) {
                    return Err(format!("request {id} is still unanswered"));
                }
                self.counters.requests += 1;
                self.actions.push_back(VaultAction::Ask { id, request });
                Ok(())
            }
            (_, other) => Err(format!(
                "not allowed here: {}",
                printable(&format!("{other:?}"), 80)
            )),
        }
    }

    fn hello(&mut self, hello: Hello) -> Result<(), Violation> {
        let version = hello.version_max.min(PROTOCOL_MAX);
        if version < hello.version_min.max(PROTOCOL_MIN) {
            self.refuse(Refusal::new(
                RefusalCode::Version,
                format!(
                    "this vault speaks protocol {PROTOCOL_MIN} to {PROTOCOL_MAX}, the source {} to {}: update the older one",
                    hello.version_min, hello.version_max
                ),
            ));
            return Ok(());
        }
        let software = printable(&hello.software, SOFTWARE_BYTES);
        self.actions.push_back(match hello.purpose {
            Purpose::Backup { epoch, next } => VaultAction::OpenBackup {
                software,
                epoch,
                next,
            },
            Purpose::History => VaultAction::OpenHistory { software },
            Purpose::Pair { token } if token.len() == TOKEN_BYTES => VaultAction::Pair {
                token: token.into_vec(),
            },
            Purpose::Pair { .. } => return Err("a token of the wrong length".into()),
        });
        self.version = version;
        self.state = State::Opening { version };
        Ok(())
    }

    fn batch_record(&mut self, record: Record) -> Result<(), Violation> {
        let State::Backup(b) = &mut self.state else {
            return Err("a record of a batch outside a backup session".into());
        };
        if b.replaying {
            return Err("a record of a batch during a replay".into());
        }
        b.started = true;
        let seq = record.header.seq;
        if seq <= b.durable {
            self.counters.duplicates += 1;
            return Ok(());
        }
        if seq != b.due {
            return Err(format!("a record of batch {seq} where {} is due", b.due));
        }
        b.take(&record)?;
        self.counters.records += 1;
        self.counters.record_bytes += record.header.total_bytes();
        self.actions.push_back(VaultAction::Submit(record));
        Ok(())
    }

    /// The next thing to do.
    pub fn next_action(&mut self) -> Option<VaultAction> {
        self.actions.pop_front()
    }

    /// The log is open: the session takes batches behind `last`.
    pub fn welcome_backup(
        &mut self,
        name: SourceName,
        last: Option<(BatchSeq, [u8; 32])>,
        epoch: Option<Epoch>,
        window_bytes: u64,
        mirror: bool,
    ) {
        let State::Opening { version } = self.state else {
            return;
        };
        let durable = last.map_or(BatchSeq(0), |(seq, _)| seq);
        self.state = State::Backup(Backup {
            window: window_bytes,
            durable,
            mirrored: BatchSeq(0),
            mirrored_told: BatchSeq(0),
            due: durable.next(),
            open: (0, 0),
            unacked: VecDeque::new(),
            unacked_bytes: 0,
            replaying: false,
            started: false,
        });
        self.say(&Message::Welcome(Welcome {
            version,
            name,
            last,
            epoch,
            window_bytes,
            mirror,
        }));
    }

    /// The history is open: the session takes questions.
    pub fn welcome_history(&mut self, name: SourceName) {
        let State::Opening { version } = self.state else {
            return;
        };
        self.state = State::History {
            asked: HashSet::new(),
        };
        self.say(&Message::Welcome(Welcome {
            version,
            name,
            last: None,
            epoch: None,
            window_bytes: 0,
            mirror: false,
        }));
    }

    /// The token was good.
    pub fn paired(&mut self, vault: &str, name: SourceName) {
        let vault = printable(vault, TEXT_BYTES);
        self.say(&Message::Paired { vault, name });
        self.end(SessionEnd::Done);
    }

    /// Sends a refusal and ends the session.
    pub fn refuse(&mut self, refusal: Refusal) {
        self.say(&Message::Refused(refusal.clone()));
        self.end(SessionEnd::Refused(refusal));
    }

    /// Says that this end failed, and ends the session.
    pub fn fail(&mut self, text: &str, retry_after: Duration) {
        let retry_after_ms = retry_after.as_millis().min(u32::MAX.into()) as u32;
        let text = printable(text, TEXT_BYTES);
        self.say(&Message::Failed {
            text: text.clone(),
            retry_after_ms,
        });
        self.end(SessionEnd::Failed(text));
    }

    /// The connection broke, or the driver gives up on it.
    pub fn lost(&mut self, end: SessionEnd) {
        self.end(end);
    }

    /// Every batch up to `seq` is on stable storage.
    pub fn durable(&mut self, seq: BatchSeq) {
        if let State::Backup(b) = &mut self.state
            && seq > b.durable
            && seq < b.due
        {
            b.durable = seq;
            while let Some((_, bytes)) = b.unacked.pop_front_if(|(s, _)| *s <= seq) {
                b.unacked_bytes -= bytes;
            }
            self.say(&Message::Ack { seq });
            self.tell_mirrored();
        }
    }

    /// Every batch up to `seq` is in the mirror. May come before [`VaultSession::durable`] of the same: the source hears of it
    /// after the ack.
    pub fn mirrored(&mut self, seq: BatchSeq) {
        if let State::Backup(b) = &mut self.state {
            b.mirrored = b.mirrored.max(seq);
            self.tell_mirrored();
        }
    }

    fn tell_mirrored(&mut self) {
        if let State::Backup(b) = &mut self.state {
            let seq = b.mirrored.min(b.durable);
            if seq > b.mirrored_told {
                b.mirrored_told = seq;
                self.say(&Message::Mirrored { seq });
            }
        }
    }

    /// Which version of the protocol is spoken; the oldest until the source has said which it knows.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// A piece made by [`crate::answer::response_pieces`]; `last` with the last one of its request.
    pub fn response(&mut self, id: u32, piece: Piece, last: bool) {
        if let State::History { asked } = &mut self.state
            && asked.contains(&id)
        {
            if last {
                asked.remove(&id);
            }
            match piece {
                Piece::Record(record) => append(self.end_of_output(), &record),
                Piece::Stored(record) if record.len() < UNCOPIED_BYTES => {
                    self.end_of_output().extend_from_slice(&record);
                }
                Piece::Stored(record) => self.behind.push_back((record, BytesMut::new())),
            }
        }
    }

    /// A record of the replay.
    pub fn replay_record(&mut self, record: &Record) {
        if matches!(&self.state, State::Backup(b) if b.replaying) {
            append(self.end_of_output(), record);
        }
    }

    /// The replay is complete.
    pub fn replay_end(&mut self) {
        if let State::Backup(b) = &mut self.state
            && std::mem::take(&mut b.replaying)
        {
            let last = b.durable;
            self.say(&Message::ReplayEnd { last });
        }
    }

    /// Moves what is to be sent to the end of `out`. A large piece is not copied, but returned: it is to be sent after `out`, and
    /// before what the next call gives. `None`: there is no more.
    #[must_use]
    pub fn poll_output(&mut self, now: Duration, out: &mut BytesMut) -> Option<Bytes> {
        if !self.out.is_empty() {
            match out.is_empty() {
                true => std::mem::swap(out, &mut self.out),
                false => out.extend_from_slice(&self.out),
            }
            self.out.clear();
            self.said = now;
        }
        let (large, behind) = self.behind.pop_front()?;
        self.out = behind;
        self.said = now;
        Some(large)
    }

    fn end_of_output(&mut self) -> &mut BytesMut {
        let last = self.behind.back_mut();
        last.map_or(&mut self.out, |(_, behind)| behind)
    }

    /// Looks at the time. `listening`: the driver was reading all the while, so that silence is the source's.
    pub fn tick(&mut self, now: Duration, listening: bool) {
        if !listening {
            self.heard = now;
        }
        if self.ended().is_none() && now >= self.heard + DEAD_AFTER {
            self.end(SessionEnd::Silent);
        }
        let talks = !matches!(self.state, State::New | State::Closed(_));
        if talks && now >= self.said + ALIVE_EVERY {
            self.said = now;
            self.say(&Message::Alive);
        }
    }

    /// When [`VaultSession::tick`] is due next.
    pub fn deadline(&self) -> Duration {
        let dead = self.heard + DEAD_AFTER;
        match self.state {
            State::New | State::Closed(_) => dead,
            _ => dead.min(self.said + ALIVE_EVERY),
        }
    }

    /// Is the hello still to come?
    pub fn is_new(&self) -> bool {
        matches!(self.state, State::New)
    }

    /// Why the session is over; `None` while it is not.
    pub fn ended(&self) -> Option<&SessionEnd> {
        match &self.state {
            State::Closed(end) => Some(end),
            _ => None,
        }
    }

    /// Counts so far.
    pub fn counters(&self) -> SessionCounters {
        self.counters
    }

    fn say(&mut self, message: &Message) {
        if self.ended().is_none() {
            append(self.end_of_output(), &message.to_record());
        }
    }

    fn end(&mut self, end: SessionEnd) {
        if self.ended().is_none() {
            self.state = State::Closed(end);
        }
    }
}

impl Backup {
    /// Accounts for a record of the batch that is due, against window and bounds.
    fn take(&mut self, record: &Record) -> Result<(), Violation> {
        let (bytes, records) = (self.open.0 + record.header.total_bytes(), self.open.1 + 1);
        if records > BATCH_RECORDS_MAX {
            return Err(format!("batch {} has too many records", self.due));
        }
        let lone = self.unacked.is_empty() && bytes <= LONE_BATCH_BYTES;
        if self.unacked_bytes + bytes > self.window && !lone {
            return Err(format!("more than {} bytes without an ack", self.window));
        }
        self.open = (bytes, records);
        if record.header.kind == RecordKind::Commit {
            let commit = codec::decode_commit(record).map_err(|e| e.to_string())?;
            if commit.seq != self.due {
                return Err(format!(
                    "batch {} has the commit of {}",
                    self.due, commit.seq
                ));
            }
            self.unacked.push_back((self.due, bytes));
            self.unacked_bytes += bytes;
            self.open = (0, 0);
            self.due = self.due.next();
        }
        Ok(())
    }
}
