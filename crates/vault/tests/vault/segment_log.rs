//! The segment log under crashes and damage.

use crate::common::{Maker, Rng, file_meta, link, set, write};
use farwrite_core::meta::Xattr;
use farwrite_core::{BatchSeq, Commit, Meta, NodeId, Op, Record};
use farwrite_vault::segment::*;
use std::path::Path;

fn small_batches(maker: &mut Maker, n: usize) -> Vec<Vec<Record>> {
    (0..n)
        .map(|i| {
            let node = maker.node();
            let body = format!("content of file {i}").into_bytes();
            let ops = [
                set(node, file_meta(body.len() as u64, i as i64)),
                link(NodeId::ROOT, format!("f{i}"), node),
                write(node, 0, 0, 0, body.len() as u32),
            ];
            maker.batch(&ops, &[body])
        })
        .collect()
}

fn open(dir: &Path, known: u64, segment_bytes: u64) -> (LogWriter, Recovered) {
    LogWriter::open_sized(dir, BatchSeq(known), segment_bytes).unwrap()
}

fn append(log: &mut LogWriter, record: &Record) {
    log.append(record).unwrap();
}

fn read_all(dir: &Path, end: Place) -> Vec<LoggedBatch> {
    let mut r = BatchReader::open(dir, None).unwrap();
    std::iter::from_fn(|| r.next_batch(end).unwrap()).collect()
}

#[test]
fn what_was_written_is_read_back_across_segments() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, r) = open(dir.path(), 0, 600);
    assert!(r.last.is_none() && r.end.is_none());
    let batches = small_batches(&mut Maker::new(), 20);
    for record in batches.iter().flatten() {
        log.append(record).unwrap();
    }
    assert_eq!(log.sync().unwrap(), BatchSeq(20));
    assert!(list_segments(dir.path()).unwrap().len() > 5);
    let back = read_all(dir.path(), log.committed_end());
    assert_eq!(back.len(), 20);
    for (i, b) in back.iter().enumerate() {
        assert_eq!((b.commit.seq, b.ops.len()), (BatchSeq(i as u64 + 1), 3));
        assert!(b.damage.is_empty());
        let bytes = BlockReader::new(dir.path())
            .read(b.blocks[0].place)
            .unwrap();
        assert_eq!(bytes, format!("content of file {i}").as_bytes());
    }
    drop(log);
    let (log, r) = open(dir.path(), 0, 600);
    assert_eq!(r.last.as_ref().map(|c| c.seq), Some(BatchSeq(20)));
    assert_eq!(r.dropped_bytes, 0);
    assert_eq!(log.last_commit().unwrap().seq, BatchSeq(20));
}

#[test]
fn what_is_appended_while_the_disk_is_waited_for_is_not_durable_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 0, u64::MAX);
    let batches = small_batches(&mut Maker::new(), 3);
    let begin = |log: &mut LogWriter, batch: usize| {
        batches[batch].iter().for_each(|r| append(log, r));
        log.begin_sync().unwrap().unwrap()
    };
    let first = begin(&mut log, 0);
    let first_end = log.committed_end();
    batches[1].iter().for_each(|r| append(&mut log, r));
    assert_eq!((first.commit().seq, first.end()), (BatchSeq(1), first_end));
    log.end_sync(&first, first.wait()).unwrap();
    let second = begin(&mut log, 2);
    assert_eq!(second.commit().seq, BatchSeq(3));
    // The disk has refused: nothing behind what is known to be there may be taken for durable.
    let refused = LogError::Io {
        what: "fsync",
        path: dir.path().to_owned(),
        source: std::io::Error::other("as if"),
    };
    assert!(log.end_sync(&second, Err(refused)).is_err());
    assert!(log.sync().is_err() && log.append(&batches[0][0]).is_err());
    drop(log);
    let (mut log, recovered) = open(dir.path(), 0, u64::MAX);
    assert_eq!(recovered.last.map(|c| c.seq), Some(BatchSeq(1)));
    assert_eq!(recovered.end, Some(first_end));
    batches[1].iter().for_each(|r| append(&mut log, r));
    assert_eq!(log.sync().unwrap(), BatchSeq(2));
    assert!(log.begin_sync().unwrap().is_none());
}

