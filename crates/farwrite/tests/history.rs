//! The history commands of the real binary, beside a vault's directory and over the network.

mod maker;

use farwrite_core::SourceName;
use farwrite_transfer::net::pair_blocking;
use farwrite_transfer::net::tls::Identity;
use farwrite_transfer::pairing::Invite;
use maker::sample_vault;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

struct Place {
    top: PathBuf,
    _temp: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let temp = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let top = temp.path().canonicalize().unwrap();
        sample_vault(&top.join("vault"), &source());
        Place { top, _temp: temp }
    }

    fn farwrite(&self) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_farwrite"));
        c.env("TZ", "UTC")
            .env("FARWRITE_STATE", self.top.join("state"))
            .env_remove("FARWRITE_LOG");
        c
    }

    /// Runs a history command on the vault's directory.
    fn local(&self, args: &[&str]) -> Output {
        let vault = self.top.join("vault");
        self.farwrite()
            .args(args)
            .args(["--source", "web1", "--vault-dir"])
            .arg(vault)
            .output()
            .unwrap()
    }

    fn to(&self) -> String {
        self.top.join("back").to_str().unwrap().into()
    }
}

fn source() -> SourceName {
    SourceName::new("web1").unwrap()
}

/// Standard output of a command that must succeed.
fn good(out: Output) -> String {
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{err}");
    String::from_utf8(out.stdout).unwrap()
}

fn json(out: Output) -> Value {
    serde_json::from_str(&good(out)).unwrap()
}

/// The one line of a command that must fail.
fn bad(out: Output) -> String {
    assert_eq!(
        out.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(&out.stdout)
    );
    let err = String::from_utf8(out.stderr).unwrap();
    assert_eq!(err.trim_end().lines().count(), 1, "{err}");
    assert!(err.starts_with("farwrite: "), "{err}");
    err
}

#[test]
fn versions_say_when_how_large_and_what() {
    let p = Place::new();
    let text = good(p.local(&["versions", "/data/a.txt"]));
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|l| {
            l.split("  ")
                .map(str::trim)
                .filter(|c| !c.is_empty())
                .collect()
        })
        .collect();
    let column = |i: usize| lines.iter().map(|l| l[i]).collect::<Vec<_>>();
    assert_eq!(
        column(0),
        [
            "2026-05-01 12:20:00",
            "2026-05-01 12:10:00.750",
            "2026-05-01 12:10:00.250",
            "2026-05-01 12:00:00"
        ]
    );
    assert_eq!(column(2), ["-", "5 B", "5 B", "3 B"]);
    assert_eq!(
        column(3),
        [
            "removed",
            "attributes",
            "content +5 B new",
            "created +3 B new"
        ]
    );
    let doc = json(p.local(&["versions", "/data/a.txt", "--json", "--limit", "2"]));
    assert_eq!(doc["path"], "/data/a.txt");
    let all = doc["versions"].as_array().unwrap();
    assert_eq!(all.len(), 2);
    assert_eq!(
        (&all[1]["change"], &all[1]["mode"]),
        (&"attributes".into(), &"0600".into())
    );
    assert_eq!(all[1]["time"], "2026-05-01T12:10:00.75Z");
    assert!(bad(p.local(&["versions", "/data/none"])).contains("/data/none: nothing of that name"));
}

#[test]
fn a_time_as_it_is_shown_leads_to_what_it_was_shown_for() {
    let p = Place::new();
    for (at, mode) in [
        ("2026-05-01 12:10:00.250", "-rw-r--r--"),
        ("2026-05-01 12:10:00.750", "-rw-------"),
        ("2026-05-01 12:10:00", "-rw-------"),
        ("2026-05-01T12:10:00.25Z", "-rw-r--r--"),
    ] {
        let text = good(p.local(&["ls", "/data/a.txt", "--at", at]));
        assert!(
            text.lines().nth(1).unwrap().starts_with(mode),
            "{at}: {text}"
        );
    }
}

