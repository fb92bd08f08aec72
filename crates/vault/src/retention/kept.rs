//! Which moments can still be asked for: all from the horizon on, and a list of those before it. The file is durable before
//! anything of another moment goes, so that whoever reads the catalog first and this file then never takes a
//! thinned moment for a whole one. Only grows in what it drops.
//!
//! ```text
//! offset size
//!   0     8   magic "FWKEPT\0\0"
//!   8     4   version, 1
//!  12     4   0
//!  16     8   horizon: every batch from this one on is kept
//!  24     8   n: number of kept batches before it
//!  32    8n   their numbers, ascending
//!   ..    4   CRC-32C over all before
//! ```

use crate::vault::{VaultError, replace_file};
use farwrite_core::BatchSeq;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

const MAGIC: [u8; 8] = *b"FWKEPT\0\0";
const VERSION: u32 = 1;
/// Most moments before the horizon: one of each hour for a thousand years.
const KEPT_MAX: u64 = 10_000_000;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Every batch from this one on is kept; 0: all are.
    pub horizon: BatchSeq,
    /// Kept batches before the horizon, ascending.
    pub before: Vec<BatchSeq>,
}

impl Kept {
    /// Can this moment be asked for? 0, before the first batch, always can.
    pub fn contains(&self, seq: BatchSeq) -> bool {
        seq >= self.horizon || seq.0 == 0 || self.before.binary_search(&seq).is_ok()
    }

    /// The last kept moment that is not after this one.
    pub fn at_or_before(&self, seq: BatchSeq) -> Option<BatchSeq> {
        if seq >= self.horizon {
            return Some(seq);
        }
        let behind = self.before.partition_point(|k| *k <= seq);
        behind.checked_sub(1).map(|i| self.before[i])
    }

    /// The first kept moment that is not before this one; there may be no batch of that number yet.
    pub fn at_or_after(&self, seq: BatchSeq) -> BatchSeq {
        let first = self.before.partition_point(|k| *k < seq);
        match self.before.get(first) {
            Some(k) => *k,
            None => seq.max(self.horizon),
        }
    }

    /// Does what was valid from one batch until (not including) another belong to a kept moment?
    pub fn needs(&self, from: i64, to: i64) -> bool {
        let (from, to) = (BatchSeq(from.max(0) as u64), BatchSeq(to.max(0) as u64));
        to > self.horizon || self.at_or_after(from) < to
    }

    /// The oldest kept moment of those that exist.
    pub fn first(&self) -> BatchSeq {
        self.at_or_after(BatchSeq(1))
    }

