//! Looking at names and directories: what is there now, against what was sent.

use super::index::SLOT_NONE;
use super::rows::{NodeFlags, NodeRow};
use super::tree::{Found, OpenDir, Refused, Root};
use super::unit::{BackupUnit, UnitError};
use farwrite_core::{BackupCommand, BytePath, FileId, Kind, Name, NodeId, Op, Target, What};
use farwrite_fs::{Dir, Stat, is_absent, read_meta};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io;

/// Departures of one compare that wait for the end of all compares, in case the node turns up elsewhere; beyond
/// this many they are believed at once.
const HELD_DEPARTURES: usize = 20_000;

/// Tries to find a directory that is not where it was, before everything is compared.
const LATER_TRIES: u32 = 8;

/// Looks at a name at which something else stands each time that it is opened, before that is a problem.
const OPEN_TRIES: u32 = 100;

/// Something that is there: where, and what the kernel says of it.
pub(super) struct Present<'a> {
    pub dir: &'a OpenDir,
    pub name: &'a Name,
    pub path: BytePath,
    pub stat: Stat,
    /// What the index has under this name.
    pub had: Option<NodeId>,
}

impl Present<'_> {
    /// After an error: is it that something else, or nothing, has its name by now? Then it is looked at again, which says the same
    /// only if that has happened again.
    pub fn is_replaced(&self, e: &io::Error, c: &BackupCommand) -> bool {
        // A filesystem that always says so is not looked at for ever.
        let another = || self.is_of_another_kind(e) || self.is_another_now();
        is_absent(e) || c.attempts < OPEN_TRIES && another()
    }

    /// What is said only of a link or a socket where a file was, or of a file where a link was. It may be back by now.
    fn is_of_another_kind(&self, e: &io::Error) -> bool {
        match self.stat.kind {
            Kind::File => match Errno::from_io_error(e) {
                Some(errno) => matches!(errno, Errno::LOOP | Errno::NXIO),
                None => e.kind() == io::ErrorKind::InvalidInput,
            },
            Kind::Symlink => Errno::from_io_error(e) == Some(Errno::INVAL),
            _ => false,
        }
    }

    fn is_another_now(&self) -> bool {
        match self.dir.dir.stat(self.name) {
            Ok(now) => {
                let is = |s: &Stat| (s.id, s.kind, s.btime);
                is(&now) != is(&self.stat)
            }
            Err(e) => is_absent(&e),
        }
    }
}

impl BackupUnit {
    /// A name came, went or changed.
    pub(super) fn look_at_name(
        &mut self,
        mut c: BackupCommand,
        dir: FileId,
        name: &Name,
        departures: &mut Vec<(BackupCommand, OpenDir, Name)>,
    ) -> Result<(), UnitError> {
        let dir = match self.tree.by_file(&self.index, dir)? {
            Found::Open(dir) => dir,
            Found::Elsewhere(node) => {
                // By the time that the directory is found the file may have been moved out of it.
                if let Some(file) = self
                    .index
                    .lookup(node, name)?
                    .filter(|_| c.what.data || c.what.attr)
                {
                    self.suspect(file)?;
                }
                return self.look_later(c);
            }
            Found::Refused(r) => return self.refused(&r, &c),
            Found::Unknown => {
                self.gone(&c.target);
                return Ok(());
            }
        };
        self.stats.entries += 1;
        self.touch(dir.node);
        let path = dir.path.join(name);
        match dir.dir.stat(name) {
            Ok(stat) => {
                let had = self.index.lookup(dir.node, name)?;
                let excludes = &self.tree.root(dir.root).spec.excludes;
                if excludes.excludes(&path, stat.kind == Kind::Dir) {
                    return self.send_unname(dir.node, name);
                }
                c.path = path.clone();
                self.present(
                    &Present {
                        dir: &dir,
                        name,
                        path,
                        stat,
                        had,
                    },
                    &c,
                    false,
                )
            }
            Err(e) if is_absent(&e) => {
                self.solved(&path);
                self.changed_before_it_left(&c, &dir, name)?;
                if c.what.name {
                    departures.push((c, dir, name.clone()));
                }
                Ok(())
            }
            Err(e) => self.fail(&path, &e, &c),
        }
    }

