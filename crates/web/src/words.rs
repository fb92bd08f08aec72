//! States, numbers and times in plain words.

use farwrite_control::{State, Status};
use std::collections::BTreeSet;

/// Bytes with a unit: "0 B", "1.5 MB".
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let (mut value, mut unit) = (n as f64, 0);
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{n} B"),
        _ if value < 9.95 => format!("{value:.1} {}", UNITS[unit]),
        _ => format!("{value:.0} {}", UNITS[unit]),
    }
}

/// A time span: "0.3 s", "2 min", "5 h", "3 d".
pub(crate) fn span_ms(ms: u64) -> String {
    match ms as f64 / 1e3 {
        s if s < 99.5 => format!("{s:.1} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s if s < 48.0 * 3600.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} d", s / 86400.0),
    }
}

/// 1234567 as "1,234,567".
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// An RFC 3339 time as local time to the second.
pub(crate) fn local(rfc3339: &str) -> String {
    match rfc3339.parse::<jiff::Timestamp>() {
        Ok(t) => t
            .to_zoned(jiff::tz::TimeZone::system())
            .strftime("%Y-%m-%d %H:%M:%S")
            .to_string(),
        Err(_) => rfc3339.to_owned(),
    }
}

/// How long ago an RFC 3339 time is: "3 s ago", "2 h ago".
pub(crate) fn ago(rfc3339: &str) -> String {
    let Ok(t) = rfc3339.parse::<jiff::Timestamp>() else {
        return rfc3339.to_owned();
    };
    let ms = jiff::Timestamp::now().duration_since(t).as_millis().max(0) as u64;
    match ms {
        0..1000 => "just now".into(),
        1000..99_500 => format!("{} s ago", ms / 1000),
        _ => format!("{} ago", span_ms(ms)),
    }
}

/// The one sentence on everything, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sentence {
    /// "good", "work" or "bad"; a class of the style sheet.
    pub(crate) mood: &'static str,
    /// What is.
    pub(crate) says: String,
    /// More about it, or what to do; may be empty.
    pub(crate) advice: String,
}

/// See [`Sentence`].
pub(crate) fn sentence(s: &Status) -> Sentence {
    let tell = |mood, says: &str, advice: String| Sentence {
        mood,
        says: says.into(),
        advice,
    };
    // What is switched off by itself says nothing about the rest.
    let off: BTreeSet<&str> = s
        .protections
        .iter()
        .filter(|p| !p.enabled)
        .map(|p| &*p.directory)
        .collect();
    if s.on && !off.is_empty() {
        let rest = Status {
            protections: s
                .protections
                .iter()
                .filter(|p| p.enabled)
                .cloned()
                .collect(),
            ..s.clone()
        };
        let mut all = sentence(&rest);
        let names: Vec<&str> = off.into_iter().collect();
        let text = format!("Switched off, and not seen: {}.", names.join(", "));
        all.advice = format!("{text} {}", all.advice).trim_end().into();
        if all.mood == "good" {
            all.mood = "work";
            all.says = all
                .says
                .replace("Everything is safe.", "Everything else is safe.");
        }
        return all;
    }
    let Some(worst) = s.protections.iter().min_by_key(|p| p.state) else {
        return tell(
            "bad",
            "Nothing is protected yet.",
            "Add a directory on the page Protect.".into(),
        );
    };
    let lag = s.vaults.iter().map(|v| v.lag_ms).max().unwrap_or(0);
    let waiting = s
        .vaults
        .iter()
        .map(|v| v.pending_changes)
        .max()
        .unwrap_or(0);
    let behind = span_ms(lag);
    // The switch comes before everything but a vault that needs a person: nothing new is seen.
    if !s.on {
        let why = match &s.sensor.warning {
            Some(w) => format!("{w}. Switch it on again below."),
            None => "Changes are not seen. Switching it on catches up with everything that happened meanwhile.".into(),
        };
        return tell("bad", "Automatic backup is off.", why);
    }
    let away: Vec<&str> = s
        .vaults
        .iter()
        .filter(|v| !v.connected)
        .map(|v| v.name.as_str())
        .collect();
    match worst.state {
        State::Error => tell(
            "bad",
            "Backup has stopped and needs you.",
            format!("{}: {}", worst.vault, worst.message),
        ),
        State::Off => tell(
            "bad",
            "Automatic backup is off.",
            "Switch it on below.".into(),
        ),
        State::Offline => {
            let says = format!("Not safe: no connection to {}.", away.join(" and "));
            let waits = match waiting {
                0 => "Nothing is waiting yet.".to_owned(),
                n => format!("{} changes wait, the oldest for {behind}.", grouped(n)),
            };
            let why = s
                .vaults
                .iter()
                .find(|v| !v.connected)
                .map_or("", |v| v.message.as_str());
            tell(
                "bad",
                &says,
                format!(
                    "{waits} They are sent when it is back. {}",
                    sentence_case(why)
                ),
            )
        }
        State::Incomplete => tell(
            "bad",
            "Some files cannot be backed up.",
            sentence_case(&worst.message),
        ),
        State::Comparing => tell("work", "Catching up.", sentence_case(&worst.message)),
        State::Behind => tell(
            "work",
            &format!("{behind} behind."),
            format!("{} changes are on their way.", grouped(waiting)),
        ),
        State::Safe if lag == 0 => tell("good", "Everything is safe.", String::new()),
        State::Safe => tell(
            "good",
            &format!("Everything is safe. {behind} behind."),
            String::new(),
        ),
    }
}

fn sentence_case(text: &str) -> String {
    let mut chars = text.chars();
    let Some(first) = chars.next() else {
        return String::new();
    };
    let rest = chars.as_str();
    let stop = if rest.ends_with('.') { "" } else { "." };
    format!("{}{rest}{stop}", first.to_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use farwrite_control::{Protection, Vault};

    fn status(state: State, lag_ms: u64) -> Status {
        Status {
            on: true,
            protections: vec![Protection {
                enabled: true,
                state,
                message: "v: something".into(),
                ..Protection::default()
            }],
            vaults: vec![Vault {
                name: "nas".into(),
                connected: state != State::Offline,
                lag_ms,
                ..Vault::default()
            }],
            ..Status::default()
        }
    }

    #[test]
    fn each_state_has_its_sentence() {
        let says = |s: &Status| sentence(s).says;
        assert_eq!(
            says(&status(State::Safe, 300)),
            "Everything is safe. 0.3 s behind."
        );
        assert_eq!(says(&status(State::Safe, 0)), "Everything is safe.");
        assert_eq!(
            says(&status(State::Offline, 0)),
            "Not safe: no connection to nas."
        );
        assert_eq!(says(&status(State::Behind, 61_000)), "61.0 s behind.");
        let off = Status {
            on: false,
            ..status(State::Off, 0)
        };
        assert_eq!(says(&off), "Automatic backup is off.");
        assert_eq!(says(&Status::default()), "Nothing is protected yet.");
        let mut some = status(State::Safe, 0);
        some.protections.push(Protection {
            directory: "/b".into(),
            state: State::Off,
            ..Protection::default()
        });
        let told = sentence(&some);
        assert_eq!(
            (told.mood, &*told.says),
            ("work", "Everything else is safe.")
        );
        assert_eq!(told.advice, "Switched off, and not seen: /b.");
    }
}
