//! Which moments a policy keeps: a pure function of the policy, the moments still there, the marks and the time. It must
//! never keep less of the window than it says, and must never need later what it dropped before.
//!
//! Each hour, day, week and month has one moment that stands for it: its last clean point, or its last batch if it has none. A
//! moment is kept while it stands for something that is young enough; and so is the last one before the window, and the last of each
//! tier that is too old for it: a source at which nothing changes sends nothing, and what it had then was still
//! so when the window began. More batches can only move what stands for a
//! slot forward, and days are made of whole hours, weeks and months of whole days, so that a moment that was dropped never
//! comes to stand for anything again.

use super::kept::Kept;
use super::policy::{Policy, Span};
use farwrite_core::history::Moment;
use farwrite_core::{BatchSeq, Timestamp};
use std::collections::BTreeSet;

const HOUR: i64 = 3600;
const DAY: i64 = 86_400;

/// What is to be kept, and how much that is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What can be asked for afterwards.
    pub kept: Kept,
    /// Moments that are kept.
    pub moments_kept: u64,
    /// Moments that go.
    pub moments_dropped: u64,
}

/// Takes the moments that are still kept in order, then says which are to be.
pub struct Planner {
    tiers: Vec<Tier>,
    window_from: i64,
    horizon: Option<BatchSeq>,
    /// The last moment before the window: what stood when that began.
    eve: Option<BatchSeq>,
    last: Option<BatchSeq>,
    seen: u64,
    seen_before: u64,
    chosen: BTreeSet<BatchSeq>,
    marks: BTreeSet<BatchSeq>,
    present: BTreeSet<BatchSeq>,
}

/// The slot of a second.
type SlotOf = fn(i64) -> i64;

/// The slots of one length.
struct Tier {
    slot_of: SlotOf,
    from: i64,
    open: Option<(i64, Moment)>,
    /// What stood for the last slot that is too old.
    eve: Option<BatchSeq>,
}

impl Planner {
    /// `newest` is the time of the last batch: ages count from it, unless it lies behind `now`. A source that is away, or
    /// whose clock is wrong, does not age.
    pub fn new(policy: &Policy, marks: &[BatchSeq], newest: Timestamp, now: Timestamp) -> Self {
        let end = newest.min(now).sec;
        let begin = |span: Span| match span {
            Span::Forever => i64::MIN,
            Span::Seconds(s) => end.saturating_sub(i64::try_from(s).unwrap_or(i64::MAX)),
        };
        let tiers: [(SlotOf, Option<Span>); 4] = [
            (|t| t.div_euclid(HOUR), policy.hourly),
            (|t| t.div_euclid(DAY), policy.daily),
            // 1970-01-01 was a Thursday.
            (|t| (t.div_euclid(DAY) + 3).div_euclid(7), policy.weekly),
            (month, policy.monthly),
        ];
        Planner {
            tiers: tiers
                .into_iter()
                .filter_map(|(slot_of, span)| {
                    let from = begin(span?);
                    Some(Tier {
                        slot_of,
                        from,
                        open: None,
                        eve: None,
                    })
                })
                .collect(),
            window_from: policy.keep_all.map_or(i64::MIN, begin),
            horizon: None,
            eve: None,
            last: None,
            seen: 0,
            seen_before: 0,
            chosen: BTreeSet::new(),
            marks: marks.iter().copied().collect(),
            present: BTreeSet::new(),
        }
    }

    /// The next moment, in order of batches.
    pub fn push(&mut self, m: Moment) {
        self.seen += 1;
        self.last = Some(m.seq);
        if self.horizon.is_none() {
            if m.time.sec >= self.window_from {
                self.horizon = Some(m.seq);
            } else {
                self.seen_before += 1;
                self.eve = Some(m.seq);
            }
        }
        if self.marks.contains(&m.seq) {
            self.present.insert(m.seq);
        }
        for tier in &mut self.tiers {
            let slot = (tier.slot_of)(m.time.sec);
            match &mut tier.open {
                Some((s, rep)) if *s == slot => {
                    if m.clean || !rep.clean {
                        *rep = m;
                    }
                }
                open => {
                    if let Some((_, rep)) = open.replace((slot, m)) {
                        let keeps = tier.keeps(rep);
                        self.chosen.extend(keeps);
                    }
                }
            }
        }
    }

