//! Wakes a thread that otherwise looks seldom: whoever changes what it looks at rings.

use parking_lot::{Condvar, Mutex};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// See the module. A second ring costs an atomic operation, no more.
#[derive(Default)]
pub struct Bell {
    rung: AtomicBool,
    waiting: Mutex<()>,
    heard: Condvar,
}

impl Bell {
    /// Ends the wait that is under way, or the next one.
    pub fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // Not between a waiter's look and its sleep.
            drop(self.waiting.lock());
            self.heard.notify_all();
        }
    }

    /// Waits until somebody rings or has rung since the last wait, for `at_least` in any case and `at_most` if nobody does. Has
    /// somebody?
    pub fn wait(&self, at_least: Duration, at_most: Duration) -> bool {
        let begin = Instant::now();
        let mut waiting = self.waiting.lock();
        while !self.rung.load(Ordering::Acquire) && begin.elapsed() < at_most {
            self.heard.wait_until(&mut waiting, begin + at_most);
        }
        drop(waiting);
        std::thread::sleep(at_least.saturating_sub(begin.elapsed()));
        // Before whatever the waiter does next: what was rung for is seen by it.
        self.rung.swap(false, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_ends_the_wait_that_is_under_way_or_the_next_one_and_no_more() {
        const LONG: Duration = Duration::from_secs(600);
        let bell = Bell::default();
        bell.ring();
        assert!(bell.wait(Duration::ZERO, LONG));
        std::thread::scope(|s| {
            let ring = s.spawn(|| bell.ring());
            assert!(bell.wait(Duration::ZERO, LONG));
            ring.join().unwrap();
        });
        let (little, begin) = (Duration::from_millis(20), Instant::now());
        assert!(!bell.wait(Duration::ZERO, little));
        bell.ring();
        assert!(bell.wait(little, LONG));
        assert!(begin.elapsed() >= 2 * little);
    }
}
