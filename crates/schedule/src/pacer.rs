//! The one algorithm by which both scheduling units choose their time interval.
//!
//! `auto` keeps the work for scheduling at about half of the time while there is a steady load, and at nothing
//! else: a lone change goes at once, and a storm is taken in rounds that grow with what a round costs, so that
//! fixed costs (a commit, an fsync, a round trip) are shared by many changes. The interval between two
//! rounds is the smoothed cost of a round, plus the time that the vault takes to ack when much is under way
//! (the coordination with the network backup unit), between [`FLOOR`] and [`CEILING`]. When a full round's
//! worth of changes is waiting there is nothing to gain by waiting: the next round starts at once. Small rounds that follow
//! one another without a pause are a steady load too: each takes a processor away from the application in the middle of its
//! work, so that a few milliseconds' worth of its changes are taken together, and some more where it is to come first.
//!
//! Besides, a single file rests ([`Pacer::rest`]) that was read whole to find that little of it had changed (where the applications
//! come first, whatever was found): without exact extents a database that is written to all the time would be read all the time.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Least interval that `auto` chooses.
pub const FLOOR: Duration = Duration::ZERO;
/// Greatest interval that `auto` chooses.
pub const CEILING: Duration = Duration::from_millis(500);
/// Rounds below this cost and size are "a lone change".
const LIGHT: Duration = Duration::from_millis(2);
const LIGHT_ITEMS: usize = 32;
/// A unit that had to wait less than this for its round was waited for.
const NO_PAUSE: Duration = Duration::from_millis(1);
/// After so many rounds without a pause the load is steady: more than one change of a file, with all its messages, makes.
const STEADY_ROUNDS: u32 = 8;
/// How much longer than it was read a file rests if all that was read was there already: a twentieth of the time goes to looking;
/// a fiftieth, where the applications come first.
const IN_VAIN: f64 = 19.0;
const GIVING_WAY: f64 = 49.0;
/// Longest rest of a file that is read again and again.
pub const REST_MAX: Duration = Duration::from_secs(5);
/// Least interval under a steady load; where the applications come first, it may be felt.
const STEADY: Duration = Duration::from_millis(2);
/// Not more: inotify's queue holds 16,384 events, and overflows if nobody reads for longer than they take to come.
const STEADY_GIVING_WAY: Duration = Duration::from_millis(20);
/// Longest fixed interval that may be set.
pub const FIXED_MAX: Duration = Duration::from_secs(24 * 3600);

/// The adjustable interval, as a person sets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Interval {
    /// Chosen from the load.
    #[default]
    Auto,
    /// Always this long between two rounds.
    Fixed(Duration),
}

/// Not an interval.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "an interval is \"auto\" or a time from 0ms to 24h such as \"200ms\", \"5s\" or \"1m\": got {0:?}"
)]
pub struct ParseIntervalError(String);

impl FromStr for Interval {
    type Err = ParseIntervalError;
    fn from_str(s: &str) -> Result<Self, ParseIntervalError> {
        let bad = || ParseIntervalError(s.to_owned());
        let t = s.trim();
        if t == "auto" {
            return Ok(Interval::Auto);
        }
        let at = t
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(bad)?;
        let number: f64 = t[..at].parse().map_err(|_| bad())?;
        let unit = match t[at..].trim() {
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            _ => return Err(bad()),
        };
        let d = Duration::try_from_secs_f64(number * unit).map_err(|_| bad())?;
        if d > FIXED_MAX {
            Err(bad())
        } else {
            Ok(Interval::Fixed(d))
        }
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Interval::Auto => f.write_str("auto"),
            Interval::Fixed(d) if d.subsec_nanos() == 0 && d.as_secs() > 0 => {
                write!(f, "{}s", d.as_secs())
            }
            Interval::Fixed(d) if d.subsec_nanos() % 1_000_000 == 0 => {
                write!(f, "{}ms", d.as_millis())
            }
            Interval::Fixed(d) => write!(f, "{}us", d.as_micros()),
        }
    }
}

/// The setting that all pacers of a source share; changed while they run.
#[derive(Clone, Debug, Default)]
pub struct PacerSetting {
    interval: Arc<AtomicU64>,
    gives_way: bool,
}

const AUTO: u64 = 0;

impl PacerSetting {
    /// Starts with this interval.
    pub fn new(interval: Interval) -> Self {
        let s = PacerSetting::default();
        s.set(interval);
        s
    }

    /// Whether the applications come first: a steady load is then taken in fewer rounds, and a file that has to be read whole rests
    /// from the first time on, whatever was found. Whoever starts the program says so (nice(1)), and for good.
    #[must_use]
    pub fn giving_way(self, gives_way: bool) -> Self {
        PacerSetting { gives_way, ..self }
    }