    /// The file that had the name is not there any more, but was changed while it was: its other names, or the
    /// place that it went to, must not be taken for unchanged.
    fn changed_before_it_left(
        &mut self,
        c: &BackupCommand,
        dir: &OpenDir,
        name: &Name,
    ) -> Result<(), UnitError> {
        if !c.what.data && !c.what.attr {
            return Ok(());
        }
        let Some(node) = self.index.lookup(dir.node, name)? else {
            return Ok(());
        };
        let Some(row) = self.index.node(node)?.filter(|r| r.meta.kind != Kind::Dir) else {
            return Ok(());
        };
        let id = self.tree.file_id(dir.root, &row);
        if self.has_seen(c, id) {
            return Ok(());
        }
        self.suspect(node)?;
        if self.index.names_of(node)?.len() > 1 {
            let what = What {
                data: c.what.data,
                mapped: c.what.mapped,
                attr: true,
                ..What::default()
            };
            let again = Self::follow_up(c, c.path.clone(), Target::File(id), what);
            self.put_back.push((again, false));
        }
        Ok(())
    }

    /// Content or attributes of a file changed, whatever its name is.
    pub(super) fn look_at_file(
        &mut self,
        mut c: BackupCommand,
        id: FileId,
    ) -> Result<(), UnitError> {
        if self.has_seen(&c, id) {
            self.gone(&c.target);
            return Ok(());
        }
        let roots = self.tree.roots().iter().filter(|r| r.id.dev == id.dev);
        let slots: Vec<u32> = roots.map(|r| r.spec.slot).collect();
        let mut found = false;
        // A file with names below several protected directories is a node in each.
        for slot in slots {
            for (node, row) in self.index.by_ino(slot, id.ino)? {
                if self.look_at_names_of(&mut c, node, row, id)? {
                    found = true;
                    break;
                }
            }
        }
        if found {
            return Ok(());
        }
        if let Some(p) = self.problems.get(&c.path) {
            // It could not be read when it came, and perhaps can now.
            let again = BackupCommand {
                first: c.first,
                since: c.since,
                newest: c.newest.max(p.command.newest),
                ..p.command.clone()
            };
            self.put_back.push((again, false));
        }
        // Not known: its name's own message is in the queue, or it is excluded.
        if c.what.mapped {
            self.seen.note_mapped(id);
        }
        Ok(())
    }

    /// Looks at the first of the node's names that still leads to the file.
    fn look_at_names_of(
        &mut self,
        c: &mut BackupCommand,
        node: NodeId,
        row: NodeRow,
        id: FileId,
    ) -> Result<bool, UnitError> {
        let (mut out_of_sight, mut refused) = (false, None);
        for (parent, name) in self.index.names_of(node)? {
            let dir = match self.tree.try_open(&self.index, parent)? {
                Ok(Some(dir)) => dir,
                Ok(None) => {
                    out_of_sight = true;
                    continue;
                }
                Err(r) => {
                    refused = Some(r);
                    continue;
                }
            };
            let Ok(stat) = dir.dir.stat(&name) else {
                continue;
            };
            if stat.id != id || !row.is(self.tree.root(dir.root).spec.slot, &stat) {
                continue;
            }
            self.stats.entries += 1;
            let path = dir.path.join(&name);
            c.path = path.clone();
            self.update(
                &Present {
                    dir: &dir,
                    name: &name,
                    path,
                    stat,
                    had: Some(node),
                },
                node,
                row,
                c,
                false,
            )?;
            return Ok(true);
        }
        self.suspect(node)?;
        if let Some(r) = refused {
            self.refused(&r, c)?;
            return Ok(true);
        }
        if out_of_sight {
            // A directory above was moved: nothing else will lead to the file once that is known.
            self.look_later(c.clone())?;
        }
        Ok(out_of_sight)
    }

