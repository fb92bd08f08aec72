//! The two state machines against each other and against scripted peers: no I/O, time by hand.

use crate::common::{Maker, name, take, wire};
use bytes::{Bytes, BytesMut};
use farwrite_core::history::{Request, Response};
use farwrite_core::{BatchSeq, Record, RecordKind, codec};
use farwrite_transfer::answer::{Piece, response_pieces};
use farwrite_transfer::message::{
    Behind, Hello, Message, Purpose, RefusalCode, TOKEN_BYTES, Welcome,
};
use farwrite_transfer::session::*;
use proptest::prelude::*;
use serde_bytes::ByteBuf;
use std::collections::VecDeque;
use std::time::Duration;

const T0: Duration = Duration::ZERO;
const WINDOW: u64 = 1 << 20;

fn source() -> SourceSession {
    SourceSession::new(SourceOptions {
        software: "test".into(),
        epoch: None,
        window_bytes: WINDOW,
    })
}

fn said(bytes: &[u8]) -> Vec<Record> {
    let mut f = Framer::default();
    f.push(bytes);
    std::iter::from_fn(|| f.next(2 << 20).unwrap()).collect()
}

fn messages(bytes: &[u8]) -> Vec<Message> {
    let records = said(bytes).into_iter();
    records.map(|r| Message::from_record(&r).unwrap()).collect()
}

fn output(s: &mut SourceSession) -> Vec<u8> {
    let mut out = BytesMut::new();
    let mut all = Vec::new();
    loop {
        let large = s.poll_output(&mut out);
        if out.is_empty() {
            return all;
        }
        all.extend(take(&mut out));
        all.extend(large.into_iter().flatten());
    }
}

fn welcome(last: Option<(BatchSeq, [u8; 32])>) -> Vec<u8> {
    welcome_to(1, last)
}

fn welcome_to(version: u16, last: Option<(BatchSeq, [u8; 32])>) -> Vec<u8> {
    let w = Message::Welcome(Welcome {
        version,
        name: name("web"),
        last,
        epoch: None,
        window_bytes: WINDOW,
        mirror: true,
    });
    wire(&[w.to_record()])
}

fn ack(seq: u64) -> Vec<u8> {
    wire(&[Message::Ack { seq: BatchSeq(seq) }.to_record()])
}

/// Only the records of batches.
fn batch_records(bytes: &[u8]) -> Vec<Record> {
    let mut records = said(bytes);
    records.retain(|r| r.header.kind != RecordKind::Message);
    records
}

fn push_all(s: &mut SourceSession, records: &[Record]) {
    for r in records {
        s.push(r.clone()).unwrap();
    }
}

fn feed(s: &mut SourceSession, bytes: &[u8]) -> Result<Vec<SourceEvent>, SourceError> {
    let mut events = Vec::new();
    s.received(T0, bytes, &mut events).map(|()| events)
}

#[test]
fn after_a_loss_at_any_record_all_unacked_batches_go_out_again_whole() {
    // Large payloads go their own way, and have padding behind them.
    for (bytes, half_sent) in [(100, false), (70_001, false), (70_001, true)] {
        let mut maker = Maker::new();
        let batches: Vec<_> = (0..3).map(|_| maker.batch(2, bytes)).collect();
        let all: Vec<Record> = batches.concat();
        for acked in 0..3u64 {
            for cut in (acked as usize * 4)..=all.len() {
                let mut s = source();
                s.connected(T0);
                feed(&mut s, &welcome(None)).unwrap();
                s.begin();
                push_all(&mut s, &all[..cut]);
                if half_sent && acked == 0 {
                    let large = s.poll_output(&mut BytesMut::new());
                    assert_eq!(large.is_some(), cut > 0);
                } else {
                    assert_eq!(batch_records(&output(&mut s)), all[..cut]);
                }
                if acked > 0 {
                    let events = feed(&mut s, &ack(acked)).unwrap();
                    assert_eq!(events, [SourceEvent::Ack(BatchSeq(acked))]);
                }
                s.disconnected();
                assert!(output(&mut s).is_empty());
                push_all(&mut s, &all[cut..]);
                s.connected(T0);
                let chain = |seq: u64| {
                    let commit = codec::decode_commit(&all[seq as usize * 4 - 1]).unwrap();
                    (commit.seq, commit.chain)
                };
                let last = (acked > 0).then(|| chain(acked));
                feed(&mut s, &welcome(last)).unwrap();
                let again = batch_records(&output(&mut s));
                assert!(
                    again == all[acked as usize * 4..],
                    "acked {acked}, cut {cut}"
                );
                assert_eq!(s.unacked_bytes(), wire(&again).len() as u64);
            }
        }
    }
}

