//! Restores that the control API began: how far they are, until it has been read. A restore goes on when whoever began it
//! has gone; it ends with the daemon, and then leaves no half file under its name.

use super::past::{Past, at, byte_path, failed, there};
use super::show;
use farwrite_control::{Answer, Fault, RestoreJob, RestoreRequest};
use farwrite_core::history::{Entry, Moment, Request};
use farwrite_core::{BytePath, Name, path};
use farwrite_vault::{Restore, RestoreError, RestoreStats};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Restores at once.
const RUNNING: usize = 4;
/// Restores remembered, with those that run.
const REMEMBERED: usize = 32;
/// Names that are in the way, and failures, that are told.
const NAMED: usize = 20;

/// See the module.
#[derive(Default)]
pub(super) struct Jobs {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    last: u64,
    all: BTreeMap<u64, Arc<Mutex<RestoreJob>>>,
}

impl Jobs {
    fn add(&self, mut job: RestoreJob) -> Answer<Arc<Mutex<RestoreJob>>> {
        let mut inner = self.inner.lock();
        let runs = |j: &Arc<Mutex<RestoreJob>>| j.lock().state == "running";
        if inner.all.values().filter(|j| runs(j)).count() >= RUNNING {
            return Err(Fault::conflict(format!(
                "{RUNNING} restores are under way: wait for one of them"
            )));
        }
        while inner.all.len() >= REMEMBERED {
            let over = inner.all.iter().find(|(_, j)| !runs(j)).map(|(id, _)| *id);
            match over {
                Some(id) => drop(inner.all.remove(&id)),
                None => break,
            }
        }
        inner.last += 1;
        job.id = inner.last;
        let job = Arc::new(Mutex::new(job));
        let id = inner.last;
        inner.all.insert(id, job.clone());
        Ok(job)
    }

    fn get(&self, id: u64) -> Answer<RestoreJob> {
        match self.inner.lock().all.get(&id) {
            Some(job) => Ok(job.lock().clone()),
            None => Err(Fault::not_found("there is no such restore")),
        }
    }
}

/// What is to be restored.
struct Plan {
    vault: String,
    path: BytePath,
    at: Moment,
    to: PathBuf,
    overwrite: bool,
}

impl Past {
    /// See [`farwrite_control::Handler::restore_progress`].
    pub fn restore_progress(&self, id: u64) -> Answer<RestoreJob> {
        self.jobs.get(id)
    }

    /// See [`farwrite_control::Handler::restore`].
    pub fn restore(&self, r: &RestoreRequest) -> Answer<RestoreJob> {
        let path = byte_path(&r.path, r.path_bytes.as_deref())?;
        let to = PathBuf::from(r.to.trim());
        if r.to.trim().is_empty() {
            return Err(Fault::field("to", "name a directory to restore to"));
        }
        // One text, one meaning: no ".." and nothing relative to where the daemon happens to be.
        if BytePath::try_from(to.as_path()).is_err() {
            return Err(Fault::field(
                "to",
                "name a directory by its whole path, such as /tmp/back",
            ));
        }
        if to.symlink_metadata().is_ok() && !to.is_dir() {
            return Err(Fault::field("to", "this exists and is no directory"));
        }
        let vault = self.vault_name(r.vault.as_deref())?;
        let (moment, entry) = self.with(Some(&vault), |ask, _| {
            let at = at(ask, r.at.as_deref())?;
            Ok((at, there(ask, &path, &at)?))
        })?;
        let mut job = RestoreJob {
            state: "running".into(),
            dry_run: r.dry_run,
            path: String::from_utf8_lossy(path.as_bytes()).into_owned(),
            to: r.to.trim().to_owned(),
            time: show::rfc3339(moment.time),
            in_the_way: in_the_way(&entry, &to),
            ..RestoreJob::default()
        };
        let plan = Plan {
            vault,
            path,
            at: moment,
            to,
            overwrite: r.overwrite,
        };
        if r.dry_run {
            let stats = self.run(&plan, true, &|_| ())?;
            note(&mut job, &stats);
            job.state = "done".into();
            return Ok(job);
        }
        if !job.in_the_way.is_empty() && !r.overwrite {
            let why = format!("{} exists already", job.in_the_way.join(", "));
            return Err(Fault {
                field: Some("overwrite".into()),
                ..Fault::conflict(why)
            });
        }
        self.begin(plan, job)
    }

    fn begin(&self, plan: Plan, job: RestoreJob) -> Answer<RestoreJob> {
        let job = self.jobs.add(job)?;
        let (of_thread, past) = (job.clone(), Past::new(&self.state));
        let spawned = std::thread::Builder::new()
            .name("restore".into())
            .spawn(move || {
                let done = past.run(&plan, false, &|stats| note(&mut of_thread.lock(), stats));
                let mut job = of_thread.lock();
                match done {
                    Ok(stats) => {
                        note(&mut job, &stats);
                        job.state = "done".into();
                    }
                    Err(e) => {
                        job.error = Some(e.why);
                        job.state = "failed".into();
                    }
                }
            });
        if let Err(e) = spawned {
            job.lock().state = "failed".into();
            return Err(Fault::failed(format!("no thread for the restore: {e}")));
        }
        let now = job.lock().clone();
        Ok(now)
    }

    fn run(
        &self,
        plan: &Plan,
        dry_run: bool,
        progress: &dyn Fn(&RestoreStats),
    ) -> Answer<RestoreStats> {
        let ask = self.session(&plan.vault)?;
        let answer = |request: Request| ask.raw(request).map_err(Into::into);
        let restore = Restore {
            ask: &answer,
            paths: vec![plan.path.clone()],
            at: plan.at.seq,
            to_dir: plan.to.clone(),
            // What is in the way is told otherwise.
            overwrite: plan.overwrite || dry_run,
            dry_run,
            progress: Some(progress),
        };
        restore.run().map_err(|e| match e {
            RestoreError::Io { .. } => Fault::field("to", e.to_string()),
            e => failed(e.into()),
        })
    }
}

fn note(job: &mut RestoreJob, stats: &RestoreStats) {
    job.files = stats.files;
    job.directories = stats.dirs;
    job.bytes = stats.bytes;
    job.failed_count = stats.failed.len() as u64;
    if job.failed.len() < NAMED {
        let some = stats.failed.iter().take(NAMED);
        job.failed = some
            .map(|(p, why)| format!("{p}: {}", path::lossy(why.as_bytes())))
            .collect();
    }
}

/// What is there already under the name that the restored thing would have.
fn in_the_way(entry: &Entry, to: &Path) -> Vec<String> {
    let place = |name: &Name| to.join(name);
    let taken = entry
        .name
        .as_ref()
        .map(place)
        .filter(|p| p.symlink_metadata().is_ok());
    taken
        .map(|p| path::lossy(p.as_os_str().as_bytes()))
        .into_iter()
        .collect()
}
