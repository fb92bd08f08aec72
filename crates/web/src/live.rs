//! What pages get while they are open, as server-sent events: rendered fragments of the overview, samples of the feed.
//!
//! A page is never told more than it can show: what the feed leaves out is counted here, where it costs nothing.

use crate::gate::Session;
use crate::pages::overview;
use crate::server::Site;
use axum::extract::{Extension, Query, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use farwrite_control::{Activity, Status};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Live views at once, over all browsers.
pub(crate) const VIEWS: usize = 48;
/// How often the feed tells something.
const TICK: Duration = Duration::from_millis(200);
/// Changes that one tick shows.
const SHOWN: usize = 40;
/// Changes shown last whose bytes are told when they have been sent.
const PATHS: usize = 200;
/// Batches and links that one tick tells of.
const MARKS: usize = 8;
/// A browser that has lost its view comes back after this time.
const AGAIN: Duration = Duration::from_millis(700);

pub(crate) type Sender = mpsc::Sender<Result<Event, Infallible>>;

/// A stream that `feed` fills until it ends or nobody reads.
pub(crate) fn stream<F>(site: &Site, feed: impl FnOnce(Sender) -> F) -> Response
where
    F: Future<Output = ()> + Send + 'static,
{
    let Ok(place) = site.live.clone().try_acquire_owned() else {
        let text = "too many pages are open";
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    };
    let (sender, receiver) = mpsc::channel(2);
    let (gone, work) = (sender.clone(), feed(sender));
    tokio::spawn(async move {
        tokio::select! {
            () = work => {}
            () = gone.closed() => {}
        }
        drop(place);
    });
    Sse::new(ReceiverStream::new(receiver))
        .keep_alive(KeepAlive::new().interval(Duration::from_secs(10)))
        .into_response()
}

/// Tells something; `false` if nobody is there any more.
pub(crate) async fn tell(sender: &Sender, data: &impl Serialize) -> bool {
    let event = Event::default()
        .retry(AGAIN)
        .json_data(data)
        .expect("what is told is plain data");
    sender.send(Ok(event)).await.is_ok()
}

/// What the overview shows anew.
#[derive(Serialize)]
struct Overview {
    sentence: String,
    switch: String,
    details: String,
    lag_ms: u64,
    pending: u64,
    messages: u64,
    wire_bytes: u64,
}

/// `GET /live/overview`.
pub(crate) async fn overview(
    State(site): State<Site>,
    Extension(session): Extension<Session>,
) -> Response {
    let control = site.control.clone();
    stream(&site, move |sender| async move {
        let Ok(mut events) = control.events::<Status>("events/status").await else {
            return;
        };
        // The charts move on also when nothing changes.
        let mut tick = tokio::time::interval(Duration::from_millis(500));
        let mut last: Option<Status> = None;
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Ok(Some(status)) => last = Some(status),
                    _ => return,
                },
                _ = tick.tick() => {}
            }
            let Some(status) = &last else { continue };
            let now = Overview {
                sentence: overview::sentence_part(status),
                switch: overview::switch_part(status, &session),
                details: overview::details_part(status, &session),
                lag_ms: status.vaults.iter().map(|v| v.lag_ms).max().unwrap_or(0),
                pending: status
                    .vaults
                    .iter()
                    .map(|v| v.pending_changes)
                    .max()
                    .unwrap_or(0),
                messages: status.schedule.messages,
                wire_bytes: status.vaults.iter().map(|v| v.wire_bytes).sum(),
            };
            if !tell(&sender, &now).await {
                return;
            }
        }
    })
}

/// What of the feed somebody wants.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Wanted {
    filter: String,
    operation: String,
}

impl Wanted {
    fn is_wanted(&self, operation: &str, path: &str, to: Option<&str>) -> bool {
        let named = |p: &str| p.contains(&self.filter);
        // "links" may be about files that are not protected: only for those who ask for it.
        let by_default = self.operation.is_empty() && operation != "links";
        (by_default || self.operation == operation) && (named(path) || to.is_some_and(named))
    }
}

/// What one tick of the feed tells.
#[derive(Default, Serialize)]
struct Tick {
    changes: Vec<Change>,
    /// Changes that are not among them.
    left_out: u64,
    /// Files that were sent, of those that are shown.
    files: Vec<File>,
    marks: Vec<Mark>,
    durable: Option<Durable>,
}

#[derive(Serialize)]
struct Change {
    seq: u64,
    time_ms: u64,
    operation: String,
    path: String,
    to: Option<String>,
    extent: Option<(u64, u64)>,
}

#[derive(Serialize)]
struct File {
    path: String,
    bytes: u64,
}

#[derive(Serialize)]
struct Mark {
    text: String,
    time_ms: u64,
}

#[derive(Clone, Copy, Serialize)]
struct Durable {
    through: u64,
    time_ms: u64,
}

/// `GET /live/activity`.
pub(crate) async fn activity(State(site): State<Site>, Query(wanted): Query<Wanted>) -> Response {
    let control = site.control.clone();
    stream(&site, move |sender| async move {
        let Ok(mut events) = control.events::<Activity>("events/activity").await else {
            return;
        };
        let mut feed = Feed {
            wanted,
            ..Feed::default()
        };
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // An empty tick says that the feed is there.
        let mut greet = true;
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Ok(Some(activity)) => feed.take(activity),
                    _ => return,
                },
                _ = tick.tick() => {
                    if feed.waits() && let Ok(status) = control.get::<Status>("status").await {
                        feed.note_durable(&status);
                    }
                    if let Some(now) = feed.tick(greet)
                        && !tell(&sender, &now).await
                    {
                        return;
                    }
                    greet = false;
                }
            }
        }
    })
}

