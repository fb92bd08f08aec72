//! Questions in few round trips: blocks are asked for together with those that will be needed next, and kept
//! for a while. Every record is checked against its own checksum; the vault is not believed.

use super::{Ask, RestoreError};
use bytes::{Bytes, BytesMut};
use farwrite_core::history::{BlockExtent, Entry, Request, Response};
use farwrite_core::{BatchSeq, BytePath, Name, NodeId, Record, limits};
use lru::LruCache;
use std::collections::{HashSet, VecDeque};

/// Bytes of decoded blocks kept.
const CACHE_BYTES: usize = 64 << 20;
/// Most blocks asked for at once; the answer is cut by bytes.
const ASK_BLOCKS: usize = 64;
/// Most blocks remembered as needed soon.
const UPCOMING: usize = 65_536;

pub(super) struct Fetch<'a> {
    ask: Ask<'a>,
    cache: LruCache<u64, Result<Bytes, String>>,
    cached_bytes: usize,
    upcoming: VecDeque<u64>,
}

impl<'a> Fetch<'a> {
    pub(super) fn new(ask: Ask<'a>) -> Self {
        Fetch {
            ask,
            cache: LruCache::unbounded(),
            cached_bytes: 0,
            upcoming: VecDeque::new(),
        }
    }

    fn ask(&self, request: Request) -> Result<Response, RestoreError> {
        match (self.ask)(request).map_err(RestoreError::Ask)? {
            Response::Error(e) => Err(RestoreError::Ask(e.into())),
            other => Ok(other),
        }
    }

    pub(super) fn stat(
        &self,
        path: &BytePath,
        at: BatchSeq,
    ) -> Result<Option<Entry>, RestoreError> {
        let path = path.clone();
        match self.ask(Request::Stat { path, at })? {
            Response::Stat(e) => Ok(e),
            _ => Err(nonsense("to Stat")),
        }
    }

    pub(super) fn list(
        &self,
        dir: NodeId,
        at: BatchSeq,
        after: Option<Name>,
    ) -> Result<(Vec<Entry>, bool), RestoreError> {
        let limit = limits::HISTORY_PAGE as u32;
        let last = after.clone();
        match self.ask(Request::List {
            dir,
            at,
            after,
            limit,
        })? {
            Response::List { entries, more } => {
                // A list that does not go forward would never end.
                let ok = entries.first().is_none_or(|e| e.name > last);
                let sorted = entries.windows(2).all(|w| w[0].name < w[1].name);
                match ok && sorted {
                    true => Ok((entries, more)),
                    false => Err(nonsense("a list out of order")),
                }
            }
            _ => Err(nonsense("to List")),
        }
    }

    /// The extents of a file that end behind `from`, and whether there are more.
    pub(super) fn extents(
        &self,
        node: NodeId,
        at: BatchSeq,
        from: u64,
    ) -> Result<(Vec<BlockExtent>, bool), RestoreError> {
        match self.ask(Request::Extents { node, at, from })? {
            Response::Extents { extents, more } => Ok((extents, more)),
            _ => Err(nonsense("to Extents")),
        }
    }

    /// Blocks of these entries will be needed in this order.
    pub(super) fn announce(&mut self, entries: &[Entry]) {
        let extents = entries.iter().filter_map(|e| e.extents.as_deref());
        self.announce_extents(extents.flatten());
    }

    pub(super) fn announce_extents<'e>(&mut self, list: impl Iterator<Item = &'e BlockExtent>) {
        for x in list {
            if self.upcoming.back() != Some(&x.block) {
                self.upcoming.push_back(x.block);
            }
        }
        while self.upcoming.len() > UPCOMING {
            self.upcoming.pop_front();
        }
    }

    /// A block's raw bytes; the inner error says what is wrong with the block.
    pub(super) fn block(&mut self, id: u64) -> Result<Result<Bytes, String>, RestoreError> {
        if let Some(known) = self.cache.get(&id) {
            return Ok(known.clone());
        }
        let mut ids = vec![id];
        if let Some(i) = self.upcoming.iter().position(|b| *b == id) {
            self.upcoming.drain(..i);
        }
        let mut seen = HashSet::from([id]);
        for next in &self.upcoming {
            if ids.len() >= ASK_BLOCKS {
                break;
            }
            if seen.insert(*next) && !self.cache.contains(next) {
                ids.push(*next);
            }
        }
        let Response::Blocks(list) = self.ask(Request::Blocks(ids))? else {
            return Err(nonsense("to Blocks"));
        };
        let mut wanted = None;
        for b in list {
            let bytes = b.record.and_then(|raw| decode(&raw));
            if b.block == id {
                wanted = Some(bytes.clone());
            }
            self.cached_bytes += bytes.as_ref().map_or(0, Bytes::len);
            if let Some((_, Ok(old))) = self.cache.push(b.block, bytes) {
                self.cached_bytes -= old.len();
            }
        }
        while self.cached_bytes > CACHE_BYTES {
            match self.cache.pop_lru() {
                Some((_, b)) => self.cached_bytes -= b.map_or(0, |b| b.len()),
                None => break,
            }
        }
        wanted.ok_or_else(|| nonsense("blocks that were not asked for"))
    }
}

fn decode(raw: &[u8]) -> Result<Bytes, String> {
    match Record::parse(&mut BytesMut::from(raw)) {
        Ok(Some(record)) => record.decode().map_err(|e| e.to_string()),
        Ok(None) => Err("the record is cut off".into()),
        Err(e) => Err(e.to_string()),
    }
}

fn nonsense(what: &str) -> RestoreError {
    RestoreError::Answer(what.into())
}
