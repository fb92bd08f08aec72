//! By turns with others: what the public interface does not show.

use super::*;
use crate::segment::{BatchReader, LogWriter, segment_path, slow_disk};
use crate::turns::PATIENCE;
use crate::vault::{SYNCS_AT_ONCE, SourceInfo};
use crossbeam_channel::Receiver;
use farwrite_core::op::Chain;
use farwrite_core::{Epoch, NodeId, RecordKind, Timestamp, codec};
use std::path::Path;
use std::time::Instant;

/// A source, and what it is told.
struct Sender {
    vault: SourceVault,
    told: Receiver<Event>,
    seq: BatchSeq,
    chain: [u8; 32],
}

impl Sender {
    fn new(vault: &Vault, name: &str) -> Self {
        let name: SourceName = name.parse().unwrap();
        let info = SourceInfo {
            name: name.clone(),
            fingerprint: "abc".into(),
            created: Timestamp::from_nanos(1),
        };
        vault.save_source(&info).unwrap();
        let (tell, told) = crossbeam_channel::unbounded();
        let events: Events = Arc::new(move |e| tell.send(e).unwrap_or_default());
        let options = Options {
            mirror: false,
            events,
        };
        Sender {
            vault: SourceVault::open(vault, &name, options).unwrap(),
            told,
            seq: BatchSeq(0),
            chain: [0; 32],
        }
    }

    /// A batch with blocks of so many bytes.
    fn send(&mut self, blocks: &[usize]) {
        self.seq = self.seq.next();
        let mut chain = Chain::new(&self.chain);
        for bytes in blocks {
            let block = Record::uncompressed(RecordKind::Block, self.seq, vec![7; *bytes]);
            chain.add(&block.header.hash);
            self.hand_over(block);
        }
        self.chain = chain.finish();
        let commit = codec::encode_commit(&Commit {
            seq: self.seq,
            epoch: Epoch([7; 16]),
            time: Timestamp::from_nanos(self.seq.0 as i64),
            clean: true,
            ops: 0,
            blocks: blocks.len() as u64,
            next_node: NodeId(2),
            chain: self.chain,
        });
        self.hand_over(commit);
    }

    /// As submit, which lets less wait while logs wait for the disk.
    fn hand_over(&self, record: Record) {
        let bytes = record.header.total_bytes() as usize;
        self.vault.shared.state.lock().waiting_bytes += bytes;
        self.vault.send(Item::Record(record)).unwrap();
    }
}

/// The next batch that a source is told is durable; sooner than anybody loses patience.
fn acked(told: &Receiver<Event>) -> BatchSeq {
    loop {
        match told.recv_timeout(PATIENCE / 2).unwrap() {
            Event::Durable(seq) => return seq,
            Event::Mirrored(_) | Event::Calm => {}
            failed => panic!("{failed:?}"),
        }
    }
}

#[test]
fn a_source_that_has_sent_nothing_for_a_while_rests() {
    // It takes half a minute, which no clock of a test shortens.
    const LONG: Duration = Duration::from_secs(120);
    let dir = tempfile::tempdir().unwrap();
    let vault = Vault::init(dir.path(), false, Timestamp::from_nanos(1)).unwrap();
    let mut one = Sender::new(&vault, "one");
    one.send(&[1000]);
    assert_eq!(acked(&one.told), BatchSeq(1));
    let begin = Instant::now();
    while one.told.recv_timeout(LONG).unwrap() != Event::Calm {}
    assert!(
        begin.elapsed() > Duration::from_secs(20),
        "sooner than that"
    );
}

#[test]
fn while_others_wait_for_the_disk_a_source_gets_a_little_of_it_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let vault = Vault::init(dir.path(), false, Timestamp::from_nanos(1)).unwrap();
    let mut many = Sender::new(&vault, "many");
    let mut few = Sender::new(&vault, "few");
    let turns = vault.turns();
    let mut at_work: Vec<_> = (0..SYNCS_AT_ONCE).map(|_| turns.sync.take()).collect();
    many.send(&[600 << 10]);
    turns.sync.wait_for_queue(1);
    many.send(&[600 << 10]);
    many.send(&[600 << 10, 600 << 10, 600 << 10]);
    many.send(&[600 << 10]);
    // Whoever has little goes past them all.
    few.send(&[1000]);
    assert_eq!(acked(&few.told), BatchSeq(1));
    let told = many.told.clone();
    assert!(told.is_empty());
    std::thread::scope(|scope| {
        let (leave, left) = crossbeam_channel::bounded::<()>(0);
        for waiting in 2..=3 {
            let (turns, left) = (&turns, left.clone());
            scope.spawn(move || {
                let _turn = turns.sync.take();
                left.recv().unwrap();
            });
            turns.sync.wait_for_queue(waiting);
        }
        // One is put on the disk; then another is at work, and a third waits before it.
        at_work.pop();
        assert_eq!(acked(&told), BatchSeq(1));
        turns.sync.wait_for_queue(2);
        leave.send(()).unwrap();
        leave.send(()).unwrap();
        // A megabyte was reached in the third.
        assert_eq!(acked(&told), BatchSeq(2));
        drop(at_work);
        while acked(&told) < BatchSeq(4) {}
    });
    many.vault.close().unwrap();
    few.vault.close().unwrap();
}

