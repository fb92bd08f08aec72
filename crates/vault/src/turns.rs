//! Who may work: so many at once, the others one after another: who has had least first, then in the order in which they came.
//!
//! The projections of 200 sources that all send at once would else take the processors from the threads that read from
//! the network and make batches durable, and from each other's caches; and of 200 that put much on the disk at once, some would
//! be done before others have begun. If only the order in which they come counted, who is quicker to come back would have more.
//! So a turn is taken for some work, and comes when everybody else who waits has had as much: start-time fair queueing (Goyal,
//! Vin, Cheng, "Start-time fair queueing", IEEE/ACM Transactions on Networking 5(5), 1997), but only a little is made up for, on
//! both sides: neither does who comes back after a long time hold up all others, nor is who was alone for a while held up by all
//! who come. And nobody waits for long while others go first.

use crossbeam_channel::{Sender, bounded};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A turn that is held for this long is given to another as well: one source's dead disk must not stop all others. Each such turn
/// costs them so long once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes that somebody has had less or more than the others, at most: what is beyond that is forgotten.
const DUE: u64 = 8 << 20;
/// Who has waited for this long is next, whatever others have had: a source must not be silent until its connection is given up.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Work that somebody has had, measured from when nobody had had any.
#[derive(Debug, Default)]
pub(crate) struct Had(u64);

/// See the module.
#[derive(Debug)]
pub(crate) struct Turns {
    at_once: usize,
    patience: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tickets: u64,
    working: Vec<Holder>,
    waiting: BTreeMap<Place, Waiting>,
    /// What those who were let in last had had.
    usual: u64,
}

/// What somebody had had when it came, and its ticket.
type Place = (u64, u64);

#[derive(Debug)]
struct Waiting {
    since: Instant,
    tell: Sender<()>,
}

#[derive(Debug)]
struct Holder {
    ticket: u64,
    since: Instant,
    /// Its turn has been given to another.
    given_up: bool,
}

/// Held while at work.
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    ticket: u64,
}

impl State {
    /// Who has waited for too long, or else has had least.
    fn next(&mut self, now: Instant) -> Option<(Place, Waiting)> {
        let waiting = self.waiting.iter().map(|(place, w)| (*place, w.since));
        let (oldest, since) = waiting.min_by_key(|((_, ticket), _)| *ticket)?;
        match now.duration_since(since) >= LONGEST_WAIT {
            true => self.waiting.remove_entry(&oldest),
            false => self.waiting.pop_first(),
        }
    }

    /// Lets in whom there is room for.
    fn let_in(&mut self, at_once: usize, patience: Duration) {
        let now = Instant::now();
        for holder in &mut self.working {
            holder.given_up |= now.duration_since(holder.since) >= patience;
        }
        while self.working.iter().filter(|h| !h.given_up).count() < at_once
            && let Some(((had, ticket), next)) = self.next(now)
        {
            self.usual = self.usual.max(had);
            self.working.push(Holder {
                ticket,
                since: now,
                given_up: false,
            });
            next.tell.send(()).unwrap_or_default();
        }
    }
}

impl Turns {
    /// For this many at once.
    pub(crate) fn new(at_once: usize) -> Self {
        Turns {
            at_once,
            patience: PATIENCE,
            state: Mutex::default(),
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

    /// Waits for a turn in the order in which they are taken. Who has one must not take another.
    pub(crate) fn take(&self) -> Turn<'_> {
        self.take_for(&mut Had::default(), 0)
    }

    /// Waits for a turn until whoever waits has had as much, and adds so much work to it. Who has one must not take another.
    pub(crate) fn take_for(&self, had: &mut Had, work: u64) -> Turn<'_> {
        let (sender, mine) = bounded(1);
        let mut state = self.state.lock();
        state.tickets += 1;
        let ticket = state.tickets;
        let least = state.usual.saturating_sub(DUE);
        let before = had.0.clamp(least, state.usual.saturating_add(DUE));
        had.0 = before.saturating_add(work);
        let waiting = Waiting {
            since: Instant::now(),
            tell: sender,
        };
        state.waiting.insert((before, ticket), waiting);
        state.let_in(self.at_once, self.patience);
        drop(state);
        while mine.recv_timeout(self.patience).is_err() {
            self.state.lock().let_in(self.at_once, self.patience);
        }
        Turn {
            turns: self,
            ticket,
        }
    }

