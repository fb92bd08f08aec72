//! `farwrite vault mark`: names for moments, which are then kept. Here they can also be taken away.
//!
//! With `--json` an array, an object per mark: `name`, `batch`, `time` (of the moment), `clean`, `created`, `by` (`source`, `vault`
//! or `brake`).

use super::init;
use crate::history::{parse_time, show_moment};
use anyhow::bail;
use farwrite_core::history::Mark;
use farwrite_core::{SourceName, Timestamp};
use farwrite_vault::retention::Marks;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::time::SystemTime;

/// Lists, sets or takes away.
pub(super) fn run(
    vault_dir: &Path,
    source: &SourceName,
    name: Option<&str>,
    at: Option<&str>,
    remove: bool,
    json: bool,
) -> anyhow::Result<()> {
    let vault = init::open(vault_dir)?;
    let dir = vault.source_dir(source);
    if !dir.is_dir() {
        bail!("the vault has no source {source}");
    }
    let Some(name) = name else {
        return list(&Marks::load(&dir)?.list, json);
    };
    let mark = match remove {
        true => Marks::remove(&dir, name)?,
        false => {
            let at = at.map(parse_time).transpose()?;
            Marks::set(&dir, name, at, "vault", SystemTime::now().into())?
        }
    };
    if json {
        return list(&[mark], true);
    }
    let done = if remove { "no longer marked" } else { "marked" };
    println!("{done} {name}: {}", show_moment(&mark.moment));
    Ok(())
}

/// Prints marks.
pub(crate) fn list(marks: &[Mark], json: bool) -> anyhow::Result<()> {
    if json {
        let all: Vec<Value> = marks.iter().map(to_json).collect();
        writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&all)?)?;
        return Ok(());
    }
    if marks.is_empty() {
        println!("nothing is marked");
    }
    for m in marks {
        println!("{}  {}  (by {})", m.name, show_moment(&m.moment), m.by);
    }
    Ok(())
}

/// A mark as a JSON object.
pub(crate) fn to_json(m: &Mark) -> Value {
    let time = |t: Timestamp| {
        jiff::Timestamp::new(t.sec, t.nsec as i32)
            .ok()
            .map(|t| t.to_string())
    };
    json!({
        "name": m.name,
        "batch": m.moment.seq,
        "time": time(m.moment.time),
        "clean": m.moment.clean,
        "created": time(m.created),
        "by": m.by,
    })
}
