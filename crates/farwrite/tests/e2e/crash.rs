//! Kills and cuts at random moments, while files keep changing. What is acked is never lost, nothing is sent into a gap,
//! and what did not change is not read again.

use crate::proxy::Proxy;
use crate::rig::*;
use farwrite_core::BatchSeq;
use farwrite_testkit::{Chance, Snapshot};
use farwrite_vault::segment::{BatchReader, Place as LogPlace, list_segments, segment_path};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const KILLS: usize = 50;
/// A moment to go back to is noted after so many kills.
const MOMENT_EVERY: usize = 10;
/// Longest time between two kills.
const UPTIME_MS: u64 = 400;
const NAMES: u64 = 60;
const FILE_BYTES: u64 = 200_000;
/// Longest pause between two operations.
const PAUSE_MICROS: u64 = 3_000;

/// Random operations on a tree, for as long as it runs. Bounded: there are only so many names.
struct Workload {
    stop: Arc<AtomicBool>,
    /// Held while an operation is made.
    turn: Arc<Mutex<()>>,
    done: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Workload {
    fn start(src: &Path, mut chance: Chance) -> Workload {
        let (stop, turn, done) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(Mutex::new(())),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopped, held, counted, src) =
            (stop.clone(), turn.clone(), done.clone(), src.to_owned());
        let thread = thread::spawn(move || {
            while !stopped.load(SeqCst) {
                {
                    let _turn = held.lock().unwrap();
                    // Refused by the filesystem, such as a directory moved below itself: nothing happened then.
                    if operation(&src, &mut chance).is_ok() {
                        counted.fetch_add(1, SeqCst);
                    }
                }
                thread::sleep(Duration::from_micros(chance.below(PAUSE_MICROS)));
            }
        });
        Workload {
            stop,
            turn,
            done,
            thread: Some(thread),
        }
    }

    fn finish(mut self) -> u64 {
        self.stop.store(true, SeqCst);
        self.thread.take().unwrap().join().unwrap();
        self.done.load(SeqCst)
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        if let Some(t) = self.thread.take() {
            // Its panic is not the first one.
            let _ = t.join();
        }
    }
}

fn operation(src: &Path, chance: &mut Chance) -> std::io::Result<()> {
    let (a, b) = (any_path(src, chance), any_path(src, chance));
    match chance.below(16) {
        0 | 1 => fs::create_dir_all(&a),
        2 | 3 => {
            let len = chance.below(FILE_BYTES) as usize;
            fs::write(&a, chance.bytes(len))
        }
        4 | 5 => {
            let f = File::options().write(true).open(&a)?;
            let len = 1 + chance.below(5_000) as usize;
            f.write_all_at(&chance.bytes(len), chance.below(FILE_BYTES))
        }
        6 => File::options()
            .append(true)
            .open(&a)?
            .write_all(&chance.bytes(100)),
        7 => File::options()
            .write(true)
            .open(&a)?
            .set_len(chance.below(FILE_BYTES)),
        8 | 9 => fs::rename(&a, &b),
        10 => {
            // As editors save.
            let new = a.with_extension("new");
            fs::write(&new, chance.bytes(3_000))?;
            fs::rename(&new, &a)
        }
        11 => fs::hard_link(&a, &b),
        12 => symlink(&b, &a),
        13 => fs::set_permissions(
            &a,
            fs::Permissions::from_mode(0o600 + chance.below(0o100) as u32),
        ),
        14 => fs::remove_file(&a),
        _ if chance.one_in(4) => fs::remove_dir_all(&a),
        _ => fs::remove_dir(&a),
    }
}

/// Up to three levels deep.
fn any_path(src: &Path, chance: &mut Chance) -> PathBuf {
    let mut path = src.to_owned();
    for _ in 0..chance.below(3) {
        path.push(format!("d{}", chance.below(5)));
    }
    if chance.one_in(4) {
        path.join(format!("d{}", chance.below(5)))
    } else {
        path.join(format!("f{}", chance.below(NAMES)))
    }
}

