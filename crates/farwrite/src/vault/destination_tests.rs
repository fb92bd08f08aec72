//! The destination as a server sees it: durable events, replay, failures, one writer.

#[path = "../../tests/maker/mod.rs"]
mod maker;

use super::super::failure::FailureFile;
use super::*;
use farwrite_core::codec;
use farwrite_transfer::net::{EventReceiver, SinkEvents};
use maker::{NOON, sample_batches};

struct Place {
    destination: VaultDestination,
    runtime: tokio::runtime::Runtime,
    _temp: tempfile::TempDir,
}

fn place() -> Place {
    let temp = tempfile::tempdir().unwrap();
    let vault = Vault::init(temp.path(), true, Timestamp { sec: NOON, nsec: 0 }).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    Place {
        destination: VaultDestination::new(vault),
        runtime,
        _temp: temp,
    }
}

fn name() -> SourceName {
    SourceName::new("web1").unwrap()
}

impl Place {
    fn open(&self) -> (Arc<dyn SourceSink>, EventReceiver) {
        let (sender, events) = EventSender::new();
        (self.destination.open(&name(), sender).unwrap(), events)
    }

    /// Waits until the events so far satisfy `done`.
    fn wait(&self, events: &mut EventReceiver, done: impl Fn(&SinkEvents) -> bool) -> SinkEvents {
        let mut all = SinkEvents::default();
        self.runtime.block_on(async {
            while !done(&all) {
                let next = tokio::time::timeout(Duration::from_secs(20), events.next())
                    .await
                    .expect("an event in time");
                all.durable = all.durable.max(next.durable);
                all.mirrored = all.mirrored.max(next.mirrored);
                all.failed = all.failed.take().or(next.failed);
            }
        });
        all
    }

    fn failure(&self) -> Option<String> {
        FailureFile::of(&self.destination.vault.source_dir(&name()))
            .read()
            .map(|f| f.what)
    }
}

fn replayed(sink: &dyn SourceSink, after: u64) -> Vec<(u64, RecordKind)> {
    let mut got = Vec::new();
    let mut take = |r: Record| {
        got.push((r.header.seq.0, r.header.kind));
        true
    };
    sink.replay(BatchSeq(after), &mut take).unwrap();
    got
}

#[test]
fn batches_become_durable_and_mirrored_and_come_back_in_a_replay() {
    let p = place();
    let (sink, mut events) = p.open();
    assert_eq!(
        (sink.last(), sink.epoch(), sink.mirror()),
        (None, None, true)
    );
    assert!(replayed(&*sink, 0).is_empty());
    sample_batches()
        .into_iter()
        .flatten()
        .for_each(|r| sink.submit(r).unwrap());
    p.wait(&mut events, |e| {
        e.durable == Some(BatchSeq(4)) && e.mirrored == Some(BatchSeq(4))
    });
    let last = sink.last();
    drop(sink);

    let (sink, _events) = p.open();
    assert_eq!(sink.last(), last);
    let (ops, commit) = (RecordKind::Ops, RecordKind::Commit);
    assert_eq!(
        replayed(&*sink, 2),
        [(3, ops), (3, commit), (4, ops), (4, commit)]
    );
    assert_eq!(replayed(&*sink, 0).len(), 8);
    assert!(replayed(&*sink, 4).is_empty());
    let mut first = None;
    let mut take = |r: Record| {
        assert!(
            first.replace(r).is_none(),
            "went on after it was told to stop"
        );
        false
    };
    sink.replay(BatchSeq(0), &mut take).unwrap();
}

#[test]
fn a_source_has_one_writer() {
    let p = place();
    let (sink, _events) = p.open();
    let (sender, _) = EventSender::new();
    let refused = p.destination.open(&name(), sender).err().unwrap();
    assert_eq!(refused.code, RefusalCode::Busy);
    assert!(refused.text.contains("another process"), "{}", refused.text);
    drop(sink);
    p.open();
    assert_eq!(p.failure(), None);
}

#[test]
fn a_hostile_batch_is_refused_remembered_and_gone_when_the_source_behaves() {
    let p = place();
    let (sink, mut events) = p.open();
    let batches = sample_batches();
    // The second batch first: it does not link up.
    for r in &batches[1] {
        if sink.submit(r.clone()).is_err() {
            break;
        }
    }
    let failed = p.wait(&mut events, |e| e.failed.is_some()).failed.unwrap();
    assert_eq!(failed.retry_after, RETRY_BROKEN);
    let again = sink.submit(batches[0][0].clone()).unwrap_err();
    assert!(
        matches!(&again, SinkError::BadBatch { text } if *text == failed.text),
        "{again:?}"
    );
    assert_eq!(p.failure(), Some(failed.text));
    sink.abort();
    drop(sink);

    let (sink, mut events) = p.open();
    assert_eq!(sink.last(), None);
    batches[0]
        .iter()
        .for_each(|r| sink.submit(r.clone()).unwrap());
    p.wait(&mut events, |e| e.mirrored == Some(BatchSeq(1)));
    drop(sink);
    assert_eq!(p.failure(), None);
}

#[test]
fn damage_in_what_is_replayed_is_an_error() {
    let p = place();
    let (sink, mut events) = p.open();
    sample_batches()
        .into_iter()
        .flatten()
        .for_each(|r| sink.submit(r).unwrap());
    p.wait(&mut events, |e| e.mirrored == Some(BatchSeq(4)));
    let path = p
        .destination
        .vault
        .source_dir(&name())
        .join("log/00000001.seg");
    let mut bytes = std::fs::read(&path).unwrap();
    let batches = sample_batches();
    let payload = &batches[2][0].payload;
    assert!(codec::decode_ops(&batches[2][0]).is_ok());
    let at = bytes
        .windows(payload.len())
        .position(|w| w == &payload[..])
        .unwrap();
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let mut count = 0;
    let mut take = |_| {
        count += 1;
        true
    };
    let e = sink.replay(BatchSeq(1), &mut take).unwrap_err();
    assert!(
        matches!(&e, SinkError::Failed { retry_after, .. } if *retry_after == RETRY_BROKEN),
        "{e:?}"
    );
    assert_eq!(count, 2);
    // What lies behind it can still be had.
    assert_eq!(replayed(&*sink, 3).len(), 2);
}

#[test]
fn a_source_without_a_backup_has_no_history() {
    let p = place();
    let refused = p.destination.history(&name()).err().unwrap();
    assert_eq!(refused.code, RefusalCode::Denied);
    assert!(!p.destination.vault.source_dir(&name()).exists());
}

#[test]
fn a_history_answers_beside_the_writer() {
    let temp = tempfile::tempdir().unwrap();
    let vault = maker::sample_vault(&temp.path().join("vault"), &name());
    let destination = VaultDestination::new(vault);
    let (sender, _events) = EventSender::new();
    let sink = destination.open(&name(), sender).unwrap();
    assert_eq!(sink.last().unwrap().0, BatchSeq(4));
    let answers = destination.history(&name()).unwrap();
    let Response::Moments(Some((first, last))) = answers(&Request::Moments) else {
        panic!("no moments");
    };
    assert_eq!((first.seq, last.seq), (BatchSeq(1), BatchSeq(4)));
}