#[test]
fn ls_shows_a_moment_and_escapes_names() {
    let p = Place::new();
    let text = good(p.local(&["ls", "/data", "--at", "2026-05-01 12:05"]));
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[0].starts_with("as of 2026-05-01 12:00:00") && lines[0].contains(", a clean point"),
        "{text}"
    );
    assert_eq!(
        lines[1..],
        [
            "-rw-r--r--  0:0  3 B  2026-05-01 12:00:00  a.txt",
            "lrwxrwxrwx  0:0    -  2026-05-01 12:00:00  ln -> a.txt",
            "drwx------  0:0    -  2026-05-01 12:00:00  sub/",
        ]
    );
    let now = good(p.local(&["ls", "/data"]));
    assert!(
        now.contains("not a clean point") && !now.contains("  a.txt"),
        "{now}"
    );
    assert!(good(p.local(&["ls"])).ends_with("data/\n"));
    let hostile = good(p.local(&["ls", "/data/sub"]));
    assert!(
        hostile.contains("\\x1b[31m\\xff") && !hostile.contains('\x1b'),
        "{hostile:?}"
    );
    let doc = json(p.local(&["ls", "/data/sub", "--json"]));
    let entry = &doc["listings"][0]["entries"][0];
    assert_eq!(entry["name_bytes"], "G1szMW3/");
    assert_eq!(doc["moment"]["batch"], 4);
    let early = bad(p.local(&["ls", "--at", "2026-05-01 11:59"]));
    assert!(
        early.contains("before the oldest moment that is kept, which is of 2026-05-01 12:00:00"),
        "{early}"
    );
    assert!(bad(p.local(&["ls", "--at", "soon"])).contains("yesterday 14:00"));
    let gone = bad(p.local(&["ls", "/data/a.txt"]));
    assert!(
        gone.contains("until 2026-05-01 12:20:00") && gone.contains("--at 2026-05-01T12:10:00.75Z"),
        "{gone}"
    );
}

#[test]
fn diff_lists_what_changed() {
    let p = Place::new();
    let noon = "2026-05-01T12:00:00Z";
    let d = |to: &str| good(p.local(&["diff", "/data", "--from", noon, "--to", to]));
    assert_eq!(
        d("2026-05-01 12:15"),
        "from 2026-05-01 12:00:00 to 2026-05-01 12:10:00\nM /data/a.txt  3 B -> 5 B\n"
    );
    assert!(d("2026-05-01 12:20").ends_with("\n- /data/a.txt  3 B\n"));
    let doc = json(p.local(&[
        "diff",
        "--from",
        "2026-05-01T12:10:00.25Z",
        "--to",
        "2026-05-01 12:15",
        "--json",
    ]));
    assert_eq!(doc["changes"][0]["change"], "attributes");
    assert_eq!(doc["truncated"], false);
    let e = bad(p.local(&["diff", "--from", "2026-05-01 12:15", "--to", noon]));
    assert!(e.contains("later than"), "{e}");
}

#[test]
fn restore_brings_back_and_never_overwrites_unasked() {
    let p = Place::new();
    let to = p.to();
    let args = ["restore", "/data", "--at", "2026-05-01 12:05", "--to", &to];
    let dry = good(p.local(&[&args[..], &["--dry-run"]].concat()));
    assert!(dry.contains(&format!("{to}/data/a.txt  3 B\n")), "{dry}");
    assert!(
        dry.contains("\\x1b[31m\\xff") && !dry.contains('\x1b'),
        "{dry:?}"
    );
    assert!(
        dry.contains("would restore 3 files, 2 directories, 3 B to"),
        "{dry}"
    );
    assert!(!Path::new(&to).exists());

    let done = good(p.local(&args));
    assert!(
        done.contains("restored 3 files, 2 directories, 3 B to"),
        "{done}"
    );
    let file = Path::new(&to).join("data/a.txt");
    assert_eq!(fs::read(&file).unwrap(), b"one");
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o7777,
        0o644
    );
    assert_eq!(
        fs::read_link(Path::new(&to).join("data/ln")).unwrap(),
        Path::new("a.txt")
    );

    fs::write(&file, "mine").unwrap();
    let refused = bad(p.local(&args));
    assert!(
        refused.contains("nothing was written") && refused.contains("/back/data exists"),
        "{refused}"
    );
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    let doc = json(p.local(&[&args[..], &["--overwrite", "--json"]].concat()));
    assert_eq!(
        (&doc["files"], &doc["directories"], &doc["failed"]),
        (&3.into(), &2.into(), &Value::Array(vec![]))
    );
    assert_eq!(fs::read(&file).unwrap(), b"one");
}

#[test]
fn what_was_not_there_is_said_with_the_nearest_moment() {
    let p = Place::new();
    let to = p.to();
    let e = bad(p.local(&["restore", "/data/a.txt", "--to", &to]));
    assert!(e.contains("--at 2026-05-01T12:10:00.75Z"), "{e}");
    assert!(
        bad(p.local(&["restore", "/nowhere", "--to", &to])).contains("nor at any other moment")
    );
    assert!(!Path::new(&to).exists());
}

