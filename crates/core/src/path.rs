//! Names and paths as bytes. Linux file names are any bytes but `/` and NUL; nothing here assumes UTF-8.

use crate::limits;
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// One component of a path: 1 to 255 bytes, no `/`, no NUL, neither `.` nor `..`.
///
/// The only way to make one is [`Name::new`], which also serde goes through: a name from the wire or
/// the disk cannot leave its directory.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "serde_bytes::ByteBuf", into = "serde_bytes::ByteBuf")]
pub struct Name(Box<[u8]>);

/// Why bytes are not a [`Name`] or a [`BytePath`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// No bytes at all.
    #[error("empty name")]
    Empty,
    /// Longer than `NAME_MAX` or [`limits::PATH_BYTES`].
    #[error("{0} bytes are too long for a name or path")]
    TooLong(usize),
    /// `.` or `..`.
    #[error("{0:?} is not a name of its own")]
    Dots(String),
    /// A `/` in a name, or a NUL anywhere.
    #[error("'/' or NUL inside the name {0:?}")]
    Separator(String),
    /// The path does not start with `/`.
    #[error("not an absolute path: {0:?}")]
    Relative(String),
}

impl Name {
    /// Checks and wraps a component.
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self, BadPath> {
        let b = bytes.as_ref();
        match b {
            [] => Err(BadPath::Empty),
            _ if b.len() > limits::NAME_BYTES => Err(BadPath::TooLong(b.len())),
            b"." | b".." => Err(BadPath::Dots(lossy(b))),
            _ if b.iter().any(|&c| c == b'/' || c == 0) => Err(BadPath::Separator(lossy(b))),
            _ => Ok(Name(b.into())),
        }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// For calls that take a path.
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }
}

impl TryFrom<serde_bytes::ByteBuf> for Name {
    type Error = BadPath;
    fn try_from(b: serde_bytes::ByteBuf) -> Result<Self, BadPath> {
        Name::new(b)
    }
}

impl From<Name> for serde_bytes::ByteBuf {
    fn from(n: Name) -> Self {
        serde_bytes::ByteBuf::from(n.0.into_vec())
    }
}

impl AsRef<OsStr> for Name {
    fn as_ref(&self) -> &OsStr {
        self.as_os_str()
    }
}

impl AsRef<Path> for Name {
    fn as_ref(&self) -> &Path {
        Path::new(self.as_os_str())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&lossy(&self.0))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", lossy(&self.0))
    }
}

/// An absolute, normalised path: `/` or `/a/b`, each component a valid [`Name`], no `.`, `..`, `//` or
/// trailing slash.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "serde_bytes::ByteBuf", into = "serde_bytes::ByteBuf")]
pub struct BytePath(Vec<u8>);

impl BytePath {
    /// `/`.
    pub fn root() -> Self {
        BytePath(b"/".to_vec())
    }

    /// Checks an absolute path; repeated and trailing slashes and `.` are dropped, `..` is refused.
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self, BadPath> {
        let b = bytes.as_ref();
        if b.first() != Some(&b'/') {
            return Err(if b.is_empty() {
                BadPath::Empty
            } else {
                BadPath::Relative(lossy(b))
            });
        }
        if b.len() > limits::PATH_BYTES {
            return Err(BadPath::TooLong(b.len()));
        }
        let mut out = BytePath::root();
        for part in b
            .split(|&c| c == b'/')
            .filter(|p| !p.is_empty() && *p != b".")
        {
            out.push(&Name::new(part)?);
        }
        Ok(out)
    }