#[test]
fn a_log_cut_at_any_byte_keeps_every_whole_batch_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 0, u64::MAX);
    let mut maker = Maker::new();
    let batches = small_batches(&mut maker, 3);
    let mut ends = Vec::new();
    for b in &batches {
        b.iter().for_each(|r| append(&mut log, r));
        ends.push(log.committed_end().offset);
    }
    log.sync().unwrap();
    let whole = std::fs::read(segment_path(dir.path(), 1)).unwrap();
    for cut in 0..=whole.len() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(segment_path(dir.path(), 1), &whole[..cut]).unwrap();
        let (mut log, r) = open(dir.path(), 0, u64::MAX);
        let kept = ends.iter().filter(|e| **e <= cut as u64).count();
        assert_eq!(r.last.map_or(0, |c| c.seq.0), kept as u64, "cut at {cut}");
        for b in &batches[kept..] {
            b.iter().for_each(|r| append(&mut log, r));
        }
        assert_eq!(log.sync().unwrap(), BatchSeq(3));
        assert_eq!(
            std::fs::read(segment_path(dir.path(), 1)).unwrap(),
            whole,
            "cut at {cut}"
        );
    }
}

#[test]
fn a_flipped_bit_is_never_taken_for_data_and_the_rest_stays_readable() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 0, u64::MAX);
    for r in small_batches(&mut Maker::new(), 3).iter().flatten() {
        log.append(r).unwrap();
    }
    log.sync().unwrap();
    let end = log.committed_end();
    drop(log);
    let path = segment_path(dir.path(), 1);
    let whole = std::fs::read(&path).unwrap();
    let clean = read_all(dir.path(), end);
    let mut scan = Scan::open(dir.path(), 1).unwrap();
    let last_commit = std::iter::from_fn(|| scan.next_found().unwrap())
        .filter_map(|f| match f {
            Found::Record { place, .. } => Some(Damage {
                place,
                bytes: 0,
                seq: None,
                header: None,
                what: String::new(),
            }),
            Found::Damage(_) | Found::Pruned { .. } => None,
        })
        .last()
        .unwrap();
    for at in 64..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(&path, &bytes).unwrap();
        let (_, r) = open(dir.path(), 3, u64::MAX);
        let in_last_commit = at as u64 >= last_commit.place.offset;
        let last = r.last.map_or(0, |c| c.seq.0);
        assert!(
            last == 3 || (in_last_commit && last == 2),
            "byte {at}: {last}"
        );
        std::fs::write(&path, &bytes).unwrap();
        let mut reader = BlockReader::new(dir.path());
        for (b, c) in read_all(dir.path(), end).iter().zip(&clean) {
            if b.damage.is_empty() {
                assert_eq!(b.ops, c.ops, "byte {at}");
            }
            if let Some(Ok(bytes)) = b.blocks.first().map(|p| reader.read(p.place)) {
                assert_eq!(
                    bytes,
                    format!("content of file {}", b.commit.seq.0 - 1).as_bytes()
                );
            }
        }
    }
}

#[test]
fn a_torn_batch_in_front_of_a_whole_one_is_cut_unless_it_was_durable_once() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 0, u64::MAX);
    let batches = small_batches(&mut Maker::new(), 3);
    for r in batches[0].iter() {
        log.append(r).unwrap();
    }
    let torn = log.committed_end().offset as usize + 50;
    for r in batches[1..].iter().flatten() {
        log.append(r).unwrap();
    }
    log.sync().unwrap();
    drop(log);
    let path = segment_path(dir.path(), 1);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[torn] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let (_, r) = open(dir.path(), 2, u64::MAX);
    assert_eq!(
        r.last.unwrap().seq,
        BatchSeq(3),
        "batch 2 was durable: kept and named"
    );
    assert_eq!(r.damage.len(), 1);
    assert_eq!(r.damage[0].seq, Some(BatchSeq(2)));
    let (_, r) = open(dir.path(), 1, u64::MAX);
    assert_eq!(
        r.last.unwrap().seq,
        BatchSeq(1),
        "batch 2 was never durable"
    );
    let cut = std::fs::metadata(segment_path(dir.path(), 1))
        .unwrap()
        .len();
    let aside = std::fs::read(&r.set_aside[0]).unwrap();
    assert_eq!(aside, bytes[cut as usize..]);
}

