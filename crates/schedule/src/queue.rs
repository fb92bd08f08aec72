//! The queue between the two units: one dirty set per vault, and what has left it without an ack.

use crate::dirty::{DirtySet, Due, Taken};
use farwrite_core::{
    BackupCommand, BatchSeq, BytePath, Change, ChangeSeq, Clock, FileId, SystemClock, Target,
    Timestamp,
};
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Shared by the managing unit (puts in), a processing unit (takes out) and the link (acks).
#[derive(Debug)]
pub struct Queue {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// [`Inner::last`], for [`Queue::told`].
    told: AtomicU64,
}

#[derive(Debug)]
struct Inner {
    dirty: DirtySet,
    taken: Option<Group>,
    in_flight: BTreeMap<BatchSeq, Group>,
    acked: Option<BatchSeq>,
    stopped: bool,
    urgent: usize,
    inserted: u64,
    /// Last message put in.
    last: ChangeSeq,
    nudges: u64,
}

/// Commands that have left the dirty set together.
#[derive(Clone, Copy, Debug)]
struct Group {
    oldest: (ChangeSeq, Timestamp),
    commands: usize,
}

/// A look at the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Commands that are not durable in the vault yet: waiting, taken, or sent and not acked.
    pub pending: usize,
    /// Bytes known to be changed among those waiting.
    pub pending_bytes: u64,
    /// Batches sent and not acked.
    pub in_flight: usize,
    /// Oldest message that is not durable in the vault yet, and its time.
    pub oldest: Option<(ChangeSeq, Timestamp)>,
    /// Messages ever put in.
    pub inserted: u64,
    /// Times that names collapsed into directories for lack of room.
    pub collapsed: u64,
}

impl Queue {
    /// An empty queue; see [`DirtySet::new`].
    pub fn new(limit: usize, roots: Vec<(FileId, BytePath)>) -> Self {
        let inner = Inner {
            dirty: DirtySet::new(limit, roots),
            taken: None,
            in_flight: BTreeMap::new(),
            acked: None,
            stopped: false,
            urgent: 0,
            inserted: 0,
            last: ChangeSeq(1),
            nudges: 0,
        };
        Queue {
            inner: Mutex::new(inner),
            changed: Condvar::new(),
            told: AtomicU64::new(0),
        }
    }

    /// Puts messages in; the first has sequence `first`.
    pub fn insert(&self, first: ChangeSeq, changes: &[Change]) {
        let mut q = self.inner.lock();
        for (i, c) in changes.iter().enumerate() {
            q.dirty.insert(ChangeSeq(first.0 + i as u64), c);
        }
        q.inserted += changes.len() as u64;
        q.last = q.last.max(ChangeSeq(
            (first.0 + changes.len() as u64).saturating_sub(1),
        ));
        self.told.store(q.last.0, Ordering::Release);
        self.changed.notify_all();
    }

    /// Puts in what no message tells of, as if it had been told with the oldest that is waiting, or the very first: until it
    /// is done, nothing counts as durable.
    pub fn owe(&self, changes: &[Change]) {
        let mut q = self.inner.lock();
        let seq = q.oldest().map_or(ChangeSeq(1), |(seq, _)| seq);
        for c in changes {
            q.dirty.insert(seq, c);
        }
        q.inserted += changes.len() as u64;
        self.changed.notify_all();
    }

    /// Last message put in, 0 before the first. All up to it are about what happened before this call. Never blocks.
    pub fn told(&self) -> ChangeSeq {
        ChangeSeq(self.told.load(Ordering::Acquire))
    }

    /// See [`DirtySet::note_drained`].
    pub fn note_drained(&self) {
        let mut q = self.inner.lock();
        q.dirty.note_drained();
        if !q.dirty.is_empty() {
            self.changed.notify_all();
        }
    }

    /// Blocks until there is something to take, something waits for a drain, the queue is stopped, or `timeout` is over.
    pub fn wait(&self, timeout: Duration) -> Wait {
        let deadline = Instant::now() + timeout;
        let mut q = self.inner.lock();
        loop {
            if q.stopped {
                return Wait::Stopped;
            }
            let until = match q.dirty.next_due(q.now_if_patient()) {
                Due::Now => return Wait::Due,
                Due::AfterDrain => return Wait::NeedsDrain,
                Due::At(at) => at.min(deadline),
                Due::Never => deadline,
            };
            if self.changed.wait_until(&mut q, until).timed_out() && until == deadline {
                return Wait::Idle;
            }
        }
    }

