//! One step of the mirror, from one batch to a later one. First everything that loses its place and lives on moves
//! aside, then what is dead goes, then everything takes its new place, then content, then attributes: so names may
//! be crossed in any way. It must never lose what moves: a directory is renamed, not copied.

use super::{At, Mirror, MirrorError, has_default_acl, hold_name};
use crate::catalog::{Content, Delta, NodeRow, Reading, View};
use farwrite_core::{BatchSeq, ExtentSet, Kind, Meta, Name, NodeId};
use farwrite_fs::Dir;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io::ErrorKind;
use std::sync::Arc;

type Result<T = ()> = std::result::Result<T, MirrorError>;

const BEFORE: usize = 0;
const AFTER: usize = 1;
/// Directories of which something is known from one step to the next; of more, nothing is.
const DIRS_KNOWN: usize = 4096;

/// Where a directory went in this step.
#[derive(Clone)]
enum Moved {
    Held,
    Dead,
    Placed(NodeId, Name),
}

/// What is known of directories at the end of a step, for the next.
#[derive(Default)]
pub(super) struct DirsKnown {
    at: BatchSeq,
    /// See [`Step::rooted`].
    rooted: HashSet<NodeId>,
    inherits: HashMap<NodeId, bool>,
}

impl DirsKnown {
    /// What of it is still so in a step from `from` on that changes `delta`: before, after; and who inherits.
    fn at(self, from: BatchSeq, delta: &Delta) -> ([HashSet<NodeId>; 2], HashMap<NodeId, bool>) {
        if self.at != from {
            return Default::default();
        }
        let DirsKnown {
            rooted,
            mut inherits,
            ..
        } = self;
        inherits.retain(|dir, _| !delta.nodes.contains_key(dir));
        // All directories above one of them are among them.
        let moved = |n: NodeId| rooted.contains(&n);
        let mut names = delta.names.values().filter(|c| c.before != c.after);
        let after = match names.any(|c| c.before.is_some_and(moved)) {
            true => HashSet::new(),
            false => rooted.clone(),
        };
        ([rooted, after], inherits)
    }
}

pub(super) struct Step<'a> {
    mirror: &'a mut Mirror,
    old: View<'a>,
    new: View<'a>,
    delta: &'a Delta,
    dirs: HashMap<NodeId, Moved>,
    /// What is not a directory and waits in the hold directory.
    held: HashSet<NodeId>,
    /// Where a node that is not a directory was placed in this step.
    placed: HashMap<NodeId, (NodeId, Name)>,
    /// Made in this step: content and attributes are right.
    made: HashSet<NodeId>,
    /// Names whose meaning changes.
    changed: HashSet<(NodeId, Name)>,
    /// Directories whose attributes are to be set at the end.
    touched: HashSet<NodeId>,
    inherits: HashMap<NodeId, bool>,
    /// New files are made by the writers.
    many: bool,
    /// Directories known to hang together with the root, before and after.
    rooted: [HashSet<NodeId>; 2],
}

impl<'a> Step<'a> {
    pub(super) fn new(
        mirror: &'a mut Mirror,
        reading: &'a Reading<'_>,
        from: BatchSeq,
        delta: &'a Delta,
    ) -> Self {
        let (rooted, inherits) = std::mem::take(&mut mirror.known).at(from, delta);
        Step {
            mirror,
            old: reading.view(from),
            new: reading.latest(),
            delta,
            dirs: HashMap::new(),
            held: HashSet::new(),
            placed: HashMap::new(),
            made: HashSet::new(),
            changed: HashSet::new(),
            touched: HashSet::new(),
            inherits,
            many: false,
            rooted,
        }
    }

