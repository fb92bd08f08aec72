//! Bad invites, a vault that is not the one, damaged vaults, traps in a mirror, and wrong uses of every command: each is
//! refused or named in words, and nothing else suffers.

use crate::rig::*;
use farwrite_testkit::{Chance, Snapshot};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

#[test]
fn bad_invites_are_refused_in_one_line_each() {
    let place = Place::new();
    let vault = Vault::new(&place.top.join("vault"));
    let src = place.dir("src");
    let source = |name: &str| Source::new(&place.top.join(name));
    let invite = vault.invite(NAME, &vault.address);
    source("first").add(&src, &invite, &[]).good();
    let said = source("second").add(&src, &invite, &[]).bad();
    assert!(said.contains("used already"), "{said}");

    let short = vault.invite_for("web2", &vault.address, "1s");
    let made = Instant::now();
    until("the invite expires", SOON, || {
        (made.elapsed() > Duration::from_millis(1_100)).then_some(())
    });
    let said = source("late").add(&src, &short, &[]).bad();
    assert!(said.contains("expired"), "{said}");

    let fresh = vault.invite("web4", &vault.address);
    let mut flipped = fresh.clone().into_bytes();
    let at = flipped.len() / 2;
    flipped[at] = if flipped[at] == b'A' { b'B' } else { b'A' };
    let flipped = String::from_utf8(flipped).unwrap();
    for (bad, word) in [
        (flipped.as_str(), "damaged"),
        (&fresh[..fresh.len() - 5], "damaged"),
        ("farwrite1:", "damaged"),
        ("farwrite9:AAAA", ""),
        ("hello", "not an invite"),
        ("", "not an invite"),
    ] {
        let said = source("garbled").add(&src, bad, &[]).bad();
        assert!(said.contains(word), "{bad}: {said}");
    }
    // None of that used it up, or left anything behind that matters.
    source("garbled").add(&src, &fresh, &[]).good();
    // Nobody at the address.
    let nobody = vault.invite("web5", "127.0.0.1:1");
    let said = source("nobody").add(&src, &nobody, &[]).bad();
    assert!(said.contains("no connection"), "{said}");
}

#[test]
fn another_vault_at_the_address_gets_nothing() {
    let place = Place::new();
    let mut pair = Pair::new(&place);
    fs::write(pair.src.join("file"), "secret").unwrap();
    pair.source.start();
    pair.converges(SOON);
    pair.vault.stop();
    let address = pair.vault.address.clone();
    let dir = place.top.join("impostor");
    run(farwrite().args(["vault", "init"]).arg(&dir), SOON).good();
    let mut impostor = Vault::at(&dir, &address);
    fs::write(pair.src.join("file"), "more of it").unwrap();
    let status = pair
        .source
        .until("the source sees that it is another", SOON, |s| {
            let text = s["vaults"][0]["message"].as_str().unwrap();
            s["vaults"][0]["connected"] == false
                && (text.contains("key") || text.contains("fingerprint"))
        });
    assert!(
        ["offline", "error"].contains(&status["protections"][0]["state"].as_str().unwrap()),
        "{status:#}"
    );
    assert_eq!(impostor.status(), serde_json::json!([]));
    assert_eq!(fs::read_dir(dir.join("sources")).unwrap().count(), 0);
    assert!(
        pair.source
            .try_flush(Duration::from_secs(1))
            .bad()
            .contains("not everything is durable")
    );
    // Nor can its history be asked there, nor an invite of the other be redeemed.
    pair.source.run(&["ls", pair.src.to_str().unwrap()]).bad();
    impostor.stop();
    pair.vault.serve();
    pair.converges(SOON);
}

