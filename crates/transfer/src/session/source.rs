//! The source's end of a backup session: keeps every batch until the vault has acked it, and sends the unacked ones
//! again, whole and in order, on each new connection.
//!
//! Must never drop a batch that was not acked, never let more than the window be unacked, and never go on with a vault
//! whose log is not the one that it acked.

use super::{
    BEHIND_EVERY, DEAD_AFTER, Framer, LONE_BATCH_BYTES, OUTPUT_BYTES, PING_EVERY, UNCOPIED_BYTES,
};
use crate::message::{
    Behind, Hello, Message, PROTOCOL_MAX, PROTOCOL_MIN, PROTOCOL_V2, Purpose, Refusal, RefusalCode,
    SOFTWARE_BYTES, TEXT_BYTES, Welcome, printable,
};
use bytes::{Bytes, BytesMut};
use farwrite_core::record::{BadRecord, Record, RecordKind};
use farwrite_core::{BatchSeq, Epoch, SourceName, codec, limits};
use std::collections::VecDeque;
use std::time::Duration;

/// What a [`SourceSession`] is made with.
#[derive(Clone, Debug)]
pub struct SourceOptions {
    /// Name and version of this software, for the vault's log messages.
    pub software: String,
    /// The index's epoch, for the vault's log messages.
    pub epoch: Option<Epoch>,
    /// Most bytes of unacked records, whatever the vault grants.
    pub window_bytes: u64,
}

/// A position in the vault's log: batch and chain value.
type Position = (BatchSeq, [u8; 32]);

/// See the module.
#[derive(Debug)]
pub struct SourceSession {
    options: SourceOptions,
    window: u64,
    /// Last acked batch. Before [`SourceSession::begin`] whatever the vault said last.
    acked: Option<Position>,
    mirrored: Option<BatchSeq>,
    begun: bool,
    retained: VecDeque<Batch>,
    retained_bytes: u64,
    connection: Option<Connection>,
    rtt: Option<Duration>,
    records_sent: u64,
}

#[derive(Debug)]
struct Batch {
    seq: BatchSeq,
    records: Vec<Record>,
    bytes: u64,
    /// From its commit; `None` while the batch is still being made.
    chain: Option<[u8; 32]>,
}

#[derive(Debug)]
struct Connection {
    up: bool,
    framer: Framer,
    /// Encoded messages that go before the next record.
    control: BytesMut,
    /// Next record to send: batch in `retained`, record in it.
    next: (usize, usize),
    heard: Duration,
    ping_at: Duration,
    ping: Option<(u32, Duration)>,
    pings: u32,
    replay: Option<BatchSeq>,
    version: u16,
    /// What the vault was told last, and when it may be told again.
    behind: Option<Behind>,
    behind_at: Duration,
}

/// What the session has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceEvent {
    /// The vault welcomed this source.
    Up {
        /// The vault's last batch.
        last: Option<(BatchSeq, [u8; 32])>,
        /// Its epoch.
        epoch: Option<Epoch>,
        /// [`SourceEvent::Mirrored`] will come.
        mirror: bool,
        /// What the vault calls this source.
        name: SourceName,
        /// [`SourceSession::begin`] was not called yet.
        first: bool,
    },
    /// Every batch up to this one is durable at the vault. Comes once per advance.
    Ack(BatchSeq),
    /// Every batch up to this one is in the mirror.
    Mirrored(BatchSeq),
    /// A record of the replay asked for.
    Replayed(Record),
    /// The replay is complete.
    ReplayEnd,
}

/// Why a connection is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Not a record, or a damaged one.
    #[error("the vault sent bytes that make no sense: {0}")]
    Record(#[from] BadRecord),
    /// A message that is not allowed here.
    #[error("the vault broke the protocol: {0}")]
    Protocol(String),
    /// The vault does not want this session, or (`VaultWentBack`, `Diverged`) this source must not go on.
    #[error("{0}")]
    Refused(Refusal),
    /// The vault itself failed.
    #[error("the vault failed: {text}")]
    Failed {
        /// Its words.
        text: String,
        /// When to come back.
        retry_after: Duration,
    },
    /// No byte for [`DEAD_AFTER`].
    #[error("nothing heard from the vault for {} s", DEAD_AFTER.as_secs())]
    Silent,
}

