//! The source's link to one vault: what the processing thread (plain, blocking) hands its records to.
//!
//! Reconnects by itself and keeps every unacked batch over reconnects. One async task drives the connection; the
//! session's state is behind a mutex that is held for short, non-blocking steps only.

use super::READ_BYTES;
use super::dialer::Dialer;
use super::outgoing::Outgoing;
use super::rate::TokenBucket;
use super::{STALLED_AFTER, dialer::Dialed};
use crate::message::{Behind, RefusalCode};
use crate::session::{
    OUTPUT_BYTES, PushError, SourceError, SourceEvent, SourceOptions, SourceSession,
};
use bytes::BytesMut;
use farwrite_core::{BatchSeq, Epoch, Record, SourceName, limits};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until, timeout};

/// Wait before the first reconnect.
pub const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest wait before a reconnect; also the wait after a refusal.
pub const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Records of a replay that may wait for the caller.
const REPLAY_RECORDS: usize = 64;
/// After the drain of [`SourceLink::close`]: how long the goodbye may take.
const GOODBYE_WITHIN: Duration = Duration::from_secs(2);

/// Says how far behind the source is. Must not block for long.
pub type AskBehind = Arc<dyn Fn() -> Behind + Send + Sync>;

/// What a link is made with.
#[derive(Clone)]
pub struct LinkOptions {
    /// Name and version of this software, for the vault's log messages.
    pub software: String,
    /// The index's epoch, for the vault's log messages.
    pub epoch: Option<Epoch>,
    /// Most bytes of unacked records, at most [`limits::WINDOW_BYTES`].
    pub window_bytes: u64,
    /// Bandwidth limit; `None`: none.
    pub bytes_per_second: Option<u64>,
    /// Asked at most once a second, to tell the vault; `None`: it is not told.
    pub behind: Option<AskBehind>,
}

impl Default for LinkOptions {
    fn default() -> Self {
        LinkOptions {
            software: concat!("farwrite/", env!("CARGO_PKG_VERSION")).into(),
            epoch: None,
            window_bytes: limits::WINDOW_BYTES,
            bytes_per_second: None,
            behind: None,
        }
    }
}

/// What a link has to tell. Told on the async runtime's threads: the callback must not block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// Connected and welcome.
    Up {
        /// The vault's last batch and its chain value.
        last: Option<(BatchSeq, [u8; 32])>,
        /// Epoch of that batch.
        epoch: Option<Epoch>,
        /// [`LinkEvent::Mirrored`] will come.
        mirror: bool,
        /// What the vault calls this source.
        name: SourceName,
        /// [`SourceLink::begin`] has not been called: settle the index against `last` and call it. Comes again if the
        /// connection was lost before.
        first: bool,
    },
    /// Not connected; a new attempt follows by itself.
    Down {
        /// Why.
        why: String,
        /// When the next attempt follows.
        retry_in: Duration,
    },
    /// Every batch up to this one is durable at the vault.
    Ack(BatchSeq),
    /// Every batch up to this one is in the vault's mirror.
    Mirrored(BatchSeq),
    /// The vault does not want this source. Attempts go on every [`BACKOFF_MAX`], except after `VaultWentBack` and
    /// `Diverged`, which close the link: the index must be settled anew with a new one.
    Refused {
        /// For programs.
        code: RefusalCode,
        /// For people.
        text: String,
    },
}

/// The link takes no more records.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the link is closed: {why}")]
pub struct LinkClosed {
    /// Why.
    pub why: String,
}

/// Why a record was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The link is closed.
    #[error(transparent)]
    Closed(#[from] LinkClosed),
    /// The record is not the one that comes next: a mistake of the caller.
    #[error(transparent)]
    Record(PushError),
}

/// Why a replay gave up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// Only between an `Up` and `begin`, one at a time (also one whose iterator was dropped has to run out).
    #[error("a replay is possible only while connected and before begin()")]
    NotNow,
    /// The connection was lost meanwhile: another `Up` with `first` follows.
    #[error("the connection was lost during the replay")]
    Lost,
}

