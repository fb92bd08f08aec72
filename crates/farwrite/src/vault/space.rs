//! What each source takes on the vault's disk, now and over time. Log and catalog are looked at when somebody asks; a thread
//! of its own takes a sample from time to time, and counts the mirrors that have changed: that means to look at every file.
//!
//! `sources/NAME/space.toml` keeps the samples: at most [`SAMPLES`], thinned as they get old. It is a hint for people;
//! where it cannot be read, the history begins anew.

use farwrite_control::{Space, SpaceSample};
use farwrite_core::{Kind, Name, SourceName};
use farwrite_fs::Dir;
use farwrite_vault::Vault;
use farwrite_vault::vault::{load_toml, save_toml};
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What was seen of a log and a catalog is told again for this long at least.
const FRESH: Duration = Duration::from_secs(5);
/// And for so many times as long as the look took.
const FRESH_TIMES: u32 = 20;
/// Before a new source is counted, and between two looks whether it is still being written for the first time.
const FIRST_COUNT: Duration = Duration::from_secs(6);
/// A new mirror that is written is counted after this time all the same.
const FIRST_COUNT_WITHIN: Duration = Duration::from_secs(60);
/// Between two rounds of the thread.
const ROUND: Duration = Duration::from_secs(600);
/// Between two samples that are kept; a round that comes a little early makes one.
const SAMPLE_MS: u64 = 590 * 1000;
const SAMPLES_FILE: &str = "space.toml";
/// Samples kept of one source; when there are more, every second one of the older half goes.
const SAMPLES: usize = 1000;
/// Between two counts of one mirror at least, so that each round makes one; a count that takes long is made less often.
const COUNT: Duration = Duration::from_secs(590);
/// A count takes at most this part of the time.
const COUNT_SHARE: u32 = 50;
/// Directories inside each other that are still counted.
const DEPTH: usize = 4096;
/// Growth is told only over at least this time.
const GROWTH_OVER_MS: u64 = 30 * 60 * 1000;
const DAY_MS: u64 = 24 * 3600 * 1000;

/// See the module.
pub(super) struct Spaces {
    vault: Vault,
    inner: Mutex<Inner>,
    news: Condvar,
}

#[derive(Default)]
struct Inner {
    of: BTreeMap<SourceName, Known>,
    /// There is a source that no round has seen yet.
    new: bool,
    ended: bool,
}

struct Known {
    now: Space,
    samples: Vec<SpaceSample>,
    /// `now` need not be looked at again before.
    fresh_until: Instant,
    /// When it was first looked at.
    came: Instant,
    /// As it was in the last round.
    seen: Option<State>,
    /// As it was when the mirror was last counted.
    counted: Option<State>,
    /// When the mirror may be counted again.
    count_at: Instant,
}

/// What changes whenever something of a source is written: bytes of log and catalog, and the time of the newest file.
type State = (u64, u64, Option<SystemTime>);

/// `space.toml`.
#[derive(Default, Serialize, Deserialize)]
struct Samples {
    /// Time in milliseconds, log, catalog, mirror (-1: not known).
    samples: Vec<(u64, u64, u64, i64)>,
}

impl Spaces {
    /// Starts the thread; it ends after [`Spaces::stop`].
    pub(super) fn start(vault: Vault) -> std::io::Result<Arc<Spaces>> {
        let spaces = Arc::new(Spaces {
            vault,
            inner: Mutex::default(),
            news: Condvar::new(),
        });
        let mine = spaces.clone();
        let run = move || {
            let mut pause = FIRST_COUNT;
            while mine.wait(pause) {
                pause = mine.round();
            }
        };
        std::thread::Builder::new()
            .name("space".into())
            .spawn(run)?;
        Ok(spaces)
    }

    /// Ends the thread soon.
    pub(super) fn stop(&self) {
        self.inner.lock().ended = true;
        self.news.notify_all();
    }

    /// Until the next round, or a little after a new source has come; false at the end.
    fn wait(&self, pause: Duration) -> bool {
        let mut until = Instant::now() + pause;
        let mut inner = self.inner.lock();
        while !inner.ended && Instant::now() < until {
            if std::mem::take(&mut inner.new) {
                until = until.min(Instant::now() + FIRST_COUNT);
            }
            self.news.wait_until(&mut inner, until);
        }
        !inner.ended
    }

