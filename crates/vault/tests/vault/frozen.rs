//! A log of every released format stays readable. `FARWRITE_WRITE_SAMPLES=1` writes the sample of the present format anew,
//! which is right only before its release.

use crate::catalog::tree_of;
use crate::common::model::Chaos;
use farwrite_core::BatchSeq;
use farwrite_vault::catalog::Catalog;
use farwrite_vault::segment::*;
use std::path::Path;

#[test]
fn the_sample_of_format_1_reads_as_it_was_written() {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/format-v1");
    let mut chaos = Chaos::new(1);
    let batches: Vec<_> = (0..12).map(|_| chaos.batch()).collect();
    if std::env::var_os("FARWRITE_WRITE_SAMPLES").is_some() {
        std::fs::create_dir_all(&sample).unwrap();
        for segment in list_segments(&sample).unwrap() {
            std::fs::remove_file(segment_path(&sample, segment)).unwrap();
        }
        let (mut log, _) = LogWriter::open_sized(&sample, BatchSeq(0), 30_000).unwrap();
        for r in batches.iter().flatten() {
            log.append(r).unwrap();
        }
        log.sync().unwrap();
        let path = sample.join("catalog.db");
        let _ = std::fs::remove_file(&path);
        let mut catalog = Catalog::open(&path, log.last_commit()).unwrap();
        catalog.replay(&sample, log.committed_end()).unwrap();
        catalog.close().unwrap();
    }
    let work = tempfile::tempdir().unwrap();
    for segment in list_segments(&sample).unwrap() {
        let name = segment_path(Path::new(""), segment);
        std::fs::copy(sample.join(&name), work.path().join(&name)).unwrap();
    }
    let (log, recovered) = LogWriter::open(work.path(), BatchSeq(0)).unwrap();
    assert_eq!(recovered.dropped_bytes, 0);
    let mut catalog = Catalog::open(&work.path().join("catalog.db"), log.last_commit()).unwrap();
    catalog.replay(work.path(), log.committed_end()).unwrap();
    let mut blocks = BlockReader::new(work.path());
    let expected = chaos.model.tree();
    let found = tree_of(catalog.view(BatchSeq(12)), &mut blocks);
    assert!(!found.is_empty());
    assert_eq!(found, expected);

    // The catalog of that time is read as it is, not made anew.
    let path = work.path().join("frozen.db");
    std::fs::copy(sample.join("catalog.db"), &path).unwrap();
    let frozen = Catalog::open(&path, log.last_commit()).unwrap();
    assert_eq!(frozen.set_aside(), None);
    assert_eq!(frozen.applied(), BatchSeq(12));
    assert_eq!(tree_of(frozen.view(BatchSeq(12)), &mut blocks), expected);
}
