//! A small seeded generator (SplitMix64, Steele et al. 2014), so that a failing random test can be run again.

/// See the module.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// From a seed; prints it, since a random test has to.
    pub fn new(seed: u64) -> Self {
        println!("seed {seed}");
        Chance(seed)
    }

    /// From `FARWRITE_SEED`, else from the clock.
    pub fn from_env() -> Self {
        let given = std::env::var("FARWRITE_SEED")
            .ok()
            .and_then(|s| s.parse().ok());
        let clock = || {
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(1, |d| d.as_nanos() as u64)
        };
        Chance::new(given.unwrap_or_else(clock))
    }

    /// Any 64 bits.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to `n - 1`; `n` at least 1.
    pub fn below(&mut self, n: u64) -> u64 {
        self.any() % n.max(1)
    }

    /// True once in `n` on average.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of them; `None` if there are none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        if items.is_empty() {
            None
        } else {
            items.get(self.below(items.len() as u64) as usize)
        }
    }

    /// Bytes that do not compress.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            out.extend_from_slice(&self.any().to_le_bytes());
        }
        out.truncate(len);
        out
    }
}