#[test]
fn the_vault_is_told_how_far_behind_a_source_is_as_long_as_it_is() {
    let mut s = source();
    s.connected(T0);
    assert!(!s.behind_due(T0), "not welcome yet");
    feed(&mut s, &welcome_to(2, None)).unwrap();
    s.tick(T0).unwrap();
    output(&mut s);
    let some = Behind {
        changes: 3,
        lag_ms: 40,
    };
    assert!(s.behind_due(T0));
    s.tell_behind(T0, some);
    let told = output(&mut s);
    assert_eq!(messages(&told), [Message::Behind(some)]);
    // Again when the vault's idea may have become wrong, and no sooner.
    assert_eq!(s.deadline(), Some(T0 + BEHIND_EVERY));
    assert!(!s.behind_due(T0 + BEHIND_EVERY / 2));
    assert!(s.behind_due(T0 + BEHIND_EVERY));
    s.tell_behind(T0 + BEHIND_EVERY, some);
    assert_eq!(output(&mut s), []);
    s.tell_behind(T0 + 2 * BEHIND_EVERY, Behind::default());
    assert_eq!(
        messages(&output(&mut s)),
        [Message::Behind(Behind::default())]
    );
    assert!(s.deadline().unwrap() > T0 + 3 * BEHIND_EVERY, "left alone");
    let mut v = opened(None);
    v.received(T0, &told);
    assert_eq!(v.next_action(), Some(VaultAction::Behind(some)));
    // An older vault does not know the message.
    s.disconnected();
    s.connected(T0);
    feed(&mut s, &welcome(None)).unwrap();
    assert!(!s.behind_due(T0 + 10 * BEHIND_EVERY));
}

#[test]
fn a_vault_that_went_back_or_has_another_log_is_not_fed() {
    let mut maker = Maker::new();
    let first = maker.batch(1, 10);
    let one = (BatchSeq(1), maker.chain);
    let second = maker.batch(1, 10);
    let two = (BatchSeq(2), maker.chain);
    let cases = [
        (None, Some(RefusalCode::VaultWentBack)),
        (Some((BatchSeq(1), [9; 32])), Some(RefusalCode::Diverged)),
        (Some((BatchSeq(2), [9; 32])), Some(RefusalCode::Diverged)),
        (Some((BatchSeq(3), [9; 32])), Some(RefusalCode::Diverged)),
        (Some(one), None),
        (Some(two), None),
    ];
    for (last, want) in cases {
        let mut s = source();
        s.connected(T0);
        feed(&mut s, &welcome(None)).unwrap();
        s.begin();
        push_all(&mut s, &[first.clone(), second.clone()].concat());
        output(&mut s);
        feed(&mut s, &ack(1)).unwrap();
        s.disconnected();
        s.connected(T0);
        match (feed(&mut s, &welcome(last)), want) {
            (Ok(events), None) => {
                let acks = events.iter().filter(|e| matches!(e, SourceEvent::Ack(_)));
                assert_eq!(acks.count(), usize::from(last == Some(two)));
            }
            (Err(e @ SourceError::Refused(_)), Some(code)) => {
                assert!(e.is_final());
                assert!(matches!(e, SourceError::Refused(r) if r.code == code));
            }
            (other, _) => panic!("{last:?}: {other:?}"),
        }
    }
}

