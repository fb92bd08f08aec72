//! Directory handles on real trees.

use farwrite_core::meta::Xattr;
use farwrite_core::{Kind, Name, Timestamp};
use farwrite_fs::{
    Dir, OpenMode, Segment, Segments, apply_meta, apply_meta_fd, mode_to_create, read_meta,
};
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};

fn name(s: &str) -> Name {
    Name::new(s).unwrap()
}

#[test]
fn attributes_survive_a_round_trip() {
    let t = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let d = Dir::open(t.path()).unwrap();
    for n in ["a", "b"] {
        d.open_file(&name(n), OpenMode::CreateNew(0o600)).unwrap();
    }
    d.mkdir(&name("dir"), 0o700).unwrap();
    d.symlink(&name("link"), b"nowhere").unwrap();
    d.mknod(&name("fifo"), Kind::Fifo, 0o600, 0).unwrap();
    for n in ["a", "dir", "link", "fifo"] {
        let st = d.stat(&name(n)).unwrap();
        let mut m = read_meta(&d, &name(n), &st).unwrap();
        m.mtime = Timestamp {
            sec: -5,
            nsec: 123_456_789,
        };
        if m.kind != Kind::Symlink {
            m.mode = if m.kind == Kind::Dir { 0o1755 } else { 0o4711 };
        }
        (m.uid, m.gid) = (1234, 4321);
        if matches!(m.kind, Kind::File | Kind::Dir) {
            m.xattrs = vec![
                Xattr {
                    name: b"security.capability".to_vec(),
                    value: vec![1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                },
                Xattr {
                    name: b"trusted.t".to_vec(),
                    value: vec![0, 255],
                },
                Xattr {
                    name: b"user.long".to_vec(),
                    value: vec![7; 2000],
                },
            ];
            m.xattrs.drain(..usize::from(m.kind == Kind::Dir));
        }
        let skipped = apply_meta(&d, Some(&name(n)), &m).unwrap();
        assert!(!skipped.any(), "{n}: {skipped:?} (this test needs root)");
        let st = d.stat(&name(n)).unwrap();
        assert_eq!(read_meta(&d, &name(n), &st).unwrap(), m, "{n}");
        if m.kind == Kind::File {
            let f = d.open_file(&name("b"), OpenMode::ReadWrite).unwrap();
            assert!(!apply_meta_fd(&f, &m, true).unwrap().any());
            let st = d.stat(&name("b")).unwrap();
            assert_eq!(read_meta(&d, &name("b"), &st).unwrap(), m);
            // Made with the mode that it will have only if nothing else says who may read it.
            assert_eq!(mode_to_create(&m, false), 0o600);
            m.xattrs.clear();
            let ours = (m.uid, m.gid) == (0, 0);
            let mode = if ours { m.mode & 0o777 } else { 0o600 };
            assert_eq!(mode_to_create(&m, false), mode);
            assert_eq!(mode_to_create(&m, true), 0o600);
            apply_meta_fd(&f, &m, false).unwrap();
            assert_eq!(
                read_meta(&d, &name("b"), &d.stat(&name("b")).unwrap()).unwrap(),
                m
            );
        }
    }
}

#[test]
fn no_symbolic_link_is_followed() {
    let t = tempfile::tempdir().unwrap();
    std::fs::create_dir(t.path().join("out")).unwrap();
    std::fs::write(t.path().join("out/f"), "x").unwrap();
    std::fs::create_dir(t.path().join("in")).unwrap();
    symlink("../out", t.path().join("in/l")).unwrap();
    symlink("../out/f", t.path().join("in/lf")).unwrap();
    let d = Dir::open(&t.path().join("in")).unwrap();
    assert!(d.open_dir(&name("l")).is_err());
    assert!(d.open_beneath(&[name("l"), name("f")]).is_err());
    assert!(d.open_file(&name("lf"), OpenMode::ReadWrite).is_err());
    assert!(
        d.open_file(&name("lf"), OpenMode::CreateNew(0o600))
            .is_err()
    );
    d.remove_tree(&name("l")).unwrap();
    assert!(t.path().join("out/f").exists());
    std::fs::create_dir(t.path().join("in/d")).unwrap();
    symlink("../../out", t.path().join("in/d/l")).unwrap();
    let r = d.remove_tree(&name("d")).unwrap();
    assert_eq!((r.dirs, r.others), (1, 1));
    assert!(t.path().join("out/f").exists());
}

#[test]
fn trees_deeper_than_path_max_are_walked_and_removed() {
    let t = tempfile::tempdir().unwrap();
    let top = Dir::open(t.path()).unwrap();
    let n = name(&"d".repeat(200));
    let mut at = top.try_clone().unwrap();
    for _ in 0..40 {
        at.mkdir(&n, 0o755).unwrap();
        at = at.open_dir(&n).unwrap();
    }
    at.open_file(&name("leaf"), OpenMode::CreateNew(0o644))
        .unwrap()
        .write_all(b"deep")
        .unwrap();
    let again = top.open_beneath(&vec![n.clone(); 40]).unwrap();
    assert_eq!(again.list().unwrap().len(), 1);
    let r = top.remove_tree(&n).unwrap();
    assert_eq!((r.dirs, r.others), (40, 1));
    assert_eq!(top.list().unwrap().len(), 0);
}

#[test]
fn holes_are_told_from_data() {
    let t = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let d = Dir::open(t.path()).unwrap();
    let f = d.open_file(&name("s"), OpenMode::CreateNew(0o644)).unwrap();
    f.set_len(1 << 20).unwrap();
    f.write_all_at(&[1; 4096], 64 << 10).unwrap();
    let runs = [
        (0, 64 << 10, true),
        (64 << 10, 4 << 10, false),
        (68 << 10, 956 << 10, true),
    ];
    let mut front_to_back = Segments::new(&f, 1 << 20);
    for (offset, len, hole) in runs {
        let run = Segment { offset, len, hole };
        assert_eq!(front_to_back.next_from(offset).unwrap(), Some(run));
        // In the middle of a run: the rest of it, whether the run is known or not.
        let rest = Segment {
            offset: offset + 4096 * u64::from(hole),
            len: len - 4096 * u64::from(hole),
            hole,
        };
        assert_eq!(front_to_back.next_from(rest.offset).unwrap(), Some(rest));
        let mut anew = Segments::new(&f, 1 << 20);
        assert_eq!(anew.next_from(rest.offset).unwrap(), Some(rest));
    }
    assert_eq!(front_to_back.next_from(1 << 20).unwrap(), None);
}

#[test]
fn a_range_of_one_file_becomes_a_range_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..300_000u32).map(|i| (i * 7 + i / 256) as u8).collect();
    std::fs::write(dir.path().join("from"), &bytes).unwrap();
    std::fs::write(dir.path().join("to"), vec![1; 200_000]).unwrap();
    let from = std::fs::File::open(dir.path().join("from")).unwrap();
    let open = std::fs::File::options()
        .write(true)
        .open(dir.path().join("to"));
    let to = open.unwrap();
    let share = |at, to_at, len| farwrite_fs::share_range((&from, at), (&to, to_at), len).unwrap();
    assert_eq!(share(4096, 8192, 100_000), 100_000);
    // As far as there is something.
    assert_eq!(share(299_000, 199_500, 4096), 1000);
    assert_eq!(share(300_000, 0, 4096), 0);
    let mut expected = vec![1; 200_500];
    expected[8192..108_192].copy_from_slice(&bytes[4096..104_096]);
    expected[199_500..].copy_from_slice(&bytes[299_000..]);
    assert!(std::fs::read(dir.path().join("to")).unwrap() == expected);
}