#[derive(Default)]
struct Feed {
    wanted: Wanted,
    next: Tick,
    /// Bytes of batches sent since the last one that became durable, by vault.
    sent: HashMap<String, u64>,
    /// The last change that was shown.
    shown: u64,
    /// Paths of the changes shown last.
    paths: VecDeque<String>,
    /// All changes up to this one are durable everywhere, as was told.
    through: u64,
    last_ack_ms: u64,
}

impl Feed {
    fn take(&mut self, activity: Activity) {
        match activity {
            Activity::Change {
                seq,
                time_ms,
                operation,
                path,
                to,
                extent,
                ..
            } => {
                if !self.wanted.is_wanted(&operation, &path, to.as_deref()) {
                    return;
                }
                // The same again in one moment is shown once, with its last number.
                let same = |c: &&mut Change| {
                    c.path == path && c.operation == operation && c.extent == extent && c.to == to
                };
                if let Some(again) = self.next.changes.iter_mut().rev().find(same) {
                    again.seq = seq;
                    self.shown = self.shown.max(seq);
                    return;
                }
                if self.next.changes.len() >= SHOWN {
                    self.next.left_out += 1;
                    return;
                }
                self.shown = seq;
                if self.paths.len() == PATHS {
                    self.paths.pop_front();
                }
                self.paths
                    .push_back(to.clone().unwrap_or_else(|| path.clone()));
                self.next.changes.push(Change {
                    seq,
                    time_ms,
                    operation,
                    path,
                    to,
                    extent,
                });
            }
            Activity::File { path, bytes, .. } => self.sent(path, bytes),
            Activity::Sent { vault, bytes, .. } => *self.sent.entry(vault).or_default() += bytes,
            Activity::Durable {
                vault,
                batch,
                after_ms,
                time_ms,
                ..
            } => {
                self.last_ack_ms = time_ms;
                let bytes = self.sent.remove(&vault).unwrap_or(0);
                let sent = match bytes {
                    0 => String::new(),
                    n => format!(": {} sent,", crate::words::bytes(n)),
                };
                let text = format!("batch {batch}{sent} durable in {vault} after {after_ms} ms");
                self.mark(Mark { text, time_ms });
            }
            Activity::Link { vault, text } => self.mark(Mark {
                text: format!("{vault}: {text}"),
                time_ms: now_ms(),
            }),
            Activity::Skipped { count } => self.next.left_out += count,
        }
    }

    /// Only of files that are shown: what a tick tells stays bounded.
    fn sent(&mut self, path: String, bytes: u64) {
        if let Some(again) = self.next.files.iter_mut().find(|f| f.path == path) {
            again.bytes += bytes;
        } else if self.next.files.len() < PATHS && self.paths.contains(&path) {
            self.next.files.push(File { path, bytes });
        }
    }

    fn mark(&mut self, mark: Mark) {
        if self.next.marks.len() == MARKS {
            self.next.marks.remove(0);
        }
        self.next.marks.push(mark);
    }

    /// Is something shown that is not known to be durable?
    fn waits(&self) -> bool {
        self.shown > self.through
    }

    fn note_durable(&mut self, status: &Status) {
        let through = status.vaults.iter().map(|v| v.durable_through).min();
        let through = through.unwrap_or(0);
        if through > self.through {
            self.through = through;
            let time_ms = match self.last_ack_ms {
                0 => now_ms(),
                t => t,
            };
            self.next.durable = Some(Durable { through, time_ms });
        }
    }

    fn tick(&mut self, greet: bool) -> Option<Tick> {
        let t = &self.next;
        let told = t.left_out > 0 || t.durable.is_some();
        let empty = !told && t.changes.is_empty() && t.marks.is_empty() && t.files.is_empty();
        (greet || !empty).then(|| std::mem::take(&mut self.next))
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| d.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(seq: u64, path: &str) -> Activity {
        Activity::Change {
            seq,
            time_ms: 1,
            operation: "write".into(),
            path: path.into(),
            to: None,
            extent: None,
            text: String::new(),
        }
    }

    #[test]
    fn a_storm_is_sampled_and_counted_and_the_filter_comes_first() {
        let mut feed = Feed {
            wanted: Wanted {
                filter: "keep".into(),
                operation: String::new(),
            },
            ..Feed::default()
        };
        for seq in 0..10_000 {
            let name = if seq % 10 == 0 { "keep" } else { "other" };
            feed.take(change(seq, &format!("/{name}{seq}")));
        }
        feed.take(Activity::Skipped { count: 5 });
        let tick = feed.tick(false).unwrap();
        assert_eq!(tick.changes.len(), SHOWN);
        assert_eq!(tick.left_out, 1_000 - SHOWN as u64 + 5);
        assert!(tick.changes.iter().all(|c| c.path.starts_with("/keep")));
        assert!(feed.tick(false).is_none());
        let sent = |path: &str, bytes| Activity::File {
            vault: "v".into(),
            path: path.into(),
            bytes,
        };
        feed.take(sent("/keep0", 5));
        feed.take(sent("/keep0", 6));
        feed.take(sent("/other1", 7));
        let tick = feed.tick(false).unwrap();
        let files: Vec<_> = tick.files.iter().map(|f| (&*f.path, f.bytes)).collect();
        assert_eq!(files, [("/keep0", 11)], "of what is shown, in sum");
        for seq in 0..1000 {
            feed.take(change(seq, "/keep it"));
        }
        let tick = feed.tick(false).unwrap();
        assert_eq!(
            (tick.changes.len(), tick.left_out, tick.changes[0].seq),
            (1, 0, 999)
        );
    }
}
