//! The record that the module and the eBPF programs make (uapi/farwrite.h), read and turned into messages.
//!
//! Records come from our own code in the kernel, and are checked all the same: a record that cannot be leads to a compare
//! of the roots it may be about, never to a panic and never to a message about anything outside a root.

use crate::WatchRoot;
use farwrite_core::{BytePath, Change, ChangeOp, Extent, FileId, Name, Timestamp};

/// `FARWRITE_ABI`.
pub(crate) const ABI: u16 = 1;
/// `FARWRITE_ROOT_NONE`.
const ROOT_NONE: u16 = 0xffff;
/// Bytes of `struct farwrite_record`.
const HEADER: usize = 112;

/// `enum farwrite_op`.
mod op {
    pub const PAD: u16 = 0;
    pub const CREATE: u16 = 1;
    pub const DELETE: u16 = 2;
    pub const RENAME: u16 = 3;
    pub const EXCHANGE: u16 = 4;
    pub const WRITE: u16 = 5;
    pub const MMAP: u16 = 6;
    pub const TRUNCATE: u16 = 7;
    pub const ATTRIB: u16 = 8;
    pub const LOST: u16 = 9;
    pub const GONE: u16 = 10;
}

/// `FARWRITE_F_*`, those that matter here.
mod flag {
    pub const PATH_CUT: u32 = 1 << 0;
    pub const LEAF_FIRST: u32 = 1 << 1;
    pub const IDENTITY: u32 = 1 << 2;
    pub const TO_EOF: u32 = 1 << 3;
    pub const DIR: u32 = 1 << 4;
    pub const SHARED: u32 = 1 << 6;
    pub const MOVED: u32 = 1 << 12;
}

/// `struct farwrite_record` with its paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub op: u16,
    pub time: u64,
    pub ino: u64,
    pub parent: u64,
    pub to_parent: u64,
    pub offset: u64,
    pub length: u64,
    pub dev: u32,
    pub flags: u32,
    pub root: u16,
    pub path: &'a [u8],
    pub to_path: &'a [u8],
}

/// Bytes that are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a record of ABI {ABI}")]
pub(crate) struct Malformed;

impl<'a> Record<'a> {
    /// Reads the record at the beginning of `bytes`; what is behind it is left alone.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Record<'a>, Malformed> {
        let head: &[u8; HEADER] = bytes.first_chunk().ok_or(Malformed)?;
        let short = |at: usize| u16::from_ne_bytes([head[at], head[at + 1]]);
        let int =
            |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let long = |at: usize| {
            let mut b = [0; 8];
            b.copy_from_slice(&head[at..at + 8]);
            u64::from_ne_bytes(b)
        };
        let (path, to_path) = (usize::from(short(98)), usize::from(short(100)));
        let size = int(0) as usize;
        let whole = HEADER + path + to_path;
        if short(4) != ABI || size > bytes.len() || !size.is_multiple_of(8) || size < whole {
            return Err(Malformed);
        }
        Ok(Record {
            op: short(6),
            time: long(16),
            ino: long(24),
            parent: long(32),
            to_parent: long(40),
            offset: long(48),
            length: long(56),
            dev: int(72),
            flags: int(80),
            root: short(92),
            path: &bytes[HEADER..HEADER + path],
            to_path: &bytes[HEADER + path..whole],
        })
    }

    fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    fn time(&self) -> Timestamp {
        Timestamp::from_nanos(self.time.min(i64::MAX as u64) as i64)
    }

    fn extent(&self) -> Extent {
        match self.has(flag::TO_EOF) {
            true => Extent::to_end(self.offset),
            false => Extent::new(self.offset, self.length),
        }
    }

    /// What it says of a file's content or attributes; `None` if it is about names.
    fn content(&self) -> Option<ChangeOp> {
        Some(match self.op {
            // All of it: which bytes is not known.
            op::WRITE if self.has(flag::TO_EOF) && self.offset == 0 => ChangeOp::Write(None),
            op::WRITE => ChangeOp::Write(Some(self.extent())),
            op::MMAP if self.has(flag::SHARED) => ChangeOp::Mapped(None),
            op::MMAP => ChangeOp::Mapped(Some(self.extent())),
            op::TRUNCATE => ChangeOp::Truncate(self.offset),
            op::ATTRIB => ChangeOp::Attrib,
            _ => return None,
        })
    }
}