    /// What a source takes now, and by how much that has grown in a day.
    pub(super) fn of(&self, name: &SourceName) -> (Space, Option<i64>) {
        self.freshen(name);
        let inner = self.inner.lock();
        let known = inner.of.get(name);
        known.map_or_else(Default::default, |k| {
            (k.now, growth(&k.samples, k.now, now_ms()))
        })
    }

    /// What it took before.
    pub(super) fn samples(&self, name: &SourceName) -> Vec<SpaceSample> {
        self.freshen(name);
        let inner = self.inner.lock();
        inner
            .of
            .get(name)
            .map_or_else(Vec::new, |k| k.samples.clone())
    }

    /// Looks, unless that was done a moment ago.
    fn freshen(&self, name: &SourceName) {
        let fresh = |k: &Known| Instant::now() < k.fresh_until;
        if !self.inner.lock().of.get(name).is_some_and(fresh) {
            self.look(name);
        }
    }

    /// Looks at log and catalog of a source. Gives what changes whenever it is written.
    fn look(&self, name: &SourceName) -> State {
        let begin = Instant::now();
        let dir = self.vault.source_dir(name);
        let (log_bytes, log_time) = allocated(&dir.join("log"), |_| true);
        let (catalog_bytes, catalog_time) = allocated(&dir, |name| {
            // Whoever reads a catalog writes to the file that is left out.
            name.starts_with("catalog.db") && !name.ends_with("-shm")
        });
        let fresh_until = Instant::now() + FRESH.max(begin.elapsed() * FRESH_TIMES);
        let mut inner = self.inner.lock();
        let is_new = !inner.of.contains_key(name);
        let known = inner.of.entry(name.clone()).or_insert_with(|| {
            let samples = load(&dir.join(SAMPLES_FILE));
            // Until it has been counted again.
            let mirror_bytes = samples.last().and_then(|s| s.space.mirror_bytes);
            Known {
                now: Space {
                    mirror_bytes,
                    ..Space::default()
                },
                samples,
                fresh_until,
                came: Instant::now(),
                seen: None,
                counted: None,
                count_at: Instant::now(),
            }
        });
        known.now.log_bytes = log_bytes;
        known.now.catalog_bytes = catalog_bytes;
        known.fresh_until = fresh_until;
        if is_new {
            inner.new = true;
            self.news.notify_all();
        }
        (log_bytes, catalog_bytes, log_time.max(catalog_time))
    }

    /// Takes samples, then counts; how long until the next round.
    fn round(&self) -> Duration {
        let sources = self.vault.sources().unwrap_or_default();
        let names: Vec<SourceName> = sources.into_iter().map(|s| s.name).collect();
        let states: Vec<State> = names.iter().map(|n| self.look(n)).collect();
        names.iter().for_each(|n| self.sample(n));
        let mut pause = ROUND;
        if self.vault.info().mirror {
            for (name, state) in names.iter().zip(states) {
                if self.is_begun(name, state) {
                    pause = FIRST_COUNT;
                } else {
                    self.count(name, state);
                }
            }
        }
        pause
    }

    /// Is its first backup under way? Counting would take the disk from it, and come to something else a moment later.
    fn is_begun(&self, name: &SourceName, state: State) -> bool {
        let mut inner = self.inner.lock();
        inner.of.get_mut(name).is_some_and(|k| {
            let moves = k.seen.replace(state) != Some(state);
            moves && k.counted.is_none() && k.came.elapsed() < FIRST_COUNT_WITHIN
        })
    }

    /// Counts the mirror, if it may have changed and was not counted lately.
    fn count(&self, name: &SourceName, state: State) {
        let due = |k: &Known| k.counted != Some(state) && k.count_at <= Instant::now();
        if !self.inner.lock().of.get(name).is_some_and(due) {
            return;
        }
        let begin = Instant::now();
        let bytes = self.count_mirror(&self.vault.source_dir(name).join("mirror"));
        let pause = COUNT.max(begin.elapsed() * COUNT_SHARE);
        let mut inner = self.inner.lock();
        if inner.ended {
            return;
        }
        if let Some(known) = inner.of.get_mut(name) {
            known.now.mirror_bytes = bytes;
            known.counted = Some(state);
            known.count_at = Instant::now() + pause;
        }
    }

