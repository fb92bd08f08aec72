//! The schedule-managing unit: puts file modification messages into the queue, in sequence.
//!
//! Owns a thread (the caller's, in [`ManagingUnit::run`]) and its own [`Pacer`]. A message is in the journal
//! before it is in any dirty set, and both before the sensor may forget it.

use crate::journal::{Journal, JournalError, JournalStats};
use crate::pacer::{Pacer, PacerSetting, Round};
use crate::queue::Queue;
use farwrite_core::{Change, ChangeSeq};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Whether what waited in the sensor has been delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    /// Every change made before the first call since the last of these has been delivered.
    Drained,
    /// There may be more.
    More,
}

/// Where messages come from.
pub trait MessageSource {
    /// Waits up to `timeout` for at least one message and appends what is there. A wake-up from outside ends the
    /// wait early.
    fn read(&mut self, out: &mut Vec<Change>, timeout: Duration) -> Result<Drain, String>;

    /// What has been read is in the journal: the sensor may forget it.
    fn release(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// Somebody wants all that has changed until now to be backed up ([`Haste::Flush`]): whoever is not told of changes, but
    /// compares now and then, has to do so at the next read, as far as that is bearable.
    fn look_now(&mut self) {}
}

/// How soon the sensor's queue is to be empty, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Haste {
    /// Who asks can do without: the interval that the unit lets pass is not shortened.
    Leisure,
    /// At once.
    Urgent,
    /// At once, and what a sensor is not told of is looked for.
    Flush,
}

/// Longest wait for messages while some are not done with: the journal's checkpoint is to follow.
const IDLE_WAIT: Duration = Duration::from_secs(5);
/// The same when there is nothing to do but to wait.
const IDLE_LONGEST: Duration = Duration::from_secs(600);
/// The journal is made anew from the dirty sets beyond this size.
const JOURNAL_BYTES: u64 = 64 << 20;

/// Counters of the unit.
#[derive(Clone, Copy, Debug, Default)]
pub struct ManagingStats {
    /// Messages read from the sensor.
    pub read: u64,
    /// Messages dropped by a filter.
    pub filtered: u64,
    /// Messages queued.
    pub queued: u64,
    /// Overflows that the sensor reported.
    pub overflows: u64,
    /// Rounds.
    pub rounds: u64,
    /// Interval chosen after the last round.
    pub interval: Duration,
    /// The journal.
    pub journal: JournalStats,
}

/// A filter: `false` drops the message.
pub type Filter = Box<dyn Fn(&Change) -> bool + Send>;
/// Told of every round's messages before they are queued.
pub type Observer = Box<dyn FnMut(ChangeSeq, &[Change]) + Send>;

/// See the module.
pub struct ManagingUnit {
    journal: Journal,
    queues: Vec<Arc<Queue>>,
    pacer: Pacer,
    filter: Filter,
    observer: Observer,
    shared: Arc<ManagingShared>,
    /// Bytes of the journal after it was last made anew.
    compacted_bytes: u64,
}

/// What other threads need of a running unit.
#[derive(Default)]
pub struct ManagingShared {
    stop: AtomicBool,
    drains: Mutex<Drains>,
    drained: Condvar,
    stats: Mutex<ManagingStats>,
}

/// A request that the sensor be emptied.
#[derive(Clone, Copy, Debug)]
pub struct DrainTicket(u64);

#[derive(Default)]
struct Drains {
    requested: u64,
    /// The last request for which the unit does not let its interval pass.
    urgent: u64,
    /// The last request for which the sensor looks by itself.
    flush: u64,
    done: u64,
    last: ChangeSeq,
}

impl ManagingUnit {
    /// A unit that feeds `queues` through `journal`. Messages that the journal still held have to be put into the
    /// queues by the caller before.
    pub fn new(
        journal: Journal,
        queues: Vec<Arc<Queue>>,
        setting: PacerSetting,
        filter: Filter,
        observer: Observer,
    ) -> Self {
        let shared = Arc::new(ManagingShared::default());
        shared.drains.lock().last = journal.stats().last;
        ManagingUnit {
            journal,
            queues,
            pacer: Pacer::new(setting),
            filter,
            observer,
            shared,
            compacted_bytes: 0,
        }
    }

    /// The part that other threads use.
    pub fn shared(&self) -> Arc<ManagingShared> {
        self.shared.clone()
    }

