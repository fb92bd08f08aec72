//! Identifiers, each a type of its own so that one is never taken for another.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A file as the source's kernel knows it: device and inode number.
///
/// Unique among the files that exist at one time; an inode number is used again after a delete, so
/// the birth time in [`crate::Origin`] tells two files of one number apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileId {
    /// `st_dev` as the running kernel numbers it; not stable over a reboot.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
}

/// A file, directory or special file as the vault knows it. Given by the source, never used twice
/// within an [`Epoch`]. Names point to nodes, so a rename or a hard link is one small operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The source machine's `/`. It exists in every catalog and is never sent.
    pub const ROOT: NodeId = NodeId(1);
}

/// Position of a file modification message in a source's journal; starts at 1.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct ChangeSeq(pub u64);

/// Position of a batch in a source's log at one vault; starts at 1, no gaps.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct BatchSeq(pub u64);

impl ChangeSeq {
    /// No message's: which one is not known, or will be said later.
    pub const UNKNOWN: ChangeSeq = ChangeSeq(u64::MAX);

    /// The position after this one.
    pub fn next(self) -> Self {
        ChangeSeq(self.0 + 1)
    }
}

impl BatchSeq {
    /// The position after this one.
    pub fn next(self) -> Self {
        BatchSeq(self.0 + 1)
    }
}

macro_rules! display_number {
    ($($t:ty),*) => {$(
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.fmt(f) }
        }
    )*};
}
display_number!(NodeId, ChangeSeq, BatchSeq);

/// One life of a source's index: a random number drawn when the index is created. A vault that sees
/// another epoch than it knows keeps the old history and starts a new tree beside it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
pub struct Epoch(pub [u8; 16]);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Epoch({self})")
    }
}

/// The name under which a vault keeps a source: 1 to 64 of `a-z A-Z 0-9 . _ -`, not starting with a dot.
/// It names a directory at the vault, hence the narrow alphabet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SourceName(String);

/// Why a [`SourceName`] was refused.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "a source's name is 1 to 64 letters, digits, '.', '_' or '-', and does not start with '.': got {0:?}"
)]
pub struct BadSourceName(pub String);

impl SourceName {
    /// Checks and wraps a name.
    pub fn new(name: impl Into<String>) -> Result<Self, BadSourceName> {
        let name = name.into();
        let ok = (1..=64).contains(&name.len())
            && !name.starts_with('.')
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if ok {
            Ok(SourceName(name))
        } else {
            Err(BadSourceName(name))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SourceName {
    type Error = BadSourceName;
    fn try_from(s: String) -> Result<Self, BadSourceName> {
        SourceName::new(s)
    }
}

impl std::str::FromStr for SourceName {
    type Err = BadSourceName;
    fn from_str(s: &str) -> Result<Self, BadSourceName> {
        SourceName::new(s)
    }
}

impl From<SourceName> for String {
    fn from(n: SourceName) -> String {
        n.0
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_names_cannot_leave_their_directory() {
        for bad in ["", ".", "..", ".x", "a/b", "a\0", "ü", &"a".repeat(65)] {
            assert!(SourceName::new(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "web-1.example_x", &"a".repeat(64)] {
            assert!(SourceName::new(good).is_ok(), "{good:?}");
        }
    }
}
