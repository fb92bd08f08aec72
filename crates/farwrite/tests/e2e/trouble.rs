//! What goes wrong on healthy machines: a full disk, files that may not be read, a vault without root, a kernel queue
//! that overflows; and the switch.

use crate::rig::*;
use farwrite_testkit::{Chance, Snapshot};
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// More changes than the kernel's queue holds by default (16,384), several times over.
const STORM_FILES: usize = 30_000;

#[test]
fn a_full_vault_says_so_and_goes_on_when_there_is_room() {
    let place = Place::new();
    let disk = Tmpfs::mount(&place.top.join("disk"), "64m");
    let vault = Vault::new(&place.top.join("disk/vault"));
    let address = vault.address.clone();
    let mut pair = Pair::with(&place, vault, &address);
    let mut chance = Chance::from_env();
    fs::write(pair.src.join("before"), chance.bytes(1 << 20)).unwrap();
    pair.source.start();
    pair.converges(SOON);

    for i in 0..60 {
        fs::write(pair.src.join(format!("large {i}")), chance.bytes(2 << 20)).unwrap();
    }
    let told = |text: &str| text.contains("disk full") || text.contains("No space left on device");
    let full = |s: &serde_json::Value| told(s["protections"][0]["message"].as_str().unwrap());
    let status = pair
        .source
        .until("the status says that the vault is full", SOON, full);
    let p = &status["protections"][0];
    assert!(
        ["offline", "error"].contains(&p["state"].as_str().unwrap()),
        "{p:#}"
    );
    let said = pair
        .source
        .try_flush(std::time::Duration::from_secs(2))
        .bad();
    assert!(told(&said), "{said}");
    let at_vault = pair.vault.status();
    assert_eq!(at_vault[0]["name"], NAME, "{at_vault}");
    // What was durable before can be had.
    let back = place.dir("back");
    pair.vault
        .restore(NAME, &pair.src.join("before"), None, &back)
        .good();
    assert_eq!(
        fs::read(back.join("before")).unwrap(),
        fs::read(pair.src.join("before")).unwrap()
    );

    disk.resize("1g");
    pair.converges(LONG);
    let p = pair.source.until("safe again", SOON, |s| {
        s["protections"][0]["state"] == "safe"
    });
    assert_eq!(p["vaults"][0]["problem_count"], 0, "{p:#}");
    pair.vault.verify().good();
    pair.vault.kill();
    pair.source.kill();
}

