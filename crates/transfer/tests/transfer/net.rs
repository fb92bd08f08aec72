//! The drivers: links and servers over memory, TCP with TLS, and a stand-in for ssh.

use crate::common::{DEADLINE, FakeVault, Maker, block, name, wait_for};
use bytes::BytesMut;
use farwrite_core::history::{BlockBytes, Request, Response};
use farwrite_core::{BatchSeq, BytePath, Record, RecordKind, Timestamp};
use farwrite_transfer::answer::{Piece, response_pieces};
use farwrite_transfer::message::{Message, PROTOCOL_V3, RefusalCode, Welcome};
use farwrite_transfer::net::tls::{self, Identity};
use farwrite_transfer::net::*;
use farwrite_transfer::pairing::Invite;
use farwrite_transfer::session::{Framer, HANDSHAKE_WITHIN, SessionEnd};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

type Events = Arc<Mutex<Vec<LinkEvent>>>;

fn service(vault: &Arc<FakeVault>) -> Arc<Service> {
    Service::new(vault.clone(), ServerOptions::new("test vault"))
}

/// A dialer whose every connection carries at most `bytes[n]` bytes from the source (the last one: any number).
fn memory(rt: &Runtime, service: Arc<Service>, bytes: Vec<usize>) -> Dialer {
    let handle = rt.handle().clone();
    let count = Arc::new(AtomicUsize::new(0));
    Dialer::Custom(Arc::new(move || {
        let n = count.fetch_add(1, Ordering::SeqCst);
        let limit = bytes.get(n).copied();
        let (near, mut wire) = tokio::io::duplex(8 << 10);
        let (far, mut end) = tokio::io::duplex(8 << 10);
        let service = service.clone();
        handle.spawn(async move {
            let (_keep, shutdown) = watch::channel(false);
            serve_connection(service, far, Peer::Named(name("web")), shutdown).await
        });
        handle.spawn(async move {
            let Some(limit) = limit else {
                return tokio::io::copy_bidirectional(&mut wire, &mut end)
                    .await
                    .map(|_| ());
            };
            let (r, mut w) = tokio::io::split(wire);
            let (mut r2, mut w2) = tokio::io::split(end);
            let mut up = r.take(limit as u64);
            tokio::select! {
                done = tokio::io::copy(&mut up, &mut w2) => done.map(|_| ()),
                done = tokio::io::copy(&mut r2, &mut w) => done.map(|_| ()),
            }
        });
        Box::pin(async move { Ok(Box::new(near) as BoxStream) })
    }))
}

fn link(rt: &Runtime, dial: Dialer) -> (SourceLink, Events) {
    let events = Events::default();
    let sink = events.clone();
    let tell = Box::new(move |e| sink.lock().push(e));
    let link = SourceLink::spawn(rt.handle(), dial, LinkOptions::default(), tell);
    (link, events)
}

fn wait_up(events: &Events) -> LinkEvent {
    wait_for("Up", || {
        let events = events.lock();
        let mut up = events.iter().filter(|e| matches!(e, LinkEvent::Up { .. }));
        up.next_back().cloned()
    })
}

fn wait_refused(events: &Events) -> (RefusalCode, String) {
    wait_for("Refused", || {
        events.lock().iter().find_map(|e| match e {
            LinkEvent::Refused { code, text } => Some((*code, text.clone())),
            _ => None,
        })
    })
}

fn wait_down(events: &Events) -> String {
    wait_for("Down", || {
        events.lock().iter().find_map(|e| match e {
            LinkEvent::Down { why, .. } => Some(why.clone()),
            _ => None,
        })
    })
}

fn send_all(link: &SourceLink, batches: &[Vec<Record>]) {
    for r in batches.iter().flatten() {
        link.send(r.clone()).unwrap();
    }
}

#[test]
fn connections_that_break_lose_and_repeat_nothing() {
    let cuts = [10, 150, 700, 5_000, 20_001, 33_333];
    broken(cuts.to_vec(), 3_000);
    // Within the first large payload, in its padding, and behind.
    broken(vec![5_000, 70_100, 70_200, 140_300, 200_001], 70_001);
}