/// A root as the records know it.
#[derive(Clone, Debug)]
pub(crate) struct RecordRoot {
    /// What it is.
    pub root: WatchRoot,
    /// `dev` of the records about it.
    pub dev: u32,
}

/// The roots by the number that the records have for them; a number may be unused.
pub(crate) type RecordRoots = [Option<RecordRoot>];

/// What a record led to, besides messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// Messages, or nothing since its root is no longer ours.
    Changes,
    /// It says that records were lost; the roots are to be compared.
    Lost,
    /// It could not be understood; the roots are to be compared.
    Garbled,
}

/// Appends the messages that the record means.
pub(crate) fn changes(bytes: &[u8], roots: &RecordRoots, out: &mut Vec<Change>) -> Told {
    let Ok(r) = Record::parse(bytes) else {
        let now = crate::clock::now();
        let all = roots.iter().flatten();
        out.extend(all.map(|root| root.root.whole(now, ChangeOp::Overflow)));
        return Told::Garbled;
    };
    match r.op {
        op::PAD => Told::Changes,
        op::LOST => {
            overflow(&r, roots, |i, _| i < 64 && r.offset >> i & 1 == 1, out);
            Told::Lost
        }
        op::GONE => {
            overflow(&r, roots, |i, _| i == usize::from(r.root), out);
            Told::Changes
        }
        _ if r.root == ROOT_NONE => {
            let op = r.content().filter(|_| r.has(flag::IDENTITY));
            let Some(op) = op else {
                overflow(&r, roots, |_, root| root.dev == r.dev, out);
                return Told::Garbled;
            };
            let here = roots.iter().flatten().filter(|root| root.dev == r.dev);
            out.extend(here.map(|root| by_identity(&r, &root.root, op.clone())));
            Told::Changes
        }
        _ => {
            let Some(Some(root)) = roots.get(usize::from(r.root)) else {
                return Told::Changes;
            };
            let before = out.len();
            if one_root(&r, &root.root, out).is_some() {
                return Told::Changes;
            }
            out.truncate(before);
            out.push(root.root.whole(r.time(), ChangeOp::Overflow));
            Told::Garbled
        }
    }
}

fn overflow(
    r: &Record<'_>,
    roots: &RecordRoots,
    concerns: impl Fn(usize, &RecordRoot) -> bool,
    out: &mut Vec<Change>,
) {
    for (i, root) in roots.iter().enumerate() {
        if let Some(root) = root.as_ref().filter(|root| concerns(i, root)) {
            out.push(root.root.whole(r.time(), ChangeOp::Overflow));
        }
    }
}

fn by_identity(r: &Record<'_>, root: &WatchRoot, op: ChangeOp) -> Change {
    Change {
        file: Some(FileId {
            dev: root.id.dev,
            ino: r.ino,
        }),
        ..root.whole(r.time(), op)
    }
}

