//! Cuts a stream of bytes into records. Never holds more than one record over what it was given, and never accepts a
//! record larger than the caller's bound.

use bytes::{Bytes, BytesMut};
use farwrite_core::record::{BadRecord, HEADER_BYTES, Record, RecordHeader};

/// Collects received bytes and takes records off their front.
#[derive(Debug, Default)]
pub struct Framer {
    bytes: BytesMut,
}

/// Room that there is for received bytes, at the least.
const ROOM_LEAST: usize = 16 << 10;
/// Room that is made if there is not, and behind a record that is awaited.
const ROOM: usize = 128 << 10;

impl Framer {
    /// Adds received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Where received bytes may be appended, without a copy: there is room for all of a record that has begun to come.
    pub fn space(&mut self) -> &mut BytesMut {
        if self.bytes.capacity() - self.bytes.len() < ROOM_LEAST {
            self.bytes.reserve(ROOM);
        }
        &mut self.bytes
    }

    /// The next whole record; `None` if more bytes are needed. A header that announces a payload over `max_payload`
    /// bytes is an error before the payload has arrived. After an error the stream is of no use any more.
    pub fn next(&mut self, max_payload: usize) -> Result<Option<Record>, BadRecord> {
        self.make_room(max_payload)?;
        Record::parse(&mut self.bytes)
    }

    /// As [`Framer::next`], with a payload that nobody has checked: the header, and the bytes of the whole record.
    pub fn next_unchecked(
        &mut self,
        max_payload: usize,
    ) -> Result<Option<(RecordHeader, Bytes)>, BadRecord> {
        self.make_room(max_payload)?;
        Record::take_whole(&mut self.bytes)
    }

    /// Checks the announced length of the next record.
    fn make_room(&mut self, max_payload: usize) -> Result<(), BadRecord> {
        if let Some(head) = self.bytes.first_chunk::<HEADER_BYTES>() {
            let header = RecordHeader::decode(head)?;
            let largest = header.stored.max(header.raw);
            if largest as usize > max_payload {
                return Err(BadRecord::TooLarge(u64::from(largest)));
            }
            let total = header.total_bytes() as usize;
            let missing = total.saturating_sub(self.bytes.len());
            if self.bytes.capacity() - self.bytes.len() < missing {
                // What follows it is likely to come with it.
                self.bytes.reserve(missing + ROOM);
            }
        }
        Ok(())
    }

    /// Bytes held that are not yet a record.
    pub fn buffered(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farwrite_core::{BatchSeq, RecordKind};

    #[test]
    fn a_record_over_the_bound_is_refused_by_its_header_alone() {
        let r = Record::new(
            RecordKind::Message,
            BatchSeq(0),
            (0..=255).collect::<Vec<_>>(),
        );
        let mut f = Framer::default();
        f.push(&r.header.encode());
        assert_eq!(f.next(255), Err(BadRecord::TooLarge(256)));
        assert_eq!(f.next(256), Ok(None));
    }
}
