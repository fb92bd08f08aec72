//! Prunes an open source: when somebody asks by a file in its directory, once a day by its policy, and what was left unfinished.
//! Runs beside append and apply thread and waits for both rather than the other way round; it must never touch the catalog
//! but through the apply thread.

use super::requests::Watched;
use super::{Shared, State, take_lock};
use crate::catalog::{Catalog, CatalogError, Forget};
use crate::retention::{self, Kept, Policy, PruneError, PruneOptions, PruneReport};
use crate::vault::{Vault, VaultError, load_toml, save_toml};
use farwrite_core::{BatchSeq, SourceName, Timestamp};
use parking_lot::MutexGuard;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Between two looks for a request where the kernel does not tell of one, and while the catalog is behind.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// Between two looks whether the apply thread is still there for a step of a prune.
const STEP_LOOK: Duration = Duration::from_millis(500);
/// Between two prunes by the policy.
pub const PRUNE_EVERY: Duration = Duration::from_secs(24 * 3600);
/// Between two tries after a failure.
const TRY_AGAIN: Duration = Duration::from_secs(3600);

/// `sources/NAME/prune.toml`: the last prune of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastPrune {
    /// When it ended.
    pub time: Timestamp,
    /// Why it came to nothing, or not to its end.
    pub error: Option<String>,
    /// What it did.
    pub report: PruneReport,
}

impl LastPrune {
    /// Of the source in this directory; `None` if it was never pruned.
    pub fn load(source_dir: &Path) -> Option<Self> {
        load_toml(&source_dir.join("prune.toml")).ok()
    }

    fn note(source_dir: &Path, done: &Result<PruneReport, PruneError>) {
        let last = LastPrune {
            time: SystemTime::now().into(),
            error: done.as_ref().err().map(ToString::to_string),
            report: done.as_ref().cloned().unwrap_or_default(),
        };
        if let Err(e) = save_toml(&source_dir.join("prune.toml"), &last) {
            tracing::debug!("the prune cannot be noted: {e}");
        }
    }
}

/// A request, in the source's directory.
pub(super) const REQUEST: &str = "prune.request";

/// A request to the process that has the source open, and its answer: files `prune.request` and `prune.answer` in the source's
/// directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneRequest {
    /// Tells answers apart.
    pub id: String,
    /// Text of a policy to use this once, instead of the one that is set.
    pub policy: Option<String>,
    /// When it was made, in seconds since 1970. One that nobody took in time is not wanted any more.
    #[serde(default)]
    pub time: i64,
}

/// After this time nobody waits for the answer to a request.
const REQUEST_GOOD_FOR: Duration = Duration::from_secs(300);

/// See [`PruneRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneAnswer {
    /// Of the request.
    pub id: String,
    /// Why nothing was done.
    pub error: Option<String>,
    /// What was done.
    pub report: PruneReport,
}

impl PruneRequest {
    /// Asks for a prune; the answer comes when it is done. Nobody else may ask before it has come: see [`PruneRequest::alone`].
    pub fn send(source_dir: &Path, policy: Option<&Policy>) -> Result<PruneRequest, VaultError> {
        let mut id = [0u8; 8];
        // The id needs to differ, no more.
        let _ = getrandom::fill(&mut id);
        let request = PruneRequest {
            id: format!("{:016x}", u64::from_le_bytes(id)),
            policy: policy.map(Policy::to_text),
            time: Timestamp::from(SystemTime::now()).sec,
        };
        save_toml(&source_dir.join(REQUEST), &request)?;
        Ok(request)
    }

    /// Held by who asks, from before the request until its answer: there is one file for each of them. An error of kind
    /// `WouldBlock`: somebody else asks.
    pub fn alone(source_dir: &Path) -> Result<File, VaultError> {
        take_lock(&source_dir.join("prune.lock"))
    }

    /// The answer, once it is there.
    pub fn answer(&self, source_dir: &Path) -> Option<PruneAnswer> {
        let answer: PruneAnswer = load_toml(&source_dir.join("prune.answer")).ok()?;
        (answer.id == self.id).then_some(answer)
    }

