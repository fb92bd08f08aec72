//! What must not get in: other origins, other names, no or old tokens, forms of nowhere, paths outside, what never ends.

use crate::browser::entrance;
use crate::rig::*;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// A source with a GUI, and a session as plain HTTP has it.
pub struct Gui {
    pub pair: Pair,
    pub address: String,
    pub cookie: String,
    pub csrf: String,
    _place: Place,
}

pub struct Answer {
    pub code: u16,
    pub head: String,
    pub body: String,
}

/// Sends bytes and reads the answer to its end.
pub fn say(address: &str, text: &str) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    // The server may answer and close before all of it is sent.
    let _ = stream.write_all(text.as_bytes());
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let all = String::from_utf8_lossy(&all).into_owned();
    let (head, body) = all.split_once("\r\n\r\n").unwrap_or((&all, ""));
    Answer {
        code: head
            .split(' ')
            .nth(1)
            .and_then(|c| c.parse().ok())
            .unwrap_or(0),
        head: head.to_lowercase(),
        body: body.to_owned(),
    }
}

impl Gui {
    pub fn open() -> Gui {
        let place = Place::new();
        let mut pair = Pair::new(&place);
        fs::write(
            pair.src.join("<b onclick=alert(1)>.html"),
            "<script>alert(1)</script>",
        )
        .unwrap();
        fs::write(
            pair.src.join("image.svg"),
            "<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
        )
        .unwrap();
        pair.source.start();
        pair.converges(SOON);
        let link = entrance(&pair);
        let address = link
            .strip_prefix("http://")
            .unwrap()
            .split('/')
            .next()
            .unwrap()
            .to_owned();
        let token = link.split("token=").nth(1).unwrap();
        let let_in = say(
            &address,
            &format!(
                "GET /enter?token={token} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"
            ),
        );
        assert_eq!(let_in.code, 303, "{}", let_in.head);
        let set = let_in
            .head
            .lines()
            .find_map(|l| l.strip_prefix("set-cookie: "))
            .unwrap()
            .to_owned();
        assert!(
            set.contains("httponly") && set.contains("samesite=strict"),
            "{set}"
        );
        let mut gui = Gui {
            pair,
            address,
            cookie: set.split(';').next().unwrap().to_owned(),
            csrf: String::new(),
            _place: place,
        };
        let page = gui.get("/", &[]);
        assert_eq!(page.code, 200);
        gui.csrf = page
            .body
            .split("name=\"csrf\" value=\"")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap()
            .to_owned();
        gui
    }

    fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.request("GET", path, headers, "")
    }

    /// With the session's cookie and the right `Host`, unless told otherwise.
    fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut text = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
        let usual = [
            ("host", self.address.as_str()),
            ("cookie", self.cookie.as_str()),
        ];
        let own = |name: &str| headers.iter().any(|(n, _)| *n == name);
        for (name, value) in usual.iter().filter(|(n, _)| !own(n)).chain(headers) {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if method == "POST" {
            let length = body.len();
            text.push_str(&format!(
                "content-type: application/x-www-form-urlencoded\r\ncontent-length: {length}\r\n"
            ));
        }
        text.push_str("\r\n");
        text.push_str(body);
        say(&self.address, &text)
    }

    fn is_on(&self) -> bool {
        self.pair.source.status()["on"] == true
    }
}

#[test]
fn other_names_origins_and_forms_are_refused() {
    let gui = Gui::open();
    let origin = format!("http://{}", gui.address);
    let port = gui.address.rsplit(':').next().unwrap();
    // DNS rebinding: the address is right, the name is not.
    for host in [
        "evil.example",
        &format!("evil.example:{port}"),
        "127.0.0.1.evil.example",
        "",
    ] {
        let a = gui.get("/", &[("host", host)]);
        assert!([421, 400].contains(&a.code), "{host}: {}", a.head);
        assert!(!a.body.contains("csrf"), "{host}");
        assert_eq!(gui.get("/assets/app.js", &[("host", host)]).code / 100, 4);
    }
    assert_eq!(
        gui.get("/", &[("host", &format!("localhost:{port}"))]).code,
        200
    );
    // Forms of other pages, with the cookie that the browser would send along.
    let form = format!("csrf={}&on=false", gui.csrf);
    let foreign: [&[(&str, &str)]; 6] = [
        &[("origin", "http://evil.example")],
        &[("origin", "null")],
        &[("origin", "https://127.0.0.1")],
        &[("origin", "http://127.0.0.1:1")],
        &[("sec-fetch-site", "cross-site")],
        &[],
    ];
    for headers in foreign {
        assert_eq!(
            gui.request("POST", "/switch", headers, &form).code,
            403,
            "{headers:?}"
        );
    }
    for bad in ["on=false", "csrf=&on=false", "csrf=0000&on=false"] {
        assert_eq!(
            gui.request("POST", "/switch", &[("origin", &origin)], bad)
                .code,
            403,
            "{bad}"
        );
    }
    // Reads by scripts of other sites.
    let site = [
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-mode", "no-cors"),
    ];
    assert_eq!(gui.get("/live/overview", &site).code, 403);
    assert!(gui.is_on());
    // No session, a wrong one, a used or invented token.
    for cookie in ["", "farwrite-1=x", &format!("farwrite-{port}=0000")] {
        for path in [
            "/",
            "/history",
            "/live/activity",
            "/history/download?path=/etc/shadow",
            "/settings",
        ] {
            let a = gui.get(path, &[("cookie", cookie)]);
            assert_eq!(a.code, 401, "{cookie} {path}");
            assert!(
                !a.body.contains(gui.pair.src.to_str().unwrap()),
                "{}",
                a.body
            );
        }
        let a = gui.request(
            "POST",
            "/switch",
            &[("cookie", cookie), ("origin", &origin)],
            &form,
        );
        assert_eq!(a.code, 401);
    }
    assert_eq!(gui.get("/enter?token=0000", &[("cookie", "")]).code, 403);
    assert_eq!(gui.get("/enter", &[("cookie", "")]).code, 403);
    assert!(gui.is_on());
    // The real thing works.
    assert_eq!(
        gui.request("POST", "/switch", &[("origin", &origin)], &form)
            .code,
        303
    );
    assert!(!gui.is_on());
}

