//! The ransomware brake: a source on which many files are rewritten, renamed or deleted at once is no longer pruned, and the last
//! moment before it began is marked, until somebody at the vault has looked. The backup goes on as ever: what the brake
//! gets wrong costs space, never data. It must never make a batch wait for longer than its few questions take.
//!
//! Counted, in a sliding window of the vault's own clock (a source's could lie):
//!
//! - files rewritten as a whole that compressed before and no longer do, also by another file put in their place;
//! - files that got a longer name with one and the same new ending, but for the endings of ordinary tools;
//! - files deleted whose content compressed (so not what `git gc` packs).

use super::kept::Kept;
use super::marks::{MarkError, MarksLock};
use crate::catalog::{self, MOMENT_COLUMNS, View, moment_row};
use crate::segment::LoggedBatch;
use crate::vault::{VaultError, load_toml, save_toml};
use farwrite_core::history::{Mark, Moment};
use farwrite_core::record::Codec;
use farwrite_core::{BatchSeq, Kind, Name, NodeId, Op, Timestamp};
use farwrite_sql::{Ask, Statements, Used};
use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// The window. Shorter than any `keep_all`, so that the moment before it is still there.
pub const BRAKE_WINDOW: Duration = Duration::from_secs(1800);
/// Share of all files, unless the policy says otherwise.
pub const BRAKE_PERCENT: u8 = 20;
/// Fewer files rewritten or renamed than this never set the brake.
const CHANGED_MIN: u64 = 100;
/// Fewer deleted than this never do, and it takes three times the share.
const DELETED_MIN: u64 = 500;
/// Entries of a deleted directory that are counted.
const WALK_MAX: usize = 20_000;
/// Endings that are told apart in one batch's counts.
const ENDINGS_MAX: usize = 64;
/// Of these, what is kept of an entry of the window over a reconnect, and the longest.
const ENDINGS_KEPT: usize = 8;
const ENDING_KEPT_BYTES: usize = 64;
/// Blocks smaller than this say nothing about whether their content compresses.
const SMALL_BYTES: u32 = 512;
/// Between two counts of all files.
const COUNT_EVERY: Duration = Duration::from_secs(10);
/// Endings that ordinary tools give to what they leave.
const ORDINARY: &[&str] = &[
    "gz", "xz", "zst", "bz2", "lz4", "br", "zip", "7z", "bak", "old", "orig", "tmp", "part", "new",
    "swp", "dpkg-old", "dpkg-new", "rpmsave", "gpg", "age",
];

/// How the names of marks begin that the brake sets; no source may set such a one.
pub const BRAKE_MARKS: &str = "brake-";
/// Names tried for a mark.
const NAMES_TRIED: u32 = 10_000;
/// Between two tries to set the mark of a brake that could not be set.
const MARK_EVERY: Duration = Duration::from_secs(60);

/// `sources/NAME/brake.toml`: there while the brake is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Brake {
    /// When it was set, at the vault.
    pub time: Timestamp,
    /// What was seen.
    pub why: String,
    /// The first batch in which it was.
    pub first: BatchSeq,
    /// The mark at the last moment before, if there was one.
    pub mark: Option<String>,
}

impl Brake {
    fn path(source_dir: &Path) -> PathBuf {
        source_dir.join("brake.toml")
    }

    /// Is it set? A file that cannot be read counts.
    pub fn is_set(source_dir: &Path) -> bool {
        !matches!(Self::path(source_dir).try_exists(), Ok(false))
    }

    /// What set it.
    pub fn load(source_dir: &Path) -> Option<Brake> {
        load_toml(&Self::path(source_dir)).ok()
    }

