//! A journal of format version 1 as it was written then must be read for ever.
//! `FARWRITE_WRITE_SAMPLES=1` makes the sample anew: only for a new version.

use farwrite_core::{BytePath, Change, ChangeOp, ChangeSeq, Extent, FileId, Name, Timestamp};
use farwrite_schedule::Journal;
use std::fs;
use std::path::Path;

fn messages() -> Vec<Change> {
    let id = |ino| FileId { dev: 66, ino };
    let ops = [
        ChangeOp::Create,
        ChangeOp::Delete,
        ChangeOp::Rename {
            to_path: BytePath::new("/srv/new").expect("valid"),
            to_dir: id(3),
            to_name: Name::new("new").expect("valid"),
        },
        ChangeOp::Write(None),
        ChangeOp::Write(Some(Extent::new(4096, 100))),
        ChangeOp::Truncate(7),
        ChangeOp::Attrib,
        ChangeOp::Subtree,
        ChangeOp::Overflow,
    ];
    let change = |(i, op): (usize, ChangeOp)| Change {
        time: Timestamp {
            sec: 1_790_000_000,
            nsec: i as u32,
        },
        path: BytePath::new(b"/srv/\xff").expect("valid"),
        dir: id(2),
        name: Some(Name::new(b"\xff").expect("valid")),
        file: (i % 2 == 0).then_some(id(9)),
        op,
    };
    ops.into_iter().enumerate().map(change).collect()
}

#[test]
fn the_journal_of_version_1_is_read() {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/format-v1/journal");
    if std::env::var_os("FARWRITE_WRITE_SAMPLES").is_some() {
        fs::remove_dir_all(&sample).ok();
        let (mut journal, _) = Journal::open(&sample).expect("made");
        journal.append(&messages()).expect("written");
        journal.set_checkpoint(ChangeSeq(2)).expect("set");
        journal.note_checkpoint().expect("written");
    }
    // Opening writes: on a copy.
    let copy = tempfile::tempdir().expect("a directory");
    for e in fs::read_dir(&sample)
        .expect("the sample is there")
        .flatten()
    {
        fs::copy(e.path(), copy.path().join(e.file_name())).expect("copied");
    }
    let (journal, found) = Journal::open(copy.path()).expect("opens");
    assert!(found.damaged.is_empty());
    let all: Vec<_> = (1..).map(ChangeSeq).zip(messages()).collect();
    assert_eq!(found.pending, all[2..]);
    assert_eq!(journal.stats().checkpoint, ChangeSeq(2));
    assert_eq!(journal.stats().last, ChangeSeq(9));
}