    /// The plan. `old` is what was kept before: its horizon never goes back.
    pub fn finish(mut self, old: &Kept) -> Plan {
        for tier in &mut self.tiers {
            if let Some((_, rep)) = tier.open.take() {
                let keeps = tier.keeps(rep);
                self.chosen.extend(keeps);
            }
            self.chosen.extend(tier.eve);
        }
        let Some(last) = self.last else {
            return Plan {
                kept: old.clone(),
                ..Plan::default()
            };
        };
        // The present is always kept.
        let window = self.horizon.unwrap_or(last);
        let before_window = self.seen_before - u64::from(self.horizon.is_none());
        let horizon = window.max(old.horizon);
        let mut chosen = self.chosen;
        chosen.extend(self.eve);
        chosen.extend(&self.present);
        if window < old.horizon {
            // A wider window than before: what is left of it stays.
            let from = old.before.partition_point(|k| *k < window);
            chosen.extend(&old.before[from..]);
        }
        let before: Vec<BatchSeq> = chosen.range(..horizon).copied().collect();
        let kept_before = before.iter().filter(|k| **k < window).count() as u64;
        Plan {
            moments_kept: self.seen - before_window + kept_before,
            moments_dropped: before_window - kept_before,
            kept: match window.0 <= 1 && old.horizon.0 == 0 {
                true => Kept::default(),
                false => Kept { horizon, before },
            },
        }
    }
}

impl Tier {
    fn keeps(&mut self, rep: Moment) -> Option<BatchSeq> {
        let young = rep.time.sec >= self.from;
        if !young {
            self.eve = Some(rep.seq);
        }
        young.then_some(rep.seq)
    }
}