#[test]
fn a_vault_of_a_newer_farwrite_is_left_alone() {
    let place = Place::new();
    let mut pair = Pair::new(&place);
    pair.source.start();
    pair.converges(SOON);
    pair.source.kill();
    pair.vault.stop();
    let toml = pair.vault.dir.join("vault.toml");
    let text = fs::read_to_string(&toml).unwrap();
    assert!(text.contains("format = 1"), "{text}");
    fs::write(
        &toml,
        text.replace("format = 1", "format = 99\nsomething_new = true"),
    )
    .unwrap();
    let v = pair.vault.dir.to_str().unwrap();
    for args in [
        &["vault", "serve", v, "--listen", "127.0.0.1:0"][..],
        &["vault", "invite", v, "--name", "x"],
        &["vault", "status", v],
        &["vault", "verify", v],
        &["vault", "init", v],
        &["vault", "stdio", v, "--name", NAME],
        &["ls", "--vault-dir", v, "--source", NAME],
    ] {
        let said = run(farwrite().args(args), SOON).bad();
        assert!(
            said.contains("newer Farwrite") || said.contains("is a vault already"),
            "{args:?}: {said}"
        );
    }
    fs::write(&toml, text).unwrap();
    pair.vault.serve();
    pair.source.start();
    pair.converges(SOON);
}

/// Three files in batches of their own, each too random to be compressed, and everything stopped.
fn three_files(place: &Place, chance: &mut Chance) -> Pair {
    let mut pair = Pair::new(place);
    pair.source.start();
    for name in ["first", "second", "third"] {
        fs::write(pair.src.join(name), chance.bytes(100_000)).unwrap();
        pair.converges(SOON);
    }
    pair.source.kill();
    pair.vault.stop();
    pair
}

fn only_segment(pair: &Pair) -> PathBuf {
    let all: Vec<_> = fs::read_dir(pair.vault.segments(NAME))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    assert_eq!(all.len(), 1, "{all:?}");
    all[0].clone()
}

fn place_of(needle: &[u8], hay: &[u8]) -> usize {
    hay.windows(needle.len())
        .position(|w| w == needle)
        .expect("the bytes are in the segment as they are")
}

#[test]
fn a_flipped_bit_costs_one_file_which_is_named() {
    let mut chance = Chance::from_env();
    let place = Place::new();
    let pair = three_files(&place, &mut chance);
    let segment = only_segment(&pair);
    let mut bytes = fs::read(&segment).unwrap();
    let second = fs::read(pair.src.join("second")).unwrap();
    let at = place_of(&second[50_000..50_064], &bytes);
    bytes[at] ^= 0x10;
    fs::write(&segment, &bytes).unwrap();

    let ran = pair.vault.verify();
    let named = ran.out.lines().next().unwrap().to_owned();
    ran.bad();
    let offset: usize = named
        .split("offset ")
        .nth(1)
        .unwrap()
        .split([',', ':'])
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(named.starts_with("web1: segment 1, offset "), "{named}");
    assert!(
        offset < at && at - offset < 110_000,
        "{named}, flipped at {at}"
    );
    others_are_restored(&place, &pair, "second", &["first", "third"]);
}

#[test]
fn a_truncated_segment_costs_what_was_in_it_and_the_source_sends_it_again() {
    let mut chance = Chance::from_env();
    let place = Place::new();
    let mut pair = three_files(&place, &mut chance);
    let segment = only_segment(&pair);
    let bytes = fs::read(&segment).unwrap();
    let third = fs::read(pair.src.join("third")).unwrap();
    let at = place_of(&third[50_000..50_064], &bytes);
    fs::write(&segment, &bytes[..at]).unwrap();

    let ran = pair.vault.verify();
    assert!(
        ran.out.starts_with("web1: segment 1, offset "),
        "{}",
        ran.out
    );
    ran.bad();
    others_are_restored(&place, &pair, "third", &["first", "second"]);
    // The source still has it. A vault that lost what it acked is not a small thing: it is said, and made good.
    pair.vault.serve();
    pair.source.start();
    pair.converges(SOON);
    pair.vault.verify().good();
    let back = place.dir("healed");
    pair.vault.restore(NAME, &pair.src, None, &back).good();
    assert_same(&pair.src, &back.join("src"));
}

