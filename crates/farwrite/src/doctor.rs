//! `farwrite doctor`: what this machine allows and what to do about what it lacks. It changes nothing: the one thing that it
//! writes is a file without a name, to see whether the filesystem shares extents.
//!
//! With `--json` one array of objects: `check`, `result` ("ok", "warn", "fail"), `text`, `remedy` (empty if there is nothing
//! to do). Exit status 1 if anything is "fail".

mod machine;
mod place;
mod reach;

use crate::cli::DoctorArgs;
use crate::config::Config;
use crate::state::State;
use anyhow::bail;
use farwrite_core::path;
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Ok,
    /// It works, but less well than it could.
    Warn,
    /// Something does not work at all.
    Fail,
}

/// One line of the report.
#[derive(Clone, Debug)]
struct Check {
    /// What was looked at.
    what: String,
    outcome: Outcome,
    /// What was found.
    text: String,
    /// What to do about it; empty if nothing.
    remedy: String,
}

impl Check {
    fn ok(what: impl Into<String>, text: impl Into<String>) -> Check {
        Check {
            what: what.into(),
            outcome: Outcome::Ok,
            text: text.into(),
            remedy: String::new(),
        }
    }

    fn warn(what: impl Into<String>, text: impl Into<String>, remedy: impl Into<String>) -> Check {
        Check {
            what: what.into(),
            outcome: Outcome::Warn,
            text: text.into(),
            remedy: remedy.into(),
        }
    }

    fn fail(what: impl Into<String>, text: impl Into<String>, remedy: impl Into<String>) -> Check {
        Check {
            outcome: Outcome::Fail,
            ..Check::warn(what, text, remedy)
        }
    }
}

/// Looks at everything and reports.
pub fn run(state: &State, args: &DoctorArgs) -> anyhow::Result<()> {
    let mut checks = machine::checks();
    checks.extend(place::state_dir(state));
    match Config::load(state) {
        Ok(config) => {
            checks.extend(configured(&config));
            let dirs: Vec<&str> = config.directories.iter().map(|d| d.path.as_str()).collect();
            checks.extend(place::protected(&dirs));
            checks.extend(config.vaults.iter().map(|v| reach::vault(state, v)));
        }
        Err(e) => {
            let text = format!("{e:#}").replace('\n', " ");
            checks.push(Check::fail(
                "configuration",
                text,
                "mend the file, or run `farwrite source add` anew",
            ));
        }
    }
    match args.json {
        true => writeln!(
            std::io::stdout(),
            "{}",
            serde_json::to_string_pretty(&checks.iter().map(to_json).collect::<Vec<_>>())?
        )?,
        false => print(&checks)?,
    }
    match checks.iter().filter(|c| c.outcome == Outcome::Fail).count() {
        0 => Ok(()),
        1 => bail!("one thing does not work"),
        n => bail!("{n} things do not work"),
    }
}

fn configured(config: &Config) -> Vec<Check> {
    if config.directories.is_empty() || config.vaults.is_empty() {
        let remedy = "farwrite source add DIR --to INVITE";
        return vec![Check::warn(
            "configuration",
            "nothing is protected on this machine yet",
            remedy,
        )];
    }
    let text = format!(
        "{} directories, {} vaults",
        config.directories.len(),
        config.vaults.len()
    );
    vec![Check::ok("configuration", text)]
}

fn to_json(c: &Check) -> Value {
    json!({"check": c.what, "result": word(c.outcome), "text": c.text, "remedy": c.remedy})
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Ok => "ok",
        Outcome::Warn => "warn",
        Outcome::Fail => "fail",
    }
}

fn print(checks: &[Check]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let signs = out.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let width = checks
        .iter()
        .map(|c| c.what.chars().count())
        .max()
        .unwrap_or(0);
    for c in checks {
        let mark = match (signs, c.outcome) {
            (true, Outcome::Ok) => "✓",
            (true, Outcome::Warn) => "!",
            (true, Outcome::Fail) => "✗",
            (false, outcome) => word(outcome),
        };
        let gap = if signs { 1 } else { 4 };
        let line = |s: &str| path::lossy(s.as_bytes());
        writeln!(
            out,
            "{mark:<gap$}  {:<width$}  {}",
            line(&c.what),
            line(&c.text)
        )?;
        if !c.remedy.is_empty() {
            writeln!(
                out,
                "{:<gap$}  {:<width$}  do this: {}",
                "",
                "",
                line(&c.remedy)
            )?;
        }
    }
    Ok(())
}
