//! The record: the unit of both the wire and the segment log. What travels is what is stored, byte for byte,
//! under a checksum made at the source.
//!
//! ```text
//! offset size
//!   0     4   magic "FWR1"
//!   4     1   kind      (RecordKind)
//!   5     1   codec     0 raw, 1 zstd; others reserved (sealed payloads)
//!   6     2   reserved, 0
//!   8     4   stored    payload bytes that follow the header
//!  12     4   raw       payload bytes after decoding
//!  16     8   seq       batch that the record belongs to; 0 where it belongs to none
//!  24    16   hash      first 16 bytes of BLAKE3 over the stored payload
//!  40     4   crc       CRC-32C over bytes 0..40
//!  44     4   reserved, 0
//!  48  stored payload
//!   ..  0-7   zeros up to a multiple of 8
//! ```
//! All numbers little-endian.

use crate::{BatchSeq, limits};
use bytes::Bytes;

/// First bytes of every record.
pub const MAGIC: [u8; 4] = *b"FWR1";
/// Bytes of a header.
pub const HEADER_BYTES: usize = 48;

/// Pieces in a sample.
const SAMPLES: usize = 16;
/// Bytes of each piece.
const SAMPLE_BYTES: usize = 1 << 10;

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// Filler that aligns the next payload; in the log only.
    Pad = 0,
    /// File content: pieces of one or many files.
    Block = 1,
    /// A list of [`crate::Op`] in postcard's encoding.
    Ops = 2,
    /// A [`crate::Commit`] in postcard's encoding: ends a batch.
    Commit = 3,
    /// A protocol message; on the wire only.
    Message = 16,
}

impl RecordKind {
    fn from_u8(k: u8) -> Option<Self> {
        Some(match k {
            0 => Self::Pad,
            1 => Self::Block,
            2 => Self::Ops,
            3 => Self::Commit,
            16 => Self::Message,
            _ => return None,
        })
    }
}

/// How a payload is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// As it is.
    Raw = 0,
    /// One zstd frame (RFC 8878).
    Zstd = 1,
}

/// A decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// What the payload is.
    pub kind: RecordKind,
    /// How it is stored.
    pub codec: Codec,
    /// Payload bytes behind the header.
    pub stored: u32,
    /// Payload bytes once decoded.
    pub raw: u32,
    /// The batch.
    pub seq: BatchSeq,
    /// Of the stored payload.
    pub hash: [u8; 16],
}

/// Why bytes are not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    /// Not the magic: not a record at all.
    #[error("no record here")]
    Magic,
    /// The header's own checksum is wrong.
    #[error("record header damaged")]
    HeaderChecksum,
    /// A kind or codec of a later version.
    #[error("record kind {kind} with codec {codec} is of a newer version of Farwrite")]
    Unknown {
        /// Kind byte.
        kind: u8,
        /// Codec byte.
        codec: u8,
    },
    /// A length beyond [`limits::RECORD_BYTES`].
    #[error("record of {0} bytes is over the limit")]
    TooLarge(u64),
    /// The payload does not match its hash.
    #[error("record payload damaged")]
    PayloadChecksum,
    /// The payload does not decode to what the header promises.
    #[error("record payload does not decode: {0}")]
    Decode(String),
}

