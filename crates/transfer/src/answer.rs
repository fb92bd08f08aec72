//! Answers about the history on their way through records: cut into parts and put together again. Those that carry content are
//! large, so that each copy of their bytes that is not made shows.

use crate::message::{Message, PROTOCOL_V3, RESPONSE_BYTES, RESPONSE_PART_BYTES};
use bytes::Bytes;
use farwrite_core::history::{BlockBytes, Response};
use farwrite_core::record::{BadRecord, Record, RecordKind};
use farwrite_core::{BatchSeq, codec};
use postcard::ser_flavors::Flavor;
use serde::de::DeserializeOwned;
use std::collections::VecDeque;

/// Number of [`Message::Response`] in its encoding.
const RESPONSE: u32 = 4;
/// Number of [`Response::Blocks`] in its encoding.
const BLOCKS: u32 = 5;
/// Most bytes in front of a part in its message: two numbers, a flag, and a length.
const FRONT_BYTES: usize = 5 + 5 + 1 + 5;

/// A piece of an answer on its way.
#[derive(Debug)]
pub enum Piece {
    /// To be written.
    Record(Record),
    /// A whole record as it is stored, which whoever asked will check.
    Stored(Bytes),
}

/// An answer as what is sent of it in a session of protocol `version`. One that is too large becomes a [`Response::Error`].
pub fn response_pieces(id: u32, response: Response, version: u16) -> Vec<Piece> {
    let said = |list: &[BlockBytes]| -> usize {
        let wrong = list.iter().filter_map(|b| b.record.as_ref().err());
        wrong.map(String::len).sum()
    };
    let stored = |list: &[BlockBytes]| {
        list.iter()
            .flat_map(|b| &b.record)
            .map(Bytes::len)
            .sum::<usize>()
    };
    match response {
        Response::Blocks(list)
            if version >= PROTOCOL_V3
                && stored(&list) <= RESPONSE_BYTES
                && said(&list) <= RESPONSE_PART_BYTES =>
        {
            let about = |b: &BlockBytes| (b.block, b.record.as_ref().err().cloned());
            let blocks = list.iter().map(about).collect();
            let first = Piece::Record(Message::Blocks { id, blocks }.to_record());
            let records = list.into_iter().filter_map(|b| b.record.ok());
            [first]
                .into_iter()
                .chain(records.map(Piece::Stored))
                .collect()
        }
        other => {
            let records = response_records(id, &other);
            records.into_iter().map(Piece::Record).collect()
        }
    }
}

/// An answer as the records that carry it. One that is too large becomes a [`Response::Error`].
fn response_records(id: u32, response: &Response) -> Vec<Record> {
    let encode = |response: &Response| {
        let parts = Parts::new(id);
        postcard::serialize_with_flavor(response, parts).expect("encoding into memory")
    };
    let mut parts = encode(response);
    if parts.bytes() > RESPONSE_BYTES {
        let text = format!(
            "the answer has {} bytes: ask for less at once",
            parts.bytes()
        );
        parts = encode(&Response::Error(text));
    }
    // Content is compressed where it is stored.
    parts.records(matches!(response, Response::Blocks(_)))
}

/// Takes an encoding in and cuts it into the payloads of messages.
struct Parts {
    id: u32,
    full: Vec<Vec<u8>>,
    last: Vec<u8>,
    /// What is before a full part that is not the last.
    front: Vec<u8>,
}

impl Parts {
    fn new(id: u32) -> Self {
        let mut parts = Parts {
            id,
            full: Vec::new(),
            last: Vec::new(),
            front: Vec::new(),
        };
        parts.front = parts.front(true, RESPONSE_PART_BYTES);
        parts.last.extend_from_slice(&parts.front);
        parts
    }

    fn front(&self, more: bool, len: usize) -> Vec<u8> {
        let front = (RESPONSE, self.id, more, len as u64);
        postcard::to_extend(&front, Vec::with_capacity(FRONT_BYTES)).expect("into memory")
    }

    fn in_last(&self) -> usize {
        self.last.len() - self.front.len()
    }

    fn bytes(&self) -> usize {
        self.full.len() * RESPONSE_PART_BYTES + self.in_last()
    }

    fn records(mut self, stored: bool) -> Vec<Record> {
        let len = self.in_last();
        let mut last = self.front(false, len);
        last.extend_from_slice(&self.last[self.front.len()..]);
        self.full.push(last);
        let record = |payload: Vec<u8>| match stored {
            true => Record::uncompressed(RecordKind::Message, BatchSeq(0), payload),
            false => Record::new(RecordKind::Message, BatchSeq(0), payload),
        };
        self.full.into_iter().map(record).collect()
    }
}

