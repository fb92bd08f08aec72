//! The vault's server: accepts connections, drives a [`VaultSession`] over each, and lets one backup session per
//! source write.
//!
//! A newer backup session of a source takes over: the older one is told so and closed, its unfinished batch dropped, its
//! sink dropped, and only then the log is opened again. The older one may be a dead TCP connection that nobody will ever
//! close, so refusing the newer one would lock the source out.

use super::destination::{
    Destination, EventReceiver, EventSender, HistoryAnswers, Peer, SinkEvents, SourceSink,
};
use super::outgoing::Outgoing;
use super::worker::{Job, Report, Worker};
use super::{READ_BYTES, STALLED_AFTER, tls};
use crate::message::{Refusal, RefusalCode};
use crate::session::{
    HANDSHAKE_WITHIN, OUTPUT_BYTES, SessionCounters, SessionEnd, VaultAction, VaultSession,
};
use bytes::BytesMut;
use farwrite_core::{BatchSeq, Epoch, SourceName, limits};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Most sessions at once.
pub const SESSIONS: usize = 512;
/// Most sessions of one source at once that ask for its history: the places are for the backups of all.
pub const HISTORIES: usize = 16;
/// Most connections at once whose hello is still to come; further ones wait in the listen queue.
pub const HANDSHAKES: usize = 64;
/// How long a newer session waits for the older one's log to be closed.
const TAKE_OVER_WITHIN: Duration = Duration::from_secs(20);
/// How long an ended session may take to send its last words, and again how long to read on after a refusal so that it is
/// not lost in a connection reset.
const LINGER: Duration = Duration::from_secs(2);
/// After reading this much from one connection, others that have sent something come first.
const SHARE_BYTES: usize = 256 << 10;
/// At a shutdown, how long to wait for the sessions.
const SHUTDOWN_WITHIN: Duration = Duration::from_secs(10);
/// When sources should come back after a shutdown.
const SHUTDOWN_RETRY: Duration = Duration::from_secs(1);

/// What a [`Service`] is made with.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// What the vault calls itself to sources that pair.
    pub vault: String,
    /// Bytes of batch records that a source may have unacked.
    pub window_bytes: u64,
    /// Most sessions at once.
    pub sessions: usize,
    /// Most connections at once whose hello is still to come.
    pub handshakes: usize,
}

impl ServerOptions {
    /// With the default bounds.
    pub fn new(vault: impl Into<String>) -> Self {
        ServerOptions {
            vault: vault.into(),
            window_bytes: limits::WINDOW_BYTES,
            sessions: SESSIONS,
            handshakes: HANDSHAKES,
        }
    }
}

/// Counts of a [`Service`] since its start. Those of a session are added when it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceCounters {
    /// Connections taken.
    pub connections: u64,
    /// Sessions ended with a refusal.
    pub refused: u64,
    /// Connections that never brought a hello in time, or failed in the TLS handshake.
    pub handshakes_failed: u64,
    /// Backup sessions that gave way to a newer one.
    pub taken_over: u64,
    /// Sums over the ended sessions.
    pub sessions: SessionCounters,
}

/// What all connections of a vault's server share.
pub struct Service {
    destination: Arc<dyn Destination>,
    options: ServerOptions,
    sessions: Arc<Semaphore>,
    slots: Mutex<HashMap<SourceName, Arc<Slot>>>,
    counters: Mutex<ServiceCounters>,
}

/// One source's place: who has the lock may write.
struct Slot {
    writer: Arc<tokio::sync::Mutex<()>>,
    /// Number of the newest session; older ones give way.
    newest: watch::Sender<u64>,
    histories: Arc<Semaphore>,
}

impl Default for Slot {
    fn default() -> Self {
        Slot {
            writer: Arc::default(),
            newest: watch::Sender::default(),
            histories: Arc::new(Semaphore::new(HISTORIES)),
        }
    }
}

impl Service {
    /// A service in front of a vault.
    pub fn new(destination: Arc<dyn Destination>, options: ServerOptions) -> Arc<Self> {
        Arc::new(Service {
            sessions: Arc::new(Semaphore::new(options.sessions)),
            destination,
            options,
            slots: Mutex::default(),
            counters: Mutex::default(),
        })
    }

    /// Counts so far.
    pub fn counters(&self) -> ServiceCounters {
        *self.counters.lock()
    }

    fn count(&self, change: impl FnOnce(&mut ServiceCounters)) {
        change(&mut self.counters.lock());
    }

