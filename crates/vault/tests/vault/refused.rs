//! What the filesystem of a mirror cannot hold is left out and counted, and stops nothing.

use crate::common::*;
use crate::mirror::Bench;
use farwrite_core::NodeId;
use farwrite_core::meta::Xattr;
use farwrite_fs::list_file_xattrs;

#[test]
fn attributes_that_do_not_fit_are_left_out() {
    // ext4 has one block for all attributes of a file, and says that the disk is full. XFS, say, has room for more.
    let disk = Disk::mount(&["/sbin/mkfs.ext4", "-q", "-F", "-b", "4096"], 64 << 20);
    let mut bench = Bench::within(tempfile::tempdir_in(disk.at()).unwrap());
    let mut maker = Maker::new();
    let (file, dir, next) = (maker.node(), maker.node(), maker.node());
    let many = || {
        let names = [&b"user.a"[..], b"user.b", b"user.c"];
        let attribute = |name: &&[u8]| Xattr {
            name: name.to_vec(),
            value: vec![7; 1500],
        };
        names.iter().map(attribute).collect::<Vec<_>>()
    };
    let (mut of_file, mut of_dir) = (file_meta(5, 1), dir_meta(1));
    (of_file.xattrs, of_dir.xattrs) = (many(), many());
    let ops = [
        set(file, of_file.clone()),
        write(file, 0, 0, 0, 5),
        link(NodeId::ROOT, "file", file),
        set(dir, of_dir),
        link(NodeId::ROOT, "dir", dir),
    ];
    bench.feed(&[maker.batch(&ops, &[b"bytes".to_vec()])]);
    let stands = |bench: &Bench, what: &str| {
        let path = bench.tree().join(what);
        let there = list_file_xattrs(std::fs::File::open(path).unwrap()).unwrap();
        assert!(there == many()[..2], "{what}");
    };
    stands(&bench, "file");
    stands(&bench, "dir");
    assert_eq!(bench.mirror.stats().skipped.xattrs, 2);
    // Again, when the file is there already; and what comes after it.
    of_file.size = 4;
    let ops = [
        set(file, of_file),
        set(next, file_meta(0, 1)),
        link(NodeId::ROOT, "next", next),
    ];
    bench.feed(&[maker.batch(&ops, &[])]);
    stands(&bench, "file");
    assert_eq!(std::fs::read(bench.tree().join("file")).unwrap(), b"byte");
    assert_eq!(std::fs::read(bench.tree().join("next")).unwrap(), b"");
}
