//! Puts the vault crate behind the transfer crate's server: invites, keys, logs and histories of one vault directory.
//! It must never say that a batch is durable before the vault has said so, and never let one source reach another's.

use super::failure;
use super::presence::{Here, Presence};
use crate::bell::Bell;
use farwrite_core::history::{Request, Response};
use farwrite_core::{BatchSeq, Epoch, Record, RecordKind, SourceName, Timestamp};
use farwrite_transfer::message::{Behind, Refusal, RefusalCode};
use farwrite_transfer::net::tls::Fingerprint;
use farwrite_transfer::net::{Destination, EventSender, HistoryAnswers, SinkError, SourceSink};
use farwrite_transfer::pairing::{InviteStore, PairingError, PeerStore};
use farwrite_vault::retention::{BRAKE_MARKS, Marks};
use farwrite_vault::segment::{Found, LogError, Scan, list_segments};
use farwrite_vault::{Event, History, Options, SourceInfo, SourceVault, Vault, VaultError};
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// When a source should come back after a full disk or an I/O error.
const RETRY_TROUBLE: Duration = Duration::from_secs(15);
/// When a source should come back after it sent what cannot be applied: somebody has to look at it.
const RETRY_BROKEN: Duration = Duration::from_secs(300);
/// What stands for a fingerprint in the description of a source that comes by ssh.
const BY_SSH: &str = "ssh";

/// A vault directory as its server's destination.
pub(crate) struct VaultDestination {
    vault: Vault,
    invites: InviteStore,
    peers: PeerStore,
    presence: Arc<Presence>,
}

impl VaultDestination {
    /// In front of this vault.
    pub(crate) fn new(vault: Vault) -> Self {
        VaultDestination {
            invites: InviteStore::new(vault.dir()),
            peers: PeerStore::new(vault.dir()),
            presence: Arc::default(),
            vault,
        }
    }

    /// Who is here.
    pub(super) fn presence(&self) -> Arc<Presence> {
        self.presence.clone()
    }

    /// Makes sure that the source has a description with its present key.
    fn describe(&self, name: &SourceName) -> Result<(), VaultError> {
        let known = self.vault.source(name)?;
        let peers = self.peers.list().unwrap_or_default();
        let key = peers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, key)| key.to_string());
        let info = match (known, key) {
            (Some(info), Some(key)) if info.fingerprint != key => SourceInfo {
                fingerprint: key,
                ..info
            },
            (Some(_), _) => return Ok(()),
            (None, key) => SourceInfo {
                name: name.clone(),
                fingerprint: key.unwrap_or_else(|| BY_SSH.into()),
                created: now(),
            },
        };
        self.vault.save_source(&info)
    }

    fn open_sink(&self, name: &SourceName, events: EventSender) -> Result<VaultSink, VaultError> {
        self.describe(name)?;
        let mirror = self.vault.info().mirror;
        let progress = Arc::new(Progress {
            failure: failure::FailureFile::of(&self.vault.source_dir(name)),
            state: Mutex::default(),
            events,
            mirror,
            name: name.clone(),
            news: self.presence.news(),
        });
        let hear = progress.clone();
        let options = Options {
            mirror,
            events: Arc::new(move |event| hear.event(event)),
        };
        let log = SourceVault::open(&self.vault, name, options)?;
        progress.opened(log.last_commit().map_or(BatchSeq(0), |c| c.seq));
        let log_dir = self.vault.source_dir(name).join("log");
        Ok(VaultSink {
            log,
            log_dir,
            progress,
            mirror,
            here: self.presence.enter(name),
        })
    }
}

impl Destination for VaultDestination {
    fn pair(&self, token: &[u8], peer: &Fingerprint) -> Result<SourceName, Refusal> {
        let name = self
            .peers
            .pair(&self.invites, token, peer, now())
            .map_err(|e| match e {
                PairingError::Redeem(e) => Refusal::new(RefusalCode::Invite, e.to_string()),
                PairingError::Store(e) => trouble("cannot pair", &e),
            })?;
        tracing::info!(source = %name, key = %peer, "paired");
        self.describe(&name)
            .map_err(|e| trouble("cannot pair", &e))?;
        Ok(name)
    }