    fn count_end(&self, end: &SessionEnd, session: SessionCounters, new: bool) {
        self.count(|c| {
            c.refused += u64::from(matches!(end, SessionEnd::Refused(_)));
            c.handshakes_failed += u64::from(new);
            c.taken_over += u64::from(
                matches!(end, SessionEnd::Refused(r) if r.code == RefusalCode::TakenOver),
            );
            c.sessions.records += session.records;
            c.sessions.record_bytes += session.record_bytes;
            c.sessions.duplicates += session.duplicates;
            c.sessions.violations += session.violations;
            c.sessions.requests += session.requests;
        });
    }

    /// Runs something that blocks.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        f: impl FnOnce(&dyn Destination) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let destination = self.destination.clone();
        tokio::task::spawn_blocking(move || f(&*destination))
            .await
            .map_err(|e| Refusal::new(RefusalCode::Busy, format!("the vault failed: {e}")))
    }

    async fn identify(self: &Arc<Self>, peer: Peer) -> Result<SourceName, Refusal> {
        let fingerprint = match peer {
            Peer::Named(name) => return Ok(name),
            Peer::Key(fingerprint) => fingerprint,
        };
        self.blocking(move |d| d.identify(&fingerprint))
            .await?
            .ok_or_else(|| {
                Refusal::new(
                    RefusalCode::NotPaired,
                    format!(
                        "this vault does not know the key {fingerprint}: pair with an invite first"
                    ),
                )
            })
    }

    fn place(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        self.sessions.clone().try_acquire_owned().map_err(|_| {
            Refusal::new(
                RefusalCode::Busy,
                "the vault has as many sessions as it takes",
            )
        })
    }

    fn slot(&self, name: &SourceName) -> Arc<Slot> {
        self.slots.lock().entry(name.clone()).or_default().clone()
    }

    async fn open_pair(self: Arc<Self>, peer: Peer, token: Vec<u8>) -> Result<Opened, Refusal> {
        let Peer::Key(fingerprint) = peer else {
            let text = "over ssh there is nothing to pair: ssh has let the source in";
            return Err(Refusal::new(RefusalCode::Denied, text));
        };
        let name = self
            .blocking(move |d| d.pair(&token, &fingerprint))
            .await??;
        Ok(Opened::Paired(name))
    }

    async fn open_history(self: Arc<Self>, peer: Peer) -> Result<Opened, Refusal> {
        let place = self.place()?;
        let name = self.identify(peer).await?;
        let mine = self.slot(&name).histories.clone();
        let mine = mine.try_acquire_owned().map_err(|_| {
            let text = "this source asks for its history as often at once as it may: close another";
            Refusal::new(RefusalCode::Busy, text)
        })?;
        let of = name.clone();
        let answers = self.blocking(move |d| d.history(&of)).await??;
        Ok(Opened::History {
            name,
            answers,
            place: (place, mine),
        })
    }

    async fn open_backup(self: Arc<Self>, peer: Peer) -> Result<Opened, Refusal> {
        let place = self.place()?;
        let name = self.identify(peer).await?;
        let slot = self.slot(&name);
        let mut turn = 0;
        slot.newest.send_modify(|newest| {
            *newest += 1;
            turn = *newest;
        });
        let lock = slot.writer.clone().lock_owned();
        let lock = timeout(TAKE_OVER_WITHIN, lock).await.map_err(|_| {
            let text = "another connection of this source is still being closed";
            Refusal::new(RefusalCode::Busy, text)
        })?;
        if *slot.newest.borrow() != turn {
            return Err(taken_over());
        }
        let newest = slot.newest.subscribe();
        let (sender, events) = EventSender::new();
        // The lock goes in and comes out with the sink: an open that nobody waits for any more still excludes others.
        self.blocking(move |d| {
            let sink = d.open(&name, sender)?;
            Ok(Opened::Backup(Box::new(OpenBackup {
                last: sink.last(),
                epoch: sink.epoch(),
                mirror: sink.mirror(),
                sink,
                name,
                events,
                turn,
                newest,
                hold: (lock, place),
            })))
        })
        .await?
    }
}

fn taken_over() -> Refusal {
    let text = "a newer connection of this source took over";
    Refusal::new(RefusalCode::TakenOver, text)
}

/// What an opening came to.
enum Opened {
    Paired(SourceName),
    History {
        name: SourceName,
        answers: HistoryAnswers,
        place: (OwnedSemaphorePermit, OwnedSemaphorePermit),
    },
    Backup(Box<OpenBackup>),
}

