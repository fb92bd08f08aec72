//! The dirty set: what is to be looked at, each thing once, in the order in which the messages came.
//!
//! Keyed by identity (directory and name, or file), not by path, so that a rename of a directory above
//! changes no entry. Bounded: beyond its limit the names of the fullest directories collapse into "compare
//! this directory", and if that does not help, everything into "compare this tree".

use farwrite_core::command::{BackupCommand, Target, What};
use farwrite_core::{
    BytePath, Change, ChangeOp, ChangeSeq, Extent, ExtentSet, FileId, Timestamp, limits,
};
use std::collections::{BTreeMap, HashMap, hash_map};
use std::time::{Duration, Instant};

/// Files that rest, or have rested lately, at the same time; of more, the further ones do not.
const RESTING: usize = 1024;
/// Who has not been looked at for so long after a rest has not rested lately.
const LATELY: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub struct DirtySet {
    entries: HashMap<Target, Entry>,
    order: BTreeMap<u64, Target>,
    firsts: BTreeMap<ChangeSeq, (u32, Timestamp)>,
    next_ticket: u64,
    drains: u64,
    limit: usize,
    collapsed: u64,
    roots: Vec<(FileId, BytePath)>,
    /// Entries that are compares.
    comparing: usize,
    /// Entries that are as many as the tree is wide, and do not count against the limit ([`is_wide`]).
    wide: usize,
    /// Whose changes of content alone are not looked at for a while.
    resting: HashMap<Target, Rest>,
}

#[derive(Clone, Copy, Debug)]
struct Rest {
    until: Instant,
    /// How many rests have followed one another, this one included.
    count: u32,
}

/// When there is something to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Now.
    Now,
    /// Once the sensor has been emptied.
    AfterDrain,
    /// Not before this moment, unless something else comes.
    At(Instant),
    /// There is nothing.
    Never,
}

#[derive(Debug)]
struct Entry {
    ticket: u64,
    command: BackupCommand,
    /// Not before this many drains of the sensor.
    after_drain: u64,
}

impl Entry {
    fn due(&self, drains: u64, resting: &HashMap<Target, Rest>, now: Option<Instant>) -> Due {
        if self.after_drain > drains {
            return Due::AfterDrain;
        }
        let c = &self.command;
        let rests = now.filter(|_| c.what.is_content_only() && c.extents.is_none());
        let rest = rests.and_then(|n| {
            let rest = resting.get(&c.target)?;
            (rest.until > n).then_some(rest.until)
        });
        rest.map_or(Due::Now, Due::At)
    }
}

/// Commands taken out for one round.
#[derive(Debug, Default)]
pub struct Taken {
    /// In order.
    pub commands: Vec<BackupCommand>,
    /// More are due already.
    pub more: bool,
}

impl DirtySet {
    /// An empty set of at most about `limit` entries. `roots`: the protected directories, to collapse into.
    pub fn new(limit: usize, roots: Vec<(FileId, BytePath)>) -> Self {
        DirtySet {
            entries: HashMap::new(),
            order: BTreeMap::new(),
            firsts: BTreeMap::new(),
            next_ticket: 0,
            drains: 0,
            limit: limit.max(16),
            collapsed: 0,
            roots,
            comparing: 0,
            wide: 0,
            resting: HashMap::new(),
        }
    }

