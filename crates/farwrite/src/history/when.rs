//! Times as people write them. A text has one meaning or is refused with examples; nothing is guessed.
//!
//! A day without a time of day is that day at the present time of day: "yesterday" is 24 hours ago but for a change of the
//! clocks. A weekday is the last one that is over. A time given to the second, or to a part of it, is the end of that second
//! or part, so that a time as it was shown leads to the version that was shown.

use anyhow::{Context, bail};
use farwrite_core::Timestamp;
use jiff::civil::{DateTime, Time, Weekday};
use jiff::{Span, ToSpan, Zoned};

const EXAMPLES: &str = "use for example \"10 minutes ago\", \"14:05\", \"yesterday 14:00\", \"monday 10:00\", \
    \"2026-05-01 14:00\" or \"2026-05-01T14:00:00Z\"";

/// The moment that `text` names, where `now` gives the present and the zone.
pub(super) fn parse(text: &str, now: &Zoned) -> anyhow::Result<Timestamp> {
    let t = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let at = parse_exact(&t, now)?
        .with_context(|| format!("cannot read the time {text:?}: {EXAMPLES}"))?;
    let at = at.saturating_add(jiff::SignedDuration::from_nanos(slack(&t)))?;
    Ok(Timestamp::from(std::time::SystemTime::from(at)))
}

/// The present, in the zone of this machine.
pub(super) fn parse_now(text: &str) -> anyhow::Result<Timestamp> {
    parse(text, &Zoned::now())
}

fn parse_exact(t: &str, now: &Zoned) -> anyhow::Result<Option<jiff::Timestamp>> {
    if let Ok(exact) = t.parse::<jiff::Timestamp>() {
        return Ok(Some(exact));
    }
    let zone = now.time_zone();
    let lower = t.to_ascii_lowercase();
    if lower.as_bytes().first().is_some_and(u8::is_ascii_digit)
        && lower.contains('-')
        && let Ok(local) = t.parse::<DateTime>()
    {
        return Ok(Some(local.to_zoned(zone.clone())?.timestamp()));
    }
    if lower == "now" {
        return Ok(Some(now.timestamp()));
    }
    if let Some(span) = lower.strip_suffix("ago") {
        return Ok(match ago(span.trim()) {
            Some(span) => Some(now.checked_sub(span)?.timestamp()),
            None => None,
        });
    }
    if let Some(time) = time_of_day(&lower) {
        let at = now
            .datetime()
            .date()
            .to_datetime(time)
            .to_zoned(zone.clone())?;
        if at > *now {
            bail!("{t:?} has not come yet today: use \"yesterday {t}\" for the day before");
        }
        return Ok(Some(at.timestamp()));
    }
    day_and_time(&lower, now)
}

/// "10 minutes", "2h", "an hour", "1 h 30 min".
fn ago(text: &str) -> Option<Span> {
    let one = ["a ", "an ", "one "]
        .iter()
        .find_map(|p| text.strip_prefix(p));
    let text = one.map_or_else(|| text.to_owned(), |unit| format!("1 {unit}"));
    if !text.as_bytes().first()?.is_ascii_digit() {
        return None;
    }
    text.parse::<Span>()
        .ok()
        .filter(|s| s.is_positive() || s.is_zero())
}

/// "yesterday", "today 09:30", "monday at 10:00".
fn day_and_time(lower: &str, now: &Zoned) -> anyhow::Result<Option<jiff::Timestamp>> {
    let (day, time) = match lower.split_once(' ') {
        None => (lower, None),
        Some((day, rest)) => match time_of_day(rest.strip_prefix("at ").unwrap_or(rest)) {
            Some(time) => (day, Some(time)),
            None => return Ok(None),
        },
    };
    let back = match (day, weekday(day)) {
        ("today", _) if time.is_some() => 0,
        ("yesterday", _) => 1,
        (_, Some(day)) => {
            let since = now.weekday().since(day);
            let over = since > 0 || time.is_some_and(|t| t <= now.time());
            if over { i64::from(since) } else { 7 }
        }
        _ => return Ok(None),
    };
    let date = now.date().checked_sub(back.days())?;
    let at = date
        .to_datetime(time.unwrap_or(now.time()))
        .to_zoned(now.time_zone().clone())?;
    if at > *now {
        bail!("{lower:?} has not come yet");
    }
    Ok(Some(at.timestamp()))
}

fn weekday(text: &str) -> Option<Weekday> {
    const DAYS: [(&str, Weekday); 7] = [
        ("monday", Weekday::Monday),
        ("tuesday", Weekday::Tuesday),
        ("wednesday", Weekday::Wednesday),
        ("thursday", Weekday::Thursday),
        ("friday", Weekday::Friday),
        ("saturday", Weekday::Saturday),
        ("sunday", Weekday::Sunday),
    ];
    DAYS.iter()
        .find(|(name, _)| *name == text || name[..3] == *text)
        .map(|(_, day)| *day)
}

/// "14:05", "14:05:07", "14:05:07.25".
fn time_of_day(text: &str) -> Option<Time> {
    let digits = |b: u8| b.is_ascii_digit() || b == b':' || b == b'.';
    let hours = text.split(':').next()?;
    if !text.contains(':') || !text.bytes().all(digits) || !(1..=2).contains(&hours.len()) {
        return None;
    }
    // "9:30" as well.
    format!("{text:0>width$}", width = text.len() + 2 - hours.len())
        .parse()
        .ok()
}

