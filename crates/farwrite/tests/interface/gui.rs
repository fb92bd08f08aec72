//! What a person does with the GUI, in a real browser, judged from outside: by the kernel, the files, the vault.

use crate::browser::*;
use crate::rig::*;
use rustix::process::Signal;
use std::fs;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

/// Marks or watches of the daemon, as the kernel tells them.
fn in_kernel(source: &Source) -> usize {
    let dir = format!("/proc/{}/fdinfo", source.daemon().pid());
    let infos = fs::read_dir(dir)
        .unwrap()
        .filter_map(|e| fs::read_to_string(e.unwrap().path()).ok());
    let held = |l: &&str| l.starts_with("fanotify ") || l.starts_with("inotify ");
    infos.map(|text| text.lines().filter(held).count()).sum()
}

#[test]
fn a_link_lets_one_browser_in_once() {
    let site = Site::open(|_| ());
    let b = &site.browser;
    b.wait(
        "the overview",
        SOON,
        "document.title.startsWith('Overview')",
    );
    assert!(!b.address().contains("token"));
    // Another browser with the same link: used up. With none: not let in.
    let link = entrance(&site.pair);
    b.go(&link);
    b.go(&link);
    b.wait(
        "refused",
        SOON,
        "document.body.innerText.includes('used already')",
    );
    site.go("/");
    b.wait("still in", SOON, "document.title.startsWith('Overview')");
    b.forget_cookies();
    site.go("/history");
    b.wait(
        "out",
        SOON,
        "document.body.innerText.includes('farwrite ui')",
    );
    assert!(!b.text("body").contains("vault"));
}

#[test]
fn the_switch_lets_go_of_the_kernel_and_catches_up() {
    let site = Site::open(|src| fs::write(src.join("a"), "1").unwrap());
    let b = &site.browser;
    b.wait(
        "safe",
        SOON,
        "document.querySelector('h1').innerText.includes('Everything is safe')",
    );
    let marks = in_kernel(&site.pair.source);
    assert!(marks >= 1);
    assert_eq!(b.attribute("#switch-button", "aria-checked"), "true");
    // Without a mouse: the keyboard gets there and the space bar switches.
    b.run("document.querySelector('#switch-button').focus()");
    b.press("#switch-button", " ");
    b.wait(
        "off",
        SOON,
        "document.querySelector('#switch-button[aria-checked=false]')",
    );
    b.wait(
        "said",
        SOON,
        "document.querySelector('h1').innerText.includes('Automatic backup is off')",
    );
    assert!(
        b.text("#in-kernel").contains("original system calls"),
        "{}",
        b.text("#kernel")
    );
    assert_eq!(in_kernel(&site.pair.source), 0);
    fs::write(site.pair.src.join("a"), "while off").unwrap();
    fs::write(site.pair.src.join("b"), "new").unwrap();
    b.click("#switch-button");
    b.wait(
        "on",
        SOON,
        "document.querySelector('#switch-button[aria-checked=true]')",
    );
    assert_eq!(in_kernel(&site.pair.source), marks);
    b.wait(
        "safe again",
        SOON,
        "document.querySelector('h1').innerText.includes('Everything is safe')",
    );
    site.pair.converges(SOON);
}

