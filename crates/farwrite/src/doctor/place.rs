//! Checks of directories: the state directory and the protected ones.

use super::Check;
use crate::bytes;
use crate::state::State;
use rustix::io::Errno;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// Free space of the state directory below which it is said.
const SPACE_LOW: u64 = 1 << 30;
/// Free space below which the journal cannot be relied on.
const SPACE_NONE: u64 = 64 << 20;
/// Directories counted, and how long, for the estimate of watches.
const COUNTED: u64 = 500_000;
const COUNT_WITHIN: Duration = Duration::from_secs(2);
/// Mount points named.
const MOUNTS_NAMED: usize = 5;

/// The state directory: space, and times that lie ahead.
pub(super) fn state_dir(state: &State) -> Vec<Check> {
    let dir = state.dir();
    let existing = dir
        .ancestors()
        .find(|d| d.exists())
        .unwrap_or(Path::new("/"));
    let at = dir.display();
    let mut all = Vec::new();
    match rustix::fs::statvfs(existing) {
        Err(e) => all.push(Check::fail(
            "state",
            format!("{at}: {e}"),
            "choose another directory with --state DIR",
        )),
        Ok(s) => {
            let free = s.f_bavail * s.f_frsize;
            let text = format!("{at}: {} free, {}", bytes::show(free), filesystem(existing));
            let remedy = "free some space, or choose another directory with --state DIR";
            all.push(match free {
                n if n < SPACE_NONE => Check::fail("state", text, remedy),
                n if n < SPACE_LOW => Check::warn("state", text, remedy),
                _ => Check::ok("state", text),
            });
        }
    }
    let ahead = |m: fs::Metadata| m.modified().ok()?.duration_since(SystemTime::now()).ok();
    if let Some(ahead) = fs::metadata(state.config_path()).ok().and_then(ahead)
        && ahead > Duration::from_secs(60)
    {
        let text = format!(
            "the configuration was written {} in the future: the clock went back",
            bytes::span(ahead)
        );
        all.push(Check::warn(
            "clock",
            text,
            "set the clock, and run an NTP client",
        ));
    }
    all
}

/// Every protected directory, and whether there are watches enough for all of them.
pub(super) fn protected(dirs: &[&str]) -> Vec<Check> {
    let mounts = mounts();
    let mut all = Vec::new();
    let (mut count, mut cut) = (0, false);
    for dir in dirs {
        let path = Path::new(dir);
        match fs::read_dir(path) {
            Err(e) => {
                let remedy = "make it readable for the daemon, or take it out of the configuration";
                all.push(Check::fail(*dir, e.to_string(), remedy));
            }
            Ok(_) => {
                all.push(directory(path, &mounts));
                let (n, stopped) = count_directories(path);
                count += n;
                cut |= stopped;
            }
        }
    }
    if count > 0 {
        all.push(watches(count, cut));
    }
    all
}

fn directory(dir: &Path, mounts: &[Mount]) -> Check {
    let what = dir.display().to_string();
    let below: Vec<String> = mounts
        .iter()
        .filter(|m| m.point != dir && m.point.starts_with(dir))
        .map(|m| m.point.display().to_string())
        .collect();
    let text = filesystem(dir);
    if below.is_empty() {
        return Check::ok(what, text);
    }
    let more = below.len().saturating_sub(MOUNTS_NAMED);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    let named = below[..below.len().min(MOUNTS_NAMED)].join(", ");
    let text = format!("{text}; mounted below it and not backed up: {named}{more}");
    Check::warn(
        what,
        text,
        "protect them as directories of their own with `farwrite source add`, if they matter",
    )
}

