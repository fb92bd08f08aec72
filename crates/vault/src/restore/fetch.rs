//! Questions in few round trips: blocks are asked for together with those that will be needed next, and kept
//! for a while. Every record is checked against its own checksum; the vault is not believed.

use super::{Ask, RestoreError};
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};
use farwrite_core::history::{BlockExtent, Entry, Request, Response};
use farwrite_core::record::{BadRecord, Codec};
use farwrite_core::{BatchSeq, BytePath, Name, NodeId, Record, limits};
use lru::LruCache;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of decoded blocks kept.
const CACHE_BYTES: usize = 64 << 20;
/// Smaller blocks are copied out of the buffer that they came in, which may hold all blocks of an answer.
const COPIED_BYTES: usize = 512 << 10;
/// Most blocks asked for at once; the answer is cut by bytes.
const ASK_BLOCKS: usize = 64;
/// Requests for blocks under way at the same time.
const BLOCKS_AHEAD: usize = 4;
/// Directories whose lists are asked for ahead, going by what is next. Over a long way the answers' way there and back is what
/// a tree of small directories takes. All that asks stays within what a session answers at a time, which is 16.
const LISTS_AHEAD: usize = 11;
/// Lists that are there, or under way, and have not been wanted yet.
const LISTS_KEPT: usize = 32;
/// Threads that ask ([`ask_for_others`]): enough for all that is under way at the same time.
pub(super) const ASKERS: usize = BLOCKS_AHEAD + LISTS_AHEAD;
/// Bytes of blocks that are asked for in one of those; one answer holds a little more.
const AHEAD_BYTES: usize = limits::HISTORY_BLOCK_BYTES * 3 / 4;
/// Most blocks remembered as needed soon.
const UPCOMING: usize = 65_536;

/// Blocks with their raw bytes, or what is wrong with them.
type Blocks = Vec<(u64, Result<Bytes, String>)>;
/// A page of a directory, and whether there is more.
type Page = (Vec<Entry>, bool);
/// Where an answer comes from.
type Answer<T> = Receiver<Result<T, RestoreError>>;

/// What to ask for, and where the answer goes.
pub(super) enum Question {
    Blocks(Vec<u64>, Sender<Result<Blocks, RestoreError>>),
    List(NodeId, BatchSeq, Sender<Result<Page, RestoreError>>),
}

struct UnderWay {
    ids: HashSet<u64>,
    answer: Answer<Blocks>,
}

pub(super) struct Fetch<'a> {
    ask: Ask<'a>,
    ahead: Option<Sender<Question>>,
    lists: HashMap<NodeId, Answer<Page>>,
    under_way: VecDeque<UnderWay>,
    cache: LruCache<u64, Result<Bytes, String>>,
    cached_bytes: usize,
    upcoming: VecDeque<u64>,
}

impl<'a> Fetch<'a> {
    /// `ahead`: somebody who asks for what is needed next ([`ask_for_others`]), while this one writes.
    pub(super) fn new(ask: Ask<'a>, ahead: Option<Sender<Question>>) -> Self {
        Fetch {
            ask,
            ahead,
            lists: HashMap::new(),
            under_way: VecDeque::new(),
            cache: LruCache::unbounded(),
            cached_bytes: 0,
            upcoming: VecDeque::new(),
        }
    }

    pub(super) fn stat(
        &self,
        path: &BytePath,
        at: BatchSeq,
    ) -> Result<Option<Entry>, RestoreError> {
        let asked = Request::Stat {
            path: path.clone(),
            at,
        };
        match ask_one(self.ask, asked)? {
            Response::Stat(e) if e.as_ref().is_none_or(|e| e.can_be_at(path)) => Ok(e),
            _ => Err(nonsense("to Stat")),
        }
    }

    pub(super) fn list(
        &mut self,
        dir: NodeId,
        at: BatchSeq,
        after: Option<Name>,
    ) -> Result<Page, RestoreError> {
        match self.lists.remove(&dir) {
            Some(answer) if after.is_none() => answer.recv().map_err(|_| nonsense("at all"))?,
            _ => ask_list(self.ask, dir, at, after),
        }
    }

