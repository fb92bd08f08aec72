//! Sources without daemons, for `make bench`: real links over TLS to one vault, with the records of a first backup that were made
//! before the clock starts, so that the vault alone is measured.
//!
//! `sources DIR < INVITES` reads one invite a line and pairs a source with each; all of them send the backup of DIR at the same moment, a
//! batch for each directory. Prints a JSON object: how many bytes and batches each has sent, and of two things, `durable` and `mirrored`,
//! for each source after how many seconds that held of its last batch (`ends`), and of how many of its batches it held at the moment
//! at which it held of half of all batches (`at_half`).

use crossbeam_channel::{Receiver, unbounded};
use farwrite_core::exclude::Excludes;
use farwrite_core::record::Record;
use farwrite_core::{
    BatchSeq, BytePath, Change, ChangeOp, ChangeSeq, FileId, SystemClock, Timestamp,
};
use farwrite_schedule::DirtySet;
use farwrite_transfer::backup::{BackupUnit, Index, RecordSink, RootSpec, SinkClosed};
use farwrite_transfer::net::tls::Identity;
use farwrite_transfer::net::{
    Dialer, LinkEvent, LinkOptions, SourceLink, TlsTarget, pair_blocking,
};
use farwrite_transfer::pairing::Invite;
use parking_lot::Mutex;
use std::error::Error;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Barrier, OnceLock};
use std::time::{Duration, Instant};

type Failure = Box<dyn Error + Send + Sync>;

/// Longest wait for anything of the vault.
const WITHIN: Duration = Duration::from_secs(900);

/// Each source has this much to send, or all, before the first may send any.
const READY_BYTES: u64 = 32 << 20;

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<Record>>>);

impl RecordSink for Sink {
    fn send(&mut self, record: Record) -> Result<(), SinkClosed> {
        self.0.lock().push(record);
        Ok(())
    }
}

/// The records of the first backup of a directory, a batch for each of its directories.
fn first_backup(dir: &Path) -> Result<Vec<Record>, Failure> {
    let place = tempfile::tempdir()?;
    let path = BytePath::try_from(dir)?;
    let root = RootSpec {
        slot: 1,
        excludes: Excludes::new(path.clone(), &[], vec![])?,
        path: path.clone(),
    };
    let meta = dir.metadata()?;
    let id = FileId {
        dev: meta.dev(),
        ino: meta.ino(),
    };
    let index = Index::open(&place.path().join("index.db"), 16 << 20)?;
    let sink = Sink::default();
    let clock = Arc::new(SystemClock::default());
    let mut unit = BackupUnit::new(index, vec![root], Box::new(sink.clone()), clock)?;
    let mut dirty = DirtySet::new(1_000_000, vec![(id, path.clone())]);
    let all = Change {
        time: Timestamp::from(std::time::SystemTime::now()),
        path,
        dir: id,
        name: None,
        file: None,
        op: ChangeOp::Subtree,
    };
    dirty.insert(ChangeSeq(1), &all);
    while !dirty.is_empty() {
        dirty.note_drained();
        // One command, a directory, is a round, and a round is a batch.
        let report = unit.execute(dirty.take(1, None).commands, &mut || true)?;
        for (command, after) in report.put_back {
            dirty.put_back(command, after);
        }
    }
    let records = std::mem::take(&mut *sink.0.lock());
    Ok(records)
}

/// How far the sources are with one thing.
struct Progress {
    /// Batches of each source of which it holds.
    done: Vec<u64>,
    /// When it held of the last.
    ends: Vec<f64>,
    /// What `done` was when half of all was done.
    at_half: Option<Vec<u64>>,
}

struct Figures {
    batches: u64,
    begin: OnceLock<Instant>,
    durable: Mutex<Progress>,
    mirrored: Mutex<Progress>,
}

impl Progress {
    fn new(sources: usize) -> Mutex<Self> {
        Mutex::new(Progress {
            done: vec![0; sources],
            ends: vec![0.0; sources],
            at_half: None,
        })
    }

    fn figures(&self) -> serde_json::Value {
        serde_json::json!({ "ends": self.ends, "at_half": self.at_half })
    }
}

impl Figures {
    fn note(&self, what: &Mutex<Progress>, source: usize, seq: BatchSeq) {
        let now = self.begin.get().map_or(0.0, |b| b.elapsed().as_secs_f64());
        let mut progress = what.lock();
        progress.done[source] = seq.0;
        if seq.0 == self.batches {
            progress.ends[source] = now;
        }
        let all = self.batches * progress.done.len() as u64;
        if progress.at_half.is_none() && progress.done.iter().sum::<u64>() >= all / 2 {
            progress.at_half = Some(progress.done.clone());
        }
    }
}

