//! Byte ranges of a file, and sets of them.

use serde::{Deserialize, Serialize};

/// A range of bytes of a file: `offset .. offset + len`. `len` 0 is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

impl Extent {
    /// `offset .. offset + len`; an end beyond `u64::MAX` is cut there.
    pub fn new(offset: u64, len: u64) -> Self {
        Extent {
            offset,
            len: len.min(u64::MAX - offset),
        }
    }

    /// From `offset` to the end of any file.
    pub fn to_end(offset: u64) -> Self {
        Extent::new(offset, u64::MAX)
    }

    /// First byte behind the range.
    pub fn end(self) -> u64 {
        self.offset + self.len
    }

    /// The part that both have; `None` if they share no byte.
    pub fn intersect(self, other: Extent) -> Option<Extent> {
        let (a, b) = (self.offset.max(other.offset), self.end().min(other.end()));
        (a < b).then(|| Extent {
            offset: a,
            len: b - a,
        })
    }
}

/// Sorted, disjoint, non-adjacent extents, at most `max` of them: beyond that the two with the smallest gap
/// are merged, so that the set may grow too large but never too small.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtentSet {
    list: Vec<Extent>,
}

impl ExtentSet {
    /// Adds a range, keeping at most `max` ranges (`max` at least 1).
    pub fn insert(&mut self, e: Extent, max: usize) {
        if e.len == 0 {
            return;
        }
        let start = self.list.partition_point(|x| x.end() < e.offset);
        let stop = self.list.partition_point(|x| x.offset <= e.end());
        let mut merged = e;
        if start < stop {
            let (lo, hi) = (
                self.list[start].offset.min(e.offset),
                self.list[stop - 1].end().max(e.end()),
            );
            merged = Extent {
                offset: lo,
                len: hi - lo,
            };
        }
        self.list.splice(start..stop, [merged]);
        while self.list.len() > max.max(1) {
            let i = (1..self.list.len())
                .min_by_key(|&i| self.list[i].offset - self.list[i - 1].end())
                .expect("at least two");
            let hi = self.list.remove(i).end();
            self.list[i - 1].len = hi - self.list[i - 1].offset;
        }
    }

    /// Adds every range of `other`.
    pub fn merge(&mut self, other: &ExtentSet, max: usize) {
        other.list.iter().for_each(|&e| self.insert(e, max));
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = Extent> + '_ {
        self.list.iter().copied()
    }

    /// Bytes in all ranges.
    pub fn bytes(&self) -> u64 {
        let lens = self.list.iter().map(|e| e.len);
        lens.fold(0, u64::saturating_add)
    }

    /// How many ranges.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// No range at all?
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

impl FromIterator<Extent> for ExtentSet {
    fn from_iter<I: IntoIterator<Item = Extent>>(it: I) -> Self {
        let mut s = ExtentSet::default();
        it.into_iter().for_each(|e| s.insert(e, usize::MAX));
        s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_covers_every_byte_put_in_and_stays_sorted() {
        let mut seed = 1u64;
        let mut next = |n: u64| {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (seed >> 33) % n
        };
        for max in [1, 2, 3, 8, usize::MAX] {
            let (mut set, mut bytes) = (ExtentSet::default(), [false; 300]);
            for _ in 0..40 {
                let e = Extent::new(next(280), next(20));
                bytes[e.offset as usize..e.end() as usize].fill(true);
                set.insert(e, max);
                let list: Vec<_> = set.iter().collect();
                assert!(
                    list.windows(2).all(|w| w[0].end() < w[1].offset),
                    "{list:?}"
                );
                assert!(list.len() <= max);
                for (i, _) in bytes.iter().enumerate().filter(|(_, b)| **b) {
                    assert!(
                        list.iter()
                            .any(|e| (e.offset..e.end()).contains(&(i as u64)))
                    );
                }
                if max == usize::MAX {
                    assert_eq!(set.bytes(), bytes.iter().filter(|b| **b).count() as u64);
                }
            }
        }
    }

    #[test]
    fn an_extent_to_the_end_does_not_overflow() {
        let mut s = ExtentSet::default();
        s.insert(Extent::to_end(5), 4);
        s.insert(Extent::to_end(0), 4);
        assert_eq!(s.iter().next().unwrap().end(), u64::MAX);
    }
}
