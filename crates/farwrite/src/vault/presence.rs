//! Which sources have a session with this process, and when they last had one. Nothing is decided by it.

use farwrite_core::{SourceName, Timestamp};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

/// See the module.
#[derive(Default)]
pub(super) struct Presence(Mutex<BTreeMap<SourceName, Seen>>);

/// What is known of one source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Sessions now; while one takes over from another, two.
    sessions: usize,
    /// End of the last one.
    pub(super) last: Option<Timestamp>,
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
    /// A session begins.
    pub(super) fn enter(self: &Arc<Self>, name: &SourceName) -> Here {
        self.0.lock().entry(name.clone()).or_default().sessions += 1;
        Here {
            presence: self.clone(),
            name: name.clone(),
        }
    }

    /// What is known of one source since this process began.
    pub(super) fn of(&self, name: &SourceName) -> Seen {
        self.0.lock().get(name).copied().unwrap_or_default()
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        if let Some(seen) = self.presence.0.lock().get_mut(&self.name) {
            seen.sessions = seen.sessions.saturating_sub(1);
            seen.last = Some(SystemTime::now().into());
        }
    }
}
