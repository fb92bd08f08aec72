//! What a vault keeps on disk about invites and keys.
//!
//! ```text
//! VAULT_DIR/invites/TOKEN_HASH.toml                     open invites
//! VAULT_DIR/invites/used/TOKEN_HASH-FINGERPRINT.toml    redeemed, and by which key
//! VAULT_DIR/peers/FINGERPRINT.toml                      known keys and their source names
//! ```
//! Redeeming is one rename, so that of two who try at the same time one wins; the winner's key is part of the new name, so
//! that it may ask again when the answer got lost.

use super::invite::{ADDRESS_BYTES, ADDRESSES, Invite};
use crate::message::TOKEN_BYTES;
use crate::net::tls::Fingerprint;
use farwrite_core::{SourceName, Timestamp};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Most bytes of one of these files.
const FILE_BYTES: u64 = 4096;
/// Most open invites of a vault.
const INVITES: usize = 10_000;

/// Trouble with the files.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Reading or writing failed.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{path} is damaged: {why}", path = path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// In which way.
        why: String,
    },
    /// Over a bound.
    #[error("too many invites or addresses")]
    TooMany,
}

/// Why a token was not redeemed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RedeemError {
    /// No such invite was made here, or it was withdrawn.
    #[error("this vault has not made this invite, or has withdrawn it")]
    Unknown,
    /// Its time is over.
    #[error("this invite has expired: ask for a new one")]
    Expired,
    /// Another key has redeemed it.
    #[error("this invite has been used already: ask for a new one")]
    Used,
}

/// Why a pairing failed.
#[derive(Debug, thiserror::Error)]
pub enum PairingError {
    /// The token is not good.
    #[error(transparent)]
    Redeem(#[from] RedeemError),
    /// The vault is in trouble.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct InviteFile {
    name: SourceName,
    /// Seconds since 1970.
    created: i64,
    /// Seconds since 1970.
    expires: i64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PeerFile {
    name: SourceName,
    /// Seconds since 1970.
    paired: i64,
}

/// The invites of a vault.
#[derive(Clone, Debug)]
pub struct InviteStore {
    dir: PathBuf,
}

/// The known keys of a vault. A source name has at most one key.
#[derive(Clone, Debug)]
pub struct PeerStore {
    dir: PathBuf,
    used: PathBuf,
}

impl InviteStore {
    /// The invites of the vault in `vault_dir`.
    pub fn new(vault_dir: &Path) -> Self {
        InviteStore {
            dir: vault_dir.join("invites"),
        }
    }

    /// Makes an invite for `name`, good for `ttl`. For the name of an existing source this is the permission to
    /// replace its key: there is no other way to do so.
    pub fn create(
        &self,
        name: &SourceName,
        addresses: Vec<String>,
        vault: Fingerprint,
        now: Timestamp,
        ttl: Duration,
    ) -> Result<Invite, StoreError> {
        let long = addresses.iter().any(|a| a.len() > ADDRESS_BYTES);
        if addresses.len() > ADDRESSES || long || self.list(now)?.len() >= INVITES {
            return Err(StoreError::TooMany);
        }
        make_dir(&self.dir)?;
        let mut token = [0; TOKEN_BYTES];
        getrandom::fill(&mut token).map_err(|e| StoreError::Io {
            path: "random bytes".into(),
            source: io::Error::other(e),
        })?;
        let expires = Timestamp {
            sec: now.after(ttl).sec,
            nsec: 0,
        };
        let file = InviteFile {
            name: name.clone(),
            created: now.sec,
            expires: expires.sec,
        };
        let path = self.dir.join(format!("{}.toml", token_hash(&token)));
        write_toml(&path, &file)?;
        Ok(Invite {
            addresses,
            vault,
            token,
            name: name.clone(),
            expires,
        })
    }

    /// Open invites that have not expired: names and when they expire.
    pub fn list(&self, now: Timestamp) -> Result<Vec<(SourceName, Timestamp)>, StoreError> {
        let mut open = Vec::new();
        for path in toml_files(&self.dir)? {
            if let Some(file) = read_toml::<InviteFile>(&path)?
                && file.expires > now.sec
            {
                let expires = Timestamp {
                    sec: file.expires,
                    nsec: 0,
                };
                open.push((file.name, expires));
            }
        }
        open.sort();
        Ok(open)
    }

    /// Redeems a token for a key, for good. The same key may do so again until the invite expires.
    pub fn redeem(
        &self,
        token: &[u8],
        peer: &Fingerprint,
        now: Timestamp,
    ) -> Result<SourceName, PairingError> {
        let hash = token_hash(token);
        let open = self.dir.join(format!("{hash}.toml"));
        let used_dir = self.dir.join("used");
        let used = used_dir.join(format!("{hash}-{peer}.toml"));
        if let Some(file) = read_toml::<InviteFile>(&open)? {
            if file.expires <= now.sec {
                return Err(RedeemError::Expired.into());
            }
            make_dir(&used_dir)?;
            match fs::rename(&open, &used) {
                Ok(()) => {
                    sync_dir(&used_dir).map_err(|e| io_error(&used_dir, e))?;
                    sync_dir(&self.dir).map_err(|e| io_error(&self.dir, e))?;
                    return Ok(file.name);
                }
                // Another one was faster: as if it had been used all along.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(io_error(&used, e).into()),
            }
        }
        match read_toml::<InviteFile>(&used)? {
            Some(file) if file.expires > now.sec => Ok(file.name),
            Some(_) => Err(RedeemError::Expired.into()),
            None => {
                let by_another = toml_files(&used_dir)?
                    .iter()
                    .any(|p| file_stem(p).is_some_and(|s| s.starts_with(&hash)));
                Err(if by_another {
                    RedeemError::Used.into()
                } else {
                    RedeemError::Unknown.into()
                })
            }
        }
    }
}

impl PeerStore {
    /// The keys known to the vault in `vault_dir`.
    pub fn new(vault_dir: &Path) -> Self {
        PeerStore {
            dir: vault_dir.join("peers"),
            used: vault_dir.join("invites").join("used"),
        }
    }

    /// The source of a key.
    pub fn identify(&self, peer: &Fingerprint) -> Result<Option<SourceName>, StoreError> {
        Ok(read_toml::<PeerFile>(&self.path(peer))?.map(|f| f.name))
    }

    /// Every known key.
    pub fn list(&self) -> Result<Vec<(SourceName, Fingerprint)>, StoreError> {
        let mut peers = Vec::new();
        for path in toml_files(&self.dir)? {
            let key = file_stem(&path).and_then(|s| s.parse::<Fingerprint>().ok());
            if let (Some(key), Some(file)) = (key, read_toml::<PeerFile>(&path)?) {
                peers.push((file.name, key));
            }
        }
        peers.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(peers)
    }

    /// Makes `peer` the key of `name`; an earlier key of that name is forgotten, and so is an earlier name of the key.
    pub fn put(
        &self,
        name: &SourceName,
        peer: &Fingerprint,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        make_dir(&self.dir)?;
        let file = PeerFile {
            name: name.clone(),
            paired: now.sec,
        };
        for (_, old) in self
            .list()?
            .iter()
            .filter(|(n, old)| n == name && old != peer)
        {
            self.remove(old)?;
        }
        write_toml(&self.path(peer), &file)
    }

    /// Forgets a key; also the invites that it has redeemed, so that it cannot come back with one of them.
    pub fn remove(&self, peer: &Fingerprint) -> Result<(), StoreError> {
        let suffix = format!("-{peer}");
        for path in toml_files(&self.used)? {
            if file_stem(&path).is_some_and(|s| s.ends_with(&suffix)) {
                remove_file(&path)?;
            }
        }
        remove_file(&self.path(peer))
    }

    /// Redeems a token and remembers the key: the whole of a pairing at the vault.
    pub fn pair(
        &self,
        invites: &InviteStore,
        token: &[u8],
        peer: &Fingerprint,
        now: Timestamp,
    ) -> Result<SourceName, PairingError> {
        let name = invites.redeem(token, peer, now)?;
        self.put(&name, peer, now)?;
        Ok(name)
    }

    fn path(&self, peer: &Fingerprint) -> PathBuf {
        self.dir.join(format!("{peer}.toml"))
    }
}

/// 64 hexadecimal digits; the token itself is nowhere on disk.
fn token_hash(token: &[u8]) -> String {
    let key = blake3::derive_key("farwrite 2026 invite token v1", token);
    Fingerprint::from_bytes(key).to_string()
}

fn io_error(path: &Path, source: io::Error) -> StoreError {
    StoreError::Io {
        path: path.into(),
        source,
    }
}

fn file_stem(path: &Path) -> Option<&str> {
    path.file_stem()?.to_str()
}

fn make_dir(dir: &Path) -> Result<(), StoreError> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir);
    made.and_then(|()| dir.parent().map_or(Ok(()), sync_dir))
        .map_err(|e| io_error(dir, e))
}

