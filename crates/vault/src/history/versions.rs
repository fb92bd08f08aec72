//! Every version of what has been at one path: the history of the name in its directory, and of the nodes it named.

use super::{Result, moment};
use crate::catalog::{BATCH_COLUMNS, batch_row, decode_meta};
use farwrite_core::history::{Version, VersionChange};
use farwrite_core::{BytePath, Meta, Name};
use rusqlite::{Connection, OptionalExtension};

/// A node under the name, from one batch until (not including) another.
struct Tenure {
    node: i64,
    from: i64,
    to: i64,
}

/// Newest first, at most `limit`.
pub(super) fn versions(conn: &Connection, path: &BytePath, limit: usize) -> Result<Vec<Version>> {
    let mut dir = 1;
    let Some((above, name)) = path.split_last() else {
        return Ok(Vec::new());
    };
    for part in above.names() {
        match tenures(conn, dir, &part)?.last() {
            Some(t) => dir = t.node,
            None => return Ok(Vec::new()),
        }
    }
    let list = tenures(conn, dir, &name)?;
    let mut out = Vec::new();
    for (i, t) in list.iter().enumerate().rev() {
        let next = list.get(i + 1).map(|n| n.from);
        if t.to < i64::MAX && next != Some(t.to) {
            push(conn, &mut out, t.to, None, VersionChange::Removed, 0)?;
        }
        for (from, content, meta) in attributes(conn, t)? {
            let what = if from > t.from {
                match content == from {
                    true => VersionChange::Content,
                    false => VersionChange::Attributes,
                }
            } else if i > 0 && list[i - 1].to == t.from {
                VersionChange::Replaced
            } else if existed_before(conn, t)? {
                VersionChange::RenamedHere
            } else {
                VersionChange::Created
            };
            let at = from.max(t.from);
            let bytes = bytes_new(conn, t.node, at)?;
            push(conn, &mut out, at, Some(meta), what, bytes)?;
            if out.len() >= limit {
                out.truncate(limit);
                return Ok(out);
            }
        }
    }
    out.truncate(limit);
    Ok(out)
}

fn push(
    conn: &Connection,
    out: &mut Vec<Version>,
    seq: i64,
    meta: Option<Meta>,
    what: VersionChange,
    bytes_new: u64,
) -> Result<()> {
    let row = conn
        .prepare_cached(&format!("SELECT {BATCH_COLUMNS} FROM batches WHERE seq=?1"))?
        .query_row([seq], batch_row)?;
    out.push(Version {
        moment: moment(&row),
        meta,
        what,
        bytes_new,
    });
    Ok(())
}

fn tenures(conn: &Connection, parent: i64, name: &Name) -> Result<Vec<Tenure>> {
    conn.prepare_cached(
        "SELECT node, from_seq, to_seq FROM names_old WHERE parent=?1 AND name=?2
         UNION ALL
         SELECT node, from_seq, 9223372036854775807 FROM names WHERE parent=?1 AND name=?2
         ORDER BY 2",
    )?
    .query_map((parent, name.as_bytes()), |r| {
        Ok(Tenure {
            node: r.get(0)?,
            from: r.get(1)?,
            to: r.get(2)?,
        })
    })?
    .collect()
}

/// (from, content, meta) of the node's versions during a tenure, newest first.
fn attributes(conn: &Connection, t: &Tenure) -> Result<Vec<(i64, i64, Meta)>> {
    conn.prepare_cached(
        "SELECT from_seq, content_seq, meta FROM attrs_old
         WHERE node=?1 AND to_seq>?2 AND from_seq<?3
         UNION ALL
         SELECT from_seq, content_seq, meta FROM attrs WHERE node=?1 AND from_seq<?3
         ORDER BY 1 DESC",
    )?
    .query_map((t.node, t.from, t.to), |r| {
        Ok((r.get(0)?, r.get(1)?, decode_meta(r.get_ref(2)?.as_blob()?)?))
    })?
    .collect()
}

/// Was the node known before it came to the path?
fn existed_before(conn: &Connection, t: &Tenure) -> Result<bool> {
    Ok(conn
        .prepare_cached(
            "SELECT 1 FROM names_old WHERE node=?1 AND from_seq<?2 AND to_seq>=?2 LIMIT 1",
        )?
        .query_row((t.node, t.from), |_| Ok(()))
        .optional()?
        .is_some())
}

/// Bytes of the node's content that came with a batch.
fn bytes_new(conn: &Connection, node: i64, seq: i64) -> Result<u64> {
    conn.prepare_cached(
        "SELECT coalesce(sum(x.len), 0) FROM (
            SELECT len, block FROM extents WHERE node=?1 AND from_seq=?2
            UNION ALL SELECT len, block FROM extents_old WHERE node=?1 AND to_seq>?2 AND from_seq=?2
         ) x JOIN blocks b ON b.id = x.block WHERE b.seq=?2",
    )?
    .query_row((node, seq), |r| r.get::<_, i64>(0))
    .map(|n| n as u64)
}