    /// A number that stands for exactly this and one other number; never 0.
    pub(crate) fn fingerprint(&self, other: u64) -> u64 {
        let mut hash = blake3::Hasher::new();
        hash.update(&self.encode()).update(&other.to_le_bytes());
        let bytes = hash.finalize();
        let first = bytes.as_bytes()[..8].try_into().expect("8 of 32 bytes");
        // Without the upper bit: it is kept as a signed number.
        u64::from_le_bytes(first) >> 1 | 1
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(36 + self.before.len() * 8);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.horizon.0.to_le_bytes());
        out.extend_from_slice(&(self.before.len() as u64).to_le_bytes());
        for seq in &self.before {
            out.extend_from_slice(&seq.0.to_le_bytes());
        }
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let word = |at: usize| -> Option<u64> {
            let b = bytes.get(at..at + 8)?;
            Some(u64::from_le_bytes(b.try_into().expect("8 bytes")))
        };
        if bytes.len() < 36 || bytes[..8] != MAGIC {
            return Err("not a list of kept moments");
        }
        if bytes[8..12] != VERSION.to_le_bytes() {
            return Err("made by a newer Farwrite");
        }
        let body = bytes.len() - 4;
        if crc32c::crc32c(&bytes[..body]).to_le_bytes() != bytes[body..] {
            return Err("damaged");
        }
        let (horizon, count) = (word(16).unwrap_or(0), word(24).unwrap_or(0));
        if count > KEPT_MAX || 32 + count as usize * 8 != body {
            return Err("damaged");
        }
        let before: Vec<BatchSeq> = (0..count as usize)
            .filter_map(|i| word(32 + i * 8).map(BatchSeq))
            .collect();
        let ordered = before.windows(2).all(|w| w[0] < w[1]);
        if !ordered || before.last().is_some_and(|l| l.0 >= horizon) {
            return Err("damaged");
        }
        Ok(Kept {
            horizon: BatchSeq(horizon),
            before,
        })
    }

    /// The two copies of the file.
    pub fn paths(source_dir: &Path) -> [PathBuf; 2] {
        [source_dir.join("kept"), source_dir.join("kept.copy")]
    }

    /// What a source keeps: everything, if nothing was ever pruned. If one copy is damaged, the other counts; it can
    /// only be older by what had not begun.
    pub fn load(source_dir: &Path) -> Result<Self, VaultError> {
        let mut trouble = None;
        for path in Self::paths(source_dir) {
            match read(&path) {
                Ok(Some(kept)) => return Ok(kept),
                Ok(None) => {}
                Err(e) => {
                    trouble.get_or_insert(e);
                }
            }
        }
        if let Some(e) = trouble {
            return Err(e);
        }
        // Content was freed, so not everything is kept, and nobody knows what is.
        if has_pruned(&source_dir.join("log")) {
            return Err(VaultError::Toml {
                path: source_dir.join("kept"),
                why: "missing, although history was pruned: bring it back from where the rest came from".into(),
            });
        }
        Ok(Kept::default())
    }

    /// Puts both copies on the disk.
    pub fn save(&self, source_dir: &Path) -> Result<(), VaultError> {
        let bytes = self.encode();
        Self::paths(source_dir)
            .iter()
            .try_for_each(|path| replace_file(path, &bytes))
    }

    /// Do both copies say exactly this?
    pub fn is_saved(&self, source_dir: &Path) -> bool {
        let same = |path: &PathBuf| read(path).is_ok_and(|k| k.as_ref() == Some(self));
        Self::paths(source_dir).iter().all(same)
    }
}

/// Is there a list of freed blocks?
fn has_pruned(log: &Path) -> bool {
    let entries = std::fs::read_dir(log).into_iter().flatten().flatten();
    let mut names = entries.map(|e| e.file_name());
    names.any(|n| Path::new(&n).extension().is_some_and(|x| x == "pruned"))
}

fn read(path: &Path) -> Result<Option<Kept>, VaultError> {
    let fail = |e| VaultError::io("read", path, e);
    let file = match std::fs::File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(fail)?,
    };
    let mut bytes = Vec::new();
    file.take(36 + KEPT_MAX * 8 + 1)
        .read_to_end(&mut bytes)
        .map_err(fail)?;
    Kept::decode(&bytes)
        .map(Some)
        .map_err(|why| VaultError::Toml {
            path: path.to_owned(),
            why: why.into(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_moments_are_found_on_both_sides_of_the_horizon() {
        let s = |n| BatchSeq(n);
        let kept = Kept {
            horizon: s(100),
            before: vec![s(10), s(50)],
        };
        assert!(kept.contains(s(0)) && kept.contains(s(50)) && kept.contains(s(100)));
        assert!(!kept.contains(s(51)) && !kept.contains(s(99)));
        assert_eq!(kept.at_or_before(s(9)), None);
        assert_eq!(kept.at_or_before(s(99)), Some(s(50)));
        assert_eq!(kept.at_or_before(s(101)), Some(s(101)));
        assert_eq!(kept.at_or_after(s(51)), s(100));
        assert_eq!(kept.first(), s(10));
        assert!(kept.needs(10, 11) && kept.needs(0, 101) && kept.needs(99, 101));
        assert!(!kept.needs(11, 50) && !kept.needs(51, 100) && !kept.needs(0, 10));
    }

    #[test]
    fn one_damaged_copy_does_no_harm_and_two_are_named() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Kept::load(dir.path()).unwrap(), Kept::default());
        let kept = Kept {
            horizon: BatchSeq(9),
            before: vec![BatchSeq(3), BatchSeq(7)],
        };
        kept.save(dir.path()).unwrap();
        let [first, second] = Kept::paths(dir.path());
        let whole = std::fs::read(&first).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            std::fs::write(&first, &bytes).unwrap();
            assert_eq!(Kept::load(dir.path()).unwrap(), kept);
            assert!(!kept.is_saved(dir.path()));
        }
        std::fs::write(&second, &whole[..20]).unwrap();
        assert!(Kept::load(dir.path()).is_err());
    }
}