impl RecordHeader {
    /// Bytes of the whole record: header, payload and padding.
    pub fn total_bytes(&self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.stored).next_multiple_of(8)
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut h = [0u8; HEADER_BYTES];
        h[0..4].copy_from_slice(&MAGIC);
        h[4] = self.kind as u8;
        h[5] = self.codec as u8;
        h[8..12].copy_from_slice(&self.stored.to_le_bytes());
        h[12..16].copy_from_slice(&self.raw.to_le_bytes());
        h[16..24].copy_from_slice(&self.seq.0.to_le_bytes());
        h[24..40].copy_from_slice(&self.hash);
        let crc = crc32c::crc32c(&h[..40]);
        h[40..44].copy_from_slice(&crc.to_le_bytes());
        h
    }

    /// Reads a header and checks all its bounds. The payload is not looked at.
    pub fn decode(h: &[u8; HEADER_BYTES]) -> Result<Self, BadRecord> {
        if h[0..4] != MAGIC {
            return Err(BadRecord::Magic);
        }
        let word = |at: usize| u32::from_le_bytes(h[at..at + 4].try_into().expect("4 bytes"));
        if crc32c::crc32c(&h[..40]) != word(40) {
            return Err(BadRecord::HeaderChecksum);
        }
        let codec = match h[5] {
            0 => Some(Codec::Raw),
            1 => Some(Codec::Zstd),
            _ => None,
        };
        let (Some(kind), Some(codec)) = (RecordKind::from_u8(h[4]), codec) else {
            return Err(BadRecord::Unknown {
                kind: h[4],
                codec: h[5],
            });
        };
        let (stored, raw) = (word(8), word(12));
        if stored.max(raw) as usize > limits::RECORD_BYTES {
            return Err(BadRecord::TooLarge(u64::from(stored.max(raw))));
        }
        Ok(RecordHeader {
            kind,
            codec,
            stored,
            raw,
            seq: BatchSeq(u64::from_le_bytes(h[16..24].try_into().expect("8 bytes"))),
            hash: h[24..40].try_into().expect("16 bytes"),
        })
    }
}

/// A whole record in memory: its header and its stored payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The header.
    pub header: RecordHeader,
    /// Stored payload, without padding.
    pub payload: Bytes,
}

/// First 16 bytes of BLAKE3.
pub fn hash16(bytes: &[u8]) -> [u8; 16] {
    blake3::hash(bytes).as_bytes()[..16]
        .try_into()
        .expect("16 of 32 bytes")
}

/// Does a sample of a large payload become smaller by a sixty-fourth? Noise that repeats is noise to it.
fn may_compress(raw: &[u8]) -> bool {
    if raw.len() < 16 * SAMPLES * SAMPLE_BYTES {
        return true;
    }
    // In the largest block no power of two lies between them, as it may between the parts of a file.
    let distance = (raw.len() - SAMPLE_BYTES) / (SAMPLES - 1);
    let pieces = (0..SAMPLES).map(|i| &raw[i * distance..][..SAMPLE_BYTES]);
    let sample = pieces.collect::<Vec<_>>().concat();
    let packed = zstd::bulk::compress(&sample, 1);
    packed.is_ok_and(|p| p.len() <= sample.len() - sample.len() / 64)
}

impl Record {
    /// Wraps a payload, compressed with zstd level 1 if that saves an eighth or more.
    ///
    /// # Panics
    /// If `raw` is over [`limits::RECORD_BYTES`]: callers cut first.
    pub fn new(kind: RecordKind, seq: BatchSeq, raw: impl Into<Bytes>) -> Self {
        let raw = raw.into();
        let raw_len = raw.len();
        let packed = if raw.len() >= 64 {
            zstd::bulk::compress(&raw, 1).ok()
        } else {
            None
        };
        match packed {
            Some(p) if p.len() <= raw.len() - raw.len() / 8 => {
                Record::stored(kind, seq, Codec::Zstd, raw_len, p.into())
            }
            _ => Record::stored(kind, seq, Codec::Raw, raw_len, raw),
        }
    }

    /// As [`Record::new`] for a part of one large file, which is not even tried if pieces from all over it, put together, do not
    /// become smaller: zstd copies such bytes twice before it gives up. Of many small files, which may be the same, a sample says
    /// too little.
    ///
    /// # Panics
    /// If `raw` is over [`limits::RECORD_BYTES`]: callers cut first.
    pub fn sampled(kind: RecordKind, seq: BatchSeq, raw: impl Into<Bytes>) -> Self {
        let raw = raw.into();
        match may_compress(&raw) {
            true => Record::new(kind, seq, raw),
            false => Record::uncompressed(kind, seq, raw),
        }
    }