/// Fields drop in this order: the sink before the lock.
struct OpenBackup {
    sink: Arc<dyn SourceSink>,
    name: SourceName,
    last: Option<(BatchSeq, [u8; 32])>,
    epoch: Option<Epoch>,
    mirror: bool,
    events: EventReceiver,
    turn: u64,
    newest: watch::Receiver<u64>,
    hold: (OwnedMutexGuard<()>, OwnedSemaphorePermit),
}

type Opening = Pin<Box<dyn Future<Output = Result<Opened, Refusal>> + Send>>;

/// What a connection has once its session is open.
#[derive(Default)]
struct Attached {
    jobs: Option<mpsc::Sender<Job>>,
    reports: Option<mpsc::Receiver<Report>>,
    done: Option<oneshot::Receiver<()>>,
    events: Option<EventReceiver>,
    turn: Option<(u64, watch::Receiver<u64>)>,
}

impl Attached {
    fn attach(&mut self, worker: Worker) {
        self.jobs = Some(worker.jobs);
        self.reports = Some(worker.reports);
        self.done = Some(worker.done);
    }

    /// Takes what an opening came to into the session.
    fn open(
        &mut self,
        session: &mut VaultSession,
        service: &Service,
        opened: Result<Opened, Refusal>,
    ) {
        let started = match opened {
            Err(refusal) => return session.refuse(refusal),
            Ok(Opened::Paired(name)) => return session.paired(&service.options.vault, name),
            Ok(Opened::History {
                name,
                answers,
                place,
            }) => Worker::history(answers, session.version(), place).map(|worker| {
                self.attach(worker);
                session.welcome_history(name);
            }),
            Ok(Opened::Backup(b)) => {
                let b = *b;
                self.events = Some(b.events);
                self.turn = Some((b.turn, b.newest));
                let window = service.options.window_bytes;
                Worker::backup(b.sink, b.hold).map(|worker| {
                    self.attach(worker);
                    session.welcome_backup(b.name, b.last, b.epoch, window, b.mirror);
                })
            }
        };
        if let Err(e) = started {
            session.fail(&format!("starting a thread: {e}"), SHUTDOWN_RETRY);
        }
    }
}

/// Serves one connection until it ends, and returns why it did. `peer` is who the transport says is there.
///
/// `shutdown` turning true ends the session with a friendly failure. Waits for its own sink to be closed before it
/// returns.
pub async fn serve_connection<S>(
    service: Arc<Service>,
    stream: S,
    peer: Peer,
    shutdown: watch::Receiver<bool>,
) -> SessionEnd
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    run(service, stream, peer, shutdown, None).await
}

