//! Every page, light and dark, on a desktop and on a phone: nothing that axe-core finds, nothing wider than the screen.
//!
//! With `FARWRITE_SCREENS=DIR` each is kept there as a picture.

use crate::browser::*;
use crate::rig::*;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

fn fill(src: &Path) {
    fs::create_dir_all(src.join("papers/old")).unwrap();
    fs::create_dir_all(src.join("photos")).unwrap();
    fs::write(src.join("papers/report.txt"), "Title\n\nfirst draft\n").unwrap();
    fs::write(src.join("papers/table.csv"), "a,b\n1,2\n").unwrap();
    fs::write(src.join("notes.md"), "# Notes\n").unwrap();
}

#[test]
fn every_page_is_for_everybody() {
    let mut place = Place::new();
    if screens().is_some() {
        // Pictures for the documents show a path that means something.
        place.top = "/srv/demo".into();
        let _ = fs::remove_dir_all(&place.top);
        fs::create_dir_all(&place.top).unwrap();
    }
    let site = Site::open_in(place, fill);
    // With a second directory, each has a switch.
    let api =
        farwrite_control::Client::connect(&site.pair.source.state.join("control.sock")).unwrap();
    let known = api.get::<farwrite_control::Settings>("settings").unwrap();
    let letters = site.place.dir("letters");
    let protect = farwrite_control::Protect {
        directory: letters.to_str().unwrap().into(),
        to: known.vaults[0].name.clone(),
        ..farwrite_control::Protect::default()
    };
    api.post::<farwrite_control::Settings>("protect", &protect)
        .unwrap();
    let b = &site.browser;
    let report = site.pair.src.join("papers/report.txt");
    let mut then = String::new();
    for i in 0..4 {
        fs::write(
            &report,
            format!("Title\n\n{}\n", "another line\n".repeat(i + 1)),
        )
        .unwrap();
        fs::write(
            site.pair.src.join(format!("papers/draft {i}.txt")),
            "x".repeat(100 << i),
        )
        .unwrap();
        site.pair.source.flush(SOON);
        then = now();
        std::thread::sleep(Duration::from_millis(700));
    }
    fs::remove_file(site.pair.src.join("papers/draft 1.txt")).unwrap();
    site.pair.source.flush(SOON);
    let mark = ["mark", "before-the-move", "--at", &then];
    site.pair.source.run(&mark).good();
    let pages = [
        ("overview", "/".to_owned()),
        ("directories", "/".to_owned()),
        ("activity", "/activity".to_owned()),
        ("protect", "/protect".to_owned()),
        ("history", site.history("/history", "papers", &then)),
        (
            "file",
            site.history("/history/file", "papers/report.txt", &then),
        ),
        ("settings", "/settings".to_owned()),
        ("missing", "/no/such/page".to_owned()),
    ];
    let mut wrong = Vec::new();
    for (name, address) in &pages {
        looks(b, name, &mut wrong, || {
            site.go(address);
            show_something(&site, name);
            if *name == "directories" {
                b.run("document.querySelector('#dirs-title').scrollIntoView()");
            }
        });
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // A form with an error, too.
    site.go("/settings");
    b.fill("#interval", "soon");
    b.click("#save");
    b.wait(
        "the error",
        SOON,
        "document.querySelector('#error-interval')",
    );
    assert_eq!(b.value("#interval"), "soon");
    let found = b.violations();
    assert!(found.is_empty(), "{found:?}");
    b.fill("#interval", "250ms");
    b.click("#save");
    b.wait("saved", SOON, "document.body.innerText.includes('Saved')");
    assert_eq!(site.pair.source.status()["schedule"]["interval"], "250ms");
    // Only with the keyboard: the first stop is the way past the navigation, and every stop is seen.
    site.go("/");
    b.press("body", "\u{e004}");
    assert_eq!(b.run("return document.activeElement.className"), "skip");
}

/// A page in each of its looks: what axe-core finds, what is too wide, and a picture if one is wanted.
pub fn looks(b: &Browser, name: &str, wrong: &mut Vec<String>, open: impl Fn()) {
    for look in [Look::Desktop, Look::Phone] {
        for dark in [false, true] {
            b.look(look, dark);
            open();
            b.wait("the page", SOON, "document.readyState === 'complete'");
            let shown =
                format!("{name}-{look:?}-{}", if dark { "dark" } else { "light" }).to_lowercase();
            if let Some(dir) = screens() {
                fs::create_dir_all(&dir).unwrap();
                b.screenshot(&dir.join(format!("{shown}.png")));
            }
            wrong.extend(b.violations().into_iter().map(|v| format!("{shown}: {v}")));
            let wide = b.run("return document.documentElement.scrollWidth - window.innerWidth");
            if wide.as_i64().unwrap() > 0 {
                wrong.push(format!("{shown}: {wide} pixels wider than the screen"));
            }
        }
    }
}

/// Something to look at on pages that are empty otherwise.
fn show_something(site: &Site, page: &str) {
    let b = &site.browser;
    match page {
        "activity" => {
            let mut n = 0;
            while b
                .run("return document.getElementById('feed').rows.length")
                .as_u64()
                .unwrap()
                < 12
            {
                n += 1;
                assert!(n < 200, "the feed stays empty");
                fs::write(site.pair.src.join("notes.md"), format!("# Notes\n{n}\n")).unwrap();
                fs::write(
                    site.pair.src.join(format!("photos/p{n}.raw")),
                    vec![7; 1000 * n],
                )
                .unwrap();
                std::thread::sleep(Duration::from_millis(120));
            }
            b.wait("durable", SOON, "[...document.querySelectorAll('#feed tr')].some(r => /[0-9] (ms|s)/.test(r.lastChild.innerText))");
        }
        "overview" => {
            for n in 0..12 {
                fs::write(
                    site.pair.src.join("photos/live.raw"),
                    vec![n; 20_000 * (1 + usize::from(n) % 5)],
                )
                .unwrap();
                std::thread::sleep(Duration::from_millis(150));
            }
            b.wait(
                "the charts",
                SOON,
                "document.querySelector('#chart-rate path')",
            );
        }
        _ => {}
    }
}

#[test]
fn heavy_a_directory_of_a_hundred_thousand_entries_is_paged() {
    let site = Site::open(|src| {
        fs::create_dir(src.join("many")).unwrap();
        for i in 0..100_000 {
            fs::File::create(src.join(format!("many/f{i:06}"))).unwrap();
        }
    });
    let b = &site.browser;
    let begin = Instant::now();
    site.go(&site.history("/history", "many", ""));
    b.wait(
        "a page",
        SOON,
        "document.querySelectorAll('tbody tr').length === 500",
    );
    eprintln!("first page after {:?}", begin.elapsed());
    b.click("#next-page");
    b.wait(
        "the next",
        SOON,
        "document.querySelector('tbody').innerText.includes('f000500')",
    );
    assert_eq!(
        b.run("return document.querySelectorAll('tbody tr').length"),
        500
    );
}

#[test]
fn heavy_a_storm_in_the_feed_does_not_slow_capture() {
    let site = Site::open(|_| ());
    let b = &site.browser;
    let storm = |name: &str| {
        let dir = site.pair.src.join(name);
        fs::create_dir(&dir).unwrap();
        let begin = Instant::now();
        let script = "my ($d) = @ARGV; for my $i (0 .. 29999) { open(my $f, '>', \"$d/f$i\"); print $f $i; close $f; }";
        tool("perl", &["-e", script, dir.to_str().unwrap()]);
        site.pair.source.flush(LONG);
        begin.elapsed()
    };
    site.go("/settings");
    let alone = storm("alone");
    site.go("/activity");
    b.wait("the feed", SOON, "document.querySelector('#feed')");
    let watched = storm("watched");
    b.wait(
        "that there is more",
        SOON,
        "document.querySelector('#feed').rows.length > 50",
    );
    let rows = b
        .run("return document.getElementById('feed').rows.length")
        .as_u64()
        .unwrap();
    assert!(rows <= 400, "{rows} rows");
    eprintln!("30,000 files: {alone:?} alone, {watched:?} while a browser watches");
    // The browser itself needs the processor: what counts is that nothing waits for it.
    assert!(
        watched < alone * 3 + Duration::from_secs(5),
        "{alone:?} alone, {watched:?} watched"
    );
    let status = site.pair.source.status();
    assert_eq!(status["protections"][0]["lost"], 0, "{status:#}");
    assert_eq!(status["sensor"]["overflows"], 0, "{status:#}");
    assert_same(&site.pair.src, &site.pair.mirror());
}

/// Changes a second, for how many seconds, over how many files.
const STEADY: (u64, u64, usize) = (10_000, 10, 20_000);

#[test]
fn heavy_ten_thousand_changes_a_second_leave_page_and_daemon_at_ease() {
    use std::os::unix::fs::FileExt;
    let site = Site::open(|src| {
        for i in 0..STEADY.2 {
            fs::write(src.join(format!("f{i}")), "0").unwrap();
        }
    });
    let b = &site.browser;
    site.go("/activity");
    b.wait("the feed", SOON, "document.querySelector('#feed')");
    b.run("window.left = 0; new MutationObserver(() => { if (/more changes/.test(document.getElementById('feed-more').innerText)) window.left += 1; }).observe(document.getElementById('feed-more'), {childList: true, characterData: true, subtree: true});");
    let before = site.pair.source.status()["schedule"]["messages"]
        .as_u64()
        .unwrap();
    let (rate, seconds, files) = STEADY;
    let src = site.pair.src.clone();
    let writer = std::thread::spawn(move || {
        let begin = Instant::now();
        let mut written = 0;
        while begin.elapsed() < Duration::from_secs(seconds) {
            let due = begin.elapsed().as_millis() as u64 * rate / 1000;
            while written < due {
                // Scattered, so that few fall together.
                let file = src.join(format!("f{}", (written as usize * 7919) % files));
                let file = fs::OpenOptions::new().write(true).open(file).unwrap();
                file.write_all_at(format!("{written}").as_bytes(), 0)
                    .unwrap();
                written += 1;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        (written, begin.elapsed())
    });
    // Meanwhile the pages and the API answer.
    let mut slowest = Duration::ZERO;
    while !writer.is_finished() {
        let begin = Instant::now();
        let status = b.run_async(
            "fetch('/').then(r => r.text()).then(t => done(t.includes('Automatic backup')))",
        );
        assert_eq!(status, true);
        slowest = slowest.max(begin.elapsed());
        std::thread::sleep(Duration::from_millis(100));
    }
    let (written, took) = writer.join().unwrap();
    let flushing = Instant::now();
    site.pair.source.flush(LONG);
    let status = site.pair.source.status();
    let messages = status["schedule"]["messages"].as_u64().unwrap() - before;
    let left = b.run("return window.left").as_u64().unwrap();
    eprintln!(
        "{written} changes in {took:?} ({:.0} a second), {messages} messages; the slowest page took {slowest:?}; \
         all durable {:?} after the last; the feed said {left} times that it samples",
        written as f64 / took.as_secs_f64(),
        flushing.elapsed()
    );
    assert!(
        written as f64 / took.as_secs_f64() > 0.95 * rate as f64,
        "the load was not there"
    );
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    assert!(left > 0, "the feed does not say that it samples");
    let rows = b
        .run("return document.getElementById('feed').rows.length")
        .as_u64()
        .unwrap();
    assert!((50..=400).contains(&rows), "{rows} rows");
    assert_eq!(status["protections"][0]["lost"], 0, "{status:#}");
    assert_eq!(status["sensor"]["overflows"], 0, "{status:#}");
    assert_same(&site.pair.src, &site.pair.mirror());
}