    /// These directories will be listed next, in this order and after what they turn out to hold.
    pub(super) fn list_ahead(&mut self, dirs: impl Iterator<Item = NodeId>, at: BatchSeq) {
        let Some(questions) = &self.ahead else {
            return;
        };
        for dir in dirs.take(LISTS_AHEAD) {
            if self.lists.len() < LISTS_KEPT && !self.lists.contains_key(&dir) {
                let (to, answer) = crossbeam_channel::bounded(1);
                if questions.send(Question::List(dir, at, to)).is_ok() {
                    self.lists.insert(dir, answer);
                }
            }
        }
    }

    /// The extents of a file that end behind `from`, and whether there are more.
    pub(super) fn extents(
        &self,
        node: NodeId,
        at: BatchSeq,
        from: u64,
    ) -> Result<(Vec<BlockExtent>, bool), RestoreError> {
        match ask_one(self.ask, Request::Extents { node, at, from })? {
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

    /// These will be needed now, before all others.
    pub(super) fn announce_first(&mut self, list: &[BlockExtent]) {
        for x in list.iter().rev() {
            if self.upcoming.front() != Some(&x.block) {
                self.upcoming.push_front(x.block);
            }
        }
        self.upcoming.truncate(UPCOMING);
    }

    /// A block's raw bytes; the inner error says what is wrong with the block.
    pub(super) fn block(&mut self, id: u64) -> Result<Result<Bytes, String>, RestoreError> {
        if !self.cache.contains(&id) {
            if let Some(i) = self.upcoming.iter().position(|b| *b == id) {
                self.upcoming.drain(..i);
            }
            while let Some(at) = self.under_way.iter().position(|u| u.ids.contains(&id)) {
                let arrived = self.under_way.remove(at).expect("just found");
                let blocks = arrived.answer.recv().map_err(|_| nonsense("at all"))??;
                self.keep(blocks);
                if self.cache.contains(&id) {
                    break;
                }
            }
        }
        if !self.cache.contains(&id) {
            // What was asked for ahead, and is not wanted now, may never be: it must not keep others from being asked for.
            if self.under_way.len() >= BLOCKS_AHEAD {
                self.under_way.pop_front();
            }
            let mut ids = vec![id];
            ids.extend(self.next_ids(self.at_once() - 1, id));
            let blocks = ask_blocks(self.ask, ids)?;
            self.keep(blocks);
        }
        self.ask_ahead(id);
        let known = self.cache.get(&id).cloned();
        known.ok_or_else(|| nonsense("blocks that were not asked for"))
    }

    /// The next ids of which nothing is known and which are not under way, but for `but`.
    fn next_ids(&self, most: usize, but: u64) -> Vec<u64> {
        let mut seen = HashSet::from([but]);
        let new = |id: &&u64| {
            !self.cache.contains(id) && !self.under_way.iter().any(|u| u.ids.contains(id))
        };
        let next = self.upcoming.iter().filter(new);
        next.copied()
            .filter(|id| seen.insert(*id))
            .take(most)
            .collect()
    }

    /// As many blocks as one answer holds, going by those that came last.
    fn at_once(&self) -> usize {
        let each = self.cached_bytes / self.cache.len().max(1);
        (AHEAD_BYTES / each.max(1)).clamp(1, ASK_BLOCKS)
    }

    fn ask_ahead(&mut self, but: u64) {
        let Some(questions) = self.ahead.clone() else {
            return;
        };
        let most = self.at_once();
        while self.under_way.len() < BLOCKS_AHEAD {
            let ids = self.next_ids(most, but);
            if ids.is_empty() {
                return;
            }
            let (to, answer) = crossbeam_channel::bounded(1);
            // Without anybody there the blocks are asked for when they are needed.
            if questions.send(Question::Blocks(ids.clone(), to)).is_err() {
                return;
            }
            let ids = ids.into_iter().collect();
            self.under_way.push_back(UnderWay { ids, answer });
        }
    }

    fn keep(&mut self, blocks: Blocks) {
        for (id, bytes) in blocks {
            self.cached_bytes += cost(&bytes);
            if let Some((_, old)) = self.cache.push(id, bytes) {
                self.cached_bytes -= cost(&old);
            }
        }
        while self.cached_bytes > CACHE_BYTES && self.cache.len() > 1 {
            match self.cache.pop_lru() {
                Some((_, b)) => self.cached_bytes -= cost(&b),
                None => break,
            }
        }
    }
}

/// What a block in the cache counts for.
fn cost(block: &Result<Bytes, String>) -> usize {
    block.as_ref().map_or_else(String::len, Bytes::len)
}

/// Asks until nobody wants any more: for threads beside the one that writes.
/// `over`: what is still in the queue then is for nobody.
pub(super) fn ask_for_others(ask: Ask<'_>, questions: &Receiver<Question>, over: &AtomicBool) {
    for question in questions {
        if over.load(Ordering::Relaxed) {
            return;
        }
        // Who asked may have given up.
        match question {
            Question::Blocks(ids, to) => drop(to.send(ask_blocks(ask, ids))),
            Question::List(dir, at, to) => drop(to.send(ask_list(ask, dir, at, None))),
        }
    }
}

fn ask_one(ask: Ask<'_>, request: Request) -> Result<Response, RestoreError> {
    match ask(request).map_err(RestoreError::Ask)? {
        Response::Error(e) => Err(RestoreError::Ask(e.into())),
        other => Ok(other),
    }
}

fn ask_list(
    ask: Ask<'_>,
    dir: NodeId,
    at: BatchSeq,
    after: Option<Name>,
) -> Result<Page, RestoreError> {
    let limit = limits::HISTORY_PAGE as u32;
    let last = after.clone();
    let request = Request::List {
        dir,
        at,
        after,
        limit,
    };
    let Response::List { entries, more } = ask_one(ask, request)? else {
        return Err(nonsense("to List"));
    };
    // A list that does not go forward would never end.
    let ok = entries.len() <= limits::HISTORY_PAGE && entries.first().is_none_or(|e| e.name > last);
    let sorted = entries.windows(2).all(|w| w[0].name < w[1].name);
    match ok && sorted {
        true => Ok((entries, more)),
        false => Err(nonsense("a list out of order")),
    }
}

/// The answer may hold fewer blocks than asked for, but always the first.
fn ask_blocks(ask: Ask<'_>, ids: Vec<u64>) -> Result<Blocks, RestoreError> {
    let first = ids[0];
    let asked: HashSet<u64> = ids.iter().copied().collect();
    match ask_one(ask, Request::Blocks(ids))? {
        Response::Blocks(list) if list.iter().any(|b| b.block == first) => Ok(list
            .into_iter()
            .filter(|b| asked.contains(&b.block))
            .map(|b| (b.block, b.record.and_then(|raw| decode(b.block, &raw))))
            .collect()),
        _ => Err(nonsense("to Blocks")),
    }
}

fn decode(id: u64, raw: &Bytes) -> Result<Bytes, String> {
    let bad = |e: BadRecord| format!("block {id}: {e} (verify the vault to see where)");
    match Record::from_bytes(raw) {
        // What is stored as it is lies in the buffer that it came in, among others: a small block must not hold on to that.
        Ok(Some(record)) => match record.decode() {
            Ok(bytes) if record.header.codec == Codec::Raw && bytes.len() < COPIED_BYTES => {
                Ok(Bytes::copy_from_slice(&bytes))
            }
            other => other.map_err(bad),
        },
        Ok(None) => Err(format!("block {id}: the record is cut off")),
        Err(e) => Err(bad(e)),
    }
}

fn nonsense(what: &str) -> RestoreError {
    RestoreError::Answer(what.into())
}
