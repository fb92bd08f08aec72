//! The first 64 bytes of a segment file. It must never be written twice: a segment belongs to one place in the
//! chain for ever.
//!
//! ```text
//! offset size
//!   0     8   magic "FWSEG\0\0\0"
//!   8     4   version, 1
//!  12     8   segment number
//!  20     8   seq of the first batch in it
//!  28    32   chain value of the batch before it (zeros before the first): a segment verifies on its own
//!  60     4   CRC-32C over bytes 0..60
//! ```

use super::LogError;
use farwrite_core::BatchSeq;
use std::path::Path;

/// Bytes of a segment's header.
pub const SEGMENT_HEADER_BYTES: u64 = 64;
/// Version of the segment format that is written.
pub const SEGMENT_VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"FWSEG\0\0\0";

/// A segment's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Its number.
    pub segment: u64,
    /// The first batch in it.
    pub first_seq: BatchSeq,
    /// Chain value of the batch before.
    pub chain: [u8; 32],
}

impl SegmentHeader {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES as usize] {
        let mut h = [0; SEGMENT_HEADER_BYTES as usize];
        h[0..8].copy_from_slice(&MAGIC);
        h[8..12].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
        h[12..20].copy_from_slice(&self.segment.to_le_bytes());
        h[20..28].copy_from_slice(&self.first_seq.0.to_le_bytes());
        h[28..60].copy_from_slice(&self.chain);
        let crc = crc32c::crc32c(&h[..60]);
        h[60..64].copy_from_slice(&crc.to_le_bytes());
        h
    }

    /// Reads a header; `path` and `segment` are for errors and for the check that the file is what its name says.
    pub fn decode(h: &[u8; 64], path: &Path, segment: u64) -> Result<Self, LogError> {
        let bad = |what: &str| LogError::Damaged {
            segment,
            offset: 0,
            seq: None,
            what: what.into(),
        };
        if h[0..8] != MAGIC {
            return Err(bad("not a segment"));
        }
        if crc32c::crc32c(&h[..60]).to_le_bytes() != h[60..64] {
            return Err(bad("segment header damaged"));
        }
        let version = u32::from_le_bytes(h[8..12].try_into().expect("4 bytes"));
        if version != SEGMENT_VERSION {
            return Err(LogError::Newer {
                path: path.to_owned(),
                version,
            });
        }
        let word = |at: usize| u64::from_le_bytes(h[at..at + 8].try_into().expect("8 bytes"));
        if word(12) != segment {
            return Err(bad("segment under another segment's name"));
        }
        Ok(SegmentHeader {
            segment,
            first_seq: BatchSeq(word(20)),
            chain: h[28..60].try_into().expect("32 bytes"),
        })
    }
}