/// Messages about what is below one root. `None`: the record cannot be.
fn one_root(r: &Record<'_>, root: &WatchRoot, out: &mut Vec<Change>) -> Option<()> {
    let leaf_first = r.has(flag::LEAF_FIRST);
    if let Some(op) = r.content() {
        if r.has(flag::IDENTITY | flag::PATH_CUT) {
            out.push(by_identity(r, root, op));
            return Some(());
        }
        let mut c = named(r, root, r.path, leaf_first, r.parent, op)?;
        if c.name.is_none() {
            c.file = Some(root.id);
        }
        out.push(c);
        return Some(());
    }
    let moved = matches!(r.op, op::RENAME | op::EXCHANGE);
    if r.has(flag::PATH_CUT) || r.path.is_empty() || (moved && r.to_path.is_empty()) {
        // The directory is known, but not where it is; or the root itself was moved or removed.
        let op = match r.has(flag::PATH_CUT) {
            true => ChangeOp::Overflow,
            false => ChangeOp::Subtree,
        };
        out.push(root.whole(r.time(), op));
        return Some(());
    }
    match r.op {
        op::CREATE => {
            let c = named(r, root, r.path, leaf_first, r.parent, ChangeOp::Create)?;
            let below = subtree_of(&c).filter(|_| r.has(flag::MOVED) && r.has(flag::DIR));
            out.push(c);
            out.extend(below);
        }
        op::DELETE => {
            out.push(named(
                r,
                root,
                r.path,
                leaf_first,
                r.parent,
                ChangeOp::Delete,
            )?);
        }
        op::RENAME | op::EXCHANGE => {
            let rename = |from: &[u8], from_dir, to: &[u8], to_dir| {
                let to = named(r, root, to, leaf_first, to_dir, ChangeOp::Create)?;
                let op = ChangeOp::Rename {
                    to_path: to.path,
                    to_dir: to.dir,
                    to_name: to.name?,
                };
                named(r, root, from, leaf_first, from_dir, op)
            };
            out.push(rename(r.path, r.parent, r.to_path, r.to_parent)?);
            if r.op == op::EXCHANGE {
                let back = rename(r.to_path, r.to_parent, r.path, r.parent)?;
                out.push(Change { file: None, ..back });
            }
        }
        _ => return None,
    }
    Some(())
}

/// What a directory that came in brings with it.
fn subtree_of(c: &Change) -> Option<Change> {
    Some(Change {
        time: c.time,
        path: c.path.clone(),
        dir: c.file?,
        name: None,
        file: None,
        op: ChangeOp::Subtree,
    })
}

/// A message about the name at `path` below the root; about the root itself if that is empty. `None`: it is no path.
fn named(
    r: &Record<'_>,
    root: &WatchRoot,
    path: &[u8],
    leaf_first: bool,
    parent: u64,
    op: ChangeOp,
) -> Option<Change> {
    let mut c = root.whole(r.time(), op);
    let dev = root.id.dev;
    c.file = (r.ino != 0).then_some(FileId { dev, ino: r.ino });
    if path.is_empty() {
        return Some(c);
    }
    let names = path.split(|b| *b == b'/').map(|n| Name::new(n).ok());
    let mut names: Vec<Name> = names.collect::<Option<_>>()?;
    if leaf_first {
        names.reverse();
    }
    c.path = join(&root.path, &names);
    c.dir = FileId { dev, ino: parent };
    c.name = names.pop();
    Some(c)
}