#[test]
fn the_window_is_never_exceeded_but_by_one_batch_alone() {
    let mut maker = Maker::new();
    let mut s = source();
    s.connected(T0);
    feed(&mut s, &welcome(None)).unwrap();
    s.begin();
    let mut sent = 0;
    'fill: loop {
        for r in maker.batch(1, 100_000) {
            match s.push(r) {
                Ok(()) => sent += 1,
                Err(PushError::Full) => break 'fill,
                Err(e) => panic!("{e}"),
            }
            assert!(s.unacked_bytes() <= WINDOW);
        }
    }
    assert!(sent >= 3 * 10, "{sent}");
    // Alone, a batch larger than the window must get through: its ack cannot come before its end.
    let mut s = source();
    s.connected(T0);
    feed(&mut s, &welcome(None)).unwrap();
    s.begin();
    push_all(&mut s, &Maker::new().batch(30, 100_000));
    assert!(s.unacked_bytes() > WINDOW);
}

#[test]
fn a_large_payload_is_not_copied_and_stays_in_its_place() {
    let mut s = source();
    s.connected(T0);
    feed(&mut s, &welcome(None)).unwrap();
    s.begin();
    output(&mut s);
    let mut maker = Maker::new();
    // The large ones have padding behind them.
    let records = [maker.batch(2, 10), maker.batch(2, 100_001)].concat();
    push_all(&mut s, &records);
    let (mut sent, mut shared) = (Vec::new(), 0);
    loop {
        let mut out = BytesMut::new();
        let large = s.poll_output(&mut out);
        if out.is_empty() && large.is_none() {
            break;
        }
        sent.extend(take(&mut out));
        if let Some(large) = large {
            let same = |r: &&Record| r.payload.as_ptr() == large.as_ptr();
            assert_eq!(records.iter().filter(same).count(), 1);
            shared += 1;
            sent.extend(&large[..]);
            // A message that is said while the record's padding has not gone yet.
            s.tick(PING_EVERY * shared).unwrap();
        }
    }
    assert_eq!(shared, 2);
    let (messages, rest): (Vec<_>, Vec<_>) = said(&sent)
        .into_iter()
        .partition(|r| r.header.kind == RecordKind::Message);
    assert_eq!(rest, records);
    assert_eq!(messages.len(), 2);
}

#[test]
fn a_source_refuses_acks_for_what_it_has_not_sent_and_records_out_of_order() {
    let mut maker = Maker::new();
    let first = maker.batch(0, 0);
    let second = maker.batch(0, 0);
    let mut s = source();
    assert_eq!(s.push(first[0].clone()), Err(PushError::NotBegun));
    s.connected(T0);
    feed(&mut s, &welcome(None)).unwrap();
    s.begin();
    let (expected, got) = (BatchSeq(1), BatchSeq(2));
    assert_eq!(
        s.push(second[0].clone()),
        Err(PushError::OutOfOrder { expected, got })
    );
    push_all(&mut s, &first);
    assert!(matches!(
        feed(&mut s, &ack(1)),
        Err(SourceError::Protocol(_))
    ));
}

#[test]
fn an_idle_source_pings_and_gives_up_on_silence() {
    let mut s = source();
    s.connected(T0);
    feed(&mut s, &welcome(None)).unwrap();
    output(&mut s);
    s.tick(T0).unwrap();
    let pings = messages(&output(&mut s));
    assert_eq!(pings, [Message::Ping { id: 1 }]);
    s.tick(PING_EVERY - Duration::from_millis(1)).unwrap();
    assert!(output(&mut s).is_empty());
    assert_eq!(s.deadline(), Some(PING_EVERY));
    s.tick(PING_EVERY).unwrap();
    assert_eq!(messages(&output(&mut s)), [Message::Ping { id: 2 }]);
    let mut events = Vec::new();
    let at = PING_EVERY + Duration::from_millis(40);
    let pong = wire(&[Message::Pong { id: 2 }.to_record()]);
    s.received(at, &pong, &mut events).unwrap();
    assert_eq!(s.rtt(), Some(Duration::from_millis(40)));
    s.tick(at + DEAD_AFTER - Duration::from_millis(1)).unwrap();
    assert_eq!(s.tick(at + DEAD_AFTER), Err(SourceError::Silent));
}

