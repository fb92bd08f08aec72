//! The source's (or a restoring machine's) side of a history session: questions in, answers out, several at once.
//!
//! Does not reconnect: what is half read is better started anew by the caller, who knows what it was for.

use super::STALLED_AFTER;
use super::dialer::{Dialed, Dialer};
use super::outgoing::Outgoing;
use crate::answer::{self, Came};
use crate::message::{
    Hello, Message, PROTOCOL_MAX, PROTOCOL_MIN, Purpose, RESPONSE_BYTES, RESPONSE_PART_BYTES,
    Refusal, TEXT_BYTES, printable,
};
use crate::session::{DEAD_AFTER, Framer, OUTPUT_BYTES, PING_EVERY, REQUESTS_IN_FLIGHT};
use bytes::{Bytes, BytesMut};
use farwrite_core::history::{BlockBytes, Request, Response};
use farwrite_core::record::{Record, RecordKind};
use farwrite_core::{SourceName, limits};
use parking_lot::{Condvar, Mutex};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// Not connected, or not any more.
    #[error("no connection to the vault: {why}")]
    Lost {
        /// Why.
        why: String,
    },
    /// The vault does not want this session.
    #[error("the vault refused: {0}")]
    Refused(Refusal),
    /// The vault broke the protocol.
    #[error("the vault broke the protocol: {why}")]
    Protocol {
        /// In which way.
        why: String,
    },
}

/// A history session. May be shared by threads; its functions block and must not be called on an async runtime's
/// thread.
pub struct HistoryClient {
    shared: Arc<Shared>,
    name: SourceName,
}

struct Shared {
    state: Mutex<State>,
    /// There is room for a request.
    room: Condvar,
    wake: Notify,
}

#[derive(Default)]
struct State {
    next_id: u32,
    requests: BytesMut,
    pending: HashMap<u32, Pending>,
    ended: Option<HistoryError>,
}

struct Pending {
    /// Blocks asked for.
    asked: usize,
    parts: Vec<Bytes>,
    blocks: Vec<BlockBytes>,
    bytes: usize,
    answer: std_mpsc::SyncSender<Response>,
}

impl HistoryClient {
    /// Connects, and returns once the vault has said welcome.
    pub fn connect(
        rt: &tokio::runtime::Handle,
        dial: Dialer,
        software: &str,
    ) -> Result<HistoryClient, HistoryError> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            room: Condvar::new(),
            wake: Notify::new(),
        });
        let (welcome, welcomed) = std_mpsc::sync_channel(1);
        let (task, software) = (shared.clone(), software.to_string());
        rt.spawn(async move {
            let mut client = Task {
                shared: &task,
                welcome,
                up: false,
                framer: Framer::default(),
                coming: None,
            };
            let end = client.run(&dial, software).await;
            client.end(end);
        });
        match welcomed.recv() {
            Ok(Ok(name)) => Ok(HistoryClient { shared, name }),
            Ok(Err(e)) => Err(e),
            Err(_) => Err(lost("the runtime has stopped")),
        }
    }

    /// What the vault calls the source whose history this is.
    pub fn name(&self) -> &SourceName {
        &self.name
    }

    /// Asks, and waits for the answer. A [`Request::Blocks`] has at most [`limits::HISTORY_PAGE`] ids. Up to [`REQUESTS_IN_FLIGHT`] threads may wait at once; more wait for their turn.
    pub fn ask(&self, request: Request) -> Result<Response, HistoryError> {
        let large = matches!(&request, Request::Blocks(ids) if ids.len() > limits::HISTORY_PAGE);
        if large {
            let why = format!(
                "more than {} blocks asked for at once",
                limits::HISTORY_PAGE
            );
            return Err(HistoryError::Protocol { why });
        }
        let (answer, answered) = std_mpsc::sync_channel(1);
        let mut state = self.shared.state.lock();
        while state.ended.is_none() && state.pending.len() >= REQUESTS_IN_FLIGHT {
            self.shared.room.wait(&mut state);
        }
        if let Some(e) = &state.ended {
            return Err(e.clone());
        }
        let id = state.next_id;
        state.next_id = id.wrapping_add(1);
        let pending = Pending {
            asked: match &request {
                Request::Blocks(ids) => ids.len(),
                _ => 0,
            },
            parts: Vec::new(),
            blocks: Vec::new(),
            bytes: 0,
            answer,
        };
        state.pending.insert(id, pending);
        let mut bytes = Vec::new();
        Message::Request { id, request }
            .to_record()
            .write_to(&mut bytes);
        state.requests.extend_from_slice(&bytes);
        drop(state);
        self.shared.wake.notify_one();
        answered.recv().map_err(|_| {
            let ended = self.shared.state.lock().ended.clone();
            ended.unwrap_or_else(|| lost("the runtime has stopped"))
        })
    }
}