fn join(root: &BytePath, names: &[Name]) -> BytePath {
    let mut path = root.clone();
    for n in names {
        path.push(n);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: u32 = 0x80_0001;

    fn roots() -> Vec<Option<RecordRoot>> {
        let root = |path: &str, ino| {
            Some(RecordRoot {
                root: WatchRoot {
                    path: BytePath::new(path).unwrap(),
                    id: FileId { dev: 2049, ino },
                },
                dev: DEV,
            })
        };
        vec![root("/data", 2), None, root("/more", 3)]
    }

    /// The bytes of a record.
    struct Make {
        head: [u8; HEADER],
        paths: Vec<u8>,
    }

    impl Make {
        fn new(op: u16, root: u16, flags: u32) -> Make {
            let mut m = Make {
                head: [0; HEADER],
                paths: Vec::new(),
            };
            m.put(4, &ABI.to_ne_bytes());
            m.put(6, &op.to_ne_bytes());
            m.put(16, &5_000_000_001u64.to_ne_bytes());
            m.put(24, &77u64.to_ne_bytes());
            m.put(32, &11u64.to_ne_bytes());
            m.put(40, &12u64.to_ne_bytes());
            m.put(72, &DEV.to_ne_bytes());
            m.put(80, &flags.to_ne_bytes());
            m.put(92, &root.to_ne_bytes());
            m
        }
        fn put(&mut self, at: usize, bytes: &[u8]) {
            self.head[at..at + bytes.len()].copy_from_slice(bytes);
        }
        fn extent(mut self, offset: u64, length: u64) -> Make {
            self.put(48, &offset.to_ne_bytes());
            self.put(56, &length.to_ne_bytes());
            self
        }
        fn paths(mut self, path: &[u8], to: &[u8]) -> Vec<u8> {
            self.put(98, &(path.len() as u16).to_ne_bytes());
            self.put(100, &(to.len() as u16).to_ne_bytes());
            self.paths = [path, to].concat();
            self.paths.resize(self.paths.len().next_multiple_of(8), 0);
            let size = (HEADER + self.paths.len()) as u32;
            self.put(0, &size.to_ne_bytes());
            [&self.head[..], &self.paths].concat()
        }
    }

    fn told(bytes: &[u8]) -> (Told, Vec<String>) {
        let mut out = Vec::new();
        let told = changes(bytes, &roots(), &mut out);
        let dev = |id: FileId| assert_eq!(id.dev, 2049);
        for c in &out {
            dev(c.dir);
            c.file.into_iter().for_each(dev);
        }
        let show = |c: &Change| {
            let file = c.file.map_or("-".into(), |f| f.ino.to_string());
            format!("{} ({} {file})", c.describe(), c.dir.ino)
        };
        (told, out.iter().map(show).collect())
    }

    #[test]
    fn a_write_has_path_directory_file_and_extent() {
        let (how, lines) = told(&Make::new(op::WRITE, 0, 0).extent(10, 5).paths(b"a/b", b""));
        assert_eq!(how, Told::Changes);
        assert_eq!(lines, ["write    /data/a/b [10..15] (11 77)"]);
    }

    #[test]
    fn paths_may_come_leaf_first() {
        let bytes = Make::new(op::RENAME, 2, flag::LEAF_FIRST).paths(b"c/b/a", b"z/y");
        assert_eq!(
            told(&bytes).1,
            ["rename   /more/a/b/c -> /more/y/z (11 77)"]
        );
    }

    #[test]
    fn an_exchange_is_two_renames() {
        let bytes = Make::new(op::EXCHANGE, 0, 0).paths(b"f", b"d/g");
        assert_eq!(
            told(&bytes).1,
            [
                "rename   /data/f -> /data/d/g (11 77)",
                "rename   /data/d/g -> /data/f (12 -)"
            ]
        );
    }

    #[test]
    fn a_directory_that_came_in_is_looked_at_whole() {
        let flags = flag::DIR | flag::MOVED;
        assert_eq!(
            told(&Make::new(op::CREATE, 0, flags).paths(b"d", b"")).1,
            ["create   /data/d (11 77)", "compare  /data/d/ (77 -)"]
        );
        assert_eq!(
            told(&Make::new(op::CREATE, 0, flag::DIR).paths(b"d", b"")).1,
            ["create   /data/d (11 77)"]
        );
    }

    #[test]
    fn mappings_and_ends_of_files() {
        let map = |flags| {
            told(
                &Make::new(op::MMAP, 0, flags)
                    .extent(4096, 8192)
                    .paths(b"f", b""),
            )
            .1
        };
        assert_eq!(map(0), ["mmap     /data/f [4096..12288] (11 77)"]);
        assert_eq!(map(flag::SHARED), ["mmap     /data/f (11 77)"]);
        let bytes = Make::new(op::WRITE, 0, flag::TO_EOF)
            .extent(9, u64::MAX)
            .paths(b"f", b"");
        assert_eq!(
            told(&bytes).1,
            [format!("write    /data/f [9..{}] (11 77)", u64::MAX)]
        );
        let bytes = Make::new(op::WRITE, 0, flag::TO_EOF)
            .extent(0, u64::MAX)
            .paths(b"f", b"");
        assert_eq!(told(&bytes).1, ["write    /data/f (11 77)"]);
        let bytes = Make::new(op::TRUNCATE, 0, 0)
            .extent(9, u64::MAX)
            .paths(b"f", b"");
        assert_eq!(told(&bytes).1, ["truncate /data/f to 9 (11 77)"]);
    }

    #[test]
    fn a_file_without_a_name_below_is_told_by_identity_to_every_root_of_its_device() {
        let bytes = Make::new(op::WRITE, ROOT_NONE, flag::IDENTITY)
            .extent(0, 1)
            .paths(b"", b"");
        assert_eq!(
            told(&bytes).1,
            [
                "write    /data [0..1] (2 77)",
                "write    /more [0..1] (3 77)"
            ]
        );
        let mut other = Make::new(op::WRITE, ROOT_NONE, flag::IDENTITY);
        other.put(72, &1u32.to_ne_bytes());
        assert_eq!(told(&other.paths(b"", b"")), (Told::Changes, vec![]));
        let cut = Make::new(op::ATTRIB, 2, flag::PATH_CUT).paths(b"x", b"");
        assert_eq!(told(&cut).1, ["attrib   /more (3 77)"]);
    }

    #[test]
    fn what_happens_to_the_root_itself() {
        let attrib = Make::new(op::ATTRIB, 0, flag::DIR).paths(b"", b"");
        assert_eq!(told(&attrib).1, ["attrib   /data (2 2)"]);
        let gone = Make::new(op::DELETE, 0, flag::DIR).paths(b"", b"");
        assert_eq!(told(&gone).1, ["compare  /data/ (2 -)"]);
    }

    #[test]
    fn losses_name_their_roots() {
        let lost = Make::new(op::LOST, ROOT_NONE, 0)
            .extent(0b100, 9)
            .paths(b"", b"");
        assert_eq!(
            told(&lost),
            (Told::Lost, vec!["overflow /more/ (3 -)".into()])
        );
        let gone = Make::new(op::GONE, 0, 0).paths(b"", b"");
        assert_eq!(told(&gone).1, ["overflow /data/ (2 -)"]);
    }

    #[test]
    fn a_root_that_is_not_ours_is_passed_over() {
        for root in [1, 3, 64, 500] {
            let bytes = Make::new(op::WRITE, root, 0).paths(b"f", b"");
            assert_eq!(told(&bytes), (Told::Changes, vec![]));
        }
    }

    #[test]
    fn what_cannot_be_leads_to_a_compare() {
        let compare = |bytes: &[u8], roots: usize| {
            let (how, lines) = told(bytes);
            assert_eq!(how, Told::Garbled);
            assert_eq!(lines.len(), roots, "{lines:?}");
            assert!(lines.iter().all(|l| l.starts_with("overflow")), "{lines:?}");
        };
        for path in ["..", "a/../b", "/a", "a/", "a//b", ".", "a\0b"] {
            compare(&Make::new(op::WRITE, 0, 0).paths(path.as_bytes(), b""), 1);
            compare(&Make::new(op::RENAME, 0, 0).paths(b"a", path.as_bytes()), 1);
        }
        compare(&Make::new(99, 0, 0).paths(b"f", b""), 1);
        compare(&Make::new(op::CREATE, ROOT_NONE, 0).paths(b"f", b""), 2);
        let good = Make::new(op::WRITE, 0, 0).paths(b"some/path", b"");
        for n in 0..good.len() {
            compare(&good[..n], 2);
        }
        let mut wrong = good.clone();
        wrong[4] = 200;
        compare(&wrong, 2);
        let mut short = good;
        short[0] = HEADER as u8;
        compare(&short, 2);
    }
}
