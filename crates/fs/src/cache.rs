//! Directories kept open, by somebody's own key, within what the process may have open: all caches of a process share half of
//! its limit of descriptors (getrlimit(2), `RLIMIT_NOFILE`). None of them may keep a file from being opened.

use lru::LruCache;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::hash::Hash;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most entries of one cache.
const MOST: usize = 2048;
/// Entries that a cache may have however many others there are.
const LEAST: usize = 16;

/// Entries of all caches of the process.
static OPEN: AtomicUsize = AtomicUsize::new(0);
/// Most of them.
static LIMIT: OnceLock<usize> = OnceLock::new();

/// Lets the process open as many files as the system allows it to: for daemons, before they open any. What cannot be had is
/// done without.
pub fn raise_open_files() {
    let now = getrlimit(Resource::Nofile);
    if now.current < now.maximum {
        let wanted = Rlimit {
            current: now.maximum,
            ..now
        };
        if let Err(e) = setrlimit(Resource::Nofile, wanted) {
            tracing::debug!("the limit of open files stays at {:?}: {e}", now.current);
        }
    }
}

fn limit() -> usize {
    *LIMIT.get_or_init(|| {
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        usize::try_from(files / 2).unwrap_or(usize::MAX)
    })
}

/// The most recently used ones of what is put in.
#[derive(Debug)]
pub struct HandleCache<K: Hash + Eq, V> {
    entries: LruCache<K, V>,
}

impl<K: Hash + Eq, V> HandleCache<K, V> {
    /// An empty one.
    pub fn new() -> Self {
        HandleCache {
            entries: LruCache::unbounded(),
        }
    }

    /// What was put in under a key, if it is still there.
    pub fn get(&mut self, key: &K) -> Option<&V> {
        self.entries.get(key)
    }

    /// Puts in a value that holds one descriptor; others may go for it.
    pub fn put(&mut self, key: K, value: V) {
        if self.entries.put(key, value).is_none() {
            OPEN.fetch_add(1, Ordering::Relaxed);
        }
        while self.entries.len() > MOST
            || self.entries.len() > LEAST && OPEN.load(Ordering::Relaxed) > limit()
        {
            if self.entries.pop_lru().is_some() {
                OPEN.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Takes one out.
    pub fn pop(&mut self, key: &K) {
        if self.entries.pop(key).is_some() {
            OPEN.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Takes all out.
    pub fn clear(&mut self) {
        OPEN.fetch_sub(self.entries.len(), Ordering::Relaxed);
        self.entries.clear();
    }
}

impl<K: Hash + Eq, V> Default for HandleCache<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Hash + Eq, V> Drop for HandleCache<K, V> {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_caches_stay_within_the_limit_and_none_is_empty() {
        let _ = LIMIT.set(100);
        let mut caches: Vec<HandleCache<usize, ()>> = (0..4).map(|_| HandleCache::new()).collect();
        for at in 0..1000 {
            caches.iter_mut().for_each(|c| c.put(at, ()));
            caches[0].put(at, ());
        }
        let all = || OPEN.load(Ordering::Relaxed);
        assert!((100..=100 + 4 * LEAST).contains(&all()), "{}", all());
        for c in &mut caches {
            assert!(c.entries.len() >= LEAST && c.get(&999).is_some());
        }
        caches[1].pop(&999);
        let before = all();
        let gone = caches[1].entries.len();
        caches.remove(1);
        assert_eq!(all(), before - gone);
        caches.clear();
        assert_eq!(all(), 0);
    }
}
