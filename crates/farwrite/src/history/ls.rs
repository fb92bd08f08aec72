//! `farwrite ls`: a directory as it was.
//!
//! With `--json` an object: `moment` (`batch`, `time`, `clean`) and `listings`, each with `path` (and `path_bytes`) and
//! `entries`: `name` (and `name_bytes`), `links`, `kind`, `mode`, `uid`, `gid`, `mtime`, `size`, `target`, `device`. A path
//! that is not a directory is a listing of one entry.

use super::ask::Ask;
use super::show::{self, Owners};
use super::{diff, place};
use crate::bytes;
use crate::cli::LsArgs;
use crate::state::State;
use anyhow::bail;
use farwrite_core::history::{Entry, Moment};
use farwrite_core::{BytePath, Kind, path};
use serde_json::{Map, Value, json};
use std::io::Write;

/// Lists.
pub(super) fn run(state: &State, args: &LsArgs) -> anyhow::Result<()> {
    let ask = Ask::open(state, &args.from)?;
    let moment = ask.moment(args.at.as_deref())?;
    let mut found = Vec::new();
    match &args.path {
        Some(given) => {
            let (path, there) = place::find(given, |p| Ok(ask.stat(p, moment.seq)?.is_some()))?;
            if !there {
                bail!("{}", diff::nothing_there(&ask, &path, &moment)?);
            }
            found.push(path);
        }
        None => found.extend(ask.directories().iter().cloned()),
    }
    match args.json {
        true => print_json(&ask, &moment, &found),
        false => print_text(&ask, &moment, &found),
    }
}

fn print_text(ask: &Ask, moment: &Moment, paths: &[BytePath]) -> anyhow::Result<()> {
    let owners = if ask.is_local_source() {
        Owners::of_this_machine()
    } else {
        Owners::default()
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", show::moment(moment))?;
    for path in paths {
        if paths.len() > 1 {
            writeln!(out, "\n{path}:")?;
        }
        each_page(ask, path, moment, &mut |entries| {
            let rows: Vec<Vec<String>> = entries.iter().map(|e| row(e, &owners)).collect();
            Ok(out
                .write_all(show::columns(&rows, &[false, false, true, false, false]).as_bytes())?)
        })?;
    }
    Ok(())
}

fn print_json(ask: &Ask, moment: &Moment, paths: &[BytePath]) -> anyhow::Result<()> {
    let mut listings = Vec::new();
    for path in paths {
        let mut all: Vec<Value> = Vec::new();
        each_page(ask, path, moment, &mut |entries| {
            all.extend(entries.iter().map(to_json));
            Ok(())
        })?;
        let mut listing = show::path_json(path);
        listing.insert("entries".into(), all.into());
        listings.push(Value::Object(listing));
    }
    let doc = json!({"moment": show::moment_json(moment), "listings": listings});
    writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&doc)?)?;
    Ok(())
}

/// Entries of the directory, or the one entry that is at the path. Nothing if nothing was there.
fn each_page(
    ask: &Ask,
    path: &BytePath,
    moment: &Moment,
    each: &mut dyn FnMut(Vec<Entry>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    match ask.stat(path, moment.seq)? {
        Some(e) if e.meta.kind == Kind::Dir => ask.pages(e.node, moment.seq, each),
        Some(e) => each(vec![e]),
        None => Ok(()),
    }
}

fn row(e: &Entry, owners: &Owners) -> Vec<String> {
    let m = &e.meta;
    let size = match m.kind {
        Kind::File => bytes::show(m.size),
        Kind::Char | Kind::Block => show::device(m.rdev),
        _ => "-".into(),
    };
    let mut name = e
        .name
        .as_ref()
        .map_or_else(|| "/".into(), ToString::to_string);
    match m.kind {
        Kind::Dir if e.name.is_some() => name.push('/'),
        Kind::Symlink => name.push_str(&format!(" -> {}", path::lossy(&m.target))),
        _ => {}
    }
    vec![
        show::mode(m),
        owners.show(m),
        size,
        show::time(m.mtime),
        name,
    ]
}

fn to_json(e: &Entry) -> Value {
    let mut map = Map::new();
    show::put_bytes(
        &mut map,
        "name",
        e.name.as_ref().map_or(b"/", |n| n.as_bytes()),
    );
    map.insert("links".into(), e.links.into());
    show::put_meta(&mut map, &e.meta);
    map.into()
}
