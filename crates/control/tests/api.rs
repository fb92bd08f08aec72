//! The API over a real socket with a handler that only records: what it accepts, what it refuses, who may come.

use farwrite_control::{
    Activity, Answer, Client, ClientError, Connection, Content, ContentQuery, Fault, FaultKind,
    Handler, Server, Status, Watch, openapi,
};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[derive(Default)]
struct Fake {
    on: AtomicBool,
    gave_up: AtomicU64,
}

impl Handler for Fake {
    fn status(&self) -> Status {
        Status {
            on: self.on.load(Ordering::Acquire),
            ..Status::default()
        }
    }

    fn flush(&self, timeout: Option<Duration>, gone: &dyn Fn() -> bool) -> Answer<()> {
        let end = Instant::now() + timeout.unwrap_or(Duration::from_secs(60));
        while Instant::now() < end {
            if gone() {
                self.gave_up.fetch_add(1, Ordering::AcqRel);
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(Fault::failed("not in time"))
    }

    fn switch(&self, on: bool) -> Answer<()> {
        self.on.store(on, Ordering::Release);
        Ok(())
    }

    fn set_interval(&self, interval: &str) -> Answer<()> {
        Err(Fault::field("interval", format!("no: {interval}")))
    }

    fn watch(&self) -> Watch {
        let items = (1..=3).map(|count| Some(Activity::Skipped { count }));
        Box::new(items)
    }

    fn content(&self, query: ContentQuery) -> Answer<Content> {
        let size = if query.path == "/whole" {
            1_000_000
        } else {
            2_000_000
        };
        Ok(Content {
            size,
            write: Box::new(move |out| {
                out.write_all(&vec![7; 1_000_000])?;
                match size {
                    1_000_000 => Ok(()),
                    _ => Err(std::io::Error::other("damaged")),
                }
            }),
        })
    }
}

struct Rig {
    handler: Arc<Fake>,
    path: std::path::PathBuf,
    _server: Server,
    _dir: tempfile::TempDir,
}

fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    let handler = Arc::new(Fake::default());
    Rig {
        _server: Server::start(&path, handler.clone()).unwrap(),
        handler,
        path,
        _dir: dir,
    }
}

#[test]
fn requests_reach_the_handler_and_refusals_come_back_with_their_field() {
    let rig = rig();
    let mode = std::fs::metadata(&rig.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let client = Client::connect(&rig.path).unwrap();
    assert!(!client.status().unwrap().on);
    client.switch(true).unwrap();
    assert!(client.status().unwrap().on);
    match client.set_interval("soon") {
        Err(ClientError::Failed(f)) => assert_eq!(
            (f.kind, f.field.as_deref(), f.why.as_str()),
            (FaultKind::Invalid, Some("interval"), "no: soon")
        ),
        other => panic!("{other:?}"),
    }
    let e = client.flush(Some(Duration::from_millis(20))).unwrap_err();
    assert_eq!(e.to_string(), "not in time");
    let mut seen = Vec::new();
    client
        .watch(|a| {
            seen.push(a);
            true
        })
        .unwrap();
    assert_eq!(seen.len(), 3);
    assert_eq!(seen[2], Activity::Skipped { count: 3 });
    let e = client.get::<Status>("no/such").unwrap_err();
    assert!(matches!(e, ClientError::Failed(f) if f.kind == FaultKind::NotFound));
}

#[test]
fn a_client_that_hangs_up_ends_its_flush() {
    let rig = rig();
    let mut stream = UnixStream::connect(&rig.path).unwrap();
    let body = "{}";
    write!(
        stream,
        "POST /v1/flush HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    std::thread::sleep(Duration::from_millis(50));
    drop(stream);
    let end = Instant::now() + Duration::from_secs(20);
    while rig.handler.gave_up.load(Ordering::Acquire) == 0 {
        assert!(Instant::now() < end, "the flush goes on without its client");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn content_comes_whole_or_is_seen_to_be_short() {
    use http_body_util::BodyExt;
    let rig = rig();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let connection = Connection::new(&rig.path);
        let ask = |path: &str| ContentQuery {
            path: path.into(),
            ..ContentQuery::default()
        };
        let (length, body) = connection
            .raw("history/content", &ask("/whole"))
            .await
            .unwrap();
        assert_eq!(length, Some(1_000_000));
        assert_eq!(body.collect().await.unwrap().to_bytes().len(), 1_000_000);
        let (length, body) = connection
            .raw("history/content", &ask("/short"))
            .await
            .unwrap();
        assert_eq!(length, Some(2_000_000));
        assert!(body.collect().await.is_err(), "short and not noticed");
    });
}

#[test]
fn what_is_no_request_is_refused() {
    let rig = rig();
    let say = |text: &[u8]| {
        let mut stream = UnixStream::connect(&rig.path).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        // The server may have closed already.
        let _ = stream.write_all(text);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    assert!(say(b"nonsense\r\n\r\n").starts_with("HTTP/1.1 400"));
    let head = "POST /v1/switch HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n";
    for bad in ["{}", "[]", r#"{"on":1}"#, r#"{"on":true,"also":1}"#, "{"] {
        let text = format!("{head}content-length: {}\r\n\r\n{bad}", bad.len());
        let answer = say(text.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 422"), "{bad}: {answer}");
    }
    let large = format!(
        "{head}content-length: 1000000\r\n\r\n{}",
        "x".repeat(1_000_000)
    );
    assert!(say(large.as_bytes()).starts_with("HTTP/1.1 4"));
    let endless = format!("GET /v1/status HTTP/1.1\r\nx: {}", "x".repeat(200_000));
    assert!(say(endless.as_bytes()).starts_with("HTTP/1.1 431"));
    // A head that never ends is given up, and the next client is served.
    let mut slow = UnixStream::connect(&rig.path).unwrap();
    slow.write_all(b"GET /v1/sta").unwrap();
    assert!(Client::connect(&rig.path).unwrap().status().is_ok());
}

#[test]
fn the_document_names_every_path_and_type() {
    let doc: serde_json::Value = serde_json::from_str(&openapi()).unwrap();
    assert_eq!(
        doc["openapi"].as_str().unwrap().split('.').next(),
        Some("3")
    );
    for path in [
        "/v1/status",
        "/v1/switch",
        "/v1/restore/{id}",
        "/v1/events/activity",
    ] {
        assert!(doc["paths"][path].is_object(), "{path}");
    }
    let text = doc.to_string();
    let schemas = doc["components"]["schemas"].as_object().unwrap();
    for part in text.split("#/components/schemas/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(
            schemas.contains_key(name),
            "{name} is named and not described"
        );
    }
    assert!(schemas["Status"]["properties"]["vaults"].is_object());
}
