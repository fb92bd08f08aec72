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
        let _ = std::fs::remove_dir_all(&sample);
        std::fs::create_dir_all(&sample).unwrap();
        let (mut log, _) = LogWriter::open_sized(&sample, BatchSeq(0), 30_000).unwrap();
        for r in batches.iter().flatten() {
            log.append(r).unwrap();
        }
        log.sync().unwrap();
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
    let found = tree_of(catalog.view(BatchSeq(12)), &mut blocks);
    assert!(!found.is_empty());
    assert_eq!(found, chaos.model.tree());
}