/// Numbers about a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Connected and welcome?
    pub up: bool,
    /// Time since the vault's welcome; `None` while down.
    pub connected_for: Option<Duration>,
    /// Bytes written to the transport (before encryption), repeats and messages included.
    pub wire_bytes: u64,
    /// Records of batches sent, repeats included.
    pub records: u64,
    /// Last acked batch.
    pub acked: Option<BatchSeq>,
    /// Last mirrored batch.
    pub mirrored: Option<BatchSeq>,
    /// Time from the last ping to its answer.
    pub rtt_ms: Option<u64>,
    /// Bytes of records taken and not acked.
    pub unacked_bytes: u64,
    /// Most of them that are allowed now.
    pub window_bytes: u64,
    /// Connections lost after a welcome.
    pub reconnects: u64,
}

/// See the module. Its blocking functions must not be called on an async runtime's thread.
pub struct SourceLink {
    shared: Arc<Shared>,
    ended: crossbeam_channel::Receiver<()>,
}

struct Shared {
    state: Mutex<State>,
    /// There may be room in the window, or the link has closed.
    room: Condvar,
    /// There is something for the task to do.
    wake: Notify,
}

struct State {
    session: SourceSession,
    closed: Option<LinkClosed>,
    /// Set by `close`: when to give up on what is not acked.
    closing: Option<Instant>,
    replay: Option<mpsc::Sender<Option<Record>>>,
    bytes_per_second: Option<u64>,
    wire_bytes: u64,
    reconnects: u64,
    up_since: Option<Instant>,
}

/// The records of a replay, in order. If the connection is lost, that is the last item: without it the replay is whole.
pub struct Replay {
    /// `None` as an item is the end; a channel that closes without it was cut off.
    records: Option<mpsc::Receiver<Option<Record>>>,
}

impl Iterator for Replay {
    type Item = Result<Record, ReplayError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = match self.records.as_mut()?.blocking_recv() {
            Some(Some(record)) => return Some(Ok(record)),
            Some(None) => None,
            None => Some(Err(ReplayError::Lost)),
        };
        self.records = None;
        item
    }
}

impl SourceLink {
    /// Starts to connect. Events come from now on.
    pub fn spawn(
        rt: &tokio::runtime::Handle,
        dial: Dialer,
        options: LinkOptions,
        events: Box<dyn Fn(LinkEvent) + Send + Sync>,
    ) -> SourceLink {
        let session = SourceSession::new(SourceOptions {
            software: options.software,
            epoch: options.epoch,
            window_bytes: options.window_bytes.min(limits::WINDOW_BYTES),
        });
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                session,
                closed: None,
                closing: None,
                replay: None,
                bytes_per_second: options.bytes_per_second,
                wire_bytes: 0,
                reconnects: 0,
                up_since: None,
            }),
            room: Condvar::new(),
            wake: Notify::new(),
        });
        let (done, ended) = crossbeam_channel::bounded(1);
        let task = shared.clone();
        rt.spawn(async move {
            let why = Task {
                start: Instant::now(),
                shared: &task,
                events: &*events,
                behind: options.behind,
                backoff: BACKOFF_MIN,
            }
            .run(&dial)
            .await;
            task.close(why);
            // The link may be gone already.
            let _ = done.send(());
        });
        SourceLink { shared, ended }
    }

    /// The index is settled against the last `Up`: records may be sent, starting with the batch behind its `last`.
    pub fn begin(&self) {
        self.shared.state.lock().session.begin();
    }

    /// Takes the next record. The records of one batch come in order, ended by its commit; batches without gaps.
    /// Blocks while the window is full, also while the link is down.
    pub fn send(&self, record: Record) -> Result<(), SendError> {
        let mut state = self.shared.state.lock();
        loop {
            if let Some(closed) = &state.closed {
                return Err(closed.clone().into());
            }
            // A record's payload is shared, not copied.
            match state.session.push(record.clone()) {
                Ok(()) => break,
                Err(PushError::Full) => self.shared.room.wait(&mut state),
                Err(e) => return Err(SendError::Record(e)),
            }
        }
        drop(state);
        self.shared.wake.notify_one();
        Ok(())
    }

    /// The `Ops` and `Commit` records behind `after`, for an index that is behind the vault. Only between an `Up`
    /// and [`SourceLink::begin`].
    pub fn replay(&self, after: BatchSeq) -> Result<Replay, ReplayError> {
        let (sender, receiver) = mpsc::channel(REPLAY_RECORDS);
        let mut state = self.shared.state.lock();
        if state.replay.is_some() || !state.session.replay(after) {
            return Err(ReplayError::NotNow);
        }
        state.replay = Some(sender);
        drop(state);
        self.shared.wake.notify_one();
        Ok(Replay {
            records: Some(receiver),
        })
    }

    /// Changes the bandwidth limit.
    pub fn set_limit(&self, bytes_per_second: Option<u64>) {
        self.shared.state.lock().bytes_per_second = bytes_per_second;
        self.shared.wake.notify_one();
    }

    /// Numbers as of now.
    pub fn stats(&self) -> LinkStats {
        let state = self.shared.state.lock();
        let s = &state.session;
        LinkStats {
            up: s.is_up(),
            connected_for: state.up_since.map(|t| t.elapsed()),
            wire_bytes: state.wire_bytes,
            records: s.records_sent(),
            acked: s.acked(),
            mirrored: s.mirrored(),
            rtt_ms: s.rtt().map(|d| d.as_millis() as u64),
            unacked_bytes: s.unacked_bytes(),
            window_bytes: s.window_bytes(),
            reconnects: state.reconnects,
        }
    }

    /// Closes at once, whoever else holds the link: a send that waits ends with an error.
    pub fn shut(&self) {
        self.shared.close("closed by this side".into());
        self.shared.wake.notify_one();
    }

    /// Waits up to `drain` for what was sent to be acked, says goodbye and closes. Returns whether all was acked.
    pub fn close(self, drain: Duration) -> bool {
        self.shared.state.lock().closing = Some(Instant::now() + drain);
        self.shared.wake.notify_one();
        // Late or gone: the drop below ends the task in any case.
        let _ = self.ended.recv_timeout(drain + 2 * GOODBYE_WITHIN);
        self.shared.state.lock().session.unacked_bytes() == 0
    }
}