    /// Queues messages that do not come from the sensor (a compare of a whole tree).
    pub fn put(&mut self, mut changes: Vec<Change>) -> Result<(), JournalError> {
        self.round(&mut changes)
    }

    /// Runs until [`ManagingShared::stop`] or an error of the sensor or the journal; gives the journal back to the next
    /// unit by [`ManagingUnit::into_journal`].
    pub fn run(&mut self, source: &mut dyn MessageSource) -> Result<(), String> {
        let mut buf = Vec::new();
        // Drains that were asked for before the first read that a `Drained` will cover.
        let mut covered = None;
        let mut settled = false;
        // The last request for which the sensor has been told to look.
        let mut looked = 0;
        while !self.shared.stop.load(Ordering::Acquire) {
            let (requested, done, flush) = {
                let d = self.shared.drains.lock();
                (d.requested, d.done, d.flush)
            };
            if flush > looked {
                looked = flush;
                source.look_now();
            }
            let covers = *covered.get_or_insert(requested);
            let timeout = match () {
                () if requested > done => Duration::ZERO,
                () if settled => IDLE_LONGEST,
                () => IDLE_WAIT,
            };
            let asked = Instant::now();
            let drain = source.read(&mut buf, timeout)?;
            let started = Instant::now();
            let items = buf.len();
            if items > 0 {
                self.round(&mut buf).map_err(|e| e.to_string())?;
                source.release()?;
            }
            if drain == Drain::Drained {
                self.note_drained(covers);
                covered = None;
            }
            self.checkpoint(items == 0).map_err(|e| e.to_string())?;
            let journal = self.journal.stats();
            settled = items == 0 && journal.checkpoint == journal.last;
            let backlog = drain == Drain::More;
            self.pacer.observe(Round {
                waited: started - asked,
                work: started.elapsed(),
                items,
                backlog,
                ..Round::default()
            });
            self.publish(items);
            if items > 0 && !backlog {
                self.pause(self.pacer.interval());
            }
        }
        self.checkpoint(true).map_err(|e| e.to_string())
    }

    /// Ends the unit.
    pub fn into_journal(mut self) -> Journal {
        // A failed note costs a second look at files already sent, nothing else.
        let _ = self.journal.note_checkpoint();
        self.journal
    }

    fn round(&mut self, changes: &mut Vec<Change>) -> Result<(), JournalError> {
        let before = changes.len();
        changes.retain(|c| (self.filter)(c));
        let filtered = before - changes.len();
        let overflows = changes
            .iter()
            .filter(|c| c.op == farwrite_core::ChangeOp::Overflow)
            .count();
        if !changes.is_empty() {
            let first = self.journal.append(changes)?;
            (self.observer)(first, changes);
            for q in &self.queues {
                q.insert(first, changes);
            }
        }
        let mut stats = self.shared.stats.lock();
        stats.read += before as u64;
        stats.filtered += filtered as u64;
        stats.queued += changes.len() as u64;
        stats.overflows += overflows as u64;
        drop(stats);
        changes.clear();
        if self.journal.stats().bytes > JOURNAL_BYTES.max(2 * self.compacted_bytes) {
            self.compact()?;
        }
        Ok(())
    }

    /// Makes the journal anew from what is still dirty; what is under way stays covered by its first message.
    fn compact(&mut self) -> Result<(), JournalError> {
        self.checkpoint(true)?;
        if self.journal.stats().bytes <= JOURNAL_BYTES / 2 {
            return Ok(());
        }
        let changes: Vec<Change> = self.queues.iter().flat_map(|q| q.to_changes()).collect();
        let first = self.journal.restart_with(&changes)?;
        self.compacted_bytes = self.journal.stats().bytes;
        for q in &self.queues {
            q.insert(first, &changes);
        }
        Ok(())
    }

    fn checkpoint(&mut self, quiet: bool) -> Result<(), JournalError> {
        let last = self.journal.stats().last;
        let oldest = self
            .queues
            .iter()
            .filter_map(|q| q.oldest())
            .map(|(s, _)| s)
            .min();
        self.journal
            .set_checkpoint(oldest.map_or(last, |s| ChangeSeq(s.0.saturating_sub(1))))?;
        if quiet {
            self.journal.note_checkpoint()
        } else {
            Ok(())
        }
    }