impl Flavor for Parts {
    type Output = Parts;

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.try_extend(&[byte])
    }

    fn try_extend(&mut self, mut bytes: &[u8]) -> postcard::Result<()> {
        while !bytes.is_empty() {
            if self.in_last() == RESPONSE_PART_BYTES {
                // Those that follow are likely to be as large.
                let mut next = Vec::with_capacity(self.front.len() + RESPONSE_PART_BYTES);
                next.extend_from_slice(&self.front);
                self.full.push(std::mem::replace(&mut self.last, next));
            }
            let room = RESPONSE_PART_BYTES - self.in_last();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.last.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    fn finalize(self) -> postcard::Result<Parts> {
        Ok(self)
    }
}

/// What came in a record: a part of an answer, or another message.
pub(crate) enum Came {
    Part { id: u32, more: bool, part: Bytes },
    Other(Message),
}

/// Reads a record; a part of an answer is not copied.
pub(crate) fn read(record: &Record) -> Result<Came, BadRecord> {
    let raw = record.decode()?;
    let mut rest = &raw[..];
    if take::<u32>(&mut rest)? != RESPONSE {
        return codec::decode(record).map(Came::Other);
    }
    let (id, more) = (take(&mut rest)?, take(&mut rest)?);
    let part = take_bytes(&raw, &mut rest)?;
    match rest.len() {
        0 => Ok(Came::Part { id, more, part }),
        n => Err(BadRecord::Decode(format!("{n} bytes too many"))),
    }
}

/// Puts an answer together. Nothing of it holds on to the parts, nor one block to another.
pub(crate) fn response(parts: Vec<Bytes>) -> Result<Response, BadRecord> {
    let mut chain = Joined(VecDeque::from(parts));
    if chain.0.front().and_then(|p| p.first()) == Some(&(BLOCKS as u8)) {
        chain.number()?;
        return blocks(&mut chain).map(Response::Blocks);
    }
    let whole = chain.bytes(chain.left())?;
    let mut rest = &whole[..];
    let response = take(&mut rest)?;
    match rest.len() {
        0 => Ok(response),
        n => Err(BadRecord::Decode(format!("{n} bytes too many"))),
    }
}

/// As serde would, but that content goes from the parts to where it stays.
fn blocks(chain: &mut Joined) -> Result<Vec<BlockBytes>, BadRecord> {
    let count = chain.number()?;
    let mut list = Vec::new();
    for _ in 0..count {
        let block = chain.number()?;
        let record = match chain.number()? {
            0 => Ok(Bytes::from(chain.bytes_with_len()?)),
            1 => Err(String::from_utf8(chain.bytes_with_len()?)
                .map_err(|e| BadRecord::Decode(e.to_string()))?),
            n => return Err(BadRecord::Decode(format!("a result of kind {n}"))),
        };
        list.push(BlockBytes { block, record });
    }
    match chain.left() {
        0 => Ok(list),
        n => Err(BadRecord::Decode(format!("{n} bytes too many"))),
    }
}

/// Parts one behind the other.
struct Joined(VecDeque<Bytes>);

impl Joined {
    fn left(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    fn bytes(&mut self, len: usize) -> Result<Vec<u8>, BadRecord> {
        if len > self.left() {
            return Err(BadRecord::Decode("bytes are cut off".into()));
        }
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let Some(first) = self.0.front_mut() else {
                break;
            };
            let now = first.split_to(first.len().min(len - bytes.len()));
            bytes.extend_from_slice(&now);
            if first.is_empty() {
                self.0.pop_front();
            }
        }
        Ok(bytes)
    }

    fn bytes_with_len(&mut self) -> Result<Vec<u8>, BadRecord> {
        let len = self.number()?;
        self.bytes(usize::try_from(len).unwrap_or(usize::MAX))
    }

    /// A number as postcard writes it (a varint of at most 10 bytes).
    fn number(&mut self) -> Result<u64, BadRecord> {
        let mut digits = Vec::with_capacity(10);
        while digits.len() < 10 {
            digits.extend(self.bytes(1)?);
            if digits.last().is_some_and(|d| d & 0x80 == 0) {
                break;
            }
        }
        take(&mut &digits[..])
    }
}

fn take<T: DeserializeOwned>(rest: &mut &[u8]) -> Result<T, BadRecord> {
    let (value, behind) =
        postcard::take_from_bytes(rest).map_err(|e| BadRecord::Decode(e.to_string()))?;
    *rest = behind;
    Ok(value)
}

/// Bytes with their length before them, as a part of `whole`, which `rest` is the end of.
fn take_bytes(whole: &Bytes, rest: &mut &[u8]) -> Result<Bytes, BadRecord> {
    let len: u64 = take(rest)?;
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    if len > rest.len() {
        return Err(BadRecord::Decode("bytes are cut off".into()));
    }
    let (bytes, behind) = rest.split_at(len);
    *rest = behind;
    Ok(whole.slice_ref(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_bytes::ByteBuf;

    fn through(response: &Response) -> (Vec<Record>, Response) {
        let records = response_records(300, response);
        let parts = records.iter().enumerate().map(|(i, record)| {
            let last = i + 1 == records.len();
            // The plain way of reading it says the same.
            let Message::Response { id, more, part } = codec::decode(record).unwrap() else {
                panic!("another message");
            };
            assert_eq!((id, more), (300, !last));
            assert!(part.len() == RESPONSE_PART_BYTES || last);
            match read(record).unwrap() {
                Came::Part {
                    id: 300,
                    more: m,
                    part: p,
                } if m == more && p == part[..] => p,
                _ => panic!("read in another way"),
            }
        });
        let parts: Vec<Bytes> = parts.collect();
        let plain: Vec<u8> = parts.concat();
        assert!(plain == postcard::to_stdvec(response).unwrap());
        let back = super::response(parts).unwrap();
        (records, back)
    }

    #[test]
    fn answers_survive_in_parts_of_any_number() {
        let block = |block: u64, len: usize| BlockBytes {
            block,
            record: Ok((0..len).map(|i| (i * 7 + i / 251) as u8).collect()),
        };
        let bad = BlockBytes {
            block: 1 << 40,
            record: Err("damaged".into()),
        };
        let part = RESPONSE_PART_BYTES;
        for blocks in [
            vec![],
            vec![bad.clone()],
            vec![block(1, 0), block(2, 100), bad.clone()],
            // Ends where a part does (1 kind, 1 count, 1 id, 1 result, 3 length), and one byte before and behind.
            vec![block(1, part - 7)],
            vec![block(1, part - 8)],
            vec![block(1, part - 6)],
            vec![block(1, 3 * part), bad, block(2, part)],
        ] {
            let response = Response::Blocks(blocks);
            let (_, back) = through(&response);
            assert!(back == response);
        }
        let error = Response::Error("x".repeat(2 * part));
        let (records, back) = through(&error);
        assert!(back == error);
        assert!(
            records.iter().all(|r| r.payload.len() < part / 8),
            "text is compressed"
        );
    }

    #[test]
    fn an_answer_that_is_too_large_says_so() {
        let records = response_records(4, &Response::Error("x".repeat(RESPONSE_BYTES)));
        assert_eq!(records.len(), 1);
        let Came::Part { part, .. } = read(&records[0]).unwrap() else {
            panic!("not an answer");
        };
        let Response::Error(text) = response(vec![part]).unwrap() else {
            panic!("not an error");
        };
        assert!(text.contains("ask for less"), "{text}");
    }

    #[test]
    fn bytes_that_are_no_answer_are_refused() {
        let good = postcard::to_stdvec(&Response::Blocks(vec![BlockBytes {
            block: 9,
            record: Ok(Bytes::from_static(b"content")),
        }]))
        .unwrap();
        for end in 0..good.len() {
            assert!(response(vec![Bytes::copy_from_slice(&good[..end])]).is_err());
        }
        let longer = [&good[..], b"x"].concat();
        assert!(response(vec![longer.into()]).is_err());
        let mut kind = good.clone();
        kind[3] = 2;
        assert!(response(vec![kind.into()]).is_err());
        let hello = Message::ReplayFrom(BatchSeq(1)).to_record();
        assert!(matches!(
            read(&hello),
            Ok(Came::Other(Message::ReplayFrom(_)))
        ));
        let part = ByteBuf::from(vec![1, 2, 3]);
        let mut raw = postcard::to_stdvec(&Message::Response {
            id: 1,
            more: false,
            part,
        })
        .unwrap();
        raw.push(0);
        let trailing = Record::uncompressed(RecordKind::Message, BatchSeq(0), raw);
        assert!(read(&trailing).is_err());
    }
}