    /// Lets `interval` pass, less if the queue is stopped or someone waits for a flush.
    pub fn pause(&self, interval: Duration) {
        let deadline = Instant::now() + interval;
        let mut q = self.inner.lock();
        let nudges = q.nudges;
        while !q.stopped && q.urgent == 0 && q.nudges == nudges {
            if self.changed.wait_until(&mut q, deadline).timed_out() {
                return;
            }
        }
    }

    /// Takes a round out. The round counts as unacked until [`Queue::settle`].
    pub fn take(&self, max: usize) -> Taken {
        let mut q = self.inner.lock();
        let now = q.now_if_patient();
        let taken = q.dirty.take(max, now);
        let first = taken.commands.iter().map(|c| c.first).min();
        let since = taken.commands.iter().map(|c| c.since).min();
        let commands = taken.commands.len();
        q.taken = first.zip(since).map(|oldest| Group { oldest, commands });
        taken
    }

    /// See [`DirtySet::rest`].
    pub fn rest(&self, target: Target, rest: Duration) {
        let mut q = self.inner.lock();
        let now = Instant::now();
        q.dirty.rest(target, now, now + rest);
    }

    /// How many files rest, and how often this one has rested lately.
    pub fn resting(&self, target: &Target) -> (usize, u32) {
        let (q, now) = (self.inner.lock(), Instant::now());
        (q.dirty.resting(now), q.dirty.rested(target, now))
    }

    /// Ends the round: `put_back` goes to the end of the queue (`true`: after a drain), the rest is covered by all
    /// batches up to `batch`; `None`: there was nothing to send.
    pub fn settle(&self, put_back: Vec<(BackupCommand, bool)>, batch: Option<BatchSeq>) {
        let mut q = self.inner.lock();
        let (again, back) = (!put_back.is_empty(), put_back.len());
        let (last, now) = (q.last, SystemClock::default().now());
        for (mut c, after_drain) in put_back {
            if c.first == ChangeSeq::UNKNOWN {
                // Owed from now on, not since its first message.
                (c.first, c.since) = (last, now);
            }
            q.dirty.put_back(c, after_drain);
        }
        let taken = q.taken.take();
        // Without a batch of its own, what it relied on may be in the last one that is under way.
        let under_way = || q.in_flight.last_key_value().map(|(seq, _)| *seq);
        let batch = batch.or_else(under_way);
        if let (Some(seq), Some(t)) = (batch, taken)
            // The ack may have been faster than this call.
            && q.acked < Some(seq)
        {
            let slot = q.in_flight.entry(seq).or_insert(Group { commands: 0, ..t });
            let (a, b) = (slot.oldest, t.oldest);
            slot.oldest = (a.0.min(b.0), a.1.min(b.1));
            slot.commands += t.commands.saturating_sub(back);
        }
        if again {
            self.changed.notify_all();
        }
    }

    /// The vault has everything up to `seq`.
    pub fn acked(&self, seq: BatchSeq) {
        let mut q = self.inner.lock();
        q.acked = q.acked.max(Some(seq));
        q.in_flight = q.in_flight.split_off(&seq.next());
        self.changed.notify_all();
    }

    /// What was taken or under way may not have reached the vault: everything is to be compared, and counts as
    /// waiting since the oldest message of it.
    pub fn forget_in_flight(&self) {
        let mut q = self.inner.lock();
        let (seq, time) = q.oldest().unwrap_or((q.last, SystemClock::default().now()));
        q.dirty.compare_roots(seq, time);
        q.taken = None;
        q.in_flight.clear();
        q.acked = None;
        self.changed.notify_all();
    }

    /// The oldest message that is not durable in the vault yet, and its time.
    pub fn oldest(&self) -> Option<(ChangeSeq, Timestamp)> {
        self.inner.lock().oldest()
    }

    /// All messages up to this one are durable in the vault.
    pub fn durable_through(&self) -> ChangeSeq {
        let q = self.inner.lock();
        q.oldest()
            .map_or(q.last, |(s, _)| ChangeSeq(s.0.saturating_sub(1)))
    }