fn others_are_restored(place: &Place, pair: &Pair, damaged: &str, whole: &[&str]) {
    let back = place.dir("back");
    let ran = pair.vault.restore(NAME, &pair.src, None, &back);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let said = format!("{}{}", ran.out, ran.err);
    assert!(said.contains(&format!("src/{damaged}")), "{said}");
    for name in whole {
        assert!(!said.contains(&format!("src/{name}")), "{said}");
        assert_eq!(
            fs::read(back.join("src").join(name)).unwrap(),
            fs::read(pair.src.join(name)).unwrap()
        );
    }
    assert!(
        !back.join("src").join(damaged).exists(),
        "half a file under its name"
    );
    let left = fs::read_dir(back.join("src")).unwrap().count();
    assert_eq!(left, whole.len(), "something was left behind");
}

#[test]
fn the_catalog_is_made_anew_from_the_log() {
    let mut chance = Chance::from_env();
    let place = Place::new();
    let mut pair = three_files(&place, &mut chance);
    let expected = Snapshot::of_dir(&pair.src).unwrap();
    let catalog = pair.vault.dir.join("sources").join(NAME).join("catalog.db");
    let harm: [(&str, &dyn Fn()); 4] = [
        ("deleted", &|| fs::remove_file(&catalog).unwrap()),
        ("nonsense", &|| {
            fs::write(&catalog, vec![b'x'; 40_000]).unwrap()
        }),
        ("empty", &|| fs::write(&catalog, "").unwrap()),
        ("torn in the middle", &|| {
            let mut bytes = fs::read(&catalog).unwrap();
            let half = bytes.len() / 2;
            bytes[4096..half].fill(0xa5);
            fs::write(&catalog, bytes).unwrap();
        }),
    ];
    for (what, harm) in harm {
        for side in ["-wal", "-shm"] {
            // There only if the vault did not close it.
            let _ = fs::remove_file(PathBuf::from(format!("{}{side}", catalog.display())));
        }
        harm();
        pair.vault.serve();
        pair.source.start();
        pair.converges(SOON);
        let back = place.dir(what);
        pair.vault.restore(NAME, &pair.src, None, &back).good();
        let restored = Snapshot::of_dir(&back.join("src")).unwrap();
        assert_eq!(
            expected.differences(&restored, 10),
            Vec::<String>::new(),
            "{what}"
        );
        let versions = pair
            .source
            .run(&[
                "versions",
                pair.src.join("first").to_str().unwrap(),
                "--json",
            ])
            .good();
        let versions: serde_json::Value = serde_json::from_str(&versions).unwrap();
        assert!(
            !versions["versions"].as_array().unwrap().is_empty(),
            "{what}: {versions}"
        );
        pair.vault.verify().good();
        pair.source.kill();
        pair.vault.stop();
    }
}