#[test]
fn a_source_that_cannot_keep_what_it_sees_does_not_call_it_safe() {
    let place = Place::new();
    let disk = Tmpfs::mount(&place.top.join("state"), "32m");
    let mut pair = Pair::new(&place);
    pair.source.start();
    pair.converges(SOON);
    let filler = place.top.join("state/filler");
    let full = fs::write(&filler, vec![1; 64 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    // More than fits into what the last page of the journal has left; and again, since what takes their place (all is to be
    // compared) may fit, and then nothing is unseen.
    let src = pair.src.clone();
    let written = std::cell::Cell::new(0);
    let stopped = |s: &serde_json::Value| {
        for i in written.get()..written.get() + 500 {
            fs::write(src.join(format!("unseen {i}")), "new").unwrap();
        }
        written.set(written.get() + 500);
        let p = &s["protections"][0];
        p["state"] == "error" && p["message"].as_str().unwrap().contains("not seen")
    };
    pair.source
        .until("the status says that changes are not seen", SOON, stopped);
    pair.source.try_flush(Duration::from_secs(2)).bad();

    disk.resize("1g");
    pair.converges(LONG);
    pair.source.until("safe again", SOON, |s| {
        s["protections"][0]["state"] == "safe"
    });
    pair.vault.kill();
    pair.source.kill();
}

#[test]
fn a_daemon_that_cannot_go_on_ends_and_says_why() {
    let place = Place::new();
    let mut pair = Pair::new(&place);
    pair.source.start();
    pair.converges(SOON);
    // Neither with the new configuration nor with the old one can it start anew.
    let (gone, other) = (place.top.join("gone"), place.dir("other"));
    fs::rename(&pair.src, &gone).unwrap();
    let vault = pair.source.status()["vaults"][0]["name"].clone();
    let add = ["source", "add", other.to_str().unwrap()];
    let add = [&add[..], &["--to", vault.as_str().unwrap()]].concat();
    let said = pair.source.run(&add).bad();
    assert!(said.contains("daemon"), "{said}");
    let log = pair.source.fails();
    let says = "the old configuration does not start either";
    assert!(log.lines().last().unwrap().contains(says), "{log}");
    pair.source.run(&["on"]).bad();

    fs::rename(&gone, &pair.src).unwrap();
    pair.source.start();
    pair.converges(SOON);
    pair.vault.kill();
    pair.source.kill();
}

#[test]
fn what_may_not_be_read_is_named_until_it_may() {
    let place = Place::for_everybody();
    let vault = Vault::new(&place.top.join("vault"));
    let src = place.dir("src");
    let home = place.dir("home");
    for (name, mode) in [("open", 0o644), ("secret", 0o000)] {
        fs::write(src.join(name), name).unwrap();
        fs::set_permissions(src.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::create_dir(src.join("closed")).unwrap();
    fs::write(src.join("closed/inside"), "inside").unwrap();
    for path in [
        &src,
        &home,
        &src.join("open"),
        &src.join("secret"),
        &src.join("closed"),
        &src.join("closed/inside"),
    ] {
        give_to_nobody(path);
    }
    fs::set_permissions(src.join("closed"), fs::Permissions::from_mode(0o000)).unwrap();
    let invite = vault.invite(NAME, &vault.address);
    let mut source = Source::run_by(&home.join("state"), place.as_nobody());
    source.add(&src, &invite, &[]).good();
    source.start();
    let status = source.until("both are named", SOON, |s| {
        let problems = s["vaults"][0]["problems"].to_string();
        s["protections"][0]["state"] == "incomplete"
            && ["/src/secret", "/src/closed"]
                .iter()
                .all(|p| problems.contains(p))
    });
    assert_eq!(status["sensor"]["kind"], "inotify", "{status:#}");
    let said = source.try_flush(SOON).bad();
    assert!(
        said.contains("could not be backed up") && said.contains("/src/"),
        "{said}"
    );
    let mirror = vault.mirror(NAME, &src);
    assert_eq!(fs::read(mirror.join("open")).unwrap(), b"open");

    for (name, mode) in [("secret", 0o600), ("closed", 0o700)] {
        fs::set_permissions(src.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    source.flush(SOON);
    let status = source.status();
    assert_eq!(status["vaults"][0]["problem_count"], 0, "{status:#}");
    assert_eq!(status["protections"][0]["state"], "safe", "{status:#}");
    assert_same(&src, &mirror);
    // What was closed is watched now.
    fs::write(src.join("closed/later"), "later").unwrap();
    source.flush(SOON);
    assert_same(&src, &mirror);
}

#[test]
fn a_vault_without_root_keeps_what_it_may_not_set() {
    let place = Place::for_everybody();
    let home = place.dir("home");
    give_to_nobody(&home);
    let vault = Vault::made_by(&home.join("vault"), place.as_nobody());
    let address = vault.address.clone();
    let mut pair = Pair::with(&place, vault, &address);
    fill_with_privileged_things(&pair.src);
    pair.source.start();
    pair.source.flush(SOON);
    // Contents are there; owners and devices are not.
    let mirror = pair.mirror();
    assert_eq!(fs::read(mirror.join("owned")).unwrap(), b"owned");
    let listed = tool(
        "find",
        &[
            mirror.to_str().unwrap(),
            "-not",
            "-uid",
            "65534",
            "-o",
            "-type",
            "c",
        ],
    );
    assert_eq!(listed, "");
    // What root does at the vault is done as whom it belongs to.
    let dir = pair.vault.dir.to_str().unwrap().to_owned();
    let invite = ["vault", "invite", "--name", "other", "--address", &address];
    run(farwrite().args(invite).arg(&dir), SOON).good();
    run(farwrite().args(["vault", "verify"]).arg(&dir), SOON).good();
    assert_eq!(tool("find", &[&dir, "-not", "-uid", "65534"]), "");

    let expected = Snapshot::of_dir(&pair.src).unwrap();
    let restored = |to: &Path| Snapshot::of_dir(&to.join("src")).unwrap();
    let direct = place.dir("direct");
    pair.vault.restore(NAME, &pair.src, None, &direct).good();
    assert_eq!(
        expected.differences(&restored(&direct), 20),
        Vec::<String>::new()
    );
    let over_network = place.dir("network");
    let to = over_network.to_str().unwrap().to_owned();
    pair.source
        .run(&["restore", pair.src.to_str().unwrap(), "--to", &to])
        .good();
    assert_eq!(
        expected.differences(&restored(&over_network), 20),
        Vec::<String>::new()
    );

    // Root has read the vault's files: the vault can still write them, also after a restart and a repair of the mirror.
    fs::write(pair.src.join("owned"), "changed").unwrap();
    pair.source.flush(SOON);
    pair.vault.kill();
    let again = place.dir("again");
    pair.vault.restore(NAME, &pair.src, None, &again).good();
    pair.vault.serve();
    fs::write(pair.src.join("later"), "later").unwrap();
    pair.source.flush(SOON);
    assert_eq!(fs::read(mirror.join("later")).unwrap(), b"later");
    assert_eq!(fs::read(mirror.join("owned")).unwrap(), b"changed");
    pair.vault.verify().good();
    pair.vault.kill();
}

fn fill_with_privileged_things(src: &Path) {
    fs::write(src.join("owned"), "owned").unwrap();
    std::os::unix::fs::chown(src.join("owned"), Some(1234), Some(4321)).unwrap();
    fs::create_dir_all(src.join("dir/below")).unwrap();
    std::os::unix::fs::chown(src.join("dir"), Some(33), Some(33)).unwrap();
    fs::set_permissions(src.join("dir"), fs::Permissions::from_mode(0o2750)).unwrap();
    fs::write(src.join("dir/below/suid"), "suid").unwrap();
    std::os::unix::fs::chown(src.join("dir/below/suid"), Some(77), Some(88)).unwrap();
    fs::set_permissions(
        src.join("dir/below/suid"),
        fs::Permissions::from_mode(0o4711),
    )
    .unwrap();
    symlink("owned", src.join("link")).unwrap();
    std::os::unix::fs::lchown(src.join("link"), Some(5), Some(6)).unwrap();
    // A directory that its owner may not write, which the vault has to fill nevertheless.
    fs::create_dir(src.join("read-only")).unwrap();
    fs::write(src.join("read-only/file"), "x").unwrap();
    fs::set_permissions(
        src.join("read-only/file"),
        fs::Permissions::from_mode(0o400),
    )
    .unwrap();
    fs::set_permissions(src.join("read-only"), fs::Permissions::from_mode(0o555)).unwrap();
    let at = |name: &str| src.join(name).to_str().unwrap().to_owned();
    tool("mknod", &[&at("null"), "c", "1", "3"]);
    tool("mkfifo", &[&at("fifo")]);
    tool(
        "setfattr",
        &["-n", "trusted.secret", "-v", "kept", &at("owned")],
    );
    tool(
        "setfattr",
        &["-n", "user.note", "-v", "kept too", &at("owned")],
    );
}

#[test]
fn heavy_an_overflow_of_the_kernels_queue_is_repaired() {
    let place = Place::new();
    let mut pair = Pair::new(&place);
    let config = pair.source.state.join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    let limited = text.replace("queue = \"unlimited\"", "queue = \"kernel\"");
    assert_ne!(text, limited, "{text}");
    fs::write(&config, limited).unwrap();
    pair.source = Source::new(&pair.source.state).with(&["--sensor", "fanotify"]);
    fs::create_dir(pair.src.join("gone")).unwrap();
    fs::write(pair.src.join("gone/file"), "x").unwrap();
    pair.source.start();
    pair.converges(SOON);
    assert_eq!(pair.source.status()["protections"][0]["lost"], 0);

    pair.source.daemon().signal(Signal::STOP);
    fs::remove_dir_all(pair.src.join("gone")).unwrap();
    for i in 0..STORM_FILES {
        let dir = pair.src.join(format!("d{}", i / 500));
        if i % 500 == 0 {
            fs::create_dir(&dir).unwrap();
        }
        let file = dir.join(format!("f{i}"));
        fs::write(&file, format!("{i}")).unwrap();
        if i % 2 == 0 {
            fs::rename(&file, dir.join(format!("r{i}"))).unwrap();
        }
    }
    pair.source.daemon().signal(Signal::CONT);
    pair.converges(LONG);
    let status = pair.source.until("the repair is counted", SOON, |s| {
        let p = &s["protections"][0];
        p["lost"].as_u64().unwrap() >= 1 && p["lost"] == p["repaired"]
    });
    assert!(
        status["sensor"]["overflows"].as_u64().unwrap() >= 1,
        "{status:#}"
    );
    assert_eq!(status["protections"][0]["state"], "safe", "{status:#}");
    pair.vault.verify().good();
}

#[test]
fn off_lets_go_of_the_kernel_and_on_catches_up() {
    for (sensor, mark) in [("fanotify", "fanotify "), ("inotify", "inotify ")] {
        let place = Place::new();
        let mut pair = Pair::new(&place);
        pair.source = Source::new(&pair.source.state).with(&["--sensor", sensor]);
        fs::create_dir(pair.src.join("dir")).unwrap();
        fs::write(pair.src.join("dir/file"), "1").unwrap();
        pair.source.start();
        pair.converges(SOON);
        assert!(in_kernel(&pair.source, mark) >= 1, "{sensor}");
        assert_eq!(pair.source.status()["sensor"]["kind"], sensor);

        assert!(
            pair.source
                .run(&["off"])
                .good()
                .contains("automatic backup is off")
        );
        for any in ["fanotify ", "inotify "] {
            assert_eq!(in_kernel(&pair.source, any), 0, "{sensor}: {any}");
        }
        let status = pair.source.status();
        assert_eq!(
            (&status["on"], &status["protections"][0]["state"]),
            (&false.into(), &"off".into()),
            "{status:#}"
        );
        assert!(pair.source.try_flush(SOON).bad().contains("switched off"));
        fs::write(pair.src.join("dir/file"), "changed while off").unwrap();
        fs::create_dir_all(pair.src.join("new/deep")).unwrap();
        fs::write(pair.src.join("new/deep/file"), "new").unwrap();
        fs::rename(pair.src.join("dir"), pair.src.join("renamed")).unwrap();
        // It stays off over a restart.
        pair.source.kill();
        pair.source.start();
        assert_eq!(pair.source.status()["on"], false);
        assert_eq!(in_kernel(&pair.source, mark), 0, "{sensor}");
        assert_eq!(fs::read(pair.mirror().join("dir/file")).unwrap(), b"1");

        assert!(
            pair.source
                .run(&["on"])
                .good()
                .contains("automatic backup is on")
        );
        pair.converges(SOON);
        assert!(in_kernel(&pair.source, mark) >= 1, "{sensor}");
        fs::write(pair.src.join("renamed/after"), "after").unwrap();
        pair.converges(SOON);
    }
}

/// Marks or watches of the daemon, as the kernel tells them.
fn in_kernel(source: &Source, begins: &str) -> usize {
    let dir = format!("/proc/{}/fdinfo", source.daemon().pid());
    let infos = fs::read_dir(dir)
        .unwrap()
        .filter_map(|e| fs::read_to_string(e.unwrap().path()).ok());
    infos
        .map(|text| text.lines().filter(|l| l.starts_with(begins)).count())
        .sum()
}

#[test]
fn with_low_priority_a_steady_load_is_taken_in_fewer_rounds() {
    let place = Place::new();
    let mut pair = Pair::new(&place);
    pair.source = Source::run_by(&pair.source.state, Box::new(nicely));
    pair.source.start();
    pair.converges(SOON);
    assert_eq!(pair.source.status()["schedule"]["applications_first"], true);
    let said = pair.source.run(&["status", "-v"]).good();
    assert!(said.contains("applications first"), "{said}");
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            for n in 0.. {
                fs::write(pair.src.join(format!("{}", n % 50)), format!("{n}")).unwrap();
                if done.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        let _done = SetWhenDropped(&done);
        pair.source.until("20 ms between two rounds", SOON, |s| {
            s["schedule"]["managing_interval_ms"].as_f64() == Some(20.0)
        });
    });
    pair.converges(SOON);
}

/// A thread that looks at it ends, also when the test fails.
struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn the_interval_is_changed_while_it_runs() {
    let place = Place::new();
    let mut pair = Pair::new(&place);
    pair.source.start();
    pair.converges(SOON);
    pair.source.run(&["interval", "1h"]).good();
    let in_use = |what: &str, unit: &str, ms: f64| {
        pair.source.until(what, SOON, |s| {
            fs::write(pair.src.join("to have a round"), "").unwrap();
            s.pointer(unit).unwrap().as_f64() == Some(ms)
        });
    };
    in_use(
        "the managing unit waits an hour",
        "/schedule/managing_interval_ms",
        3_600_000.0,
    );
    // The round that was under way may still take the first of these along.
    let stays_away = |name: String| {
        fs::write(pair.src.join(&name), "in an hour").unwrap();
        let copy = pair.mirror().join(name);
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end && !copy.exists() {
            std::thread::sleep(Duration::from_millis(20));
        }
        !copy.exists()
    };
    let mut rounds = 0..20;
    assert!(rounds.any(|n| stays_away(format!("late {n}"))));
    let status = pair.source.status();
    assert_eq!(status["schedule"]["interval"], "3600s", "{status:#}");
    // A flush does not wait for it, and does not end it.
    pair.converges(SOON);
    assert_eq!(pair.source.status()["schedule"]["interval"], "3600s");
    fs::write(pair.src.join("later"), "in an hour").unwrap();
    fs::write(pair.src.join("later still"), "in an hour").unwrap();
    pair.source.run(&["interval", "auto"]).good();
    until("both units go on at once", SOON, || {
        pair.mirror().join("later still").exists().then_some(())
    });
    pair.converges(SOON);
    let said = pair.source.run(&["interval", "1x"]);
    assert_eq!(said.code, Some(2), "{said:?}");
}

/// A flush is about what was changed before it.
#[test]
fn a_flush_ends_while_others_go_on_writing() {
    for sensor in ["fanotify", "inotify"] {
        let place = Place::new();
        let mut pair = Pair::new(&place);
        pair.source = pair.source.with(&["--sensor", sensor]);
        pair.source.start();
        pair.converges(SOON);
        let (beside, inside) = (place.dir("beside"), pair.src.join("busy"));
        let stop = std::sync::atomic::AtomicBool::new(false);
        let going_on = || !stop.load(std::sync::atomic::Ordering::Relaxed);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Not unlike a browser's cache: new names all the time, outside of what is protected.
                let names = (0..1000u32).cycle();
                for n in names.take_while(|_| going_on()) {
                    fs::write(beside.join(n.to_string()), n.to_le_bytes()).unwrap();
                }
            });
            scope.spawn(|| {
                for n in (0..u32::MAX).take_while(|_| going_on()) {
                    fs::write(&inside, n.to_le_bytes()).unwrap();
                }
            });
            for i in 0..10 {
                let path = pair.src.join(format!("file {i}"));
                fs::write(&path, format!("content {i}")).unwrap();
                let ran = pair.source.try_flush(SOON);
                let there = fs::read(pair.mirror().join(path.file_name().unwrap()));
                if ran.code != Some(0) || there.is_err() {
                    stop.store(true, std::sync::atomic::Ordering::Relaxed);
                }
                ran.good();
                assert_eq!(there.unwrap(), format!("content {i}").as_bytes());
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        pair.converges(SOON);
    }
}
