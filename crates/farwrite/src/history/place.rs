//! A path on the command line as a path in the history. What it names may be gone from the disk: nothing here requires
//! that it exists.

use anyhow::Context;
use farwrite_core::BytePath;
use std::path::{Component, Path, PathBuf};

/// The paths that an argument may mean, best first: as it is written, then with the symbolic links resolved in what exists
/// of the directories above it, then also in the last component.
pub(super) fn candidates(given: &Path) -> anyhow::Result<Vec<BytePath>> {
    let absolute = match given.is_absolute() {
        true => given.to_owned(),
        false => std::env::current_dir()
            .context("the current directory")?
            .join(given),
    };
    let mut list = vec![byte_path(&lexical(&absolute), given)?];
    let above = match (absolute.parent(), absolute.file_name()) {
        (Some(dir), Some(name)) => Some(real(dir).join(name)),
        _ => None,
    };
    for path in above.into_iter().chain([real(&absolute)]) {
        let path = byte_path(&path, given)?;
        if !list.contains(&path) {
            list.push(path);
        }
    }
    Ok(list)
}

/// The first candidate for which `is_there` says so; the first of all if it says so of none.
pub(super) fn find(
    given: &Path,
    mut is_there: impl FnMut(&BytePath) -> anyhow::Result<bool>,
) -> anyhow::Result<(BytePath, bool)> {
    let mut all = candidates(given)?;
    for path in &all {
        if is_there(path)? {
            return Ok((path.clone(), true));
        }
    }
    Ok((all.swap_remove(0), false))
}

fn byte_path(path: &Path, given: &Path) -> anyhow::Result<BytePath> {
    BytePath::try_from(path).with_context(|| given.display().to_string())
}

/// `.` and `..` taken away by the text alone.
fn lexical(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            Component::Normal(name) => out.push(name),
            _ => {}
        }
    }
    out
}

/// The longest part that exists without symbolic links, and the rest as it is.
fn real(path: &Path) -> PathBuf {
    for above in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (above.canonicalize(), path.strip_prefix(above)) {
            return lexical(&real.join(rest));
        }
    }
    lexical(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn shown(p: &Path) -> Vec<String> {
        candidates(p)
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn deleted_paths_and_paths_through_links_are_found() {
        let t = tempfile::tempdir().unwrap();
        let top = t.path().canonicalize().unwrap();
        std::fs::create_dir(top.join("real")).unwrap();
        symlink("real", top.join("link")).unwrap();
        let s = |p: &str| format!("{}/{p}", top.display());
        assert_eq!(shown(&top.join("real/gone/x")), [s("real/gone/x")]);
        assert_eq!(
            shown(&top.join("link/gone/../x")),
            [s("link/x"), s("real/x")]
        );
        assert_eq!(shown(&top.join("link")), [s("link"), s("real")]);
        assert_eq!(shown(Path::new("/")), ["/"]);
    }

    #[test]
    fn a_relative_path_begins_at_the_current_directory() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(
            shown(Path::new("no/such"))[0],
            format!("{}/no/such", here.display())
        );
    }
}