#[test]
fn heavy_fifty_kills_and_nothing_is_lost() {
    let mut chance = Chance::from_env();
    let place = Place::new();
    let vault = Vault::new(&place.top.join("vault"));
    let proxy = Proxy::new(&vault.address, Duration::ZERO);
    let mut pair = Pair::with(&place, vault, &proxy.address);
    let work = Workload::start(&pair.src, Chance::new(chance.any()));
    pair.source.start();
    let mut moments = Vec::new();
    for kill in 0..KILLS {
        // The moment is what is random here.
        thread::sleep(Duration::from_millis(chance.below(UPTIME_MS)));
        if chance.one_in(2) {
            proxy.cut();
        }
        if chance.one_in(2) {
            pair.source.kill();
            pair.source.spawn();
        } else {
            pair.vault.kill();
            pair.vault.serve();
        }
        if kill % MOMENT_EVERY == MOMENT_EVERY / 2 {
            pair.source.ready();
            let _turn = work.turn.lock().unwrap();
            pair.converges(LONG);
            moments.push((now(), Snapshot::of_dir(&pair.src).unwrap()));
        }
    }
    pair.source.ready();
    let done = work.finish();
    assert!(done > 500, "only {done} operations");
    pair.converges(LONG);

    let log = pair.source.log_text();
    for never in ["starting a new full backup", "panicked", "internal error"] {
        assert!(!log.contains(never), "the source says: {never}");
    }
    pair.vault.verify().good();
    let times = batches_without_gap(&pair.vault.segments(NAME));
    for (i, (time, then)) in moments.iter().enumerate() {
        let to = place.dir(&format!("moment {i}"));
        pair.vault.restore(NAME, &pair.src, Some(time), &to).good();
        let now = Snapshot::of_dir(&to.join("src")).unwrap();
        assert_eq!(
            then.differences(&now, 10),
            Vec::<String>::new(),
            "at {time}"
        );
    }
    // Whatever was acked in between can be had as well, damaged by nothing.
    for i in 0..10 {
        let time = chance.pick(&times).unwrap();
        let to = place.dir(&format!("between {i}"));
        pair.vault.restore(NAME, &pair.src, Some(time), &to).good();
    }
    restarted_and_nothing_read(&mut pair);
}

/// All batches follow each other, whole; returns the times of the later half, when the directory was there.
fn batches_without_gap(log: &Path) -> Vec<String> {
    let mut reader = BatchReader::open(log, None).unwrap();
    let segment = *list_segments(log).unwrap().last().unwrap();
    let offset = fs::metadata(segment_path(log, segment)).unwrap().len();
    let end = LogPlace { segment, offset };
    let (mut last, mut times) = (0, Vec::new());
    while let Some(batch) = reader.next_batch(end).unwrap() {
        assert_eq!(batch.commit.seq, BatchSeq(last + 1));
        assert!(batch.damage.is_empty(), "{:?}", batch.damage);
        last += 1;
        times.push(format!(
            "@{}.{:09}",
            batch.commit.time.sec, batch.commit.time.nsec
        ));
    }
    assert!(last > 20, "only {last} batches");
    let rfc3339 = |t: &String| {
        tool("date", &["--utc", "-d", t, "+%Y-%m-%dT%H:%M:%S.%NZ"])
            .trim()
            .to_owned()
    };
    times[times.len() / 2..].iter().map(rfc3339).collect()
}

fn restarted_and_nothing_read(pair: &mut Pair) {
    for _ in 0..2 {
        let acked = pair.source.status()["vaults"][0]["acked"].clone();
        pair.source.kill();
        pair.source.start();
        pair.converges(LONG);
        let status = pair.source.status();
        let v = &status["vaults"][0];
        assert!(v["backup"]["entries"].as_u64().unwrap() > 0, "{v:#}");
        for nothing in ["files_read", "bytes_read", "bytes_new"] {
            assert_eq!(v["backup"][nothing], 0, "{nothing}: {v:#}");
        }
        let more = v["acked"].as_u64().unwrap() - acked.as_u64().unwrap();
        assert!(more <= 1, "{more} batches although nothing changed: {v:#}");
    }
}
