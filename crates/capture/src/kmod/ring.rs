//! Takes records out of the module's ring, one by one, wherever they lie, and believes none of their lengths.

use super::uapi::{OP_PAD, RECORD_MIN};

/// What is at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next<'a> {
    /// Nothing more.
    Empty,
    /// A record; the next one is `size` further.
    Record { bytes: &'a [u8], size: u64 },
    /// What cannot be: where the next one begins is not known either.
    Corrupt,
}

/// The record at `position`, padding passed over; moves `position` to its beginning. `data` gives up to so many bytes at a
/// position, fewer at the ring's end.
pub(super) fn next<'a>(
    position: &mut u64,
    head: u64,
    ring_bytes: u64,
    data: impl Fn(u64, u64) -> &'a [u8],
) -> Next<'a> {
    if head < *position || head - *position > ring_bytes {
        return Next::Corrupt;
    }
    // Padding reaches to the end of the ring, so there is at most one before a record.
    for _ in 0..2 {
        let left = head - *position;
        if left == 0 {
            return Next::Empty;
        }
        let bytes = data(*position, left);
        let Some(start) = bytes.first_chunk::<8>() else {
            return Next::Corrupt;
        };
        let size = u64::from(u32::from_ne_bytes([start[0], start[1], start[2], start[3]]));
        let op = u16::from_ne_bytes([start[6], start[7]]);
        if size < RECORD_MIN || !size.is_multiple_of(8) || size > bytes.len() as u64 {
            return Next::Corrupt;
        }
        if op != OP_PAD {
            let bytes = &bytes[..size as usize];
            return Next::Record { bytes, size };
        }
        *position += size;
    }
    Next::Corrupt
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: u64 = 256;

    fn start(size: u32, op: u16) -> [u8; 8] {
        let mut b = [0; 8];
        b[..4].copy_from_slice(&size.to_ne_bytes());
        b[4..6].copy_from_slice(&1u16.to_ne_bytes());
        b[6..].copy_from_slice(&op.to_ne_bytes());
        b
    }

    /// A ring with these starts of records at these positions.
    fn ring(records: &[(u64, u32, u16)]) -> Vec<u8> {
        let mut ring = vec![0; BYTES as usize];
        for (at, size, op) in records {
            let at = (at % BYTES) as usize;
            ring[at..at + 8].copy_from_slice(&start(*size, *op));
        }
        ring
    }

    /// Position and size of each.
    type Seen = Vec<(u64, u64)>;

    fn walk(ring: &[u8], mut position: u64, head: u64) -> Result<Seen, Seen> {
        let mut seen = Vec::new();
        loop {
            let data = |at: u64, len: u64| {
                let at = (at % BYTES) as usize;
                &ring[at..(at + len as usize).min(ring.len())]
            };
            match next(&mut position, head, BYTES, data) {
                Next::Empty => return Ok(seen),
                Next::Corrupt => return Err(seen),
                Next::Record { size, .. } => {
                    seen.push((position, size));
                    position += size;
                }
            }
        }
    }

    #[test]
    fn records_follow_each_other_over_the_padding_at_the_end() {
        let r = ring(&[(128, 112, 5), (240, 16, 0), (256, 112, 5)]);
        assert_eq!(walk(&r, 128, 368), Ok(vec![(128, 112), (256, 112)]));
        let far = 1 << 40;
        assert_eq!(walk(&r, far + 128, far + 240), Ok(vec![(far + 128, 112)]));
        assert_eq!(walk(&r, 128, 128), Ok(vec![]));
    }

    #[test]
    fn no_length_is_believed() {
        for size in [0, 4, 9, 111, 120, 136, 257, 1 << 31, u32::MAX] {
            let r = ring(&[(0, 112, 5), (112, size, 5)]);
            assert_eq!(walk(&r, 0, 224), Err(vec![(0, 112)]), "{size}");
        }
        // Beyond the ring's end, though within what was recorded.
        let r = ring(&[(200, 112, 5)]);
        assert_eq!(walk(&r, 200, 312), Err(vec![]));
        // Padding without end.
        let r = ring(&[(0, 8, 0), (8, 8, 0), (16, 8, 0)]);
        assert_eq!(walk(&r, 0, 24), Err(vec![]));
    }

    #[test]
    fn no_position_is_believed() {
        let r = ring(&[(0, 112, 5)]);
        assert_eq!(walk(&r, 112, 0), Err(vec![]));
        assert_eq!(walk(&r, 0, BYTES + 8), Err(vec![]));
        assert_eq!(walk(&r, 0, u64::MAX), Err(vec![]));
        assert_eq!(walk(&r, 0, 4), Err(vec![]));
    }
}