struct Source {
    link: SourceLink,
    events: Receiver<LinkEvent>,
}

impl Source {
    fn pair(
        rt: &tokio::runtime::Handle,
        (number, invite): (usize, &str),
        figures: &Arc<Figures>,
    ) -> Result<Source, Failure> {
        let invite: Invite = invite.parse()?;
        let identity = Identity::generate()?;
        pair_blocking(rt, &invite, &identity, "sources/0")?;
        let dialer = Dialer::Tls(TlsTarget {
            addresses: invite.addresses,
            vault: invite.vault,
            identity,
        });
        let (sender, events) = unbounded();
        let figures = figures.clone();
        let tell = move |event| {
            match event {
                LinkEvent::Ack(seq) => figures.note(&figures.durable, number, seq),
                LinkEvent::Mirrored(seq) => figures.note(&figures.mirrored, number, seq),
                _ => {}
            }
            // At the end nobody listens any more.
            sender.send(event).unwrap_or_default();
        };
        let link = SourceLink::spawn(rt, dialer, LinkOptions::default(), Box::new(tell));
        let source = Source { link, events };
        source.wait(|event| matches!(event, LinkEvent::Up { first: true, .. }))?;
        source.link.set_limit(Some(1));
        source.link.begin();
        Ok(source)
    }

    fn wait(&self, mut wanted: impl FnMut(&LinkEvent) -> bool) -> Result<(), Failure> {
        loop {
            match self.events.recv_timeout(WITHIN)? {
                event if wanted(&event) => return Ok(()),
                LinkEvent::Down { why, .. } => return Err(why.into()),
                LinkEvent::Refused { text, .. } => return Err(text.into()),
                _ => {}
            }
        }
    }

    /// Sends all, and waits until it is durable and stands in the mirror. `ready` is called when there is much to send.
    fn back_up(&self, records: &[Record], ready: impl FnOnce()) -> Result<(), Failure> {
        let last = records.last().map_or(BatchSeq(0), |r| r.header.seq);
        let (mut bytes, mut ready) = (0, Some(ready));
        for record in records {
            bytes += record.header.total_bytes();
            if bytes > READY_BYTES
                && let Some(ready) = ready.take()
            {
                ready();
            }
            self.link.send(record.clone())?;
        }
        if let Some(ready) = ready {
            ready();
        }
        let mut left = 2;
        self.wait(|e| {
            left -= u8::from(*e == LinkEvent::Ack(last) || *e == LinkEvent::Mirrored(last));
            left == 0
        })
    }
}

fn main() -> Result<(), Failure> {
    let dir = std::env::args_os().nth(1).ok_or("usage: sources DIR")?;
    let mut invites = String::new();
    std::io::stdin().read_to_string(&mut invites)?;
    let invites: Vec<&str> = invites.lines().collect();
    let records = first_backup(&Path::new(&dir).canonicalize()?)?;
    let figures = Arc::new(Figures {
        batches: records.last().map_or(0, |r| r.header.seq.0),
        begin: OnceLock::new(),
        durable: Progress::new(invites.len()),
        mirrored: Progress::new(invites.len()),
    });
    let rt = tokio::runtime::Runtime::new()?;
    let sources = invites.iter().copied().enumerate();
    let sources = sources
        .map(|source| Source::pair(rt.handle(), source, &figures))
        .collect::<Result<Vec<_>, _>>()?;
    let all_ready = Barrier::new(sources.len() + 1);
    std::thread::scope(|scope| {
        let send = |source: &Source| {
            source.back_up(&records, || {
                all_ready.wait();
            })
        };
        let threads = sources
            .iter()
            .map(|source| scope.spawn(move || send(source)));
        let threads: Vec<_> = threads.collect();
        all_ready.wait();
        figures.begin.get_or_init(Instant::now);
        for source in &sources {
            source.link.set_limit(None);
        }
        let ends = threads.into_iter().map(|t| t.join().expect("no panic"));
        ends.collect::<Result<Vec<()>, _>>()
    })?;
    let bytes: u64 = records.iter().map(|r| r.header.total_bytes()).sum();
    let out = serde_json::json!({
        "bytes": bytes, "batches": figures.batches,
        "durable": figures.durable.lock().figures(), "mirrored": figures.mirrored.lock().figures(),
    });
    println!("{out}");
    for source in sources {
        source.link.close(Duration::from_secs(10));
    }
    Ok(())
}