    /// A directory's own attributes, its entries, all below: as the command asks.
    pub(super) fn look_at_directory(
        &mut self,
        c: BackupCommand,
        id: FileId,
    ) -> Result<(), UnitError> {
        let mut new = false;
        if c.what.compare {
            self.compares.remove(&id);
            new = self.new_dirs.remove(&id).is_some();
        }
        if let Some(i) = self.tree.roots().iter().position(|r| r.id == id) {
            let root = self.tree.root(i);
            let now = Dir::open_absolute(&root.spec.path).and_then(|d| d.stat_self());
            if now.map_or(true, |s| s.id != id) {
                let path = root.spec.path.clone();
                let why = "the directory was replaced or removed; restart the daemon to protect what is there now";
                return self.fail(&path, &std::io::Error::other(why), &c);
            }
            if c.what.recursive {
                self.owed.remove(&id);
            }
        }
        if c.what.recursive
            && let Some(root) = self.tree.roots().iter().find(|r| r.id == id)
        {
            // Whatever was queued below is covered by this one, and may have been collapsed into it.
            let slot = root.spec.slot;
            self.compares.retain(|_, of| *of != slot);
            self.new_dirs.clear();
        }
        let dir = match self.tree.by_file(&self.index, id)? {
            Found::Open(dir) => dir,
            Found::Elsewhere(_) => return self.look_later(c),
            Found::Refused(r) => return self.refused(&r, &c),
            Found::Unknown => {
                self.gone(&c.target);
                return Ok(());
            }
        };
        match (dir.dir.stat_self(), self.index.node(dir.node)?) {
            (Ok(stat), Some(row)) => self.refresh_dir(&dir, row, &stat)?,
            (Err(e), _) if !is_absent(&e) => self.problem(&dir.path, &e, Some(&c)),
            _ => return Ok(()),
        }
        if !c.what.compare {
            let owed = self.problems.get(&dir.path);
            if owed.is_some_and(|p| !p.command.what.compare) {
                self.solved(&dir.path);
            }
            return Ok(());
        }
        let compared = self.compare(&c, &dir, new);
        self.ahead.leave();
        compared
    }

    /// Looks at every entry of a directory; with `recursive`, directories in it are put into the queue. `new`: it has not been
    /// compared before.
    fn compare(&mut self, c: &BackupCommand, dir: &OpenDir, new: bool) -> Result<(), UnitError> {
        let mut known: BTreeMap<Name, (NodeId, NodeRow)> = self
            .index
            .children(dir.node)?
            .into_iter()
            .map(|(n, id, row)| (n, (id, row)))
            .collect();
        let mut entries = match dir.dir.list() {
            Ok(entries) => entries,
            Err(e) if is_absent(&e) => return Ok(()),
            Err(e) => return self.fail(&dir.path, &e, c),
        };
        self.solved(&dir.path);
        // Near each other on the disk, on most filesystems; and the order in which files are read ahead.
        entries.sort_unstable_by_key(|e| e.ino);
        let id = dir
            .dir
            .stat_self()
            .map_or(self.tree.root(dir.root).id, |s| s.id);
        let root = self.tree.root(dir.root);
        if new && known.is_empty() {
            let place = (&dir.path, &dir.dir, id);
            self.ahead.enter(root.place(), place, &entries);
        }
        let (slot, no_excludes) = (root.spec.slot, root.spec.excludes.is_empty());
        for e in entries {
            let path = dir.path.join(&e.name);
            let stat = match dir.dir.stat(&e.name) {
                Ok(s) => s,
                Err(e) if is_absent(&e) => continue,
                Err(err) => {
                    known.remove(&e.name);
                    self.problem(&path, &err, Some(c));
                    continue;
                }
            };
            let is_dir = stat.kind == Kind::Dir;
            if !no_excludes
                && self
                    .tree
                    .root(dir.root)
                    .spec
                    .excludes
                    .excludes_entry(&path, is_dir)
            {
                continue;
            }
            self.stats.entries += 1;
            let was = known.remove(&e.name);
            let entry = Present {
                dir,
                name: &e.name,
                path,
                stat,
                had: was.as_ref().map(|(node, _)| *node),
            };
            // Not where something else is mounted.
            let own = stat.id.dev == id.dev && !stat.mount_root;
            let mut descend = c.what.recursive;
            match was {
                Some((_, row)) if own && row.is(slot, &stat) && row.unchanged(&stat) => {}
                Some((node, row)) if own && row.is(slot, &stat) => {
                    self.update(
                        &entry,
                        node,
                        row,
                        &Self::compare_command(c, &entry, id),
                        true,
                    )?;
                }
                // A new directory, or one from elsewhere, is compared by its arrival.
                _ => {
                    self.present(&entry, &Self::compare_command(c, &entry, id), true)?;
                    descend = false;
                }
            }
            if descend && is_dir && own {
                self.queue_compare(c, entry.path, stat.id);
            }
            self.close_if_full()?;
        }
        let held = known.len() + self.put_back.len() < HELD_DEPARTURES;
        for (name, (node, row)) in known {
            if held && c.what.recursive && row.is_dir() {
                self.missing.insert(node);
            }
            let what = What {
                name: true,
                moved: held,
                ..What::default()
            };
            let target = Target::Name {
                dir: id,
                name: name.clone(),
            };
            let gone = Self::follow_up(c, dir.path.join(&name), target, what);
            match held && c.what.recursive {
                true => self.put_back.push((gone, false)),
                false => self.send_unname(dir.node, &name)?,
            }
            self.close_if_full()?;
        }
        Ok(())
    }

