//! `farwrite diff`: what changed between two moments.
//!
//! With `--json` an object: `from` and `to` (`batch`, `time`, `clean`), `changes`, each with `path` (and `path_bytes`),
//! `kind`, `change` ("added", "removed", "content", "attributes"), `size_from` and `size_to` (null where it was no file), and
//! `truncated`: there is more than was listed.

use super::ask::Ask;
use super::{place, show};
use crate::bytes;
use crate::cli::DiffArgs;
use crate::state::State;
use anyhow::bail;
use farwrite_core::history::{Difference, DifferenceKind, Moment};
use farwrite_core::{BytePath, Kind};
use serde_json::{Value, json};
use std::io::Write;

/// Prints the differences.
pub(super) fn run(state: &State, args: &DiffArgs) -> anyhow::Result<()> {
    let ask = Ask::open(state, &args.from)?;
    let from = ask.moment(Some(&args.from_time))?;
    let to = ask.moment(args.to_time.as_deref())?;
    if from.seq > to.seq {
        bail!(
            "--from ({}) is later than --to ({})",
            show::time(from.time),
            show::time(to.time)
        );
    }
    let paths = match &args.path {
        None => ask.directories().to_vec(),
        Some(given) => {
            let (path, found) = place::find(given, |p| {
                Ok(ask.stat(p, to.seq)?.is_some() || ask.stat(p, from.seq)?.is_some())
            })?;
            if !found {
                bail!("{}", nothing_there(&ask, &path, &to)?);
            }
            vec![path]
        }
    };
    let (mut changes, mut truncated) = (Vec::new(), false);
    for path in &paths {
        let (more, cut) = ask.diff(path, from.seq, to.seq)?;
        changes.extend(more);
        truncated |= cut;
    }
    if args.json {
        let all: Vec<Value> = changes.iter().map(to_json).collect();
        let (from, to) = (show::moment_json(&from), show::moment_json(&to));
        let doc = json!({"from": from, "to": to, "changes": all, "truncated": truncated});
        writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&doc)?)?;
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "from {} to {}",
        show::time(from.time),
        show::time(to.time)
    )?;
    for c in &changes {
        writeln!(out, "{}", line(c))?;
    }
    if truncated {
        eprintln!("there is more than can be listed at once: name a directory further down");
    }
    Ok(())
}

fn line(c: &Difference) -> String {
    let (mark, size) = match c.what {
        DifferenceKind::Added => ('+', c.size_to.map(bytes::show)),
        DifferenceKind::Removed => ('-', c.size_from.map(bytes::show)),
        DifferenceKind::Attributes => ('a', None),
        DifferenceKind::Content => ('M', Some(change(c.size_from, c.size_to))),
    };
    let slash = if c.kind == Kind::Dir { "/" } else { "" };
    let size = size.map(|s| format!("  {s}")).unwrap_or_default();
    format!("{mark} {}{slash}{size}", c.path)
}

fn change(from: Option<u64>, to: Option<u64>) -> String {
    match (from, to) {
        (Some(a), Some(b)) if a == b => bytes::show(b),
        (a, b) => format!("{} -> {}", size_or_dash(a), size_or_dash(b)),
    }
}

fn size_or_dash(n: Option<u64>) -> String {
    n.map_or_else(|| "-".into(), bytes::show)
}

fn to_json(c: &Difference) -> Value {
    let change = match c.what {
        DifferenceKind::Added => "added",
        DifferenceKind::Removed => "removed",
        DifferenceKind::Content => "content",
        DifferenceKind::Attributes => "attributes",
    };
    let mut map = show::path_json(&c.path);
    map.insert("kind".into(), show::kind(c.kind).into());
    map.insert("change".into(), change.into());
    map.insert("size_from".into(), json!(c.size_from));
    map.insert("size_to".into(), json!(c.size_to));
    map.into()
}

/// Most versions looked through for the nearest moment.
const NEAREST: u32 = 4096;

/// Words for a path at which nothing was, with the nearest moment at which something was.
pub(super) fn nothing_there(ask: &Ask, path: &BytePath, at: &Moment) -> anyhow::Result<String> {
    let nothing = format!("{path}: nothing was there at {}", show::time(at.time));
    let versions = ask.versions(path, NEAREST)?;
    let there =
        |m: &Moment, how: &str| format!("{nothing}; {how} (--at {})", show::rfc3339(m.time));
    let before = versions
        .iter()
        .find(|v| v.meta.is_some() && v.moment.seq <= at.seq);
    let after = versions
        .iter()
        .rev()
        .find(|v| v.meta.is_some() && v.moment.seq > at.seq);
    Ok(match (before, after) {
        (Some(v), _) => {
            // Its end is the first removal behind it.
            let gone = versions
                .iter()
                .rev()
                .find(|r| r.meta.is_none() && r.moment.seq > v.moment.seq);
            let until = gone
                .map(|r| format!(" until {}", show::time(r.moment.time)))
                .unwrap_or_default();
            there(&v.moment, &format!("it was there{until}"))
        }
        (None, Some(v)) => there(
            &v.moment,
            &format!("it first came at {}", show::time(v.moment.time)),
        ),
        (None, None) => format!("{nothing}, nor at any other moment"),
    })
}
