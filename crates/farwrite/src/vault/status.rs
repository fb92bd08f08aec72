//! `farwrite vault status`: how every source stands, read beside the server that writes.
//!
//! With `--json` one array, an object per source in the order of their names:
//!
//! ```text
//! name            string
//! mirror          path of the mirror, null if the vault keeps none
//! last_batch      number of the last batch, 0 if there is none
//! last_time       time of it at the source, RFC 3339, null if there is none
//! age_seconds     how long ago that was, null if there is none
//! clean           the tree at that batch is exactly the source's
//! batches, versions, log_bytes
//! mirror_batch    the batch that the mirror shows
//! damaged         batches of which something is known to be damaged
//! disk_bytes      what the segments take on the disk: less than log_bytes once something was pruned
//! moments         moments that can be asked for
//! oldest          time of the oldest, RFC 3339, null if there is none
//! brake           null, or what set the ransomware brake: time, why, mark (null or its name)
//! pruned          null, or the last prune: time, error (null or why not), moments_dropped, bytes_freed
//! failure         null, or what went wrong last and has not been well since
//! failure_time    when, RFC 3339, or null
//! error           null, or why nothing more is known
//! connected       it has a session with the daemon now; null if no daemon serves the vault
//! verified        null, or how the last verification ended: ended (RFC 3339), bytes, findings, what (null or the first)
//! ```

use super::daemon::socket_path;
use super::failure::{Failure, FailureFile};
use super::{init, verified};
use crate::bytes;
use farwrite_control::{Client, VaultStatus};
use farwrite_core::{SourceName, Timestamp, path};
use farwrite_vault::{SourceStatus, Vault, VaultError};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::time::SystemTime;

/// One source, as far as it can be read.
pub(super) struct Row {
    pub(super) name: SourceName,
    pub(super) status: Result<SourceStatus, VaultError>,
    pub(super) failure: Option<Failure>,
}

/// Prints the status.
pub(super) fn run(vault_dir: &Path, json: bool) -> anyhow::Result<()> {
    let vault = init::open(vault_dir)?;
    let rows = rows(&vault)?;
    let now = Timestamp::from(SystemTime::now());
    if json {
        let served = served(vault.dir());
        let all: Vec<Value> = rows
            .iter()
            .map(|r| {
                let mut value = to_json(r, now);
                value["connected"] = json!(connected(served.as_ref(), &r.name));
                value["verified"] = json!(verified::last(&vault.source_dir(&r.name)));
                value
            })
            .collect();
        writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&all)?)?;
        return Ok(());
    }
    if rows.is_empty() {
        println!(
            "no source yet: farwrite vault invite {} --name SOURCE",
            vault.dir().display()
        );
        return Ok(());
    }
    write!(std::io::stdout(), "{}", table(&rows, now))?;
    Ok(())
}

/// What the daemon that serves the vault says, if one does.
fn served(vault_dir: &Path) -> Option<VaultStatus> {
    let client = Client::connect(&socket_path(vault_dir)).ok()?;
    client.get("vault").ok()
}

fn connected(served: Option<&VaultStatus>, name: &SourceName) -> Option<bool> {
    let source = served?.sources.iter().find(|s| s.name == name.as_str())?;
    Some(source.connected)
}

/// Every directory below `sources`: also one whose description is damaged.
pub(super) fn rows(vault: &Vault) -> anyhow::Result<Vec<Row>> {
    let dir = vault.dir().join("sources");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&dir)? {
        let name = entry?.file_name();
        names.extend(name.to_str().and_then(|n| SourceName::new(n).ok()));
    }
    names.sort();
    Ok(names.into_iter().map(|name| row(vault, name)).collect())
}

/// One source.
pub(super) fn row(vault: &Vault, name: SourceName) -> Row {
    Row {
        status: vault.source(&name).and_then(|_| vault.status(&name)),
        failure: FailureFile::of(&vault.source_dir(&name)).read(),
        name,
    }
}

pub(super) fn rfc3339(t: Timestamp) -> Option<String> {
    jiff::Timestamp::new(t.sec, t.nsec as i32)
        .ok()
        .map(|t| t.to_string())
}