    fn compare_command(c: &BackupCommand, e: &Present<'_>, dir: FileId) -> BackupCommand {
        let what = What {
            name: true,
            data: false,
            attr: true,
            ..What::default()
        };
        let target = Target::Name {
            dir,
            name: e.name.clone(),
        };
        BackupCommand {
            attempts: c.attempts,
            ..Self::follow_up(c, e.path.clone(), target, what)
        }
    }

    /// Puts "compare this directory and all below" into the queue.
    fn queue_compare(&mut self, c: &BackupCommand, path: BytePath, id: FileId) {
        let what = What {
            compare: true,
            recursive: true,
            ..What::default()
        };
        let roots = self.tree.roots().iter();
        let above = |r: &&Root| r.id.dev == id.dev && path.starts_with(&r.spec.path);
        let slot = roots.filter(above).map(|r| r.spec.slot).next();
        self.compares.insert(id, slot.unwrap_or(SLOT_NONE));
        self.put_back
            .push((Self::follow_up(c, path, Target::Directory(id), what), false));
    }

    /// There is something under a name. `compare`: nobody said that it changed, its times have to tell.
    pub(super) fn present(
        &mut self,
        e: &Present<'_>,
        c: &BackupCommand,
        compare: bool,
    ) -> Result<(), UnitError> {
        let root = self.tree.root(e.dir.root);
        let (slot, dev) = (root.spec.slot, root.id.dev);
        if e.stat.id.dev != dev || e.stat.mount_root {
            return self.mount_point(e);
        }
        if let Some(node) = e.had
            && let Some(row) = self.index.node(node)?
            && row.is(slot, &e.stat)
        {
            return self.update(e, node, row, c, compare);
        }
        if e.had.is_some() {
            self.changed_before_it_left(c, e.dir, e.name)?;
        }
        match self.index.find(slot, &e.stat)? {
            Some((node, row)) if !row.flags.has(NodeFlags::STAGED) => {
                self.arrive(e, node, row, c, compare)
            }
            _ => self.create(e, c),
        }
    }

    /// A known node under a name that it did not have: a rename or a hard link.
    fn arrive(
        &mut self,
        e: &Present<'_>,
        node: NodeId,
        row: NodeRow,
        c: &BackupCommand,
        compare: bool,
    ) -> Result<(), UnitError> {
        if row.is_dir() && self.is_above(node, e.dir.node)? {
            // In the index the directory is still above the place that it went to; that place's own move is
            // looked at first.
            return self.look_again(c);
        }
        let mut kept = 0;
        for (parent, name) in self.index.names_of(node)? {
            let elsewhere = (parent, &name) != (e.dir.node, e.name);
            if elsewhere
                && (row.is_dir()
                    || !self
                        .tree
                        .still_there(&self.index, parent, &name, e.stat.id)?)
            {
                self.send_unname(parent, &name)?;
            } else {
                kept += 1;
            }
        }
        self.stats.renames += u64::from(kept == 0);
        self.send_name(e.dir.node, e.name, node)?;
        self.touch(e.dir.node);
        if row.is_dir() {
            self.tree.renamed();
        }
        // Found before the message about its move: one about a change under its old name may be under way too, and
        // its inode number may have been used again.
        let ahead = kept == 0 && (c.what.moved || c.what.created);
        let mut c = c.clone();
        c.what.created = false;
        c.what.attr = true;
        // A compare that is under way may have passed the new place already and not have come to the old one, or may have passed
        // both. And what is excluded by its whole path may not be under its new one.
        let unseen = compare || c.what.doubt || self.catching_up();
        let excludes = &self.tree.root(e.dir.root).spec.excludes;
        if row.is_dir() && (self.missing.remove(&node) || unseen || excludes.has_anchored()) {
            self.queue_compare(&c, e.path.clone(), e.stat.id);
        }
        self.update(e, node, row, &c, compare || ahead)
    }