    /// Takes in one message.
    pub fn insert(&mut self, seq: ChangeSeq, c: &Change) {
        let at = |path: &BytePath, target| Put {
            seq,
            newest: seq,
            time: c.time,
            path: path.clone(),
            target,
        };
        let name = || c.name.clone().map(|name| Target::Name { dir: c.dir, name });
        let data = What {
            data: true,
            attr: true,
            ..What::default()
        };
        let mapped = What {
            mapped: true,
            ..data
        };
        match (&c.op, name()) {
            (ChangeOp::Create, Some(t)) => {
                let what = What {
                    name: true,
                    created: true,
                    attr: true,
                    ..What::default()
                };
                self.put(at(&c.path, t), what, None, false);
            }
            (ChangeOp::Delete, Some(t)) => {
                let what = What {
                    name: true,
                    ..What::default()
                };
                self.put(at(&c.path, t), what, None, true);
            }
            (
                ChangeOp::Rename {
                    to_path,
                    to_dir,
                    to_name,
                },
                Some(from),
            ) => {
                let to = Target::Name {
                    dir: *to_dir,
                    name: to_name.clone(),
                };
                self.rename(at(&c.path, from), at(to_path, to));
            }
            (ChangeOp::Write(extent), Some(t)) => {
                let extents = extent.map(|e| ExtentSet::from_iter([e]));
                self.put(at(&c.path, file_or(c, t)), data, extents, false);
            }
            (ChangeOp::Mapped(extent), Some(t)) => {
                let extents = extent.map(|e| ExtentSet::from_iter([e]));
                self.put(at(&c.path, file_or(c, t)), mapped, extents, false);
            }
            // Whatever is behind the new end now was written since.
            (ChangeOp::Truncate(size), Some(t)) => {
                let behind = ExtentSet::from_iter([Extent::to_end(*size)]);
                self.put(at(&c.path, file_or(c, t)), data, Some(behind), false)
            }
            (ChangeOp::Attrib, Some(t)) => {
                let what = What {
                    attr: true,
                    ..What::default()
                };
                // An attribute change alone never makes the content suspect: no extents, but none asked for.
                self.put(
                    at(&c.path, file_or(c, t)),
                    what,
                    Some(ExtentSet::default()),
                    false,
                );
            }
            // Changed through a name that is not below the root: only the identity leads to it.
            (
                ChangeOp::Write(_) | ChangeOp::Mapped(_) | ChangeOp::Truncate(_) | ChangeOp::Attrib,
                None,
            ) if c.file.is_some_and(|f| f != c.dir) => {
                let target = file_or(c, Target::Directory(c.dir));
                let what = match c.op {
                    ChangeOp::Mapped(_) => mapped,
                    _ => data,
                };
                self.put(at(&c.path, target), what, None, false);
            }
            (ChangeOp::Attrib, None) => {
                let what = What {
                    attr: true,
                    ..What::default()
                };
                self.put(at(&c.path, Target::Directory(c.dir)), what, None, false);
            }
            (ChangeOp::Subtree | ChangeOp::Overflow, _) | (_, None) => {
                let what = What {
                    compare: true,
                    recursive: true,
                    attr: true,
                    ..What::default()
                };
                let target = name().unwrap_or(Target::Directory(c.dir));
                let what = What {
                    name: c.name.is_some(),
                    ..what
                };
                self.put(at(&c.path, target), what, None, false);
            }
        }
        self.bound();
    }

    /// The sensor's queue was seen empty and all that it held is in here.
    pub fn note_drained(&mut self) {
        self.drains += 1;
    }

    /// Takes at most `max` commands out, oldest first; those put off until a drain, and those of files that rest at `now`
    /// ([`DirtySet::rest`]), stay. `None`: none rests.
    ///
    /// While anything waits to be compared, messages may have been lost or dropped ([`What::doubt`]): who looked at a
    /// file's known extents alone would then know its new times, and the compare would pass it over.
    pub fn take(&mut self, max: usize, now: Option<Instant>) -> Taken {
        self.resting
            .retain(|_, rest| now.is_none_or(|n| rest.until + LATELY > n));
        let mut out = Taken::default();
        let mut comparing = self.comparing > 0;
        let mut stay = Vec::new();
        while let Some((ticket, target)) = self.order.pop_first() {
            let hash_map::Entry::Occupied(entry) = self.entries.entry(target) else {
                unreachable!("every ticket has its entry");
            };
            let due = entry.get().due(self.drains, &self.resting, now) == Due::Now;
            out.more = due && out.commands.len() >= max;
            if !due || out.more {
                stay.push((ticket, entry.key().clone()));
                if out.more {
                    break;
                }
                continue;
            }
            let entry = entry.remove();
            self.drop_first(entry.command.first);
            self.wide -= usize::from(is_wide(&entry.command));
            comparing |= entry.command.what.compare;
            self.comparing -= usize::from(entry.command.what.compare);
            out.commands.push(entry.command);
        }
        self.order.extend(stay);
        if comparing {
            out.commands.iter_mut().for_each(|c| c.what.doubt = true);
        }
        out
    }