async fn run<S>(
    service: Arc<Service>,
    stream: S,
    peer: Peer,
    mut shutdown: watch::Receiver<bool>,
    mut handshake: Option<OwnedSemaphorePermit>,
) -> SessionEnd
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    service.count(|c| c.connections += 1);
    let start = Instant::now();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut session = VaultSession::new(Duration::ZERO);
    let mut out = Outgoing::new(Duration::ZERO);
    let mut attached = Attached::default();
    let mut opening: Option<Opening> = None;
    let mut job: Option<Job> = None;
    let mut new = true;
    let mut ended_at: Option<Duration> = None;
    let mut unshared = 0;

    loop {
        if unshared >= SHARE_BYTES {
            unshared = 0;
            tokio::task::yield_now().await;
        }
        let now = start.elapsed();
        while job.is_none()
            && opening.is_none()
            && let Some(action) = session.next_action()
        {
            job = begin(action, &service, &peer, &mut opening);
        }
        let listening = job.is_none();
        session.tick(now, listening);
        new &= session.is_new();
        if session.is_new() && now >= HANDSHAKE_WITHIN {
            session.lost(SessionEnd::Silent);
        } else if !session.is_new() {
            handshake = None;
        }
        loop {
            let mut output = BytesMut::new();
            let large = session.poll_output(now, &mut output);
            out.push(output);
            match large {
                Some(large) => out.push_shared(large),
                None => break,
            }
        }
        if !out.is_busy() {
            out.moved(now);
        } else if now >= out.last_moved() + STALLED_AFTER {
            let why = "the source does not read".to_string();
            session.lost(SessionEnd::Lost(why));
            break;
        }
        if session.ended().is_some() {
            // A peer that does not read, or a log that is stuck, must not hold up a takeover.
            let since = *ended_at.get_or_insert(now);
            if now >= since + LINGER {
                break;
            }
        }
        match session.ended() {
            Some(SessionEnd::Lost(_) | SessionEnd::Silent) => break,
            Some(_) if !out.is_busy() && job.is_none() => break,
            _ => {}
        }
        let mut wake = session.deadline().min(out.last_moved() + STALLED_AFTER);
        if session.is_new() {
            wake = wake.min(HANDSHAKE_WITHIN);
        }
        if let Some(since) = ended_at {
            wake = wake.min(since + LINGER);
        }
        let live = session.ended().is_none();
        let jobs = attached.jobs.clone();

        tokio::select! {
            read = reader.read_buf(session.space()), if listening && live => match read {
                Ok(0) => session.lost(SessionEnd::Lost("closed by the source".into())),
                Ok(n) => {
                    session.arrived(start.elapsed());
                    unshared += n;
                }
                Err(e) => session.lost(SessionEnd::Lost(e.to_string())),
            },
            wrote = out.progress(&mut writer, OUTPUT_BYTES), if out.is_busy() => match wrote {
                Ok(_) => out.moved(start.elapsed()),
                Err(e) => {
                    session.lost(SessionEnd::Lost(e.to_string()));
                    break;
                }
            },
            opened = async { opening.as_mut().expect("guarded").await }, if opening.is_some() && live => {
                opening = None;
                attached.open(&mut session, &service, opened);
            }
            permit = async { jobs.as_ref().expect("guarded").reserve().await },
                if job.is_some() && jobs.is_some() =>
            {
                let job = job.take().expect("guarded");
                if let Ok(permit) = permit {
                    permit.send(job);
                }
            }
            report = async { attached.reports.as_mut().expect("guarded").recv().await },
                if attached.reports.is_some() && live && out.len() < OUTPUT_BYTES =>
            {
                match report {
                    Some(report) => take_report(&mut session, report),
                    None => session.fail("the vault's worker stopped", SHUTDOWN_RETRY),
                }
            }
            events = async { attached.events.as_mut().expect("guarded").next().await },
                if attached.events.is_some() && live => take_events(&mut session, events),
            _ = async {
                let (turn, newest) = attached.turn.as_mut().expect("guarded");
                // The sender lives in the service, which outlives this.
                let _ = newest.wait_for(|n| n != turn).await;
            }, if attached.turn.is_some() && live => session.refuse(taken_over()),
            _ = async {
                // Without a sender there is nobody to ask for a shutdown.
                if shutdown.wait_for(|s| *s).await.is_err() {
                    std::future::pending::<()>().await;
                }
            }, if live => session.fail("the vault is shutting down", SHUTDOWN_RETRY),
            _ = sleep_until(start + wake) => {}
        }
    }

    drop(handshake);
    let end = session.ended().expect("left the loop at its end").clone();
    let told = matches!(
        end,
        SessionEnd::Refused(_) | SessionEnd::Failed(_) | SessionEnd::Done
    );
    attached.jobs = None;
    attached.reports = None;
    if told {
        linger(&mut reader, &mut writer).await;
    }
    drop((reader, writer));
    if let Some(done) = attached.done {
        // An error means that the thread is gone, which is what is waited for.
        let _ = done.await;
    }
    tracing::debug!(?peer, %end, counters = ?session.counters(), "session ended");
    service.count_end(&end, session.counters(), new);
    end
}

/// Starts what the session asks for; a job is for the worker.
fn begin(
    action: VaultAction,
    service: &Arc<Service>,
    peer: &Peer,
    opening: &mut Option<Opening>,
) -> Option<Job> {
    let (service, peer) = (service.clone(), peer.clone());
    match action {
        VaultAction::Submit(record) => return Some(Job::Submit(record)),
        VaultAction::Behind(behind) => return Some(Job::Behind(behind)),
        VaultAction::Replay(after) => return Some(Job::Replay(after)),
        VaultAction::Ask { id, request } => return Some(Job::Ask { id, request }),
        VaultAction::Pair { token } => *opening = Some(Box::pin(service.open_pair(peer, token))),
        VaultAction::OpenHistory { software } => {
            tracing::debug!(?peer, software, "history session");
            *opening = Some(Box::pin(service.open_history(peer)));
        }
        VaultAction::OpenBackup {
            software,
            epoch,
            next,
        } => {
            tracing::debug!(?peer, software, ?epoch, %next, "backup session");
            *opening = Some(Box::pin(service.open_backup(peer)));
        }
    }
    None
}