    /// Is nothing waiting (what is under way does not count)?
    pub fn is_empty(&self) -> bool {
        self.inner.lock().dirty.is_empty()
    }

    /// Blocks until everything up to `seq` is acked; `false` at the deadline or when stopped.
    pub fn wait_acked(&self, seq: ChangeSeq, deadline: Instant) -> bool {
        let mut q = self.inner.lock();
        loop {
            if q.oldest().is_none_or(|(s, _)| s > seq) {
                return true;
            }
            if q.stopped || Instant::now() >= deadline {
                return false;
            }
            self.changed.wait_until(&mut q, deadline);
        }
    }

    /// While at least one is held, units do not pause and no file rests: someone waits.
    pub fn hurry(&self) -> Hurry<'_> {
        self.inner.lock().urgent += 1;
        self.changed.notify_all();
        Hurry(self)
    }

    /// Ends a pause, and the rest of every file: their length has been set anew.
    pub fn nudge(&self) {
        let mut q = self.inner.lock();
        q.nudges += 1;
        q.dirty.end_rests();
        drop(q);
        self.changed.notify_all();
    }

    /// Ends all waiting for good.
    pub fn stop(&self) {
        self.inner.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Everything that a journal has to hold to begin anew with: see [`DirtySet::to_changes`]. What has left the set without an
    /// ack is known no more one by one: if there is any, everything is to be compared.
    pub fn to_changes(&self) -> Vec<Change> {
        let mut q = self.inner.lock();
        if let Some(left) = q.left().map(|g| g.oldest).min() {
            q.dirty.compare_roots(left.0, left.1);
        }
        q.dirty.to_changes()
    }

    /// Changes that are not acked, and the time of the oldest: what of [`Queue::stats`] costs nothing.
    pub fn behind(&self) -> (usize, Option<Timestamp>) {
        let q = self.inner.lock();
        let pending = q.dirty.len() + q.left().map(|g| g.commands).sum::<usize>();
        (pending, q.oldest().map(|(_, t)| t))
    }

    /// Counters.
    pub fn stats(&self) -> QueueStats {
        let q = self.inner.lock();
        QueueStats {
            pending: q.dirty.len() + q.left().map(|g| g.commands).sum::<usize>(),
            pending_bytes: q.dirty.known_bytes(),
            in_flight: q.in_flight.len(),
            oldest: q.oldest(),
            inserted: q.inserted,
            collapsed: q.dirty.collapsed(),
        }
    }
}

impl Inner {
    /// The time, unless somebody waits for everything.
    fn now_if_patient(&self) -> Option<Instant> {
        (self.urgent == 0).then(Instant::now)
    }

    /// What has left the dirty set and is not acked.
    fn left(&self) -> impl Iterator<Item = &Group> {
        self.taken.iter().chain(self.in_flight.values())
    }

    fn oldest(&self) -> Option<(ChangeSeq, Timestamp)> {
        let seqs = self
            .dirty
            .oldest()
            .into_iter()
            .chain(self.left().map(|g| g.oldest));
        seqs.reduce(|a, b| (a.0.min(b.0), a.1.min(b.1)))
    }
}

/// Why [`Queue::wait`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// There are commands to take.
    Due,
    /// All that is there waits for the sensor to be emptied.
    NeedsDrain,
    /// Nothing came.
    Idle,
    /// The queue was stopped.
    Stopped,
}