fn hello(purpose: Purpose) -> Vec<u8> {
    let h = Message::Hello(Hello {
        version_min: 1,
        version_max: 9,
        software: "t".into(),
        purpose,
    });
    wire(&[h.to_record()])
}

fn backup() -> Purpose {
    Purpose::Backup {
        epoch: None,
        next: BatchSeq(0),
    }
}

fn opened(last: Option<(BatchSeq, [u8; 32])>) -> VaultSession {
    let mut v = VaultSession::new(T0);
    v.received(T0, &hello(backup()));
    assert!(matches!(
        v.next_action(),
        Some(VaultAction::OpenBackup { .. })
    ));
    v.welcome_backup(name("web"), last, None, WINDOW, true);
    vault_output(&mut v, T0);
    v
}

/// What a vault sends, of which nothing is large.
fn vault_output(v: &mut VaultSession, now: Duration) -> BytesMut {
    let mut out = BytesMut::new();
    assert_eq!(v.poll_output(now, &mut out), None);
    out
}

fn refusal(v: &VaultSession) -> Option<RefusalCode> {
    match v.ended() {
        Some(SessionEnd::Refused(r)) => Some(r.code),
        _ => None,
    }
}

#[test]
fn what_is_out_of_state_or_order_is_refused_and_counted() {
    let mut maker = Maker::new();
    let first = maker.batch(1, 10);
    let second = maker.batch(1, 10);
    let m = |m: Message| wire(&[m.to_record()]);
    let forged = Record::new(RecordKind::Commit, BatchSeq(1), b"nonsense".to_vec());
    let wrong_seq = Record::new(
        RecordKind::Commit,
        BatchSeq(1),
        second[2].decode().unwrap().to_vec(),
    );
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("garbage", vec![0x55; 100]),
        ("second hello", hello(backup())),
        (
            "question in a backup session",
            m(Message::Request {
                id: 1,
                request: farwrite_core::history::Request::Moments,
            }),
        ),
        ("vault's own message", ack(1)),
        ("batch 2 first", wire(&second)),
        (
            "batch 2 within 1",
            wire(&[first[0].clone(), second[0].clone()]),
        ),
        ("forged commit", wire(&[forged])),
        ("commit of another batch", wire(&[wrong_seq])),
        (
            "filler",
            wire(&[Record::new(RecordKind::Pad, BatchSeq(0), vec![])]),
        ),
        ("replay of the future", m(Message::ReplayFrom(BatchSeq(1)))),
        (
            "replay after a record",
            [wire(&first[..1]), m(Message::ReplayFrom(BatchSeq(0)))].concat(),
        ),
    ];
    for (what, bytes) in cases {
        let mut v = opened(None);
        v.received(T0, &bytes);
        assert_eq!(refusal(&v), Some(RefusalCode::Protocol), "{what}");
        assert_eq!(v.counters().violations, 1, "{what}");
        let out = vault_output(&mut v, T0);
        assert!(
            matches!(messages(&out)[..], [Message::Refused(_)]),
            "{what}"
        );
        v.received(T0, &wire(&first));
        assert_eq!(v.counters().violations, 1, "closed means closed");
    }
}

#[test]
fn before_the_hello_nothing_else_and_nothing_large_is_taken() {
    let batch = wire(&Maker::new().batch(1, 10));
    let large = Record::new(RecordKind::Message, BatchSeq(0), {
        let mut raw = vec![0; HELLO_BYTES + 1];
        blake3::Hasher::new().finalize_xof().fill(&mut raw);
        raw
    });
    let token = Purpose::Pair {
        token: ByteBuf::from(vec![1; TOKEN_BYTES - 1]),
    };
    // Of the large record only the header: it must not wait for the rest.
    let header = large.header.encode().to_vec();
    for bytes in [
        batch,
        header,
        hello(token),
        wire(&[Message::Bye.to_record()]),
    ] {
        let mut v = VaultSession::new(T0);
        v.received(T0, &bytes);
        assert_eq!(refusal(&v), Some(RefusalCode::Protocol));
        assert_eq!(v.next_action(), None);
    }
    let mut v = VaultSession::new(T0);
    let old = Message::Hello(Hello {
        version_min: 7,
        version_max: 9,
        software: String::new(),
        purpose: backup(),
    });
    v.received(T0, &wire(&[old.to_record()]));
    assert_eq!(refusal(&v), Some(RefusalCode::Version));
}