/// The end of a batch that was durable is damaged: nobody but its source can say what was in it, if that still has it.
#[test]
fn what_was_known_and_cannot_be_read_any_more_is_kept_beside_the_log() {
    let batches = small_batches(&mut Maker::new(), 3);
    // In the last segment, and all of the last segment there is.
    for segment_bytes in [u64::MAX, 1] {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = open(dir.path(), 0, segment_bytes);
        for r in batches[..2].iter().flatten() {
            append(&mut log, r);
        }
        let before = log.committed_end();
        batches[2].iter().for_each(|r| append(&mut log, r));
        log.sync().unwrap();
        let known = (log.committed_end(), log.last_commit().unwrap().clone());
        drop(log);
        let path = segment_path(dir.path(), known.0.segment);
        let mut bytes = std::fs::read(&path).unwrap();
        // In the payload of the commit.
        let at = known.0.offset as usize - 20;
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let reopen = |known: Option<(Place, Commit)>| {
            LogWriter::open_sized(dir.path(), known, segment_bytes)
                .unwrap()
                .1
        };
        let r = reopen(Some(known.clone()));
        assert_eq!(r.last.as_ref().map(|c| c.seq), Some(BatchSeq(2)));
        assert_eq!(r.end, Some(before));
        let aside: Vec<_> = r
            .set_aside
            .iter()
            .map(|p| std::fs::read(p).unwrap())
            .collect();
        let cut = match before.segment == known.0.segment {
            true => before.offset as usize,
            false => 0,
        };
        assert!(aside == [&bytes[cut..]], "{:?}", r.set_aside);
        assert_eq!(r.lost, Some(BatchSeq(3)));
        // Once is enough.
        assert_eq!(reopen(Some(known.clone())).set_aside.len(), 0);
        // The same again, with other bytes: the first are kept.
        bytes[at] ^= 2;
        std::fs::write(&path, &bytes).unwrap();
        let again = reopen(Some(known.clone()));
        assert!(std::fs::read(&again.set_aside[0]).unwrap() == bytes[cut..]);
        assert!(std::fs::read(&r.set_aside[0]).unwrap() == aside[0]);
        // Of what has become zeros, or is gone, there is nothing to keep.
        for gone in [vec![0; bytes.len() - cut], Vec::new()] {
            std::fs::write(&path, [&bytes[..cut], &gone].concat()).unwrap();
            let r = reopen(Some(known.clone()));
            assert_eq!((r.end, r.lost), (Some(before), Some(BatchSeq(3))));
            assert_eq!(r.set_aside.len(), 0);
        }
        // A torn end that nobody had seen is no loss.
        std::fs::write(&path, &bytes[..at]).unwrap();
        let r = reopen(None);
        assert_eq!((r.end, r.lost), (Some(before), None));
        assert_eq!(r.set_aside.len(), 0);
    }
}

#[test]
fn what_is_known_of_a_log_is_not_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = segment_path(dir.path(), 1);
    let (mut log, _) = open(dir.path(), 0, u64::MAX);
    let batches = small_batches(&mut Maker::new(), 3);
    let mut seen = Vec::new();
    for b in &batches {
        b.iter().for_each(|r| append(&mut log, r));
        seen.push((log.committed_end(), log.last_commit().unwrap().clone()));
    }
    log.sync().unwrap();
    drop(log);
    let whole = std::fs::read(&path).unwrap();
    let open = |known: &(Place, Commit)| {
        LogWriter::open_sized(dir.path(), Some(known.clone()), u64::MAX).unwrap()
    };
    for (i, known) in seen.iter().enumerate() {
        for cut in known.0.offset as usize..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (mut log, r) = open(known);
            let kept = seen.iter().filter(|(p, _)| p.offset <= cut as u64).count();
            assert_eq!(r.last.unwrap().seq.0, kept as u64, "{i}, cut at {cut}");
            for b in &batches[kept..] {
                b.iter().for_each(|r| append(&mut log, r));
            }
            assert_eq!(log.sync().unwrap(), BatchSeq(3));
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
    }
    // A damaged byte of what is known is not come upon, one behind it is.
    let flip = |at: u64| {
        let mut bytes = whole.clone();
        bytes[at as usize] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
    };
    flip(seen[0].0.offset - 200);
    let damage = |known: &(Place, Commit)| open(known).1.damage.len();
    assert_eq!(damage(&seen[1]), 0);
    // Unless the log is another one than it was seen in, or the place is not where the batch ends.
    let mut other = seen[1].clone();
    other.1.chain[0] ^= 1;
    assert_eq!(damage(&other), 1);
    let mut elsewhere = seen[1].clone();
    elsewhere.0.offset -= 8;
    assert_eq!(damage(&elsewhere), 1);
    elsewhere.0.offset = u64::MAX;
    assert_eq!(damage(&elsewhere), 1);
    flip(seen[1].0.offset + 100);
    let (_, r) = open(&seen[1]);
    assert_eq!(
        r.last.unwrap().seq,
        BatchSeq(2),
        "the third was never durable"
    );
}

