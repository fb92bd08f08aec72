//! Compresses and hashes full blocks beside the unit's thread, which goes on reading files meanwhile: of a first backup those are
//! half of the work. Records come out in the order in which their content went in.

use super::in_order::InOrder;
use bytes::Bytes;
use farwrite_core::BatchSeq;
use farwrite_core::record::{Record, RecordKind};

/// Blocks under way at most; one more, and the unit's thread packs one itself.
const UNDER_WAY: usize = 4;

/// Makes the record of a block.
pub(super) fn pack(seq: BatchSeq, raw: impl Into<Bytes>) -> Record {
    Record::new(RecordKind::Block, seq, raw)
}

/// Makes the record of a block that is a part of one large file.
pub(super) fn pack_part(seq: BatchSeq, raw: Bytes) -> Record {
    Record::sampled(RecordKind::Block, seq, raw)
}

/// See the module.
pub(super) struct Packer(InOrder<Record>);

impl Default for Packer {
    fn default() -> Self {
        Packer(InOrder::new("farwrite-pack"))
    }
}

impl Packer {
    /// Has a block packed.
    pub(super) fn put(&mut self, pack: impl FnOnce() -> Record + Send + 'static) {
        self.0.put(pack);
    }

    /// The oldest record, if it is packed, or else if too many are under way.
    pub(super) fn ready(&mut self) -> Option<Record> {
        if self.0.under_way() > UNDER_WAY {
            return self.next();
        }
        self.0.ready()
    }

    /// The oldest record; waits for it.
    pub(super) fn next(&mut self) -> Option<Record> {
        self.0.next()
    }
}