#[test]
fn the_live_page_takes_no_click_away() {
    // This sensor's part of the page changes with every directory that is made.
    let site = Site::open(|src| {
        let config = src.parent().unwrap().join("state/config.toml");
        let text = fs::read_to_string(&config).unwrap();
        let inotify = text.replace("sensor = \"auto\"", "sensor = \"inotify\"");
        assert_ne!(text, inotify);
        fs::write(config, inotify).unwrap();
    });
    let b = &site.browser;
    let kernel = || b.text("#in-kernel");
    b.wait(
        "live",
        SOON,
        "document.querySelector('#now-lag').innerText !== ''",
    );
    let (mut on, mut made) = (true, 0);
    for round in 0..12 {
        let held = match round % 4 {
            0 | 1 => Held::Mouse,
            _ => Held::Key(" "),
        };
        b.run("document.getElementById('switch-button').isTheSame = true");
        b.hold("#switch-button", held, || {
            if !on {
                return;
            }
            for _ in 0..3 {
                let before = kernel();
                made += 1;
                fs::create_dir(site.pair.src.join(format!("d{made}"))).unwrap();
                until("the page tells of the new watch", SOON, || {
                    (kernel() != before).then_some(())
                });
            }
            let same = b.run("return document.getElementById('switch-button').isTheSame");
            assert_eq!(same, true, "the switch was replaced while it was held");
        });
        on = !on;
        b.wait(
            "the switch follows",
            SOON,
            &format!("document.querySelector('#switch-button[aria-checked={on}]') && !document.querySelector('#switch-button').isTheSame"),
        );
        assert_eq!(site.pair.source.status()["on"], on);
        b.wait(
            "live again",
            SOON,
            "document.querySelector('#now-lag').innerText !== ''",
        );
    }
    // What somebody else switches is shown in place, and the focus stays where it was.
    b.run("document.getElementById('switch-button').isTheSame = true");
    b.run("document.getElementById('switch-button').focus()");
    for (command, shown) in [("off", false), ("on", true)] {
        site.pair.source.run(&[command]).good();
        b.wait(
            "the switch follows",
            SOON,
            &format!("document.querySelector('#switch-button[aria-checked={shown}]')"),
        );
        let same = b.run("return document.activeElement.isTheSame");
        assert_eq!(same, true, "another element has the focus");
        let next = b.run("return document.querySelector('input[name=on]').value");
        assert_eq!(next, (!shown).to_string(), "what a click would ask for");
    }
    site.pair.converges(SOON);
}

#[test]
fn a_directory_is_protected_by_the_form_which_keeps_what_was_typed() {
    let site = Site::open(|_| ());
    let b = &site.browser;
    let more = site.place.dir("more");
    fs::write(more.join("file"), "file").unwrap();
    fs::write(more.join("x.tmp"), "left out").unwrap();
    site.go("/protect");
    b.fill("#directory", "/no/such/directory");
    b.fill("#exclude", "*.tmp\n");
    b.click("#protect-button");
    b.wait(
        "the error",
        SOON,
        "document.querySelector('#error-directory')",
    );
    assert_eq!(b.attribute("#directory", "aria-invalid"), "true");
    assert_eq!(b.value("#directory"), "/no/such/directory");
    assert_eq!(b.value("#exclude").trim(), "*.tmp");
    b.fill("#directory", more.to_str().unwrap());
    b.click("#preview-button");
    b.wait(
        "the preview",
        SOON,
        "document.querySelector('#preview')?.innerText.includes('1 of 2 entries')",
    );
    assert!(b.text("#preview").contains("x.tmp"));
    b.click("#protect-button");
    b.wait(
        "done",
        SOON,
        "document.body.innerText.includes('It is protected now')",
    );
    site.pair.converges(SOON);
    let mirror = site.pair.vault.mirror(NAME, &more);
    assert_eq!(fs::read(mirror.join("file")).unwrap(), b"file");
    assert!(!mirror.join("x.tmp").exists());
    // By an invite, to a second vault; a bad one first.
    let second = Vault::new(&site.place.top.join("second"));
    b.fill("#directory", more.to_str().unwrap());
    b.fill("#invite", "farwrite1:nonsense");
    b.click("#protect-button");
    b.wait("the error", SOON, "document.querySelector('#error-to')");
    assert_eq!(b.value("#invite"), "farwrite1:nonsense");
    b.fill("#invite", &second.invite("me", &second.address));
    b.fill("#vault_name", "other");
    b.fill("#exclude", "*.tmp");
    b.click("#protect-button");
    b.wait(
        "done",
        SOON,
        "document.body.innerText.includes('It is protected now')",
    );
    site.pair.source.flush(SOON);
    assert_eq!(
        fs::read(second.mirror("me", &more).join("file")).unwrap(),
        b"file"
    );
    // And no more.
    b.run(
        "document.querySelectorAll('form.remove').forEach(f => f.removeAttribute('data-confirm'))",
    );
    let button = format!("button[aria-label='Remove {}']", more.display());
    b.click(&button);
    b.wait(
        "removed",
        SOON,
        "document.body.innerText.includes('protected no more')",
    );
    let only = format!("button[aria-label='Remove {}']", site.pair.src.display());
    b.run(
        "document.querySelectorAll('form.remove').forEach(f => f.removeAttribute('data-confirm'))",
    );
    b.click(&only);
    b.wait(
        "refused",
        SOON,
        "document.querySelector('#error-remove')?.innerText.includes('the only one')",
    );
}

