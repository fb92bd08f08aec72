//! A vault that is far away, away for long, or one of several. Work is counted in round trips and bytes; time is only
//! held against generous bounds.

use crate::proxy::Proxy;
use crate::rig::*;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

/// Small files of the first backup over a long way.
const SMALL_FILES: usize = 5_000;
/// One way.
const FAR: Duration = Duration::from_millis(50);
/// Round trips are at most one for so many files.
const FILES_PER_TRIP: u64 = 20;
/// What "an hour" of changes is made of.
const HOUR_FILES: usize = 30_000;
/// Most memory that the source may ever have held.
const MEMORY_KB: u64 = 200 << 10;

fn make_files(dir: &Path, count: usize) {
    for i in 0..count {
        let below = dir.join(format!("d{:03}", i / 100));
        if i % 100 == 0 {
            fs::create_dir_all(&below).unwrap();
        }
        fs::write(
            below.join(format!("f{i}")),
            format!("file {i}\n").repeat(1 + i % 40),
        )
        .unwrap();
    }
}

fn number(v: &Value) -> u64 {
    v.as_u64().unwrap_or_else(|| panic!("not a number: {v}"))
}

#[test]
fn small_files_do_not_pay_the_round_trip_one_by_one() {
    let place = Place::new();
    let vault = Vault::new(&place.top.join("vault"));
    let proxy = Proxy::new(&vault.address, FAR);
    let mut pair = Pair::with(&place, vault, &proxy.address);
    make_files(&pair.src, SMALL_FILES);
    let paired = (
        proxy.counts.connections.load(SeqCst),
        proxy.counts.down_pieces.load(SeqCst),
    );
    let begun = Instant::now();
    pair.source.start();
    pair.converges(LONG);
    let took = begun.elapsed();

    let files = SMALL_FILES as u64;
    let vault = &pair.source.status()["vaults"][0];
    assert_eq!(number(&vault["backup"]["files_read"]), files);
    assert!(
        number(&vault["backup"]["batches"]) * FILES_PER_TRIP <= files,
        "{vault:#}"
    );
    assert!(
        number(&vault["acked"]) * FILES_PER_TRIP <= files,
        "{vault:#}"
    );
    let answers = proxy.counts.down_pieces.load(SeqCst) - paired.1;
    assert!(
        answers * FILES_PER_TRIP <= files,
        "{answers} answers for {files} files"
    );
    assert_eq!(proxy.counts.connections.load(SeqCst), paired.0 + 1);
    // One trip a file would be 500 s.
    let one_by_one = 2 * FAR * SMALL_FILES as u32;
    assert!(took < one_by_one / 6, "{took:?}");
    let rtt = number(&vault["rtt_ms"]);
    assert!((100..2_000).contains(&rtt), "{rtt} ms");
}

#[test]
fn heavy_an_hour_without_the_vault() {
    let place = Place::new();
    let mut pair = Pair::new(&place);
    make_files(&pair.src, 1_000);
    pair.source.start();
    pair.converges(LONG);
    pair.vault.kill();
    pair.source.until("offline", SOON, |s| {
        s["protections"][0]["state"] == "offline"
    });

    // Each is made, every third renamed, every third changed again, every third removed.
    let hour = pair.src.join("hour");
    make_files(&hour, HOUR_FILES);
    for i in 0..HOUR_FILES {
        let file = hour.join(format!("d{:03}/f{i}", i / 100));
        match i % 3 {
            0 => fs::rename(&file, file.with_extension("renamed")).unwrap(),
            1 => fs::write(&file, format!("changed {i}")).unwrap(),
            _ => fs::remove_file(&file).unwrap(),
        }
    }
    fs::rename(pair.src.join("d000"), hour.join("from before")).unwrap();
    let status = pair.source.until("what waits is told", SOON, |s| {
        number(&s["protections"][0]["pending_changes"]) > 1_000
    });
    let p = &status["protections"][0];
    assert_eq!(p["state"], "offline", "{status:#}");
    assert!(
        p["message"]
            .as_str()
            .unwrap()
            .contains("changes are waiting"),
        "{p:#}"
    );
    assert_eq!(status["vaults"][0]["connected"], false);
    let words = pair.source.run(&["status"]).good();
    assert!(words.starts_with("Offline: "), "{words}");
    let flush = pair.source.try_flush(Duration::from_secs(1)).bad();
    // Late in whichever step, it says that the vault is away.
    assert!(flush.contains("Connection refused"), "{flush}");
    assert!(
        peak_kb(&pair.source) < MEMORY_KB,
        "{} kB",
        peak_kb(&pair.source)
    );

    pair.vault.serve();
    pair.converges(LONG);
    assert!(
        peak_kb(&pair.source) < MEMORY_KB,
        "{} kB",
        peak_kb(&pair.source)
    );
    let p = &pair.source.status()["protections"][0];
    assert_eq!(
        (&p["state"], &p["pending_changes"]),
        (&"safe".into(), &0.into()),
        "{p:#}"
    );
    pair.vault.verify().good();
}

