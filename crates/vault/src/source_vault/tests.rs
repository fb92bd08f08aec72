//! By turns with others: what the public interface does not show.

use super::*;
use crate::turns::PATIENCE;
use crate::vault::{SYNCS_AT_ONCE, SourceInfo};
use crossbeam_channel::Receiver;
use farwrite_core::op::Chain;
use farwrite_core::{Epoch, NodeId, RecordKind, Timestamp, codec};
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