    /// As [`Record::new`] for what is known not to become smaller.
    ///
    /// # Panics
    /// If `raw` is over [`limits::RECORD_BYTES`]: callers cut first.
    pub fn uncompressed(kind: RecordKind, seq: BatchSeq, raw: impl Into<Bytes>) -> Self {
        let raw = raw.into();
        let len = raw.len();
        Record::stored(kind, seq, Codec::Raw, len, raw)
    }

    fn stored(kind: RecordKind, seq: BatchSeq, codec: Codec, raw: usize, payload: Bytes) -> Self {
        assert!(raw <= limits::RECORD_BYTES, "record payload of {raw} bytes");
        let header = RecordHeader {
            kind,
            codec,
            stored: payload.len() as u32,
            raw: raw as u32,
            seq,
            hash: hash16(&payload),
        };
        Record { header, payload }
    }

    /// Takes one whole record off the front of bytes that nobody else adds to, without copying its payload; `None` if
    /// they are cut off.
    pub fn from_bytes(bytes: &Bytes) -> Result<Option<Self>, BadRecord> {
        let Some(head) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let header = RecordHeader::decode(head)?;
        if (bytes.len() as u64) < header.total_bytes() {
            return Ok(None);
        }
        let end = HEADER_BYTES + header.stored as usize;
        Record::from_parts(header, bytes.slice(HEADER_BYTES..end)).map(Some)
    }

    /// Checks a payload against its header.
    pub fn from_parts(header: RecordHeader, payload: Bytes) -> Result<Self, BadRecord> {
        if payload.len() != header.stored as usize || hash16(&payload) != header.hash {
            return Err(BadRecord::PayloadChecksum);
        }
        Ok(Record { header, payload })
    }

    /// The payload, decoded. Never allocates more than the header's `raw`, which is bounded.
    pub fn decode(&self) -> Result<Bytes, BadRecord> {
        let raw = match self.header.codec {
            Codec::Raw => self.payload.clone(),
            Codec::Zstd => zstd::bulk::decompress(&self.payload, self.header.raw as usize)
                .map_err(|e| BadRecord::Decode(e.to_string()))?
                .into(),
        };
        if raw.len() != self.header.raw as usize {
            return Err(BadRecord::Decode(format!(
                "{} bytes instead of {}",
                raw.len(),
                self.header.raw
            )));
        }
        Ok(raw)
    }