#[test]
fn one_directory_is_switched_off_by_itself_and_catches_up() {
    let mut site = Site::open(|_| ());
    let more = site.place.dir("more");
    fs::write(more.join("file"), "before").unwrap();
    let source = &site.pair.source;
    let known = source.status()["vaults"][0]["name"]
        .as_str()
        .unwrap()
        .to_owned();
    let add = ["source", "add", more.to_str().unwrap(), "--to", &known];
    source.run(&add).good();
    site.pair.source.kill();
    site.pair.source.start();
    site.pair.converges(SOON);
    let b = &site.browser;
    b.go(&entrance(&site.pair));
    let switch = format!(
        "button[aria-label^='Automatic backup of {}']",
        more.display()
    );
    let is = |on: bool| {
        format!("document.querySelector(\"{switch}\")?.getAttribute('aria-checked') === '{on}'")
    };
    b.wait("its switch", SOON, &is(true));
    b.click(&switch);
    b.wait("off", SOON, &is(false));
    b.wait(
        "said",
        SOON,
        "document.querySelector('h1').innerText.includes('Everything else is safe')",
    );
    assert!(
        b.text(".advice").contains(more.to_str().unwrap()),
        "{}",
        b.text(".advice")
    );
    let found = b.violations();
    assert!(found.is_empty(), "{found:?}");
    // It is not seen; the other one is.
    let mirror = site.pair.vault.mirror(NAME, &more);
    fs::write(more.join("file"), "while off").unwrap();
    site.pair.converges(SOON);
    assert_eq!(fs::read(mirror.join("file")).unwrap(), b"before");
    let status = site.pair.source.status();
    let of = |dir: &std::path::Path| {
        let all = status["protections"].as_array().unwrap();
        all.iter()
            .find(|p| p["directory"] == dir.to_str().unwrap())
            .unwrap()
            .clone()
    };
    assert_eq!(
        (&of(&more)["enabled"], &of(&more)["state"]),
        (&false.into(), &"off".into())
    );
    assert_eq!(of(&site.pair.src)["enabled"], true);
    // That stays over a restart; the last one is not switched off so.
    site.pair.source.kill();
    site.pair.source.start();
    site.pair.converges(SOON);
    assert_eq!(fs::read(mirror.join("file")).unwrap(), b"before");
    let off = |dir: &std::path::Path| site.pair.source.run(&["off", dir.to_str().unwrap()]);
    let said = off(&site.pair.src).bad();
    assert!(said.contains("as a whole"), "{said}");
    let said = off(&site.place.top).bad();
    assert!(said.contains("is not protected"), "{said}");
    // What the vault has of it is still to be had.
    let at = site.pair.source.run(&["ls", more.to_str().unwrap()]).good();
    assert!(at.contains("file"), "{at}");
    site.pair.source.run(&["on", more.to_str().unwrap()]).good();
    site.pair.converges(SOON);
    assert_same(&more, &mirror);
    let b = &site.browser;
    b.go(&entrance(&site.pair));
    b.wait("on", SOON, &is(true));
    b.wait(
        "safe",
        SOON,
        "document.querySelector('h1').innerText.includes('Everything is safe')",
    );
}