fn broken(cuts: Vec<usize>, bytes: usize) {
    let rt = Runtime::new().unwrap();
    let vault = Arc::new(FakeVault::default());
    let service = service(&vault);
    let (link, events) = link(&rt, memory(&rt, service.clone(), cuts));
    wait_up(&events);
    link.begin();
    let mut maker = Maker::new();
    let batches: Vec<_> = (0..40).map(|_| maker.batch(2, bytes)).collect();
    send_all(&link, &batches);
    wait_for("the last ack", || {
        (link.stats().acked == Some(BatchSeq(40))).then_some(())
    });
    assert!(vault.log("web").lock().batches == batches);
    let stats = link.stats();
    assert!(stats.reconnects >= 3, "{stats:?}");
    assert_eq!(stats.unacked_bytes, 0);
    assert!(link.close(DEADLINE));
    wait_for("the sink's end", || {
        (vault.log("web").lock().writers == 0).then_some(())
    });
    let acks: Vec<_> = events
        .lock()
        .iter()
        .filter_map(|e| match e {
            LinkEvent::Ack(seq) => Some(*seq),
            _ => None,
        })
        .collect();
    assert!(acks.windows(2).all(|w| w[0] < w[1]), "{acks:?}");
    assert_eq!(service.counters().sessions.violations, 0);
}

#[test]
fn a_newer_session_takes_over_and_there_is_never_a_second_writer() {
    let rt = Runtime::new().unwrap();
    let vault = Arc::new(FakeVault::default());
    let service = service(&vault);
    let (first, first_events) = link(&rt, memory(&rt, service.clone(), vec![]));
    wait_up(&first_events);
    first.begin();
    let mut maker = Maker::new();
    let one = maker.batch(1, 100);
    send_all(&first, std::slice::from_ref(&one));
    wait_for("ack", || first.stats().acked);
    // An unfinished batch must be gone when the newer session opens the log.
    first.send(maker.batch(1, 100)[0].clone()).unwrap();
    let (second, second_events) = link(&rt, memory(&rt, service.clone(), vec![]));
    let up = wait_up(&second_events);
    assert!(
        matches!(
            up,
            LinkEvent::Up {
                last: Some((BatchSeq(1), _)),
                first: true,
                ..
            }
        ),
        "{up:?}"
    );
    assert_eq!(wait_refused(&first_events).0, RefusalCode::TakenOver);
    second.begin();
    let mut maker = Maker {
        seq: BatchSeq(1),
        chain: Maker::new().after(&one),
    };
    let two = maker.batch(2, 50);
    send_all(&second, std::slice::from_ref(&two));
    wait_for("ack", || {
        (second.stats().acked == Some(BatchSeq(2))).then_some(())
    });
    assert_eq!(vault.log("web").lock().batches, [one, two]);
}

#[test]
fn a_takeover_waits_until_the_older_session_has_let_go_of_the_log() {
    let rt = Runtime::new().unwrap();
    let vault = Arc::new(FakeVault::default());
    let service = service(&vault);
    let (first, first_events) = link(&rt, memory(&rt, service.clone(), vec![]));
    wait_up(&first_events);
    first.begin();
    vault.set_stuck(true);
    first.send(Maker::new().batch(1, 100).remove(0)).unwrap();
    wait_for("a submit that blocks", || {
        (*vault.blocked.lock() > 0).then_some(())
    });
    let (_second, second_events) = link(&rt, memory(&rt, service.clone(), vec![]));
    assert_eq!(wait_refused(&first_events).0, RefusalCode::TakenOver);
    // That something does not happen can only be watched for a while.
    let watched = std::time::Instant::now();
    while watched.elapsed() < Duration::from_millis(300) {
        assert_eq!(vault.log("web").lock().opens, 1, "opened twice");
        std::thread::yield_now();
    }
    assert!(second_events.lock().is_empty());
    vault.set_stuck(false);
    wait_up(&second_events);
    let log = vault.log("web");
    let log = log.lock();
    assert_eq!((log.opens, log.aborts), (2, 1));
}