    /// Takes the request back if nobody has taken it yet. False: somebody has.
    pub fn withdraw(&self, source_dir: &Path) -> bool {
        std::fs::remove_file(source_dir.join(REQUEST)).is_ok()
    }
}

/// What the prune thread and the apply thread pass to each other.
#[derive(Default)]
pub(super) struct Forgetting {
    wanted: Option<Forget>,
    done: Option<Result<(), String>>,
    /// There may be a request.
    pub(super) asked: bool,
    /// The source is being closed: no step more.
    pub(super) closing: bool,
    /// The apply thread has ended.
    pub(super) apply_ended: bool,
}

impl Forgetting {
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.is_some()
    }
}

/// The apply thread's part: takes out what is to be forgotten, if anything.
pub(super) fn forget(shared: &Shared, catalog: &mut Catalog) -> Result<(), CatalogError> {
    let Some(what) = shared.state.lock().forgetting.wanted.take() else {
        return Ok(());
    };
    let done = catalog.forget(&what);
    let told = done.as_ref().copied().map_err(ToString::to_string);
    shared.state.lock().forgetting.done = Some(told);
    shared.changed.notify_all();
    done
}

/// Hands rows to the apply thread and waits until they are out.
fn hand_over(shared: &Shared, what: Forget) -> Result<(), String> {
    let gone = |state: &MutexGuard<'_, State>| {
        let f = &state.forgetting;
        state.failed.is_some() || f.apply_ended || f.closing
    };
    let mut state = shared.state.lock();
    if gone(&state) {
        return Err("the source is being closed".into());
    }
    state.forgetting.done = None;
    state.forgetting.wanted = Some(what);
    shared.changed.notify_all();
    loop {
        if let Some(done) = state.forgetting.done.take() {
            return done;
        }
        if gone(&state)
            && (state.forgetting.wanted.take().is_some() || state.forgetting.apply_ended)
        {
            return Err("the source is being closed".into());
        }
        shared.changed.wait_for(&mut state, STEP_LOOK);
    }
}

/// The thread.
pub(super) struct Keeper {
    pub(super) shared: Arc<Shared>,
    pub(super) vault: Vault,
    pub(super) name: SourceName,
    pub(super) dir: PathBuf,
    /// The last batch when the source was opened.
    pub(super) opened_at: BatchSeq,
}

impl Keeper {
    pub(super) fn run(self) {
        // Behind everything else on this machine.
        if let Err(e) = rustix::process::nice(19) {
            tracing::debug!("the prune thread keeps its priority: {e}");
        }
        let watched = Watched::begin(&self.dir, &self.shared);
        let mut next: Timestamp = Timestamp::default();
        let mut unfinished = true;
        let mut pause = LOOK_EVERY;
        while self.wait(pause) {
            pause = LOOK_EVERY;
            if self.shared.state.lock().applied < self.opened_at {
                // The catalog may be being made anew: it does not know yet what is needed.
                continue;
            }
            while let Some(request) = self.request() {
                self.answer(&request);
            }
            let now = Timestamp::from(SystemTime::now());
            if now >= next {
                next = now.after(TRY_AGAIN);
                let done = self.by_schedule(now, unfinished);
                unfinished = done.is_err();
                if let Err(e) = done {
                    tracing::warn!(source = %self.name, "{e}");
                }
            }
            if watched.is_some() {
                pause = next.since(now).clamp(LOOK_EVERY, TRY_AGAIN);
            }
        }
    }

