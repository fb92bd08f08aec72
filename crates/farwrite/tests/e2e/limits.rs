//! What a change costs, and sizes at which other programs stumble.

use crate::harness::{
    Daemon, LONG, Listing, Pair, Place, SHORT, assert_same, farwrite, run, wait_for,
};
use farwrite_testkit::Chance;
use farwrite_testkit::snapshot::data_map;
use rustix::process::Signal;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;

const MIB: u64 = 1 << 20;
const LARGE_BYTES: u64 = 256 * MIB;
/// What 4 KiB changed in a large file may cost on the wire.
const SMALL_CHANGE_WIRE_BYTES: u64 = 20 << 10;

#[test]
fn four_kib_changed_in_a_large_file_cost_little() {
    let mut chance = Chance::new(11);
    let mut pair = Pair::new();
    let path = pair.dir.join("large");
    let file = File::create_new(&path).unwrap();
    for piece in 0..LARGE_BYTES / MIB {
        let bytes = chance.bytes(MIB as usize);
        file.write_all_at(&bytes, piece * MIB).unwrap();
    }
    drop(file);
    fs::write(pair.dir.join("another"), chance.bytes(5_000_000)).unwrap();
    pair.source.start(&[]);
    pair.source.flush_within(LONG);
    let first = pair.source.number("/backup/bytes_new");
    assert_eq!(first, LARGE_BYTES + 5_000_000, "everything is sent once");

    // In the middle of a block, over the edge of two, and at both ends.
    for at in [0, 100 * MIB + 1234, 201 * MIB - 100, LARGE_BYTES - 4096] {
        let wire = pair.source.number("/wire_bytes");
        let read = pair.source.number("/backup/bytes_read");
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&chance.bytes(4096), at).unwrap();
        drop(file);
        pair.source.flush();
        let wire = pair.source.number("/wire_bytes") - wire;
        let read = pair.source.number("/backup/bytes_read") - read;
        assert!(
            wire <= SMALL_CHANGE_WIRE_BYTES,
            "at {at}: {wire} bytes sent"
        );
        assert!(wire > 4096, "at {at}: nothing was sent");
        // Once for the write, and once more if the close came after that was read: it may be about a mapping.
        assert!(read <= 2 * LARGE_BYTES, "at {at}: {read} bytes read");
    }
    assert_same("after small changes", &pair.dir, &pair.mirror());
}

#[test]
fn a_sparse_file_beyond_four_gib_stays_sparse() {
    const GIB: u64 = 1 << 30;
    let mut chance = Chance::new(12);
    let mut pair = Pair::new();
    let path = pair.dir.join("huge");
    let file = File::create_new(&path).unwrap();
    file.set_len(6 * GIB).unwrap();
    file.write_all_at(&chance.bytes(100_000), 3 * GIB + 5)
        .unwrap();
    file.write_all_at(&chance.bytes(4096), 6 * GIB - 4096)
        .unwrap();
    file.sync_all().unwrap();
    pair.source.start(&[]);
    pair.source.flush_within(LONG);
    let read = pair.source.number("/backup/bytes_read");
    assert!(read < 8 * MIB, "{read} bytes read of a file that is a hole");
    let wire = pair.source.number("/wire_bytes");
    assert!(wire < MIB, "{wire} bytes sent for a file that is a hole");

    file.write_all_at(b"beyond 32 bits", 4 * GIB + 17).unwrap();
    file.write_all_at(b"at the very end", 7 * GIB).unwrap();
    file.sync_all().unwrap();
    drop(file);
    pair.source.flush_within(LONG);
    let here = Listing::of(&pair.dir);
    here.assert_equals(&Listing::of(&pair.mirror()), "mirror");
    let restored = pair
        .source
        .restore(&pair.dir, None, &pair.place.path("back"), LONG);
    here.assert_equals(&Listing::of(&restored), "restored");
    for copy in [pair.mirror(), restored] {
        let copy = copy.join("huge");
        File::open(&copy).unwrap().sync_all().unwrap();
        assert_eq!(data_map(&copy).unwrap(), data_map(&path).unwrap());
    }
}

/// A nice value ranks a process inside its session only, where the kernel shares the processors out between sessions (sched(7)).
#[test]
fn a_nice_value_counts_against_other_sessions() {
    let place = Place::new();
    let vault = place.path("vault");
    run(farwrite().args(["vault", "init"]).arg(&vault), SHORT).good();
    let ours = autogroup("self");
    if ours.is_empty() {
        return; // A kernel that does not share out between sessions.
    }
    let farwrite = farwrite();
    let serve = |words: &[&str]| {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(farwrite.get_program());
        command.args(["-v", "vault", "serve", "--listen", "127.0.0.1:0"]);
        let daemon = Daemon::start(command.arg(&vault), place.path("log"));
        wait_for("the vault to be served", SHORT, || {
            daemon.log().contains("serving ").then_some(())
        });
        daemon
    };
    let mut leader = serve(&["setsid", "nice", "-n", "7"]);
    let group = autogroup(&leader.pid().to_string());
    assert!(group.ends_with(" nice 7"), "{group}");
    leader.end(Signal::TERM);

    fs::remove_file(place.path("log")).unwrap();
    let member = serve(&["nice", "-n", "7"]);
    assert_eq!(
        autogroup(&member.pid().to_string()),
        ours,
        "a session that others share keeps its share"
    );
}

/// `/autogroup-NUMBER nice VALUE`, or nothing.
fn autogroup(pid: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/autogroup")).unwrap_or_default();
    text.trim().to_owned()
}