fn to_json(row: &Row, now: Timestamp) -> Value {
    let failure = row.failure.as_ref();
    let mut value = json!({
        "name": row.name,
        "failure": failure.map(|f| &f.what),
        "failure_time": failure.and_then(|f| rfc3339(f.time)),
        "error": row.status.as_ref().err().map(ToString::to_string),
    });
    let Ok(s) = &row.status else { return value };
    let more = json!({
        "mirror": s.mirror_path,
        "last_batch": s.last_seq,
        "last_time": s.last_time.and_then(rfc3339),
        "age_seconds": s.last_time.map(|t| now.since(t).as_secs_f64()),
        "clean": s.clean,
        "batches": s.batches,
        "versions": s.versions,
        "log_bytes": s.log_bytes,
        "mirror_batch": s.mirror_seq,
        "damaged": s.damaged,
        "disk_bytes": s.disk_bytes,
        "moments": s.moments,
        "oldest": s.oldest.and_then(rfc3339),
        "brake": s.brake.as_ref().map(|b| json!({
            "time": rfc3339(b.time), "why": b.why, "mark": b.mark,
        })),
        "pruned": s.pruned.as_ref().map(|p| json!({
            "time": rfc3339(p.time), "error": p.error,
            "moments_dropped": p.report.moments_dropped, "bytes_freed": p.report.bytes_freed,
        })),
    });
    if let (Value::Object(all), Value::Object(more)) = (&mut value, more) {
        all.extend(more);
    }
    value
}

fn table(rows: &[Row], now: Timestamp) -> String {
    let mut cells =
        vec![["SOURCE", "LAST BACKUP", "AGE", "VERSIONS", "SIZE", "MIRROR"].map(String::from)];
    let mut notes = String::new();
    for row in rows {
        cells.push(match &row.status {
            Ok(s) => cells_of(row, s, now),
            Err(_) => [
                row.name.to_string(),
                "?".into(),
                "?".into(),
                "?".into(),
                "?".into(),
                "?".into(),
            ],
        });
        let mut note = |text: String| {
            notes.push_str(&format!(
                "! {}: {}\n",
                row.name,
                path::lossy(text.as_bytes())
            ))
        };
        match &row.status {
            Err(e) => note(e.to_string()),
            Ok(s) if s.damaged > 0 => note(format!(
                "{} batches are damaged: farwrite vault verify says which",
                s.damaged
            )),
            Ok(_) => {}
        }
        if let Ok(s) = &row.status {
            if let Some(b) = &s.brake {
                note(format!(
                    "the ransomware brake is set, nothing is pruned: {} (farwrite vault release lets go of it)",
                    b.why
                ));
            } else if let Some(e) = s.pruned.as_ref().and_then(|p| p.error.as_ref()) {
                note(format!("the last prune failed: {e}"));
            }
        }
        if let Some(f) = &row.failure {
            note(format!(
                "{} ({} ago)",
                f.what,
                bytes::span(now.since(f.time))
            ));
        }
    }
    format!("{}{notes}", aligned(&cells))
}

fn cells_of(row: &Row, s: &SourceStatus, now: Timestamp) -> [String; 6] {
    let zone = jiff::tz::TimeZone::system();
    let local = |t: Timestamp| {
        let t = jiff::Timestamp::new(t.sec, t.nsec as i32).ok()?;
        Some(
            t.to_zoned(zone.clone())
                .strftime("%Y-%m-%d %H:%M:%S")
                .to_string(),
        )
    };
    let mirror = match &s.mirror_path {
        None => "none".into(),
        Some(p) if s.mirror_seq == s.last_seq => p.display().to_string(),
        Some(p) => format!(
            "{} ({} batches behind)",
            p.display(),
            s.last_seq.0.saturating_sub(s.mirror_seq.0)
        ),
    };
    [
        row.name.to_string(),
        s.last_time
            .and_then(local)
            .unwrap_or_else(|| "never".into()),
        s.last_time
            .map_or_else(|| "-".into(), |t| bytes::span(now.since(t))),
        bytes::grouped(s.versions),
        bytes::show(s.log_bytes.min(s.disk_bytes)),
        mirror,
    ]
}

/// Columns two spaces apart; numbers (the third to the fifth) to the right.
fn aligned(rows: &[[String; 6]]) -> String {
    let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..6).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (i, cell) in row.iter().enumerate() {
            let w = widths[i];
            let text = if (2..5).contains(&i) {
                format!("{cell:>w$}  ")
            } else {
                format!("{cell:<w$}  ")
            };
            line.push_str(&text);
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}
