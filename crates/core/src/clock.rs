//! The seam for time: whoever needs "now" takes a [`Clock`], so that tests own the time.

use crate::Timestamp;
use std::time::{Duration, Instant, SystemTime};

/// Tells wall time (for people and restore points) and monotonic time (for intervals).
pub trait Clock: Send + Sync {
    /// Wall time.
    fn now(&self) -> Timestamp;
    /// Time since some fixed moment; never goes back.
    fn monotonic(&self) -> Duration;
}

/// The machine's clock.
#[derive(Debug, Clone)]
pub struct SystemClock(Instant);

impl Default for SystemClock {
    fn default() -> Self {
        SystemClock(Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        SystemTime::now().into()
    }
    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }
}