#[test]
fn names_and_contents_are_never_html_and_paths_outside_lead_nowhere() {
    let gui = Gui::open();
    let src = gui.pair.src.to_str().unwrap();
    let list = gui.get(&format!("/history?path={src}"), &[]);
    assert_eq!(list.code, 200);
    assert!(
        !list.body.contains("<b onclick") && list.body.contains("onclick=alert(1)"),
        "{}",
        list.body
    );
    for part in [
        "default-src 'none'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    ] {
        assert!(list.head.contains(part), "{}", list.head);
    }
    let policy = list
        .head
        .lines()
        .find(|l| l.starts_with("content-security-policy"))
        .unwrap();
    assert!(
        !policy.contains("unsafe") && !policy.contains("http"),
        "{policy}"
    );
    // Nothing inline: neither scripts, nor styles, nor handlers.
    assert!(
        !list.body.contains("<script>")
            && !list.body.contains(" style=")
            && !list.body.contains("javascript:")
    );
    let file = format!("{src}/%3Cb%20onclick=alert(1)%3E.html");
    let page = gui.get(&format!("/history/file?path={file}"), &[]);
    assert!(
        page.body.contains("alert(1)") && !page.body.contains("<script>alert"),
        "{}",
        page.body
    );
    let download = gui.get(&format!("/history/download?path={file}"), &[]);
    assert_eq!(download.body, "<script>alert(1)</script>");
    for part in [
        "application/octet-stream",
        "attachment",
        "sandbox",
        "nosniff",
    ] {
        assert!(download.head.contains(part), "{}", download.head);
    }
    assert_eq!(
        gui.get(&format!("/history/image?path={src}/image.svg"), &[])
            .code,
        415
    );
    for outside in [
        "/etc/passwd",
        "/",
        "/../etc/passwd",
        "relative",
        "",
        &format!("{src}/../../etc/passwd"),
        "%00",
    ] {
        for page in ["download", "image", "file"] {
            let a = gui.get(&format!("/history/{page}?path={outside}"), &[]);
            assert!(a.code / 100 == 4, "{page} {outside}: {}", a.code);
            assert!(!a.body.contains("root:"), "{}", a.body);
        }
    }
    for name in ["../app.css", "%2e%2e%2fCargo.toml", "x"] {
        assert_eq!(gui.get(&format!("/assets/{name}"), &[]).code, 404, "{name}");
    }
}

#[test]
fn what_never_ends_or_is_too_large_is_refused_and_holds_up_nobody() {
    let gui = Gui::open();
    let origin = format!("http://{}", gui.address);
    let large = format!("csrf={}&on=false&x={}", gui.csrf, "x".repeat(2 << 20));
    let a = gui.request("POST", "/switch", &[("origin", &origin)], &large);
    assert!([413, 0].contains(&a.code), "{}", a.head);
    let long = "x".repeat(200_000);
    assert!([431, 400, 0].contains(&gui.get("/", &[("x", &long)]).code));
    assert!(gui.get(&format!("/history?path=/{long}"), &[]).code / 100 != 2);
    // Heads that come byte by byte: many of them, and yet others are served; each is dropped.
    let slow: Vec<TcpStream> = (0..100)
        .map(|_| {
            let mut s = TcpStream::connect(&gui.address).unwrap();
            s.write_all(b"GET / HTTP/1.1\r\nhost: 127").unwrap();
            s
        })
        .collect();
    let begin = Instant::now();
    assert_eq!(gui.get("/", &[]).code, 200);
    assert!(begin.elapsed() < Duration::from_secs(5));
    for mut s in slow {
        s.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut answer = Vec::new();
        // Closed, with or without words, long before this read gives up.
        let _ = s.read_to_end(&mut answer);
        assert!(begin.elapsed() < Duration::from_secs(25));
        assert!(!String::from_utf8_lossy(&answer).contains(" 200 "));
    }
    assert!(gui.is_on());
}