    /// Returns once so many wait.
    #[cfg(test)]
    pub(crate) fn wait_for_queue(&self, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.state.lock().waiting.len() != count {
            assert!(Instant::now() < deadline, "never {count} in the queue");
            std::thread::yield_now();
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.turns.state.lock();
        state.working.retain(|h| h.ticket != self.ticket);
        state.let_in(self.turns.at_once, self.turns.patience);
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
        let held = turns.take();
        std::thread::scope(|scope| {
            for i in 0..20 {
                let (turns, order) = (&turns, &order);
                scope.spawn(move || {
                    let _turn = turns.take();
                    order.lock().push(i);
                });
                turns.wait_for_queue(i + 1);
            }
            assert!(turns.is_contended());
            drop(held);
        });
        assert_eq!(*order.lock(), (0..20).collect::<Vec<_>>());
        assert!(turns.state.lock().working.is_empty() && !turns.is_contended());
    }

    #[test]
    fn who_has_had_least_is_first() {
        let turns = Turns::new(1);
        let order = Mutex::new(Vec::new());
        // The first was alone for a while, then the second came; the third is new.
        let mut had = [Had::default(), Had::default(), Had::default()];
        drop(turns.take_for(&mut had[0], 2 * DUE));
        drop(turns.take_for(&mut had[0], DUE));
        drop(turns.take_for(&mut had[1], DUE / 4));
        // It began its last turn when the others were behind by one, so much as counts, and has had that turn since.
        assert_eq!([had[0].0, had[1].0], [2 * DUE, DUE / 4]);
        let held = turns.take();
        std::thread::scope(|scope| {
            for (i, mut had) in had.into_iter().enumerate() {
                let (turns, order) = (&turns, &order);
                scope.spawn(move || {
                    for _ in 0..8 {
                        let turn = turns.take_for(&mut had, DUE / 4);
                        order.lock().push(i);
                        // Whoever else is not done yet waits, too.
                        if order.lock().len() < 10 {
                            turns.wait_for_queue(2);
                        }
                        drop(turn);
                    }
                });
                turns.wait_for_queue(i + 1);
            }
            drop(held);
        });
        // The second and the third take turns until they have had as much as the first.
        let begin = order.lock()[..8].to_vec();
        assert_eq!(begin, [2, 1, 2, 1, 2, 1, 2, 1]);
        assert!(turns.state.lock().working.is_empty());
    }

    #[test]
    fn nobody_waits_for_long_while_others_go_first() {
        let turns = Turns::new(1);
        let held = turns.take();
        std::thread::scope(|scope| {
            let (told, order) = bounded(2);
            for (i, had) in [DUE, 0].into_iter().enumerate() {
                let (turns, told) = (&turns, told.clone());
                scope.spawn(move || {
                    let _turn = turns.take_for(&mut Had(had), 1);
                    told.send(had).unwrap();
                });
                turns.wait_for_queue(i + 1);
            }
            let long_ago = Instant::now() - LONGEST_WAIT;
            let mut state = turns.state.lock();
            state.waiting.values_mut().for_each(|w| w.since = long_ago);
            drop(state);
            drop(held);
            assert_eq!([order.recv(), order.recv()], [Ok(DUE), Ok(0)]);
        });
    }

    #[test]
    fn no_more_at_once_than_may() {
        let turns = Turns::new(2);
        let (at_work, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let _turn = turns.take();
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
        assert!(turns.state.lock().working.is_empty());
    }

    #[test]
    fn whoever_holds_a_turn_for_ever_costs_the_others_their_patience_once() {
        let mut turns = Turns {
            patience: Duration::from_millis(200),
            ..Turns::new(2)
        };
        let begin = Instant::now();
        let stuck = (turns.take(), turns.take());
        // Both turns are there for others now, as often as they like.
        for _ in 0..1000 {
            let both = (turns.take(), turns.take());
            assert_eq!(turns.state.lock().working.len(), 4);
            drop(both);
        }
        let took = begin.elapsed();
        assert!(took >= turns.patience, "{took:?}");
        assert!(took < Duration::from_secs(60), "{took:?}");
        // Whoever comes back late gives nobody a turn too many.
        drop(stuck);
        turns.patience = PATIENCE;
        let both = (turns.take(), turns.take());
        std::thread::scope(|scope| {
            scope.spawn(|| drop(turns.take()));
            turns.wait_for_queue(1);
            drop(both);
        });
        assert!(turns.state.lock().working.is_empty());
    }
}