#[test]
fn what_comes_while_the_disk_is_waited_for_is_acked_in_its_turn() {
    // More than a segment of 256 MiB.
    const BATCHES: u64 = 240;
    let dir = tempfile::tempdir().unwrap();
    let vault = Vault::init(dir.path(), false, Timestamp::from_nanos(1)).unwrap();
    let mut one = Sender::new(&vault, "one");
    for n in 1..=BATCHES {
        if n.is_multiple_of(50) {
            // Given up, and begun again.
            let lost = Record::uncompressed(RecordKind::Block, one.seq.next(), vec![8; 700 << 10]);
            one.hand_over(lost);
            one.vault.abort_batch().unwrap();
        }
        one.send(&[600 << 10, 700 << 10]);
    }
    let (mut last, mut acks) = (BatchSeq(0), 0);
    while last < BatchSeq(BATCHES) {
        let seq = acked(&one.told);
        assert!(seq > last && one.vault.last_commit().unwrap().seq >= seq);
        (last, acks) = (seq, acks + 1);
    }
    assert!(acks < BATCHES, "many at once");
    one.vault.close().unwrap();
    let log = dir.path().join("sources/one/log");
    assert_eq!(crate::segment::list_segments(&log).unwrap(), [1, 2]);
    let (_, recovered) = LogWriter::open(&log, BatchSeq(0)).unwrap();
    assert_eq!(recovered.last.unwrap().seq, BatchSeq(BATCHES));
    let mut batches = BatchReader::open(&log, None).unwrap();
    for n in 1..=BATCHES {
        let batch = batches.next_batch(recovered.end.unwrap()).unwrap().unwrap();
        assert_eq!((batch.commit.seq, batch.blocks.len()), (BatchSeq(n), 2));
        assert!(batch.damage.is_empty());
    }
}

/// A source with a durable batch, on a disk that does not answer from then on but by what it is told to, and two batches on their
/// way to it.
fn waiting_for_disk(dir: &Path) -> (Sender, crossbeam_channel::Sender<Option<std::io::Error>>) {
    let vault = Vault::init(dir, false, Timestamp::from_nanos(1)).unwrap();
    let mut one = Sender::new(&vault, "one");
    one.send(&[1000]);
    assert_eq!(acked(&one.told), BatchSeq(1));
    let (answer, answers) = crossbeam_channel::unbounded();
    slow_disk::make(&segment_path(&dir.join("sources/one/log"), 1), answers);
    one.send(&[1 << 20, 1 << 20]);
    let begun = |one: &Sender| one.vault.shared.state.lock().written.map(|(seq, _)| seq);
    let deadline = Instant::now() + PATIENCE;
    while begun(&one) < Some(BatchSeq(2)) {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    one.send(&[1 << 20]);
    // It is appended while the disk is waited for.
    while one.vault.shared.state.lock().waiting_bytes > 0 {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    let early = one.told.try_iter().find(|e| matches!(e, Event::Durable(_)));
    assert_eq!(early, None);
    (one, answer)
}

/// Returns once a source is told that something failed, and nothing that it should not be told before.
fn failed(told: &Receiver<Event>) {
    loop {
        match told.recv_timeout(PATIENCE).unwrap() {
            Event::Failed { .. } => return,
            Event::Mirrored(_) | Event::Calm => {}
            Event::Durable(seq) => panic!("{seq} is not durable"),
        }
    }
}

/// The last batch that is in a log which is opened anew.
fn last_in(dir: &Path) -> u64 {
    let (_, recovered) = LogWriter::open(&dir.join("sources/one/log"), BatchSeq(1)).unwrap();
    recovered.last.map_or(0, |c| c.seq.0)
}

#[test]
fn nothing_is_acked_before_the_disk_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let (one, answer) = waiting_for_disk(dir.path());
    answer.send(None).unwrap();
    assert_eq!(acked(&one.told), BatchSeq(2));
    // For the third, the disk has not answered yet.
    assert_eq!(one.vault.last_commit().unwrap().seq, BatchSeq(2));
    answer.send(None).unwrap();
    assert_eq!(acked(&one.told), BatchSeq(3));
    one.vault.close().unwrap();
    assert_eq!(last_in(dir.path()), 3);
}

#[test]
fn what_the_disk_refused_is_not_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let (one, answer) = waiting_for_disk(dir.path());
    answer.send(Some(std::io::Error::other("as if"))).unwrap();
    let told = one.told.recv_timeout(PATIENCE).unwrap();
    assert!(
        matches!(told, Event::Failed { retry: true, .. }),
        "{told:?}"
    );
    let _ = one.vault.close();
    assert_eq!(last_in(dir.path()), 1);
}

#[test]
fn an_error_of_the_disk_is_heard_even_if_something_else_fails_first() {
    let dir = tempfile::tempdir().unwrap();
    let (one, answer) = waiting_for_disk(dir.path());
    let out_of_turn = Record::uncompressed(RecordKind::Block, BatchSeq(9), vec![1; 10]);
    one.hand_over(out_of_turn);
    // Told while the disk still does not answer.
    failed(&one.told);
    answer.send(Some(std::io::Error::other("as if"))).unwrap();
    let _ = one.vault.close();
    assert_eq!(last_in(dir.path()), 1);
}