/// Content that compresses, and content that does not, in blocks of many sizes.
fn mixed_blocks(log: &mut LogWriter) -> Vec<Vec<u8>> {
    let (mut maker, mut rng) = (Maker::new(), Rng(5));
    let mut bodies = Vec::new();
    for batch in 0..6 {
        let bodies_now: Vec<Vec<u8>> = (0..12)
            .map(|i| match i % 4 {
                0 => rng.bytes(1 << 20),
                1 => vec![i as u8; 700_000],
                2 => rng.bytes(40 + i),
                _ => rng.bytes(90_000 + batch),
            })
            .collect();
        maker
            .batch(&[], &bodies_now)
            .iter()
            .for_each(|r| append(log, r));
        bodies.extend(bodies_now);
    }
    log.sync().unwrap();
    bodies
}

#[test]
fn blocks_read_together_are_those_read_one_by_one() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (mut log, _) = open(dir.path(), 0, 16 << 20);
    let bodies = mixed_blocks(&mut log);
    let blocks: Vec<(Place, u64)> = read_all(dir.path(), log.committed_end())
        .iter()
        .flat_map(|b| &b.blocks)
        .map(|b| (b.place, b.header.unwrap().total_bytes()))
        .collect();
    assert_eq!(blocks.len(), bodies.len());
    let segments = list_segments(dir.path()).unwrap();
    assert!(segments.len() > 1);
    let files: Vec<std::fs::File> = segments
        .iter()
        .map(|s| std::fs::File::open(segment_path(dir.path(), *s)).unwrap())
        .collect();
    let forget = || {
        for file in &files {
            file.sync_all().unwrap();
            farwrite_fs::forget_cached(file, 0, u64::MAX);
        }
    };
    let content = |record: bytes::Bytes| {
        let record = Record::from_bytes(&record).unwrap().unwrap();
        record.decode().unwrap().to_vec()
    };
    // All in order; every third; backwards; with sizes that are wrong; and with places where nothing is.
    let rest = |i: usize| blocks[i..].iter().copied();
    for way in 0..5 {
        forget();
        let mut read = SegmentFiles::new(dir.path());
        for i in 0..blocks.len() {
            let i = if way == 2 { blocks.len() - 1 - i } else { i };
            match way {
                1 => read.expect(rest(i).step_by(3)),
                3 => read.expect(rest(i).map(|(place, _)| (place, 1 << 18))),
                4 => {
                    let far = Place {
                        segment: blocks[i].0.segment,
                        offset: 1 << 40,
                    };
                    read.expect([(far, 1 << 20)].into_iter());
                }
                _ => read.expect(rest(i)),
            }
            let got = content(read.read_whole(blocks[i].0).unwrap());
            assert!(got == bodies[i], "way {way}, block {i}");
        }
    }
    // In order, what is read goes past the cache.
    forget();
    if farwrite_fs::overwrites_in_place(&files[0]) {
        let mut read = SegmentFiles::new(dir.path());
        read.expect(rest(0));
        read.read_whole(blocks[0].0).unwrap();
        // Nor is the page left that was looked for there.
        let begin = blocks[0].0.offset;
        for at in [0, 1 << 19, 4 << 20] {
            assert!(!farwrite_fs::is_cached(&files[0], begin + at), "{at}");
        }
    }
}

