//! The messages of one read of a sensor that reads records: what repeats is made one, what is skipped is dropped.
//!
//! Never puts a message in front of one about a name or a size, and never makes one of two extents with a gap.

use crate::record::{self, RecordRoot, Told};
use farwrite_core::{BytePath, Change, ChangeOp, Extent, FileId, Name};
use std::collections::HashMap;

/// Where a file's last message is, as long as another one of the same kind can be made one with it.
type Last = HashMap<(FileId, Option<Name>, Option<FileId>), usize>;

/// The messages of one read: such as are about the same file, with no message about any name between them, become one.
pub(crate) struct Batch<'a> {
    pub out: &'a mut Vec<Change>,
    pub first: usize,
    skip: &'a [BytePath],
    last: Last,
    pub filtered: u64,
    pub merged: u64,
}

impl<'a> Batch<'a> {
    pub fn new(out: &'a mut Vec<Change>, skip: &'a [BytePath]) -> Self {
        Batch {
            first: out.len(),
            out,
            skip,
            last: HashMap::new(),
            filtered: 0,
            merged: 0,
        }
    }

    /// Adds what the record means, but what is skipped.
    pub fn add(&mut self, bytes: &[u8], roots: &[Option<RecordRoot>]) -> Told {
        let mut new = Vec::new();
        let told = record::changes(bytes, roots, &mut new);
        if new.is_empty() {
            self.filtered += 1;
        }
        for c in new {
            if self.is_skipped(&c) {
                self.filtered += 1;
            } else if self.merge(&c) {
                self.merged += 1;
            } else {
                self.push(c);
            }
        }
        told
    }

    fn is_skipped(&self, c: &Change) -> bool {
        let skipped = |p: &BytePath| self.skip.iter().any(|s| p.starts_with(s));
        match &c.op {
            ChangeOp::Rename { to_path, .. } => skipped(&c.path) && skipped(to_path),
            _ => skipped(&c.path),
        }
    }

    fn push(&mut self, c: Change) {
        match c.op {
            ChangeOp::Write(_) | ChangeOp::Mapped(_) | ChangeOp::Attrib => {
                let key = (c.dir, c.name.clone(), c.file);
                self.last.insert(key, self.out.len());
            }
            ChangeOp::Truncate(_) => {
                self.last.remove(&(c.dir, c.name.clone(), c.file));
            }
            _ => self.last.clear(),
        }
        self.out.push(c);
    }

    /// Makes it one with the last message about the file, if together they are one of the same kind.
    fn merge(&mut self, c: &Change) -> bool {
        let Some(i) = self.last.get(&(c.dir, c.name.clone(), c.file)) else {
            return false;
        };
        let one = match (&self.out[*i].op, &c.op) {
            (ChangeOp::Attrib, ChangeOp::Attrib) => ChangeOp::Attrib,
            (ChangeOp::Write(None), ChangeOp::Write(_)) => ChangeOp::Write(None),
            (ChangeOp::Mapped(None), ChangeOp::Mapped(_)) => ChangeOp::Mapped(None),
            (ChangeOp::Write(Some(a)), ChangeOp::Write(Some(b))) => match joined(*a, *b) {
                Some(e) => ChangeOp::Write(Some(e)),
                None => return false,
            },
            (ChangeOp::Mapped(Some(a)), ChangeOp::Mapped(Some(b))) => match joined(*a, *b) {
                Some(e) => ChangeOp::Mapped(Some(e)),
                None => return false,
            },
            _ => return false,
        };
        self.out[*i].op = one;
        true
    }
}

/// Both as one extent, if there is no gap between them.
fn joined(a: Extent, b: Extent) -> Option<Extent> {
    let offset = a.offset.min(b.offset);
    let end = a.end().max(b.end());
    let touches = a.offset <= b.end() && b.offset <= a.end();
    touches.then(|| Extent::new(offset, end - offset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::now;

    fn change(name: &str, op: ChangeOp) -> Change {
        let id = |ino| FileId { dev: 1, ino };
        Change {
            time: now(),
            path: BytePath::new(format!("/r/{name}")).unwrap(),
            dir: id(2),
            name: Some(Name::new(name).unwrap()),
            file: Some(id(name.len() as u64)),
            op,
        }
    }

    fn write(name: &str, offset: u64, len: u64) -> Change {
        change(name, ChangeOp::Write(Some(Extent::new(offset, len))))
    }

    fn batch(changes: Vec<Change>, skip: &[BytePath]) -> Vec<String> {
        let mut out = Vec::new();
        let mut b = Batch::new(&mut out, skip);
        for c in changes {
            if !b.is_skipped(&c) && !b.merge(&c) {
                b.push(c);
            }
        }
        out.iter().map(Change::describe).collect()
    }

    #[test]
    fn writes_that_touch_become_one() {
        let all = vec![write("f", 0, 10), write("gg", 5, 5), write("f", 10, 10)];
        assert_eq!(
            batch(all, &[]),
            ["write    /r/f [0..20]", "write    /r/gg [5..10]"]
        );
        let apart = vec![write("f", 0, 10), write("f", 11, 10)];
        assert_eq!(batch(apart, &[]).len(), 2);
    }

    #[test]
    fn nothing_is_moved_across_a_truncation_or_a_name() {
        let cut = vec![
            write("f", 0, 10),
            change("f", ChangeOp::Truncate(0)),
            write("f", 0, 10),
        ];
        assert_eq!(batch(cut, &[]).len(), 3);
        let named = vec![
            write("f", 0, 10),
            change("h", ChangeOp::Delete),
            write("f", 0, 10),
        ];
        assert_eq!(batch(named, &[]).len(), 3);
    }

    #[test]
    fn a_skipped_tree_is_not_told_of() {
        let skip = [BytePath::new("/r/vault").unwrap()];
        let all = vec![write("vault", 0, 1), write("f", 0, 1)];
        assert_eq!(batch(all, &skip), ["write    /r/f [0..1]"]);
    }
}