impl Drop for HistoryClient {
    fn drop(&mut self) {
        let closed = lost("closed by this side");
        self.shared.state.lock().ended.get_or_insert(closed);
        self.shared.wake.notify_one();
    }
}

fn lost(why: impl Into<String>) -> HistoryError {
    HistoryError::Lost { why: why.into() }
}

fn protocol(why: impl ToString) -> HistoryError {
    let why = printable(&why.to_string(), TEXT_BYTES);
    HistoryError::Protocol { why }
}

/// The first message of a session.
pub(super) fn hello(software: String, purpose: Purpose) -> Message {
    Message::Hello(Hello {
        version_min: PROTOCOL_MIN,
        version_max: PROTOCOL_MAX,
        software,
        purpose,
    })
}

/// The async side.
struct Task<'a> {
    shared: &'a Shared,
    welcome: std_mpsc::SyncSender<Result<SourceName, HistoryError>>,
    up: bool,
    framer: Framer,
    /// The request whose blocks' records come next, and those that are still to come.
    coming: Option<(u32, VecDeque<u64>)>,
}

impl Task<'_> {
    fn end(&mut self, end: HistoryError) {
        let mut state = self.shared.state.lock();
        let end = state.ended.get_or_insert(end).clone();
        state.pending.clear();
        drop(state);
        // Nobody waits for it if the session had been up.
        let _ = self.welcome.try_send(Err(end));
        self.shared.room.notify_all();
    }

    async fn run(&mut self, dial: &Dialer, software: String) -> HistoryError {
        let dialed = match dial.dial().await {
            Ok(dialed) => dialed,
            Err(why) => return lost(why),
        };
        let (stream, stderr) = dialed.split();
        match self.drive(stream, software).await {
            HistoryError::Lost { why } => lost(Dialed::explain(stderr, why).await),
            other => other,
        }
    }

    async fn drive(&mut self, stream: super::BoxStream, software: String) -> HistoryError {
        let start = Instant::now();
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut out = Outgoing::new(Duration::ZERO);
        let (mut heard, mut pinged) = (Duration::ZERO, Duration::ZERO);
        push(out.end(), &hello(software, Purpose::History));
        loop {
            let now = start.elapsed();
            if now >= heard + DEAD_AFTER {
                return lost(format!(
                    "nothing heard from the vault for {} s",
                    DEAD_AFTER.as_secs()
                ));
            }
            if !out.is_busy() {
                out.moved(now);
            } else if now >= out.last_moved() + STALLED_AFTER {
                return lost("the vault does not read");
            }
            if self.up && now >= pinged + PING_EVERY {
                pinged = now;
                push(out.end(), &Message::Ping { id: 0 });
            }
            let ended = {
                let mut state = self.shared.state.lock();
                let requests = state.requests.split();
                out.end().extend_from_slice(&requests);
                state.ended.clone()
            };
            if let Some(end) = ended {
                push(out.end(), &Message::Bye);
                say_bye(&mut writer, out).await;
                return end;
            }
            let mut wake = (heard + DEAD_AFTER).min(out.last_moved() + STALLED_AFTER);
            if self.up {
                wake = wake.min(pinged + PING_EVERY);
            }
            tokio::select! {
                read = reader.read_buf(self.framer.space()) => match read {
                    Ok(0) => return lost("the vault closed the connection"),
                    Ok(_) => {
                        heard = start.elapsed();
                        if let Err(e) = self.records() {
                            return e;
                        }
                    }
                    Err(e) => return lost(e.to_string()),
                },
                wrote = out.progress(&mut writer, OUTPUT_BYTES), if out.is_busy() => match wrote {
                    Ok(_) => out.moved(start.elapsed()),
                    Err(e) => return lost(e.to_string()),
                },
                () = self.shared.wake.notified() => {}
                () = sleep_until(start + wake) => {}
            }
        }
    }

    fn records(&mut self) -> Result<(), HistoryError> {
        let next = |f: &mut Framer| f.next_unchecked(limits::RECORD_BYTES).map_err(protocol);
        while let Some((header, whole)) = next(&mut self.framer)? {
            if header.kind == RecordKind::Block {
                self.block(whole)?;
                continue;
            }
            let checked = Record::from_bytes(&whole).map_err(protocol)?;
            let record = checked.ok_or_else(|| protocol("a record is cut off"))?;
            let message = match answer::read(&record).map_err(protocol)? {
                Came::Part { id, more, part } if self.up => {
                    self.part(id, more, part)?;
                    continue;
                }
                Came::Part { .. } => return Err(protocol("an answer before the welcome")),
                Came::Other(message) => message,
            };
            match message {
                Message::Welcome(w) if !self.up => {
                    self.up = true;
                    // The one that connects waits for it, or has given up.
                    let _ = self.welcome.try_send(Ok(w.name));
                }
                Message::Pong { .. } | Message::Alive => {}
                Message::Blocks { id, blocks } if self.up => self.blocks(id, blocks)?,
                Message::Refused(r) => {
                    let text = printable(&r.text, TEXT_BYTES);
                    return Err(HistoryError::Refused(Refusal::new(r.code, text)));
                }
                Message::Failed { text, .. } => {
                    let text = printable(&text, TEXT_BYTES);
                    return Err(lost(format!("the vault failed: {text}")));
                }
                other => return Err(protocol(format!("not allowed here: {other:?}"))),
            }
        }
        Ok(())
    }

    fn part(&mut self, id: u32, more: bool, part: Bytes) -> Result<(), HistoryError> {
        let mut state = self.shared.state.lock();
        let Some(pending) = state.pending.get_mut(&id) else {
            return Err(protocol(format!("an answer to {id}, which was not asked")));
        };
        if more && part.len() != RESPONSE_PART_BYTES {
            return Err(protocol("a part of another size before the last"));
        }
        pending.bytes += part.len();
        if pending.bytes > RESPONSE_BYTES {
            return Err(protocol(format!("an answer over {RESPONSE_BYTES} bytes")));
        }
        pending.parts.push(part);
        if more {
            return Ok(());
        }
        let pending = state.pending.remove(&id).expect("found above");
        drop(state);
        self.shared.room.notify_one();
        let response = answer::response(pending.parts).map_err(protocol)?;
        // One place in the channel, one answer.
        let _ = pending.answer.try_send(response);
        Ok(())
    }

    /// An answer whose blocks follow as they are stored.
    fn blocks(&mut self, id: u32, blocks: Vec<(u64, Option<String>)>) -> Result<(), HistoryError> {
        if self.coming.is_some() {
            return Err(protocol("blocks before those of another answer are there"));
        }
        let mut state = self.shared.state.lock();
        let pending = state.pending.get_mut(&id);
        let pending = pending
            .filter(|p| p.parts.is_empty() && p.blocks.is_empty() && blocks.len() <= p.asked);
        let Some(pending) = pending else {
            return Err(protocol(format!("blocks for {id}, which were not asked")));
        };
        let follows = |(block, wrong): &(u64, Option<String>)| wrong.is_none().then_some(*block);
        self.coming = Some((id, blocks.iter().filter_map(follows).collect()));
        let there = |(block, wrong): (u64, Option<String>)| BlockBytes {
            block,
            record: wrong.map_or(Ok(Bytes::new()), |w| Err(printable(&w, TEXT_BYTES))),
        };
        pending.blocks = blocks.into_iter().map(there).collect();
        drop(state);
        self.complete();
        Ok(())
    }

    /// A block's record. It is checked by whoever makes use of it.
    fn block(&mut self, record: Bytes) -> Result<(), HistoryError> {
        let next = self.coming.as_mut().and_then(|(id, rest)| {
            let block = rest.pop_front()?;
            Some((*id, block))
        });
        let Some((id, block)) = next else {
            return Err(protocol("a block that was not announced"));
        };
        let mut state = self.shared.state.lock();
        let Some(pending) = state.pending.get_mut(&id) else {
            return Err(protocol(format!("a block for {id}, which was not asked")));
        };
        pending.bytes += record.len();
        if pending.bytes > RESPONSE_BYTES {
            return Err(protocol(format!("an answer over {RESPONSE_BYTES} bytes")));
        }
        let place = pending.blocks.iter_mut();
        let mut empty = place.filter(|b| b.record.as_ref().is_ok_and(Bytes::is_empty));
        match empty.find(|b| b.block == block) {
            Some(place) => place.record = Ok(record),
            None => return Err(protocol("a block that was not announced")),
        }
        drop(state);
        self.complete();
        Ok(())
    }

    /// Gives the answer to who asked, if all of its blocks are there.
    fn complete(&mut self) {
        let Some((id, _)) = self.coming.take_if(|(_, rest)| rest.is_empty()) else {
            return;
        };
        let pending = self.shared.state.lock().pending.remove(&id);
        self.shared.room.notify_one();
        if let Some(p) = pending {
            // One place in the channel, one answer.
            let _ = p.answer.try_send(Response::Blocks(p.blocks));
        }
    }
}

/// Appends a message.
pub(super) fn push(out: &mut BytesMut, message: &Message) {
    let mut bytes = Vec::new();
    message.to_record().write_to(&mut bytes);
    out.extend_from_slice(&bytes);
}

async fn say_bye<W: AsyncWrite + Unpin>(writer: &mut W, mut out: Outgoing) {
    let send = async { while out.is_busy() && out.progress(writer, OUTPUT_BYTES).await.is_ok() {} };
    // A goodbye is a courtesy.
    let _ = tokio::time::timeout(Duration::from_secs(1), send).await;
}
