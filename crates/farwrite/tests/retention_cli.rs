//! Retention through the real binary: policies, a preview that keeps its word, a vault that is pruned while it is open, marks, and
//! rsync as the judge of what is left.

#[expect(dead_code, reason = "the sample history is for other tests")]
mod maker;

use farwrite_core::{Kind, SourceName, Timestamp};
use farwrite_vault::{Options, SourceInfo, SourceVault, Vault};
use maker::{Maker, NOON, name, node, write};
use serde_json::Value;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

/// Batches: an hour apart, each with a megabyte that does not compress. One segment takes 256 of them.
const BATCHES: u64 = 300;
const FILE: u32 = 1 << 20;

struct Place {
    top: PathBuf,
    vault: Vault,
    source: SourceName,
    _temp: tempfile::TempDir,
}

fn open(vault: &Vault, source: &SourceName) -> SourceVault {
    let options = Options {
        mirror: true,
        events: Arc::new(|_| {}),
    };
    SourceVault::open(vault, source, options).unwrap()
}

/// Bytes that do not compress, other ones for each number.
fn noise(n: u64) -> Vec<u8> {
    let mut state = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = (0..FILE / 8).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.collect()
}

impl Place {
    /// A vault of one source with one file, /f, that was written anew every hour.
    fn new() -> Place {
        let temp = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let top = temp.path().canonicalize().unwrap();
        let created = Timestamp { sec: NOON, nsec: 0 };
        let vault = Vault::init(&top.join("vault"), true, created).unwrap();
        let source = SourceName::new("web1").unwrap();
        vault
            .save_source(&SourceInfo {
                name: source.clone(),
                fingerprint: "test".into(),
                created,
            })
            .unwrap();
        let log = open(&vault, &source);
        let mut m = Maker::default();
        for i in 0..BATCHES {
            let mut ops = vec![node(2, Kind::File, 0o644, u64::from(FILE)), write(2, FILE)];
            if i == 0 {
                ops.push(name(1, "f", 2));
            }
            let time = i as i64 * 3_600_000;
            for r in m.batch(time, true, &ops, &[&noise(i)]) {
                log.submit(r).unwrap();
            }
        }
        log.close().unwrap();
        Place {
            top,
            vault,
            source,
            _temp: temp,
        }
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_farwrite"))
            .args(args)
            .env("TZ", "UTC")
            .env_remove("FARWRITE_LOG")
            .current_dir(&self.top)
            .output()
            .unwrap()
    }

    fn good(&self, args: &[&str]) -> String {
        let out = self.run(args);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{args:?}: {said}");
        String::from_utf8(out.stdout).unwrap()
    }

    fn bad(&self, args: &[&str]) -> String {
        let out = self.run(args);
        assert_eq!(out.status.code(), Some(1), "{args:?}");
        String::from_utf8(out.stderr).unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.good(&[args, &["--json"]].concat())).unwrap()
    }

    /// Kibibytes on the disk, as `du` sees them.
    fn du(&self) -> u64 {
        let out = Command::new("du")
            .args(["-sk", "vault/sources/web1/log"])
            .current_dir(&self.top)
            .output()
            .unwrap();
        let said = String::from_utf8(out.stdout).unwrap();
        said.split_whitespace().next().unwrap().parse().unwrap()
    }

    fn restore(&self, at: &str, to: &str) {
        self.good(&[
            "restore",
            "/f",
            "--at",
            at,
            "--to",
            to,
            "--vault-dir",
            "vault",
            "--source",
            "web1",
        ]);
    }
}

