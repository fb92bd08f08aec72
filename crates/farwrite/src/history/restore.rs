//! `farwrite restore`: brings files back. It must never write before it is known that nothing is in the way, and never end
//! with success if a file is missing.
//!
//! With `--json` an object: `moment` (`batch`, `time`, `clean`), `to`, `dry_run`, `files`, `directories`, `bytes`, `failed`
//! (each with `path`, `path_bytes`, `why`), `not_set` (how many `owner`, `mode`, `xattrs`, `times` this process or filesystem
//! could not set), and in a dry run `entries` (each with `path`, `to`, `kind`, `size`).

use super::ask::Ask;
use super::{diff, place, show};
use crate::bytes;
use crate::cli::RestoreArgs;
use crate::state::State;
use anyhow::bail;
use farwrite_core::history::{Entry, Moment, Request};
use farwrite_core::{BytePath, Kind, Name, NodeId, path};
use farwrite_vault::{Restore, RestoreStats};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};
use std::io::{IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Names that are in the way and are listed.
const NAMED: usize = 5;

/// What is asked for, found in the history.
struct Wanted {
    path: BytePath,
    entry: Entry,
}

/// Restores.
pub(super) fn run(state: &State, args: &RestoreArgs) -> anyhow::Result<()> {
    let ask = Ask::open(state, &args.from)?;
    let moment = ask.moment(args.at.as_deref())?;
    let to = std::path::absolute(&args.to)?;
    let mut wanted: Vec<Wanted> = Vec::new();
    for given in &args.paths {
        let mut entry = None;
        let (path, _) = place::find(given, |p| {
            entry = ask.stat(p, moment.seq)?;
            Ok(entry.is_some())
        })?;
        match entry {
            Some(entry) => wanted.push(Wanted { path, entry }),
            None => bail!("{}", diff::nothing_there(&ask, &path, &moment)?),
        }
    }
    check_way(&ask, &wanted, &moment, &to, args.overwrite)?;
    match args.dry_run {
        true => dry_run(&ask, wanted, &moment, &to, args),
        false => restore(&ask, wanted, &moment, to, args),
    }
}

/// Nothing of the names to be made may be there yet, and no two may be the same.
fn check_way(
    ask: &Ask,
    wanted: &[Wanted],
    moment: &Moment,
    to: &Path,
    overwrite: bool,
) -> anyhow::Result<()> {
    let mut names: Vec<Name> = Vec::new();
    for w in wanted {
        match &w.entry.name {
            Some(name) => names.push(name.clone()),
            None => ask.pages(w.entry.node, moment.seq, &mut |page| {
                names.extend(page.into_iter().filter_map(|e| e.name));
                Ok(())
            })?,
        }
    }
    names.sort();
    if let Some(w) = names.windows(2).find(|w| w[0] == w[1]) {
        bail!(
            "two of the paths would both become {}",
            shown(&to.join(&w[0]))
        );
    }
    let mut taken = names
        .iter()
        .map(|n| to.join(n))
        .filter(|p| p.symlink_metadata().is_ok());
    let first: Vec<String> = taken.by_ref().take(NAMED).map(|p| shown(&p)).collect();
    if !overwrite && !first.is_empty() {
        let more = match taken.count() {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        bail!(
            "nothing was written: {}{more} exists already (--overwrite replaces it)",
            first.join(", ")
        );
    }
    Ok(())
}

fn shown(p: &Path) -> String {
    path::lossy(p.as_os_str().as_bytes())
}

fn restore(
    ask: &Ask,
    wanted: Vec<Wanted>,
    moment: &Moment,
    to: PathBuf,
    args: &RestoreArgs,
) -> anyhow::Result<()> {
    let bar = progress_bar();
    let answer = |request: Request| ask.raw(request).map_err(Into::into);
    let counted = |s: &RestoreStats| {
        bar.set_message(format!("{} files to restore", bytes::grouped(s.files)));
    };
    let mut plan = Restore {
        ask: &answer,
        paths: wanted.into_iter().map(|w| w.path).collect(),
        at: moment.seq,
        to_dir: to.clone(),
        overwrite: args.overwrite,
        dry_run: true,
        progress: Some(&counted),
    };
    // Whoever watches is told how much it will be; nobody else has to wait for the count.
    if !bar.is_hidden() {
        let all = plan.run()?;
        bar.set_style(style("{bar:30} {percent:>3} %  {decimal_bytes} of {decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} to go, {msg}"));
        bar.set_length(all.gone_over);
        bar.reset();
    }
    let progress = |s: &RestoreStats| {
        bar.set_position(s.gone_over);
        bar.set_message(format!("{} files", bytes::grouped(s.files)));
    };
    plan.dry_run = false;
    plan.progress = Some(&progress);
    let stats = plan.run();
    bar.finish_and_clear();
    let stats = stats?;
    for (path, why) in &stats.failed {
        eprintln!("{path}: {}", path::lossy(why.as_bytes()));
    }
    if args.json {
        writeln!(
            std::io::stdout(),
            "{}",
            serde_json::to_string_pretty(&summary_json(&stats, moment, &to, false))?
        )?;
    } else {
        println!(
            "restored {} to {}, {}",
            counts(&stats),
            shown(&to),
            show::moment(moment)
        );
        if stats.skipped_attributes.any() {
            eprintln!("{}", not_set(&stats));
        }
    }
    match stats.failed.len() {
        0 => Ok(()),
        1 => bail!("one file could not be restored"),
        n => bail!("{n} files could not be restored"),
    }
}

fn counts(s: &RestoreStats) -> String {
    let plural = |n: u64, one: &str, many: &str| {
        format!("{} {}", bytes::grouped(n), if n == 1 { one } else { many })
    };
    format!(
        "{}, {}, {}",
        plural(s.files, "file", "files"),
        plural(s.dirs, "directory", "directories"),
        bytes::show(s.bytes)
    )
}

fn not_set(s: &RestoreStats) -> String {
    let a = &s.skipped_attributes;
    let all = [
        (a.owner, "owners"),
        (a.mode, "modes"),
        (a.xattrs, "extended attributes or ACLs"),
        (a.times, "times"),
    ];
    let some: Vec<String> = all
        .iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, what)| format!("{n} {what}"))
        .collect();
    let hint = if rustix::process::geteuid().is_root() {
        "the filesystem there does not have them"
    } else {
        "root could"
    };
    format!("not set: {} ({hint})", some.join(", "))
}

