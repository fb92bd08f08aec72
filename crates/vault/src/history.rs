//! Answers every question about a source's history, beside the process that writes it. It must never change
//! anything, and never answer more than the limits say. Blocks go out as they are stored, checksum and all: who asked checks
//! them, since it would not believe a check of ours.

mod compare;
mod versions;

use crate::catalog::{self, BATCH_COLUMNS, NodeRow, View, batch_row};
use crate::retention::{Kept, Marks};
use crate::segment::{Place, SegmentFiles};
use crate::vault::VaultError;
use farwrite_core::history::{BlockBytes, Entry, Moment, Part, Request, Response};
use farwrite_core::{BatchSeq, BytePath, Kind, Name, NodeId, Timestamp, limits};
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A file with at most this many extents has them in its entry.
const ENTRY_EXTENTS: usize = 16;
/// Bytes of attributes after which a page is closed.
const PAGE_BYTES: usize = 4 << 20;

/// A source's history, open for reading. Works while another process writes; needs no lock.
pub struct History {
    dir: PathBuf,
    inner: Mutex<Inner>,
}

struct Inner {
    /// The catalog and its inode: a damaged one is replaced by another file.
    open: Option<(Connection, u64)>,
    dir: PathBuf,
    known: Option<Known>,
}

/// What the catalog says to a question.
enum Found {
    Answer(Response),
    /// The blocks that were asked for.
    Blocks(Vec<Located>),
}

/// A block's number, and where in the log its record is and how long, if there is such a block.
type Located = (u64, Option<(Place, u64)>);

/// The list of kept moments as it was read, and what its two files were then.
type Known = ([Option<(u64, i64, i64, u64)>; 2], Kept);

type Result<T = Response> = rusqlite::Result<T>;

impl History {
    /// Of the source in `source_dir`, which may have no catalog yet.
    pub fn open(source_dir: &Path) -> std::result::Result<Self, VaultError> {
        std::fs::metadata(source_dir).map_err(|e| VaultError::io("open", source_dir, e))?;
        Ok(History {
            dir: source_dir.to_owned(),
            inner: Mutex::new(Inner {
                open: None,
                dir: source_dir.to_owned(),
                known: None,
            }),
        })
    }

    /// The answer; what cannot be answered is [`Response::Error`].
    pub fn answer(&self, request: &Request) -> Response {
        let found = {
            let mut inner = self.inner.lock();
            let found = inner
                .connect(&self.dir.join("catalog.db"))
                .and_then(|()| inner.find(request));
            if found.is_err() {
                inner.open = None;
            }
            found
        };
        match found {
            Ok(Found::Answer(answer)) => answer,
            // Without the lock: several questions at once keep several processors, and the disk, busy.
            Ok(Found::Blocks(places)) => Response::Blocks(self.blocks(&places)),
            Err(e) => Response::Error(format!("catalog: {e}")),
        }
    }

    /// As many of the blocks as an answer may hold, from the first on.
    fn blocks(&self, places: &[Located]) -> Vec<BlockBytes> {
        // Files of its own for each answer: by how a file is read the system knows what to read ahead.
        let mut files = SegmentFiles::new(&self.dir.join("log"));
        let (mut out, mut bytes): (Vec<BlockBytes>, usize) = (Vec::new(), 0);
        for (i, (block, place)) in places.iter().enumerate() {
            let room = limits::HISTORY_BLOCK_BYTES.saturating_sub(bytes) as u64;
            if !out.is_empty() && place.is_some_and(|(_, len)| len > room) {
                break;
            }
            let record = match place {
                None => Err(format!(
                    "there is no block {block} (any more: it may have been pruned)"
                )),
                Some((place, _)) => {
                    let mut left = room;
                    let fits = |(_, len): &(Place, u64)| match left.checked_sub(*len) {
                        Some(rest) => {
                            left = rest;
                            true
                        }
                        None => false,
                    };
                    let next = places[i..].iter().map_while(|(_, place)| *place);
                    files.expect(next.take_while(fits));
                    files.read_whole(*place).map_err(|e| e.to_string())
                }
            };
            let size = record.as_ref().map_or(64, |r| r.len());
            if !out.is_empty() && bytes + size > limits::HISTORY_BLOCK_BYTES {
                break;
            }
            bytes += size;
            let block = *block;
            out.push(BlockBytes { block, record });
        }
        out
    }
}

impl Inner {
    fn connect(&mut self, path: &Path) -> Result<()> {
        let inode = std::fs::metadata(path).map_or(0, |m| m.ino());
        if self.open.as_ref().is_none_or(|(_, i)| *i != inode) {
            self.open = None;
            if inode != 0 {
                self.open = Some((catalog::open_reader(path)?, inode));
            }
        }
        Ok(())
    }