impl SourceError {
    /// Must the session not be taken up again? True where the vault's log is not the one that this source knows.
    pub fn is_final(&self) -> bool {
        let fatal = [RefusalCode::VaultWentBack, RefusalCode::Diverged];
        matches!(self, SourceError::Refused(r) if fatal.contains(&r.code))
    }
}

/// Why [`SourceSession::push`] did not take a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// The window is full: wait for an ack.
    #[error("the window is full")]
    Full,
    /// [`SourceSession::begin`] has not been called.
    #[error("a record before begin()")]
    NotBegun,
    /// Not the record that comes next.
    #[error("a record of batch {got} where batch {expected} is due")]
    OutOfOrder {
        /// Batch that is being made, or the one after the last.
        expected: BatchSeq,
        /// Batch of the record.
        got: BatchSeq,
    },
    /// Not a part of a batch, or a commit that does not decode.
    #[error("not a record of a batch: {0}")]
    NotABatch(String),
    /// A batch over [`LONE_BATCH_BYTES`] can never be sent.
    #[error("batch {seq} is over {LONE_BATCH_BYTES} bytes")]
    TooLarge {
        /// Which batch.
        seq: BatchSeq,
    },
}

impl SourceSession {
    /// A session that has not been connected yet.
    pub fn new(options: SourceOptions) -> Self {
        SourceSession {
            window: options.window_bytes,
            options,
            acked: None,
            mirrored: None,
            begun: false,
            retained: VecDeque::new(),
            retained_bytes: 0,
            connection: None,
            rtt: None,
            records_sent: 0,
        }
    }

    /// A new connection stands: says hello on it.
    pub fn connected(&mut self, now: Duration) {
        let next = match (self.retained.front(), self.acked) {
            (Some(b), _) => b.seq,
            (None, Some((seq, _))) => seq.next(),
            (None, None) => BatchSeq(0),
        };
        let mut connection = Connection {
            up: false,
            framer: Framer::default(),
            control: BytesMut::new(),
            next: (0, 0),
            heard: now,
            ping_at: now + PING_EVERY,
            ping: None,
            pings: 0,
            replay: None,
            version: PROTOCOL_MIN,
            behind: None,
            behind_at: now,
        };
        connection.say(&Message::Hello(Hello {
            version_min: PROTOCOL_MIN,
            version_max: PROTOCOL_MAX,
            software: printable(&self.options.software, SOFTWARE_BYTES),
            purpose: Purpose::Backup {
                epoch: self.options.epoch,
                next,
            },
        }));
        self.connection = Some(connection);
    }

    /// The connection is gone; what was not acked stays and goes out again on the next one.
    pub fn disconnected(&mut self) {
        self.connection = None;
    }

    /// The source has settled its index against the vault's last batch: records may come.
    pub fn begin(&mut self) {
        self.begun = true;
    }

    /// Takes the next record of the batch that is being made; its commit ends it.
    pub fn push(&mut self, record: Record) -> Result<(), PushError> {
        self.check_push(&record)?;
        let chain = match record.header.kind {
            RecordKind::Commit => {
                let commit = codec::decode_commit(&record)
                    .map_err(|e| PushError::NotABatch(e.to_string()))?;
                Some(commit.chain)
            }
            _ => None,
        };
        let bytes = record.header.total_bytes();
        if self.retained.back().is_none_or(|b| b.chain.is_some()) {
            self.retained.push_back(Batch {
                seq: record.header.seq,
                records: Vec::new(),
                bytes: 0,
                chain: None,
            });
        }
        let batch = self.retained.back_mut().expect("pushed above");
        batch.records.push(record);
        batch.bytes += bytes;
        batch.chain = chain;
        self.retained_bytes += bytes;
        Ok(())
    }