#[test]
fn a_replay_that_is_cut_off_never_looks_whole() {
    let rt = Runtime::new().unwrap();
    let vault = Arc::new(FakeVault::default());
    let service = service(&vault);
    let mut maker = Maker::new();
    vault.log("web").lock().batches = (0..2000).map(|_| maker.batch(0, 0)).collect();
    let (first, events) = link(&rt, memory(&rt, service.clone(), vec![]));
    wait_up(&events);
    let mut replay = first.replay(BatchSeq(0)).unwrap();
    replay.next().unwrap().unwrap();
    // More than fits on the way is still at the vault when another session ends this one.
    let (_second, second_events) = link(&rt, memory(&rt, service, vec![]));
    wait_up(&second_events);
    let items: Vec<_> = replay.collect();
    assert!(items.len() < 4000, "{}", items.len());
    assert_eq!(items.last(), Some(&Err(ReplayError::Lost)));
    assert!(items[..items.len() - 1].iter().all(Result::is_ok));
}

#[test]
fn a_refusal_over_tcp_is_not_lost_in_a_reset() {
    let rt = Runtime::new().unwrap();
    let service = service(&Arc::new(FakeVault::default()));
    rt.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let (_keep, shutdown) = watch::channel(false);
        let peer = Peer::Named(name("web"));
        let session = tokio::spawn(serve_connection(service, stream, peer, shutdown));
        client.write_all(&[0xaa; 8 << 20]).await.unwrap();
        client.shutdown().await.unwrap();
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        let mut f = Framer::default();
        f.push(&got);
        let said = Message::from_record(&f.next(1 << 20).unwrap().unwrap()).unwrap();
        assert!(matches!(said, Message::Refused(_)));
        assert!(matches!(session.await.unwrap(), SessionEnd::Refused(_)));
    });
}

#[test]
fn a_slow_log_stops_the_source_and_not_the_acks() {
    let rt = Runtime::new().unwrap();
    let vault = Arc::new(FakeVault::default());
    let service = Service::new(
        vault.clone(),
        ServerOptions {
            window_bytes: 1 << 20,
            ..ServerOptions::new("v")
        },
    );
    let (link, events) = link(&rt, memory(&rt, service, vec![]));
    wait_up(&events);
    link.begin();
    vault.set_stuck(true);
    let mut maker = Maker::new();
    let batches: Vec<_> = (0..40).map(|_| maker.batch(1, 100_000)).collect();
    let sent = AtomicUsize::new(0);
    std::thread::scope(|s| {
        let sender = s.spawn(|| {
            for r in batches.iter().flatten() {
                link.send(r.clone()).unwrap();
                sent.fetch_add(1, Ordering::SeqCst);
            }
        });
        wait_for("a full window", || {
            (link.stats().unacked_bytes > 900_000).then_some(())
        });
        assert!(sent.load(Ordering::SeqCst) < 40);
        assert!(link.stats().unacked_bytes <= 1 << 20);
        assert!(!sender.is_finished());
        vault.set_stuck(false);
    });
    wait_for("acks", || {
        (link.stats().acked == Some(BatchSeq(40))).then_some(())
    });
    assert_eq!(vault.log("web").lock().batches, batches);
}

#[test]
fn a_replay_brings_names_and_commits_and_only_before_begin() {
    let rt = Runtime::new().unwrap();
    let vault = Arc::new(FakeVault::default());
    let mut maker = Maker::new();
    let batches: Vec<_> = (0..200).map(|_| maker.batch(1, 10)).collect();
    vault.log("web").lock().batches = batches.clone();
    let (link, events) = link(&rt, memory(&rt, service(&vault), vec![]));
    wait_up(&events);
    let got: Vec<_> = link
        .replay(BatchSeq(3))
        .unwrap()
        .map(|r| r.unwrap())
        .collect();
    let want: Vec<_> = batches[3..]
        .concat()
        .into_iter()
        .filter(|r| r.header.kind != RecordKind::Block)
        .collect();
    assert_eq!(got, want);
    // One right behind the other: the end of one must not be taken for the end of the next.
    for after in (100..=200).rev() {
        let count = link
            .replay(BatchSeq(after))
            .unwrap()
            .map(Result::unwrap)
            .count();
        assert_eq!(count as u64, 2 * (200 - after));
    }
    link.begin();
    assert_eq!(link.replay(BatchSeq(0)).err(), Some(ReplayError::NotNow));
    let next = maker.batch(0, 0);
    send_all(&link, &[next]);
    wait_for("ack", || {
        (link.stats().acked == Some(BatchSeq(201))).then_some(())
    });
}