    fn find(&mut self, request: &Request) -> Result<Found> {
        let Some((conn, _)) = &self.open else {
            return Ok(Found::Answer(match request {
                Request::Moments => Response::Moments(None),
                Request::Resolve(_) => Response::Moment(None),
                Request::Marks => Response::Marks(Vec::new()),
                _ => Response::Error("there is no backup yet".into()),
            }));
        };
        // One snapshot for the whole answer. What is kept is read behind its begin: if the list does not name a moment as
        // dropped by then, nothing of that moment was gone when the snapshot was taken.
        let tx = conn.unchecked_transaction()?;
        let applied = catalog::newest_batch(&tx)?.map_or(BatchSeq(0), |r| r.commit.seq);
        let kept = match kept(&mut self.known, &self.dir) {
            Ok(kept) => kept,
            Err(e) => return Ok(Found::Answer(Response::Error(e.to_string()))),
        };
        if let Some(gone) = moments_of(request)
            .into_iter()
            .find(|at| !kept.contains(*at))
        {
            let what = format!("the moment of batch {gone} is no longer kept, it has been pruned");
            return Ok(Found::Answer(Response::Error(what)));
        }
        // What is there now is not what was there at a moment of which the catalog does not know yet.
        if let Some(later) = moments_of(request).into_iter().find(|at| *at > applied) {
            let what = format!(
                "the catalog is at batch {applied} and has not come to batch {later}: it is being brought forward from the log, try again later"
            );
            return Ok(Found::Answer(Response::Error(what)));
        }
        let view = |at: BatchSeq| View::new(conn, at, applied);
        Ok(Found::Answer(match request {
            Request::Moments => Response::Moments(moments(&tx, kept)?),
            Request::Resolve(time) => Response::Moment(resolve_time(&tx, kept, *time)?),
            Request::Stat { path, at } => Response::Stat(stat(view(*at), path)?),
            Request::List {
                dir,
                at,
                after,
                limit,
            } => list(view(*at), *dir, after.as_ref(), *limit as usize)?,
            Request::Extents { node, at, from } => {
                let max = limits::HISTORY_EXTENTS;
                let mut extents = view(*at).extents(*node, *from, max + 1)?;
                let more = extents.len() > max;
                extents.truncate(max);
                Response::Extents { extents, more }
            }
            Request::Blocks(ids) => {
                let place = |id: &u64| Ok((*id, view(applied).block(*id)?));
                let ids = ids.iter().take(limits::HISTORY_PAGE);
                return ids.map(place).collect::<Result<_>>().map(Found::Blocks);
            }
            Request::Versions { path, limit } => {
                let limit = (*limit as usize).min(limits::HISTORY_PAGE);
                Response::Versions(versions::versions(&tx, kept, path, limit)?)
            }
            Request::Diff { path, from, to } => compare::diff(view(*from), view(*to), path)?,
            Request::Timeline { from, to, parts } => {
                Response::Timeline(timeline(&tx, *from, *to, *parts)?)
            }
            Request::Marks => match Marks::load(&self.dir) {
                Ok(marks) => Response::Marks(marks.list),
                Err(e) => Response::Error(e.to_string()),
            },
            Request::SetMark { .. } => Response::Error("a history is only read".into()),
        }))
    }
}

fn moment(row: &catalog::BatchRow) -> Moment {
    Moment {
        seq: row.commit.seq,
        time: row.commit.time,
        clean: row.commit.clean,
    }
}

/// What a source keeps; read again only if one of the files is another one.
fn kept<'a>(known: &'a mut Option<Known>, dir: &Path) -> std::result::Result<&'a Kept, VaultError> {
    let now = Kept::paths(dir).map(|p| {
        let m = std::fs::metadata(p).ok()?;
        Some((m.ino(), m.mtime(), m.mtime_nsec(), m.len()))
    });
    if known.as_ref().is_none_or(|(files, _)| *files != now) {
        *known = None;
        *known = Some((now, Kept::load(dir)?));
    }
    Ok(known.as_ref().map(|(_, kept)| kept).expect("read above"))
}

/// The moments that a question names.
fn moments_of(request: &Request) -> Vec<BatchSeq> {
    match request {
        Request::Stat { at, .. } | Request::List { at, .. } | Request::Extents { at, .. } => {
            vec![*at]
        }
        Request::Diff { from, to, .. } => vec![*from, *to],
        _ => Vec::new(),
    }
}

