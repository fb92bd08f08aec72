//! The control API of a running daemon: the history, restores, and changing what is protected while files change.

use crate::rig::*;
use farwrite_control::{
    Client, ClientError, Connection, ContentQuery, Differences, ExcludePreview, Listing, Moments,
    PreviewExcludes, Protect, RestoreJob, RestoreRequest, Settings, SettingsChange, Timeline,
    Unprotect, Version,
};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn client(pair: &Pair) -> Client {
    Client::connect(&pair.source.state.join("control.sock")).unwrap()
}

fn field(e: ClientError) -> String {
    match e {
        ClientError::Failed(f) => f.field.unwrap_or_else(|| format!("none: {}", f.why)),
        e => panic!("{e}"),
    }
}

fn query(pairs: &[(&str, &str)]) -> String {
    let escaped = |s: &str| s.bytes().map(|b| format!("%{b:02x}")).collect::<String>();
    let all = pairs.iter().map(|(k, v)| format!("{k}={}", escaped(v)));
    all.collect::<Vec<_>>().join("&")
}

#[test]
fn directories_and_vaults_are_added_and_taken_away_while_files_change() {
    let place = Place::new();
    let mut pair = Pair::new(&place);
    let second = Vault::new(&place.top.join("second"));
    let more = place.dir("more");
    fs::write(more.join("old"), "was there before").unwrap();
    fs::write(more.join("left.tmp"), "left out").unwrap();
    pair.source.start();
    pair.converges(SOON);
    let api = client(&pair);

    // Somebody writes all the time.
    let stop = Arc::new(AtomicBool::new(false));
    let (ending, dirs) = (stop.clone(), [pair.src.clone(), more.clone()]);
    let writer = std::thread::spawn(move || {
        let mut i = 0;
        while !ending.load(Ordering::Acquire) {
            for dir in &dirs {
                fs::write(dir.join(format!("f{}", i % 500)), format!("{i}")).unwrap();
            }
            i += 1;
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        i
    });
    let protect = |to: &str, exclude: &[&str]| Protect {
        directory: more.to_str().unwrap().into(),
        to: to.into(),
        exclude: exclude.iter().map(|s| s.to_string()).collect(),
        vault_name: Some("other".into()),
    };
    let post = |p: &Protect| api.post::<Settings>("protect", p);
    for (bad, wrong) in [
        (
            Protect {
                directory: "more".into(),
                ..protect("vault", &[])
            },
            "directory",
        ),
        (
            Protect {
                directory: "/no/such".into(),
                ..protect("vault", &[])
            },
            "directory",
        ),
        (
            Protect {
                directory: pair.src.join("x").to_str().unwrap().into(),
                ..protect("vault", &[])
            },
            "directory",
        ),
        (protect("farwrite1:nonsense", &[]), "to"),
        (protect("", &[]), "to"),
        (protect("127.0.0.1", &["[z-a]"]), "exclude"),
        (
            Protect {
                vault_name: Some("no/name".into()),
                ..protect("x", &[])
            },
            "vault_name",
        ),
    ] {
        assert_eq!(field(post(&bad).unwrap_err()), wrong, "{bad:?}");
    }
    let before = fs::read_to_string(pair.source.state.join("config.toml")).unwrap();
    let pid = api.status().unwrap().pid;
    // In the known vault, then in one by invite.
    let known = api.get::<Settings>("settings").unwrap().vaults[0]
        .name
        .clone();
    post(&protect(&known, &["*.tmp"])).unwrap();
    let settings = post(&protect(&second.invite("me", &second.address), &["*.tmp"])).unwrap();
    let added = settings
        .directories
        .iter()
        .find(|d| d.path == more.to_str().unwrap())
        .unwrap();
    assert_eq!(added.vaults, [known.as_str(), "other"]);
    assert_eq!(added.exclude, ["*.tmp"]);
    let after = fs::read_to_string(pair.source.state.join("config.toml")).unwrap();
    assert_eq!(before.lines().next(), after.lines().next());
    // The process, its socket and its clients stay.
    assert_eq!(api.status().unwrap().pid, pid);
    fs::remove_file(more.join("left.tmp")).unwrap();
    // A change that is not left out makes the directory be looked at again.
    fs::write(more.join("last"), "last").unwrap();
    stop.store(true, Ordering::Release);
    assert!(writer.join().unwrap() > 10);
    pair.converges(LONG);
    assert_same(&more, &pair.vault.mirror(NAME, &more));
    assert_same(&more, &second.mirror("me", &more));
    assert!(!second.mirror("me", &pair.src).exists());

    // Taken away: what the vault has stays, what comes is not sent.
    let gone = Unprotect {
        directory: more.to_str().unwrap().into(),
        vault: None,
    };
    api.post::<Settings>("unprotect", &gone).unwrap();
    assert_eq!(
        field(api.post::<Settings>("unprotect", &gone).unwrap_err()),
        "directory"
    );
    fs::write(more.join("later"), "not protected").unwrap();
    fs::write(pair.src.join("later"), "protected").unwrap();
    pair.converges(SOON);
    assert!(!pair.vault.mirror(NAME, &more).join("later").exists());
    assert!(pair.vault.mirror(NAME, &more).join("old").exists());
    let only = Unprotect {
        directory: pair.src.to_str().unwrap().into(),
        vault: None,
    };
    assert_eq!(
        field(api.post::<Settings>("unprotect", &only).unwrap_err()),
        "directory"
    );
    assert_eq!(api.status().unwrap().protections[0].lost, 0);
}

#[test]
fn settings_are_checked_written_and_in_effect() {
    let place = Place::new();
    let mut pair = Pair::new(&place);
    fs::write(pair.src.join("a"), "a").unwrap();
    pair.source.start();
    pair.converges(SOON);
    let path = pair.source.state.join("config.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(
        &path,
        text.replace("\n[[vault]]", "\n# where it goes\n[[vault]]"),
    )
    .unwrap();
    let api = client(&pair);
    let change = |c: SettingsChange| api.post::<Settings>("settings", &c);
    let one = |f: &str, v: &str| {
        let v = Some(v.to_owned());
        let d = SettingsChange::default();
        match f {
            "interval" => SettingsChange { interval: v, ..d },
            "bandwidth" => SettingsChange { bandwidth: v, ..d },
            "sensor" => SettingsChange { sensor: v, ..d },
            _ => SettingsChange { alert_lag: v, ..d },
        }
    };
    for (f, bad) in [
        ("interval", "soon"),
        ("bandwidth", "much"),
        ("sensor", "eyes"),
        ("alert_lag", "x"),
    ] {
        assert_eq!(field(change(one(f, bad)).unwrap_err()), f);
    }
    assert_eq!(change(one("interval", "300ms")).unwrap().interval, "300ms");
    assert_eq!(api.status().unwrap().schedule.interval, "300ms");
    assert_eq!(
        change(one("bandwidth", "50 MB")).unwrap().bandwidth,
        "50 MB"
    );
    change(one("sensor", "inotify")).unwrap();
    assert_eq!(
        api.status().unwrap().sensor.kind.as_deref(),
        Some("inotify")
    );
    fs::write(pair.src.join("b"), "b").unwrap();
    pair.converges(SOON);
    let text = fs::read_to_string(&path).unwrap();
    assert!(
        text.contains("# where it goes") && text.contains("300ms"),
        "{text}"
    );
    let preview = PreviewExcludes {
        directory: pair.src.to_str().unwrap().into(),
        exclude: vec!["a".into(), "".into()],
    };
    let found: ExcludePreview = api.post("excludes/preview", &preview).unwrap();
    assert_eq!(
        (found.looked_at, found.matching, found.paths),
        (2, 1, vec!["a".to_owned()])
    );
}

#[test]
fn the_past_is_listed_read_and_brought_back() {
    let place = Place::new();
    let mut pair = Pair::new(&place);
    let file = pair.src.join("report.txt");
    let holey = pair.src.join("holey");
    fs::write(&file, "first\n").unwrap();
    fs::File::create(&holey)
        .unwrap()
        .set_len(3_000_000)
        .unwrap();
    pair.source.start();
    pair.converges(SOON);
    let then = now();
    fs::write(&file, "second\n").unwrap();
    fs::write(pair.src.join("new"), "new").unwrap();
    pair.converges(SOON);
    let api = client(&pair);
    let src = pair.src.to_str().unwrap();
    let moments: Moments = api.get("history/moments").unwrap();
    assert_eq!(moments.directories, [src]);
    let list = |at: &str| {
        let q = query(&[("path", src), ("at", at)]);
        let l: Listing = api.get(&format!("history/list?{q}")).unwrap();
        l.entries.into_iter().map(|e| e.name).collect::<Vec<_>>()
    };
    assert_eq!(list(&then), ["holey", "report.txt"]);
    assert_eq!(list(""), ["holey", "new", "report.txt"]);
    let path = file.to_str().unwrap();
    let versions: Vec<Version> = api
        .get(&format!("history/versions?{}", query(&[("path", path)])))
        .unwrap();
    // A write is a truncation first: an empty version may be between.
    assert_eq!(versions.first().unwrap().size, Some(7));
    assert_eq!(versions.last().unwrap().size, Some(6));
    let q = query(&[("path", src), ("from", &then)]);
    let diff: Differences = api.get(&format!("history/diff?{q}")).unwrap();
    let changes: Vec<_> = diff.changes.iter().map(|c| c.change.as_str()).collect();
    assert!(
        changes.contains(&"added") && changes.contains(&"content"),
        "{changes:?}"
    );
    let line: Timeline = api.get("history/timeline?buckets=10").unwrap();
    assert_eq!(line.buckets.len(), 10);
    assert!(
        line.buckets.iter().map(|b| b.changes).sum::<u64>() >= 5,
        "{line:?}"
    );

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let content = |path: &str, at: &str| {
        let q = ContentQuery {
            path: path.into(),
            at: Some(at.into()),
            ..ContentQuery::default()
        };
        runtime.block_on(async {
            use http_body_util::BodyExt;
            let socket = Connection::new(&pair.source.state.join("control.sock"));
            let (length, body) = socket.raw("history/content", &q).await.unwrap();
            let bytes = body.collect().await.unwrap().to_bytes();
            assert_eq!(length, Some(bytes.len() as u64));
            bytes
        })
    };
    assert_eq!(content(path, &then), "first\n");
    assert_eq!(content(path, ""), "second\n");
    assert_eq!(content(holey.to_str().unwrap(), ""), vec![0; 3_000_000]);

    let to = place.top.join("back");
    let ask = |dry_run, overwrite, to: &str| RestoreRequest {
        path: path.into(),
        at: Some(then.clone()),
        to: to.into(),
        overwrite,
        dry_run,
        ..RestoreRequest::default()
    };
    let restore = |r: &RestoreRequest| api.post::<RestoreJob>("restore", r);
    assert_eq!(
        field(restore(&ask(false, false, "relative")).unwrap_err()),
        "to"
    );
    assert_eq!(
        field(restore(&ask(false, false, "/tmp/../etc")).unwrap_err()),
        "to"
    );
    assert_eq!(
        field(restore(&ask(false, false, src)).unwrap_err()),
        "overwrite"
    );
    let dry = restore(&ask(true, false, src)).unwrap();
    assert_eq!(
        (dry.files, dry.bytes, dry.in_the_way.len()),
        (1, 6, 1),
        "{dry:?}"
    );
    assert_eq!(fs::read(&file).unwrap(), b"second\n");
    let job = restore(&ask(false, false, to.to_str().unwrap())).unwrap();
    until("the restore is done", SOON, || {
        let j: RestoreJob = api.get(&format!("restore/{}", job.id)).unwrap();
        assert_ne!(j.state, "failed", "{j:?}");
        (j.state == "done").then_some(())
    });
    assert_eq!(fs::read(to.join("report.txt")).unwrap(), b"first\n");
    restore(&ask(false, true, src)).unwrap();
    until("it is back in its place", SOON, || {
        (fs::read(&file).unwrap() == b"first\n").then_some(())
    });
    pair.converges(SOON);
}

#[test]
fn who_has_no_rights_on_the_socket_sees_nothing() {
    let place = Place::for_everybody();
    let mut pair = Pair::new(&place);
    pair.source.start();
    let socket = pair.source.state.join("control.sock");
    // Even if somebody opens the way to it, the peer is looked at.
    for path in [pair.source.state.as_path(), &socket] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let mut c: Command = place.as_nobody()();
    c.env("FARWRITE_STATE", &pair.source.state)
        .args(["status", "--json"]);
    let ran = c.stdin(Stdio::null()).output().unwrap();
    assert!(!ran.status.success());
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "");
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o600)).unwrap();
    let ran = c.output().unwrap();
    assert!(!ran.status.success());
    assert!(
        String::from_utf8_lossy(&ran.stderr).contains("not allowed"),
        "{ran:?}"
    );
    assert_eq!(pair.source.status()["on"], true);
}