    /// Lets the source be pruned again. The mark stays. False if the brake was not set.
    pub fn release(source_dir: &Path) -> Result<bool, VaultError> {
        let path = Self::path(source_dir);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            other => other
                .map(|()| true)
                .map_err(|e| VaultError::io("remove", &path, e)),
        }
    }

    /// Sets it: first of all that, then the mark.
    fn set(
        source_dir: &Path,
        why: String,
        first: BatchSeq,
        now: Timestamp,
    ) -> Result<Brake, MarkError> {
        let mut brake = Brake {
            time: now,
            why,
            first,
            mark: None,
        };
        save_toml(&Self::path(source_dir), &brake)?;
        brake.set_mark(source_dir)?;
        Ok(brake)
    }

    /// Marks the last moment before what set the brake, if there is one and that has not been done.
    fn set_mark(&mut self, source_dir: &Path) -> Result<(), MarkError> {
        let lock = MarksLock::take(source_dir)?;
        let Some(moment) = moment_before(source_dir, self.first)? else {
            return Ok(());
        };
        // The name may be taken, also by somebody who wants this moment not to be kept.
        let names = (1..NAMES_TRIED).map(|n| match n {
            1 => format!("{BRAKE_MARKS}{}", moment.seq),
            _ => format!("{BRAKE_MARKS}{}-{n}", moment.seq),
        });
        for name in names {
            let mark = Mark {
                name: name.clone(),
                moment,
                created: self.time,
                by: "brake".into(),
            };
            match lock.add(mark) {
                Ok(_) => self.mark = Some(name),
                Err(MarkError::Exists(_)) => {
                    let marks = lock.marks()?;
                    let same = |m: &Mark| m.name == name && m.moment.seq == moment.seq;
                    if !marks.list.iter().any(same) {
                        continue;
                    }
                    self.mark = Some(name);
                }
                Err(e) => return Err(e),
            }
            break;
        }
        Ok(save_toml(&Self::path(source_dir), self)?)
    }
}

/// The last kept clean point before a batch, else the last kept moment.
fn moment_before(source_dir: &Path, first: BatchSeq) -> Result<Option<Moment>, MarkError> {
    let conn = catalog::open_reader(&source_dir.join("catalog.db"))?;
    let kept = Kept::load(source_dir)?;
    let mut sql = conn.prepare(&format!(
        "SELECT {MOMENT_COLUMNS} FROM batches WHERE seq<?1 ORDER BY seq DESC LIMIT 1000"
    ))?;
    let mut rows = sql.query([first.0 as i64])?;
    let mut last = None;
    while let Some(r) = rows.next()? {
        let moment = moment_row(r)?;
        if kept.contains(moment.seq) {
            if moment.clean {
                return Ok(Some(moment));
            }
            last = last.or(Some(moment));
        }
    }
    Ok(last)
}

/// `sources/NAME/brake-window.toml`: what was counted when the source was closed, so that a connection which breaks now and
/// then hides nothing.
#[derive(Serialize, Deserialize)]
struct Window {
    saved: Timestamp,
    entries: Vec<WindowEntry>,
}

#[derive(Serialize, Deserialize)]
struct WindowEntry {
    age_seconds: u64,
    first: BatchSeq,
    counts: Counts,
}

impl Window {
    fn path(source_dir: &Path) -> PathBuf {
        source_dir.join("brake-window.toml")
    }

    /// What counts still, at a time.
    fn load(
        source_dir: &Path,
        instant: Instant,
        now: Timestamp,
    ) -> VecDeque<(Instant, BatchSeq, Counts)> {
        let Ok(window) = load_toml::<Window>(&Self::path(source_dir)) else {
            return VecDeque::new();
        };
        // Zero if the clock was set back since: rather too much than too little.
        let since = now.since(window.saved);
        let entries = window.entries.into_iter().map(|e| {
            let age = Duration::from_secs(e.age_seconds).saturating_add(since);
            (instant.checked_sub(age), age, e)
        });
        entries
            .filter(|(_, age, _)| *age <= BRAKE_WINDOW)
            .map(|(at, _, e)| (at.unwrap_or(instant), e.first, e.counts))
            .collect()
    }