    /// Puts a command back at the end (one about a directory's own attributes keeps the turn that it has: they are touched round
    /// after round, and it would never come); `after_drain`: not to be taken before the sensor has been emptied
    /// anew, so that messages which tell more about it are here by then.
    pub fn put_back(&mut self, c: BackupCommand, after_drain: bool) {
        let wait = if after_drain { self.drains + 2 } else { 0 };
        let put = Put {
            seq: c.first,
            newest: c.newest,
            time: c.since,
            path: c.path,
            target: c.target,
        };
        let key = put.target.clone();
        let attempts = c.attempts;
        let keeps_turn = is_directory_itself(&key, c.what);
        let before = self.entries.get(&key).filter(|_| keeps_turn);
        let wait = before.map_or(wait, |e| e.after_drain.max(wait));
        self.put(put, c.what, c.extents, !keeps_turn);
        if let Some(e) = self.entries.get_mut(&key) {
            e.after_drain = wait;
            e.command.attempts = e.command.attempts.max(attempts);
        }
        self.bound();
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Nothing to do?
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// When would [`DirtySet::take`] give a command?
    pub fn next_due(&self, now: Option<Instant>) -> Due {
        let mut next = Due::Never;
        for target in self.order.values() {
            let due = self.entries[target].due(self.drains, &self.resting, now);
            next = match (next, due) {
                (_, Due::Now) => return Due::Now,
                (Due::At(a), Due::At(b)) => Due::At(a.min(b)),
                (Due::AfterDrain, _) | (_, Due::AfterDrain) => Due::AfterDrain,
                (_, due) => due,
            };
        }
        next
    }

    /// Looking at this file's content costs more than it finds: until then only those changes of it are taken of which it is
    /// known where they are.
    pub fn rest(&mut self, target: Target, now: Instant, until: Instant) {
        let count = self.rested(&target, now) + 1;
        if self.resting.len() < RESTING || self.resting.contains_key(&target) {
            self.resting.insert(target, Rest { until, count });
        }
    }

    /// Files that rest at `now`.
    pub fn resting(&self, now: Instant) -> usize {
        self.resting.values().filter(|r| r.until > now).count()
    }

    /// How often it has rested lately, once after the other; a rest of no time counts, too.
    pub fn rested(&self, target: &Target, now: Instant) -> u32 {
        let rest = self.resting.get(target);
        rest.filter(|r| r.until + LATELY > now)
            .map_or(0, |r| r.count)
    }

    /// No file rests any longer.
    pub fn end_rests(&mut self) {
        self.resting.clear();
    }

    /// The oldest message that is still in here, and its time.
    pub fn oldest(&self) -> Option<(ChangeSeq, Timestamp)> {
        self.firsts.first_key_value().map(|(s, (_, t))| (*s, *t))
    }

    /// How often names were collapsed into directories.
    pub fn collapsed(&self) -> u64 {
        self.collapsed
    }

    /// Bytes known to be changed: of extents that have an end.
    pub fn known_bytes(&self) -> u64 {
        let known = self
            .entries
            .values()
            .filter_map(|e| e.command.extents.as_ref());
        let ended = known
            .flat_map(ExtentSet::iter)
            .filter(|e| e.end() < u64::MAX);
        ended.map(|e| e.len).fold(0, u64::saturating_add)
    }

    /// Everything as messages, to start a journal anew with.
    pub fn to_changes(&self) -> Vec<Change> {
        self.order
            .values()
            .filter_map(|t| self.entries.get(t))
            .flat_map(|e| to_changes(&e.command))
            .collect()
    }

    fn rename(&mut self, from: Put, to: Put) {
        let carried = self
            .entries
            .get(&from.target)
            .map(|e| (e.command.what, e.command.extents.clone()));
        let (was, extents) = carried.unwrap_or((What::default(), Some(ExtentSet::default())));
        let arrive = What {
            name: true,
            attr: true,
            data: was.data,
            mapped: was.mapped,
            ..What::default()
        };
        let leave = What {
            name: true,
            moved: true,
            ..What::default()
        };
        // The arrival before the departure: who looks in this order finds the node in its new place first.
        self.put(to, arrive, extents, false);
        self.put(from, leave, Some(ExtentSet::default()), true);
    }

    /// Merges into an entry or makes one. `last`: to the end of the order even if it has a place already.
    fn put(&mut self, put: Put, what: What, extents: Option<ExtentSet>, last: bool) {
        let Put {
            seq,
            newest,
            time,
            path,
            target,
        } = put;
        let newest = match what.is_about_names_only() {
            true => ChangeSeq(0),
            false => newest,
        };
        self.add_first(seq, time);
        let fresh = self.next_ticket;
        if let Some(e) = self.entries.get_mut(&target) {
            let older = e.command.first.min(seq);
            let newer = e.command.first.max(seq);
            self.comparing += usize::from(what.compare && !e.command.what.compare);
            self.wide -= usize::from(is_wide(&e.command));
            e.command.what = e.command.what.or(what);
            self.wide += usize::from(is_wide(&e.command));
            e.command.extents = match (e.command.extents.take(), extents) {
                (Some(mut a), Some(b)) => {
                    a.merge(&b, limits::DIRTY_EXTENTS);
                    Some(a)
                }
                _ => None,
            };
            e.command.path = path;
            e.command.since = e.command.since.min(time);
            e.command.first = older;
            e.command.newest = e.command.newest.max(newest);
            e.after_drain = 0;
            if last {
                self.order.remove(&e.ticket);
                e.ticket = fresh;
                self.order.insert(fresh, target);
                self.next_ticket += 1;
            }
            self.drop_first(newer);
            return;
        }
        self.comparing += usize::from(what.compare);
        let command = BackupCommand {
            path,
            target: target.clone(),
            what,
            extents,
            first: seq,
            since: time,
            newest,
            attempts: 0,
        };
        self.wide += usize::from(is_wide(&command));
        self.entries.insert(
            target.clone(),
            Entry {
                ticket: fresh,
                command,
                after_drain: 0,
            },
        );
        self.order.insert(fresh, target);
        self.next_ticket += 1;
    }

    fn add_first(&mut self, seq: ChangeSeq, time: Timestamp) {
        self.firsts.entry(seq).or_insert((0, time)).0 += 1;
    }

    fn drop_first(&mut self, seq: ChangeSeq) {
        if let Some(n) = self.firsts.get_mut(&seq) {
            n.0 -= 1;
            if n.0 == 0 {
                self.firsts.remove(&seq);
            }
        }
    }

    /// Collapses while over the limit.
    fn bound(&mut self) {
        if self.entries.len() - self.wide <= self.limit {
            return;
        }
        self.collapsed += 1;
        let mut count: HashMap<FileId, usize> = HashMap::new();
        for t in self.entries.keys() {
            if let Target::Name { dir, .. } = t {
                *count.entry(*dir).or_default() += 1;
            }
        }
        let mut full: Vec<_> = count.into_iter().filter(|(_, n)| *n > 1).collect();
        full.sort_by_key(|&(dir, n)| (std::cmp::Reverse(n), dir));
        let mut free = 0;
        let mut chosen = HashMap::new();
        for (dir, n) in full {
            if free > self.limit / 2 {
                break;
            }
            chosen.insert(dir, None::<(ChangeSeq, Timestamp, BytePath)>);
            free += n - 1;
        }
        if free < self.limit / 4 {
            return self.collapse_all();
        }
        let doomed: Vec<(u64, Target)> = self
            .order
            .iter()
            .filter(|(_, t)| matches!(t, Target::Name { dir, .. } if chosen.contains_key(dir)))
            .map(|(k, t)| (*k, t.clone()))
            .collect();
        for (ticket, target) in doomed {
            let Target::Name { dir, .. } = &target else {
                continue;
            };
            self.order.remove(&ticket);
            let e = self
                .entries
                .remove(&target)
                .expect("every ticket has its entry");
            self.drop_first(e.command.first);
            self.comparing -= usize::from(e.command.what.compare);
            let parent = e
                .command
                .path
                .split_last()
                .map_or_else(BytePath::root, |(d, _)| d);
            let slot = chosen.get_mut(dir).expect("chosen");
            let (seq, time) = (e.command.first, e.command.since);
            *slot = Some(match slot.take() {
                None => (seq, time, parent),
                Some((s, t, p)) => (s.min(seq), t.min(time), p),
            });
        }
        for (dir, found) in chosen {
            let Some((seq, time, path)) = found else {
                continue;
            };
            let what = What {
                compare: true,
                attr: true,
                ..What::default()
            };
            self.put(
                Put {
                    seq,
                    newest: ChangeSeq::UNKNOWN,
                    time,
                    path,
                    target: Target::Directory(dir),
                },
                what,
                None,
                false,
            );
        }
    }

    /// Everything is to be compared.
    pub fn compare_roots(&mut self, seq: ChangeSeq, time: Timestamp) {
        let what = What {
            compare: true,
            recursive: true,
            attr: true,
            ..What::default()
        };
        for (dir, path) in self.roots.clone() {
            let target = Target::Directory(dir);
            self.put(
                Put {
                    seq,
                    newest: ChangeSeq::UNKNOWN,
                    time,
                    path,
                    target,
                },
                what,
                None,
                false,
            );
        }
    }

    fn collapse_all(&mut self) {
        let Some((seq, time)) = self.oldest() else {
            return;
        };
        self.entries.clear();
        (self.comparing, self.wide) = (0, 0);
        self.order.clear();
        self.firsts.clear();
        self.compare_roots(seq, time);
    }
}

struct Put {
    seq: ChangeSeq,
    newest: ChangeSeq,
    time: Timestamp,
    path: BytePath,
    target: Target,
}

/// Is it one of those that a compare has put in for the directories it has still to look at, or about the attributes of one? They
/// are as many as the tree is wide; collapsing them would only start a compare again.
fn is_wide(c: &BackupCommand) -> bool {
    let directory = matches!(c.target, Target::Directory(_));
    directory && (c.what.recursive || is_directory_itself(&c.target, c.what))
}

/// Is it only about a directory's own attributes?
fn is_directory_itself(target: &Target, what: What) -> bool {
    matches!(target, Target::Directory(_)) && !what.compare
}

fn file_or(c: &Change, name: Target) -> Target {
    c.file.map_or(name, Target::File)
}

/// The messages that would make this command.
fn to_changes(c: &BackupCommand) -> Vec<Change> {
    let nowhere = FileId { dev: 0, ino: 0 };
    let (dir, name, file) = match &c.target {
        Target::Name { dir, name } => (*dir, Some(name.clone()), None),
        // The name is only a hint once the file is known.
        Target::File(f) => (nowhere, c.path.file_name(), Some(*f)),
        Target::Directory(d) => (*d, None, None),
    };
    let mut ops = Vec::new();
    if c.what.compare {
        ops.push(ChangeOp::Subtree);
    } else {
        if c.what.name {
            ops.push(ChangeOp::Create);
        }
        let wrote = |e| match c.what.mapped {
            true => ChangeOp::Mapped(e),
            false => ChangeOp::Write(e),
        };
        match &c.extents {
            _ if !c.what.data => {}
            // With no byte known to be changed, only the attributes were looked at so far.
            Some(x) if !x.is_empty() => ops.extend(x.iter().map(|e| wrote(Some(e)))),
            _ => ops.push(wrote(None)),
        }
        if c.what.attr && !c.what.name && !c.what.data {
            ops.push(ChangeOp::Attrib);
        }
    }
    let with = |op| Change {
        time: c.since,
        path: c.path.clone(),
        dir,
        name: name.clone(),
        file,
        op,
    };
    ops.into_iter().map(with).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use farwrite_core::{Extent, Name};

    fn id(ino: u64) -> FileId {
        FileId { dev: 1, ino }
    }

    fn change(dir: u64, name: &str, op: ChangeOp) -> Change {
        let path = BytePath::new(format!("/r/{dir}/{name}")).unwrap();
        Change {
            time: Timestamp::from_nanos(5),
            path,
            dir: id(dir),
            name: Some(Name::new(name).unwrap()),
            file: None,
            op,
        }
    }

    fn rename(dir: u64, name: &str, to: u64, to_name: &str) -> Change {
        let op = ChangeOp::Rename {
            to_path: BytePath::new(format!("/r/{to}/{to_name}")).unwrap(),
            to_dir: id(to),
            to_name: Name::new(to_name).unwrap(),
        };
        change(dir, name, op)
    }

    fn set(limit: usize) -> DirtySet {
        DirtySet::new(limit, vec![(id(0), BytePath::new("/r").unwrap())])
    }

    fn targets(t: &Taken) -> Vec<String> {
        t.commands.iter().map(|c| c.path.to_string()).collect()
    }

    #[test]
    fn order_is_kept_and_repeats_merge() {
        let mut d = set(100);
        for (i, n) in ["a", "b", "a", "c"].into_iter().enumerate() {
            d.insert(ChangeSeq(i as u64 + 1), &change(1, n, ChangeOp::Create));
        }
        assert_eq!(d.oldest().unwrap().0, ChangeSeq(1));
        let t = d.take(2, None);
        assert_eq!(targets(&t), ["/r/1/a", "/r/1/b"]);
        assert!(t.more);
        assert_eq!(d.oldest().unwrap().0, ChangeSeq(4));
        assert_eq!(targets(&d.take(9, None)), ["/r/1/c"]);
        assert!(d.is_empty() && d.oldest().is_none());
    }

    #[test]
    fn the_newest_message_about_content_is_known() {
        let mut d = set(100);
        let newest = |d: &mut DirtySet| {
            let taken = d.take(9, None).commands;
            let each = taken.iter().map(|c| (c.path.to_string(), c.newest.0));
            let found = each.collect::<Vec<_>>();
            taken.into_iter().for_each(|c| d.put_back(c, false));
            found
        };
        d.insert(ChangeSeq(1), &change(1, "a", ChangeOp::Create));
        d.insert(ChangeSeq(2), &change(1, "a", ChangeOp::Write(None)));
        d.insert(ChangeSeq(3), &change(1, "b", ChangeOp::Attrib));
        d.insert(ChangeSeq(4), &change(1, "c", ChangeOp::Delete));
        let of = |path: &str, seq| (path.to_owned(), seq);
        let (a, b, c) = (of("/r/1/a", 2), of("/r/1/b", 3), of("/r/1/c", 0));
        assert_eq!(newest(&mut d), [a.clone(), b.clone(), c.clone()]);
        // What was put back stands for what it stood for before, and for what comes.
        assert_eq!(newest(&mut d), [a, b.clone(), c.clone()]);
        d.insert(ChangeSeq(9), &rename(1, "a", 1, "d"));
        d.insert(ChangeSeq(10), &change(1, "b", ChangeOp::Delete));
        let (arrived, left) = (of("/r/1/d", 9), of("/r/1/a", 2));
        assert_eq!(newest(&mut d), [c, arrived, left, b]);
        // Of what was collapsed only the first is known.
        let mut d = set(16);
        for i in 0..40 {
            d.insert(
                ChangeSeq(i + 1),
                &change(1, &i.to_string(), ChangeOp::Create),
            );
        }
        let collapsed = d.take(99, None).commands;
        let dir = collapsed.iter().find(|c| c.what.compare).unwrap();
        assert_eq!(dir.newest, ChangeSeq::UNKNOWN);
    }

    #[test]
    fn a_directory_that_is_put_back_keeps_its_turn() {
        let mut d = set(100);
        d.insert(ChangeSeq(1), &change(1, "a", ChangeOp::Create));
        let dir = |d: &mut DirtySet| {
            let c = d.take(1, None).commands.remove(0);
            let what = What {
                attr: true,
                ..What::default()
            };
            let (path, target) = (BytePath::new("/r/1").unwrap(), Target::Directory(id(1)));
            let again = BackupCommand {
                path,
                target,
                what,
                ..c
            };
            d.put_back(again, false);
        };
        dir(&mut d);
        d.insert(ChangeSeq(2), &change(1, "b", ChangeOp::Create));
        d.insert(ChangeSeq(3), &change(1, "c", ChangeOp::Create));
        let first = d.take(1, None);
        assert_eq!((targets(&first), first.more), (vec!["/r/1".into()], true));
        d.put_back(first.commands[0].clone(), false);
        // Touched once more, and not put behind what has come meanwhile.
        d.insert(ChangeSeq(4), &change(1, "d", ChangeOp::Create));
        dir(&mut d);
        dir(&mut d);
        assert_eq!(targets(&d.take(9, None)), ["/r/1", "/r/1/d"]);
    }

    #[test]
    fn attributes_of_many_directories_have_nothing_compared() {
        let mut d = set(16);
        let attrib = |n| Change {
            name: None,
            ..change(n, "x", ChangeOp::Attrib)
        };
        for n in 0..100 {
            d.insert(ChangeSeq(n + 1), &attrib(n));
        }
        for n in 0..16 {
            d.insert(ChangeSeq(n + 101), &change(n, "x", ChangeOp::Create));
        }
        assert_eq!((d.len(), d.collapsed()), (116, 0));
        d.insert(ChangeSeq(200), &change(200, "x", ChangeOp::Create));
        assert_eq!(d.collapsed(), 1);
        // What is counted comes to nothing again.
        while !d.take(7, None).commands.is_empty() {}
        assert_eq!((d.len(), d.wide, d.comparing), (0, 0, 0));
    }

    #[test]
    fn bytes_are_counted_where_a_change_has_an_end() {
        let mut d = set(100);
        for (i, n) in ["a", "b", "c"].into_iter().enumerate() {
            d.insert(
                ChangeSeq(i as u64 + 1),
                &change(1, n, ChangeOp::Truncate(7)),
            );
        }
        assert_eq!(d.known_bytes(), 0);
        let wrote = ChangeOp::Write(Some(Extent::new(3, 20)));
        d.insert(ChangeSeq(4), &change(1, "d", wrote));
        assert_eq!(d.known_bytes(), 20);
    }

    #[test]
    fn an_arrival_comes_before_its_departure_even_if_the_old_name_was_dirty_before() {
        let mut d = set(100);
        d.insert(ChangeSeq(1), &change(1, "a", ChangeOp::Write(None)));
        d.insert(ChangeSeq(2), &rename(1, "a", 2, "b"));
        let t = d.take(9, None);
        assert_eq!(targets(&t), ["/r/2/b", "/r/1/a"]);
        assert!(
            t.commands[0].what.data,
            "the write went along with the rename"
        );
        assert_eq!(t.commands[0].extents, None);
        assert!(t.commands[1].what.moved);
        assert_eq!(t.commands[1].first, ChangeSeq(1));
    }

    #[test]
    fn extents_add_up_until_one_is_unknown() {
        let mut d = set(100);
        let w = |o, l| ChangeOp::Write(Some(Extent::new(o, l)));
        d.insert(ChangeSeq(1), &change(1, "a", w(0, 10)));
        d.insert(ChangeSeq(2), &change(1, "a", w(100, 10)));
        d.insert(ChangeSeq(3), &change(1, "a", ChangeOp::Attrib));
        assert_eq!(d.known_bytes(), 20);
        d.insert(ChangeSeq(4), &change(1, "a", ChangeOp::Write(None)));
        assert_eq!(d.take(1, None).commands[0].extents, None);
    }

    #[test]
    fn memory_is_bounded_and_every_message_stays_covered() {
        for dirs in [1u64, 3, 1000] {
            let mut d = set(100);
            for i in 0..5000u64 {
                d.insert(
                    ChangeSeq(i + 1),
                    &change(1 + i % dirs, &format!("f{i}"), ChangeOp::Create),
                );
                assert!(d.len() <= 101, "{} entries", d.len());
                assert_eq!(
                    d.oldest().unwrap().0,
                    ChangeSeq(1),
                    "the first stays until it is taken"
                );
            }
            let t = d.take(usize::MAX, None);
            for i in 0..5000u64 {
                let dir = id(1 + i % dirs);
                let covered = t.commands.iter().any(|c| match &c.target {
                    Target::Name { dir: d, name } => {
                        *d == dir && name.to_string() == format!("f{i}")
                    }
                    Target::Directory(d) => {
                        c.what.compare && (*d == dir || (*d == id(0) && c.what.recursive))
                    }
                    Target::File(_) => false,
                });
                assert!(covered, "message {i} of {dirs} directories");
            }
        }
    }

    #[test]
    fn what_is_put_back_waits_for_a_drain_unless_news_come() {
        let mut d = set(100);
        d.insert(ChangeSeq(1), &change(1, "a", ChangeOp::Delete));
        let c = d.take(1, None).commands.remove(0);
        d.put_back(c, true);
        assert_eq!(d.next_due(None), Due::AfterDrain);
        assert!(d.take(1, None).commands.is_empty());
        d.note_drained();
        assert_eq!(d.next_due(None), Due::AfterDrain);
        d.note_drained();
        assert_eq!(d.next_due(None), Due::Now);
        let c = d.take(1, None).commands.remove(0);
        d.put_back(c, true);
        d.insert(ChangeSeq(2), &change(1, "a", ChangeOp::Create));
        assert_eq!(d.next_due(None), Due::Now);
    }

    #[test]
    fn a_file_that_rests_holds_up_nothing_but_its_content() {
        let mut d = set(100);
        let now = Instant::now();
        let later = now + Duration::from_secs(3);
        let rested = Target::Name {
            dir: id(1),
            name: Name::new("a").unwrap(),
        };
        assert_eq!(d.rested(&rested, now), 0);
        d.rest(rested.clone(), now, now);
        assert_eq!(d.rested(&rested, now), 1);
        d.rest(rested.clone(), now, later);
        assert_eq!(d.next_due(Some(now)), Due::Never);
        assert_eq!((d.resting(now), d.rested(&rested, later)), (1, 2));
        assert_eq!(d.rested(&rested, later + LATELY), 0, "that was long ago");
        d.insert(ChangeSeq(1), &change(1, "a", ChangeOp::Write(None)));
        assert_eq!(d.next_due(Some(now)), Due::At(later));
        assert!(d.take(9, Some(now)).commands.is_empty());
        assert_eq!(d.oldest().unwrap().0, ChangeSeq(1), "it is still owed");
        d.insert(ChangeSeq(2), &change(1, "b", ChangeOp::Write(None)));
        assert_eq!(d.next_due(Some(now)), Due::Now);
        assert_eq!(targets(&d.take(9, Some(now))), ["/r/1/b"]);
        assert_eq!(d.next_due(None), Due::Now, "somebody waits for it");
        assert_eq!(d.next_due(Some(later)), Due::Now);
        // A rename takes the content along.
        d.insert(ChangeSeq(3), &rename(1, "a", 2, "c"));
        assert_eq!(targets(&d.take(9, Some(now))), ["/r/2/c", "/r/1/a"]);
        d.insert(
            ChangeSeq(4),
            &change(1, "a", ChangeOp::Write(Some(Extent::new(0, 10)))),
        );
        assert_eq!(targets(&d.take(9, Some(now))), ["/r/1/a"], "no search");
        d.insert(ChangeSeq(5), &change(1, "a", ChangeOp::Write(None)));
        assert_eq!(targets(&d.take(9, Some(later))), ["/r/1/a"]);
        d.insert(ChangeSeq(6), &change(1, "a", ChangeOp::Write(None)));
        assert_eq!(d.next_due(Some(later)), Due::Now, "the rest is over");
        d.rest(rested.clone(), later, later + LATELY);
        d.end_rests();
        assert_eq!(d.next_due(Some(later)), Due::Now, "all rests are ended");
    }
}
