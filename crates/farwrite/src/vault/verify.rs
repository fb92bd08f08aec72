//! `farwrite vault verify`: reads every byte of the vault's logs and compares it with its checksums; says what it found
//! and changes nothing but the note of how it ended. Exit status 1 if anything is wrong.
//!
//! With `--json` one array, an object per source: `name`, `segments`, `bytes`, `records`, `batches`, `pruned` (blocks that are
//! no longer kept), `more_findings` (not
//! listed), `error` (null, or why it could not be read) and `findings`: `segment`, `offset`, `batch` (or null), `what`.

use super::{init, verified};
use crate::bytes;
use anyhow::bail;
use farwrite_core::{SourceName, path};
use farwrite_vault::segment::{LogError, list_segments, segment_path};
use farwrite_vault::{Finding, Vault, VerifyReport, verify_source};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::path::Path;

/// One source's report.
type Verified = (SourceName, Result<VerifyReport, LogError>);

/// Verifies one source or all.
pub(super) fn run(vault_dir: &Path, only: Option<&SourceName>, json: bool) -> anyhow::Result<()> {
    let vault = init::open(vault_dir)?;
    let names: Vec<SourceName> = match only {
        Some(name) if !vault.source_dir(name).is_dir() => bail!("the vault has no source {name}"),
        Some(name) => vec![name.clone()],
        None => vault.sources()?.into_iter().map(|s| s.name).collect(),
    };
    let bar = progress_bar(names.iter().map(|n| log_bytes(&vault, n)).sum());
    let mut done: Vec<Verified> = Vec::new();
    for name in names {
        let report = verify(&vault, &name, &bar);
        done.push((name, report));
    }
    bar.finish_and_clear();
    if json {
        let all: Vec<Value> = done.iter().map(to_json).collect();
        writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&all)?)?;
    } else {
        done.iter().for_each(print);
    }
    match done.iter().map(count).sum::<u64>() {
        0 => Ok(()),
        1 => bail!("one thing is wrong in {}", vault.dir().display()),
        n => bail!("{n} things are wrong in {}", vault.dir().display()),
    }
}

fn verify(vault: &Vault, name: &SourceName, bar: &ProgressBar) -> Result<VerifyReport, LogError> {
    let dir = vault.source_dir(name);
    if !dir.join("log").is_dir() {
        // Paired, but nothing has been sent yet.
        return Ok(VerifyReport::default());
    }
    bar.set_message(name.to_string());
    let before = bar.position();
    let report = verify_source(&dir, &mut |report| bar.set_position(before + report.bytes));
    verified::note(&dir, &report);
    report
}

/// Bytes of a source's log.
pub(super) fn log_bytes(vault: &Vault, name: &SourceName) -> u64 {
    let log = vault.source_dir(name).join("log");
    let segments = list_segments(&log).unwrap_or_default();
    let size = |s: u64| std::fs::metadata(segment_path(&log, s)).map_or(0, |m| m.len());
    segments.into_iter().map(size).sum()
}

fn progress_bar(total: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template(
        "{msg} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}",
    );
    ProgressBar::new(total).with_style(style.expect("a valid template"))
}

fn count((_, report): &Verified) -> u64 {
    report
        .as_ref()
        .map_or(1, |r| r.findings.len() as u64 + r.more_findings)
}

fn print((name, report): &Verified) {
    let r = match report {
        Ok(r) => r,
        Err(e) => {
            return println!(
                "{name}: cannot be verified: {}",
                path::lossy(e.to_string().as_bytes())
            );
        }
    };
    for f in &r.findings {
        let batch = f.seq.map(|s| format!(", batch {s}")).unwrap_or_default();
        let what = path::lossy(f.what.as_bytes());
        println!(
            "{name}: segment {}, offset {}{batch}: {what}",
            f.segment, f.offset
        );
    }
    if r.more_findings > 0 {
        println!("{name}: {} more findings", bytes::grouped(r.more_findings));
    }
    if r.is_clean() {
        let (batches, records) = (bytes::grouped(r.batches), bytes::grouped(r.records));
        println!(
            "{name}: ok, {batches} batches, {records} records, {}",
            bytes::show(r.bytes)
        );
    }
}

fn to_json((name, report): &Verified) -> Value {
    let finding = |f: &Finding| json!({"segment": f.segment, "offset": f.offset, "batch": f.seq, "what": f.what});
    let empty = VerifyReport::default();
    let (r, error) = match report {
        Ok(r) => (r, None),
        Err(e) => (&empty, Some(e.to_string())),
    };
    json!({
        "name": name, "segments": r.segments, "bytes": r.bytes, "records": r.records, "batches": r.batches, "pruned": r.pruned,
        "findings": r.findings.iter().map(finding).collect::<Vec<_>>(),
        "more_findings": r.more_findings, "error": error,
    })
}