    fn save(source_dir: &Path, window: &VecDeque<(Instant, BatchSeq, Counts)>) {
        let path = Self::path(source_dir);
        if window.is_empty() {
            let _ = std::fs::remove_file(path);
            return;
        }
        let entries = window.iter().map(|(at, first, counts)| WindowEntry {
            age_seconds: at.elapsed().as_secs(),
            first: *first,
            counts: counts.kept(),
        });
        let window = Window {
            saved: SystemTime::now().into(),
            entries: entries.collect(),
        };
        if let Err(e) = save_toml(&path, &window) {
            tracing::debug!("{e}");
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        Window::save(&self.source_dir, &self.window);
    }
}

/// What one batch, or the window, holds of what is suspicious.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Files that no longer compress.
    pub rewritten: u64,
    /// Files whose content compressed and that are gone.
    pub deleted: u64,
    /// Files with a new ending, by ending.
    #[serde(with = "endings")]
    pub endings: HashMap<Vec<u8>, u64>,
}

/// Endings are of any bytes, keys of TOML are not.
mod endings {
    use super::HashMap;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        map: &HashMap<Vec<u8>, u64>,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        map.iter().collect::<Vec<_>>().serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<HashMap<Vec<u8>, u64>, D::Error> {
        let pairs = Vec::<(Vec<u8>, u64)>::deserialize(d)?;
        Ok(pairs.into_iter().collect())
    }
}

impl Counts {
    /// What is kept over a reconnect: of the endings the most frequent, if they are not too long for one.
    fn kept(&self) -> Counts {
        let mut endings: Vec<_> = self.endings.iter().collect();
        endings.retain(|(e, _)| e.len() <= ENDING_KEPT_BYTES);
        endings.sort_unstable_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
        endings.truncate(ENDINGS_KEPT);
        let endings = endings.into_iter().map(|(e, n)| (e.clone(), *n));
        Counts {
            endings: endings.collect(),
            ..*self
        }
    }

    fn is_nothing(&self) -> bool {
        self.rewritten == 0 && self.deleted == 0 && self.endings.is_empty()
    }

    fn add(&mut self, more: &Counts) {
        self.rewritten += more.rewritten;
        self.deleted += more.deleted;
        for (ending, n) in &more.endings {
            if self.endings.len() < ENDINGS_MAX || self.endings.contains_key(ending) {
                *self.endings.entry(ending.clone()).or_default() += n;
            }
        }
    }

    /// What is too much of `files`, in words.
    fn verdict(&self, files: u64, percent: u8) -> Option<String> {
        let of = |share: u64, min: u64| (files.saturating_mul(share) / 100).max(min);
        let share = u64::from(percent);
        let renamed = self.endings.iter().max_by_key(|(_, n)| **n);
        let (ending, renamed) = renamed.map_or((String::new(), 0), |(e, n)| {
            (farwrite_core::path::lossy(e).to_string(), *n)
        });
        let minutes = BRAKE_WINDOW.as_secs() / 60;
        if self.rewritten.max(renamed) >= of(share, CHANGED_MIN) {
            return Some(match self.rewritten >= renamed {
                true => format!(
                    "{} of {files} files were rewritten within {minutes} minutes with content that no longer compresses",
                    self.rewritten
                ),
                false => format!(
                    "{renamed} of {files} files got the ending {ending} within {minutes} minutes"
                ),
            });
        }
        // However high the share is set: all but everything is always a mass delete.
        (self.deleted >= of((share * 3).min(90), DELETED_MIN)).then(|| {
            format!(
                "{} of {files} files were deleted within {minutes} minutes",
                self.deleted
            )
        })
    }
}

/// What was suspicious: since when, from which batch on, and how much of it.
type Counted = VecDeque<(Instant, BatchSeq, Counts)>;

/// Looks at batches before they are applied.
pub struct Watch {
    source_dir: PathBuf,
    /// Batches up to this one were there before, and say nothing about now.
    behind: BatchSeq,
    window: Counted,
    files: Option<(Instant, u64)>,
    mark_tried: Option<Instant>,
}

