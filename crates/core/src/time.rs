//! Points in time, to the nanosecond, as the kernel's `timespec` has them.

use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds since 1970 (may be negative) and nanoseconds 0 to 999,999,999.
///
/// Kept as two numbers since a file's mtime may lie beyond what 64-bit nanoseconds hold.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct Timestamp {
    /// Whole seconds since 1970-01-01 00:00 UTC, rounded down.
    pub sec: i64,
    /// Nanoseconds after `sec`.
    pub nsec: u32,
}

impl Timestamp {
    /// From whole nanoseconds since 1970.
    pub fn from_nanos(ns: i64) -> Self {
        Timestamp {
            sec: ns.div_euclid(1_000_000_000),
            nsec: ns.rem_euclid(1_000_000_000) as u32,
        }
    }

    /// Whole nanoseconds since 1970; years beyond 1678 to 2262 saturate.
    pub fn as_nanos(self) -> i64 {
        self.sec
            .saturating_mul(1_000_000_000)
            .saturating_add(i64::from(self.nsec))
    }

    /// Time from `earlier` to this one; zero if it is the other way around.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_nanos(self.as_nanos().saturating_sub(earlier.as_nanos()).max(0) as u64)
    }

    /// This time plus `d`.
    pub fn after(self, d: Duration) -> Timestamp {
        Timestamp::from_nanos(
            self.as_nanos()
                .saturating_add(d.as_nanos().min(i64::MAX as u128) as i64),
        )
    }
}

impl From<SystemTime> for Timestamp {
    fn from(t: SystemTime) -> Self {
        match t.duration_since(UNIX_EPOCH) {
            Ok(d) => Timestamp {
                sec: d.as_secs() as i64,
                nsec: d.subsec_nanos(),
            },
            Err(e) => {
                Timestamp::from_nanos(-(e.duration().as_nanos().min(i64::MAX as u128) as i64))
            }
        }
    }
}
