//! The plain threads behind a vault connection: everything that blocks happens here. What is written is one job after the other;
//! questions are answered several at a time.
//!
//! Both channels are bounded: a slow log fills the jobs, which stops the reading from the socket; a slow socket fills
//! the reports, which stops a replay. Never touches the socket.

use super::destination::{HistoryAnswers, SinkError, SourceSink};
use crate::answer::{Piece, response_pieces};
use crate::message::Behind;
use farwrite_core::history::{Request, Response};
use farwrite_core::{BatchSeq, Record};
use parking_lot::Mutex;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Jobs that may wait; each at most one record, or a question. What one source has here others cannot be put before: with few,
/// of 200 that send at once fewer go far ahead, and together they take less memory. Two are too few to keep a disk busy.
const JOBS: usize = 4;
/// Questions of one session that are answered at the same time: while one answer is sent, others are read from the disk.
const ANSWERERS: usize = 3;
/// Reports that may wait; each at most one record.
const REPORTS: usize = 8;

/// What to do.
#[derive(Debug)]
pub(super) enum Job {
    Submit(Record),
    Behind(Behind),
    Replay(BatchSeq),
    Ask { id: u32, request: Request },
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Report {
    Replayed(Record),
    ReplayEnd,
    Answer { id: u32, piece: Piece, last: bool },
    BadBatch(String),
    Failed { text: String, retry_after: Duration },
}

/// The connection's end of a worker. The thread ends once `jobs` is dropped and what was queued is done.
pub(super) struct Worker {
    pub(super) jobs: mpsc::Sender<Job>,
    pub(super) reports: mpsc::Receiver<Report>,
    pub(super) done: oneshot::Receiver<()>,
}

impl Worker {
    /// A thread that feeds a sink. `hold` is dropped after the sink is.
    pub(super) fn backup<H: Any + Send>(
        sink: Arc<dyn SourceSink>,
        hold: H,
    ) -> std::io::Result<Worker> {
        spawn("farwrite-sink", move |jobs, reports| {
            while let Some(job) = jobs.blocking_recv() {
                let end = match job {
                    Job::Submit(record) => sink.submit(record).err().map(error),
                    Job::Behind(behind) => {
                        sink.behind(behind);
                        None
                    }
                    Job::Replay(after) => replay(&*sink, after, reports),
                    Job::Ask { .. } => None,
                };
                if let Some(end) = end {
                    // Nobody listens any more once the connection is gone: then the outcome no longer matters.
                    let _ = reports.blocking_send(end);
                    break;
                }
            }
            sink.abort();
            drop(sink);
            drop(hold);
        })
    }

    /// Threads that answer questions of a session of protocol `version`.
    pub(super) fn history<H: Any + Send>(
        answers: HistoryAnswers,
        version: u16,
        hold: H,
    ) -> std::io::Result<Worker> {
        spawn("farwrite-history", move |jobs, reports| {
            let (jobs, sending) = (Mutex::new(jobs), Mutex::new(()));
            let answer = || answer(&jobs, &answers, version, &sending, reports);
            std::thread::scope(|scope| {
                for _ in 1..ANSWERERS {
                    let thread = std::thread::Builder::new().name("farwrite-history".into());
                    if let Err(e) = thread.spawn_scoped(scope, answer) {
                        tracing::debug!("one thread less for a history session: {e}");
                    }
                }
                answer();
            });
            drop(hold);
        })
    }
}

/// Answers questions as they come, and sends each answer in one go: it is in several pieces.
fn answer(
    jobs: &Mutex<&mut mpsc::Receiver<Job>>,
    answers: &HistoryAnswers,
    version: u16,
    sending: &Mutex<()>,
    reports: &mpsc::Sender<Report>,
) {
    let next = || jobs.lock().blocking_recv();
    while let Some(job) = next() {
        let Job::Ask { id, request } = job else {
            continue;
        };
        // Whoever asked waits for this answer: it must come, whatever happens.
        let answered = catch_unwind(AssertUnwindSafe(|| answers(&request)));
        let answered = answered.unwrap_or_else(|_| {
            Response::Error("the vault could not answer: its own log has the reason".into())
        });
        let pieces = response_pieces(id, answered, version);
        let count = pieces.len();
        let _whole = sending.lock();
        for (i, piece) in pieces.into_iter().enumerate() {
            let last = i + 1 == count;
            let report = Report::Answer { id, piece, last };
            if reports.blocking_send(report).is_err() {
                return;
            }
        }
    }
}

fn spawn(
    name: &str,
    body: impl FnOnce(&mut mpsc::Receiver<Job>, &mpsc::Sender<Report>) + Send + 'static,
) -> std::io::Result<Worker> {
    let (jobs, mut jobs_in) = mpsc::channel(JOBS);
    let (reports_out, reports) = mpsc::channel(REPORTS);
    let (done_out, done) = oneshot::channel();
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            body(&mut jobs_in, &reports_out);
            let _ = done_out.send(());
        })?;
    Ok(Worker {
        jobs,
        reports,
        done,
    })
}

/// Sends the replay; a report only if it failed.
fn replay(
    sink: &dyn SourceSink,
    after: BatchSeq,
    reports: &mpsc::Sender<Report>,
) -> Option<Report> {
    let mut listening = true;
    let result = sink.replay(after, &mut |record| {
        listening = reports.blocking_send(Report::Replayed(record)).is_ok();
        listening
    });
    match result {
        Err(e) => Some(error(e)),
        Ok(()) if listening => reports.blocking_send(Report::ReplayEnd).err().map(|e| e.0),
        Ok(()) => Some(Report::ReplayEnd),
    }
}

fn error(e: SinkError) -> Report {
    match e {
        SinkError::BadBatch { text } => Report::BadBatch(text),
        SinkError::Failed { text, retry_after } => Report::Failed { text, retry_after },
    }
}
