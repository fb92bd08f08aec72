//! What is done with a source that no process has open, behind a crash after which it may never come back. It must never lose what
//! nobody can send again: neither catalog nor mirror is made anew from a log that is shorter than they are.

use super::{Options, SourceVault, WANTED, applied_before, ends_early, recover, take_lock};
use crate::catalog::{CatalogError, Mark, is_damage, newest_batch, open_reader, read_mark};
use crate::segment::{Found, Known, LogError, Place, Scan, list_segments};
use crate::vault::{Vault, VaultError};
use farwrite_core::{BatchSeq, RecordKind, SourceName};
use std::path::Path;

impl SourceVault {
    /// As [`SourceVault::open`], for who cannot send again what the log has lost: then it is an error, and nothing is touched.
    pub fn open_alone(
        vault: &Vault,
        name: &SourceName,
        options: Options,
    ) -> Result<Self, VaultError> {
        let dir = vault.source_dir(name);
        let lock = take_lock(&dir.join("lock"))?;
        check_whole(&dir)?;
        SourceVault::open_locked(vault, name, options, lock)
    }

    /// Has a source a log, and a catalog that was not closed at its end? So it is while a process has it open, and after a crash.
    pub fn is_behind(vault: &Vault, name: &SourceName) -> bool {
        let dir = vault.source_dir(name);
        let has_log = list_segments(&dir.join("log")).is_ok_and(|s| !s.is_empty());
        let [open] = marks(&dir, [Mark::Open]).unwrap_or([1]);
        has_log && open != 0
    }

    /// Is the mirror not what the catalog says, or not known to be? So it is while a process has the source open, and after a crash
    /// until the source comes back.
    pub fn is_mirror_in_doubt(vault: &Vault, name: &SourceName) -> bool {
        let dir = vault.source_dir(name);
        let shown = SourceVault::last_shown(vault, name).0;
        let marks = marks(&dir, [Mark::MirrorDirty, Mark::MirrorSeq]);
        marks.is_none_or(|[dirty, seq]| dirty != 0 || seq != shown)
    }

    /// The last batch that the log holds, on the disk or not yet, or the catalog shows. Of the log its end is read, without what files
    /// contain.
    pub fn last_logged(vault: &Vault, name: &SourceName) -> Result<BatchSeq, VaultError> {
        let dir = vault.source_dir(name);
        let shown = applied_before(&dir.join("catalog.db"));
        let seq = shown.as_ref().map_or(BatchSeq(0), |(_, c)| c.seq);
        let behind = last_commit(&dir.join("log"), shown.map(|(end, _)| end))?;
        Ok(behind.map_or(seq, |found| found.max(seq)))
    }

    /// The last batch that the catalog shows; 0 if there is none, or it cannot be read.
    pub fn last_shown(vault: &Vault, name: &SourceName) -> BatchSeq {
        let shown = applied_before(&vault.source_dir(name).join("catalog.db"));
        shown.map_or(BatchSeq(0), |(_, commit)| commit.seq)
    }

    /// Brings the catalog to the end of the log, if it was left behind that: after a crash of the vault nobody else does before the
    /// source comes back. The mirror stays as it is until then. False: there was nothing to do, some process has the source open,
    /// or somebody wants it ([`SourceVault::ask_for`]).
    pub fn bring_forward(vault: &Vault, name: &SourceName) -> Result<bool, VaultError> {
        let dir = vault.source_dir(name);
        if !SourceVault::is_behind(vault, name) {
            return Ok(false);
        }
        let _lock = match take_lock(&dir.join("lock")) {
            Err(e) if e.is_busy() => return Ok(false),
            other => other?,
        };
        // Somebody may have had it open until now, and have left it in order.
        if !SourceVault::is_behind(vault, name) {
            return Ok(false);
        }
        let wanted = dir.join(WANTED);
        let _ = std::fs::remove_file(&wanted);
        let (log_dir, db) = (dir.join("log"), dir.join("catalog.db"));
        check_whole(&dir)?;
        let (log, recovered, mut catalog) = recover(name, &log_dir, &db)?;
        let last = log.last_commit().map_or(BatchSeq(0), |c| c.seq);
        if let Some(end) = recovered.end {
            let ended = catalog.replay_while(&log_dir, end, &|| !wanted.exists())?;
            if catalog.applied() < last {
                return match ended {
                    true => Err(ends_early(end).into()),
                    false => Ok(false),
                };
            }
        }
        catalog.set_marks(&[(Mark::MirrorDirty, 1)])?;
        catalog.close()?;
        Ok(true)
    }
}

/// An error if a log has lost something that was in it when catalog and mirror saw it: to open it would make them anew from what is
/// left.
fn check_whole(dir: &Path) -> Result<(), VaultError> {
    let (log_dir, db) = (dir.join("log"), dir.join("catalog.db"));
    let shown = match db.exists() {
        true => match open_reader(&db).and_then(|c| newest_batch(&c)) {
            Ok(newest) => Some(newest.map(|row| (row.end, row.commit))),
            Err(e) if is_damage(&e) => None,
            Err(source) => return Err(CatalogError::Sqlite { path: db, source }.into()),
        },
        false => None,
    };
    let segments = match log_dir.exists() {
        true => list_segments(&log_dir)?,
        false => Vec::new(),
    };
    let from = match &shown {
        Some(Some((end, _))) => end.segment,
        _ => 1,
    };
    let there = segments.iter().skip_while(|s| **s < from);
    let no_gap = there
        .zip(from..)
        .all(|(found, expected)| *found == expected);
    let reaches = match shown {
        Some(Some(newest)) => {
            let segment = newest.0.segment;
            Known::from(Some(newest))
                .end_in(&log_dir, segment)
                .is_some()
        }
        // It has seen nothing yet.
        Some(None) => true,
        // It is lost, and with it how far the log went.
        None if segments.is_empty() => !dir.join("mirror").exists(),
        None => last_commit(&log_dir, None)?.is_some(),
    };
    match no_gap && reaches {
        true => Ok(()),
        false => Err(VaultError::Short(log_dir)),
    }
}

/// Marks of a catalog, if it can be read.
fn marks<const N: usize>(dir: &Path, which: [Mark; N]) -> Option<[u64; N]> {
    let conn = open_reader(&dir.join("catalog.db")).ok()?;
    let mut found = [0; N];
    for (mark, value) in which.into_iter().zip(&mut found) {
        *value = read_mark(&conn, mark).ok()?;
    }
    Some(found)
}

/// The last batch of which a commit is in the log at or behind `from`: in its last segment, or if that has none in one before.
fn last_commit(log_dir: &Path, from: Option<Place>) -> Result<Option<BatchSeq>, LogError> {
    let from = from.map_or((0, 0), |p| (p.segment, p.offset));
    for segment in list_segments(log_dir)?.into_iter().rev() {
        if segment < from.0 {
            break;
        }
        let begin = if segment == from.0 { from.1 } else { 0 };
        let scan = Scan::open(log_dir, segment)?.skip_block_payloads();
        let (mut scan, mut last) = (scan.start_at(begin), None);
        while let Some(found) = scan.next_found()? {
            if let Found::Record { record, .. } = found
                && record.header.kind == RecordKind::Commit
            {
                last = Some(record.header.seq);
            }
        }
        if last.is_some() {
            return Ok(last);
        }
    }
    Ok(None)
}