#[test]
fn a_damaged_file_is_named_and_the_exit_status_says_so() {
    let p = Place::new();
    let segment = p.top.join("vault/sources/web1/log/00000001.seg");
    let mut bytes = fs::read(&segment).unwrap();
    let at = bytes.windows(3).position(|w| w == b"one").unwrap();
    bytes[at] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let out = p.local(&[
        "restore",
        "/data",
        "--at",
        "2026-05-01 12:05",
        "--to",
        &p.to(),
    ]);
    assert_eq!(out.status.code(), Some(1));
    let err = String::from_utf8(out.stderr).unwrap();
    assert!(
        err.contains("/data/a.txt: ") && err.contains("one file could not be restored"),
        "{err}"
    );
    assert!(!p.top.join("back/data/a.txt").exists());
    assert!(p.top.join("back/data/ln").is_symlink());
}

#[test]
fn a_path_through_a_symbolic_link_is_found_under_its_real_name() {
    let p = Place::new();
    // `/data` need not exist on this machine.
    symlink("/", p.top.join("link")).unwrap();
    let through = p.top.join("link/data/a.txt");
    let text = good(p.local(&["versions", through.to_str().unwrap(), "--json"]));
    assert!(text.contains("\"/data/a.txt\""), "{text}");
}

/// A served vault; ends with the test.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn over_the_network_it_is_the_same() {
    let p = Place::new();
    let vault = p.top.join("vault");
    let mut child = p
        .farwrite()
        .args(["vault", "serve", "--listen", "127.0.0.1:0"])
        .arg(&vault)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let _served = Served(child);
    assert!(
        line.starts_with(&format!("serving {} on 127.0.0.1:", vault.display())),
        "{line}"
    );

    let invite = good(
        p.farwrite()
            .args(["vault", "invite", "--name", "web1"])
            .arg(&vault)
            .output()
            .unwrap(),
    );
    let invite: Invite = invite.trim_end().parse().unwrap();
    let state = p.top.join("state");
    fs::create_dir(&state).unwrap();
    let identity = Identity::load_or_create(&state).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let paired = pair_blocking(runtime.handle(), &invite, &identity, "test").unwrap();
    assert_eq!(paired.name, source());
    fs::write(
        state.join("config.toml"),
        format!(
            "[[directory]]\npath = \"/data\"\nslot = 1\n[[vault]]\nname = \"v\"\nsource = \"web1\"\ndirectories = [\"/data\"]\n\
             addresses = [\"{}\"]\nfingerprint = \"{}\"\n",
            invite.addresses[0], invite.vault
        ),
    )
    .unwrap();

    let net = |args: &[&str]| p.farwrite().args(args).output().unwrap();
    for args in [
        &["versions", "/data/a.txt", "--json"][..],
        &["ls", "/data", "--json"],
        &["diff", "/data", "--from", "2026-05-01", "--json"],
    ] {
        if args[0] == "diff" {
            assert!(bad(net(args)).contains("before the oldest moment that is kept"));
        } else {
            assert_eq!(json(net(args)), json(p.local(args)), "{args:?}");
        }
    }
    let done = good(net(&[
        "restore",
        "/data/a.txt",
        "--at",
        "2026-05-01 12:15",
        "--to",
        &p.to(),
    ]));
    assert!(
        done.contains("restored 1 file, 0 directories, 5 B"),
        "{done}"
    );
    assert_eq!(fs::read(p.top.join("back/a.txt")).unwrap(), b"two!!");

    // A source marks its moments, and cannot unmark them.
    assert!(good(net(&["mark"])).contains("nothing is marked"));
    let marked = json(net(&["mark", "old", "--at", "2026-05-01 12:05", "--json"]));
    assert_eq!(
        (&marked["batch"], &marked["by"]),
        (&1.into(), &"source".into())
    );
    let again = bad(net(&["mark", "old"]));
    assert!(again.contains("there is a mark old already"), "{again}");
    assert!(bad(net(&["mark", "a/b"])).contains("a mark's name is"));
    let at_mark = json(net(&["ls", "/data", "--at", "mark:old", "--json"]));
    assert_eq!(at_mark["moment"]["batch"], 1);
    assert!(bad(net(&["ls", "/data", "--at", "mark:new"])).contains("no mark new"));

    let doctor: Value = serde_json::from_slice(&net(&["doctor", "--json"]).stdout).unwrap();
    let reached = doctor
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["check"] == "vault v")
        .unwrap();
    assert_eq!(reached["result"], "ok", "{doctor}");
}