    fn note_drained(&self, requested: u64) {
        for q in &self.queues {
            q.note_drained();
        }
        let mut d = self.shared.drains.lock();
        d.done = d.done.max(requested);
        d.last = self.journal.stats().last;
        self.shared.drained.notify_all();
    }

    fn pause(&self, interval: Duration) {
        let deadline = Instant::now() + interval;
        let mut d = self.shared.drains.lock();
        while d.urgent <= d.done && !self.shared.stop.load(Ordering::Acquire) {
            if self.shared.drained.wait_until(&mut d, deadline).timed_out() {
                return;
            }
        }
    }

    fn publish(&self, items: usize) {
        let mut stats = self.shared.stats.lock();
        stats.rounds += u64::from(items > 0);
        stats.interval = self.pacer.interval();
        stats.journal = self.journal.stats();
    }
}

impl ManagingShared {
    /// Asks the unit to empty the sensor's queue and waits until it has. `wake` interrupts the sensor's wait. Returns
    /// the last message then queued: all changes made before the call are at or before it. `None` at the deadline.
    pub fn barrier(&self, wake: &dyn Fn(), deadline: Instant) -> Option<ChangeSeq> {
        self.wait_drained(&mut None, Haste::Urgent, wake, deadline)
    }

    /// The same for who can do without: does not shorten the interval that the unit lets pass.
    pub fn barrier_at_leisure(&self, wake: &dyn Fn(), deadline: Instant) -> Option<ChangeSeq> {
        self.wait_drained(&mut None, Haste::Leisure, wake, deadline)
    }

    /// The same in several tries: the first one asks, and leaves in `ticket` what the next ones go on waiting for.
    pub fn wait_drained(
        &self,
        ticket: &mut Option<DrainTicket>,
        haste: Haste,
        wake: &dyn Fn(),
        deadline: Instant,
    ) -> Option<ChangeSeq> {
        let mut d = self.drains.lock();
        let mine = match ticket {
            Some(t) => t.0,
            None => {
                d.requested += 1;
                if haste >= Haste::Urgent {
                    d.urgent = d.requested;
                }
                if haste == Haste::Flush {
                    d.flush = d.requested;
                }
                self.drained.notify_all();
                wake();
                d.requested
            }
        };
        *ticket = Some(DrainTicket(mine));
        while d.done < mine {
            if self.stop.load(Ordering::Acquire)
                || self.drained.wait_until(&mut d, deadline).timed_out()
            {
                return None;
            }
        }
        Some(d.last)
    }

    /// Ends [`ManagingUnit::run`] after its round; the caller also wakes the sensor.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.drained.notify_all();
    }

    /// Counters.
    pub fn stats(&self) -> ManagingStats {
        *self.stats.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Journal;
    use std::sync::atomic::AtomicU64;

    /// A sensor that is told of nothing.
    struct Blind(Arc<AtomicU64>);

    impl MessageSource for Blind {
        fn read(&mut self, _: &mut Vec<Change>, _: Duration) -> Result<Drain, String> {
            std::thread::yield_now();
            Ok(Drain::Drained)
        }

        fn look_now(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn only_a_flush_has_a_sensor_look_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(dir.path()).unwrap();
        let setting = PacerSetting::new(crate::Interval::default());
        let (filter, observer) = (Box::new(|_: &Change| true), Box::new(|_, _: &[Change]| ()));
        let mut unit = ManagingUnit::new(journal, vec![], setting, filter, observer);
        let shared = unit.shared();
        let looked = Arc::new(AtomicU64::new(0));
        let mut sensor = Blind(looked.clone());
        std::thread::scope(|scope| {
            let unit = scope.spawn(move || unit.run(&mut sensor));
            let soon = || Instant::now() + Duration::from_secs(60);
            for _ in 0..10 {
                shared.barrier(&|| (), soon()).unwrap();
                shared.barrier_at_leisure(&|| (), soon()).unwrap();
            }
            assert_eq!(looked.load(Ordering::SeqCst), 0);
            for flushes in 1..=3 {
                let wake = || ();
                let done = shared.wait_drained(&mut None, Haste::Flush, &wake, soon());
                done.unwrap();
                assert_eq!(looked.load(Ordering::SeqCst), flushes);
            }
            shared.stop();
            unit.join().unwrap().unwrap();
        });
    }
}
