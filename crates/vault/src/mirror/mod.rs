//! The mirror: the present tree as plain files. It is only ever made to look like the catalog, from the log's bytes;
//! it must never be read as truth, never follow a link and never touch anything outside its directory.

mod ahead;
mod content;
mod reconcile;
mod step;
mod writers;

use crate::catalog::{Catalog, Content, Delta, View};
use crate::segment::{BlockReader, LogError};
use farwrite_core::{BatchSeq, Kind, Meta, Name, NodeId};
use farwrite_fs::{Dir, HandleCache, Skipped};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Entries asked of the catalog at once.
const PAGE: usize = 4096;

/// What a mirror has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MirrorStats {
    /// Files and special files made anew.
    pub files_made: u64,
    /// Directories made.
    pub dirs_made: u64,
    /// Entries moved to another place.
    pub moved: u64,
    /// Entries removed because they are gone at the source.
    pub removed: u64,
    /// Bytes of content written.
    pub bytes_written: u64,
    /// Those of them that the filesystem was asked to share with the log.
    pub bytes_shared: u64,
    /// Entries found that no source ever had, and removed.
    pub foreign_removed: u64,
    /// Entries found other than they should be, and made anew.
    pub repaired: u64,
    /// Full comparisons with the catalog.
    pub reconciles: u64,
    /// Pieces of content left out because the log is damaged there.
    pub damaged: u64,
    /// What this process or filesystem cannot set; it stays in the catalog.
    pub skipped: Skipped,
    /// Device nodes that this process may not make.
    pub skipped_nodes: u64,
}

