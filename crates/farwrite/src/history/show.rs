//! Times, modes, owners and names for people, and paths for programs. Names come from the history: whatever is in them,
//! they must not reach a terminal unescaped.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use farwrite_core::history::Moment;
use farwrite_core::{BytePath, Kind, Meta, Timestamp};
use jiff::tz::TimeZone;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Local time to the second.
pub(super) fn time(t: Timestamp) -> String {
    local(t, "%Y-%m-%d %H:%M:%S")
}

/// Local time to the millisecond.
pub(super) fn time_ms(t: Timestamp) -> String {
    local(t, "%Y-%m-%d %H:%M:%S%.3f")
}

fn local(t: Timestamp, format: &str) -> String {
    match jiff::Timestamp::new(t.sec, t.nsec as i32) {
        Ok(at) => at.to_zoned(TimeZone::system()).strftime(format).to_string(),
        // Beyond the year 9999, as a file's time may be.
        Err(_) => format!("@{}", t.sec),
    }
}

/// Exact, for programs and for `--at`.
pub(super) fn rfc3339(t: Timestamp) -> String {
    jiff::Timestamp::new(t.sec, t.nsec as i32)
        .map_or_else(|_| format!("@{}.{:09}", t.sec, t.nsec), |t| t.to_string())
}

/// How long ago; also when the source's clock is ahead.
pub(super) fn age(t: Timestamp) -> String {
    let now = Timestamp::from(std::time::SystemTime::now());
    match now.since(t) {
        d if d.as_millis() < 500 => "now".into(),
        d => format!("{} ago", crate::bytes::span(d)),
    }
}

/// One line on what is shown.
pub(super) fn moment(m: &Moment) -> String {
    let clean = match m.clean {
        true => "a clean point: exactly the tree as it was",
        false => "not a clean point: changes were on their way",
    };
    format!("as of {} ({}), {clean}", time(m.time), age(m.time))
}

/// A moment for programs.
pub(super) fn moment_json(m: &Moment) -> Value {
    json!({"batch": m.seq, "time": rfc3339(m.time), "clean": m.clean})
}

/// Puts `bytes` into `map` as text under `key`; where that loses something, the bytes too, as base64 under `KEY_bytes`.
pub(super) fn put_bytes(map: &mut Map<String, Value>, key: &str, bytes: &[u8]) {
    map.insert(key.into(), String::from_utf8_lossy(bytes).into());
    if std::str::from_utf8(bytes).is_err() {
        map.insert(format!("{key}_bytes"), STANDARD.encode(bytes).into());
    }
}

/// An object with a path in it.
pub(super) fn path_json(path: &BytePath) -> Map<String, Value> {
    let mut map = Map::new();
    put_bytes(&mut map, "path", path.as_bytes());
    map
}

/// What sort of file, for programs.
pub(super) fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Dir => "directory",
        Kind::Symlink => "symlink",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
        Kind::Char => "char",
        Kind::Block => "block",
    }
}

/// Attributes for programs. `mode` is octal text.
pub(super) fn put_meta(map: &mut Map<String, Value>, meta: &Meta) {
    map.insert("kind".into(), kind(meta.kind).into());
    map.insert("mode".into(), format!("{:04o}", meta.mode).into());
    map.insert("uid".into(), meta.uid.into());
    map.insert("gid".into(), meta.gid.into());
    map.insert("mtime".into(), rfc3339(meta.mtime).into());
    if meta.kind == Kind::File {
        map.insert("size".into(), meta.size.into());
    }
    if meta.kind == Kind::Symlink {
        put_bytes(map, "target", &meta.target);
    }
    if matches!(meta.kind, Kind::Char | Kind::Block) {
        map.insert("device".into(), device(meta.rdev).into());
    }
}

/// "major:minor" of a device number.
pub(super) fn device(rdev: u64) -> String {
    format!("{}:{}", rustix::fs::major(rdev), rustix::fs::minor(rdev))
}