/// Nanoseconds from the time in `text` to the end of the last second, or part of one, that it has.
fn slack(text: &str) -> i64 {
    let b = text.as_bytes();
    let shape = |w: &[u8]| {
        w.iter().zip(b"00:00:00").all(|(c, p)| {
            if *p == b':' {
                *c == b':'
            } else {
                c.is_ascii_digit()
            }
        })
    };
    // "9:30:05" has one digit less in front.
    let found = b.windows(8).position(shape).map(|at| at + 8).or_else(|| {
        let short = b.windows(7).position(|w| shape(&[b"0", w].concat()))?;
        Some(short + 7)
    });
    let Some(end) = found else { return 0 };
    let fraction = match b.get(end) {
        Some(b'.' | b',') => b[end + 1..]
            .iter()
            .take_while(|c| c.is_ascii_digit())
            .count(),
        _ => 0,
    };
    10i64.pow(9u32.saturating_sub(fraction as u32)) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Friday, in a zone that is two hours ahead in May.
    fn now() -> Zoned {
        "2026-05-15T16:20:30[Europe/Berlin]".parse().unwrap()
    }

    fn at(text: &str) -> String {
        let t = parse(text, &now()).unwrap_or_else(|e| panic!("{text:?}: {e}"));
        jiff::Timestamp::new(t.sec, t.nsec as i32)
            .unwrap()
            .to_string()
    }

    #[test]
    fn every_form_has_its_one_meaning() {
        for (text, want) in [
            ("now", "2026-05-15T14:20:30Z"),
            ("2026-05-01T12:00Z", "2026-05-01T12:00:00Z"),
            ("2026-05-01T12:00+05:00", "2026-05-01T07:00:00Z"),
            ("2026-05-01 14:00", "2026-05-01T12:00:00Z"),
            ("2026-01-01 14:00", "2026-01-01T13:00:00Z"),
            ("2026-05-01", "2026-04-30T22:00:00Z"),
            ("14:05", "2026-05-15T12:05:00Z"),
            ("9:05", "2026-05-15T07:05:00Z"),
            ("10 minutes ago", "2026-05-15T14:10:30Z"),
            ("2h ago", "2026-05-15T12:20:30Z"),
            ("1h 30m ago", "2026-05-15T12:50:30Z"),
            ("an hour ago", "2026-05-15T13:20:30Z"),
            ("3 days ago", "2026-05-12T14:20:30Z"),
            ("2 weeks ago", "2026-05-01T14:20:30Z"),
            ("yesterday", "2026-05-14T14:20:30Z"),
            ("Yesterday  14:00", "2026-05-14T12:00:00Z"),
            ("yesterday at 23:30", "2026-05-14T21:30:00Z"),
            ("today 09:30", "2026-05-15T07:30:00Z"),
            ("monday 10:00", "2026-05-11T08:00:00Z"),
            ("Friday 10:00", "2026-05-15T08:00:00Z"),
            ("friday 17:00", "2026-05-08T15:00:00Z"),
            ("friday", "2026-05-08T14:20:30Z"),
            ("sat", "2026-05-09T14:20:30Z"),
        ] {
            assert_eq!(at(text), want, "{text:?}");
        }
    }

    #[test]
    fn a_time_to_the_second_is_the_end_of_that_second() {
        for (text, want) in [
            ("2026-05-01 14:00:05", "2026-05-01T12:00:05.999999999Z"),
            ("2026-05-01 14:00:05.25", "2026-05-01T12:00:05.259999999Z"),
            ("2026-05-01T12:00:05Z", "2026-05-01T12:00:05.999999999Z"),
            (
                "2026-05-01T14:00:05.123+02:00",
                "2026-05-01T12:00:05.123999999Z",
            ),
            (
                "2026-05-01T12:00:05.123456789Z",
                "2026-05-01T12:00:05.123456789Z",
            ),
            ("9:00:05", "2026-05-15T07:00:05.999999999Z"),
        ] {
            assert_eq!(at(text), want, "{text:?}");
        }
    }

    #[test]
    fn days_keep_their_time_of_day_when_the_clocks_change() {
        let now: Zoned = "2026-03-29T12:00:00[Europe/Berlin]".parse().unwrap();
        let t = parse("yesterday", &now).unwrap();
        assert_eq!(now.timestamp().as_second() - t.sec, 23 * 3600);
    }

    #[test]
    fn what_has_no_meaning_is_refused_with_examples() {
        for text in [
            "",
            "soon",
            "ago",
            "10 minutes",
            "-5 minutes ago",
            "5 parsecs ago",
            "tomorrow",
            "yesterday 25:00",
            "14:60",
            "14",
            "1400",
            "2026-13-01",
            "monday tuesday",
            "2026-05-01 14:00 15:00",
            "today",
            "last week",
            "14.05",
            "14:05:07:08",
        ] {
            let e = parse(text, &now()).expect_err(text).to_string();
            assert!(
                e.contains("yesterday 14:00") && !e.contains('\n'),
                "{text:?}: {e}"
            );
        }
        let e = parse("18:00", &now()).unwrap_err().to_string();
        assert!(e.contains("yesterday 18:00"), "{e}");
        assert!(parse("today 18:00", &now()).is_err());
    }
}
