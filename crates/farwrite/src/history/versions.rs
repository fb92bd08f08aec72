//! `farwrite versions`: every version of what has been at a path, newest first.
//!
//! With `--json` an object: `path` (and `path_bytes`), and `versions`, each with `batch`, `time` (RFC 3339, exact), `clean`,
//! `change` ("created", "renamed-here", "replaced", "content", "attributes", "removed"), `bytes_new`, and unless removed the
//! attributes: `kind`, `mode`, `uid`, `gid`, `mtime`, `size`, `target`, `device`.

use super::ask::Ask;
use super::{place, show};
use crate::bytes;
use crate::cli::VersionsArgs;
use crate::state::State;
use anyhow::bail;
use farwrite_core::Kind;
use farwrite_core::history::{Version, VersionChange};
use serde_json::{Value, json};
use std::io::Write;

/// Prints them.
pub(super) fn run(state: &State, args: &VersionsArgs) -> anyhow::Result<()> {
    if args.limit == 0 {
        bail!("--limit must be at least 1");
    }
    let ask = Ask::open(state, &args.from)?;
    ask.moments()?;
    let mut list = Vec::new();
    let (path, found) = place::find(&args.path, |path| {
        list = ask.versions(path, args.limit)?;
        Ok(!list.is_empty())
    })?;
    if !found {
        bail!("{path}: nothing of that name has been backed up");
    }
    if args.json {
        let mut doc = show::path_json(&path);
        doc.insert("versions".into(), list.iter().map(to_json).collect());
        writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&doc)?)?;
        return Ok(());
    }
    let rows: Vec<Vec<String>> = (0..list.len()).map(|i| row(&list, i)).collect();
    write!(
        std::io::stdout(),
        "{}",
        show::columns(&rows, &[false, true, true, false])
    )?;
    if list.len() == args.limit as usize {
        eprintln!("the newest {} only: --limit N shows more", args.limit);
    }
    Ok(())
}

fn row(list: &[Version], i: usize) -> Vec<String> {
    let v = &list[i];
    let same_second = |j: usize| {
        list.get(j)
            .is_some_and(|o| o.moment.time.sec == v.moment.time.sec)
    };
    let time = match same_second(i + 1) || i > 0 && same_second(i - 1) {
        true => show::time_ms(v.moment.time),
        false => show::time(v.moment.time),
    };
    let size = match &v.meta {
        Some(m) if m.kind == Kind::File => bytes::show(m.size),
        Some(m) => show::kind(m.kind).into(),
        None => "-".into(),
    };
    vec![time, show::age(v.moment.time), size, what(v)]
}

fn what(v: &Version) -> String {
    let new = |text: &str| match v.bytes_new {
        0 => text.to_owned(),
        n => format!("{text} +{} new", bytes::show(n)),
    };
    match v.what {
        VersionChange::Created => new("created"),
        VersionChange::RenamedHere => new("renamed here"),
        VersionChange::Replaced => new("replaced"),
        VersionChange::Content => new("content"),
        VersionChange::Attributes => "attributes".into(),
        VersionChange::Removed => "removed".into(),
    }
}

fn to_json(v: &Version) -> Value {
    let change = match v.what {
        VersionChange::Created => "created",
        VersionChange::RenamedHere => "renamed-here",
        VersionChange::Replaced => "replaced",
        VersionChange::Content => "content",
        VersionChange::Attributes => "attributes",
        VersionChange::Removed => "removed",
    };
    let mut value = show::moment_json(&v.moment);
    let map = value.as_object_mut().expect("made as an object");
    map.insert("change".into(), change.into());
    map.insert("bytes_new".into(), json!(v.bytes_new));
    if let Some(meta) = &v.meta {
        show::put_meta(map, meta);
    }
    value
}