    fn identify(&self, peer: &Fingerprint) -> Option<SourceName> {
        self.peers.identify(peer).unwrap_or_else(|e| {
            tracing::warn!(error = %e, "a key cannot be looked up");
            None
        })
    }

    fn open(&self, name: &SourceName, events: EventSender) -> Result<Arc<dyn SourceSink>, Refusal> {
        match self.open_sink(name, events) {
            Ok(sink) => Ok(Arc::new(sink)),
            Err(e) if e.is_busy() => {
                SourceVault::ask_for(&self.vault, name);
                let text = "another process at the vault has this source open: a prune lets go of it soon; else, is it connected twice, by ssh and by TLS?";
                Err(Refusal::new(RefusalCode::Busy, text))
            }
            Err(e) => {
                failure::FailureFile::of(&self.vault.source_dir(name)).write(&e.to_string());
                self.presence.news().ring();
                Err(trouble(&format!("cannot open {name}"), &e))
            }
        }
    }

    fn history(&self, name: &SourceName) -> Result<HistoryAnswers, Refusal> {
        let dir = self.vault.source_dir(name);
        if !dir.is_dir() {
            return Err(Refusal::new(
                RefusalCode::Denied,
                format!("this vault has no backup of {name} yet"),
            ));
        }
        let history = History::open(&dir).map_err(|e| trouble("cannot open the history", &e))?;
        let answers = move |request: &Request| -> Response {
            match request {
                Request::SetMark { name, .. } if name.starts_with(BRAKE_MARKS) => Response::Error(
                    format!("names that begin with {BRAKE_MARKS} are the vault's: choose another"),
                ),
                Request::SetMark { name, at } => {
                    match Marks::set(&dir, name, *at, "source", now()) {
                        Ok(mark) => Response::Moment(Some(mark.moment)),
                        Err(e) => Response::Error(e.to_string()),
                    }
                }
                _ => history.answer(request),
            }
        };
        Ok(Box::new(answers))
    }
}

/// A refusal for what may be over when the source comes back; the vault's own log has the details.
fn trouble(what: &str, e: &dyn std::error::Error) -> Refusal {
    tracing::warn!(error = %e, "{what}");
    Refusal::new(
        RefusalCode::Busy,
        format!("the vault is in trouble: {what}: {e}"),
    )
}

fn now() -> Timestamp {
    SystemTime::now().into()
}

/// What the vault's threads report on their way to the session.
struct Progress {
    events: EventSender,
    failure: failure::FailureFile,
    state: Mutex<State>,
    mirror: bool,
    name: SourceName,
    news: Arc<Bell>,
}

#[derive(Default)]
struct State {
    /// `None` until the log is open.
    durable: Option<BatchSeq>,
    mirrored: BatchSeq,
    failed: Option<SinkError>,
}

impl Progress {
    fn opened(&self, last: BatchSeq) {
        let mut state = self.state.lock();
        state.durable = state.durable.max(Some(last));
        self.forget_failure(&state);
    }

    fn event(&self, event: Event) {
        match event {
            Event::Durable(seq) => {
                self.state.lock().durable = Some(seq);
                self.events.durable(seq);
            }
            Event::Mirrored(seq) => {
                if self.mirror {
                    self.events.mirrored(seq);
                }
                let mut state = self.state.lock();
                state.mirrored = seq;
                self.forget_failure(&state);
            }
            Event::Failed { what, retry } => self.failed(what, retry),
            // Who hears of news gives back what has become free.
            Event::Calm => {}
        }
        self.news.ring();
    }

    fn failed(&self, what: String, retry: bool) {
        tracing::warn!(source = %self.name, retry, "{what}");
        let retry_after = if retry { RETRY_TROUBLE } else { RETRY_BROKEN };
        self.state.lock().failed = Some(match retry {
            true => SinkError::Failed {
                text: what.clone(),
                retry_after,
            },
            false => SinkError::BadBatch { text: what.clone() },
        });
        self.failure.write(&what);
        self.events.failed(what, retry_after);
    }

