//! The feed of what happens, for those who watch. Never slows down what it tells of: a watcher that does not
//! keep up is told how much it missed.

use crate::bell::Bell;
use farwrite_control::Activity;
use farwrite_core::{Change, ChangeOp, ChangeSeq, Clock, SystemClock, Timestamp};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Activities remembered.
const REMEMBERED: usize = 1024;
/// A watcher is asked whether it is still there at least this often.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Links of a file that is known by its number only have changed, anywhere on the filesystem. Whoever watches must not
/// take that for a change of the directory that it is told with.
fn is_about_links(change: &Change) -> bool {
    let other = |f| f != change.dir;
    change.op == ChangeOp::Attrib && change.name.is_none() && change.file.is_some_and(other)
}

/// A file modification message as those who watch get it.
pub fn told(change: &Change, seq: ChangeSeq) -> Activity {
    let text = match is_about_links(change) {
        true => format!("links    of a file on the filesystem of {}", change.path),
        false => change.describe(),
    };
    let operation = text
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned();
    let (to, extent) = match &change.op {
        ChangeOp::Rename { to_path, .. } => (Some(to_path.to_string()), None),
        ChangeOp::Write(e) | ChangeOp::Mapped(e) => (None, e.map(|e| (e.offset, e.end()))),
        _ => (None, None),
    };
    Activity::Change {
        seq: seq.0,
        time_ms: millis(change.time),
        operation,
        path: change.path.to_string(),
        to,
        extent,
        text,
    }
}

/// Milliseconds since 1970, now.
pub fn now_ms() -> u64 {
    millis(SystemClock::default().now())
}

fn millis(t: Timestamp) -> u64 {
    u64::try_from(t.sec).unwrap_or(0).saturating_mul(1000) + u64::from(t.nsec) / 1_000_000
}

/// See the module.
#[derive(Default)]
pub struct Feed {
    inner: Mutex<Inner>,
    news: Condvar,
    bell: Bell,
}

#[derive(Default)]
struct Inner {
    recent: VecDeque<Activity>,
    /// Activities ever told.
    total: u64,
    watchers: usize,
    closed: bool,
}

impl Feed {
    /// Tells an activity; `make` is called only if somebody watches.
    pub fn tell(&self, make: impl FnOnce() -> Activity) {
        self.bell.ring();
        let mut i = self.inner.lock();
        if i.watchers == 0 {
            return;
        }
        if i.recent.len() == REMEMBERED {
            i.recent.pop_front();
        }
        i.recent.push_back(make());
        i.total += 1;
        self.news.notify_all();
    }

    /// Rung with each activity, watched or not.
    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Does somebody watch?
    pub fn is_watched(&self) -> bool {
        self.inner.lock().watchers > 0
    }

    /// Ends all watches.
    pub fn close(&self) {
        self.inner.lock().closed = true;
        self.news.notify_all();
    }

    /// A watch from now on.
    pub fn watch(self: &Arc<Self>) -> Watch {
        let mut i = self.inner.lock();
        i.watchers += 1;
        Watch {
            feed: self.clone(),
            next: i.total,
        }
    }
}

/// Iterates over activities; `None` items are heartbeats.
pub struct Watch {
    feed: Arc<Feed>,
    next: u64,
}

impl Iterator for Watch {
    type Item = Option<Activity>;

    fn next(&mut self) -> Option<Self::Item> {
        let deadline = Instant::now() + HEARTBEAT;
        let mut i = self.feed.inner.lock();
        loop {
            if i.closed {
                return None;
            }
            let oldest = i.total - i.recent.len() as u64;
            if self.next < oldest {
                let count = oldest - self.next;
                self.next = oldest;
                return Some(Some(Activity::Skipped { count }));
            }
            if let Some(a) = i.recent.get((self.next - oldest) as usize) {
                self.next += 1;
                return Some(Some(a.clone()));
            }
            if self.feed.news.wait_until(&mut i, deadline).timed_out() {
                return Some(None);
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut i = self.feed.inner.lock();
        i.watchers -= 1;
        if i.watchers == 0 {
            i.recent.clear();
        }
    }
}