impl Watch {
    /// Of what comes behind a batch.
    pub fn new(source_dir: &Path, behind: BatchSeq) -> Self {
        Watch {
            source_dir: source_dir.to_owned(),
            behind,
            window: Window::load(source_dir, Instant::now(), SystemTime::now().into()),
            files: None,
            mark_tried: None,
        }
    }

    /// What has been counted so far.
    pub(crate) fn window(&self) -> Counted {
        self.window.clone()
    }

    /// Back to what was counted before: the batches of the last look came to nothing, and will be seen again.
    pub(crate) fn set_window(&mut self, window: Counted) {
        self.window = window;
    }

    /// A brake whose mark could not be set (a full disk, say) gets it as soon as that works.
    fn complete(&mut self, now: Instant) -> Result<(), MarkError> {
        let recently = |t: Instant| now.duration_since(t) < MARK_EVERY;
        if self.mark_tried.is_some_and(recently) {
            return Ok(());
        }
        self.mark_tried = Some(now);
        match Brake::load(&self.source_dir) {
            Some(mut brake) if brake.mark.is_none() => brake.set_mark(&self.source_dir),
            _ => Ok(()),
        }
    }

    /// Counts batches that are about to be applied to the catalog. Returns the brake if that set it. `percent`: share of all files,
    /// 0 to switch it off.
    pub fn look(
        &mut self,
        conn: &Connection,
        batches: &[LoggedBatch],
        percent: u8,
        (instant, now): (Instant, Timestamp),
    ) -> Result<Option<Brake>, MarkError> {
        if percent == 0 {
            return Ok(None);
        }
        while self
            .window
            .front()
            .is_some_and(|(at, ..)| instant.duration_since(*at) > BRAKE_WINDOW)
        {
            self.window.pop_front();
        }
        if self.window.is_empty() {
            self.files = None;
        }
        // One transaction: many small questions cost no file locks of their own.
        let reading = conn.unchecked_transaction()?;
        for batch in batches.iter().filter(|b| b.commit.seq > self.behind) {
            let counts = count(conn, batch)?;
            if counts.is_nothing() {
                continue;
            }
            match self.window.back_mut() {
                // A minute is one entry: the window is bounded whatever comes.
                Some((at, _, all)) if instant.duration_since(*at).as_secs() < 60 => {
                    all.add(&counts);
                }
                _ => self.window.push_back((instant, batch.commit.seq, counts)),
            }
        }
        reading.finish()?;
        let mut all = Counts::default();
        self.window.iter().for_each(|(_, _, c)| all.add(c));
        // Without knowing how many files there are: could it be?
        if Brake::is_set(&self.source_dir) {
            return self.complete(instant).map(|()| None);
        }
        if all.verdict(0, percent).is_none() {
            return Ok(None);
        }
        let files = self.files(conn, instant)?;
        let (Some(why), Some((_, first, _))) = (all.verdict(files, percent), self.window.front())
        else {
            return Ok(None);
        };
        let first = *first;
        let brake = Brake::set(&self.source_dir, why, first, now)?;
        // Not before: if it could not be set, what was counted sets it at the next look.
        self.window.clear();
        Window::save(&self.source_dir, &self.window);
        Ok(Some(brake))
    }

    fn files(&mut self, conn: &Connection, now: Instant) -> rusqlite::Result<u64> {
        let known = self.files;
        if let Some((at, files)) = known
            && now.duration_since(at) < COUNT_EVERY
        {
            return Ok(files);
        }
        let files: i64 = conn.query_row("SELECT count(*) FROM attrs", [], |r| r.get(0))?;
        // As many as there were at any time in the window: deletes make them fewer.
        let files = known.map_or(0, |(_, files)| files).max(files as u64);
        self.files = Some((now, files));
        Ok(files)
    }
}