fn toml_files(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| io_error(dir, e))?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| io_error(dir, e))?.path();
        if path.extension().is_some_and(|e| e == "toml") {
            paths.push(path);
        }
    }
    Ok(paths)
}

fn read_toml<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    let Some(text) = read_small(path, FILE_BYTES).map_err(|e| io_error(path, e))? else {
        return Ok(None);
    };
    let damaged = |e: toml::de::Error| StoreError::Damaged {
        path: path.into(),
        why: e.message().into(),
    };
    toml::from_str(&text).map(Some).map_err(damaged)
}

fn write_toml<T: Serialize>(path: &Path, value: &T) -> Result<(), StoreError> {
    let text = toml::to_string(value).expect("plain fields");
    let (tmp, mut file) = temporary(path).map_err(|e| io_error(path, e))?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&tmp, path))
        .and_then(|()| sync_parent(path));
    written.map_err(|e| {
        // The error is what matters; a leftover has a name that nobody reads.
        let _ = fs::remove_file(&tmp);
        io_error(path, e)
    })
}

fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path).map_err(|e| io_error(path, e)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(io_error(path, e)),
    }
}

/// A whole small text file; `None` if there is none.
pub(crate) fn read_small(path: &Path, max: u64) -> io::Result<Option<String>> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut text = String::new();
    file.take(max + 1).read_to_string(&mut text)?;
    if text.len() as u64 > max {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "larger than any such file",
        ));
    }
    Ok(Some(text))
}

/// Writes a file of mode 0600 that is there whole or not at all; if there is one already, that one stays.
pub(crate) fn create_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (tmp, mut file) = temporary(path)?;
    let written = file
        .write_all(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| match fs::hard_link(&tmp, path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        });
    let removed = fs::remove_file(&tmp);
    written.and(removed)?;
    sync_parent(path)
}

/// A new file of mode 0600 beside `path`, of a name that no other process takes.
fn temporary(path: &Path) -> io::Result<(PathBuf, File)> {
    let name = format!(".tmp-{:016x}", getrandom::u64().map_err(io::Error::other)?);
    let tmp = path.with_file_name(name);
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&tmp)?;
    Ok((tmp, file))
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), sync_dir)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    let dir = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    File::open(dir)?.sync_all()
}
