//! A token bucket for the bandwidth limit. Sans-IO: time goes in, allowances come out.

use std::time::Duration;

/// The bucket holds what this time brings, so that short pauses are not lost.
const BURST: Duration = Duration::from_millis(250);
/// The bucket holds at least this much, so that slow rates still move in sensible pieces.
const BURST_MIN_BYTES: u64 = 4 << 10;

/// Limits bytes per second.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    bytes_per_second: Option<u64>,
    tokens: u64,
    filled: Duration,
}

impl TokenBucket {
    /// A full bucket; `None` for no limit. A rate of 0 is taken as 1.
    pub fn new(bytes_per_second: Option<u64>, now: Duration) -> Self {
        let mut bucket = TokenBucket {
            bytes_per_second: bytes_per_second.map(|r| r.max(1)),
            tokens: 0,
            filled: now,
        };
        bucket.tokens = bucket.capacity();
        bucket
    }

    /// Changes the rate; what is in the bucket stays, up to the new size.
    pub fn set_rate(&mut self, bytes_per_second: Option<u64>, now: Duration) {
        let rate = bytes_per_second.map(|r| r.max(1));
        if rate != self.bytes_per_second {
            self.fill(now);
            self.bytes_per_second = rate;
            self.filled = now;
            self.tokens = self.tokens.min(self.capacity());
        }
    }

    /// Bytes that may go out now.
    pub fn available(&mut self, now: Duration) -> usize {
        match self.bytes_per_second {
            None => usize::MAX,
            Some(_) => {
                self.fill(now);
                self.tokens as usize
            }
        }
    }

    /// Takes what has gone out.
    pub fn take(&mut self, bytes: usize) {
        self.tokens = self.tokens.saturating_sub(bytes as u64);
    }

    /// When an empty bucket is worth looking at again: as soon as it holds a quarter.
    pub fn ready_at(&self) -> Duration {
        let Some(rate) = self.bytes_per_second else {
            return self.filled;
        };
        let missing = u128::from((self.capacity() / 4).saturating_sub(self.tokens));
        let nanos = (missing * 1_000_000_000).div_ceil(rate.into());
        self.filled + Duration::from_nanos(nanos.min(u64::MAX.into()) as u64)
    }

    fn capacity(&self) -> u64 {
        let rate = self.bytes_per_second.unwrap_or(0);
        let burst = u128::from(rate) * BURST.as_millis() / 1000;
        (burst.min(u64::MAX.into()) as u64).max(BURST_MIN_BYTES)
    }

    fn fill(&mut self, now: Duration) {
        let Some(rate) = self.bytes_per_second else {
            return;
        };
        let passed = now.saturating_sub(self.filled).as_nanos();
        let gain = (passed * u128::from(rate) / 1_000_000_000).min(u64::MAX.into()) as u64;
        if gain > 0 {
            let full = self.capacity();
            self.tokens = self.tokens.saturating_add(gain).min(full);
            self.filled = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_holds_over_time_whatever_the_pieces() {
        let mut now = Duration::ZERO;
        let mut bucket = TokenBucket::new(Some(1_000_000), now);
        let burst = bucket.available(now);
        let mut sent = 0;
        while now < Duration::from_secs(10) {
            let n = bucket.available(now).min(30_000);
            if n == 0 {
                now = bucket.ready_at().max(now + Duration::from_nanos(1));
            }
            bucket.take(n);
            sent += n;
        }
        assert!(
            (9_800_000..=10_000_000 + 2 * burst).contains(&sent),
            "{sent}"
        );
        bucket.set_rate(None, now);
        assert_eq!(bucket.available(now), usize::MAX);
        bucket.set_rate(Some(0), now);
        assert!(bucket.available(now) <= 4096);
    }
}
