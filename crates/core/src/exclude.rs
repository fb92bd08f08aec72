//! What not to back up: patterns as in gitignore(5), relative to a protected directory.

use crate::{BytePath, path};
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The patterns of one protected directory.
#[derive(Clone, Debug)]
pub struct Excludes {
    root: BytePath,
    matcher: Gitignore,
    absolute: Vec<BytePath>,
    anchored: bool,
}

/// A pattern that cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
#[error("exclude pattern {pattern:?}: {why}")]
pub struct BadPattern {
    /// As given.
    pub pattern: String,
    /// What is wrong with it.
    pub why: String,
}

impl Excludes {
    /// `patterns` as in gitignore(5), relative to `root`; `absolute`: whole trees that are never backed up (the
    /// vault's and the source's own state).
    pub fn new(
        root: BytePath,
        patterns: &[String],
        absolute: Vec<BytePath>,
    ) -> Result<Self, BadPattern> {
        let mut b = GitignoreBuilder::new("/");
        // A slash at the beginning or in the middle: gitignore(5).
        let anchored = patterns
            .iter()
            .any(|p| p.trim_end().trim_end_matches('/').contains('/'));
        for pattern in patterns {
            let bad = |why: String| BadPattern {
                pattern: pattern.clone(),
                why,
            };
            b.add_line(None, pattern).map_err(|e| bad(e.to_string()))?;
        }
        let matcher = b.build().map_err(|e| BadPattern {
            pattern: patterns.join(", "),
            why: e.to_string(),
        })?;
        Ok(Excludes {
            root,
            matcher,
            absolute,
            anchored,
        })
    }

    /// May a pattern mean a place in the tree, and not a name alone? Then what is below a directory may be excluded under one of its
    /// names, and not under another.
    pub fn has_anchored(&self) -> bool {
        self.anchored
    }

    /// Is the entry itself excluded? Does not look at the directories above it: who walks a tree has
    /// already stopped there.
    pub fn excludes_entry(&self, path: &BytePath, is_dir: bool) -> bool {
        if self.absolute.iter().any(|a| a == path) {
            return true;
        }
        match path.strip_prefix(&self.root) {
            None | Some(b"") => false,
            Some(rel) => self
                .matcher
                .matched(Path::new(OsStr::from_bytes(rel)), is_dir)
                .is_ignore(),
        }
    }

    /// Is the path or any directory above it (up to the root) excluded?
    pub fn excludes(&self, path: &BytePath, is_dir: bool) -> bool {
        if self.is_empty() {
            return false;
        }
        if self.absolute.iter().any(|a| path.starts_with(a)) {
            return true;
        }
        match path.strip_prefix(&self.root) {
            None | Some(b"") => false,
            Some(rel) => self
                .matcher
                .matched_path_or_any_parents(Path::new(OsStr::from_bytes(rel)), is_dir)
                .is_ignore(),
        }
    }

    /// Any pattern or tree at all?
    pub fn is_empty(&self) -> bool {
        self.matcher.is_empty() && self.absolute.is_empty()
    }
}

impl std::fmt::Display for Excludes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} patterns below {}",
            self.matcher.len(),
            path::lossy(self.root.as_bytes())
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_relative_and_cover_what_is_below() {
        let p = |s: &str| BytePath::new(s).unwrap();
        let pats = ["*.tmp".into(), "/cache/".into(), "!keep.tmp".into()];
        let e = Excludes::new(p("/srv"), &pats, vec![p("/srv/vault")]).unwrap();
        assert!(e.excludes(&p("/srv/a/b.tmp"), false));
        assert!(!e.excludes(&p("/srv/a/keep.tmp"), false));
        assert!(e.excludes(&p("/srv/cache/deep/file"), false));
        assert!(!e.excludes(&p("/srv/a/cache/file"), false));
        assert!(e.excludes(&p("/srv/vault/x"), false));
        assert!(!e.excludes(&p("/srv"), true));
        assert!(!e.excludes(&p("/elsewhere/b.tmp"), false));
        assert!(Excludes::new(p("/srv"), &["[z-a]".into()], vec![]).is_err());
        let anchored = |pattern: &str| {
            let e = Excludes::new(p("/srv"), &[pattern.into()], vec![]);
            e.unwrap().has_anchored()
        };
        assert!(
            ["/cache", "a/b", "/a/", "**/x", "!a/b"]
                .into_iter()
                .all(anchored)
        );
        assert!(!["*.tmp", "cache/", "!keep.tmp"].into_iter().any(anchored));
    }
}