#[test]
fn a_failing_log_is_told_and_tried_again() {
    let rt = Runtime::new().unwrap();
    let vault = Arc::new(FakeVault::default());
    let (link, events) = link(&rt, memory(&rt, service(&vault), vec![]));
    wait_up(&events);
    link.begin();
    *vault.trouble.lock() = Some(SinkError::Failed {
        text: "disk full".into(),
        retry_after: Duration::from_millis(100),
    });
    let batch = Maker::new().batch(3, 10);
    send_all(&link, std::slice::from_ref(&batch));
    assert!(wait_down(&events).contains("disk full"));
    wait_for("ack", || link.stats().acked);
    assert_eq!(vault.log("web").lock().batches, [batch]);
}

#[test]
fn a_vault_that_went_back_closes_the_link() {
    let rt = Runtime::new().unwrap();
    let vault = Arc::new(FakeVault::default());
    let mut maker = Maker::new();
    // Enough for the first batch; the second breaks the connection.
    let (link, events) = link(&rt, memory(&rt, service(&vault), vec![20_000]));
    wait_up(&events);
    link.begin();
    send_all(&link, &[maker.batch(1, 10)]);
    wait_for("ack", || link.stats().acked);
    vault.log("web").lock().batches.clear();
    send_all(&link, &[maker.batch(1, 50_000)]);
    assert_eq!(wait_refused(&events).0, RefusalCode::VaultWentBack);
    let record = maker.batch(0, 0).remove(0);
    wait_for("closed", || {
        matches!(link.send(record.clone()), Err(SendError::Closed(_))).then_some(())
    });
}

#[test]
fn questions_are_answered_several_at_once_and_large_ones_in_parts() {
    let rt = Runtime::new().unwrap();
    let vault = Arc::new(FakeVault::default());
    let dial = memory(&rt, service(&vault), vec![]);
    let client = HistoryClient::connect(rt.handle(), dial, "t").unwrap();
    std::thread::scope(|s| {
        for i in 0..40u32 {
            let client = &client;
            s.spawn(move || {
                let (path, limit) = (BytePath::root(), i * 100_000);
                let answer = client.ask(Request::Versions { path, limit }).unwrap();
                assert_eq!(answer, Response::Error("y".repeat(limit as usize)));
            });
        }
    });
    assert_eq!(
        client.ask(Request::Moments).unwrap(),
        Response::Moments(None)
    );
}

/// The places are for everybody's backups.
#[test]
fn a_source_has_so_many_histories_open_and_no_more() {
    let rt = Runtime::new().unwrap();
    let service = service(&Arc::new(FakeVault::default()));
    let open = || HistoryClient::connect(rt.handle(), memory(&rt, service.clone(), vec![]), "t");
    let mut all: Vec<_> = (0..HISTORIES).map(|_| open().unwrap()).collect();
    let refused = open().err().expect("one too many").to_string();
    assert!(refused.contains("history"), "{refused}");
    drop(all.pop());
    wait_for("a place", || open().ok());
}

#[test]
fn blocks_come_as_they_are_stored() {
    let rt = Runtime::new().unwrap();
    let vault = Arc::new(FakeVault::default());
    let dial = memory(&rt, service(&vault), vec![]);
    let client = HistoryClient::connect(rt.handle(), dial, "t").unwrap();
    std::thread::scope(|s| {
        for i in 0..40u64 {
            let client = &client;
            s.spawn(move || {
                // Twice the same, none at all, only bad ones: whatever is asked for.
                let ids: Vec<u64> = (0..i)
                    .map(|k| (i * 7919 + k * k) % 9973 * (i % 4))
                    .collect();
                let want = Response::Blocks(ids.iter().map(|id| block(*id)).collect());
                assert!(client.ask(Request::Blocks(ids)).unwrap() == want, "{i}");
            });
        }
    });
    // Over the bound of one answer, as before.
    let large = vec![49_999; 100];
    let Response::Error(text) = client.ask(Request::Blocks(large)).unwrap() else {
        panic!("40 MB in one answer");
    };
    assert!(text.contains("ask for less"), "{text}");
}