#[test]
fn duplicates_of_durable_batches_are_dropped() {
    let mut maker = Maker::new();
    let first = maker.batch(1, 10);
    let last = (BatchSeq(1), maker.chain);
    let second = maker.batch(1, 10);
    let mut v = opened(Some(last));
    v.received(
        T0,
        &wire(&[first.clone(), second.clone(), first.clone()].concat()),
    );
    let submitted: Vec<_> = std::iter::from_fn(|| v.next_action()).collect();
    let want: Vec<_> = second.into_iter().map(VaultAction::Submit).collect();
    assert_eq!(submitted, want);
    assert_eq!(v.counters().duplicates, 6);
    assert_eq!(v.ended(), None);
    v.durable(BatchSeq(2));
    v.durable(BatchSeq(2));
    let out = vault_output(&mut v, T0);
    assert_eq!(messages(&out), [Message::Ack { seq: BatchSeq(2) }]);
}

#[test]
fn large_pieces_of_an_answer_are_sent_in_order_and_not_copied() {
    let mut v = VaultSession::new(T0);
    v.received(T0, &hello(Purpose::History));
    assert!(matches!(
        v.next_action(),
        Some(VaultAction::OpenHistory { .. })
    ));
    v.welcome_history(name("web"));
    vault_output(&mut v, T0);
    let request = Request::Blocks(vec![1]);
    v.received(
        T0,
        &wire(&[Message::Request { id: 7, request }.to_record()]),
    );
    assert!(matches!(
        v.next_action(),
        Some(VaultAction::Ask { id: 7, .. })
    ));
    let stored = [3, 100_000, 200_000, 5, 70_000].map(|n| Bytes::from(vec![n as u8; n]));
    for piece in &stored {
        v.response(7, Piece::Stored(piece.clone()), false);
    }
    // Said meanwhile: comes behind all of it.
    v.tick(ALIVE_EVERY, true);
    let text = "that was all".to_string();
    for piece in response_pieces(7, Response::Error(text), v.version()) {
        v.response(7, piece, true);
    }
    let (mut sent, mut uncopied) = (Vec::new(), Vec::new());
    loop {
        let mut out = BytesMut::new();
        let large = v.poll_output(ALIVE_EVERY, &mut out);
        sent.extend(&out);
        let Some(large) = large else { break };
        sent.extend(&large);
        uncopied.push(large.as_ptr());
    }
    let content: Vec<u8> = stored.concat();
    let (front, behind) = sent.split_at(content.len());
    assert!(front == content);
    assert!(matches!(
        messages(behind)[..],
        [Message::Alive, Message::Response { id: 7, .. }]
    ));
    assert_eq!(uncopied, [1, 2, 4].map(|i| stored[i].as_ptr()));
    assert!(vault_output(&mut v, ALIVE_EVERY).is_empty());
}

#[test]
fn a_source_that_ignores_the_window_is_refused() {
    let mut maker = Maker::new();
    let mut v = opened(None);
    for n in 1..=11 {
        v.received(T0, &wire(&maker.batch(1, 100_000)));
        assert_eq!(v.ended().is_some(), n == 11, "batch {n}");
    }
    let mut v = opened(None);
    let mut maker = Maker::new();
    for n in 1..=30 {
        v.received(T0, &wire(&maker.batch(1, 100_000)));
        assert_eq!(v.ended(), None, "batch {n}");
        v.durable(BatchSeq(n));
    }
}

