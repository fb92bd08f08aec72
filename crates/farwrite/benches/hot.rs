//! The parts that every change goes through, by themselves: `cargo bench -p farwrite`. What a whole change costs is measured by
//! `make bench` and counted by `make bench-quick`.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use farwrite_capture::WatchRoot;
use farwrite_core::exclude::Excludes;
use farwrite_core::record::{Record, RecordKind};
use farwrite_core::{
    BackupCommand, BatchSeq, BytePath, Change, ChangeOp, ChangeSeq, Extent, FileId, Name,
    SystemClock, Timestamp,
};
use farwrite_schedule::{DirtySet, Journal};
use farwrite_testkit::Chance;
use farwrite_transfer::backup::{BackupUnit, Index, RecordSink, RootSpec, SinkClosed};
use farwrite_vault::catalog::Catalog;
use farwrite_vault::segment::LogWriter;
use std::hint::black_box;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::{fs, io::Write};

/// Takes what the backup unit sends.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<Record>>>);

impl RecordSink for Sink {
    fn send(&mut self, record: Record) -> Result<(), SinkClosed> {
        self.0.lock().unwrap().push(record);
        Ok(())
    }
}

fn place() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn byte_path(p: &Path) -> BytePath {
    BytePath::try_from(p).unwrap()
}

fn id_of(p: &Path) -> FileId {
    let m = fs::symlink_metadata(p).unwrap();
    FileId {
        dev: m.dev(),
        ino: m.ino(),
    }
}

fn change(root: &Path, name: &str, op: ChangeOp) -> Change {
    Change {
        time: Timestamp::from(std::time::SystemTime::now()),
        path: byte_path(&root.join(name)),
        dir: id_of(root),
        name: Name::new(name.as_bytes()).ok(),
        file: None,
        op,
    }
}

/// A tree, the backup unit over it and what it has sent.
struct Source {
    root: std::path::PathBuf,
    unit: BackupUnit,
    sink: Sink,
    dirty: DirtySet,
    seq: u64,
    _place: tempfile::TempDir,
}

impl Source {
    fn new(fill: impl FnOnce(&Path)) -> Source {
        let place = place();
        let root = place.path().canonicalize().unwrap().join("src");
        fs::create_dir(&root).unwrap();
        fill(&root);
        let path = byte_path(&root);
        let spec = RootSpec {
            slot: 1,
            excludes: Excludes::new(path.clone(), &[], vec![]).unwrap(),
            path: path.clone(),
        };
        let sink = Sink::default();
        let index = Index::open(&place.path().join("index.db"), 16 << 20).unwrap();
        let clock = Arc::new(SystemClock::default());
        let unit = BackupUnit::new(index, vec![spec], Box::new(sink.clone()), clock).unwrap();
        let dirty = DirtySet::new(200_000, vec![(id_of(&root), path)]);
        let mut source = Source {
            root,
            unit,
            sink,
            dirty,
            seq: 0,
            _place: place,
        };
        let mut whole = change(&source.root, "x", ChangeOp::Subtree);
        (whole.path, whole.name) = (byte_path(&source.root), None);
        source.tell(&whole);
        source.carry_out();
        source
    }

    fn tell(&mut self, c: &Change) {
        self.seq += 1;
        self.dirty.insert(ChangeSeq(self.seq), c);
        self.dirty.note_drained();
    }

    fn commands(&mut self) -> Vec<BackupCommand> {
        self.dirty.take(4096, None).commands
    }

    fn carry_out(&mut self) {
        while !self.dirty.is_empty() {
            let commands = self.commands();
            let report = self.unit.execute(commands, &mut || true).unwrap();
            for (c, after) in report.put_back {
                self.dirty.put_back(c, after);
            }
            self.dirty.note_drained();
        }
    }
}

fn records(c: &mut Criterion) {
    let mut chance = Chance::new(1);
    let noise: Vec<u8> = (0..1 << 20).map(|_| chance.below(256) as u8).collect();
    let text: Vec<u8> = (0..1 << 20).map(|i| b"fn main() { }\n"[i % 14]).collect();
    let mut group = c.benchmark_group("record");
    group.throughput(Throughput::Bytes(1 << 20));
    for (what, bytes) in [("noise", &noise), ("text", &text)] {
        group.bench_function(format!("encode 1 MiB of {what}"), |b| {
            b.iter_batched(
                || bytes.clone(),
                |raw| Record::new(RecordKind::Block, BatchSeq(1), raw),
                BatchSize::LargeInput,
            );
        });
        let mut sent = Vec::new();
        Record::new(RecordKind::Block, BatchSeq(1), bytes.clone()).write_to(&mut sent);
        let sent = bytes::Bytes::from(sent);
        group.bench_function(format!("decode 1 MiB of {what}"), |b| {
            b.iter(|| {
                Record::from_bytes(&sent)
                    .unwrap()
                    .unwrap()
                    .decode()
                    .unwrap()
            });
        });
    }
    group.finish();
}

