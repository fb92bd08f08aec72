//! Payload encodings of `Ops`, `Commit` and `Message` records: postcard (its wire format is stable since 1.0).

use crate::meta::Xattr;
use crate::record::{BadRecord, Record, RecordKind};
use crate::{BatchSeq, Commit, Op, limits};
use serde::{Serialize, de::DeserializeOwned};

/// Encodes operations into as many `Ops` records as their size asks for.
pub fn encode_ops(seq: BatchSeq, ops: &[Op]) -> Vec<Record> {
    let mut records = Vec::new();
    let mut raw = Vec::new();
    for op in ops {
        raw = postcard::to_extend(op, raw).expect("encoding into memory");
        if raw.len() >= limits::OPS_TARGET_BYTES {
            records.push(Record::new(RecordKind::Ops, seq, std::mem::take(&mut raw)));
        }
    }
    if !raw.is_empty() {
        records.push(Record::new(RecordKind::Ops, seq, raw));
    }
    records
}

/// Decodes one `Ops` record. The operations' own bounds are still to be checked with [`Op::check`].
pub fn decode_ops(record: &Record) -> Result<Vec<Op>, BadRecord> {
    let raw = record.decode()?;
    let mut rest = &raw[..];
    let mut ops = Vec::new();
    while !rest.is_empty() {
        let (op, r) =
            postcard::take_from_bytes(rest).map_err(|e| BadRecord::Decode(e.to_string()))?;
        ops.push(op);
        rest = r;
    }
    Ok(ops)
}

/// Bytes that operations take in memory beyond what they take raw: what is small on the wire, many attributes without a value,
/// say, must not be large in memory.
pub fn memory_bytes(ops: &[Op]) -> u64 {
    let attributes = |op: &Op| match op {
        Op::Node { meta, .. } => meta.xattrs.len(),
        _ => 0,
    };
    // Each is a name and a value of their own, of at least 16 bytes for the allocator.
    let each = (size_of::<Xattr>() + 32) as u64;
    ops.iter().map(|op| attributes(op) as u64 * each).sum()
}

/// The record that ends a batch.
pub fn encode_commit(commit: &Commit) -> Record {
    encode(RecordKind::Commit, commit.seq, commit)
}

/// Reads a `Commit` record.
pub fn decode_commit(record: &Record) -> Result<Commit, BadRecord> {
    decode(record)
}

/// Any value as one record.
pub fn encode<T: Serialize>(kind: RecordKind, seq: BatchSeq, value: &T) -> Record {
    Record::new(
        kind,
        seq,
        postcard::to_stdvec(value).expect("encoding into memory"),
    )
}

/// A record as a value; trailing bytes are an error.
pub fn decode<T: DeserializeOwned>(record: &Record) -> Result<T, BadRecord> {
    let raw = record.decode()?;
    match postcard::take_from_bytes(&raw) {
        Ok((v, [])) => Ok(v),
        Ok((_, rest)) => Err(BadRecord::Decode(format!("{} bytes too many", rest.len()))),
        Err(e) => Err(BadRecord::Decode(e.to_string())),
    }
}