    fn check_push(&self, record: &Record) -> Result<(), PushError> {
        let batch_kinds = [RecordKind::Block, RecordKind::Ops, RecordKind::Commit];
        if !batch_kinds.contains(&record.header.kind) {
            return Err(PushError::NotABatch(format!("{:?}", record.header.kind)));
        }
        if !self.begun {
            return Err(PushError::NotBegun);
        }
        let (expected, alone) = match self.retained.back() {
            Some(b) if b.chain.is_none() => (b.seq, self.retained.len() == 1),
            Some(b) => (b.seq.next(), false),
            None => (self.acked.map_or(BatchSeq(1), |(s, _)| s.next()), true),
        };
        let got = record.header.seq;
        if got != expected {
            return Err(PushError::OutOfOrder { expected, got });
        }
        let bytes = self.retained_bytes + record.header.total_bytes();
        match (bytes <= self.window, alone) {
            (true, _) => Ok(()),
            (false, true) if bytes <= LONE_BATCH_BYTES => Ok(()),
            (false, true) => Err(PushError::TooLarge { seq: got }),
            (false, false) => Err(PushError::Full),
        }
    }

    /// Asks for the `Ops` and `Commit` records behind `after`. False unless connected and not yet begun.
    pub fn replay(&mut self, after: BatchSeq) -> bool {
        match &mut self.connection {
            Some(c) if c.up && !self.begun && c.replay.is_none() => {
                c.replay = Some(after);
                c.say(&Message::ReplayFrom(after));
                true
            }
            _ => false,
        }
    }

    /// Says goodbye, once everything before it is sent.
    pub fn bye(&mut self) {
        if let Some(c) = &mut self.connection {
            c.say(&Message::Bye);
        }
    }

    /// Bytes came in. After an error the caller drops the connection and calls [`SourceSession::disconnected`].
    pub fn received(
        &mut self,
        now: Duration,
        bytes: &[u8],
        events: &mut Vec<SourceEvent>,
    ) -> Result<(), SourceError> {
        match &mut self.connection {
            Some(c) => {
                c.framer.push(bytes);
                c.heard = now;
            }
            None => return Ok(()),
        }
        while let Some(c) = &mut self.connection {
            let Some(record) = c.framer.next(limits::RECORD_BYTES)? else {
                break;
            };
            match record.header.kind {
                RecordKind::Message => self.message(now, Message::from_record(&record)?, events)?,
                RecordKind::Ops | RecordKind::Commit => self.replayed(record, events)?,
                kind => return Err(SourceError::Protocol(format!("a {kind:?} record"))),
            }
        }
        Ok(())
    }

    fn message(
        &mut self,
        now: Duration,
        message: Message,
        events: &mut Vec<SourceEvent>,
    ) -> Result<(), SourceError> {
        let c = self.connection.as_mut().expect("called with a connection");
        match message {
            Message::Refused(r) => Err(SourceError::Refused(Refusal::new(
                r.code,
                printable(&r.text, TEXT_BYTES),
            ))),
            Message::Failed {
                text,
                retry_after_ms,
            } => Err(SourceError::Failed {
                text: printable(&text, TEXT_BYTES),
                retry_after: Duration::from_millis(retry_after_ms.into()),
            }),
            Message::Alive => Ok(()),
            Message::Pong { id } => {
                if let Some((_, sent)) = c.ping.take_if(|(i, _)| *i == id) {
                    self.rtt = Some(now.saturating_sub(sent));
                }
                Ok(())
            }
            Message::Welcome(w) if !c.up => self.welcome(now, w, events),
            Message::Ack { seq } if c.up => self.ack(seq, events),
            Message::Mirrored { seq } if c.up => {
                if self.acked.is_none_or(|(acked, _)| seq > acked) {
                    return Err(SourceError::Protocol(format!(
                        "batch {seq} mirrored before its ack"
                    )));
                }
                if self.mirrored.is_none_or(|m| seq > m) {
                    self.mirrored = Some(seq);
                    events.push(SourceEvent::Mirrored(seq));
                }
                Ok(())
            }
            Message::ReplayEnd { .. } if c.replay.take().is_some() => {
                events.push(SourceEvent::ReplayEnd);
                Ok(())
            }
            other => Err(SourceError::Protocol(format!(
                "not allowed here: {}",
                printable(&format!("{other:?}"), 80)
            ))),
        }
    }

