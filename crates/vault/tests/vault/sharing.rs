//! A mirror that shares the log's blocks on the disk, where the filesystem can.

use crate::common::*;
use crate::mirror::Bench;
use farwrite_core::{BatchSeq, NodeId};
use std::path::Path;

/// Blocks of a file, of 4096 bytes, that are another's too, by filefrag(8).
fn shared_blocks(file: &Path) -> u64 {
    let mut filefrag = std::process::Command::new("/usr/sbin/filefrag");
    let said = filefrag.args(["-s", "-v"]).arg(file).output().unwrap();
    assert!(said.status.success(), "{said:?}");
    let said = String::from_utf8(said.stdout).unwrap();
    let shared = said.lines().filter(|l| l.contains("shared"));
    // ext: logical..logical: physical..physical: length: ...
    let lengths = shared.map(|l| l.split(':').nth(3).unwrap().trim().parse::<u64>().unwrap());
    lengths.sum()
}

#[test]
fn where_files_can_share_extents_a_large_one_takes_its_space_once() {
    const MIB: u64 = 1 << 20;
    for mkfs in ["/sbin/mkfs.xfs", "/sbin/mkfs.btrfs"] {
        let disk = Disk::mount(&[mkfs, "-q"], 400 * MIB);
        let (mut maker, mut rng) = (Maker::new(), Rng(7));
        let mut bench = Bench::within(tempfile::tempdir_in(disk.at()).unwrap());
        let (whole, late) = (maker.node(), maker.node());
        let mut content = Vec::new();
        // In several batches, so that most of it is written before it has a name; and not up to the end of a page.
        for i in 0..16 {
            let block = rng.bytes(if i < 15 { 1 << 20 } else { 1_000_000 });
            let len = block.len() as u32;
            content.extend_from_slice(&block);
            let mut ops = vec![
                set(whole, file_meta(content.len() as u64, 1)),
                write(whole, i * MIB, 0, 0, len),
            ];
            if i == 15 {
                ops.push(link(NodeId::ROOT, "large", whole));
            }
            bench.feed(&[maker.batch(&ops, &[block])]);
        }
        let file = bench.tree().join("large");
        assert!(std::fs::read(&file).unwrap() == content, "{mkfs}");
        let stats = bench.mirror.stats();
        assert_eq!(stats.bytes_written, content.len() as u64);
        assert_eq!(stats.bytes_shared, content.len() as u64 / 4096 * 4096);
        let once = content.len() as u64 / 4096;
        assert_eq!(shared_blocks(&file), once, "{mkfs}");

        // What changes in the mirror changes nothing in the log: not a few bytes, not many, nor what goes.
        let few = rng.bytes(5000);
        let many = rng.bytes(3 << 20);
        content[777_777..782_777].copy_from_slice(&few);
        content[3 << 20..6 << 20].copy_from_slice(&many);
        let ops = [
            write(whole, 777_777, 0, 0, 5000),
            write(whole, 3 * MIB, 1, 0, 1 << 20),
            write(whole, 4 * MIB, 2, 0, 1 << 20),
            write(whole, 5 * MIB, 3, 0, 1 << 20),
            // A part of a block that is shared elsewhere, too, at another place of a page.
            set(late, file_meta(200_000, 1)),
            write(late, 0, 1, 100, 200_000),
            link(NodeId::ROOT, "late", late),
        ];
        let mut blocks = vec![few];
        blocks.extend(many.chunks(1 << 20).map(<[u8]>::to_vec));
        bench.feed(&[maker.batch(&ops, &blocks)]);
        let shared = bench.mirror.stats().bytes_shared - stats.bytes_shared;
        assert_eq!(shared, 3 * MIB, "{mkfs}");
        for _ in 0..2 {
            assert!(std::fs::read(&file).unwrap() == content, "{mkfs}");
            let late = std::fs::read(bench.tree().join("late")).unwrap();
            assert!(late == many[100..200_100], "{mkfs}");
            // From the log, which is read and checked.
            let catalog = &bench.catalog;
            bench.mirror.reconcile(catalog, BatchSeq(0)).unwrap();
        }
        assert_eq!(bench.mirror.stats().damaged, 0, "{mkfs}");
        std::fs::remove_file(&file).unwrap();
        bench.mirror.reconcile(&bench.catalog, bench.shown).unwrap();
        assert!(std::fs::read(&file).unwrap() == content, "{mkfs}");
        assert_eq!(bench.mirror.stats().damaged, 0, "{mkfs}");
    }
}