fn summary_json(s: &RestoreStats, moment: &Moment, to: &Path, dry_run: bool) -> Map<String, Value> {
    let failed = |(path, why): &(BytePath, String)| {
        let mut map = show::path_json(path);
        map.insert("why".into(), why.as_str().into());
        Value::Object(map)
    };
    let a = &s.skipped_attributes;
    let mut map = Map::new();
    map.insert("moment".into(), show::moment_json(moment));
    show::put_bytes(&mut map, "to", to.as_os_str().as_bytes());
    map.insert("dry_run".into(), dry_run.into());
    map.insert("files".into(), s.files.into());
    map.insert("directories".into(), s.dirs.into());
    map.insert("bytes".into(), s.bytes.into());
    map.insert("failed".into(), s.failed.iter().map(failed).collect());
    map.insert(
        "not_set".into(),
        json!({"owner": a.owner, "mode": a.mode, "xattrs": a.xattrs, "times": a.times}),
    );
    map
}

/// On a terminal a spinner while it is counted, then a bar; nothing otherwise.
fn progress_bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::no_length().with_style(style("{spinner} {msg}"));
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("a valid template")
}

/// A directory still to be listed.
struct Task {
    node: NodeId,
    path: BytePath,
    to: PathBuf,
}

/// Lists what would be written, in the order in which it would be.
fn dry_run(
    ask: &Ask,
    wanted: Vec<Wanted>,
    moment: &Moment,
    to: &Path,
    args: &RestoreArgs,
) -> anyhow::Result<()> {
    let mut list = DryRun {
        stats: RestoreStats::default(),
        entries: Vec::new(),
        json: args.json,
        todo: Vec::new(),
    };
    for w in wanted {
        match &w.entry.name {
            Some(name) => list.entry(&w.path, &to.join(name), &w.entry)?,
            None => list.todo.push(Task {
                node: w.entry.node,
                path: w.path,
                to: to.to_owned(),
            }),
        }
    }
    while let Some(task) = list.todo.pop() {
        ask.pages(task.node, moment.seq, &mut |page| {
            for e in page {
                let Some(name) = &e.name else { continue };
                list.entry(&task.path.join(name), &task.to.join(name), &e)?;
            }
            Ok(())
        })?;
    }
    if args.json {
        let mut doc = summary_json(&list.stats, moment, to, true);
        doc.insert("entries".into(), list.entries.into());
        writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&doc)?)?;
    } else {
        println!(
            "would restore {} to {}, {}",
            counts(&list.stats),
            shown(to),
            show::moment(moment)
        );
    }
    Ok(())
}

/// What a dry run has come upon.
struct DryRun {
    stats: RestoreStats,
    entries: Vec<Value>,
    json: bool,
    todo: Vec<Task>,
}

impl DryRun {
    fn entry(&mut self, path: &BytePath, to: &Path, e: &Entry) -> anyhow::Result<()> {
        if e.meta.kind == Kind::Dir {
            self.stats.dirs += 1;
            self.todo.push(Task {
                node: e.node,
                path: path.clone(),
                to: to.to_owned(),
            });
        } else {
            self.stats.files += 1;
            self.stats.bytes += e.meta.size;
        }
        if self.json {
            let mut map = show::path_json(path);
            show::put_bytes(&mut map, "to", to.as_os_str().as_bytes());
            map.insert("kind".into(), show::kind(e.meta.kind).into());
            map.insert("size".into(), e.meta.size.into());
            self.entries.push(map.into());
            return Ok(());
        }
        let (slash, size) = match e.meta.kind {
            Kind::Dir => ("/", String::new()),
            Kind::File => ("", format!("  {}", bytes::show(e.meta.size))),
            kind => ("", format!("  {}", show::kind(kind))),
        };
        Ok(writeln!(std::io::stdout(), "{}{slash}{size}", shown(to))?)
    }
}