impl Drop for SourceLink {
    fn drop(&mut self) {
        self.shared.close("closed by this side".into());
        self.shared.wake.notify_one();
    }
}

impl Shared {
    fn close(&self, why: String) {
        let mut state = self.state.lock();
        state.closed.get_or_insert(LinkClosed { why });
        state.replay = None;
        drop(state);
        self.room.notify_all();
    }
}

/// The async side of a link.
struct Task<'a> {
    start: Instant,
    shared: &'a Shared,
    events: &'a (dyn Fn(LinkEvent) + Send + Sync),
    behind: Option<AskBehind>,
    backoff: Duration,
}

/// How a connection ended.
enum End {
    /// The link is to be closed.
    Closed(String),
    Error(SourceError),
    Lost(String),
}

impl Task<'_> {
    /// Connects again and again; returns why the link is closed.
    async fn run(mut self, dial: &Dialer) -> String {
        loop {
            let end = match self.until_closed(dial.dial()).await {
                Err(why) => return why,
                Ok(Err(why)) => End::Lost(why),
                Ok(Ok(dialed)) => self.connection(dialed).await,
            };
            let (why, retry_in) = match end {
                End::Closed(why) => return why,
                End::Error(e) if e.is_final() => {
                    self.refused(&e);
                    return e.to_string();
                }
                End::Error(e @ SourceError::Refused(_)) => {
                    self.refused(&e);
                    (e.to_string(), BACKOFF_MAX)
                }
                End::Error(e @ SourceError::Failed { retry_after, .. }) => {
                    (e.to_string(), retry_after.clamp(BACKOFF_MIN, BACKOFF_MAX))
                }
                End::Error(e) => (e.to_string(), self.next_backoff()),
                End::Lost(why) => (why, self.next_backoff()),
            };
            (self.events)(LinkEvent::Down { why, retry_in });
            let pause = tokio::time::sleep(retry_in);
            if let Err(why) = self.until_closed(pause).await {
                return why;
            }
        }
    }

    /// Does something unless the link is closed meanwhile.
    async fn until_closed<T>(&self, something: impl Future<Output = T>) -> Result<T, String> {
        tokio::pin!(something);
        loop {
            let (done, deadline) = self.closing();
            if let Some(why) = done {
                return Err(why);
            }
            tokio::select! {
                t = &mut something => return Ok(t),
                () = self.shared.wake.notified() => {}
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {}
            }
        }
    }

    /// Is the link to be closed now, and if not, when at the latest?
    fn closing(&self) -> (Option<String>, Option<Instant>) {
        let state = self.shared.state.lock();
        if let Some(closed) = &state.closed {
            return (Some(closed.why.clone()), None);
        }
        let deadline = state.closing;
        let drained = state.session.unacked_bytes() == 0;
        let over = deadline.is_some_and(|d| drained || Instant::now() >= d);
        (over.then(|| "closed by this side".into()), deadline)
    }

    fn refused(&self, e: &SourceError) {
        if let SourceError::Refused(r) = e {
            let (code, text) = (r.code, r.text.clone());
            (self.events)(LinkEvent::Refused { code, text });
        }
    }

    /// Half of the current wait plus a random part of the other half; the next one is twice as long.
    fn next_backoff(&mut self) -> Duration {
        let half = self.backoff / 2;
        // Without randomness all sources come back at once, which is no more than impolite.
        let random = getrandom::u32().unwrap_or(u32::MAX);
        let wait = half + half.mul_f64(f64::from(random) / f64::from(u32::MAX));
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        wait.max(BACKOFF_MIN)
    }

    async fn connection(&mut self, dialed: Dialed) -> End {
        let (stream, stderr) = dialed.split();
        self.shared
            .state
            .lock()
            .session
            .connected(self.start.elapsed());
        let end = self.drive(stream).await;
        {
            let mut state = self.shared.state.lock();
            state.session.disconnected();
            state.reconnects += u64::from(state.up_since.take().is_some());
            state.replay = None;
        }
        match end {
            End::Lost(why) => End::Lost(Dialed::explain(stderr, why).await),
            other => other,
        }
    }

    async fn drive(&mut self, stream: super::BoxStream) -> End {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut input = BytesMut::with_capacity(READ_BYTES);
        let mut out = Outgoing::new(self.start.elapsed());
        let limit = self.shared.state.lock().bytes_per_second;
        let mut bucket = TokenBucket::new(limit, self.start.elapsed());
        let mut replayed: VecDeque<Option<Record>> = VecDeque::new();
        loop {
            let now = self.start.elapsed();
            self.tell_behind(now);
            let (deadline, replay) = {
                let mut state = self.shared.state.lock();
                if let Err(e) = state.session.tick(now) {
                    return End::Error(e);
                }
                if out.is_empty() {
                    poll_output(&mut state.session, &mut out);
                }
                bucket.set_rate(state.bytes_per_second, now);
                (state.session.deadline(), state.replay.clone())
            };
            let (over, closing) = self.closing();
            if let Some(why) = over {
                self.goodbye(&mut writer, out).await;
                return End::Closed(why);
            }
            let allowed = bucket.available(now);
            let writes = out.is_busy() && (allowed > 0 || out.is_empty());
            if !writes {
                out.moved(now);
            } else if now >= out.last_moved() + STALLED_AFTER {
                return End::Lost("the vault does not read".into());
            }
            let mut wake = deadline.unwrap_or(now + STALLED_AFTER);
            wake = wake.min(out.last_moved() + STALLED_AFTER);
            if out.is_busy() && allowed == 0 {
                wake = wake.min(bucket.ready_at());
            }
            let mut wake = self.start + wake;
            if let Some(at) = closing {
                wake = wake.min(at);
            }

            tokio::select! {
                read = reader.read_buf(&mut input), if replayed.is_empty() => match read {
                    Ok(0) => return End::Lost("the vault closed the connection".into()),
                    Ok(_) => {
                        if let Err(e) = self.received(&input, &mut replayed) {
                            return End::Error(e);
                        }
                        input.clear();
                    }
                    Err(e) => return End::Lost(e.to_string()),
                },
                wrote = out.progress(&mut writer, allowed.min(OUTPUT_BYTES)), if writes => match wrote {
                    Ok(n) => {
                        bucket.take(n);
                        out.moved(self.start.elapsed());
                        self.shared.state.lock().wire_bytes += n as u64;
                    }
                    Err(e) => {
                        // The vault may have said why before it closed.
                        return self.last_words(&mut reader, e.to_string()).await;
                    }
                },
                permit = async { replay.as_ref().expect("guarded").reserve().await },
                    if replay.is_some() && !replayed.is_empty() =>
                {
                    match (permit, replayed.pop_front().expect("guarded")) {
                        (Ok(permit), Some(record)) => permit.send(Some(record)),
                        (Ok(permit), None) => {
                            // First free the place, then tell: the caller may ask again at once.
                            self.shared.state.lock().replay = None;
                            permit.send(None);
                        }
                        // The caller has dropped the iterator: the rest is for nobody.
                        (Err(_), None) => self.shared.state.lock().replay = None,
                        (Err(_), Some(_)) => {}
                    }
                }
                () = self.shared.wake.notified() => {}
                () = sleep_until(wake) => {}
            }
            if replay.is_none() {
                replayed.clear();
            }
        }
    }

    fn tell_behind(&self, now: Duration) {
        if let Some(ask) = &self.behind
            && self.shared.state.lock().session.behind_due(now)
        {
            // Not under the lock: whoever answers may want it.
            let behind = ask();
            self.shared.state.lock().session.tell_behind(now, behind);
        }
    }

    /// Takes received bytes in and tells what came of them. Those of a replay go to `replayed`, `None` for its end.
    fn received(
        &mut self,
        bytes: &[u8],
        replayed: &mut VecDeque<Option<Record>>,
    ) -> Result<(), SourceError> {
        let mut events = Vec::new();
        let result = {
            let mut state = self.shared.state.lock();
            let result = state
                .session
                .received(self.start.elapsed(), bytes, &mut events);
            if events.iter().any(|e| matches!(e, SourceEvent::Up { .. })) {
                state.up_since = Some(Instant::now());
            }
            result
        };
        for event in events {
            let event = match event {
                SourceEvent::Up {
                    last,
                    epoch,
                    mirror,
                    name,
                    first,
                } => {
                    self.backoff = BACKOFF_MIN;
                    LinkEvent::Up {
                        last,
                        epoch,
                        mirror,
                        name,
                        first,
                    }
                }
                SourceEvent::Ack(seq) => LinkEvent::Ack(seq),
                SourceEvent::Mirrored(seq) => LinkEvent::Mirrored(seq),
                SourceEvent::Replayed(record) => {
                    replayed.push_back(Some(record));
                    continue;
                }
                SourceEvent::ReplayEnd => {
                    replayed.push_back(None);
                    continue;
                }
            };
            (self.events)(event);
        }
        self.shared.room.notify_all();
        result
    }

    /// A write failed: reads what the vault has sent before it closed.
    async fn last_words<R>(&mut self, reader: &mut R, why: String) -> End
    where
        R: tokio::io::AsyncRead + Unpin,
    {
        let mut input = BytesMut::with_capacity(READ_BYTES);
        loop {
            match timeout(GOODBYE_WITHIN, reader.read_buf(&mut input)).await {
                Ok(Ok(n)) if n > 0 => {
                    if let Err(e) = self.received(&input, &mut VecDeque::new()) {
                        return End::Error(e);
                    }
                    input.clear();
                }
                _ => return End::Lost(why),
            }
        }
    }

    /// Sends what is under way and a goodbye, if the vault takes it.
    async fn goodbye<W>(&self, writer: &mut W, mut out: Outgoing)
    where
        W: tokio::io::AsyncWrite + Unpin,
    {
        {
            let mut state = self.shared.state.lock();
            if !state.session.is_up() {
                return;
            }
            state.session.bye();
            poll_output(&mut state.session, &mut out);
        }
        let send = async {
            while out.is_busy() {
                if out.progress(writer, OUTPUT_BYTES).await.is_err() {
                    return;
                }
            }
            // Closing anyway.
            let _ = tokio::io::AsyncWriteExt::shutdown(writer).await;
        };
        // A goodbye is a courtesy.
        let _ = timeout(GOODBYE_WITHIN, send).await;
    }
}

fn poll_output(session: &mut SourceSession, out: &mut Outgoing) {
    if let Some(payload) = session.poll_output(out.end()) {
        out.push_shared(payload);
    }
}