    pub(super) fn run(mut self) -> Result {
        let mut leaving = Vec::new();
        let mut coming = VecDeque::new();
        for ((parent, name), change) in &self.delta.names {
            let again = |n| self.delta.nodes.get(&n) == Some(&true);
            if change.before.is_some_and(again) {
                // A number that was used again: nothing known of the old node is true of the new one.
                return Err(MirrorError::io(
                    "place",
                    name,
                    ErrorKind::InvalidInput.into(),
                ));
            }
            let old = self.shown(*parent, change.before)?;
            if old == change.after {
                continue;
            }
            self.changed.insert((*parent, name.clone()));
            if let Some(node) = old {
                leaving.push((*parent, name.clone(), node));
            }
            if let Some(node) = change.after {
                coming.push_back((*parent, name.clone(), node));
            }
        }
        // Nodes made together have their content in the same blocks.
        coming
            .make_contiguous()
            .sort_unstable_by_key(|(_, _, n)| *n);
        let placed = self.take_all(leaving).and_then(|()| self.bring_all(coming));
        // Whatever comes next, also a comparison with the catalog, must not meet them.
        let written = self.mirror.wait_for_writers();
        self.mirror.end_writers();
        placed.and(written)?;
        for node in std::mem::take(&mut self.held) {
            self.remove_held(&hold_name(node, false))?;
        }
        let mut nodes: Vec<NodeId> = self.delta.nodes.keys().copied().collect();
        nodes.sort_unstable();
        for node in nodes {
            self.refresh(node)?;
        }
        self.mirror.tidy_ahead(self.new)?;
        self.finish_dirs()?;
        let [_, rooted] = self.rooted;
        if rooted.len().max(self.inherits.len()) <= DIRS_KNOWN {
            self.mirror.known = DirsKnown {
                at: self.new.at(),
                rooted,
                inherits: self.inherits,
            };
        }
        Ok(())
    }

    fn remove_held(&mut self, name: &Name) -> Result<u64> {
        let removed = self.mirror.hold.remove_tree(name);
        let removed = removed.map_err(|e| MirrorError::io("remove", name, e))?;
        Ok(removed.dirs + removed.others)
    }

    /// What the mirror shows of what was in a directory before: nothing, if it does not show that.
    fn shown(&mut self, parent: NodeId, before: Option<NodeId>) -> Result<Option<NodeId>> {
        let shown =
            before.is_some() && (parent == NodeId::ROOT || self.is_rooted(BEFORE, parent)?);
        Ok(before.filter(|_| shown))
    }

    /// Does a directory hang together with the root, before (0) or after (1)? A staged one does not.
    fn is_rooted(&mut self, when: usize, dir: NodeId) -> Result<bool> {
        let view = [self.old, self.new][when];
        let (mut at, mut way) = (dir, Vec::new());
        while at != NodeId::ROOT && !self.rooted[when].contains(&at) {
            way.push(at);
            match view.names_of(at, 1)?.pop() {
                Some((parent, _)) => at = parent,
                None => return Ok(false),
            }
        }
        self.rooted[when].extend(way);
        Ok(true)
    }

    fn dir(&mut self, node: NodeId) -> Result<Arc<Dir>> {
        let (dirs, old) = (&self.dirs, self.old);
        self.mirror.dir_at(node, |n| match dirs.get(&n) {
            Some(Moved::Held) => Ok(At::Hold(hold_name(n, false))),
            Some(Moved::Dead) => Ok(At::Hold(hold_name(n, true))),
            Some(Moved::Placed(parent, name)) => Ok(At::In(*parent, name.clone())),
            None => match old.names_of(n, 1)?.pop() {
                Some((parent, name)) => Ok(At::In(parent, name)),
                None => Err(MirrorError::io(
                    "find",
                    &hold_name(n, false),
                    ErrorKind::NotFound.into(),
                )),
            },
        })
    }

    /// Takes everything away from where it was.
    fn take_all(&mut self, leaving: Vec<(NodeId, Name, NodeId)>) -> Result {
        if leaving.len() >= self.mirror.worth_writers {
            self.mirror.start_writers();
        }
        let mut dead = Vec::new();
        for (parent, name, node) in leaving {
            self.take_away(parent, &name, node, &mut dead)?;
        }
        // What lives on has left the directories that are gone, and all names are free that are to be used again.
        self.mirror.wait_for_writers()?;
        for name in dead {
            self.mirror.stats.removed += self.remove_held(&name)?;
        }
        Ok(())
    }