#[test]
fn a_link_planted_in_the_mirror_is_not_followed() {
    let place = Place::new();
    let mut pair = Pair::new(&place);
    for dir in ["a", "b/c"] {
        fs::create_dir_all(pair.src.join(dir)).unwrap();
        fs::write(pair.src.join(dir).join("file"), "inside").unwrap();
        fs::write(pair.src.join(dir).join("gone"), "inside").unwrap();
    }
    fs::write(pair.src.join("file"), "inside").unwrap();
    let outside = place.dir("outside");
    fs::create_dir(outside.join("sub")).unwrap();
    for name in ["file", "gone", "sub/file"] {
        fs::write(outside.join(name), "not to be touched").unwrap();
    }
    let before = Snapshot::of_dir(&outside).unwrap();
    pair.source.start();
    pair.converges(SOON);
    let mirror = pair.mirror();

    for restarted in [false, true] {
        if restarted {
            pair.vault.stop();
        }
        for (at, target) in [
            ("a", outside.clone()),
            ("b/c", outside.clone()),
            ("file", outside.join("file")),
        ] {
            let trap = mirror.join(at);
            if trap.is_dir() {
                fs::remove_dir_all(&trap).unwrap()
            } else {
                fs::remove_file(&trap).unwrap()
            }
            symlink(target, trap).unwrap();
        }
        if restarted {
            pair.vault.serve();
        }
        let text = format!("changed {restarted}");
        for name in ["a/file", "b/c/file", "file"] {
            fs::write(pair.src.join(name), &text).unwrap();
        }
        fs::write(pair.src.join("a/new"), &text).unwrap();
        // Gone in the first round, back in the second.
        for dir in ["a", "b/c"] {
            let gone = pair.src.join(dir).join("gone");
            if restarted {
                fs::write(gone, "back").unwrap()
            } else {
                fs::remove_file(gone).unwrap()
            }
        }
        pair.converges(SOON);
        assert_eq!(
            before.differences(&Snapshot::of_dir(&outside).unwrap(), 10),
            Vec::<String>::new()
        );
    }
    // The mirror's own top as a link.
    pair.vault.stop();
    let top = pair.vault.dir.join("sources").join(NAME).join("mirror");
    fs::remove_dir_all(&top).unwrap();
    symlink(&outside, &top).unwrap();
    pair.vault.serve();
    fs::write(pair.src.join("file"), "after all").unwrap();
    let flushed = pair.source.try_flush(Duration::from_secs(10));
    assert_eq!(
        before.differences(&Snapshot::of_dir(&outside).unwrap(), 10),
        Vec::<String>::new(),
        "{flushed:?}"
    );
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 3);
}

#[test]
fn every_wrong_use_ends_with_one_line_or_the_usage() {
    let place = Place::new();
    let mut pair = Pair::new(&place);
    fs::write(pair.src.join("file"), "x").unwrap();
    pair.source.start();
    pair.converges(SOON);
    let v = pair.vault.dir.to_str().unwrap().to_owned();
    let src = pair.src.to_str().unwrap().to_owned();
    let file = pair.src.join("file").to_str().unwrap().to_owned();
    let gone = pair.src.join("never").to_str().unwrap().to_owned();
    let lonely = place.top.join("lonely");
    let own = pair.source.state.clone();

    // Without a daemon or a configuration.
    for args in [
        &["status"][..],
        &["status", "--json"],
        &["flush"],
        &["on"],
        &["off"],
        &["interval", "auto"],
        &["source", "run"],
        &["versions", &file],
        &["ls"],
        &["diff", "--from", "1 hour ago"],
        &["restore", &file, "--to", "back"],
        &["source", "add", &gone, "--to", "ssh://h/v"],
        &["source", "add", &file, "--to", "ssh://h/v"],
        &["source", "add", "/", "--to", "ssh://h/v"],
        &["source", "add", &src, "--to", "ssh://h"],
        &["source", "add", &src, "--to", "nonsense"],
        &["try", &gone, "--once"],
        &["try", &file, "--once"],
    ] {
        one_line(&lonely, &place.top, args);
    }
    // With both.
    for args in [
        &["source", "run"][..],
        &["versions", &gone],
        &["versions", &file, "--vault", "unknown"],
        &["ls", &gone],
        &["ls", "--at", "one fine day"],
        &["ls", "--at", "1990-01-01T00:00:00Z"],
        &["diff", "--from", ""],
        &["diff", &gone, "--from", "1 hour ago"],
        &["restore", &gone, "--to", "back"],
        &["restore", &file, "--to", &src],
        &["restore", &file, "--to", &file],
        &["restore", &file, "--to", "back", "--at", "yesterday"],
        &[
            "restore",
            &file,
            "--to",
            "back",
            "--vault-dir",
            &v,
            "--source",
            "unknown",
        ],
        &["ls", "--vault-dir", &src, "--source", NAME],
        &["vault", "init", &v],
        &["vault", "init", &src],
        &["vault", "init", &file],
        &["vault", "serve", &v, "--listen", "127.0.0.1:0"],
        &["vault", "serve", &src],
        &["vault", "serve", &gone],
        &["vault", "invite", &src, "--name", "x"],
        &["vault", "invite", &v, "--name", "x", "--address", "no port"],
        &["vault", "status", &src],
        &["vault", "verify", &gone],
        &["vault", "verify", &v, "--name", "unknown"],
        &["vault", "stdio", &src, "--name", "x"],
    ] {
        one_line(&own, &place.top, args);
    }
    for args in [
        &[][..],
        &["nonsense"],
        &["vault"],
        &["vault", "init"],
        &["vault", "serve"],
        &["vault", "invite", &v],
        &["vault", "invite", &v, "--name", "../x"],
        &["vault", "invite", &v, "--name", "x", "--expires", "soon"],
        &["vault", "verify", &v, "--name", "a/b"],
        &["vault", "stdio", &v],
        &["source"],
        &["source", "add"],
        &["source", "add", &src],
        &["source", "run", "--sensor", "eyes"],
        &["source", "run", "--interval", "now and then"],
        &["flush", "--timeout", "later"],
        &["interval"],
        &["interval", "-5s"],
        &["interval", "fast"],
        &["versions"],
        &["versions", &file, "--limit", "many"],
        &["diff"],
        &["ls", "--vault-dir", &v],
        &["ls", "--source", NAME],
        &["ls", "--vault", "v", "--vault-dir", &v, "--source", NAME],
        &["restore"],
        &["restore", &file],
        &["status", "--loud"],
        &["doctor", "all"],
    ] {
        let ran = run(command(&own, &place.top).args(args), SOON);
        assert_eq!(ran.code, Some(2), "{args:?}: {ran:?}");
        assert!(
            ran.out.is_empty() && ran.err.contains("Usage:") || ran.err.contains("--help"),
            "{args:?}: {ran:?}"
        );
    }
    // None of it did any harm.
    assert!(!place.top.join("back").exists());
    fs::write(pair.src.join("file"), "y").unwrap();
    pair.converges(SOON);
    pair.vault.verify().good();
}

