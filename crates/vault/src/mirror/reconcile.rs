//! Makes the whole mirror what the catalog says, whatever it is now: after a crash, after tampering, after a loss.
//! Nothing found in the mirror is trusted beyond what a stat can tell, and nothing of it is followed.

use super::step::same_special;
use super::{At, Mirror, MirrorError, PAGE, has_default_acl};
use crate::catalog::{Content, NodeRow, View};
use farwrite_core::{BatchSeq, FileId, Kind, Name, NodeId};
use farwrite_fs::{Dir, Stat};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

type Result<T = ()> = std::result::Result<T, MirrorError>;

pub(super) struct Reconcile<'a> {
    mirror: &'a mut Mirror,
    view: View<'a>,
    /// Nodes whose content on the disk proves nothing.
    suspects: HashSet<NodeId>,
    /// Nodes that may stand under another's name. Of a directory it is what is below it, too, that may be another's.
    moved: HashSet<NodeId>,
    /// First place of each node with several names, and its inode.
    linked: HashMap<NodeId, (NodeId, Name, FileId)>,
}

impl<'a> Reconcile<'a> {
    pub(super) fn new(mirror: &'a mut Mirror, view: View<'a>, trusted: BatchSeq) -> Result<Self> {
        Ok(Reconcile {
            mirror,
            view,
            suspects: view.changed_since(trusted)?.into_iter().collect(),
            moved: view.renamed_since(trusted)?.into_iter().collect(),
            linked: HashMap::new(),
        })
    }

    pub(super) fn run(mut self) -> Result {
        let held = self.mirror.hold.list().map_err(|source| MirrorError::Io {
            what: "list",
            path: "hold".into(),
            source,
        })?;
        for entry in held {
            let hold = &self.mirror.hold;
            hold.remove_tree(&entry.name)
                .map_err(|e| MirrorError::io("remove", &entry.name, e))?;
        }
        let mut todo = vec![(NodeId::ROOT, false)];
        while let Some((node, doubted)) = todo.pop() {
            self.one_dir(node, doubted, &mut todo)?;
        }
        Ok(())
    }

    fn dir(&mut self, node: NodeId) -> Result<Arc<Dir>> {
        let view = self.view;
        self.mirror
            .dir_at(node, |n| match view.names_of(n, 1)?.pop() {
                Some((parent, name)) => Ok(At::In(parent, name)),
                None => Ok(At::Hold(super::hold_name(n, false))),
            })
    }

    /// `doubted`: it, or what it is in, may have stood under another's name.
    fn one_dir(&mut self, node: NodeId, doubted: bool, todo: &mut Vec<(NodeId, bool)>) -> Result {
        let dir = self.dir(node)?;
        let doubted = doubted || self.moved.contains(&node);
        let row = self.view.node(node)?;
        let inherits = row.as_ref().is_some_and(|r| has_default_acl(&r.meta));
        let mut foreign: HashSet<Name> = HashSet::new();
        dir.for_each_entry(|e| foreign.extend([e.name]))
            .map_err(|source| MirrorError::Io {
                what: "list",
                path: format!("directory {node}"),
                source,
            })?;
        let mut after = None;
        loop {
            let page = self.view.list(node, after.as_ref(), PAGE)?;
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            for (name, child) in page {
                foreign.remove(&name);
                if let Some(row) = self.view.node(child)? {
                    if row.meta.kind == Kind::Dir {
                        todo.push((child, doubted));
                    } else if doubted {
                        self.suspects.insert(child);
                    }
                    self.one_entry(&dir, node, &name, child, &row, inherits)?;
                }
            }
        }
        for name in foreign {
            self.mirror.stats.foreign_removed += self.mirror.remove(&dir, &name)?;
        }
        match row {
            Some(row) if node != NodeId::ROOT => self.mirror.set_meta(&dir, None, &row.meta),
            _ => Ok(()),
        }
    }

    fn one_entry(
        &mut self,
        dir: &Dir,
        parent: NodeId,
        name: &Name,
        node: NodeId,
        row: &NodeRow,
        inherits: bool,
    ) -> Result {
        let fail = |e| MirrorError::io("look at", name, e);
        let stat = dir.stat_if_exists(name).map_err(fail)?;
        if row.meta.kind == Kind::Dir {
            if stat.is_some_and(|s| s.kind == Kind::Dir) {
                return Ok(());
            }
            self.clear_place(dir, name, stat)?;
            self.mirror.stats.dirs_made += 1;
            dir.mkdir(name, 0o700)
                .map_err(|e| MirrorError::io("make directory", name, e))?;
            // At once, for a default ACL inherited from above would spread.
            return self.mirror.set_meta(dir, Some(name), &row.meta);
        }
        let links = self.view.links(node)?;
        if let Some((p, n, id)) = self.linked.get(&node).cloned() {
            if stat.is_some_and(|s| s.id == id) {
                return Ok(());
            }
            self.clear_place(dir, name, stat)?;
            let from = self.dir(p)?;
            return from
                .link(&n, dir, name)
                .map_err(|e| MirrorError::io("link", name, e));
        }
        let keep = match stat {
            Some(s) => s.nlink <= links && self.is_same(dir, name, node, row, &s)?,
            None => false,
        };
        if keep {
            self.mirror.set_meta(dir, Some(name), &row.meta)?;
        } else {
            self.clear_place(dir, name, stat)?;
            self.mirror.make(
                self.view,
                (node, Content::Unknown),
                &row.meta,
                (dir, name),
                inherits,
            )?;
        }
        if links > 1
            && let Some(s) = dir.stat_if_exists(name).map_err(fail)?
        {
            self.linked.insert(node, (parent, name.clone(), s.id));
        }
        Ok(())
    }

    fn is_same(
        &self,
        dir: &Dir,
        name: &Name,
        node: NodeId,
        row: &NodeRow,
        stat: &Stat,
    ) -> Result<bool> {
        if row.meta.kind != Kind::File {
            return same_special(dir, name, row);
        }
        Ok(stat.kind == Kind::File
            && !self.suspects.contains(&node)
            && !self.moved.contains(&node)
            && stat.size == row.meta.size
            && stat.mtime == row.meta.mtime)
    }

    fn clear_place(&mut self, dir: &Dir, name: &Name, stat: Option<Stat>) -> Result {
        if stat.is_some() {
            self.mirror.remove(dir, name)?;
            self.mirror.stats.repaired += 1;
        }
        Ok(())
    }
}