#[test]
fn what_is_written_appears_in_the_feed_within_a_second() {
    let site = Site::open(|_| ());
    let b = &site.browser;
    site.go("/activity");
    b.wait("the feed is there", SOON, "document.querySelector('#feed')");
    // The first change may come before the stream is open.
    let mut n = 0;
    b.run("window.seen = 0; new MutationObserver(() => { window.seen += 1; }).observe(document.getElementById('feed'), {childList: true});");
    until("the stream is open", SOON, || {
        n += 1;
        fs::write(site.pair.src.join(format!("warm{n}")), "x").unwrap();
        let seen = b.run("return window.seen");
        (seen.as_u64().unwrap() > 0).then_some(())
    });
    let begin = Instant::now();
    fs::write(site.pair.src.join("fresh file"), "fresh").unwrap();
    b.wait(
        "the file",
        SECOND,
        "document.querySelector('#feed').innerText.includes('fresh file')",
    );
    eprintln!("seen after {:?}", begin.elapsed());
    b.wait("durable", SOON, "[...document.querySelectorAll('#feed tr')].some(r => r.innerText.includes('fresh file') && /[0-9] (ms|s)/.test(r.lastChild.innerText))");
    // What was sent of it, and of the next write only what is new (the file is longer than a block of the checksums).
    let cells = |name: &str| {
        format!(
            "[...document.querySelectorAll('#feed tr')].find(r => r.innerText.includes('{name}'))?.children"
        )
    };
    let large = site.pair.src.join("large file");
    fs::write(&large, vec![7; 100_000]).unwrap();
    b.wait(
        "its bytes",
        SOON,
        &format!("{}?.[4].innerText === '100 kB'", cells("large file")),
    );
    {
        use std::os::unix::fs::FileExt;
        let f = fs::OpenOptions::new().write(true).open(&large).unwrap();
        f.write_all_at(&[8; 10], 50_000).unwrap();
    }
    b.wait(
        "only what is new",
        SOON,
        &format!("{}?.[4].innerText === '8.2 kB'", cells("large file")),
    );
    // A name that is HTML is text.
    fs::write(site.pair.src.join("<img src=x onerror=alert(1)>"), "x").unwrap();
    b.wait(
        "the odd name",
        SOON,
        "document.querySelector('#feed').innerText.includes('<img src=x onerror=alert(1)>')",
    );
    assert_eq!(b.run("return document.querySelectorAll('img').length"), 0);
    // Filter, then pause.
    b.fill("#feed-filter", "wanted");
    std::thread::sleep(Duration::from_millis(600));
    until("only what is wanted", SOON, || {
        n += 1;
        fs::write(site.pair.src.join(format!("wanted{n}")), "x").unwrap();
        fs::write(site.pair.src.join(format!("other{n}")), "x").unwrap();
        let text = b.text("#feed");
        assert!(!text.contains("other"), "{text}");
        text.contains("wanted").then_some(())
    });
    b.click("#feed-pause");
    fs::write(site.pair.src.join("wanted later"), "x").unwrap();
    b.wait(
        "paused",
        SOON,
        "document.querySelector('#feed-more').innerText.includes('Paused')",
    );
    assert!(!b.text("#feed").contains("wanted later"));
    b.click("#feed-pause");
    b.wait(
        "shown",
        SOON,
        "document.querySelector('#feed').innerText.includes('wanted later')",
    );
}