    fn take_away(
        &mut self,
        parent: NodeId,
        name: &Name,
        node: NodeId,
        dead: &mut Vec<Name>,
    ) -> Result {
        let fail = |e| MirrorError::io("move", name, e);
        let dir = self.dir(parent)?;
        self.touched.insert(parent);
        let moved = self.delta.moved.get(&node);
        // Known to be gone, and whether it was a directory.
        let ended = self.delta.ended.get(&node).copied();
        let names = match moved {
            Some(m) => vec![(m.parent, m.name.clone())],
            None if ended.is_some() => Vec::new(),
            None => self.new.names_of(node, 2)?,
        };
        let alive = !names.is_empty();
        let is_dir = if let Some(moved) = moved {
            moved.kind == Kind::Dir
        } else if alive {
            self.meta(node)?.is_some_and(|m| m.kind == Kind::Dir)
        } else if ended == Some(false) {
            self.mirror.stats.removed += 1;
            return self.mirror.hand_over_name(&dir, name, None);
        } else {
            match dir.unlink(name) {
                Ok(()) => {
                    self.mirror.stats.removed += 1;
                    return Ok(());
                }
                Err(e) if e.kind() == ErrorKind::IsADirectory => true,
                Err(e) => return Err(MirrorError::io("remove", name, e)),
            }
        };
        let kept = self.held.contains(&node) || self.placed.contains_key(&node);
        if !is_dir && kept {
            return self.mirror.hand_over_name(&dir, name, None);
        }
        if !is_dir && self.move_straight((&dir, name), node, &names)? {
            return Ok(());
        }
        let aside = hold_name(node, !alive);
        dir.rename_noreplace(name, &self.mirror.hold, &aside)
            .map_err(fail)?;
        if !is_dir {
            self.held.insert(node);
        } else if alive {
            self.dirs.insert(node, Moved::Held);
        } else {
            self.dirs.insert(node, Moved::Dead);
            self.mirror.dirs.pop(&node);
            dead.push(aside);
        }
        Ok(())
    }

    /// Renames what is no directory at once, if it has one name after the step and nothing was there before.
    fn move_straight(
        &mut self,
        (dir, name): (&Arc<Dir>, &Name),
        node: NodeId,
        names: &[(NodeId, Name)],
    ) -> Result<bool> {
        let [(parent, new_name)] = names else {
            return Ok(false);
        };
        let change = self.delta.names.get(&(*parent, new_name.clone()));
        let free = change.is_some_and(|c| c.before.is_none())
            && (*parent == NodeId::ROOT || self.is_rooted(BEFORE, *parent)?)
            && self.is_rooted(AFTER, *parent)?;
        if !free {
            return Ok(false);
        }
        let into = self.dir(*parent)?;
        self.mirror
            .hand_over_name(dir, name, Some((into, new_name.clone())))?;
        self.touched.insert(*parent);
        self.placed.insert(node, (*parent, new_name.clone()));
        self.mirror.stats.moved += 1;
        Ok(true)
    }

    fn bring_all(&mut self, mut coming: VecDeque<(NodeId, Name, NodeId)>) -> Result {
        self.many = coming.len() >= self.mirror.worth_writers;
        if self.many {
            self.mirror.start_writers();
        }
        while let Some((parent, name, node)) = coming.pop_front() {
            self.bring(parent, &name, node, &mut coming)?;
        }
        Ok(())
    }

    /// Puts a node in its new place. Directories bring those above them first.
    fn bring(
        &mut self,
        parent: NodeId,
        name: &Name,
        node: NodeId,
        coming: &mut VecDeque<(NodeId, Name, NodeId)>,
    ) -> Result {
        if !self.is_rooted(AFTER, parent)? {
            return Ok(());
        }
        self.bring_dir(parent, coming)?;
        if self
            .placed
            .get(&node)
            .is_some_and(|p| p.0 == parent && p.1 == *name)
        {
            return Ok(());
        }
        let Some(meta) = self.meta(node)? else {
            return Ok(());
        };
        if meta.kind == Kind::Dir {
            return self.bring_dir(node, coming);
        }
        let dir = self.dir(parent)?;
        self.touched.insert(parent);
        let fail = |e| MirrorError::io("place", name, e);
        if self.held.remove(&node) {
            let from = hold_name(node, false);
            self.mirror
                .hold
                .rename_noreplace(&from, &dir, name)
                .map_err(fail)?;
            self.mirror.stats.moved += 1;
        } else if let Some((p, n)) = self.other_place(node)? {
            let from = self.dir(p)?;
            // It may be one of those that are being made.
            self.mirror.wait_for_writers()?;
            from.link(&n, &dir, name).map_err(fail)?;
        } else {
            let (view, meta) = (self.new, &*meta);
            let content = self.delta.made.get(&node).map(|m| m.content);
            let content = content.unwrap_or(Content::Unknown);
            // What had a head start came in an earlier step.
            if meta.kind == Kind::File
                && content == Content::Unknown
                && self
                    .mirror
                    .place_ahead(view, node, meta, (&dir, name), false)?
            {
                self.mirror.stats.files_made += 1;
            } else {
                let inherits = self.inherits(parent)?;
                let mirror = &mut *self.mirror;
                let known = (node, content);
                let many = self.many;
                if !many || !mirror.hand_over(view, known, meta, (&dir, name), inherits)? {
                    mirror.make(view, known, meta, (&dir, name), inherits)?;
                }
            }
            self.made.insert(node);
        }
        self.placed.insert(node, (parent, name.clone()));
        Ok(())
    }

