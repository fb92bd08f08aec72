//! The sensor without a sensor: every root is reported for comparison at once and then at intervals. For
//! filesystems whose changes are made elsewhere (network mounts), where the kernel has nothing to tell.

use crate::clock::now;
use crate::wake::{Waker, deadline};
use crate::{
    ChangeSource, ReadState, SensorError, SensorKind, SensorOptions, SensorStats, WatchRoot,
};
use farwrite_core::{Change, ChangeOp, Guarantee};
use std::time::{Duration, Instant};

/// Shortest interval between two comparisons.
const SHORTEST: Duration = Duration::from_millis(10);

/// Reports a `Subtree` change for every root at once and then every [`SensorOptions::rescan`].
#[derive(Debug)]
pub struct ScanSource {
    roots: Vec<WatchRoot>,
    interval: Duration,
    due: Instant,
    waker: Waker,
    stats: SensorStats,
}

impl ScanSource {
    /// Starts; the first comparison is due at once.
    pub fn open(roots: &[WatchRoot], opts: &SensorOptions) -> Result<Self, SensorError> {
        if roots.is_empty() {
            return Err(SensorError::NoRoots);
        }
        Ok(ScanSource {
            roots: roots.to_vec(),
            interval: opts.rescan.max(SHORTEST),
            due: Instant::now(),
            waker: Waker::new()?,
            stats: SensorStats::default(),
        })
    }

    fn report(&mut self, out: &mut Vec<Change>) {
        let time = now();
        out.extend(self.roots.iter().map(|r| r.whole(time, ChangeOp::Subtree)));
        self.stats.delivered += self.roots.len() as u64;
        self.due = deadline(self.interval);
    }
}

impl ChangeSource for ScanSource {
    fn kind(&self) -> SensorKind {
        SensorKind::Scan
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee {
            extents: false,
            mmap: false,
            persists: false,
        }
    }

    fn look_now(&mut self) {
        self.due = Instant::now();
    }

    fn read(&mut self, out: &mut Vec<Change>, timeout: Duration) -> Result<ReadState, SensorError> {
        let until = deadline(timeout).min(self.due);
        // A wake alone is no reason to compare: others than a flush have one, too.
        self.waker
            .wait(None, until)
            .map_err(|e| SensorError::Read {
                sensor: SensorKind::Scan,
                source: e.into(),
            })?;
        if Instant::now() >= self.due {
            self.report(out);
        }
        Ok(ReadState::Drained)
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn stats(&self) -> SensorStats {
        self.stats
    }

    fn close(self: Box<Self>) {}
}