/// See [`Queue::hurry`].
pub struct Hurry<'a>(&'a Queue);

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.inner.lock().urgent -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farwrite_core::ChangeOp;

    #[test]
    fn whoever_waits_for_a_flush_ends_the_rest_of_a_file() {
        let file = FileId { dev: 1, ino: 2 };
        let q = Queue::new(100, Vec::new());
        let c = Change {
            time: Timestamp::from_nanos(1),
            path: BytePath::new("/a").unwrap(),
            dir: FileId { dev: 1, ino: 1 },
            name: Some(farwrite_core::Name::new("a").unwrap()),
            file: Some(file),
            op: ChangeOp::Write(None),
        };
        let (hour, now) = (Duration::from_secs(3600), Duration::ZERO);
        q.rest(Target::File(file), hour);
        q.insert(ChangeSeq(1), std::slice::from_ref(&c));
        assert_eq!(q.wait(now), Wait::Idle);
        assert!(q.take(10).commands.is_empty() && !q.is_empty());
        let hurry = q.hurry();
        assert_eq!(q.wait(now), Wait::Due);
        drop(hurry);
        assert_eq!(q.wait(now), Wait::Idle);
        std::thread::scope(|s| {
            let waiting = s.spawn(|| q.wait(hour));
            q.nudge();
            assert_eq!(waiting.join().unwrap(), Wait::Due);
        });
        assert_eq!(q.take(10).commands.len(), 1);
        // The rest ends by itself, too.
        q.rest(Target::File(file), Duration::from_millis(20));
        q.insert(ChangeSeq(2), std::slice::from_ref(&c));
        assert_eq!(q.wait(hour), Wait::Due);
    }

    fn writes(files: std::ops::Range<u64>) -> Vec<Change> {
        let write = |n| Change {
            time: Timestamp::from_nanos(1),
            path: BytePath::new(format!("/{n}")).unwrap(),
            dir: FileId { dev: 1, ino: 1 },
            name: None,
            file: Some(FileId { dev: 1, ino: 2 + n }),
            op: ChangeOp::Write(None),
        };
        files.map(write).collect()
    }

    #[test]
    fn what_had_been_read_before_is_durable_with_what_is_under_way() {
        let q = Queue::new(100, Vec::new());
        q.insert(ChangeSeq(1), &writes(0..2));
        assert_eq!(q.take(1).commands.len(), 1);
        q.settle(Vec::new(), Some(BatchSeq(1)));
        // Of the second file all is in that batch already.
        assert_eq!(q.take(1).commands.len(), 1);
        q.settle(Vec::new(), None);
        assert_eq!(q.durable_through(), ChangeSeq(0));
        q.insert(ChangeSeq(3), &writes(2..4));
        q.take(1);
        q.settle(Vec::new(), Some(BatchSeq(2)));
        q.take(1);
        q.settle(Vec::new(), None);
        q.acked(BatchSeq(1));
        assert_eq!(q.durable_through(), ChangeSeq(2));
        q.acked(BatchSeq(2));
        assert_eq!(q.durable_through(), ChangeSeq(4));
    }

    #[test]
    fn what_is_owed_is_no_message() {
        let q = Queue::new(100, Vec::new());
        let changes = writes(0..20);
        assert_eq!(q.told(), ChangeSeq(0));
        q.owe(&changes);
        assert_eq!(
            (q.told(), q.durable_through()),
            (ChangeSeq(0), ChangeSeq(0))
        );
        q.take(100);
        q.settle(Vec::new(), None);
        q.insert(ChangeSeq(7), &changes[..3]);
        q.owe(&changes);
        // More than there are messages: one that comes now has a number that none of these has.
        assert_eq!(
            (q.told(), q.durable_through()),
            (ChangeSeq(9), ChangeSeq(6))
        );
        let newest = q.take(100).commands.iter().map(|c| c.newest).max();
        assert_eq!(newest, Some(ChangeSeq(9)));
    }

    #[test]
    fn an_ack_faster_than_the_round_leaves_nothing_in_flight() {
        let root = FileId { dev: 1, ino: 1 };
        let q = Queue::new(100, vec![(root, BytePath::root())]);
        let c = Change {
            time: Timestamp::from_nanos(1),
            path: BytePath::new("/a").unwrap(),
            dir: root,
            name: Some(farwrite_core::Name::new("a").unwrap()),
            file: None,
            op: ChangeOp::Create,
        };
        for (seq, ack_first) in [(1, true), (2, false)] {
            q.insert(ChangeSeq(seq), std::slice::from_ref(&c));
            assert_eq!(q.take(10).commands.len(), 1);
            assert_eq!(q.stats().pending, 1, "taken, not durable");
            assert_eq!(q.oldest().unwrap().0, ChangeSeq(seq), "taken, not done");
            if ack_first {
                q.acked(BatchSeq(seq));
            }
            q.settle(Vec::new(), Some(BatchSeq(seq)));
            assert_eq!(q.oldest().is_none(), ack_first);
            assert_eq!(q.stats().pending, usize::from(!ack_first));
            q.acked(BatchSeq(seq));
            assert_eq!(q.stats().pending, 0);
            assert!(q.oldest().is_none());
        }
    }
}