    fn sample(&self, name: &SourceName) {
        let mut inner = self.inner.lock();
        let Some(known) = inner.of.get_mut(name) else {
            return;
        };
        let last = known.samples.last();
        if last.is_some_and(|s| now_ms().saturating_sub(s.time_ms) < SAMPLE_MS) {
            return;
        }
        known.samples.push(SpaceSample {
            time_ms: now_ms(),
            space: known.now,
        });
        thin(&mut known.samples);
        let samples = known.samples.clone();
        drop(inner);
        save(&self.vault.source_dir(name).join(SAMPLES_FILE), &samples);
    }

    /// Bytes allocated in a tree, a file with several names once. What goes away meanwhile is not counted. `None` if there is
    /// no tree, or the daemon ends.
    fn count_mirror(&self, top: &Path) -> Option<u64> {
        let mut bytes = 0;
        let top = Dir::open(top).ok()?;
        let below = list(&top, &mut bytes);
        let mut open = vec![(top, below)];
        while let Some((dir, below)) = open.last_mut() {
            let Some(name) = below.pop() else {
                open.pop();
                continue;
            };
            let next = dir.open_dir(&name).ok();
            if let Some(next) = next.filter(|_| open.len() < DEPTH) {
                let below = list(&next, &mut bytes);
                open.push((next, below));
            }
            if self.inner.lock().ended {
                return None;
            }
            // Leaves the disk to those who need it.
            std::thread::sleep(Duration::from_micros(200));
        }
        Some(bytes)
    }
}

/// Adds what the entries of a directory take, and gives those that are directories.
fn list(dir: &Dir, bytes: &mut u64) -> Vec<Name> {
    let mut below = Vec::new();
    for entry in dir.list().unwrap_or_default() {
        let Ok(stat) = dir.stat(&entry.name) else {
            continue;
        };
        // A file with several names is counted by parts.
        let names = match stat.kind {
            Kind::Dir => 1,
            _ => u64::from(stat.nlink.max(1)),
        };
        *bytes += stat.blocks * 512 / names;
        if stat.kind == Kind::Dir {
            below.push(entry.name);
        }
    }
    below
}

/// Bytes allocated by the files of a directory, and when the newest was written.
fn allocated(dir: &Path, is: impl Fn(&str) -> bool) -> (u64, Option<SystemTime>) {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|e| e.file_name().to_str().is_some_and(&is))
        .filter_map(|e| e.metadata().ok())
        .filter(|m| m.is_file())
        .fold((0, None), |(bytes, newest), m| {
            (bytes + m.blocks() * 512, newest.max(m.modified().ok()))
        })
}

fn total(s: Space) -> u64 {
    s.log_bytes + s.catalog_bytes + s.mirror_bytes.unwrap_or(0)
}

/// By how much it has grown in a day, judged by the last day or what there is of it.
fn growth(samples: &[SpaceSample], now: Space, now_ms: u64) -> Option<i64> {
    // A mirror that had not been counted yet would look like growth.
    let counted = |s: &&SpaceSample| s.space.mirror_bytes.is_some() == now.mirror_bytes.is_some();
    let from = samples
        .iter()
        .filter(counted)
        .find(|s| now_ms.saturating_sub(s.time_ms) <= DAY_MS)?;
    let over = now_ms.saturating_sub(from.time_ms);
    if over < GROWTH_OVER_MS {
        return None;
    }
    let grown = total(now) as i128 - total(from.space) as i128;
    i64::try_from(grown * i128::from(DAY_MS) / i128::from(over)).ok()
}

fn thin(samples: &mut Vec<SpaceSample>) {
    if samples.len() <= SAMPLES {
        return;
    }
    let old = samples.len() / 2;
    let mut at = 0;
    samples.retain(|_| {
        at += 1;
        at > old || at % 2 == 1
    });
}

