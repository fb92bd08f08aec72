//! Every version of what has been at one path: the history of the name in its directory, and of the nodes it named. A version is
//! dated by the first kept moment that shows it; where history has been thinned, that is later than its change.

use super::{Result, moment};
use crate::catalog::{BATCH_COLUMNS, batch_row, decode_meta};
use crate::retention::Kept;
use farwrite_core::history::{Version, VersionChange};
use farwrite_core::{BatchSeq, BytePath, Meta, Name};
use rusqlite::{Connection, OptionalExtension};

/// A node under the name, from one batch until (not including) another.
struct Tenure {
    node: i64,
    from: i64,
    to: i64,
}

/// Newest first, at most `limit`.
pub(super) fn versions(
    conn: &Connection,
    kept: &Kept,
    path: &BytePath,
    limit: usize,
) -> Result<Vec<Version>> {
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
    // Rows of dropped moments may still be there.
    let mut list = tenures(conn, dir, &name)?;
    list.retain(|t| kept.needs(t.from, t.to));
    let shown = |seq: i64| kept.at_or_after(BatchSeq(seq.max(0) as u64)).0 as i64;
    let mut out = Vec::new();
    for (i, t) in list.iter().enumerate().rev() {
        let next = list.get(i + 1).map(|n| shown(n.from));
        if t.to < i64::MAX && next != Some(shown(t.to)) {
            push(conn, &mut out, shown(t.to), None, VersionChange::Removed, 0)?;
        }
        let mut all = attributes(conn, t)?;
        all.retain(|a| kept.needs(a.from.max(t.from), a.to.min(t.to)));
        let older = all.iter().skip(1).map(|a| Some(a.from)).chain([None]);
        let older: Vec<Option<i64>> = older.collect();
        for (a, older) in all.into_iter().zip(older) {
            let (from, content) = (a.from, a.content);
            let what = if let Some(older) = older {
                // More than one change may lie between two versions that are left.
                match content > older {
                    true => VersionChange::Content,
                    false => VersionChange::Attributes,
                }
            } else if i > 0 && shown(list[i - 1].to) == shown(t.from) {
                VersionChange::Replaced
            } else if existed_before(conn, t)? {
                VersionChange::RenamedHere
            } else {
                VersionChange::Created
            };
            let at = from.max(t.from);
            let bytes = bytes_new(conn, t.node, at)?;
            push(conn, &mut out, shown(at), Some(a.meta), what, bytes)?;
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

/// A node's attributes, from one batch until (not including) another.
struct Attributes {
    from: i64,
    to: i64,
    content: i64,
    meta: Meta,
}

/// The node's versions during a tenure, newest first.
fn attributes(conn: &Connection, t: &Tenure) -> Result<Vec<Attributes>> {
    conn.prepare_cached(
        "SELECT from_seq, content_seq, meta, to_seq FROM attrs_old
         WHERE node=?1 AND to_seq>?2 AND from_seq<?3
         UNION ALL
         SELECT from_seq, content_seq, meta, 9223372036854775807 FROM attrs WHERE node=?1 AND from_seq<?3
         ORDER BY 1 DESC",
    )?
    .query_map((t.node, t.from, t.to), |r| {
        Ok(Attributes {
            from: r.get(0)?,
            content: r.get(1)?,
            meta: decode_meta(r.get_ref(2)?.as_blob()?)?,
            to: r.get(3)?,
        })
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