    fn welcome(
        &mut self,
        now: Duration,
        w: Welcome,
        events: &mut Vec<SourceEvent>,
    ) -> Result<(), SourceError> {
        if !(PROTOCOL_MIN..=PROTOCOL_MAX).contains(&w.version) {
            return Err(SourceError::Protocol(format!(
                "protocol version {}",
                w.version
            )));
        }
        let before = self.acked.map(|(seq, _)| seq);
        if self.begun {
            self.check_position(w.last)?;
        } else {
            self.acked = w.last;
        }
        self.window = w.window_bytes.min(self.options.window_bytes);
        // After a crash the vault repairs its mirror first; it tells anew what stands there.
        self.mirrored = None;
        let c = self.connection.as_mut().expect("called with a connection");
        c.up = true;
        c.version = w.version;
        c.ping_at = now;
        events.push(SourceEvent::Up {
            last: w.last,
            epoch: w.epoch,
            mirror: w.mirror,
            name: w.name,
            first: !self.begun,
        });
        if self.begun
            && let Some((last, _)) = w.last
            && before.is_none_or(|b| last > b)
        {
            self.drop_acked(last);
            events.push(SourceEvent::Ack(last));
        }
        Ok(())
    }

    /// Is the vault's last batch one that this source wrote, and none behind the last ack?
    fn check_position(&self, last: Option<Position>) -> Result<(), SourceError> {
        let refuse = |code, text| Err(SourceError::Refused(Refusal::new(code, text)));
        let (acked, vault) = (self.acked, last.map(|(s, _)| s));
        if vault < acked.map(|(s, _)| s) {
            let show =
                |s: Option<BatchSeq>| s.map_or("nothing".into(), |s| format!("batch {s} last"));
            let text = format!(
                "the vault went back: it has {}, but had acked {}",
                show(vault),
                show(acked.map(|(s, _)| s))
            );
            return refuse(RefusalCode::VaultWentBack, text);
        }
        let Some((seq, chain)) = last else {
            return Ok(());
        };
        let known = match acked {
            Some((s, c)) if s == seq => Some(c),
            _ => self
                .retained
                .iter()
                .find(|b| b.seq == seq)
                .and_then(|b| b.chain),
        };
        if known != Some(chain) {
            let text = format!("the vault's batch {seq} is not the one that this source made");
            return refuse(RefusalCode::Diverged, text);
        }
        Ok(())
    }

    fn ack(&mut self, seq: BatchSeq, events: &mut Vec<SourceEvent>) -> Result<(), SourceError> {
        if self.acked.is_some_and(|(acked, _)| seq <= acked) {
            return Ok(());
        }
        let sent = self.connection.as_ref().map_or(0, |c| c.next.0);
        let whole = self.retained.iter().take(sent).any(|b| b.seq == seq);
        if !whole {
            return Err(SourceError::Protocol(format!(
                "an ack for batch {seq}, which was not sent"
            )));
        }
        self.drop_acked(seq);
        events.push(SourceEvent::Ack(seq));
        Ok(())
    }

    fn drop_acked(&mut self, seq: BatchSeq) {
        while let Some(b) = self
            .retained
            .pop_front_if(|b| b.seq <= seq && b.chain.is_some())
        {
            self.acked = Some((b.seq, b.chain.expect("checked above")));
            self.retained_bytes -= b.bytes;
            if let Some(c) = &mut self.connection {
                c.next.0 = c.next.0.saturating_sub(1);
            }
        }
    }

    fn replayed(
        &mut self,
        record: Record,
        events: &mut Vec<SourceEvent>,
    ) -> Result<(), SourceError> {
        let c = self.connection.as_mut().expect("called with a connection");
        match &mut c.replay {
            Some(position)
                if record.header.seq >= *position && record.header.seq.0 <= position.0 + 1 =>
            {
                *position = record.header.seq;
                events.push(SourceEvent::Replayed(record));
                Ok(())
            }
            _ => Err(SourceError::Protocol(format!(
                "a record of batch {} that was not asked for",
                record.header.seq
            ))),
        }
    }