#[test]
fn a_reserve_is_filled_given_back_and_never_part_of_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 0, u64::MAX);
    let batches = small_batches(&mut Maker::new(), 4);
    let length = || {
        std::fs::metadata(segment_path(dir.path(), 1))
            .unwrap()
            .len()
    };
    let write = |log: &mut LogWriter, n: usize| {
        batches[n].iter().for_each(|r| append(log, r));
        log.sync().unwrap();
    };
    write(&mut log, 0);
    log.reserve().unwrap();
    let reserved = length();
    let end = log.committed_end().offset;
    let magic = rustix::fs::statfs(dir.path()).unwrap().f_type;
    if [0xef53, 0x5846_5342].contains(&magic) {
        assert_eq!(reserved, end + (128 << 10));
    } else {
        assert_eq!(reserved, end, "nothing is gained on this filesystem");
    }
    write(&mut log, 1);
    // Half a batch that is taken back, and a whole one.
    append(&mut log, &batches[2][0]);
    log.write_out().unwrap();
    log.abort_batch().unwrap();
    write(&mut log, 2);
    log.reserve().unwrap();
    let mut scan = Scan::open(dir.path(), 1).unwrap();
    let found: Vec<Found> = std::iter::from_fn(|| scan.next_found().unwrap()).collect();
    assert!(found.iter().all(|f| matches!(f, Found::Record { .. })));
    assert_eq!(scan.place(), log.committed_end());
    assert_eq!(scan.reserve(), length() - log.committed_end().offset);

    // As after a loss of power, and then in good order.
    drop(log);
    let (mut log, r) = open(dir.path(), 0, u64::MAX);
    assert_eq!((r.dropped_bytes, r.set_aside.len()), (0, 0));
    assert_eq!(r.last.unwrap().seq, BatchSeq(3));
    assert_eq!(length(), log.committed_end().offset);
    write(&mut log, 3);
    log.reserve().unwrap();
    let end = log.committed_end();
    log.drop_reserve().unwrap();
    assert_eq!(length(), end.offset);
    assert_eq!(read_all(dir.path(), end).len(), 4);
}

#[test]
fn a_closed_segment_has_no_reserve() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 0, 600);
    for batch in small_batches(&mut Maker::new(), 20) {
        batch.iter().for_each(|r| append(&mut log, r));
        log.sync().unwrap();
        log.reserve().unwrap();
    }
    let segments = list_segments(dir.path()).unwrap();
    assert!(segments.len() > 5);
    for s in &segments[..segments.len() - 1] {
        let mut scan = Scan::open(dir.path(), *s).unwrap();
        while let Some(found) = scan.next_found().unwrap() {
            assert!(matches!(found, Found::Record { .. }));
        }
        assert_eq!(scan.reserve(), 0);
    }
    assert_eq!(read_all(dir.path(), log.committed_end()).len(), 20);
}

/// What is written into a reserve comes to the disk page by page, in any order.
#[test]
fn a_batch_torn_in_the_reserve_is_cut_and_what_was_durable_stays() {
    const SECTOR: usize = 512;
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 0, u64::MAX);
    let mut maker = Maker::new();
    let mut batches = small_batches(&mut maker, 3);
    let body = Rng(7).bytes(6000);
    batches.push(maker.batch(&[], &[body]));
    batches[..3]
        .iter()
        .flatten()
        .for_each(|r| append(&mut log, r));
    log.sync().unwrap();
    let durable = log.committed_end().offset as usize;
    batches[3].iter().for_each(|r| append(&mut log, r));
    log.sync().unwrap();
    let whole = std::fs::read(segment_path(dir.path(), 1)).unwrap();
    let sectors = durable / SECTOR..whole.len().div_ceil(SECTOR);
    for arrived in 0..1u32 << sectors.len() {
        let mut bytes = whole[..durable].to_vec();
        bytes.resize(durable + RESERVE_BYTES as usize, 0);
        for (i, sector) in sectors.clone().enumerate() {
            let range = (sector * SECTOR).max(durable)..((sector + 1) * SECTOR).min(whole.len());
            if arrived & 1 << i != 0 {
                bytes[range.clone()].copy_from_slice(&whole[range]);
            }
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(segment_path(dir.path(), 1), &bytes).unwrap();
        let (mut log, r) = open(dir.path(), 0, u64::MAX);
        let last = r.last.unwrap().seq.0;
        let all = bytes[..whole.len()] == whole[..];
        assert_eq!(last, 3 + u64::from(all), "sectors {arrived:b}");
        if !all {
            batches[3].iter().for_each(|r| append(&mut log, r));
        }
        assert_eq!(log.sync().unwrap(), BatchSeq(4));
        let now = std::fs::read(segment_path(dir.path(), 1)).unwrap();
        assert!(now == whole, "sectors {arrived:b}");
    }
}