fn batch(conn: &Connection, seq: BatchSeq) -> Result<Option<catalog::BatchRow>> {
    conn.prepare_cached(&format!("SELECT {BATCH_COLUMNS} FROM batches WHERE seq=?1"))?
        .query_row([seq.0 as i64], batch_row)
        .optional()
}

fn moments(conn: &Connection, kept: &Kept) -> Result<Option<(Moment, Moment)>> {
    let first = batch(conn, kept.first())?;
    let last = catalog::newest_batch(conn)?;
    Ok(first.zip(last).map(|(a, b)| (moment(&a), moment(&b))))
}

/// The last kept moment at or before a time.
fn resolve_time(conn: &Connection, kept: &Kept, time: Timestamp) -> Result<Option<Moment>> {
    let found = conn
        .prepare_cached(&format!(
            "SELECT {BATCH_COLUMNS} FROM batches WHERE (sec, nsec) <= (?1, ?2) ORDER BY seq DESC LIMIT 1"
        ))?
        .query_row((time.sec, time.nsec), batch_row)
        .optional()?;
    let Some(row) = found else { return Ok(None) };
    match kept.at_or_before(row.commit.seq) {
        None => Ok(None),
        Some(seq) if seq == row.commit.seq => Ok(Some(moment(&row))),
        Some(seq) => Ok(batch(conn, seq)?.map(|r| moment(&r))),
    }
}

/// What was committed in each of `parts` equal parts of a time.
fn timeline(conn: &Connection, from: Timestamp, to: Timestamp, parts: u32) -> Result<Vec<Part>> {
    let count = (parts as usize).clamp(1, limits::HISTORY_PAGE);
    let mut all = vec![Part::default(); count];
    let nanos = |t: Timestamp| i128::from(t.sec) * 1_000_000_000 + i128::from(t.nsec);
    let span = (nanos(to) - nanos(from)).max(1);
    let mut statement = conn.prepare_cached(
        "SELECT sec, nsec, ops, bytes FROM batches WHERE (sec, nsec) >= (?1, ?2) AND (sec, nsec) <= (?3, ?4)",
    )?;
    let mut rows = statement.query((from.sec, from.nsec, to.sec, to.nsec))?;
    while let Some(row) = rows.next()? {
        let time = Timestamp {
            sec: row.get(0)?,
            nsec: row.get(1)?,
        };
        let at = (nanos(time) - nanos(from)) * count as i128 / span;
        let part = &mut all[usize::try_from(at).unwrap_or(0).min(count - 1)];
        part.batches += 1;
        part.ops += row.get::<_, i64>(2)?.unsigned_abs();
        part.bytes += row.get::<_, i64>(3)?.unsigned_abs();
    }
    Ok(all)
}

/// The node at a path; `None` if nothing is there.
fn resolve(view: View<'_>, path: &BytePath) -> Result<Option<NodeId>> {
    let mut node = NodeId::ROOT;
    for name in path.names() {
        match view.lookup(node, &name)? {
            Some(n) => node = n,
            None => return Ok(None),
        }
    }
    Ok(Some(node))
}

fn stat(view: View<'_>, path: &BytePath) -> Result<Option<Entry>> {
    let Some(node) = resolve(view, path)? else {
        return Ok(None);
    };
    view.node(node)?
        .map(|row| entry(view, path.file_name(), node, row))
        .transpose()
}

fn entry(view: View<'_>, name: Option<Name>, node: NodeId, row: NodeRow) -> Result<Entry> {
    let extents = if row.meta.kind == Kind::File {
        let list = view.extents(node, 0, ENTRY_EXTENTS + 1)?;
        Some(list).filter(|l| l.len() <= ENTRY_EXTENTS)
    } else {
        None
    };
    let links = if node == NodeId::ROOT {
        1
    } else {
        view.links(node)?
    };
    Ok(Entry {
        name,
        node,
        meta: row.meta,
        links,
        changed: row.changed,
        extents,
    })
}

fn list(view: View<'_>, dir: NodeId, after: Option<&Name>, limit: usize) -> Result {
    let limit = limit.clamp(1, limits::HISTORY_PAGE);
    let mut names = view.list(dir, after, limit + 1)?;
    let mut more = names.len() > limit;
    names.truncate(limit);
    let (mut entries, mut bytes) = (Vec::with_capacity(names.len()), 0);
    for (name, node) in names {
        if bytes > PAGE_BYTES {
            more = true;
            break;
        }
        if let Some(row) = view.node(node)? {
            bytes += row.meta.target.len();
            let xattrs = row.meta.xattrs.iter();
            bytes += xattrs.map(|x| x.name.len() + x.value.len()).sum::<usize>();
            entries.push(entry(view, Some(name), node, row)?);
        }
    }
    Ok(Response::List { entries, more })
}
