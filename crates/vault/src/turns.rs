//! Who may work: so many at once, the others one after another in the order in which they came.
//!
//! The projections of 200 sources that all send at once would else take the processors from the threads that read from
//! the network and make batches durable, and from each other's caches.

use crossbeam_channel::{Sender, bounded};
use parking_lot::Mutex;
use std::collections::VecDeque;

/// See the module.
#[derive(Debug)]
pub(crate) struct Turns {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: usize,
    waiting: VecDeque<Sender<()>>,
}

/// Held while at work.
pub(crate) struct Turn<'a>(&'a Turns);

impl Turns {
    /// For this many at once.
    pub(crate) fn new(at_once: usize) -> Self {
        Turns {
            state: Mutex::new(State {
                free: at_once,
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

    /// Waits for a turn. Who has one must not take another.
    pub(crate) fn take(&self) -> Turn<'_> {
        let mut state = self.state.lock();
        if state.free > 0 {
            state.free -= 1;
            return Turn(self);
        }
        let (sender, mine) = bounded(1);
        state.waiting.push_back(sender);
        drop(state);
        mine.recv().expect("whoever waits is called");
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        match state.waiting.pop_front() {
            // There is room for it, and its receiver waits.
            Some(next) => next.send(()).expect("nobody leaves the queue"),
            None => state.free += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    #[test]
    fn as_many_at_once_as_may_and_then_in_their_order() {
        let turns = Turns::new(2);
        let (at_work, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let order = Mutex::new(Vec::new());
        let held = (turns.take(), turns.take());
        std::thread::scope(|scope| {
            for i in 0..20 {
                let (turns, at_work, most, order) = (&turns, &at_work, &most, &order);
                scope.spawn(move || {
                    let _turn = turns.take();
                    most.fetch_max(at_work.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    order.lock().push(i);
                    std::thread::sleep(Duration::from_millis(1));
                    at_work.fetch_sub(1, Ordering::SeqCst);
                });
                let deadline = std::time::Instant::now() + Duration::from_secs(60);
                while turns.state.lock().waiting.len() <= i {
                    assert!(
                        std::time::Instant::now() < deadline,
                        "thread {i} never queued"
                    );
                    std::thread::yield_now();
                }
            }
            assert!(turns.is_contended());
            drop(held);
        });
        assert!(most.load(Ordering::SeqCst) <= 2);
        // Two at once may note themselves in either order.
        for (at, i) in order.lock().iter().enumerate() {
            assert!(at.abs_diff(*i) <= 2, "{:?}", order.lock());
        }
        assert_eq!(turns.state.lock().free, 2);
        assert!(!turns.is_contended());
    }
}