/// What of a batch is suspicious, as the catalog stands before it.
fn count(conn: &Connection, batch: &LoggedBatch) -> rusqlite::Result<Counts> {
    let mut counts = Counts::default();
    let asked = Used::new(Statements::new(conn));
    let view = View::new(&asked, BatchSeq(i64::MAX as u64), BatchSeq(0));
    let look = Look {
        asked: &asked,
        view,
        batch,
    };
    // Files of which all that this batch writes does not compress, and how much that is.
    let mut written: HashMap<NodeId, (bool, u64)> = HashMap::new();
    let (mut unnamed, mut named) = (HashSet::new(), HashSet::new());
    for op in &batch.ops {
        match op {
            Op::Write {
                node, len, block, ..
            } => {
                let noise = look.block_is_noise(*block);
                let entry = written.entry(*node).or_insert((true, 0));
                *entry = (entry.0 && noise, entry.1 + u64::from(*len));
            }
            Op::Copy {
                node, len, from, ..
            } => {
                let noise = look.compressed(*from)? == Some(false);
                let entry = written.entry(*node).or_insert((true, 0));
                *entry = (entry.0 && noise, entry.1.saturating_add(*len));
            }
            Op::Unname { parent, name } => drop(unnamed.insert((*parent, name.clone()))),
            Op::Name { node, .. } => drop(named.insert(*node)),
            _ => {}
        }
    }
    for (node, (noise, bytes)) in &written {
        if *noise && look.size(*node)?.is_some_and(|s| s > 0 && *bytes >= s) {
            counts.rewritten += u64::from(look.compressed(*node)? == Some(true));
        }
    }
    for op in &batch.ops {
        let Op::Name { parent, name, node } = op else {
            continue;
        };
        if let Some(ending) = new_ending(*parent, name, &unnamed)
            && (counts.endings.len() < ENDINGS_MAX || counts.endings.contains_key(&ending))
        {
            *counts.endings.entry(ending).or_default() += 1;
        }
        let noise = written.get(node).is_some_and(|w| w.0);
        if noise
            && let Some(old) = view.lookup(*parent, name)?
            && old != *node
        {
            counts.rewritten += u64::from(look.compressed(old)? == Some(true));
        }
    }
    for (parent, name) in &unnamed {
        if let Some(node) = view.lookup(*parent, name)?
            && !named.contains(&node)
        {
            counts.deleted += look.lost_with(node)?;
        }
    }
    Ok(counts)
}

/// The ending that a name has got, if the name without it has just been taken away.
fn new_ending(parent: NodeId, name: &Name, unnamed: &HashSet<(NodeId, Name)>) -> Option<Vec<u8>> {
    let bytes = name.as_bytes();
    let dots = (1..bytes.len()).filter(|i| bytes[*i] == b'.');
    for at in dots {
        let (before, ending) = (Name::new(&bytes[..at]).ok()?, &bytes[at..]);
        if unnamed.contains(&(parent, before)) {
            let word = String::from_utf8_lossy(&ending[1..]).to_ascii_lowercase();
            let number = word.bytes().all(|b| b.is_ascii_digit() || b == b'-');
            let ordinary = number || ORDINARY.iter().any(|o| word == *o);
            return (!ordinary).then(|| ending.to_vec());
        }
    }
    None
}

struct Look<'a> {
    asked: &'a dyn Ask,
    view: View<'a>,
    batch: &'a LoggedBatch,
}

