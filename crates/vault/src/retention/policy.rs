//! The policy: how long every change is kept, and how history is thinned behind that. It is a small file made to be edited; one
//! that does not read prunes nothing.
//!
//! All bounds are times, none a number of moments: a source chooses the times of its batches, and could push real
//! moments out of "the last seven days with a backup" by sending batches of made-up days.

use crate::vault::{VaultError, replace_file};
use serde::Deserialize;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// Name of the file: in a vault's directory for all its sources, in a source's directory for that one instead.
pub const POLICY_FILE: &str = "retention.toml";
/// Every change of this time is kept at least: within it the ransomware brake notices and stops the pruning.
const KEEP_ALL_MIN: u64 = 3600;
/// Most bytes of a policy file.
const FILE_BYTES: u64 = 64 << 10;

/// How long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// This many seconds.
    Seconds(u64),
    /// Without end.
    Forever,
}

/// Why a policy was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPolicy {
    /// Not a time.
    #[error("{0:?} is not a length of time: use 12h, 30d, 8w, 12mo, 2y or forever")]
    Span(String),
    /// Less than an hour of every change.
    #[error("keep_all must be at least 1h")]
    TooShort,
    /// Tiers without a window.
    #[error(
        "hourly, daily, weekly and monthly say how history is thinned behind keep_all, which is not set"
    )]
    NoWindow,
}

/// See the module. The default keeps everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Every change of this time is kept. `None`: of all time; nothing is pruned.
    pub keep_all: Option<Span>,
    /// One moment of each hour is kept for this long.
    pub hourly: Option<Span>,
    /// Of each day (UTC).
    pub daily: Option<Span>,
    /// Of each week (from Monday, UTC).
    pub weekly: Option<Span>,
    /// Of each month (UTC).
    pub monthly: Option<Span>,
    /// The share of all files that sets the ransomware brake, in percent; 0: never. `None`: the usual one.
    pub brake_percent: Option<u8>,
}

impl FromStr for Span {
    type Err = BadPolicy;
    fn from_str(text: &str) -> Result<Self, BadPolicy> {
        let bad = || BadPolicy::Span(text.into());
        let t = text.trim();
        if t == "forever" {
            return Ok(Span::Forever);
        }
        let digits = t.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let number: u64 = t[..digits].parse().map_err(|_| bad())?;
        let unit = match &t[digits..] {
            "h" => 3600,
            "d" => 86_400,
            "w" => 7 * 86_400,
            "mo" => 31 * 86_400,
            "y" => 366 * 86_400,
            _ => return Err(bad()),
        };
        number.checked_mul(unit).map(Span::Seconds).ok_or_else(bad)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Span::Seconds(s) = *self else {
            return f.write_str("forever");
        };
        let units = [
            (366 * 86_400, "y"),
            (31 * 86_400, "mo"),
            (7 * 86_400, "w"),
            (86_400, "d"),
        ];
        let found = units.iter().find(|(n, _)| s > 0 && s.is_multiple_of(*n));
        let (n, unit) = found.unwrap_or(&(3600, "h"));
        write!(f, "{}{unit}", s / n)
    }
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InFile {
    keep_all: Option<String>,
    hourly: Option<String>,
    daily: Option<String>,
    weekly: Option<String>,
    monthly: Option<String>,
    brake_percent: Option<u8>,
}

impl Policy {
    /// Is everything kept?
    pub fn keeps_everything(&self) -> bool {
        matches!(self.keep_all, None | Some(Span::Forever))
    }

    /// Checks what the types do not hold.
    pub fn check(&self) -> Result<(), BadPolicy> {
        match self.keep_all {
            Some(Span::Seconds(s)) if s < KEEP_ALL_MIN => Err(BadPolicy::TooShort),
            None if self.tiers().iter().any(|(_, _, t)| t.is_some()) => Err(BadPolicy::NoWindow),
            _ => Ok(()),
        }
    }

    /// Name, explanation and length of each tier.
    fn tiers(&self) -> [(&'static str, &'static str, Option<Span>); 4] {
        [
            ("hourly", "the last of each hour", self.hourly),
            ("daily", "the last of each day (UTC)", self.daily),
            ("weekly", "the last of each week (UTC)", self.weekly),
            ("monthly", "the last of each month (UTC)", self.monthly),
        ]
    }