fn dirty_set(c: &mut Criterion) {
    let place = place();
    let root = place.path().canonicalize().unwrap();
    let changes: Vec<Change> = (0..10_000)
        .map(|i| {
            let e = Extent::new(i % 100 * 4096, 4096);
            change(&root, &format!("f{}", i % 2000), ChangeOp::Write(Some(e)))
        })
        .collect();
    let mut group = c.benchmark_group("dirty set");
    group.throughput(Throughput::Elements(changes.len() as u64));
    group.bench_function("10,000 writes to 2,000 files", |b| {
        b.iter_batched(
            || DirtySet::new(200_000, vec![(id_of(&root), byte_path(&root))]),
            |mut set| {
                for (i, c) in changes.iter().enumerate() {
                    set.insert(ChangeSeq(i as u64 + 1), c);
                }
                black_box(set.take(4096, None));
                set
            },
            BatchSize::LargeInput,
        );
    });
    group.bench_function("the same into the journal", |b| {
        let (mut journal, _) = Journal::open(&place.path().join("journal")).unwrap();
        b.iter(|| journal.append(&changes).unwrap());
    });
    group.finish();
}

fn delta(c: &mut Criterion) {
    let mut source = Source::new(|root| {
        let mut f = fs::File::create(root.join("large")).unwrap();
        let mut chance = Chance::new(2);
        for _ in 0..64 {
            let part: Vec<u8> = (0..1 << 20).map(|_| chance.below(256) as u8).collect();
            f.write_all(&part).unwrap();
        }
    });
    let mut group = c.benchmark_group("delta");
    let mut n = 0u64;
    for (what, extent) in [
        ("compared", None),
        ("told", Some(Extent::new(1 << 20, 4096))),
    ] {
        group.bench_function(format!("4 KiB of 64 MiB, {what}"), |b| {
            b.iter(|| {
                n += 1;
                let file = fs::File::options()
                    .write(true)
                    .open(source.root.join("large"))
                    .unwrap();
                let bytes = n.to_le_bytes().repeat(512);
                file.write_all_at(&bytes, 1 << 20).unwrap();
                let told = change(&source.root, "large", ChangeOp::Write(extent));
                source.tell(&told);
                source.carry_out();
                source.sink.0.lock().unwrap().clear();
            });
        });
    }
    group.finish();
}

fn vault(c: &mut Criterion) {
    let source = Source::new(|root| {
        for i in 0..5000 {
            fs::write(root.join(format!("f{i}")), format!("{i}").repeat(300)).unwrap();
        }
    });
    let records = source.sink.0.lock().unwrap().clone();
    let bytes: u64 = records.iter().map(|r| r.header.total_bytes()).sum();
    let mut group = c.benchmark_group("vault");
    group.sample_size(20);
    group.throughput(Throughput::Bytes(bytes));
    let append = |dir: &Path| {
        let (mut log, _) = LogWriter::open(dir, BatchSeq(0)).unwrap();
        for r in &records {
            log.append(r).unwrap();
        }
        log.sync().unwrap();
        log
    };
    group.bench_function("segment append and sync, 5,000 small files", |b| {
        b.iter_batched(place, |p| (append(p.path()), p), BatchSize::PerIteration);
    });
    group.throughput(Throughput::Elements(5000));
    group.bench_function("catalog apply, 5,000 small files", |b| {
        b.iter_batched(
            || {
                let p = place();
                let dir = p.path().join("log");
                fs::create_dir(&dir).unwrap();
                let end = append(&dir).committed_end();
                let catalog = Catalog::open(&p.path().join("catalog.db"), None).unwrap();
                (p, dir, end, catalog)
            },
            |(p, dir, end, mut catalog)| {
                catalog.replay(&dir, end).unwrap();
                (p, catalog)
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// Records of the kernel sensors, as uapi/farwrite.h draws them: writes of 4 KiB to 200 files by turns, and every tenth a new file.
fn kernel_records(count: u64) -> Vec<u8> {
    let mut all = Vec::new();
    for i in 0..count {
        let (op, path) = match i % 10 {
            0 => (1u16, format!("folder-{}/new-{i}", i % 7)),
            _ => (5u16, format!("folder-{}/file-{}", i % 7, i % 200)),
        };
        let size = (112 + path.len()).next_multiple_of(8);
        let mut record = vec![0u8; size];
        let mut put = |at: usize, bytes: &[u8]| record[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(size as u32).to_ne_bytes());
        put(4, &1u16.to_ne_bytes());
        put(6, &op.to_ne_bytes());
        put(16, &(1_700_000_000_000_000_000 + i).to_ne_bytes());
        put(24, &(1000 + i % 200).to_ne_bytes());
        put(32, &(10 + i % 7).to_ne_bytes());
        put(48, &(i / 200 * 8192).to_ne_bytes());
        put(56, &4096u64.to_ne_bytes());
        put(98, &(path.len() as u16).to_ne_bytes());
        put(112, path.as_bytes());
        all.extend(record);
    }
    all
}

fn ring(c: &mut Criterion) {
    let place = place();
    let root = WatchRoot::lookup(byte_path(place.path())).unwrap();
    let records = kernel_records(10_000);
    let mut group = c.benchmark_group("ring");
    group.throughput(Throughput::Elements(10_000));
    group.bench_function("drain, 10,000 records of the kernel sensors", |b| {
        b.iter(|| {
            let mut out = Vec::new();
            farwrite_capture::drain_records(black_box(&records), &root, &mut out);
            assert!(out.len() >= 9_000 && !out.iter().any(|c| c.op == ChangeOp::Overflow));
            out
        });
    });
    group.finish();
}

criterion_group!(hot, records, ring, dirty_set, delta, vault);
criterion_main!(hot);