#[test]
fn more_zeros_than_a_reserve_are_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 0, u64::MAX);
    small_batches(&mut Maker::new(), 2)
        .iter()
        .flatten()
        .for_each(|r| append(&mut log, r));
    log.sync().unwrap();
    let end = log.committed_end().offset;
    let file = std::fs::File::options()
        .write(true)
        .open(segment_path(dir.path(), 1))
        .unwrap();
    for (more, damaged) in [(RESERVE_BYTES, 0), (RESERVE_BYTES + 8, 1)] {
        file.set_len(end + more).unwrap();
        let mut scan = Scan::open(dir.path(), 1).unwrap();
        let found = std::iter::from_fn(|| scan.next_found().unwrap());
        let damage = found.filter(|f| matches!(f, Found::Damage(_))).count();
        assert_eq!(damage, damaged, "{more}");
    }
}

#[test]
fn a_batch_that_lies_about_itself_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 0, u64::MAX);
    let mut maker = Maker::new();
    let good = small_batches(&mut maker, 2);
    good[0].iter().for_each(|r| append(&mut log, r));
    log.sync().unwrap();
    let before = std::fs::read(segment_path(dir.path(), 1)).unwrap();

    // A record left out, one twice, the next batch's, another kind.
    assert!(matches!(
        log.append(&good[0][0]),
        Err(LogError::Sequence { .. })
    ));
    log.append(&good[1][0]).unwrap();
    assert!(matches!(
        log.append(&good[1][2]),
        Err(LogError::Count { .. })
    ));
    log.append(&good[1][0]).unwrap();
    log.append(&good[1][0]).unwrap();
    log.append(&good[1][1]).unwrap();
    assert!(log.append(&good[1][2]).is_err());
    let foreign = Maker {
        chain: [9; 32],
        seq: BatchSeq(1),
        ..Maker::new()
    }
    .batch(&[], &[]);
    assert!(matches!(
        log.append(&foreign[0]),
        Err(LogError::Chain { .. })
    ));
    let hostile = Maker {
        chain: maker.chain,
        seq: BatchSeq(1),
        ..Maker::new()
    }
    .batch(
        &[Op::Hole {
            node: NodeId(2),
            offset: u64::MAX,
            len: 9,
        }],
        &[],
    );
    assert!(matches!(log.append(&hostile[0]), Err(LogError::Op { .. })));
    let no_block = Maker {
        seq: BatchSeq(1),
        ..Maker::new()
    }
    .batch(&[write(NodeId(2), 0, 3, 0, 1)], &[]);
    log.append(&no_block[0]).unwrap();
    assert!(matches!(log.append(&no_block[1]), Err(LogError::Op { .. })));
    log.sync().unwrap();
    assert_eq!(std::fs::read(segment_path(dir.path(), 1)).unwrap(), before);

    good[1].iter().for_each(|r| append(&mut log, r));
    assert_eq!(log.sync().unwrap(), BatchSeq(2));
}