    /// A place where the mirror shows a node that is not a directory, at this point of the step.
    fn other_place(&mut self, node: NodeId) -> Result<Option<(NodeId, Name)>> {
        if let Some(place) = self.placed.get(&node) {
            return Ok(Some(place.clone()));
        }
        if self.delta.nodes.get(&node) == Some(&true) {
            return Ok(None); // All its names are new.
        }
        for (parent, name) in self.new.names_of(node, super::PAGE)? {
            let key = (parent, name);
            if !self.changed.contains(&key) {
                let before = self.old.lookup(key.0, &key.1)?;
                if self.shown(key.0, before)? == Some(node) {
                    return Ok(Some(key));
                }
            }
        }
        Ok(None)
    }

    fn inherits(&mut self, dir: NodeId) -> Result<bool> {
        if let Some(known) = self.inherits.get(&dir) {
            return Ok(*known);
        }
        // Either state may be the one on the disk.
        let mut inherits = false;
        for view in [self.old, self.new] {
            inherits |= view.node(dir)?.is_some_and(|r| has_default_acl(&r.meta));
        }
        self.inherits.insert(dir, inherits);
        Ok(inherits)
    }

    fn is_placed(&mut self, dir: NodeId) -> Result<bool> {
        Ok(match self.dirs.get(&dir) {
            Some(Moved::Placed(..)) => true,
            Some(_) => false,
            None => dir == NodeId::ROOT || self.is_rooted(BEFORE, dir)?,
        })
    }

    fn bring_dir(&mut self, dir: NodeId, coming: &mut VecDeque<(NodeId, Name, NodeId)>) -> Result {
        let mut waiting = Vec::new();
        let mut at = dir;
        while !self.is_placed(at)? {
            let Some((parent, name)) = self.new.names_of(at, 1)?.pop() else {
                return Ok(());
            };
            waiting.push((at, parent, name));
            at = parent;
        }
        while let Some((node, parent, name)) = waiting.pop() {
            let into = self.dir(parent)?;
            self.touched.extend([parent, node]);
            let fail = |e| MirrorError::io("place directory", &name, e);
            if matches!(self.dirs.get(&node), Some(Moved::Held)) {
                let from = hold_name(node, false);
                self.mirror
                    .hold
                    .rename_noreplace(&from, &into, &name)
                    .map_err(fail)?;
                self.mirror.stats.moved += 1;
            } else {
                into.mkdir(&name, 0o700).map_err(fail)?;
                self.mirror.dirs.pop(&node);
                self.mirror.stats.dirs_made += 1;
                if self.inherits(parent)? {
                    self.inherits.insert(node, true);
                }
                if self.old.node(node)?.is_some() {
                    // It was there without a name: so was all that is in it.
                    self.bring_children(node, coming)?;
                }
            }
            self.dirs.insert(node, Moved::Placed(parent, name));
        }
        Ok(())
    }

    fn bring_children(
        &mut self,
        dir: NodeId,
        coming: &mut VecDeque<(NodeId, Name, NodeId)>,
    ) -> Result {
        let mut after = None;
        loop {
            let page = self.new.list(dir, after.as_ref(), super::PAGE)?;
            let Some((last, _)) = page.last() else {
                return Ok(());
            };
            after = Some(last.clone());
            for (name, node) in page {
                self.changed.insert((dir, name.clone()));
                coming.push_back((dir, name, node));
            }
        }
    }

