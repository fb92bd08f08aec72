//! Who may work: so many at once, the others one after another in the order in which they came.
//!
//! The projections of 200 sources that all send at once would else take the processors from the threads that read from
//! the network and make batches durable, and from each other's caches; and of 200 that put much on the disk at once, some would
//! be done before others have begun.

use crossbeam_channel::{Sender, bounded};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::time::Duration;

/// Whoever has waited this long works without a turn: one source's dead disk must not stop all others.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug)]
pub(crate) struct Turns {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: usize,
    tickets: u64,
    waiting: VecDeque<(u64, Sender<()>)>,
}

/// Held while at work.
pub(crate) struct Turn<'a>(&'a Turns);

impl Turns {
    /// For this many at once.
    pub(crate) fn new(at_once: usize) -> Self {
        Turns {
            state: Mutex::new(State {
                free: at_once,
                tickets: 0,
                waiting: VecDeque::new(),
            }),
        }
    }

    /// As many at once as there are processors.
    pub(crate) fn one_for_each_processor() -> Self {
        Turns::new(std::thread::available_parallelism().map_or(1, |n| n.get()))
    }

    /// Is anybody waiting? Then a turn should be short.
    pub(crate) fn is_contended(&self) -> bool {
        !self.state.lock().waiting.is_empty()
    }

    /// Waits for a turn; `None` after [`PATIENCE`]. Who has one must not take another.
    pub(crate) fn take(&self) -> Option<Turn<'_>> {
        self.take_within(PATIENCE)
    }

    /// Returns once so many wait.
    #[cfg(test)]
    pub(crate) fn wait_for_queue(&self, count: usize) {
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while self.state.lock().waiting.len() != count {
            assert!(
                std::time::Instant::now() < deadline,
                "never {count} in the queue"
            );
            std::thread::yield_now();
        }
    }

    fn take_within(&self, patience: Duration) -> Option<Turn<'_>> {
        let mut state = self.state.lock();
        if state.free > 0 {
            state.free -= 1;
            return Some(Turn(self));
        }
        let (sender, mine) = bounded(1);
        state.tickets += 1;
        let ticket = state.tickets;
        state.waiting.push_back((ticket, sender));
        drop(state);
        if mine.recv_timeout(patience).is_ok() {
            return Some(Turn(self));
        }
        let mut state = self.state.lock();
        let queued = state.waiting.len();
        state.waiting.retain(|(other, _)| *other != ticket);
        // No longer in the queue: called at the last moment.
        (state.waiting.len() == queued).then(|| Turn(self))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        match state.waiting.pop_front() {
            // There is room for it. Whoever does not listen any more finds out that it is no longer in the queue.
            Some((_, next)) => next.send(()).unwrap_or_default(),
            None => state.free += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn one_after_another_in_their_order() {
        let turns = Turns::new(1);
        let order = Mutex::new(Vec::new());
        let held = turns.take().unwrap();
        std::thread::scope(|scope| {
            for i in 0..20 {
                let (turns, order) = (&turns, &order);
                scope.spawn(move || {
                    let _turn = turns.take_within(Duration::MAX).unwrap();
                    order.lock().push(i);
                });
                turns.wait_for_queue(i + 1);
            }
            assert!(turns.is_contended());
            drop(held);
        });
        assert_eq!(*order.lock(), (0..20).collect::<Vec<_>>());
        assert!(turns.state.lock().free == 1 && !turns.is_contended());
    }

    #[test]
    fn no_more_at_once_than_may() {
        let turns = Turns::new(2);
        let (at_work, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let _turn = turns.take_within(Duration::MAX).unwrap();
                        most.fetch_max(
                            at_work.fetch_add(1, Ordering::SeqCst) + 1,
                            Ordering::SeqCst,
                        );
                        std::thread::yield_now();
                        at_work.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(most.load(Ordering::SeqCst) <= 2);
        assert_eq!(turns.state.lock().free, 2);
    }

    #[test]
    fn whoever_holds_a_turn_for_ever_does_not_stop_the_others() {
        let turns = Turns::new(1);
        let held = turns.take().unwrap();
        assert!(turns.take_within(Duration::from_millis(1)).is_none());
        turns.wait_for_queue(0);
        drop(held);
        // Whoever gave up has left nothing behind.
        drop(turns.take_within(Duration::from_millis(1)).unwrap());
        assert_eq!(turns.state.lock().free, 1);
    }
}