    /// Moves what is to be sent to the end of `out`, until that has about [`OUTPUT_BYTES`] or there is no more. A large payload
    /// is not copied, but returned: it is to be sent after `out`, and before anything else.
    pub fn poll_output(&mut self, out: &mut BytesMut) -> Option<Bytes> {
        let c = self.connection.as_mut()?;
        out.extend_from_slice(&c.control);
        c.control.clear();
        let mut large = None;
        while c.up && out.len() < OUTPUT_BYTES && large.is_none() {
            let Some(batch) = self.retained.get(c.next.0) else {
                break;
            };
            match batch.records.get(c.next.1) {
                Some(record) => {
                    if record.payload.len() < UNCOPIED_BYTES {
                        append(out, record);
                    } else {
                        out.extend_from_slice(&record.header.encode());
                        // Empty until now: comes first of all that is still to come.
                        c.control.extend_from_slice(record.padding());
                        large = Some(record.payload.clone());
                    }
                    self.records_sent += 1;
                    c.next.1 += 1;
                }
                None if batch.chain.is_some() => {}
                None => break,
            }
            if batch.chain.is_some() && c.next.1 == batch.records.len() {
                c.next = (c.next.0 + 1, 0);
            }
        }
        large
    }

    /// Looks at the time: says a ping when it is due. Call at [`SourceSession::deadline`].
    pub fn tick(&mut self, now: Duration) -> Result<(), SourceError> {
        let Some(c) = &mut self.connection else {
            return Ok(());
        };
        if now >= c.heard + DEAD_AFTER {
            return Err(SourceError::Silent);
        }
        if c.up && now >= c.ping_at {
            c.pings = c.pings.wrapping_add(1);
            c.ping_at = now + PING_EVERY;
            c.ping = Some((c.pings, now));
            let id = c.pings;
            c.say(&Message::Ping { id });
        }
        Ok(())
    }

    /// May the vault be told how far behind this source is ([`SourceSession::tell_behind`])?
    pub fn behind_due(&self, now: Duration) -> bool {
        self.connection
            .as_ref()
            .is_some_and(|c| c.up && c.version >= PROTOCOL_V2 && now >= c.behind_at)
    }

    /// Tells the vault how far behind this source is, unless it knows.
    pub fn tell_behind(&mut self, now: Duration, behind: Behind) {
        let Some(c) = self.connection.as_mut().filter(|c| c.up) else {
            return;
        };
        c.behind_at = now + BEHIND_EVERY;
        if c.behind != Some(behind) {
            c.behind = Some(behind);
            c.say(&Message::Behind(behind));
        }
    }

    /// When [`SourceSession::tick`] or [`SourceSession::tell_behind`] is due next; `None` without a connection. As long as
    /// the vault takes this source for one that is behind, it is told what changes about that.
    pub fn deadline(&self) -> Option<Duration> {
        let c = self.connection.as_ref()?;
        let mut at = c.heard + DEAD_AFTER;
        if c.up {
            at = at.min(c.ping_at);
            if c.behind.is_some_and(|b| b.changes > 0) {
                at = at.min(c.behind_at);
            }
        }
        Some(at)
    }

    /// Is the vault's welcome here?
    pub fn is_up(&self) -> bool {
        self.connection.as_ref().is_some_and(|c| c.up)
    }

    /// Has [`SourceSession::begin`] been called?
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// Bytes of records that are not acked, sent or not.
    pub fn unacked_bytes(&self) -> u64 {
        self.retained_bytes
    }

    /// The window in force.
    pub fn window_bytes(&self) -> u64 {
        self.window
    }

    /// The last acked batch.
    pub fn acked(&self) -> Option<BatchSeq> {
        self.acked.map(|(seq, _)| seq)
    }

    /// The last mirrored batch.
    pub fn mirrored(&self) -> Option<BatchSeq> {
        self.mirrored
    }

    /// Time between the last answered ping and its answer.
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// Records handed out so far, repeats included.
    pub fn records_sent(&self) -> u64 {
        self.records_sent
    }
}

impl Connection {
    fn say(&mut self, message: &Message) {
        append(&mut self.control, &message.to_record());
    }
}

/// Appends a record with its padding.
pub(super) fn append(out: &mut BytesMut, record: &Record) {
    out.reserve(record.header.total_bytes() as usize);
    out.extend_from_slice(&record.header.encode());
    out.extend_from_slice(&record.payload);
    out.extend_from_slice(record.padding());
}