#[test]
fn metrics_are_open_metrics_and_alerts_run_their_command() {
    let place = Place::new();
    let mut pair = Pair::new(&place);
    let told = place.top.join("told");
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let config = pair.source.state.join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    let command = format!(
        "echo $FARWRITE_ALERT $FARWRITE_PHASE $FARWRITE_VAULT >> {}",
        told.display()
    );
    let metrics = format!("metrics = \"127.0.0.1:{port}\"\n");
    let alert =
        format!("\n[alert]\ncommand = \"\"\"{command}\"\"\"\nlag = \"1s\"\noffline = \"0.5s\"\n");
    fs::write(&config, metrics + &text + &alert).unwrap();
    fs::write(pair.src.join("a"), "a").unwrap();
    pair.source.start();
    pair.converges(SOON);
    let ask = || {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("HTTP/1.1 200") && head.contains("openmetrics-text"),
            "{head}"
        );
        body.to_owned()
    };
    let text = ask();
    let number = |text: &str, name: &str| {
        let line = text
            .lines()
            .find(|l| l.starts_with(name))
            .unwrap_or_else(|| panic!("no {name} in {text}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert!(text.trim_end().ends_with("# EOF"), "{text}");
    assert_eq!(number(&text, "farwrite_switch_on"), 1.0);
    assert_eq!(number(&text, "farwrite_connected"), 1.0);
    assert!(number(&text, "farwrite_changes_total") >= 1.0);
    assert!(number(&text, "farwrite_ack_seconds_count") >= 1.0);
    assert!(!text.contains("/src"), "a path is among the numbers");
    // Each line is a comment or a sample with a number, each family is announced once.
    let mut families = std::collections::BTreeSet::new();
    for line in text.trim_end().lines() {
        match line.strip_prefix("# TYPE ") {
            Some(family) => assert!(families.insert(family.to_owned()), "{family} twice"),
            None if line.starts_with('#') => {}
            None => assert!(
                line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(),
                "{line}"
            ),
        }
    }
    pair.vault.kill();
    fs::write(pair.src.join("b"), "b").unwrap();
    let has = |what: &str| fs::read_to_string(&told).is_ok_and(|t| t.contains(what));
    until("both alerts", SOON, || {
        (has("offline begin") && has("lag begin")).then_some(())
    });
    assert_eq!(number(&ask(), "farwrite_connected"), 0.0);
    pair.vault.serve();
    until("both over", SOON, || {
        (has("offline end") && has("lag end")).then_some(())
    });
    let all = fs::read_to_string(&told).unwrap();
    assert_eq!(all.lines().count(), 4, "{all}");
}

#[test]
fn a_running_daemon_takes_up_what_is_added_and_what_is_edited() {
    let place = Place::new();
    let mut pair = Pair::new(&place);
    let more = place.dir("more");
    fs::write(more.join("file"), "content").unwrap();
    pair.source.start();
    pair.converges(SOON);
    let pid = client(&pair).status().unwrap().pid;
    let known = client(&pair).status().unwrap().vaults[0].name.clone();
    let said = pair
        .source
        .run(&["source", "add", more.to_str().unwrap(), "--to", &known]);
    assert!(said.good().contains("taken it up"));
    pair.converges(SOON);
    assert_same(&more, &pair.vault.mirror(NAME, &more));

    // Edited by hand, wrongly and then well: it goes on either way.
    let file = pair.source.state.join("config.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}\nno such = \"key\"\n")).unwrap();
    let why = pair.source.run(&["source", "reload"]).bad();
    assert!(why.contains("config.toml"), "{why}");
    fs::write(more.join("file"), "other").unwrap();
    pair.source.run(&["flush"]).good();
    let path = more.to_str().unwrap();
    let gone = text.replace(
        &format!("path = \"{path}\""),
        &format!("path = \"{path}-not\""),
    );
    assert_ne!(gone, text);
    fs::write(&file, gone).unwrap();
    pair.source.run(&["source", "reload"]).bad();
    assert_eq!(
        fs::read_to_string(pair.vault.mirror(NAME, &more).join("file")).unwrap(),
        "other"
    );
    fs::write(more.join("file"), "third").unwrap();
    fs::write(&file, &text).unwrap();
    pair.source.run(&["source", "reload"]).good();
    pair.converges(SOON);
    assert_same(&more, &pair.vault.mirror(NAME, &more));
    assert_eq!(client(&pair).status().unwrap().pid, pid, "the same process");
}
