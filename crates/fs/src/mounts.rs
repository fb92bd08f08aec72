//! Where something is mounted.

use farwrite_core::BytePath;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// All mount points that this process sees, from `/proc/self/mountinfo` (proc_pid_mountinfo(5)): asks none of the filesystems.
pub fn mount_points() -> io::Result<HashSet<BytePath>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    let lines = table.split(|b| *b == b'\n');
    let places = lines.filter_map(|line| line.split(|b| *b == b' ').nth(4));
    let paths = places.filter_map(|place| {
        let place = unescaped(place);
        BytePath::try_from(Path::new(OsStr::from_bytes(&place))).ok()
    });
    Ok(paths.collect())
}

/// Space, tab, newline and backslash are a backslash with three octal digits.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::with_capacity(text.len()), text);
    while let Some((first, behind)) = rest.split_first() {
        let code = behind.get(..3).filter(|_| *first == b'\\');
        let byte = code.and_then(|c| u8::from_str_radix(std::str::from_utf8(c).ok()?, 8).ok());
        out.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &behind[3..] } else { behind };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_blanks_are_read() {
        assert_eq!(unescaped(br"/a\040b\134c\"), br"/a b\c\");
        let mounts = mount_points().unwrap();
        assert!(
            mounts.contains(&BytePath::new("/proc").unwrap()),
            "{mounts:?}"
        );
    }
}