/// Months since the year 0 (civil from days, Howard Hinnant, "chrono-compatible low-level date algorithms").
fn month(sec: i64) -> i64 {
    let z = sec.div_euclid(DAY) + 719_468;
    let era = z.div_euclid(146_097);
    let day = z.rem_euclid(146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let m = (5 * of_year + 2) / 153;
    // Years begin in March here; months count on all the same.
    (era * 400 + year) * 12 + m
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SplitMix64.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, n: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) % n
        }
    }

    fn plan(policy: &Policy, all: &[Moment], old: &Kept, marks: &[BatchSeq], now: i64) -> Plan {
        let newest = all.last().map_or(Timestamp::default(), |m| m.time);
        let now = Timestamp { sec: now, nsec: 0 };
        let mut planner = Planner::new(policy, marks, newest, now);
        let there = all.iter().filter(|m| old.contains(m.seq));
        there.for_each(|m| planner.push(*m));
        planner.finish(old)
    }

    fn random_policy(dice: &mut Dice) -> Policy {
        let mut span = |max: u64| match dice.below(4) {
            0 => None,
            1 => Some(Span::Forever),
            _ => Some(Span::Seconds(3600 * (1 + dice.below(max)))),
        };
        Policy {
            hourly: span(48),
            daily: span(24 * 30),
            weekly: span(24 * 90),
            monthly: span(24 * 900),
            keep_all: Some(Span::Seconds(3600 * (1 + dice.below(24 * 9)))),
            brake_percent: None,
        }
    }

    #[test]
    fn months_begin_where_the_calendar_says() {
        let first = month(1_767_225_600); // 2026-01-01
        for (sec, months) in [
            (1_767_225_599, -1),
            (1_769_903_999, 0),  // 2026-01-31 23:59:59
            (1_769_904_000, 1),  // 2026-02-01
            (1_772_323_199, 1),  // 2026-02-28 23:59:59
            (1_772_323_200, 2),  // 2026-03-01
            (1_798_761_600, 12), // 2027-01-01
        ] {
            assert_eq!(month(sec), first + months, "{sec}");
        }
    }

    #[test]
    fn the_present_and_the_window_stay_and_nothing_dropped_is_ever_needed_again() {
        for seed in 0..400 {
            let mut dice = Dice(seed);
            let policy = random_policy(&mut dice);
            let (mut all, mut time) = (Vec::new(), 1_700_000_000 + dice.below(9_000_000) as i64);
            let (mut old, mut marks) = (Kept::default(), Vec::new());
            for round in 0..6 {
                for _ in 0..1 + dice.below(60) {
                    let most = [5, 900, 20_000, 900_000][dice.below(4) as usize];
                    time += dice.below(most) as i64;
                    all.push(Moment {
                        seq: BatchSeq(all.len() as u64 + 1),
                        time: Timestamp { sec: time, nsec: 0 },
                        clean: dice.below(3) > 0,
                    });
                }
                if dice.below(3) == 0 {
                    let m = all[dice.below(all.len() as u64) as usize].seq;
                    marks.extend(Some(m).filter(|m| old.contains(*m)));
                }
                let now = time + dice.below(100_000) as i64;
                let new = plan(&policy, &all, &old, &marks, now);
                let what = format!("seed {seed}, round {round}, {policy:?}");
                // From nothing, it would have come to the same.
                let fresh = plan(&policy, &all, &Kept::default(), &marks, now);
                let list = |k: &Kept| -> Vec<BatchSeq> {
                    all.iter()
                        .map(|m| m.seq)
                        .filter(|s| k.contains(*s))
                        .collect()
                };
                assert_eq!(list(&new.kept), list(&fresh.kept), "{what}");
                assert!(list(&new.kept).iter().all(|s| old.contains(*s)), "{what}");
                let again = plan(&policy, &all, &new.kept, &marks, now);
                assert_eq!(
                    (again.kept, again.moments_dropped),
                    (new.kept.clone(), 0),
                    "{what}"
                );
                assert_eq!(new.moments_kept, list(&new.kept).len() as u64, "{what}");
                let were = list(&old).len() as u64;
                assert_eq!(new.moments_dropped, were - new.moments_kept, "{what}");
                let Some(Span::Seconds(window)) = policy.keep_all else {
                    unreachable!()
                };
                for m in &all {
                    let begins = time - window as i64;
                    let eve = all.iter().rfind(|m| m.time.sec < begins);
                    let needed = m.time.sec >= begins
                        || eve.is_some_and(|e| e.seq == m.seq)
                        || marks.contains(&m.seq)
                        || Some(m.seq) == all.last().map(|l| l.seq);
                    assert!(!needed || new.kept.contains(m.seq), "{what}: {m:?}");
                }
                old = new.kept;
            }
        }
    }

    #[test]
    fn another_policy_never_brings_back_what_is_gone() {
        for seed in 0..200 {
            let mut dice = Dice(seed);
            let (mut all, mut time, mut old) = (Vec::new(), 1_700_000_000, Kept::default());
            for _ in 0..5 {
                for _ in 0..40 {
                    time += dice.below(40_000) as i64;
                    all.push(Moment {
                        seq: BatchSeq(all.len() as u64 + 1),
                        time: Timestamp { sec: time, nsec: 0 },
                        clean: dice.below(2) == 0,
                    });
                }
                let policy = random_policy(&mut dice);
                let new = plan(&policy, &all, &old, &[], time).kept;
                assert!(new.horizon >= old.horizon);
                for m in all.iter().filter(|m| new.contains(m.seq)) {
                    assert!(old.contains(m.seq), "seed {seed}: {m:?}");
                }
                assert!(new.before.windows(2).all(|w| w[0] < w[1]));
                assert!(new.contains(all.last().unwrap().seq));
                old = new;
            }
        }
    }

    fn day(d: i64, seq: u64) -> Moment {
        Moment {
            seq: BatchSeq(seq),
            time: Timestamp {
                sec: d * DAY,
                nsec: 0,
            },
            clean: true,
        }
    }

    #[test]
    fn what_stood_when_the_window_began_is_kept() {
        let days = |d: i64| Some(Span::Seconds((d * DAY) as u64));
        let kept = |policy: &Policy, all: &[Moment]| -> Vec<u64> {
            let now = all.last().unwrap().time.sec;
            let plan = plan(policy, all, &Kept::default(), &[], now);
            let there = all.iter().filter(|m| plan.kept.contains(m.seq));
            there.map(|m| m.seq.0).collect()
        };
        let mut policy = Policy {
            keep_all: days(7),
            ..Policy::default()
        };
        // Nothing changed for a week, then everything was overwritten.
        assert_eq!(kept(&policy, &[day(0, 1), day(8, 2)]), [1, 2]);
        assert_eq!(kept(&policy, &[day(0, 1), day(0, 2), day(30, 3)]), [2, 3]);
        // The same for days.
        (policy.keep_all, policy.daily) = (days(1), days(30));
        let all = [day(0, 1), day(1, 2), day(40, 3), day(41, 4), day(42, 5)];
        assert_eq!(kept(&policy, &all), [2, 3, 4, 5]);
    }

    #[test]
    fn a_clock_that_is_wrong_prunes_nothing_early() {
        let policy = Policy {
            keep_all: Some(Span::Seconds(10 * DAY as u64)),
            ..Policy::default()
        };
        // The source's clock is years behind, or it has been away for years: its own time counts.
        let all: Vec<_> = (0..8).map(|i| day(i, i as u64 + 1)).collect();
        assert_eq!(
            plan(&policy, &all, &Kept::default(), &[], 9000 * DAY).moments_dropped,
            0
        );
        // The source's clock jumps ahead: the vault's time counts.
        let mut all = all;
        all.push(day(9000, 9));
        assert_eq!(
            plan(&policy, &all, &Kept::default(), &[], 9 * DAY).moments_dropped,
            0
        );
    }
}