    /// Content and attributes of what stays or was moved.
    fn refresh(&mut self, node: NodeId) -> Result {
        if self.made.contains(&node) {
            return Ok(());
        }
        let Some(row) = self.new.node(node)? else {
            return Ok(());
        };
        if row.meta.kind == Kind::Dir {
            self.touched.insert(node);
            return Ok(());
        }
        let place = match self.placed.get(&node) {
            Some(p) => Some(p.clone()),
            None => self.new.names_of(node, 1)?.pop(),
        };
        let Some((parent, name)) = place else {
            let Some(ranges) = self.delta.content.get(&node) else {
                return Ok(());
            };
            let new = self.old.node(node)?.is_none();
            let size = row.meta.size;
            return self.mirror.go_ahead(self.new, node, size, ranges, new);
        };
        if !self.is_rooted(AFTER, parent)? {
            return Ok(());
        }
        let dir = self.dir(parent)?;
        if row.meta.kind == Kind::File {
            let none = ExtentSet::default();
            let ranges = self.delta.content.get(&node).unwrap_or(&none);
            // Content that came under a node of its own, for most of the file.
            if ranges.bytes() > row.meta.size / 2
                && self.new.names_of(node, 2)?.len() == 1
                && self
                    .mirror
                    .place_ahead(self.new, node, &row.meta, (&dir, &name), true)?
            {
                self.touched.insert(parent);
                return Ok(());
            }
            return self
                .mirror
                .update_file(self.new, node, &row.meta, (&dir, &name), ranges);
        }
        if self.mirror.may_own && !same_special(&dir, &name, &row)? {
            return self.remake(node, &row);
        }
        match self.mirror.set_meta(&dir, Some(&name), &row.meta) {
            Err(e) if e.is_surprise() && !self.mirror.may_own => Ok(()),
            other => other,
        }
    }

    /// A link with another target, a device with another number: made anew under all its names.
    fn remake(&mut self, node: NodeId, row: &NodeRow) -> Result {
        let mut first: Option<(Arc<Dir>, Name)> = None;
        for (parent, name) in self.new.names_of(node, super::PAGE)? {
            let dir = self.dir(parent)?;
            self.touched.insert(parent);
            self.mirror.remove(&dir, &name)?;
            match &first {
                Some((d, n)) => d
                    .link(n, &dir, &name)
                    .map_err(|e| MirrorError::io("link", &name, e))?,
                None => {
                    let inherits = self.inherits(parent)?;
                    let content = (node, Content::Unknown);
                    self.mirror
                        .make(self.new, content, &row.meta, (&dir, &name), inherits)?;
                    first = Some((dir, name));
                }
            }
        }
        Ok(())
    }

    /// A node's attributes, after.
    fn meta(&self, node: NodeId) -> Result<Option<Cow<'a, Meta>>> {
        let delta = self.delta;
        if let Some(made) = delta.made.get(&node) {
            return Ok(Some(Cow::Borrowed(&made.meta)));
        }
        Ok(self.new.node(node)?.map(|r| Cow::Owned(r.meta)))
    }

    fn finish_dirs(&mut self) -> Result {
        for node in std::mem::take(&mut self.touched) {
            if node == NodeId::ROOT || !self.is_rooted(AFTER, node)? {
                continue;
            }
            let Some(meta) = self.meta(node)? else {
                continue;
            };
            let dir = self.dir(node)?;
            // Only its names changed: then nothing but its time did.
            match self.delta.nodes.contains_key(&node) || self.dirs.contains_key(&node) {
                true => self.mirror.set_meta(&dir, None, &meta)?,
                false => self.mirror.set_mtime(&dir, &meta)?,
            }
        }
        Ok(())
    }
}

/// Is a special file already what it should be, attributes aside?
pub(super) fn same_special(dir: &Dir, name: &Name, row: &NodeRow) -> Result<bool> {
    let fail = |e| MirrorError::io("look at", name, e);
    let Some(stat) = dir.stat_if_exists(name).map_err(fail)? else {
        return Ok(false);
    };
    if stat.kind != row.meta.kind || stat.rdev != row.meta.rdev {
        return Ok(false);
    }
    Ok(stat.kind != Kind::Symlink || dir.read_link(name).map_err(fail)? == row.meta.target)
}