    /// Is `node` the directory `below` or above it, in the index?
    fn is_above(&self, node: NodeId, below: NodeId) -> Result<bool, UnitError> {
        let mut at = below;
        loop {
            if at == node {
                return Ok(true);
            }
            match self.index.names_of(at)?.into_iter().next() {
                Some((parent, _)) => at = parent,
                None => return Ok(false),
            }
        }
    }

    /// Something that the index has never seen.
    fn create(&mut self, e: &Present<'_>, c: &BackupCommand) -> Result<(), UnitError> {
        self.touch(e.dir.node);
        let node = self.index.new_node();
        let slot = self.tree.root(e.dir.root).spec.slot;
        if e.stat.kind == Kind::File {
            return self.send_file(e, node, None, c, slot);
        }
        let meta = match read_meta(&e.dir.dir, e.name, &e.stat) {
            Ok(m) => m,
            Err(err) if e.is_replaced(&err, c) => return self.look_again(c),
            Err(err) => return self.fail(&e.path, &err, c),
        };
        self.solved(&e.path);
        let row = NodeRow {
            meta,
            origin: e.stat.origin(slot),
            flags: NodeFlags::default(),
            sum: [0; 16],
        };
        self.send_new_node(node, &row)?;
        self.send_name_at(e, node)?;
        if e.stat.kind == Kind::Dir {
            self.new_dirs.insert(e.stat.id, node);
            self.queue_compare(c, e.path.clone(), e.stat.id);
        }
        Ok(())
    }

    /// Gives a node its name.
    pub(super) fn send_name_at(&mut self, e: &Present<'_>, node: NodeId) -> Result<(), UnitError> {
        match e.had {
            None => self.send_new_name(e.dir.node, e.name, node),
            Some(_) => self.send_name(e.dir.node, e.name, node),
        }
    }

    /// The node that was there is still there: what about it is different?
    pub(super) fn update(
        &mut self,
        e: &Present<'_>,
        node: NodeId,
        row: NodeRow,
        c: &BackupCommand,
        compare: bool,
    ) -> Result<(), UnitError> {
        let slot = self.tree.root(e.dir.root).spec.slot;
        let ctime_differs = row.origin.ctime != e.stat.ctime;
        if e.stat.kind == Kind::File {
            let times = row.meta.mtime != e.stat.mtime || row.meta.size != e.stat.size;
            // What was read after the message came holds what the message is about.
            let read = self.read_now.contains(&node) && !ctime_differs && !c.what.mapped;
            let content = c.what.created || c.what.data;
            let told = !read && content && c.extents.as_ref().is_none_or(|x| !x.is_empty());
            let watched = !compare && !c.what.doubt && !self.catching_up();
            let unsure = row.flags.has(NodeFlags::RACY) || row.flags.has(NodeFlags::PARTIAL);
            let doubt = !watched && (ctime_differs || unsure);
            let suspect = row.flags.has(NodeFlags::SUSPECT);
            let seen = !ctime_differs && !suspect && self.has_seen(c, e.stat.id);
            if times || told && !seen || doubt || suspect {
                return self.send_file(e, node, Some(row), c, slot);
            }
            if seen {
                self.solved(&e.path);
                return Ok(());
            }
        }
        if !ctime_differs && !c.what.attr {
            return Ok(());
        }
        match read_meta(&e.dir.dir, e.name, &e.stat) {
            Ok(meta) => {
                if self.solved(&e.path) && e.stat.kind == Kind::Dir {
                    // It may be read now; what is in it was not seen before.
                    self.queue_compare(c, e.path.clone(), e.stat.id);
                }
                let row = NodeRow {
                    meta,
                    origin: e.stat.origin(slot),
                    ..row
                };
                self.send_node(node, row)
            }
            Err(err) if e.is_replaced(&err, c) => self.look_again(c),
            Err(err) => self.fail(&e.path, &err, c),
        }
    }