#[test]
fn a_busy_vault_says_that_it_lives_and_blames_no_silence_on_the_source() {
    let mut v = opened(None);
    v.tick(ALIVE_EVERY, false);
    let out = vault_output(&mut v, ALIVE_EVERY);
    assert_eq!(messages(&out), [Message::Alive]);
    let late = DEAD_AFTER * 3;
    v.tick(late, false);
    assert_eq!(v.ended(), None);
    v.tick(late + DEAD_AFTER - Duration::from_millis(1), true);
    assert_eq!(v.ended(), None);
    v.tick(late + DEAD_AFTER, true);
    assert_eq!(v.ended(), Some(&SessionEnd::Silent));
}

/// 50 ms each way, in virtual time: thousands of records must take a few round trips, not one each.
#[test]
fn latency_does_not_bound_throughput() {
    const WAY: Duration = Duration::from_millis(50);
    let mut maker = Maker::new();
    let all: Vec<Record> = (0..1000).flat_map(|_| maker.batch(2, 500)).collect();
    let (mut s, mut v) = (source(), VaultSession::new(T0));
    let mut to_vault: VecDeque<(Duration, Vec<u8>)> = VecDeque::new();
    let mut to_source: VecDeque<(Duration, Vec<u8>)> = VecDeque::new();
    let (mut now, mut pushed, mut acked, mut steps) = (T0, 0, 0, 0);
    s.connected(now);
    while acked < 1000 {
        steps += 1;
        assert!(steps < 1000, "acked {acked} after {now:?}");
        while s.has_begun() && pushed < all.len() && s.push(all[pushed].clone()).is_ok() {
            pushed += 1;
        }
        let out = output(&mut s);
        if !out.is_empty() {
            to_vault.push_back((now + WAY, out));
        }
        let next = [to_vault.front(), to_source.front()].into_iter().flatten();
        now = next.map(|(at, _)| *at).min().expect("something under way");
        if let Some((_, bytes)) = to_vault.pop_front_if(|(at, _)| *at == now) {
            v.received(now, &bytes);
        }
        while let Some(action) = v.next_action() {
            match action {
                VaultAction::OpenBackup { .. } => {
                    v.welcome_backup(name("w"), None, None, WINDOW, false)
                }
                VaultAction::Submit(r) if r.header.kind == RecordKind::Commit => {
                    v.durable(r.header.seq)
                }
                _ => {}
            }
        }
        let out = vault_output(&mut v, now);
        if !out.is_empty() {
            to_source.push_back((now + WAY, out.to_vec()));
        }
        if let Some((_, bytes)) = to_source.pop_front_if(|(at, _)| *at == now) {
            let mut events = Vec::new();
            s.received(now, &bytes, &mut events).unwrap();
            for e in events {
                match e {
                    SourceEvent::Up { .. } => s.begin(),
                    SourceEvent::Ack(seq) => acked = seq.0,
                    _ => {}
                }
            }
        }
    }
    let total = wire(&all).len() as u64;
    let round_trips = (total / WINDOW + 3) as u32;
    assert!(now <= WAY * 2 * round_trips, "{now:?} for {total} bytes");
}