    /// Appends the whole record, padding included, to `out`.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.header.encode());
        out.extend_from_slice(&self.payload);
        out.extend_from_slice(self.padding());
    }

    /// The zeros behind the payload.
    pub fn padding(&self) -> &'static [u8] {
        let len = self.payload.len();
        &[0; 8][..len.next_multiple_of(8) - len]
    }

    /// Takes one whole record off the front of `bytes`; `None` if more bytes are needed. `bytes` is left as it
    /// was unless a record is returned.
    pub fn parse(bytes: &mut bytes::BytesMut) -> Result<Option<Self>, BadRecord> {
        match Self::take_whole(bytes)? {
            Some((_, whole)) => Record::from_bytes(&whole),
            None => Ok(None),
        }
    }

    /// As [`Record::parse`], but the payload is not checked: for bytes whose last receiver does that. Returns the header and the
    /// bytes of the whole record.
    pub fn take_whole(
        bytes: &mut bytes::BytesMut,
    ) -> Result<Option<(RecordHeader, Bytes)>, BadRecord> {
        let Some(head) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let header = RecordHeader::decode(head)?;
        if (bytes.len() as u64) < header.total_bytes() {
            return Ok(None);
        }
        let whole = bytes.split_to(header.total_bytes() as usize);
        Ok(Some((header, whole.freeze())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_a_round_trip_in_any_pieces() {
        for raw in [
            vec![],
            vec![1, 2, 3],
            vec![7; 100_000],
            (0..=255).collect::<Vec<u8>>(),
        ] {
            let r = Record::new(RecordKind::Block, BatchSeq(9), raw.clone());
            let mut bytes = Vec::new();
            r.write_to(&mut bytes);
            assert_eq!(bytes.len() as u64, r.header.total_bytes());
            let mut buf = bytes::BytesMut::new();
            for (i, b) in bytes.iter().enumerate() {
                assert_eq!(Record::parse(&mut buf).unwrap(), None, "at {i}");
                buf.extend_from_slice(&[*b]);
            }
            let back = Record::parse(&mut buf).unwrap().unwrap();
            assert_eq!(back, r);
            assert_eq!(back.decode().unwrap(), raw);
            assert!(buf.is_empty());
        }
    }

    /// Bytes that do not compress.
    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn a_sample_tells_what_compresses_from_noise() {
        let len = limits::BLOCK_RAW_BYTES;
        let codec = |raw: Vec<u8>| {
            let record = Record::sampled(RecordKind::Block, BatchSeq(1), raw);
            record.header.codec
        };
        assert!(!may_compress(&noise(len)) && !may_compress(&noise(len - 1)));
        for len in [0, 1, 64, 1 << 10, 100_000, len - 1, len] {
            assert_eq!(codec(noise(len)), Codec::Raw, "{len}");
            if len >= 64 {
                assert_eq!(codec(vec![7; len]), Codec::Zstd, "{len}");
            }
        }
        // Zeros in one piece, wherever it lies.
        let zeros = len / 8 + len / 64;
        for at in (0..=len - zeros).step_by(40_009) {
            let mut raw = noise(len);
            raw[at..at + zeros].fill(0);
            assert_eq!(codec(raw), Codec::Zstd, "{at}");
        }
        // A page of zeros in every fourth, a zero in every fourth byte, few different bytes, text with noise between.
        let patterns: [fn(usize, u8) -> u8; 4] = [
            |i, b| if (i >> 12) % 4 == 1 { 0 } else { b },
            |i, b| if i.is_multiple_of(4) { 0 } else { b },
            |_, b| b & 0x3f,
            |i, b| {
                if i % 100_000 < 30_000 {
                    b"all work and no play "[i % 21]
                } else {
                    b
                }
            },
        ];
        for (n, pattern) in patterns.into_iter().enumerate() {
            let raw = noise(len).into_iter().enumerate();
            let raw = raw.map(|(i, b)| pattern(i, b)).collect();
            assert_eq!(codec(raw), Codec::Zstd, "pattern {n}");
        }
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let r = Record::new(RecordKind::Ops, BatchSeq(1), b"payload".to_vec());
        let mut bytes = Vec::new();
        r.write_to(&mut bytes);
        for bit in 0..(HEADER_BYTES - 4) * 8 + 7 * 8 {
            let at = if bit / 8 < 44 { bit / 8 } else { bit / 8 + 4 };
            let mut b = bytes::BytesMut::from(&bytes[..]);
            b[at] ^= 1 << (bit % 8);
            assert!(Record::parse(&mut b).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn hostile_lengths_are_refused_before_memory_is_taken() {
        let mut h = Record::new(RecordKind::Ops, BatchSeq(1), vec![0; 10]).header;
        h.stored = u32::MAX;
        assert_eq!(
            RecordHeader::decode(&h.encode()),
            Err(BadRecord::TooLarge(u64::from(u32::MAX)))
        );
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
        let header = RecordHeader {
            kind: RecordKind::Block,
            codec: Codec::Zstd,
            stored: bomb.len() as u32,
            raw: 100,
            seq: BatchSeq(1),
            hash: hash16(&bomb),
        };
        assert!(matches!(
            Record::from_parts(header, bomb.into()).unwrap().decode(),
            Err(BadRecord::Decode(_))
        ));
    }
}