    /// There is nothing under a name any more.
    pub(super) fn depart(
        &mut self,
        mut c: BackupCommand,
        dir: &OpenDir,
        name: &Name,
    ) -> Result<(), UnitError> {
        if self.index.lookup(dir.node, name)?.is_none() {
            return Ok(());
        }
        // Moved away: whoever moved it may have told the new place later, or a compare has not come there yet.
        let compares = !self.compares.is_empty();
        if c.what.moved && (c.attempts == 0 || compares) {
            c.attempts += 1;
            self.put_back.push((c, !compares));
            return Ok(());
        }
        match dir.dir.stat_if_exists(name) {
            Ok(None) => self.send_unname(dir.node, name),
            _ => self.look_again(&c),
        }
    }

    /// A place where another filesystem is mounted: an empty directory.
    fn mount_point(&mut self, e: &Present<'_>) -> Result<(), UnitError> {
        self.boundary(&e.path);
        if e.stat.kind != Kind::Dir {
            return Ok(());
        }
        let had = match e.had {
            Some(n) => self
                .index
                .node(n)?
                .filter(|r| r.origin.slot == SLOT_NONE)
                .map(|_| n),
            None => None,
        };
        let node = had.unwrap_or_else(|| self.index.new_node());
        self.send_node(node, Self::mount_point_row(&e.stat))?;
        self.send_name(e.dir.node, e.name, node)
    }

    /// What was sent of a node is not to be relied on; it is read at the next look, whatever its times say.
    pub(super) fn suspect(&mut self, node: NodeId) -> Result<(), UnitError> {
        if let Some(mut row) = self.index.node(node)? {
            row.flags = row.flags.with(NodeFlags::SUSPECT, true);
            self.index.put_node(node, &row)?;
            let mut roots = self.tree.roots().iter();
            if let Some(root) = roots.position(|r| r.spec.slot == row.origin.slot) {
                self.seen.forget(self.tree.file_id(root, &row));
            }
        }
        Ok(())
    }

    /// Was the file read whole after all that the command is about? Of a file that may be a node in each of several
    /// protected directories nobody knows which of them was read.
    pub(super) fn has_seen(&self, c: &BackupCommand, id: FileId) -> bool {
        let alone = || {
            self.tree
                .roots()
                .iter()
                .filter(|r| r.id.dev == id.dev)
                .count()
                == 1
        };
        !c.what.mapped && self.seen.covers(id, c.newest) && alone()
    }

    /// It changed under our eyes: once more, after the sensor has told what happened.
    pub(super) fn look_again(&mut self, c: &BackupCommand) -> Result<(), UnitError> {
        let mut again = c.clone();
        again.attempts += 1;
        self.put_back.push((again, true));
        Ok(())
    }

    /// The directory is not where the index says. A message about its move or end is on its way, unless the sensor
    /// lost it: then everything is compared.
    fn look_later(&mut self, mut c: BackupCommand) -> Result<(), UnitError> {
        c.attempts += 1;
        if c.attempts <= LATER_TRIES {
            self.put_back.push((c, true));
            return Ok(());
        }
        tracing::debug!(path = %c.path, "lost sight of a directory: comparing everything");
        for (id, path) in self.compare_all()? {
            self.queue_compare(&c, path, id);
        }
        Ok(())
    }

    /// It could not be read: a problem, tried again later.
    pub(super) fn fail(
        &mut self,
        path: &BytePath,
        e: &std::io::Error,
        c: &BackupCommand,
    ) -> Result<(), UnitError> {
        self.problem(path, e, Some(c));
        Ok(())
    }

    /// A directory may not be opened: a problem of it; at the next try it is compared with all below.
    fn refused(&mut self, r: &Refused, c: &BackupCommand) -> Result<(), UnitError> {
        let what = What {
            compare: true,
            recursive: true,
            ..What::default()
        };
        let again = Self::follow_up(c, r.path.clone(), Target::Directory(r.id), what);
        self.fail(&r.path, &r.error, &again)
    }

    /// Drops a staged node that is no longer needed.
    pub(super) fn drop_staged(&mut self, node: NodeId) -> Result<(), UnitError> {
        self.batch.push(Op::Drop { node });
        Ok(self.index.del_node(node)?)
    }
}