    /// See [`PacerSetting::giving_way`].
    pub fn gives_way(&self) -> bool {
        self.gives_way
    }

    /// Changes the interval; takes effect at every unit's next decision.
    pub fn set(&self, interval: Interval) {
        let v = match interval {
            Interval::Auto => AUTO,
            Interval::Fixed(d) => d.min(FIXED_MAX).as_micros() as u64 + 1,
        };
        self.interval.store(v, Ordering::Relaxed);
    }

    /// The interval as set.
    pub fn get(&self) -> Interval {
        match self.interval.load(Ordering::Relaxed) {
            AUTO => Interval::Auto,
            us => Interval::Fixed(Duration::from_micros(us - 1)),
        }
    }
}

/// What a unit tells its pacer after a round.
#[derive(Clone, Copy, Debug, Default)]
pub struct Round {
    /// Time that the unit had nothing to do before it, its own interval left out.
    pub waited: Duration,
    /// Time that the round's work took.
    pub work: Duration,
    /// Messages or commands in it.
    pub items: usize,
    /// A full round's worth is waiting already.
    pub backlog: bool,
    /// Time that the vault took for its last ack.
    pub ack: Duration,
    /// Part of the window in use, 0 to 1.
    pub window_used: f64,
}

/// Chooses the interval between two rounds of one unit.
#[derive(Clone, Debug)]
pub struct Pacer {
    setting: PacerSetting,
    smoothed_us: f64,
    /// Rounds without a pause before them.
    streak: u32,
    interval: Duration,
}

impl Pacer {
    /// A pacer under this setting.
    pub fn new(setting: PacerSetting) -> Self {
        Pacer {
            setting,
            smoothed_us: 0.0,
            streak: 0,
            interval: FLOOR,
        }
    }

    /// Takes a round into account and chooses the next interval.
    pub fn observe(&mut self, round: Round) {
        let work_us = round.work.as_secs_f64() * 1e6;
        self.smoothed_us = 0.7 * self.smoothed_us + 0.3 * work_us;
        self.streak = match round.waited < NO_PAUSE {
            true => self.streak.saturating_add(1),
            false => 0,
        };
        let light = round.items <= LIGHT_ITEMS && round.work <= LIGHT && round.window_used < 0.25;
        let auto_us = if light || round.backlog {
            0.0
        } else {
            let network = if round.window_used > 0.5 {
                round.ack.as_secs_f64() * 1e6
            } else {
                0.0
            };
            self.smoothed_us + network
        };
        let steady = self.streak >= STEADY_ROUNDS && !round.backlog;
        let least = match (steady, self.setting.gives_way) {
            (false, _) => FLOOR,
            (true, false) => STEADY,
            (true, true) => STEADY_GIVING_WAY,
        };
        self.interval = Duration::from_micros(auto_us as u64).clamp(least, CEILING);
    }

    /// Time for which a file is left alone that took so long to be read whole, and of which the part `in_vain` (0 to 1) had not
    /// changed, while so many `others` rest: what all of them together cost is bounded. `before`: how often it was read so lately.
    /// A first change is not followed by a rest: many a file is changed twice, and then no more. With each further one it doubles.
    /// Where the applications come first it is longer, from the first one on, and as if all had been in vain: who writes
    /// a file at full speed would otherwise have it read, sent and written again beside him all the time.
    /// A fixed interval is all that there is to wait for.
    pub fn rest(&self, took: Duration, in_vain: f64, others: usize, before: u32) -> Duration {
        let all = others as f64 + 1.0;
        let longer = match self.setting.gives_way {
            true => GIVING_WAY,
            false => {
                let doubled = 2f64.powi(before.min(30) as i32) - 1.0;
                doubled.min(IN_VAIN) * in_vain.clamp(0.0, 1.0)
            }
        };
        match self.setting.get() {
            Interval::Auto => took.mul_f64(longer * all).min(REST_MAX),
            Interval::Fixed(_) => Duration::ZERO,
        }
    }