    /// Once everything durable has been applied, what went wrong before is over.
    fn forget_failure(&self, state: &State) {
        if state.failed.is_none() && state.durable.is_some_and(|d| state.mirrored >= d) {
            self.failure.remove();
        }
    }

    /// Why the log is closed.
    fn reason(&self, closed: String) -> SinkError {
        let known = self.state.lock().failed.clone();
        known.unwrap_or(SinkError::Failed {
            text: closed,
            retry_after: RETRY_TROUBLE,
        })
    }
}

/// One source's log, open. Dropped by the session at its end, whatever ended it: the next one opens it anew.
struct VaultSink {
    log: SourceVault,
    log_dir: PathBuf,
    progress: Arc<Progress>,
    mirror: bool,
    here: Here,
}

impl SourceSink for VaultSink {
    fn last(&self) -> Option<(BatchSeq, [u8; 32])> {
        self.log.last_commit().map(|c| (c.seq, c.chain))
    }

    fn epoch(&self) -> Option<Epoch> {
        self.log.last_commit().map(|c| c.epoch)
    }

    fn mirror(&self) -> bool {
        self.mirror
    }

    fn behind(&self, behind: Behind) {
        self.here.behind(behind);
    }

    fn submit(&self, record: Record) -> Result<(), SinkError> {
        self.log
            .submit(record)
            .map_err(|e| self.progress.reason(e.0))
    }

    fn abort(&self) {
        // A closed log has no batch to drop.
        let _ = self.log.abort_batch();
    }

    fn replay(
        &self,
        after: BatchSeq,
        out: &mut dyn FnMut(Record) -> bool,
    ) -> Result<(), SinkError> {
        let Some(last) = self.log.last_commit() else {
            return Ok(());
        };
        replay(&self.log_dir, after, last.seq, out).map_err(|e| {
            tracing::warn!(source = %self.progress.name, error = %e, "replay");
            let retry_after = if e.is_io() {
                RETRY_TROUBLE
            } else {
                RETRY_BROKEN
            };
            SinkError::Failed {
                text: format!("the log cannot be replayed: {e}"),
                retry_after,
            }
        })
    }
}

/// `Ops` and `Commit` records of the batches behind `after` up to `last`. Damage among them is an error: an index built
/// from half of it would take the vault to have what it has not.
fn replay(
    log_dir: &std::path::Path,
    after: BatchSeq,
    last: BatchSeq,
    out: &mut dyn FnMut(Record) -> bool,
) -> Result<(), LogError> {
    let segments = list_segments(log_dir)?;
    let first = first_segment(log_dir, &segments, after)?;
    for &segment in &segments[first..] {
        let mut scan = Scan::open(log_dir, segment)?.skip_block_payloads();
        while let Some(found) = scan.next_found()? {
            let record = match found {
                Found::Record { record, .. } => record,
                Found::Pruned { .. } => continue,
                Found::Damage(d) if d.seq.is_some_and(|s| s <= after || s > last) => continue,
                Found::Damage(d) => {
                    return Err(LogError::Damaged {
                        segment,
                        offset: d.place.offset,
                        seq: d.seq,
                        what: d.what,
                    });
                }
            };
            let seq = record.header.seq;
            if seq > last {
                return Ok(());
            }
            let wanted = matches!(record.header.kind, RecordKind::Ops | RecordKind::Commit);
            if wanted && seq > after && !out(record) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Index of the last segment that begins at or before the batch behind `after`.
fn first_segment(
    log_dir: &std::path::Path,
    segments: &[u64],
    after: BatchSeq,
) -> Result<usize, LogError> {
    let mut first = 0;
    for (i, &segment) in segments.iter().enumerate() {
        // A segment whose header is damaged is read through, whatever is in it.
        if Scan::open(log_dir, segment)?
            .header()
            .is_ok_and(|h| h.first_seq <= after.next())
        {
            first = i;
        }
    }
    Ok(first)
}

#[cfg(test)]
#[path = "destination_tests.rs"]
mod tests;