/// Many attributes without a value are few bytes in the log, all the fewer as it is compressed.
#[test]
fn what_is_small_in_the_log_is_not_large_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 0, u64::MAX);
    let with = |xattrs: Vec<Xattr>| {
        let meta = Meta {
            xattrs,
            ..file_meta(0, 1)
        };
        set(NodeId(2), meta)
    };
    let empty = |name: Vec<u8>| Xattr {
        name,
        value: Vec::new(),
    };
    // The same name again and again; more names than a kernel lists; and not in their order.
    let same = vec![empty(b"a".to_vec()); 40_000];
    let wrong = vec![empty(b"b".to_vec()), empty(b"a".to_vec())];
    let names = (0..u16::MAX).map(|i| empty([&b"x"[..], format!("{i:05}").as_bytes()].concat()));
    let names: Vec<Xattr> = names.collect();
    for hostile in [same, wrong, names.clone()] {
        let batch = Maker::new().batch(&[with(hostile)], &[]);
        assert!(matches!(log.append(&batch[0]), Err(LogError::Op { .. })));
    }
    // As many as there may be, in one node after the other: each 72 KB raw, and 720 KB more in memory.
    let most = with(names[..9_000].to_vec());
    let batch = Maker::new().batch(std::slice::from_ref(&most), &[]);
    let taken = (0..2_000).take_while(|_| log.append(&batch[0]).is_ok());
    let taken = taken.count();
    assert!((500..1_000).contains(&taken), "{taken}");

    // Whoever applies them takes no more at once than one batch too many.
    let mut maker = Maker::new();
    for _ in 0..6 {
        let batch = maker.batch(&vec![most.clone(); 40], &[]);
        batch.iter().for_each(|r| append(&mut log, r));
    }
    log.sync().unwrap();
    let mut reader = BatchReader::open(dir.path(), None).unwrap();
    let end = log.committed_end();
    let steps = std::iter::from_fn(|| {
        let batches = reader.next_batches(end, 32, usize::MAX).unwrap();
        Some(batches.len()).filter(|n| *n > 0)
    });
    assert_eq!(steps.collect::<Vec<_>>(), [3, 3]);
}

#[test]
fn large_raw_payloads_are_aligned_and_an_aborted_batch_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 0, u64::MAX);
    let mut maker = Maker::new();
    let mut rng = Rng(3);
    // A small batch that is not in the file yet when a large one is given up.
    let small = maker.batch(&[], &[vec![1; 100]]);
    small.iter().for_each(|r| append(&mut log, r));
    let blocks: Vec<Vec<u8>> = (0..5).map(|i| rng.bytes(64 * 1024 + i * 7)).collect();
    let records = maker.batch(&[], &blocks);
    for r in &records[..3] {
        log.append(r).unwrap();
    }
    log.abort_batch().unwrap();
    let places: Vec<Place> = records.iter().map(|r| log.append(r).unwrap()).collect();
    assert!(
        places[..5].iter().all(|p| (p.offset + 48) % 4096 == 0),
        "{places:?}"
    );
    log.sync().unwrap();
    let read = read_all(dir.path(), log.committed_end());
    assert_eq!(read.len(), 2);
    let place = read[0].blocks[0].place;
    let first = BlockReader::new(dir.path()).read(place).unwrap();
    assert_eq!(first, vec![1; 100]);
    let b = &read[1];
    for (i, p) in b.blocks.iter().enumerate() {
        assert_eq!(
            BlockReader::new(dir.path()).read(p.place).unwrap(),
            blocks[i]
        );
    }
}

/// The apply thread takes a bounded number of batches, and by the time it comes back more are durable: the reader must not
/// stay at the limit of before, and not step over what lies behind it.
#[test]
fn a_limit_that_moves_on_before_it_was_reached_loses_nothing() {
    for segment_bytes in [u64::MAX, 600] {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = open(dir.path(), 0, segment_bytes);
        let mut limits = Vec::new();
        for batch in small_batches(&mut Maker::new(), 30) {
            batch.iter().for_each(|r| append(&mut log, r));
            log.sync().unwrap();
            limits.push(log.committed_end());
        }
        let mut reader = BatchReader::open(dir.path(), None).unwrap();
        for (i, _) in limits.iter().enumerate() {
            // Always a few batches ahead of what is read.
            let limit = limits[(i + 1 + i % 4).min(limits.len() - 1)];
            let batch = reader.next_batch(limit).unwrap();
            let batch = batch.unwrap_or_else(|| panic!("batch {} is there", i + 1));
            assert_eq!(batch.commit.seq, BatchSeq(i as u64 + 1));
            assert_eq!(batch.damage, Vec::<String>::new());
        }
        let end = log.committed_end();
        assert!(reader.next_batch(end).unwrap().is_none());
    }
}
