//! What the unit is not sure of, and when it is: files read while they may have been changing, nodes that are missing, places where
//! something was mounted. A doubt ends in a quiet moment, when all that has been told of has been looked at.

use super::rows::NodeFlags;
use super::unit::{BackupUnit, UnitError};
use farwrite_core::{BackupCommand, BytePath, ChangeSeq, NodeId, Target, Timestamp, What};
use farwrite_fs::{Dir, is_absent, mount_points};
use rustix::io::Errno;
use std::time::Duration;

/// A sensor that is empty now has told of what it lost this long ago (the eBPF sensor asks its programs when it is read, if
/// it has not for a second).
const LOSS_TOLD: Duration = Duration::from_secs(3);
/// How often the places where something is mounted are looked at: nobody tells that it is no longer.
pub(super) const MOUNTS_EVERY: Duration = Duration::from_secs(30);

/// A command to look at something of which no sensor has told.
pub(super) fn untold(
    target: Target,
    path: BytePath,
    what: What,
    since: Timestamp,
) -> BackupCommand {
    BackupCommand {
        path,
        target,
        what,
        extents: None,
        first: ChangeSeq::UNKNOWN,
        since,
        newest: ChangeSeq::UNKNOWN,
        attempts: 0,
    }
}

impl BackupUnit {
    /// What was read within the tick of its last change, and of which no other change has been told since.
    pub(super) fn settle_racy(&mut self, quiet: &mut dyn FnMut() -> bool) -> Result<(), UnitError> {
        let now = self.clock.now();
        if self.racy.values().all(|t| now <= *t) || !quiet() {
            return Ok(());
        }
        let is_old = |_: &NodeId, t: &mut Timestamp| now > *t;
        let old: Vec<NodeId> = self.racy.extract_if(is_old).map(|(n, _)| n).collect();
        self.settle(&old, NodeFlags::RACY)
    }

    /// What was read in part is known as a whole, if a sensor that lost something would have said so by now.
    pub(super) fn settle_partial(
        &mut self,
        quiet: &mut dyn FnMut() -> bool,
    ) -> Result<(), UnitError> {
        let now = self.clock.now();
        let is_old = |t: &Timestamp| now.since(*t) > LOSS_TOLD;
        if !self.partial.values().any(is_old) || !quiet() {
            return Ok(());
        }
        let old = self.partial.extract_if(|_, t| is_old(t));
        let old: Vec<NodeId> = old.map(|(n, _)| n).collect();
        self.settle(&old, NodeFlags::PARTIAL)
    }

    fn settle(&mut self, nodes: &[NodeId], doubt: NodeFlags) -> Result<(), UnitError> {
        self.index.begin()?;
        for node in nodes {
            if let Some(mut row) = self.index.node(*node)? {
                row.flags = row.flags.with(doubt, false);
                self.index.put_node(*node, &row)?;
            }
        }
        if self.batch.is_empty() {
            self.index.commit_quietly()?;
        }
        Ok(())
    }

    /// Without a compare all moves have been told of and looked at.
    pub(super) fn settle_missing(&mut self, quiet: &mut dyn FnMut() -> bool) {
        if !self.missing.is_empty() && !self.catching_up() && quiet() {
            self.missing.clear();
        }
    }

    /// Where another filesystem was mounted and is no longer, what was beneath it is to be seen again, and nobody tells.
    pub(super) fn leave_boundaries(&mut self, now: Timestamp) -> Vec<BackupCommand> {
        if self.boundaries.is_empty() || now < self.boundaries_at.after(MOUNTS_EVERY) {
            return Vec::new();
        }
        self.boundaries_at = now;
        // A place where something is mounted is not touched: it may be on a server that does not answer.
        let Ok(mounts) = mount_points() else {
            return Vec::new();
        };
        let roots: Vec<&BytePath> = self.tree.roots().iter().map(|r| &r.spec.path).collect();
        let is_below = |path: &BytePath, mount: &BytePath| {
            path.starts_with(mount) && !roots.iter().any(|root| root.starts_with(mount))
        };
        let what = What {
            name: true,
            ..What::default()
        };
        let mut left = Vec::new();
        self.boundaries.retain(|path| {
            let mounted = mounts.iter().any(|m| is_below(path, m));
            let Some((above, name)) = path.split_last().filter(|_| !mounted) else {
                return true;
            };
            let there = Dir::open_absolute(&above).and_then(|dir| {
                let (at, there) = (dir.stat_self()?, dir.stat(&name)?);
                Ok((at.id, there.id.dev == at.id.dev && !there.mount_root))
            });
            match there {
                Ok((_, false)) => true,
                Ok((dir, true)) => {
                    tracing::info!(%path, "nothing is mounted there any more: looking at what is there");
                    left.push(untold(Target::Name { dir, name }, path.clone(), what, now));
                    false
                }
                // Nothing is there, or a link; which is told of like everything else.
                Err(e) => !is_absent(&e) && Errno::from_io_error(&e) != Some(Errno::LOOP),
            }
        });
        left
    }
}
