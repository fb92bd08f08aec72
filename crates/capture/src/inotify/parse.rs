//! Reads the records that inotify writes (inotify(7)). A buffer that does not add up is an error, never a panic.
//!
//! ```text
//! i32 wd, u32 mask, u32 cookie, u32 len, name of len bytes with NULs at its end
//! ```

/// Bytes of an event without its name.
const HEADER_BYTES: usize = 16;

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event<'a> {
    pub wd: i32,
    pub mask: u32,
    pub cookie: u32,
    /// Empty: the watched directory itself.
    pub name: &'a [u8],
}

/// The buffer does not hold what the kernel promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed inotify event")]
pub(super) struct BadEvent;

/// Iterates over the events of one read(2); ends after the first error.
pub(super) struct Events<'a> {
    rest: &'a [u8],
}

impl<'a> Events<'a> {
    pub fn new(buf: &'a [u8]) -> Self {
        Events { rest: buf }
    }
}

impl<'a> Iterator for Events<'a> {
    type Item = Result<Event<'a>, BadEvent>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let buf = std::mem::take(&mut self.rest);
        let Some((head, tail)) = buf.split_first_chunk::<HEADER_BYTES>() else {
            return Some(Err(BadEvent));
        };
        let word =
            |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let len = word(12) as usize;
        if len > tail.len() {
            return Some(Err(BadEvent));
        }
        let (name, rest) = tail.split_at(len);
        self.rest = rest;
        let end = name.iter().position(|&c| c == 0).unwrap_or(len);
        Some(Ok(Event {
            wd: word(0) as i32,
            mask: word(4),
            cookie: word(8),
            name: &name[..end],
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(wd: i32, mask: u32, name: &[u8]) -> Vec<u8> {
        let mut e = wd.to_ne_bytes().to_vec();
        e.extend_from_slice(&mask.to_ne_bytes());
        e.extend_from_slice(&9u32.to_ne_bytes());
        e.extend_from_slice(&(name.len() as u32).to_ne_bytes());
        e.extend_from_slice(name);
        e
    }

    #[test]
    fn events_are_read_and_cuts_noticed() {
        let buf = [raw(1, 2, b"a\xff\0\0"), raw(-1, 0x4000, b"")].concat();
        let all: Vec<_> = Events::new(&buf).map(Result::unwrap).collect();
        assert_eq!(all.len(), 2);
        assert_eq!(
            (all[0].wd, all[0].name, all[0].cookie),
            (1, &b"a\xff"[..], 9)
        );
        assert_eq!((all[1].wd, all[1].name), (-1, &b""[..]));
        for cut in 1..buf.len() {
            let bad = Events::new(&buf[..cut]).filter(Result::is_err).count();
            assert_eq!(bad, usize::from(cut != 20), "cut at {cut}");
        }
    }

    #[test]
    fn hostile_lengths_end_the_iteration() {
        let mut buf = raw(1, 2, b"a\0");
        buf[12..16].copy_from_slice(&u32::MAX.to_ne_bytes());
        let all: Vec<_> = Events::new(&buf).collect();
        assert_eq!(all, [Err(BadEvent)]);
    }
}