    /// Time to let pass between the end of a round and the start of the next.
    pub fn interval(&self) -> Duration {
        match self.setting.get() {
            Interval::Auto => self.interval,
            Interval::Fixed(d) => d,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_read_and_print() {
        for (s, d) in [
            ("200ms", 200_000),
            ("5s", 5_000_000),
            ("0ms", 0),
            ("1.5s", 1_500_000),
            ("2m", 120_000_000),
        ] {
            let i: Interval = s.parse().unwrap();
            assert_eq!(i, Interval::Fixed(Duration::from_micros(d)), "{s}");
            assert_eq!(i.to_string().parse::<Interval>().unwrap(), i);
        }
        for s in ["", "5", "x", "5d", "-1s", "25h", "1e3s", "NaNs", "auto2"] {
            assert!(s.parse::<Interval>().is_err(), "{s:?}");
        }
    }

    #[test]
    fn auto_takes_a_steady_load_of_small_rounds_together() {
        takes_a_steady_load_together(PacerSetting::default(), STEADY);
    }

    #[test]
    fn where_applications_come_first_a_steady_load_is_taken_in_fewer_rounds() {
        let polite = PacerSetting::default().giving_way(true);
        takes_a_steady_load_together(polite, STEADY_GIVING_WAY);
    }

    fn takes_a_steady_load_together(setting: PacerSetting, least: Duration) {
        let mut p = Pacer::new(setting);
        let small = |waited_us| Round {
            waited: Duration::from_micros(waited_us),
            work: Duration::from_micros(80),
            items: 20,
            ..Round::default()
        };
        for _ in 0..STEADY_ROUNDS - 1 {
            p.observe(small(10));
            assert_eq!(
                p.interval(),
                FLOOR,
                "a file with all its messages goes at once"
            );
        }
        p.observe(small(10));
        assert_eq!(p.interval(), least);
        p.observe(Round {
            backlog: true,
            ..small(10)
        });
        assert_eq!(p.interval(), FLOOR, "no waiting in front of a full round");
        p.observe(small(10));
        assert_eq!(p.interval(), least);
        p.observe(small(5000));
        assert_eq!(p.interval(), FLOOR, "it paused");
    }

    #[test]
    fn a_file_that_is_read_in_vain_rests_much_longer_than_that_takes() {
        let ms = Duration::from_millis;
        let setting = PacerSetting::default();
        let p = Pacer::new(setting.clone());
        assert_eq!(p.rest(ms(40), 1.0, 0, 9), ms(760));
        assert_eq!(
            p.rest(ms(40), 1.0, 2, 99),
            ms(2280),
            "a third of it for each"
        );
        assert_eq!(p.rest(ms(40), 0.5, 0, 9), ms(380));
        assert_eq!(p.rest(ms(40), 0.0, 9, 9), ms(0), "all of it was new");
        assert_eq!(p.rest(ms(40_000), 1.0, 0, 9), REST_MAX);
        let first: Vec<_> = (0..6).map(|n| p.rest(ms(40), 1.0, 0, n)).collect();
        assert_eq!(first, [0, 40, 120, 280, 600, 760].map(ms));
        let polite = Pacer::new(setting.clone().giving_way(true));
        assert_eq!(polite.rest(ms(40), 1.0, 0, 0), ms(1960));
        assert_eq!(
            polite.rest(ms(40), 0.0, 0, 0),
            ms(1960),
            "all of it was new"
        );
        setting.set(Interval::Fixed(ms(7)));
        assert_eq!(p.rest(ms(40), 1.0, 0, 9), ms(0));
        assert_eq!(polite.rest(ms(40), 1.0, 0, 0), ms(0), "one setting");
    }

    #[test]
    fn auto_sends_a_lone_change_at_once_and_spaces_out_heavy_rounds() {
        let setting = PacerSetting::default();
        let mut p = Pacer::new(setting.clone());
        let ms = Duration::from_millis;
        p.observe(Round {
            work: ms(1),
            items: 1,
            ..Round::default()
        });
        assert_eq!(p.interval(), Duration::ZERO);
        for _ in 0..20 {
            p.observe(Round {
                waited: ms(3),
                work: ms(40),
                items: 5000,
                ..Round::default()
            });
        }
        assert!(
            p.interval() > ms(30) && p.interval() <= ms(41),
            "{:?}",
            p.interval()
        );
        p.observe(Round {
            work: ms(40),
            items: 5000,
            ack: ms(100),
            window_used: 0.9,
            ..Round::default()
        });
        assert!(
            p.interval() > ms(130),
            "waits for the network too: {:?}",
            p.interval()
        );
        for _ in 0..40 {
            p.observe(Round {
                work: ms(5000),
                items: 5000,
                ..Round::default()
            });
        }
        assert_eq!(p.interval(), CEILING);
        p.observe(Round {
            work: ms(5000),
            items: 5000,
            backlog: true,
            ..Round::default()
        });
        assert_eq!(
            p.interval(),
            Duration::ZERO,
            "no waiting in front of a full round"
        );
        setting.set(Interval::Fixed(ms(7)));
        assert_eq!(p.interval(), ms(7), "changed while running");
        setting.set(Interval::Fixed(ms(0)));
        assert_eq!(p.interval(), ms(0));
        assert_eq!(setting.get(), Interval::Fixed(ms(0)));
    }
}