fn command(state: &Path, dir: &Path) -> Command {
    let mut c = farwrite();
    c.env("FARWRITE_STATE", state).current_dir(dir);
    c
}

#[track_caller]
fn one_line(state: &Path, dir: &Path, args: &[&str]) {
    let ran = run(command(state, dir).args(args), SOON);
    assert_eq!(ran.code, Some(1), "{args:?}: {ran:?}");
    assert!(
        ran.err.starts_with("farwrite: ") && ran.err.trim_end().lines().count() == 1,
        "{args:?}: {ran:?}"
    );
    assert!(
        ran.err.trim_end().len() > "farwrite: ".len() + 10,
        "{args:?}: {ran:?}"
    );
}

/// A command whose connection breaks has failed, whoever reads its output.
#[test]
fn a_broken_connection_is_no_success() {
    let place = Place::new();
    let socket = place.dir("state").join("control.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Hangs up at once, before or after the request has been written.
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                drop(listener.accept());
            }
        });
        let source = Source::new(&place.top.join("state"));
        for _ in 0..30 {
            for args in [&["flush"][..], &["status"], &["off"]] {
                source.run(args).bad();
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        drop(std::os::unix::net::UnixStream::connect(&socket));
    });
}

#[test]
fn who_stops_reading_is_not_told_of_success() {
    let place = Place::new();
    let mut pair = Pair::new(&place);
    std::fs::write(pair.src.join("file"), "").unwrap();
    pair.source.start();
    pair.source.flush(SOON);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut c = pair.source.command(&["ls", pair.src.to_str().unwrap()]);
    let out = c.stdout(writer).output().unwrap();
    assert_eq!(out.status.code(), Some(141), "{out:?}");
    assert_eq!(String::from_utf8_lossy(&out.stderr), "", "quietly");
}