    /// Reads a policy's text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: InFile = toml::from_str(text).map_err(|e| e.to_string())?;
        let span = |t: Option<String>| -> Result<Option<Span>, String> {
            t.map(|t| t.parse().map_err(|e: BadPolicy| e.to_string()))
                .transpose()
        };
        let policy = Policy {
            keep_all: span(file.keep_all)?,
            hourly: span(file.hourly)?,
            daily: span(file.daily)?,
            weekly: span(file.weekly)?,
            monthly: span(file.monthly)?,
            brake_percent: file.brake_percent,
        };
        policy.check().map_err(|e| e.to_string())?;
        Ok(policy)
    }

    /// The text of a policy file, with its comments.
    pub fn to_text(&self) -> String {
        let line = |key: &str, what: &str, span: Option<Span>, example: &str| {
            let (mark, value) = match span {
                Some(s) => ("", s.to_string()),
                None => ("# ", example.to_owned()),
            };
            format!("{:<28}# {what}\n", format!("{mark}{key} = \"{value}\""))
        };
        let mut out = String::from(
            "# How long history is kept. Times: 12h, 30d, 8w, 12mo (of 31 days), 2y, forever.\n\
             # Without keep_all nothing is ever pruned. The present and marked moments are always kept.\n\n",
        );
        out += &line(
            "keep_all",
            "every change; at least 1h",
            self.keep_all,
            "30d",
        );
        out += "\n# Older than that, only (clean points before others):\n";
        for ((key, what, span), example) in self.tiers().iter().zip(["90d", "1y", "2y", "forever"])
        {
            out += &line(key, what, *span, example);
        }
        let (mark, percent) = match self.brake_percent {
            Some(p) => ("", p),
            None => ("# ", super::BRAKE_PERCENT),
        };
        out += &format!(
            "\n# So many percent of all files rewritten or renamed at once look like ransomware, and stop the pruning; 0: never.\n\
             {mark}brake_percent = {percent}\n"
        );
        out
    }

    /// The policy in a directory; `None` if there is no file.
    pub fn load(dir: &Path) -> Result<Option<Self>, VaultError> {
        use std::io::Read;
        let path = dir.join(POLICY_FILE);
        let file = match std::fs::File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| VaultError::io("read", &path, e))?,
        };
        let mut text = String::new();
        file.take(FILE_BYTES + 1)
            .read_to_string(&mut text)
            .map_err(|e| VaultError::io("read", &path, e))?;
        if text.len() as u64 > FILE_BYTES {
            // What is cut off may be what keeps the most.
            let why = format!("longer than {FILE_BYTES} bytes");
            return Err(VaultError::Toml { path, why });
        }
        Self::parse(&text)
            .map(Some)
            .map_err(|why| VaultError::Toml { path, why })
    }

    /// Puts the policy into a directory.
    pub fn save(&self, dir: &Path) -> Result<(), VaultError> {
        let path = dir.join(POLICY_FILE);
        self.check().map_err(|e| VaultError::Toml {
            path: path.clone(),
            why: e.to_string(),
        })?;
        replace_file(&path, self.to_text().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_read_as_it_was_written_and_the_default_keeps_everything() {
        let some = |t: &str| Some(t.parse::<Span>().unwrap());
        let all = Policy {
            keep_all: some("30d"),
            hourly: some("90d"),
            daily: some("1y"),
            weekly: some("36h"),
            monthly: some("forever"),
            brake_percent: Some(35),
        };
        assert_eq!(Policy::parse(&all.to_text()).unwrap(), all);
        let none = Policy::default();
        assert_eq!(Policy::parse(&none.to_text()).unwrap(), none);
        assert!(none.keeps_everything() && !all.keeps_everything());
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for bad in [
            "keep_all = \"30\"",
            "keep_all = \"-1d\"",
            "keep_all = \"59m\"",
            "keep_all = \"0h\"",
            "keep_al = \"30d\"",
            "hourly = \"3d\"",
            "keep_all = \"99999999999999999999y\"",
            "keep_all = 30",
        ] {
            assert!(Policy::parse(bad).is_err(), "{bad}");
        }
    }
}