/// What the filesystem of a directory is and can do.
fn filesystem(dir: &Path) -> String {
    let mounts = mounts();
    let of = mounts
        .iter()
        .rev()
        .filter(|m| dir.starts_with(&m.point))
        .max_by_key(|m| m.point.as_os_str().len());
    let kind = of.map_or("unknown filesystem", |m| m.kind.as_str());
    let has = |name: &str| {
        let mut value = [0u8; 16];
        !matches!(
            rustix::fs::getxattr(dir, name, &mut value[..]),
            Err(Errno::NOTSUP)
        )
    };
    let yes = |b: bool, what: &str| {
        if b {
            what.to_owned()
        } else {
            format!("no {what}")
        }
    };
    let reflink = match fs::File::open(dir)
        .ok()
        .and_then(farwrite_fs::shares_extents)
    {
        Some(b) => yes(b, "reflinks"),
        None => "reflinks not tried (not writable)".into(),
    };
    format!(
        "{kind}, {}, {}, {reflink}",
        yes(has("user.farwrite"), "xattrs"),
        yes(has("system.posix_acl_access"), "ACLs")
    )
}

/// A line of `/proc/self/mountinfo` (proc(5)).
struct Mount {
    point: PathBuf,
    kind: String,
}

fn mounts() -> Vec<Mount> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().filter_map(mount).collect()
}

fn mount(line: &str) -> Option<Mount> {
    let point = unescape(line.split(' ').nth(4)?);
    let kind = line.split_once(" - ")?.1.split(' ').next()?.to_owned();
    Some(Mount {
        point: point.into(),
        kind,
    })
}

/// Blanks and the like in mount points are `\ooo`.
fn unescape(text: &str) -> String {
    let mut out = text.to_owned();
    for (escaped, plain) in [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ] {
        out = out.replace(escaped, plain);
    }
    out
}

/// Directories at and below one, on its filesystem; true if the count was cut.
fn count_directories(top: &Path) -> (u64, bool) {
    let started = Instant::now();
    let dev = fs::metadata(top).map_or(0, |m| m.dev());
    let (mut count, mut todo) = (0, vec![top.to_owned()]);
    while let Some(dir) = todo.pop() {
        count += 1;
        if count >= COUNTED || started.elapsed() > COUNT_WITHIN {
            return (count, true);
        }
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        let below = entries
            .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
            .map(|e| e.path());
        todo.extend(below.filter(|p| fs::symlink_metadata(p).is_ok_and(|m| m.dev() == dev)));
    }
    (count, false)
}

fn watches(directories: u64, cut: bool) -> Check {
    let name = "fs.inotify.max_user_watches";
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_user_watches").ok();
    let limit: u64 = limit
        .and_then(|t| t.trim().parse().ok())
        .unwrap_or(u64::MAX);
    let count = format!(
        "{}{} directories",
        if cut { "more than " } else { "" },
        bytes::grouped(directories)
    );
    if directories < limit / 10 * 9 {
        return Check::ok(
            "watches",
            format!("{count}; {name} allows {}", bytes::grouped(limit)),
        );
    }
    let wanted = (directories * 2).next_power_of_two();
    let text = format!(
        "{count}, but {name} allows {} watches: without fanotify the rest is compared at intervals",
        bytes::grouped(limit)
    );
    Check::warn(
        "watches",
        text,
        format!("sysctl {name}={wanted}, and write it to /etc/sysctl.d/"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines() {
        let line =
            r"36 35 98:0 /mnt1 /mnt/a\040b rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        let m = mount(line).unwrap();
        assert_eq!(
            (m.point.to_str().unwrap(), m.kind.as_str()),
            ("/mnt/a b", "ext3")
        );
        assert!(mount("nonsense").is_none());
    }

    #[test]
    fn too_few_watches_are_said_with_a_number_that_would_do() {
        let c = watches(u64::MAX / 4, false);
        assert!(
            c.outcome == super::super::Outcome::Warn && c.remedy.contains("sysctl"),
            "{c:?}"
        );
        assert!(watches(1, false).remedy.is_empty());
    }

    #[test]
    fn directories_are_counted() {
        let t = tempfile::tempdir().unwrap();
        fs::create_dir_all(t.path().join("a/b")).unwrap();
        fs::write(t.path().join("f"), "").unwrap();
        assert_eq!(count_directories(t.path()), (3, false));
    }
}