proptest! {
    /// Whatever a stranger sends, in whatever pieces: no panic, and nothing but a refusal.
    #[test]
    fn noise_never_opens_a_session(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0usize..300) {
        let mut v = VaultSession::new(T0);
        let (a, b) = bytes.split_at(cut.min(bytes.len()));
        v.received(T0, a);
        v.received(T0, b);
        prop_assert_eq!(v.next_action(), None);
        prop_assert_eq!(v.ended().is_some(), bytes.len() >= 48);
    }

    /// A valid session with one byte changed never hands on another record than was sent.
    #[test]
    fn a_changed_byte_never_changes_a_batch(at in 0usize..800, with in 1u8..) {
        let records = Maker::new().batch(2, 100);
        let mut bytes = wire(&records);
        let at = at % bytes.len();
        bytes[at] ^= with;
        let mut v = opened(None);
        v.received(T0, &bytes);
        let mut sent = records.into_iter().map(VaultAction::Submit);
        while let Some(action) = v.next_action() {
            prop_assert_eq!(Some(action), sent.next());
        }
    }

    /// Connections that break anywhere, acks that get lost: every batch arrives exactly once and in order.
    #[test]
    fn random_disconnects_lose_and_repeat_nothing(
        seed in proptest::collection::vec((1usize..3000, 0usize..200, 0usize..4), 1..40),
        sizes in proptest::collection::vec((0usize..3, 1usize..400), 1..20),
    ) {
        let mut maker = Maker::new();
        let batches: Vec<Vec<Record>> = sizes.iter().map(|(n, b)| maker.batch(*n, *b)).collect();
        let all = batches.concat();
        let mut log: Vec<Vec<Record>> = Vec::new();
        let mut s = source();
        let (mut pushed, mut acked, mut rounds) = (0, 0u64, seed.iter().chain(std::iter::repeat(&(1 << 30, 1 << 30, 9))));
        while (acked as usize) < batches.len() {
            let &(up_bytes, down_bytes, lost_commits) = rounds.next().unwrap();
            s.connected(T0);
            let last = log.last().map(|b| codec::decode_commit(b.last().unwrap()).unwrap()).map(|c| (c.seq, c.chain));
            let mut v = VaultSession::new(T0);
            let mut open: Vec<Record> = Vec::new();
            let (mut up_left, mut down_left) = (up_bytes, down_bytes + 200);
            let mut unsynced = 0;
            // Until the connection has carried as many bytes as it is given, or all is said.
            for _ in 0..100 {
                while s.has_begun() && pushed < all.len() && s.push(all[pushed].clone()).is_ok() { pushed += 1; }
                let out = output(&mut s);
                let n = out.len().min(up_left);
                up_left -= n;
                v.received(T0, &out[..n]);
                while let Some(action) = v.next_action() {
                    match action {
                        VaultAction::OpenBackup { .. } => v.welcome_backup(name("w"), last, None, WINDOW, false),
                        VaultAction::Submit(r) => {
                            let commit = r.header.kind == RecordKind::Commit;
                            let seq = r.header.seq;
                            open.push(r);
                            if commit {
                                log.push(std::mem::take(&mut open));
                                unsynced += 1;
                                if unsynced > lost_commits { unsynced = 0; v.durable(seq); }
                            }
                        }
                        other => panic!("{other:?}"),
                    }
                }
                if up_bytes == 1 << 30 { v.durable(BatchSeq(log.len() as u64)); }
                prop_assert!(v.ended().is_none(), "{:?}", v.ended());
                let down = vault_output(&mut v, T0);
                let n = down.len().min(down_left);
                down_left -= n;
                let mut events = Vec::new();
                s.received(T0, &down[..n], &mut events).unwrap();
                for e in events {
                    match e {
                        SourceEvent::Up { .. } => s.begin(),
                        SourceEvent::Ack(seq) => { prop_assert!(seq.0 > acked); acked = seq.0; }
                        _ => {}
                    }
                }
                if up_left == 0 || down_left == 0 { break; }
            }
            s.disconnected();
            prop_assert!(acked <= log.len() as u64, "acked before it was there");
        }
        prop_assert_eq!(log, batches);
    }
}

#[test]
fn the_mirror_may_be_faster_than_the_ack() {
    let mut maker = Maker::new();
    let mut v = opened(None);
    v.received(T0, &wire(&maker.batch(1, 10)));
    v.received(T0, &wire(&maker.batch(1, 10)));
    let said = |v: &mut VaultSession| messages(&vault_output(v, T0));
    v.mirrored(BatchSeq(1));
    assert_eq!(said(&mut v), []);
    v.durable(BatchSeq(1));
    let one = [
        Message::Ack { seq: BatchSeq(1) },
        Message::Mirrored { seq: BatchSeq(1) },
    ];
    assert_eq!(said(&mut v), one);
    v.durable(BatchSeq(2));
    v.mirrored(BatchSeq(2));
    let two = [
        Message::Ack { seq: BatchSeq(2) },
        Message::Mirrored { seq: BatchSeq(2) },
    ];
    assert_eq!(said(&mut v), two);
}
