//! The schedule-processing unit: takes commands out of the queue in order and hands them to the network
//! backup unit. One per vault, each with a thread and a [`Pacer`] of its own.

use crate::pacer::{Pacer, PacerSetting, Round};
use crate::queue::{Queue, Wait};
use farwrite_core::{BackupCommand, BatchSeq, Search};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Commands of one round.
pub const ROUND_COMMANDS: usize = 4096;
/// Without anything to do for this long, the sink is asked for its idle duties.
const IDLE_WAIT: Duration = Duration::from_millis(250);
/// Longest sleep of a unit that has no duties either: an idle machine is left alone.
const IDLE_LONGEST: Duration = Duration::from_secs(600);
/// Longest time without idle duties while there is always something to do.
const BUSY_IDLE: Duration = Duration::from_secs(2);

/// What became of a round.
#[derive(Debug, Default)]
pub struct Outcome {
    /// To be looked at again; `true`: only after the sensor has been emptied anew.
    pub put_back: Vec<(BackupCommand, bool)>,
    /// The last batch that the round's work is in; `None` if nothing had to be sent.
    pub batch: Option<BatchSeq>,
    /// Time of the last ack.
    pub ack: Duration,
    /// Part of the window in use, 0 to 1.
    pub window_used: f64,
    /// Files that took long to be read whole; they rest ([`Pacer::rest`]).
    pub searches: Vec<Search>,
}

/// The unit is to end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Stopped(pub String);

/// The network backup unit as the processing unit sees it.
pub trait CommandSink {
    /// Carries out a round of backup commands, in order. Blocks while the network does not take more.
    fn execute(&mut self, commands: Vec<BackupCommand>) -> Result<Outcome, Stopped>;
    /// Nothing to do right now: time for duties that can wait. Returns in what time there will be others, if no command
    /// comes before; `None`: none.
    fn idle(&mut self) -> Result<Option<Duration>, Stopped>;
}

/// Counters of the unit.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessingStats {
    /// Commands handed to the backup unit.
    pub commands: u64,
    /// Rounds.
    pub rounds: u64,
    /// Commands that came back: put off, or new ones that a compare led to.
    pub put_back: u64,
    /// Interval chosen after the last round.
    pub interval: Duration,
}

/// See the module.
pub struct ProcessingUnit {
    queue: Arc<Queue>,
    pacer: Pacer,
    /// When the interval behind the last round ends.
    rests_until: Instant,
    stats: Arc<Mutex<ProcessingStats>>,
}

impl ProcessingUnit {
    /// A unit for this queue.
    pub fn new(queue: Arc<Queue>, setting: PacerSetting) -> Self {
        ProcessingUnit {
            queue,
            pacer: Pacer::new(setting),
            rests_until: Instant::now(),
            stats: Arc::default(),
        }
    }

    /// Counters, to be read by other threads.
    pub fn stats(&self) -> Arc<Mutex<ProcessingStats>> {
        self.stats.clone()
    }

    /// Runs until the queue is stopped or the sink says so. `drain` empties the sensor (see
    /// [`crate::manage::ManagingShared::barrier`]).
    pub fn run(&mut self, sink: &mut dyn CommandSink, drain: &dyn Fn()) -> Result<(), Stopped> {
        let (mut idle_at, mut patience) = (Instant::now(), IDLE_WAIT);
        loop {
            if idle_at.elapsed() > BUSY_IDLE {
                // A queue that is never empty must not keep duties waiting for ever.
                sink.idle()?;
                idle_at = Instant::now();
            }
            match self.queue.wait(patience) {
                Wait::Stopped => return Ok(()),
                Wait::Idle => {
                    let next = sink.idle()?;
                    patience = next.map_or(IDLE_LONGEST, |t| t.clamp(IDLE_WAIT, IDLE_LONGEST));
                    idle_at = Instant::now();
                }
                Wait::NeedsDrain => drain(),
                Wait::Due => {
                    self.round(sink)?;
                    patience = IDLE_WAIT;
                }
            }
        }
    }

    fn round(&mut self, sink: &mut dyn CommandSink) -> Result<(), Stopped> {
        let started = Instant::now();
        let taken = self.queue.take(ROUND_COMMANDS);
        let items = taken.commands.len();
        let outcome = sink.execute(taken.commands)?;
        let put_back = outcome.put_back.len();
        let nothing_done = put_back >= items && outcome.batch.is_none();
        for s in outcome.searches {
            let (others, before) = self.queue.resting(&s.target);
            let rest = self.pacer.rest(s.took, s.in_vain, others, before);
            self.queue.rest(s.target, rest);
        }
        self.queue.settle(outcome.put_back, outcome.batch);
        self.pacer.observe(Round {
            waited: started.saturating_duration_since(self.rests_until),
            work: started.elapsed(),
            items,
            backlog: taken.more,
            ack: outcome.ack,
            window_used: outcome.window_used,
        });
        {
            let mut s = self.stats.lock();
            s.commands += items as u64;
            s.put_back += put_back as u64;
            s.rounds += 1;
            s.interval = self.pacer.interval();
        }
        let least = if nothing_done {
            Duration::from_millis(5)
        } else {
            Duration::ZERO
        };
        let rest = self.pacer.interval().max(least);
        self.rests_until = Instant::now() + rest;
        self.queue.pause(rest);
        Ok(())
    }
}
