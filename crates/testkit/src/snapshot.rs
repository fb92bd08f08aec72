//! What a tree holds at one moment, to be compared.

use farwrite_core::{Kind, Meta};
use farwrite_fs::{Dir, OpenMode, data_segments, read_meta};
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};
use std::path::Path;

/// One entry of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotEntry {
    /// Attributes.
    pub meta: Meta,
    /// Content of a file.
    pub content: Vec<u8>,
    /// Byte path of the first name of the same file, in byte order: equal for hard links of each other.
    pub first_link: Vec<u8>,
}

/// Paths relative to the top (empty for the top itself) and what is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot(pub BTreeMap<Vec<u8>, SnapshotEntry>);

impl Snapshot {
    /// Reads a real tree.
    pub fn of_dir(top: &Path) -> io::Result<Snapshot> {
        let dir = Dir::open(top)?;
        let mut out = BTreeMap::new();
        let mut ids: HashMap<(u64, u64), Vec<Vec<u8>>> = HashMap::new();
        let meta = {
            let stat = dir.stat_self()?;
            farwrite_fs::read_meta_with(&stat, Vec::new(), farwrite_fs::list_xattrs(&dir, None)?)
        };
        out.insert(
            Vec::new(),
            SnapshotEntry {
                meta,
                content: Vec::new(),
                first_link: Vec::new(),
            },
        );
        let mut stack = vec![(Vec::new(), dir)];
        while let Some((path, dir)) = stack.pop() {
            for e in dir.list()? {
                let mut p: Vec<u8> = path.clone();
                if !p.is_empty() {
                    p.push(b'/');
                }
                p.extend_from_slice(e.name.as_bytes());
                let stat = dir.stat(&e.name)?;
                let meta = read_meta(&dir, &e.name, &stat)?;
                let mut content = Vec::new();
                if meta.kind == Kind::File {
                    dir.open_file(&e.name, OpenMode::Read)?
                        .read_to_end(&mut content)?;
                }
                if meta.kind == Kind::Dir {
                    stack.push((p.clone(), dir.open_dir(&e.name)?));
                }
                ids.entry((stat.id.dev, stat.id.ino))
                    .or_default()
                    .push(p.clone());
                out.insert(
                    p.clone(),
                    SnapshotEntry {
                        meta,
                        content,
                        first_link: p,
                    },
                );
            }
        }
        for paths in ids.values().filter(|p| p.len() > 1) {
            let first = paths.iter().min().expect("more than one").clone();
            for p in paths {
                out.get_mut(p).expect("inserted").first_link = first.clone();
            }
        }
        Ok(Snapshot(out))
    }

    /// Keeps only these paths; hard links are told among what is left.
    pub fn retain(&mut self, keep: impl Fn(&[u8]) -> bool) {
        self.0.retain(|p, _| keep(p));
        let mut first: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
        for (p, e) in &mut self.0 {
            e.first_link = first
                .entry(e.first_link.clone())
                .or_insert_with(|| p.clone())
                .clone();
        }
    }

    /// What differs, a line each, at most `max` of them; empty if nothing does.
    pub fn differences(&self, other: &Snapshot, max: usize) -> Vec<String> {
        let mut out = Vec::new();
        let show = |p: &[u8]| farwrite_core::path::lossy(p);
        for (p, a) in &self.0 {
            match other.0.get(p) {
                None => out.push(format!("{}: only in the first", show(p))),
                Some(b) if a.meta != b.meta => {
                    out.push(format!("{}: {:?} / {:?}", show(p), a.meta, b.meta))
                }
                Some(b) if a.content != b.content => {
                    let at = a.content.iter().zip(&b.content).position(|(x, y)| x != y);
                    out.push(format!(
                        "{}: content differs at {at:?} ({} / {} bytes)",
                        show(p),
                        a.content.len(),
                        b.content.len()
                    ));
                }
                Some(b) if a.first_link != b.first_link => {
                    out.push(format!("{}: linked otherwise", show(p)))
                }
                Some(_) => {}
            }
        }
        for p in other.0.keys().filter(|p| !self.0.contains_key(*p)) {
            out.push(format!("{}: only in the second", show(p)));
        }
        out.truncate(max);
        out
    }
}

/// Extents of data of a file: offset and length.
pub fn data_map(path: &Path) -> io::Result<Vec<(u64, u64)>> {
    let f = std::fs::File::open(path)?;
    let size = f.metadata()?.len();
    Ok(data_segments(&f, size)?
        .into_iter()
        .filter(|s| !s.hole)
        .map(|s| (s.offset, s.len))
        .collect())
}