/// The most memory that the daemon ever held.
fn peak_kb(source: &Source) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", source.daemon().pid())).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

#[test]
fn two_vaults_do_not_wait_for_each_other() {
    let place = Place::new();
    let mut pair = Pair::new(&place);
    let mut other = Vault::new(&place.top.join("other"));
    let invite = other.invite("elsewhere", &other.address);
    pair.source
        .add(&pair.src, &invite, &["--vault-name", "second"])
        .good();
    make_files(&pair.src, 300);
    pair.source.start();
    pair.converges(LONG);
    assert_same(&pair.src, &other.mirror("elsewhere", &pair.src));

    other.kill();
    fs::write(pair.src.join("while the second is down"), "1").unwrap();
    fs::rename(pair.src.join("d001"), pair.src.join("renamed")).unwrap();
    // A flush speaks of all vaults, and says which is not there.
    let said = pair.source.try_flush(Duration::from_secs(3)).bad();
    assert!(said.contains("second"), "{said}");
    pair.source
        .until("the first vault has everything", SOON, |s| {
            s["vaults"][0]["state"] == "safe" && s["vaults"][0]["pending_changes"] == 0
        });
    assert_same(&pair.src, &pair.mirror());
    let status = pair.source.status();
    assert_eq!(status["vaults"][1]["state"], "offline", "{status:#}");

    // Now the other way round.
    pair.vault.kill();
    other.serve();
    fs::write(pair.src.join("while the first is down"), "2").unwrap();
    pair.source
        .until("the second vault has everything", SOON, |s| {
            s["vaults"][1]["state"] == "safe"
                && s["vaults"][1]["pending_changes"] == 0
                && s["vaults"][0]["state"] == "offline"
        });
    let second = other.mirror("elsewhere", &pair.src);
    until("the mirror follows", SOON, || {
        second
            .join("while the first is down")
            .exists()
            .then_some(())
    });
    assert_same(&pair.src, &second);

    pair.vault.serve();
    pair.converges(SOON);
    assert_same(&pair.src, &second);
    for vault in [&pair.vault, &other] {
        vault.verify().good();
    }
}

#[test]
fn two_sources_in_one_vault_keep_apart() {
    let place = Place::new();
    let mut one = Pair::new(&place);
    let src = place.dir("src2");
    let mut two = Source::new(&place.top.join("state2"));
    two.add(&src, &one.vault.invite("web2", &one.vault.address), &[])
        .good();
    make_files(&one.src, 400);
    make_files(&src, 200);
    fs::write(one.src.join("same name"), "of one").unwrap();
    fs::write(src.join("same name"), "of two").unwrap();
    one.source.start();
    two.start();
    one.converges(LONG);
    two.flush(LONG);
    assert_same(&src, &one.vault.mirror("web2", &src));
    // One of them dies; the other goes on.
    two.kill();
    fs::write(one.src.join("same name"), "of one, again").unwrap();
    fs::write(src.join("unseen"), "").unwrap();
    one.converges(SOON);
    assert!(!one.vault.mirror("web2", &src).join("unseen").exists());
    two.start();
    two.flush(SOON);
    assert_same(&src, &one.vault.mirror("web2", &src));
    let status = one.vault.status();
    let names: Vec<&Value> = status
        .as_array()
        .unwrap()
        .iter()
        .map(|s| &s["name"])
        .collect();
    assert_eq!(names, ["web1", "web2"]);
    // What one source asks for is its own history only.
    let listed = one.source.run(&["ls", src.to_str().unwrap()]);
    assert_ne!(listed.code, Some(0), "{listed:?}");
    one.vault.verify().good();
}