fn take_report(session: &mut VaultSession, report: Report) {
    match report {
        Report::Replayed(record) => session.replay_record(&record),
        Report::ReplayEnd => session.replay_end(),
        Report::Answer { id, piece, last } => session.response(id, piece, last),
        Report::BadBatch(text) => session.refuse(Refusal::new(RefusalCode::BadBatch, text)),
        Report::Failed { text, retry_after } => session.fail(&text, retry_after),
    }
}

fn take_events(session: &mut VaultSession, events: SinkEvents) {
    if let Some(seq) = events.durable {
        session.durable(seq);
    }
    if let Some(seq) = events.mirrored {
        session.mirrored(seq);
    }
    if let Some(f) = events.failed {
        session.fail(&f.text, f.retry_after);
    }
}

/// Closes the sending side and reads on for a while: closing with unread input would make the kernel reset the
/// connection, and the last message could be lost with it.
async fn linger<R, W>(reader: &mut R, writer: &mut W)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let drain = async {
        writer.shutdown().await?;
        let mut scratch = BytesMut::with_capacity(READ_BYTES);
        loop {
            scratch.clear();
            if reader.read_buf(&mut scratch).await? == 0 {
                return Ok::<(), io::Error>(());
            }
        }
    };
    // Whatever comes of it, the connection is over.
    let _ = timeout(LINGER, drain).await;
}

/// A vault's server on a TCP port.
pub struct Server;

impl Server {
    /// Accepts connections until `shutdown` turns true, then ends the sessions and returns.
    pub async fn run(
        listener: TcpListener,
        tls: Arc<rustls::ServerConfig>,
        service: Arc<Service>,
        mut shutdown: watch::Receiver<bool>,
    ) {
        let handshakes = Arc::new(Semaphore::new(service.options.handshakes));
        let mut sessions = JoinSet::new();
        loop {
            let accepted = async {
                let permit = handshakes.clone().acquire_owned().await;
                let permit = permit.expect("the semaphore is never closed");
                (listener.accept().await, permit)
            };
            tokio::select! {
                (accepted, permit) = accepted => match accepted {
                    Ok((stream, address)) => {
                        let session = serve_tls(
                            service.clone(), stream, tls.clone(), shutdown.clone(), permit,
                        );
                        sessions.spawn(async move {
                            let end = session.await;
                            tracing::debug!(%address, %end, "connection closed");
                        });
                    }
                    Err(e) => {
                        // Out of file descriptors, most likely: give others time to close theirs.
                        tracing::warn!(error = %e, "accept failed");
                        sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(_) = sessions.join_next() => {}
                // A dropped sender is a shutdown as well.
                _ = async { shutdown.wait_for(|s| *s).await.is_ok() } => break,
            }
        }
        drop(listener);
        let all = async { while sessions.join_next().await.is_some() {} };
        if timeout(SHUTDOWN_WITHIN, all).await.is_err() {
            tracing::warn!("sessions did not end in time");
        }
    }
}

async fn serve_tls(
    service: Arc<Service>,
    stream: tokio::net::TcpStream,
    config: Arc<rustls::ServerConfig>,
    shutdown: watch::Receiver<bool>,
    permit: OwnedSemaphorePermit,
) -> SessionEnd {
    let failed = |why: String| {
        service.count(|c| {
            c.connections += 1;
            c.handshakes_failed += 1;
        });
        SessionEnd::Lost(why)
    };
    if let Err(e) = stream.set_nodelay(true) {
        return failed(e.to_string());
    }
    let accept = tokio_rustls::TlsAcceptor::from(config).accept(tls::buffered(stream));
    let stream = match timeout(HANDSHAKE_WITHIN, accept).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => return failed(format!("TLS handshake: {e}")),
        Err(_) => return failed("TLS handshake: too slow".into()),
    };
    match tls::client_fingerprint(stream.get_ref().1) {
        Some(f) => run(service, stream, Peer::Key(f), shutdown, Some(permit)).await,
        None => failed("TLS handshake: no client key".into()),
    }
}

/// Serves one session on standard input and output, for a peer that ssh has let in under `name`.
///
/// Nothing else may write to standard output. The runtime may keep a thread in a read of standard input: the process
/// should exit when this returns.
pub async fn serve_stdio(service: Arc<Service>, name: SourceName) -> SessionEnd {
    let stream = tokio::io::join(tokio::io::stdin(), tokio::io::stdout());
    let (_never, shutdown) = watch::channel(false);
    serve_connection(service, stream, Peer::Named(name), shutdown).await
}