    /// From names, root first.
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a Name>) -> Self {
        let mut p = BytePath::root();
        names.into_iter().for_each(|n| p.push(n));
        p
    }

    /// Appends a component.
    pub fn push(&mut self, name: &Name) {
        if self.0.len() > 1 {
            self.0.push(b'/');
        }
        self.0.extend_from_slice(name.as_bytes());
    }

    /// This path with one more component.
    pub fn join(&self, name: &Name) -> Self {
        let mut p = BytePath(Vec::with_capacity(self.0.len() + 1 + name.as_bytes().len()));
        p.0.extend_from_slice(&self.0);
        p.push(name);
        p
    }

    /// The components, root first; none for `/`.
    pub fn names(&self) -> impl DoubleEndedIterator<Item = Name> + '_ {
        self.parts().map(|p| Name(p.into()))
    }

    fn parts(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0[1..].split(|&c| c == b'/').filter(|p| !p.is_empty())
    }

    /// The directory above and the last component; `None` for `/`.
    pub fn split_last(&self) -> Option<(BytePath, Name)> {
        let at = self.0.iter().rposition(|&c| c == b'/').expect("absolute");
        let name = Name::new(&self.0[at + 1..]).ok()?;
        let dir = if at == 0 {
            BytePath::root()
        } else {
            BytePath(self.0[..at].to_vec())
        };
        Some((dir, name))
    }

    /// The last component; `None` for `/`.
    pub fn file_name(&self) -> Option<Name> {
        self.split_last().map(|(_, n)| n)
    }

    /// What follows `base`, without a leading slash (empty if equal); `None` if not at or below `base`.
    pub fn strip_prefix(&self, base: &BytePath) -> Option<&[u8]> {
        if base.0.len() == 1 {
            return Some(&self.0[1..]);
        }
        let rest = self.0.strip_prefix(base.0.as_slice())?;
        match rest.first() {
            None => Some(rest),
            Some(b'/') => Some(&rest[1..]),
            Some(_) => None,
        }
    }

    /// Is it `base` or below it?
    pub fn starts_with(&self, base: &BytePath) -> bool {
        self.strip_prefix(base).is_some()
    }

    /// The bytes, starting with `/`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// For std's file functions.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// For std's file functions, owned.
    pub fn to_path_buf(&self) -> PathBuf {
        PathBuf::from(OsString::from_vec(self.0.clone()))
    }
}

impl TryFrom<&Path> for BytePath {
    type Error = BadPath;
    fn try_from(p: &Path) -> Result<Self, BadPath> {
        BytePath::new(p.as_os_str().as_bytes())
    }
}

impl TryFrom<serde_bytes::ByteBuf> for BytePath {
    type Error = BadPath;
    fn try_from(b: serde_bytes::ByteBuf) -> Result<Self, BadPath> {
        BytePath::new(b)
    }
}

impl From<BytePath> for serde_bytes::ByteBuf {
    fn from(p: BytePath) -> Self {
        serde_bytes::ByteBuf::from(p.0)
    }
}

impl fmt::Display for BytePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&lossy(&self.0))
    }
}

impl fmt::Debug for BytePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", lossy(&self.0))
    }
}

/// Bytes for a person to read: valid UTF-8 as it is, control characters and other bytes as `\xNN`, so that
/// a hostile name can neither move a terminal's cursor nor look like another.
pub fn lossy(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control()
                || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
            {
                let mut buf = [0; 4];
                c.encode_utf8(&mut buf)
                    .bytes()
                    .for_each(|b| out.push_str(&format!("\\x{b:02x}")));
            } else {
                out.push(c);
            }
        }
        chunk
            .invalid()
            .iter()
            .for_each(|b| out.push_str(&format!("\\x{b:02x}")));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_escape_are_refused() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0b", &[b'x'; 256]] {
            assert!(Name::new(bad).is_err(), "{bad:?}");
            let wire = postcard::to_stdvec(serde_bytes::Bytes::new(bad)).unwrap();
            assert!(
                postcard::from_bytes::<Name>(&wire).is_err(),
                "{bad:?} over serde"
            );
        }
        assert!(Name::new([0xff, 0xfe]).is_ok());
        assert!(Name::new("...").is_ok());
    }

    #[test]
    fn paths_are_normalised_and_dotdot_refused() {
        assert_eq!(BytePath::new("/a//b/./c/").unwrap().as_bytes(), b"/a/b/c");
        assert_eq!(BytePath::new("///").unwrap(), BytePath::root());
        assert!(BytePath::new("/a/../b").is_err());
        assert!(BytePath::new("a/b").is_err());
        let p = BytePath::new("/a/b").unwrap();
        assert_eq!(
            p.strip_prefix(&BytePath::new("/a").unwrap()),
            Some(&b"b"[..])
        );
        assert!(
            !BytePath::new("/ab")
                .unwrap()
                .starts_with(&BytePath::new("/a").unwrap())
        );
        assert!(p.starts_with(&BytePath::root()));
        assert_eq!(p.split_last().unwrap().0, BytePath::new("/a").unwrap());
        assert_eq!(
            BytePath::new("/a").unwrap().split_last().unwrap().0,
            BytePath::root()
        );
        assert!(BytePath::root().split_last().is_none());
        assert_eq!(p.names().count(), 2);
        assert_eq!(BytePath::root().names().count(), 0);
    }

    #[test]
    fn terminal_escapes_are_shown_not_obeyed() {
        assert_eq!(lossy(b"a\x1b[2Jb\xff"), "a\\x1b[2Jb\\xff");
    }
}