/// What went wrong with a mirror.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// The operating system refused.
    #[error("mirror: cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where, below the mirror.
        path: String,
        /// Its answer.
        source: io::Error,
    },
    /// The catalog.
    #[error("mirror: catalog: {0}")]
    Catalog(#[from] rusqlite::Error),
    /// The log could not be read (damage is counted instead).
    #[error("mirror: {0}")]
    Log(#[from] LogError),
}

impl MirrorError {
    pub(crate) fn io(what: &'static str, name: &Name, source: io::Error) -> Self {
        MirrorError::Io {
            what,
            path: name.to_string(),
            source,
        }
    }

    /// Is it that an entry is not as the mirror left it? Then a comparison with the catalog helps.
    fn is_surprise(&self) -> bool {
        use rustix::io::Errno as E;
        match self {
            MirrorError::Io { source, .. } => {
                source.kind() == io::ErrorKind::InvalidInput
                    || matches!(
                        E::from_io_error(source),
                        Some(
                            E::NOENT
                                | E::EXIST
                                | E::NOTDIR
                                | E::ISDIR
                                | E::NOTEMPTY
                                | E::LOOP
                                | E::XDEV
                        )
                    )
            }
            _ => false,
        }
    }
}

/// One source's mirror.
pub struct Mirror {
    root: Arc<Dir>,
    hold: Dir,
    path: PathBuf,
    may_own: bool,
    /// Can its files share extents with the log?
    shares: bool,
    blocks: BlockReader,
    ahead: ahead::Ahead,
    dirs: HandleCache<NodeId, Arc<Dir>>,
    writers: Option<writers::Writers>,
    /// See [`Mirror::set_worth_writers`].
    worth_writers: usize,
    stats: MirrorStats,
    known: step::DirsKnown,
}

impl Mirror {
    /// Opens the mirror `source_dir/mirror` with its scratch directory `source_dir/hold`, making both if
    /// they are missing; the log is `source_dir/log`.
    pub fn open(source_dir: &Path) -> Result<Self, MirrorError> {
        let open = |name: &str| {
            let path = source_dir.join(name);
            // By its name from above, so that a link planted there is an error and not followed.
            let inside =
                || Dir::open(source_dir)?.open_dir(&Name::new(name).expect("a plain name"));
            make_private_dir(&path)
                .and_then(|()| inside())
                .map_err(|source| MirrorError::Io {
                    what: "open",
                    path: path.display().to_string(),
                    source,
                })
        };
        for name in ["mirror", "hold"] {
            // What is made in them has the attributes that it had at the source, and no others.
            let path = source_dir.join(name);
            let _ = rustix::fs::lremovexattr(path, "system.posix_acl_default");
        }
        let hold = open("hold")?;
        let mirror = Mirror {
            root: Arc::new(open("mirror")?),
            shares: farwrite_fs::shares_extents(&hold).unwrap_or(false),
            hold,
            path: source_dir.join("mirror"),
            may_own: rustix::process::geteuid().is_root(),
            blocks: BlockReader::new(&source_dir.join("log")),
            ahead: ahead::Ahead::default(),
            dirs: HandleCache::new(),
            writers: None,
            worth_writers: writers::WORTH_IT,
            stats: MirrorStats::default(),
            known: step::DirsKnown::default(),
        };
        mirror
            .remove_all_ahead()
            .map_err(|source| MirrorError::Io {
                what: "tidy",
                path: "hold".into(),
                source,
            })?;
        Ok(mirror)
    }

    /// From how many new names, or old ones, in a step on other threads help with them: what a test makes small.
    pub fn set_worth_writers(&mut self, names: usize) {
        self.worth_writers = names;
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it has done so far.
    pub fn stats(&self) -> MirrorStats {
        self.stats
    }

    /// Brings the mirror from batch `from`, which it shows, to the catalog's last batch; `delta` is what lies
    /// between. Anything unexpected in the tree leads to [`Mirror::reconcile`].
    pub fn apply(
        &mut self,
        catalog: &Catalog,
        from: BatchSeq,
        delta: &Delta,
    ) -> Result<(), MirrorError> {
        if delta.cleared {
            return self.reconcile(catalog, from);
        }
        let done =
            match catalog.reading(|reading| step::Step::new(self, reading, from, delta).run())? {
                Err(e) if e.is_surprise() => {
                    tracing::warn!("{e}: comparing the whole mirror with the catalog");
                    self.reconcile(catalog, from)
                }
                other => other,
            };
        // The next step has blocks of its own, and other sources have mirrors too.
        self.blocks.forget();
        done
    }

    /// Makes the mirror what the catalog's last batch says, whatever it is now. Files changed or moved after
    /// `trusted` are written anew; of the others size, times and attributes are compared. Stopped anywhere and
    /// begun again, it comes to the same end.
    pub fn reconcile(&mut self, catalog: &Catalog, trusted: BatchSeq) -> Result<(), MirrorError> {
        self.stats.reconciles += 1;
        self.forget_ahead();
        self.dirs.clear();
        let done = catalog
            .reading(|reading| reconcile::Reconcile::new(self, reading.latest(), trusted)?.run());
        self.blocks.forget();
        done?
    }

    /// Writes everything to the disk.
    pub fn sync(&self) -> Result<(), MirrorError> {
        self.root
            .sync_filesystem()
            .map_err(|source| MirrorError::Io {
                what: "sync",
                path: self.path.display().to_string(),
                source,
            })
    }

    /// An open directory for a node, found by `place_of` (`None`: in the hold directory, under that name).
    fn dir_at(
        &mut self,
        node: NodeId,
        mut place_of: impl FnMut(NodeId) -> Result<At, MirrorError>,
    ) -> Result<Arc<Dir>, MirrorError> {
        if node == NodeId::ROOT {
            return Ok(self.root.clone());
        }
        if let Some(dir) = self.dirs.get(&node) {
            return Ok(dir.clone());
        }
        let (mut names, mut at) = (Vec::new(), node);
        let base = loop {
            if at == NodeId::ROOT {
                break Some(self.root.clone());
            }
            if let Some(dir) = self.dirs.get(&at) {
                break Some(dir.clone());
            }
            match place_of(at)? {
                At::In(parent, name) => {
                    names.push(name);
                    at = parent;
                }
                At::Hold(name) => {
                    names.push(name);
                    break None;
                }
            }
        };
        names.reverse();
        let from = base.as_deref().unwrap_or(&self.hold);
        let dir = from.open_beneath(&names).map_err(|e| {
            let last = names.last().expect("not the root");
            MirrorError::io("open directory", last, e)
        })?;
        let dir = Arc::new(dir);
        self.dirs.put(node, dir.clone());
        Ok(dir)
    }

    /// Attributes as this process can set them: a mirror that is not root's must stay passable for its owner.
    fn settable(&self, meta: &Meta) -> Meta {
        let mut meta = meta.clone();
        if !self.may_own && meta.kind == Kind::Dir {
            meta.mode |= 0o700;
        }
        meta
    }

    /// Is it this one entry, which is no file, that whoever makes the mirror may not make (devices in a container), or its
    /// filesystem cannot hold (long targets of symbolic links on XFS)?
    fn is_refused(&self, kind: Kind, e: &io::Error) -> bool {
        use rustix::io::Errno as E;
        let device = matches!(kind, Kind::Char | Kind::Block);
        match E::from_io_error(e) {
            Some(E::PERM | E::ACCESS) => !self.may_own || device,
            Some(E::NAMETOOLONG | E::OPNOTSUPP) => true,
            _ => false,
        }
    }

    /// Makes a node that is not a directory, with content and attributes. `inherits`: the directory has a default
    /// ACL that a new entry would get.
    fn make(
        &mut self,
        view: View<'_>,
        node: (NodeId, Content),
        meta: &Meta,
        (dir, name): (&Dir, &Name),
        inherits: bool,
    ) -> Result<(), MirrorError> {
        let fail = |e| MirrorError::io("make", name, e);
        self.stats.files_made += 1;
        let skipped = match meta.kind {
            Kind::File => return self.make_file(view, node, meta, (dir, name), inherits),
            Kind::Dir => return Err(fail(io::ErrorKind::InvalidInput.into())),
            Kind::Symlink => dir.symlink(name, &meta.target),
            _ => dir.mknod(name, meta.kind, 0o600, meta.rdev),
        };
        match skipped {
            Err(e) if self.is_refused(meta.kind, &e) => {
                self.stats.skipped_nodes += 1;
                return Ok(());
            }
            other => other.map_err(fail)?,
        }
        self.set_meta(dir, Some(name), meta)
    }

    fn set_meta(&mut self, dir: &Dir, name: Option<&Name>, meta: &Meta) -> Result<(), MirrorError> {
        let done = farwrite_fs::apply_meta(dir, name, &self.settable(meta));
        let skipped = done.map_err(|source| MirrorError::Io {
            what: "set attributes of",
            path: name.map_or("a directory".into(), Name::to_string),
            source,
        })?;
        self.stats.skipped.add(skipped);
        Ok(())
    }

    /// Sets the time of a directory that has its other attributes.
    fn set_mtime(&mut self, dir: &Dir, meta: &Meta) -> Result<(), MirrorError> {
        let done = farwrite_fs::set_mtime(dir, None, meta.mtime);
        self.stats.skipped.times += done.map_err(|source| MirrorError::Io {
            what: "set the time of",
            path: "a directory".into(),
            source,
        })?;
        Ok(())
    }

    /// Removes a name with all below it; how many entries it was.
    fn remove(&mut self, dir: &Dir, name: &Name) -> Result<u64, MirrorError> {
        let removed = dir
            .remove_tree(name)
            .map_err(|e| MirrorError::io("remove", name, e))?;
        Ok(removed.dirs + removed.others)
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.forget_ahead();
    }
}

/// Where a directory is at the moment.
enum At {
    In(NodeId, Name),
    Hold(Name),
}

/// Makes a directory that only its owner can look into; there already is fine.
pub(crate) fn make_private_dir(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// A node's name in the hold directory.
fn hold_name(node: NodeId, dead: bool) -> Name {
    let prefix = if dead { "dead-" } else { "" };
    Name::new(format!("{prefix}{node}")).expect("digits make a name")
}

/// Does a directory hand a default ACL to what is made in it?
fn has_default_acl(meta: &Meta) -> bool {
    meta.xattrs
        .iter()
        .any(|x| x.name == b"system.posix_acl_default")
}