fn load(file: &Path) -> Vec<SpaceSample> {
    let kept: Samples = load_toml(file).unwrap_or_default();
    let sample = |(time_ms, log_bytes, catalog_bytes, mirror)| SpaceSample {
        time_ms,
        space: Space {
            log_bytes,
            catalog_bytes,
            mirror_bytes: u64::try_from(mirror).ok(),
        },
    };
    let mut samples: Vec<_> = kept.samples.into_iter().map(sample).collect();
    // A clock that was put back must not keep new ones away.
    samples.retain(|s| s.time_ms <= now_ms());
    samples
}

fn save(file: &Path, samples: &[SpaceSample]) {
    let row = |s: &SpaceSample| {
        let mirror = s.space.mirror_bytes.map_or(-1, |b| b as i64);
        (s.time_ms, s.space.log_bytes, s.space.catalog_bytes, mirror)
    };
    let samples = samples.iter().map(row).collect();
    if let Err(e) = save_toml(file, &Samples { samples }) {
        tracing::debug!(error = %e, "the space taken cannot be noted");
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| d.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(time_ms: u64, log_bytes: u64) -> SpaceSample {
        SpaceSample {
            time_ms,
            space: Space {
                log_bytes,
                ..Space::default()
            },
        }
    }

    #[test]
    fn growth_is_that_of_the_last_day() {
        let now = sample(0, 5000).space;
        let day = 10 * DAY_MS;
        assert_eq!(growth(&[], now, day), None);
        // Too short a time to say.
        assert_eq!(growth(&[sample(day - 60_000, 0)], now, day), None);
        assert_eq!(
            growth(&[sample(day - DAY_MS / 2, 4000)], now, day),
            Some(2000)
        );
        let long = [sample(0, 0), sample(day - DAY_MS, 6000), sample(day - 1, 1)];
        assert_eq!(growth(&long, now, day), Some(-1000));
    }

    #[test]
    fn samples_stay_bounded_and_come_back() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("space.toml");
        let mut samples = Vec::new();
        for i in 0..5000 {
            samples.push(sample(i, i));
            thin(&mut samples);
        }
        assert!(samples.len() <= SAMPLES && samples.len() > SAMPLES / 3);
        assert_eq!(
            (samples[0].time_ms, samples.last().unwrap().time_ms),
            (0, 4999)
        );
        assert!(samples.is_sorted_by_key(|s| s.time_ms));
        save(&file, &samples);
        assert_eq!(load(&file), samples);
        std::fs::write(&file, "nonsense").unwrap();
        assert_eq!(load(&file), []);
    }

    #[test]
    fn a_mirror_is_counted_when_its_source_is_still_and_again_only_if_it_has_written() {
        use farwrite_core::Timestamp;
        use farwrite_vault::SourceInfo;
        let temp = tempfile::tempdir().unwrap();
        let vault = Vault::init(temp.path(), true, Timestamp::default()).unwrap();
        let name = SourceName::new("web1").unwrap();
        let info = SourceInfo {
            name: name.clone(),
            fingerprint: "abc".into(),
            created: Timestamp::default(),
        };
        vault.save_source(&info).unwrap();
        let dir = vault.source_dir(&name);
        for below in ["log", "mirror"] {
            std::fs::create_dir(dir.join(below)).unwrap();
        }
        let write = |file: &str, bytes: usize| {
            std::fs::write(dir.join(file), vec![1; bytes]).unwrap();
        };
        let spaces = Spaces {
            vault,
            inner: Mutex::default(),
            news: Condvar::new(),
        };
        let counted = || spaces.of(&name).0.mirror_bytes;
        write("mirror/a", 8192);
        for i in 1..4 {
            // It is being written: nothing is counted.
            write("log/1.seg", i * 10_000);
            assert_eq!(spaces.round(), FIRST_COUNT);
            assert_eq!(counted(), None);
        }
        assert_eq!(spaces.round(), ROUND);
        assert!(counted().is_some_and(|b| b >= 8192));
        // Later: a mirror of which nothing was told is not looked at, and one whose source has written is.
        let first = counted();
        let due = || spaces.inner.lock().of.get_mut(&name).unwrap().count_at = Instant::now();
        write("mirror/b", 1 << 20);
        due();
        spaces.round();
        assert_eq!(counted(), first);
        write("log/1.seg", 100_000);
        assert_eq!(spaces.round(), ROUND);
        assert!(counted().is_some_and(|b| b >= 1 << 20));
    }
}