#[test]
fn a_file_of_an_earlier_moment_is_found_and_brought_back() {
    let site = Site::open(|src| {
        fs::create_dir(src.join("papers")).unwrap();
        fs::write(src.join("papers/report.txt"), "first line\nsecond line\n").unwrap();
    });
    let b = &site.browser;
    let file = site.pair.src.join("papers/report.txt");
    let then = now();
    fs::write(
        &file,
        "first line\nanother line\n<script>alert(1)</script>\n",
    )
    .unwrap();
    fs::write(site.pair.src.join("papers/later.txt"), "later").unwrap();
    site.pair.converges(SOON);
    site.go("/history");
    b.wait(
        "the timeline",
        SOON,
        "document.querySelector('svg.chart rect') && !document.querySelector('#slider').hidden",
    );
    b.click("table a");
    b.wait(
        "the directory",
        SOON,
        "document.querySelector('table').innerText.includes('papers')",
    );
    b.fill("#at", "soon");
    b.click("#moment-form button");
    b.wait("the error", SOON, "document.querySelector('#error-at')");
    assert_eq!(b.value("#at"), "soon");
    b.fill("#at", &then);
    b.click("#moment-form button");
    b.wait(
        "the moment",
        SOON,
        "document.querySelector('h2#tree-title')?.innerText.includes('As of')",
    );
    b.follow("papers");
    b.wait(
        "the tree as it was",
        SOON,
        "document.querySelector('table').innerText.includes('report.txt')",
    );
    assert!(!b.text("table").contains("later.txt"));
    b.follow("report.txt");
    b.wait(
        "the content",
        SOON,
        "document.querySelector('#content')?.innerText.includes('second line')",
    );
    // Elsewhere: first what would be done, then it is done.
    let back = site.place.top.join("back");
    b.fill("#to", "not/absolute");
    b.click("#dry-run");
    b.wait(
        "refused",
        SOON,
        "document.querySelector('#restore-result').innerText.includes('whole path')",
    );
    assert_eq!(b.value("#to"), "not/absolute");
    b.fill("#to", back.to_str().unwrap());
    b.click("#dry-run");
    b.wait(
        "the dry run",
        SOON,
        "document.querySelector('#dry-run-result')?.innerText.includes('Would restore 1 file')",
    );
    assert!(!back.exists());
    b.click("#restore-now");
    b.wait(
        "done",
        SOON,
        "document.querySelector('#restore-done')?.innerText.includes('Restored 1 file')",
    );
    assert_eq!(
        fs::read(back.join("report.txt")).unwrap(),
        b"first line\nsecond line\n"
    );
    // Back to its place: only if told to replace what is there.
    b.click("input[value=here]");
    b.click("#restore-now");
    b.wait(
        "in the way",
        SOON,
        "document.querySelector('#restore-result').innerText.includes('exists already')",
    );
    b.click("input[name=overwrite]");
    b.click("#restore-now");
    b.wait(
        "done",
        SOON,
        "document.querySelector('#restore-done')?.innerText.includes('Restored 1 file')",
    );
    assert_eq!(fs::read(&file).unwrap(), b"first line\nsecond line\n");
    // A name for the moment; then it is jumped to, and the timeline is dragged back to the present.
    site.go(&site.history("/history", "papers", &then));
    b.fill("#mark", "no name");
    b.click("#mark-button");
    b.wait("the error", SOON, "document.querySelector('#error-mark')");
    assert_eq!(b.value("#mark"), "no name");
    b.fill("#mark", "first-draft");
    b.click("#mark-button");
    b.wait(
        "marked",
        SOON,
        "document.querySelector('.marks a[aria-current]')?.innerText === 'first-draft'",
    );
    assert!(!b.text("table").contains("later.txt"));
    let said = site.pair.source.run(&[
        "ls",
        "--at",
        "mark:first-draft",
        file.parent().unwrap().to_str().unwrap(),
    ]);
    assert!(said.good().contains("report.txt"));
    b.drag(".timeline svg", 0.2, 1.0);
    b.wait(
        "the present",
        SOON,
        "document.querySelector('table')?.innerText.includes('later.txt')",
    );
    b.follow("first-draft");
    b.wait("back there", SOON, "document.querySelector('.marks a[aria-current]') && !document.querySelector('table').innerText.includes('later.txt')");
    // The newer version: its script is text, and what it changed is shown.
    site.pair.converges(SOON);
    site.go(&site.history("/history/file", "papers/report.txt", &then));
    b.wait(
        "versions",
        SOON,
        "document.querySelectorAll('section[aria-labelledby=versions-title] a').length >= 2",
    );
    b.run("document.querySelectorAll('section[aria-labelledby=versions-title] a')[1].click()");
    b.wait(
        "the other version",
        SOON,
        "document.querySelector('#content')?.innerText.includes('<script>alert(1)</script>')",
    );
    b.wait("the difference", SOON, "document.querySelector('ins')");
    let download = b.attribute("#download", "href");
    let bytes = b.run_async(&format!(
        "fetch({download:?}).then(r => r.text()).then(done)"
    ));
    assert_eq!(
        bytes,
        "first line\nanother line\n<script>alert(1)</script>\n"
    );
}

#[test]
fn a_vault_that_goes_away_shows_within_two_seconds_and_recovers() {
    let mut site = Site::open(|_| ());
    let safe = "document.querySelector('h1').innerText.includes('Everything is safe')";
    site.browser.wait("safe", SOON, safe);
    site.pair.vault.kill();
    let b = &site.browser;
    b.wait(
        "away",
        2 * SECOND,
        "document.querySelector('h1').innerText.includes('Not safe: no connection')",
    );
    fs::write(site.pair.src.join("meanwhile"), "x").unwrap();
    b.wait(
        "waiting",
        SOON,
        "document.querySelector('.advice').innerText.includes('wait')",
    );
    site.pair.vault.serve();
    site.browser.wait("back", SOON, safe);
    site.pair.converges(SOON);
    // The daemon itself: killed, the page says that it is old.
    site.pair.source.daemon().signal(Signal::KILL);
    site.browser
        .wait("old", SOON, "!document.querySelector('#connection').hidden");
}