/// One question that the vault breaks at is answered all the same, and so are those before and behind it.
#[test]
fn a_question_that_the_vault_breaks_at_is_answered_by_an_error() {
    let rt = Runtime::new().unwrap();
    let vault = Arc::new(FakeVault::default());
    let dial = memory(&rt, service(&vault), vec![]);
    let client = HistoryClient::connect(rt.handle(), dial, "t").unwrap();
    let when = Timestamp { sec: 1, nsec: 0 };
    for _ in 0..10 {
        let Response::Error(text) = client.ask(Request::Resolve(when)).unwrap() else {
            panic!("a time was resolved");
        };
        assert!(text.contains("its own log"), "{text}");
        let moments = client.ask(Request::Moments).unwrap();
        assert_eq!(moments, Response::Moments(None));
    }
}

/// A vault that answers the first question with these records.
fn scripted(rt: &Runtime, records: Vec<Record>) -> Dialer {
    let handle = rt.handle().clone();
    Dialer::Custom(Arc::new(move || {
        let (near, mut far) = tokio::io::duplex(64 << 10);
        let records = records.clone();
        handle.spawn(async move {
            let welcome = Message::Welcome(Welcome {
                version: PROTOCOL_V3,
                name: name("web"),
                last: None,
                epoch: None,
                window_bytes: 0,
                mirror: false,
            });
            let mut framer = Framer::default();
            let mut input = BytesMut::new();
            let mut answers = vec![vec![welcome.to_record()], records].into_iter();
            while far.read_buf(&mut input).await.is_ok_and(|n| n > 0) {
                framer.push(&input);
                input.clear();
                while let Ok(Some(_)) = framer.next(1 << 20) {
                    let mut bytes = Vec::new();
                    for r in answers.next().into_iter().flatten() {
                        r.write_to(&mut bytes);
                    }
                    let _ = far.write_all(&bytes).await;
                }
            }
        });
        Box::pin(async move { Ok(Box::new(near) as BoxStream) })
    }))
}

#[test]
fn blocks_that_were_not_announced_end_the_session() {
    let rt = Runtime::new().unwrap();
    let stored = |id: u64| {
        let bytes = block(id).record.unwrap();
        Record::from_bytes(&bytes).unwrap().unwrap()
    };
    let announce = |id, blocks: &[u64]| {
        let blocks = blocks.iter().map(|b| (*b, None)).collect();
        Message::Blocks { id, blocks }.to_record()
    };
    let other = Message::Response {
        id: 0,
        more: true,
        part: vec![0; 10].into(),
    };
    for (what, records) in [
        ("nothing announced", vec![stored(1)]),
        (
            "one too many",
            vec![announce(0, &[1, 2]), stored(1), stored(2), stored(3)],
        ),
        ("for nobody", vec![announce(7, &[1])]),
        (
            "announced twice",
            vec![announce(0, &[1, 2]), announce(0, &[1])],
        ),
        (
            "two kinds of answer",
            vec![other.to_record(), announce(0, &[1])],
        ),
        (
            "over the bound",
            [vec![announce(0, &[49_999; 100])], vec![stored(49_999); 100]].concat(),
        ),
    ] {
        let client = HistoryClient::connect(rt.handle(), scripted(&rt, records), "t").unwrap();
        // What is complete before the offence is still good.
        let first = client.ask(Request::Blocks(vec![1, 2]));
        assert_eq!(first.is_ok(), what == "one too many", "{what}");
        let after = wait_for("the end", || client.ask(Request::Moments).err());
        assert!(
            matches!(after, HistoryError::Protocol { .. }),
            "{what}: {after}"
        );
    }
}