    /// Waits until there may be a request, but no longer than `pause`; false once the source is being closed.
    fn wait(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        let mut state = self.shared.state.lock();
        let over =
            |s: &State| s.forgetting.closing || s.forgetting.apply_ended || s.failed.is_some();
        while !over(&state) && !std::mem::take(&mut state.forgetting.asked) {
            if self.shared.keeper.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        !over(&state)
    }

    fn request(&self) -> Option<PruneRequest> {
        let path = self.dir.join(REQUEST);
        let request: PruneRequest = load_toml(&path).ok()?;
        std::fs::remove_file(&path).ok()?;
        let age = Timestamp::from(SystemTime::now()).sec - request.time;
        if age.unsigned_abs() > REQUEST_GOOD_FOR.as_secs() {
            tracing::warn!(source = %self.name, "a request to prune was {age} s old: left alone");
            return None;
        }
        Some(request)
    }

    fn answer(&self, request: &PruneRequest) {
        let policy = match &request.policy {
            Some(text) => Policy::parse(text).map_err(PruneError::Catalog),
            None => self.policy(),
        };
        let done = policy.and_then(|p| {
            self.shared
                .prune(&self.vault, &self.name, Some(p), &|| true)
        });
        let answer = PruneAnswer {
            id: request.id.clone(),
            error: done.as_ref().err().map(ToString::to_string),
            report: done.unwrap_or_default(),
        };
        if let Err(e) = save_toml(&self.dir.join("prune.answer"), &answer) {
            tracing::warn!("prune: cannot answer: {e}");
        }
    }

    fn policy(&self) -> Result<Policy, PruneError> {
        Ok(self.vault.policy(&self.name)?.0)
    }

    /// What is due: the policy once a day, and at any time what was begun.
    fn by_schedule(&self, now: Timestamp, unfinished: bool) -> Result<(), PruneError> {
        let policy = self.policy()?;
        let last = LastPrune::load(&self.dir);
        let due = last.is_none_or(|l| {
            let wait = if l.error.is_some() {
                TRY_AGAIN
            } else {
                PRUNE_EVERY
            };
            now.since(l.time) >= wait || now < l.time
        });
        if due && !policy.keeps_everything() {
            return self
                .shared
                .prune(&self.vault, &self.name, Some(policy), &|| true)
                .map(drop);
        }
        if unfinished && Kept::load(&self.dir)?.horizon > BatchSeq(0) {
            return self
                .shared
                .prune(&self.vault, &self.name, None, &|| true)
                .map(drop);
        }
        Ok(())
    }
}

impl Shared {
    /// Prunes on this thread. One at a time.
    pub(super) fn prune(
        &self,
        vault: &Vault,
        name: &SourceName,
        policy: Option<Policy>,
        may_go_on: &dyn Fn() -> bool,
    ) -> Result<PruneReport, PruneError> {
        let _one = self.pruning.lock();
        let options = PruneOptions {
            policy,
            now: SystemTime::now().into(),
        };
        let keep_going = || {
            let state = self.state.lock();
            let open = !state.forgetting.closing && state.failed.is_none();
            drop(state);
            open && may_go_on()
        };
        let done = retention::prune(
            vault,
            name,
            &options,
            &mut |what| hand_over(self, what),
            &keep_going,
        );
        match &done {
            Err(PruneError::Empty) => {}
            Ok(r) if policy.is_none() && r.blocks == 0 && !r.stopped => {}
            _ => LastPrune::note(&vault.source_dir(name), &done),
        }
        if let Ok(r) = &done
            && (r.moments_dropped > 0 || r.blocks > 0)
        {
            tracing::info!(
                source = %name,
                dropped = r.moments_dropped,
                kept = r.moments_kept,
                bytes_freed = r.bytes_freed,
                stopped = r.stopped,
                "pruned"
            );
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::replace_file;

    #[test]
    fn an_answer_is_taken_only_for_its_own_request() {
        let dir = tempfile::tempdir().unwrap();
        let request = PruneRequest::send(dir.path(), None).unwrap();
        let mut answer = PruneAnswer {
            id: "other".into(),
            error: None,
            report: PruneReport::default(),
        };
        let path = dir.path().join("prune.answer");
        save_toml(&path, &answer).unwrap();
        assert_eq!(request.answer(dir.path()), None);
        answer.id = request.id.clone();
        save_toml(&path, &answer).unwrap();
        assert_eq!(request.answer(dir.path()), Some(answer));
        assert!(request.withdraw(dir.path()) && !request.withdraw(dir.path()));
        replace_file(&path, b"no toml").unwrap();
        assert_eq!(request.answer(dir.path()), None);
    }
}