fn same(a: &Path, b: &Path) -> bool {
    let out = Command::new("rsync")
        .args(["-aHAXnc", "--delete", "--itemize-changes"])
        .arg(format!("{}/", a.display()))
        .arg(format!("{}/", b.display()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    let files: Vec<&str> = said.lines().filter(|l| !l.contains(" ./")).collect();
    out.status.success() && files.is_empty()
}

#[test]
fn a_vault_is_pruned_as_it_was_said_and_what_is_kept_comes_back() {
    let p = Place::new();
    let here = ["--vault-dir", "vault", "--source", "web1"];
    // Nothing goes unless it is asked for.
    assert!(
        p.good(&["vault", "retention", "vault"])
            .contains("everything is kept")
    );
    assert!(
        p.good(&["vault", "prune", "vault"])
            .contains("everything is kept")
    );
    assert!(
        p.bad(&["vault", "retention", "vault", "--keep-all", "5m"])
            .contains("5m")
    );
    assert!(
        p.bad(&["vault", "retention", "vault", "--daily", "5d"])
            .contains("keep_all")
    );
    p.good(&[
        "vault",
        "retention",
        "vault",
        "--keep-all",
        "48h",
        "--daily",
        "1y",
    ]);
    let shown = p.json(&["vault", "retention", "vault", "--source", "web1"]);
    assert_eq!(
        (&shown[0]["keep_all"], &shown[0]["own"]),
        (&"2d".into(), &false.into())
    );

    // 2026-05-02 12:00:00 is batch 25.
    p.restore("2026-05-02T12:00:00Z", "before");
    p.restore("2026-05-06T23:30:00Z", "day");
    p.good(&[
        "vault",
        "mark",
        "vault",
        "web1",
        "good",
        "--at",
        "2026-05-02T12:30:00Z",
    ]);
    let before = p.du();
    let said = p.json(&["vault", "prune", "vault", "--dry-run"]);
    assert_eq!(p.du(), before);
    assert_eq!(said[0]["error"], Value::Null);
    let freed = said[0]["bytes_freed"].as_u64().unwrap();
    // All but two days, one for each day before them, the mark, and what is in the segment that is still written.
    assert!(freed > 200 << 20 && freed < 260 << 20, "{said}");

    // While another process has the source open: it does it.
    let server = open(&p.vault, &p.source);
    let done = p.json(&["vault", "prune", "vault"]);
    server.close().unwrap();
    assert_eq!(done[0]["bytes_freed"], said[0]["bytes_freed"], "{done}");
    assert_eq!(done[0]["moments_kept"], said[0]["moments_kept"]);
    assert!(
        before - p.du() >= freed / 1024 - 64,
        "{before} {} {freed}",
        p.du()
    );

    p.restore("mark:good", "marked");
    assert!(same(&p.top.join("before"), &p.top.join("marked")));
    p.restore("2026-05-06T23:59:00Z", "day-again");
    assert!(same(&p.top.join("day"), &p.top.join("day-again")));
    let listed = p.good(&[&["ls", "/", "--at", "2026-05-06T12:00:00Z"][..], &here].concat());
    assert!(
        listed.contains("2026-05-05 23:00"),
        "it says which moment it is: {listed}"
    );
    let early = p.bad(&[&["ls", "/", "--at", "2026-05-01T12:30:00Z"][..], &here].concat());
    assert!(
        early.contains("before the oldest moment that is kept"),
        "{early}"
    );
    let verified = p.json(&["vault", "verify", "vault"]);
    assert_eq!(verified[0]["findings"].as_array().unwrap().len(), 0);
    assert_eq!(verified[0]["batches"], BATCHES);
    let mirror = p.vault.source_dir(&p.source).join("mirror/f");
    assert_eq!(std::fs::read(&mirror).unwrap(), noise(BATCHES - 1));
    assert_eq!(mirror.metadata().unwrap().size(), u64::from(FILE));

    // The marks, and their end.
    let marks = p.json(&["vault", "mark", "vault", "web1"]);
    assert_eq!(
        (&marks[0]["name"], &marks[0]["batch"]),
        (&"good".into(), &25.into())
    );
    assert!(
        p.bad(&["vault", "mark", "vault", "web1", "good"])
            .contains("already")
    );
    p.good(&["vault", "mark", "vault", "web1", "good", "--remove"]);
    assert!(
        p.bad(&[&["ls", "/", "--at", "mark:good"][..], &here].concat())
            .contains("no mark good")
    );
    let again = p.json(&["vault", "prune", "vault"]);
    assert_eq!(again[0]["moments_dropped"], 1);

    // The brake: said, obeyed, and let go of.
    let dir = p.vault.source_dir(&p.source);
    std::fs::write(
        dir.join("brake.toml"),
        "why = \"a test\"\nfirst = 7\nmark = \"brake-6\"\n[time]\nsec = 1\nnsec = 0\n",
    )
    .unwrap();
    let status = p.json(&["vault", "status", "vault"]);
    assert_eq!(status[0]["brake"]["why"], "a test");
    assert!(status[0]["disk_bytes"].as_u64() < status[0]["log_bytes"].as_u64());
    assert!(
        p.good(&["vault", "status", "vault"])
            .contains("brake is set")
    );
    assert!(p.bad(&["vault", "prune", "vault"]).contains("a test"));
    assert!(
        p.good(&["vault", "release", "vault", "web1"])
            .contains("brake-6")
    );
    assert!(
        p.good(&["vault", "release", "vault", "web1"])
            .contains("is not set")
    );
    p.good(&["vault", "prune", "vault"]);
}