#[test]
fn blocks_for_an_older_source_come_in_parts() {
    let response = Response::Blocks((1..5).map(block).collect());
    let pieces = response_pieces(3, response, PROTOCOL_V3 - 1);
    for piece in &pieces {
        let Piece::Record(record) = piece else {
            panic!("what an older source does not know");
        };
        let message = Message::from_record(record).unwrap();
        assert!(matches!(message, Message::Response { id: 3, .. }));
    }
}

#[test]
fn long_words_about_many_blocks_fit_into_messages() {
    let wrong = |block| BlockBytes {
        block,
        record: Err("x".repeat(600)),
    };
    let pieces = response_pieces(
        3,
        Response::Blocks((0..4096).map(wrong).collect()),
        PROTOCOL_V3,
    );
    assert!(pieces.len() > 1 && pieces.iter().all(|p| matches!(p, Piece::Record(_))));
}

/// A server on a TCP port of this machine.
struct Tcp {
    address: String,
    identity: Identity,
    shutdown: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

fn tcp(rt: &Runtime, service: Arc<Service>) -> Tcp {
    let identity = Identity::generate().unwrap();
    let config = tls::server_config(&identity).unwrap();
    let listener = rt.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (shutdown, on) = watch::channel(false);
    let task = rt.spawn(Server::run(listener, config, service, on));
    Tcp {
        address,
        identity,
        shutdown,
        task,
    }
}

impl Tcp {
    fn dialer(&self, vault: &Identity, identity: &Identity) -> Dialer {
        Dialer::Tls(TlsTarget {
            addresses: vec![self.address.clone()],
            vault: vault.fingerprint(),
            identity: identity.clone(),
        })
    }
}

#[test]
fn over_tls_a_source_pairs_backs_up_and_is_told_of_a_shutdown() {
    let rt = Runtime::new().unwrap();
    let vault = Arc::new(FakeVault::default());
    let service = service(&vault);
    let server = tcp(&rt, service.clone());
    let me = Identity::generate().unwrap();
    let dial = server.dialer(&server.identity, &me);

    let (stranger, events) = link(&rt, dial.clone());
    let (code, text) = wait_refused(&events);
    assert_eq!(code, RefusalCode::NotPaired);
    assert!(text.contains(&me.fingerprint().to_string()));
    drop(stranger);

    vault.tokens.lock().insert(vec![5; 32], name("web"));
    let invite = Invite {
        addresses: vec![server.address.clone()],
        vault: server.identity.fingerprint(),
        token: [5; 32],
        name: name("web"),
        expires: Timestamp::default(),
    };
    let paired = pair_blocking(rt.handle(), &invite, &me, "t").unwrap();
    assert_eq!(
        (paired.vault.as_str(), paired.name),
        ("test vault", name("web"))
    );
    let other = Identity::generate().unwrap();
    let again = pair_blocking(rt.handle(), &invite, &other, "t").unwrap_err();
    assert!(matches!(again, PairError::Refused(r) if r.code == RefusalCode::Invite));

    let (link, events) = link(&rt, dial);
    wait_up(&events);
    link.begin();
    let mut maker = Maker::new();
    let batches: Vec<_> = (0..5).map(|_| maker.batch(3, 700_000)).collect();
    send_all(&link, &batches);
    wait_for("ack", || {
        (link.stats().acked == Some(BatchSeq(5))).then_some(())
    });
    assert_eq!(vault.log("web").lock().batches, batches);
    server.shutdown.send_replace(true);
    assert!(wait_down(&events).contains("shutting down"));
    rt.block_on(server.task).unwrap();
}

#[test]
fn a_server_without_the_vaults_key_gets_nothing() {
    let rt = Runtime::new().unwrap();
    let vault = Arc::new(FakeVault::default());
    let service = service(&vault);
    let server = tcp(&rt, service.clone());
    let expected = Identity::generate().unwrap();
    let (_link, events) = link(
        &rt,
        server.dialer(&expected, &Identity::generate().unwrap()),
    );
    let why = wait_down(&events);
    assert!(why.contains("does not hold the vault's key"), "{why}");
    wait_for("a failed handshake", || {
        (service.counters().handshakes_failed > 0).then_some(())
    });
}

#[test]
fn tls_1_2_and_clients_without_a_key_are_refused() {
    let rt = Runtime::new().unwrap();
    let service = service(&Arc::new(FakeVault::default()));
    let server = tcp(&rt, service.clone());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let attempt = |versions: &[&'static rustls::SupportedProtocolVersion]| {
        let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config
            .dangerous()
            .set_certificate_verifier(Arc::new(Anyone));
        config.alpn_protocols = vec![tls::ALPN.to_vec()];
        rt.block_on(async {
            let stream = TcpStream::connect(&server.address).await?;
            let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
            let mut stream = connector.connect(tls::server_name(), stream).await?;
            // In TLS 1.3 a client learns only afterwards that its missing key was not accepted.
            stream.read(&mut [0; 1]).await
        })
    };
    let old = attempt(&[&rustls::version::TLS12]).unwrap_err().to_string();
    assert!(old.contains("ProtocolVersion"), "{old}");
    let keyless = attempt(&[&rustls::version::TLS13]).unwrap_err().to_string();
    assert!(keyless.contains("CertificateRequired"), "{keyless}");
    wait_for("both counted", || {
        (service.counters().handshakes_failed == 2).then_some(())
    });
}

/// Accepts any server: for clients that are to be refused by it.
#[derive(Debug)]
struct Anyone;

impl rustls::client::danger::ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[tokio::test(start_paused = true)]
async fn a_hello_that_trickles_in_is_not_waited_for() {
    let service = service(&Arc::new(FakeVault::default()));
    let (mut near, far) = tokio::io::duplex(64);
    let (_keep, shutdown) = watch::channel(false);
    let start = tokio::time::Instant::now();
    let session = tokio::spawn(serve_connection(
        service.clone(),
        far,
        Peer::Named(name("web")),
        shutdown,
    ));
    let mut hello = Vec::new();
    Message::Bye.to_record().write_to(&mut hello);
    for byte in hello {
        if near.write_all(&[byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(session.await.unwrap(), SessionEnd::Silent);
    assert!(start.elapsed() >= HANDSHAKE_WITHIN && start.elapsed() < HANDSHAKE_WITHIN * 2);
    assert_eq!(service.counters().handshakes_failed, 1);
}

#[test]
fn garbage_gets_a_refusal_in_words_even_if_more_of_it_follows() {
    let rt = Runtime::new().unwrap();
    let service = service(&Arc::new(FakeVault::default()));
    rt.block_on(async {
        let (near, far) = tokio::io::duplex(1024);
        let (_keep, shutdown) = watch::channel(false);
        let session = serve_connection(service, far, Peer::Named(name("web")), shutdown);
        let (mut r, mut w) = tokio::io::split(near);
        let client = async {
            let mut got = Vec::new();
            let (_, read) = tokio::join!(
                async {
                    w.write_all(&[0xaa; 100_000]).await?;
                    w.shutdown().await
                },
                r.read_to_end(&mut got)
            );
            read.unwrap();
            let mut f = Framer::default();
            f.push(&got);
            Message::from_record(&f.next(1 << 20).unwrap().unwrap()).unwrap()
        };
        let (end, said) = tokio::join!(session, client);
        assert!(matches!(end, SessionEnd::Refused(_)));
        assert!(matches!(said, Message::Refused(r) if r.code == RefusalCode::Protocol));
    });
}

#[test]
fn ssh_is_spoken_to_and_its_complaints_are_passed_on() {
    let rt = Runtime::new().unwrap();
    let mut target = SshTarget::new("box", "/v", name("web"));
    let script = r#"echo "told: $*" >&2; echo 'Permission denied (publickey).' >&2; exit 255"#;
    target.ssh = ["sh", "-c", script, "ssh"].map(String::from).to_vec();
    let (_link, events) = link(&rt, Dialer::Ssh(target));
    let why = wait_down(&events);
    assert!(why.contains("Permission denied (publickey)."), "{why}");
    assert!(
        why.contains("told: -o BatchMode=yes box farwrite vault stdio '/v' --name 'web'"),
        "{why}"
    );
}