/// As the first column of `ls -l`.
pub(super) fn mode(meta: &Meta) -> String {
    let kind = match meta.kind {
        Kind::File => '-',
        Kind::Dir => 'd',
        Kind::Symlink => 'l',
        Kind::Fifo => 'p',
        Kind::Socket => 's',
        Kind::Char => 'c',
        Kind::Block => 'b',
    };
    let mut out = String::from(kind);
    for (shift, special, set, unset) in [
        (6, 0o4000, 's', 'S'),
        (3, 0o2000, 's', 'S'),
        (0, 0o1000, 't', 'T'),
    ] {
        let bits = meta.mode >> shift;
        out.push(if bits & 4 != 0 { 'r' } else { '-' });
        out.push(if bits & 2 != 0 { 'w' } else { '-' });
        out.push(match (bits & 1 != 0, meta.mode & special != 0) {
            (true, true) => set,
            (false, true) => unset,
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    if meta
        .xattrs
        .iter()
        .any(|x| x.name.starts_with(b"system.posix_acl"))
    {
        out.push('+');
    }
    out
}

/// Names of users and groups, from this machine's files.
#[derive(Default)]
pub(super) struct Owners {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Owners {
    /// Reads passwd(5) and group(5).
    pub(super) fn of_this_machine() -> Self {
        Owners {
            users: numbers("/etc/passwd"),
            groups: numbers("/etc/group"),
        }
    }

    /// "user:group", numbers where there is no name.
    pub(super) fn show(&self, meta: &Meta) -> String {
        let of = |map: &HashMap<u32, String>, id: u32| {
            map.get(&id).cloned().unwrap_or_else(|| id.to_string())
        };
        format!(
            "{}:{}",
            of(&self.users, meta.uid),
            of(&self.groups, meta.gid)
        )
    }
}

/// The third field of each line, and the first.
fn numbers(file: &str) -> HashMap<u32, String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = |l: &str| {
        let mut fields = l.split(':');
        let name = fields.next()?.to_owned();
        Some((fields.nth(1)?.parse().ok()?, name))
    };
    // The first of several names for one number is the one that ls shows.
    text.lines().rev().filter_map(line).collect()
}

/// Columns two spaces apart; those with true in `right` to the right. The last one ends the line as it is.
pub(super) fn columns(rows: &[Vec<String>], right: &[bool]) -> String {
    let mut widths = vec![0; right.len()];
    for row in rows {
        for (w, cell) in widths.iter_mut().zip(row) {
            *w = (*w).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in rows {
        let last = row.len().saturating_sub(1);
        for (i, cell) in row.iter().enumerate() {
            let w = widths[i];
            match (i == last, right[i]) {
                (true, false) => out.push_str(cell),
                (_, true) => out.push_str(&format!("{cell:>w$}")),
                (_, false) => out.push_str(&format!("{cell:<w$}")),
            }
            out.push_str(if i == last { "\n" } else { "  " });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_look_as_in_ls() {
        let show = |kind, mode| mode_of(kind, mode);
        assert_eq!(show(Kind::File, 0o644), "-rw-r--r--");
        assert_eq!(show(Kind::Dir, 0o1777), "drwxrwxrwt");
        assert_eq!(show(Kind::File, 0o6750), "-rwsr-s---");
        assert_eq!(show(Kind::File, 0o7000), "---S--S--T");
    }

    fn mode_of(kind: Kind, bits: u32) -> String {
        mode(&Meta {
            kind,
            mode: bits,
            ..Meta::plain_dir()
        })
    }

    #[test]
    fn bytes_that_are_no_text_are_kept_beside_it() {
        let mut map = Map::new();
        put_bytes(&mut map, "path", b"/a\xff");
        assert_eq!(map["path_bytes"], "L2H/");
        let mut plain = Map::new();
        put_bytes(&mut plain, "path", "/ä".as_bytes());
        assert_eq!(plain.len(), 1);
    }
}