impl Look<'_> {
    /// Does a block of this batch not compress?
    fn block_is_noise(&self, block: u32) -> bool {
        let header = self.batch.blocks.get(block as usize).and_then(|b| b.header);
        header.is_some_and(|h| h.codec == Codec::Raw && h.raw >= SMALL_BYTES)
    }

    /// Did the present content of a file compress? `None` if it has none, or too little to say.
    fn compressed(&self, node: NodeId) -> rusqlite::Result<Option<bool>> {
        let found: Option<(i64, u32)> = farwrite_sql::ask(
            self.asked,
            "SELECT b.codec, b.raw FROM extents x JOIN blocks b ON b.id=x.block
             WHERE x.node=?1 ORDER BY x.offset LIMIT 1",
            |s| {
                s.query_row([node.0 as i64], |r| Ok((r.get(0)?, r.get(1)?)))
                    .optional()
            },
        )?;
        Ok(found
            .filter(|(_, raw)| *raw >= SMALL_BYTES)
            .map(|(codec, _)| codec != i64::from(Codec::Raw as u8)))
    }

    fn size(&self, node: NodeId) -> rusqlite::Result<Option<u64>> {
        let row = self.view.node(node)?;
        Ok(row
            .filter(|r| r.meta.kind == Kind::File)
            .map(|r| r.meta.size))
    }

    /// Files with content that compressed, at or below a node that lost its name.
    fn lost_with(&self, node: NodeId) -> rusqlite::Result<u64> {
        let (mut todo, mut seen, mut lost) = (vec![node], 0, 0);
        while let Some(node) = todo.pop() {
            seen += 1;
            if seen > WALK_MAX {
                break;
            }
            if let Some(compressed) = self.compressed(node)? {
                lost += u64::from(compressed);
            } else if self.view.node(node)?.map(|r| r.meta.kind) == Some(Kind::Dir) {
                let below = self.view.list(node, None, WALK_MAX)?;
                todo.extend(below.into_iter().map(|(_, n)| n));
            }
        }
        Ok(lost)
    }
}

/// The share of the policy in force; the usual one if it cannot be read.
pub(crate) fn percent(vault: &crate::Vault, name: &farwrite_core::SourceName) -> u8 {
    let policy = vault.policy(name).map(|(p, _)| p).unwrap_or_default();
    policy.brake_percent.unwrap_or(BRAKE_PERCENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_endings_do_not_count() {
        let n = |t: &str| Name::new(t).unwrap();
        let gone = HashSet::from([(NodeId(1), n("a.txt")), (NodeId(1), n("log"))]);
        let ending = |t: &str| new_ending(NodeId(1), &n(t), &gone);
        assert_eq!(ending("a.txt.locked"), Some(b".locked".to_vec()));
        assert_eq!(ending("a.txt.id-7.crypt"), Some(b".id-7.crypt".to_vec()));
        for fine in [
            "a.txt.gz",
            "a.txt.1",
            "log.2026-05-01",
            "b.txt.locked",
            "a.tx",
        ] {
            assert_eq!(ending(fine), None, "{fine}");
        }
    }

    #[test]
    fn what_was_counted_outlives_a_connection_for_as_long_as_it_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (instant, now) = (Instant::now(), Timestamp::from(SystemTime::now()));
        let counts = Counts {
            rewritten: 60,
            deleted: 3,
            endings: HashMap::from([(b".\xff\"".to_vec(), 7)]),
        };
        let mut watch = Watch::new(dir.path(), BatchSeq(0));
        watch
            .window
            .push_back((instant, BatchSeq(5), counts.clone()));
        drop(watch);
        let load = |now| Window::load(dir.path(), instant, now);
        let found = load(now.after(Duration::from_secs(600)));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].1, &found[0].2), (BatchSeq(5), &counts));
        assert!(load(now.after(BRAKE_WINDOW + Duration::from_secs(60))).is_empty());
        assert_eq!(load(Timestamp::default()).len(), 1, "clock set back");
        std::fs::write(Window::path(dir.path()), "no toml").unwrap();
        assert!(load(now).is_empty());
        drop(Watch::new(dir.path(), BatchSeq(0)));
        assert!(!Window::path(dir.path()).exists());
    }

    #[test]
    fn few_files_never_set_it_and_shares_count() {
        let c = |rewritten, deleted| Counts {
            rewritten,
            deleted,
            ..Counts::default()
        };
        assert!(c(99, 499).verdict(100, 20).is_none());
        assert!(c(100, 0).verdict(500, 20).is_some());
        assert!(c(100, 0).verdict(505, 20).is_none());
        assert!(c(0, 599).verdict(1000, 20).is_none());
        assert!(c(0, 600).verdict(1000, 20).is_some());
    }
}
