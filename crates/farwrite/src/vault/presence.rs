//! Which sources have a session with this process, and when they last had one. Nothing is decided by it.

use crate::bell::Bell;
use farwrite_core::{SourceName, Timestamp};
use farwrite_transfer::message::Behind;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// See the module.
#[derive(Default)]
pub(super) struct Presence {
    of: Mutex<BTreeMap<SourceName, Seen>>,
    news: Arc<Bell>,
}

/// What is known of one source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Sessions now; while one takes over from another, two.
    sessions: usize,
    /// End of the last one.
    pub(super) last: Option<Timestamp>,
    /// What the source last said of itself, while it is here.
    pub(super) behind: Option<Behind>,
}

impl Seen {
    /// It is here now.
    pub(super) fn is_here(&self) -> bool {
        self.sessions > 0
    }
}

/// A session, for as long as this lives.
pub(super) struct Here {
    presence: Arc<Presence>,
    name: SourceName,
}

impl Presence {
    /// Rung when a session begins or ends, and by whoever has other news of a source.
    pub(super) fn news(&self) -> Arc<Bell> {
        self.news.clone()
    }

    /// A session begins.
    pub(super) fn enter(self: &Arc<Self>, name: &SourceName) -> Here {
        self.of.lock().entry(name.clone()).or_default().sessions += 1;
        self.news.ring();
        Here {
            presence: self.clone(),
            name: name.clone(),
        }
    }

    /// It is here, by another process.
    pub(super) fn note(&self, name: &SourceName) {
        self.of.lock().entry(name.clone()).or_default().last = Some(SystemTime::now().into());
    }

    /// What is known of one source since this process began.
    pub(super) fn of(&self, name: &SourceName) -> Seen {
        self.of.lock().get(name).copied().unwrap_or_default()
    }
}

/// Does another process hold this lock? Asks the kernel's list, since trying to take the lock could turn away who really
/// wants it. Where the list shows nothing (another pid namespace, some filesystems), the answer is no.
pub(super) fn is_locked(path: &Path) -> bool {
    let Ok(file) = std::fs::metadata(path) else {
        return false;
    };
    let (major, minor) = (rustix::fs::major(file.dev()), rustix::fs::minor(file.dev()));
    let place = format!("{major:02x}:{minor:02x}:{}", file.ino());
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    locks
        .lines()
        .any(|l| l.contains("FLOCK") && l.split_whitespace().any(|word| word == place))
}

impl Drop for Here {
    fn drop(&mut self) {
        if let Some(seen) = self.presence.of.lock().get_mut(&self.name) {
            seen.sessions = seen.sessions.saturating_sub(1);
            seen.last = Some(SystemTime::now().into());
            seen.behind = seen.behind.filter(|_| seen.sessions > 0);
        }
        self.presence.news.ring();
    }
}

impl Here {
    /// The source says how far behind it is.
    pub(super) fn behind(&self, behind: Behind) {
        if let Some(seen) = self.presence.of.lock().get_mut(&self.name) {
            seen.behind = Some(behind);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{FlockOperation, flock};

    #[test]
    fn a_lock_of_somebody_else_is_seen() {
        let t = tempfile::tempdir().unwrap();
        let path = t.path().join("lock");
        assert!(!is_locked(&path));
        let file = std::fs::File::create(&path).unwrap();
        assert!(!is_locked(&path));
        flock(&file, FlockOperation::LockExclusive).unwrap();
        assert!(is_locked(&path));
        drop(file);
        assert!(!is_locked(&path));
    }

    #[test]
    fn a_source_is_here_as_long_as_it_has_a_session() {
        let all = Arc::new(Presence::default());
        let name = SourceName::new("web1").unwrap();
        assert_eq!(all.of(&name), Seen::default());
        let first = all.enter(&name);
        let second = all.enter(&name);
        let behind = Behind {
            changes: 3,
            lag_ms: 40,
        };
        second.behind(behind);
        drop(first);
        assert!(all.of(&name).is_here());
        assert_eq!(all.of(&name).behind, Some(behind));
        drop(second);
        let seen = all.of(&name);
        assert!(!seen.is_here() && seen.last.is_some() && seen.behind.is_none());
    }
}
