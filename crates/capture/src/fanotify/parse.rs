//! Reads the records that fanotify writes (fanotify(7), "Reading fanotify events"). Nothing in the buffer is
//! trusted: every length is checked against what is there, unknown records are stepped over, and a buffer that
//! does not add up is an error, never a panic.
//!
//! ```text
//! event:  u32 event_len, u8 vers, u8, u16 metadata_len, u64 mask, i32 fd, i32 pid, then records up to event_len
//! record: u8 type, u8, u16 len, then for the FID types: 8 bytes fsid,
//!         u32 handle_bytes, i32 handle_type, handle, name with NUL and padding (the NAME types)
//! ```

use crate::sys::HANDLE_BYTES;

/// Bytes of `struct fanotify_event_metadata`.
const METADATA_BYTES: usize = 24;
/// Bytes of `struct fanotify_event_info_header`.
const HEADER_BYTES: usize = 4;
/// Offset of the handle's own bytes behind the record's header: fsid, handle_bytes, handle_type.
const HANDLE_AT: usize = 16;

/// The kernel's name for a file: filesystem, handle type, handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handle<'a> {
    /// fsid, length, type and handle as they stand in the record: the key for caches.
    pub key: &'a [u8],
}

impl<'a> Handle<'a> {
    pub fn fsid(&self) -> [u8; 8] {
        array(self.key, 0)
    }
    pub fn kind(&self) -> i32 {
        i32::from_ne_bytes(array(self.key, 12))
    }
    pub fn bytes(&self) -> &'a [u8] {
        &self.key[HANDLE_AT..]
    }
}

/// The key that [`Handle::key`] has for a handle from name_to_handle_at(2).
pub(super) fn handle_key(fsid: [u8; 8], kind: i32, handle: &[u8]) -> Box<[u8]> {
    let mut key = fsid.to_vec();
    key.extend_from_slice(&(handle.len() as u32).to_ne_bytes());
    key.extend_from_slice(&kind.to_ne_bytes());
    key.extend_from_slice(handle);
    key.into()
}

/// A directory and a name in it; `.` or no bytes: the directory itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub dir: Handle<'a>,
    pub name: &'a [u8],
}

/// One event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Event<'a> {
    pub mask: u64,
    pub pid: i32,
    /// Where it happened.
    pub entry: Option<Entry<'a>>,
    /// The name before a rename.
    pub old: Option<Entry<'a>>,
    /// The name after a rename.
    pub new: Option<Entry<'a>>,
    /// The file itself.
    pub target: Option<Handle<'a>>,
}

/// The buffer does not hold what the kernel promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed fanotify event: {0}")]
pub(super) struct BadEvent(&'static str);

/// Iterates over events; ends after the first error.
pub(super) struct Events<'a> {
    rest: &'a [u8],
}

impl<'a> Events<'a> {
    pub fn new(buf: &'a [u8]) -> Self {
        Events { rest: buf }
    }

    /// Bytes to come.
    pub fn left(&self) -> usize {
        self.rest.len()
    }
}

/// How many events there are, looking at nothing but their lengths; behind one that does not add up there is none.
pub(super) fn count(mut buf: &[u8]) -> u64 {
    let mut n = 0;
    while let Ok(len) = event_len(buf) {
        buf = &buf[len..];
        n += 1;
    }
    n
}

impl<'a> Iterator for Events<'a> {
    type Item = Result<Event<'a>, BadEvent>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let buf = std::mem::take(&mut self.rest);
        Some(event_len(buf).and_then(|len| {
            let (head, rest) = buf.split_at(len);
            self.rest = rest;
            event(head)
        }))
    }
}

fn event_len(buf: &[u8]) -> Result<usize, BadEvent> {
    if buf.len() < METADATA_BYTES {
        return Err(BadEvent("cut metadata"));
    }
    let len = u32::from_ne_bytes(array(buf, 0)) as usize;
    if len < METADATA_BYTES || len > buf.len() {
        return Err(BadEvent("event length"));
    }
    Ok(len)
}

fn event(b: &[u8]) -> Result<Event<'_>, BadEvent> {
    if b[4] != libc::FANOTIFY_METADATA_VERSION {
        return Err(BadEvent("metadata version"));
    }
    let meta_len = usize::from(u16::from_ne_bytes(array(b, 6)));
    if meta_len < METADATA_BYTES || meta_len > b.len() {
        return Err(BadEvent("metadata length"));
    }
    let mut ev = Event {
        mask: u64::from_ne_bytes(array(b, 8)),
        pid: i32::from_ne_bytes(array(b, 20)),
        ..Event::default()
    };
    let mut rest = &b[meta_len..];
    while !rest.is_empty() {
        if rest.len() < HEADER_BYTES {
            return Err(BadEvent("cut record header"));
        }
        let len = usize::from(u16::from_ne_bytes(array(rest, 2)));
        if len < HEADER_BYTES || len > rest.len() {
            return Err(BadEvent("record length"));
        }
        let (record, next) = rest.split_at(len);
        rest = next;
        info(record[0], &record[HEADER_BYTES..], &mut ev)?;
    }
    Ok(ev)
}

fn info<'a>(kind: u8, body: &'a [u8], ev: &mut Event<'a>) -> Result<(), BadEvent> {
    match kind {
        libc::FAN_EVENT_INFO_TYPE_FID => ev.target = fid(body)?.0,
        libc::FAN_EVENT_INFO_TYPE_DFID_NAME | libc::FAN_EVENT_INFO_TYPE_DFID => {
            ev.entry = entry(body)?;
        }
        libc::FAN_EVENT_INFO_TYPE_OLD_DFID_NAME => ev.old = entry(body)?,
        libc::FAN_EVENT_INFO_TYPE_NEW_DFID_NAME => ev.new = entry(body)?,
        _ => {}
    }
    Ok(())
}

fn entry(body: &[u8]) -> Result<Option<Entry<'_>>, BadEvent> {
    let (dir, tail) = fid(body)?;
    let end = tail.iter().position(|&c| c == 0).unwrap_or(tail.len());
    let name = &tail[..end];
    Ok(dir.map(|dir| Entry { dir, name }))
}

/// The handle and what follows it. No handle: the file has none (a filesystem error without an inode).
fn fid(body: &[u8]) -> Result<(Option<Handle<'_>>, &[u8]), BadEvent> {
    if body.len() < HANDLE_AT {
        return Err(BadEvent("cut file handle"));
    }
    let len = u32::from_ne_bytes(array(body, 8)) as usize;
    if len > HANDLE_BYTES || len > body.len() - HANDLE_AT {
        return Err(BadEvent("file handle length"));
    }
    let (key, tail) = body.split_at(HANDLE_AT + len);
    Ok(((len > 0).then_some(Handle { key }), tail))
}

/// `N` bytes at `at`; the caller has checked that they are there.
fn array<const N: usize>(b: &[u8], at: usize) -> [u8; N] {
    let mut a = [0; N];
    a.copy_from_slice(&b[at..at + N]);
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, handle: &[u8], name: &[u8]) -> Vec<u8> {
        let mut body = handle_key([7; 8], 1, handle).to_vec();
        body.extend_from_slice(name);
        let mut r = vec![kind, 0];
        r.extend_from_slice(&((body.len() + 4) as u16).to_ne_bytes());
        r.extend_from_slice(&body);
        r
    }

    fn raw_event(mask: u64, records: &[Vec<u8>]) -> Vec<u8> {
        let tail = records.concat();
        let mut e = ((24 + tail.len()) as u32).to_ne_bytes().to_vec();
        e.extend_from_slice(&[3, 0]);
        e.extend_from_slice(&24u16.to_ne_bytes());
        e.extend_from_slice(&mask.to_ne_bytes());
        e.extend_from_slice(&(-1i32).to_ne_bytes());
        e.extend_from_slice(&42i32.to_ne_bytes());
        e.extend_from_slice(&tail);
        e
    }

    fn sample() -> Vec<u8> {
        let mut buf = raw_event(
            libc::FAN_CREATE,
            &[
                record(2, b"dirhandl", b"a\xff\0\0"),
                record(1, b"file", b""),
            ],
        );
        buf.extend(raw_event(
            libc::FAN_RENAME,
            &[
                record(10, b"olddir", b"o\0"),
                record(99, b"unknown!", b"??"),
                record(12, b"newdir", b"n"),
            ],
        ));
        buf.extend(raw_event(libc::FAN_Q_OVERFLOW, &[]));
        buf
    }

    #[test]
    fn events_and_their_records_are_read() {
        let buf = sample();
        let all: Vec<_> = Events::new(&buf).map(Result::unwrap).collect();
        assert_eq!(all.len(), 3);
        let e = all[0].entry.unwrap();
        assert_eq!((e.name, e.dir.bytes()), (&b"a\xff"[..], &b"dirhandl"[..]));
        assert_eq!((e.dir.fsid(), e.dir.kind()), ([7; 8], 1));
        assert_eq!(all[0].target.unwrap().bytes(), b"file");
        assert_eq!(all[0].pid, 42);
        assert_eq!(all[1].old.unwrap().name, b"o");
        assert_eq!(all[1].new.unwrap().name, b"n");
        assert_eq!(all[2].mask, libc::FAN_Q_OVERFLOW);
        assert_eq!(count(&buf), 3);
        assert_eq!(count(&buf[..buf.len() - 1]), 2);
        let mut some = Events::new(&buf);
        some.next();
        assert_eq!(count(&buf[buf.len() - some.left()..]), 2);
    }

    #[test]
    fn a_cut_buffer_is_an_error_never_a_panic() {
        let buf = sample();
        let whole: Vec<usize> = Events::new(&buf)
            .scan(0, |at, _| {
                *at += u32::from_ne_bytes(array(&buf, *at)) as usize;
                Some(*at)
            })
            .collect();
        for cut in 0..buf.len() {
            let bad = Events::new(&buf[..cut]).filter(Result::is_err).count();
            let clean = cut == 0 || whole.contains(&cut);
            assert_eq!(bad, usize::from(!clean), "cut at {cut}");
        }
    }

    #[test]
    fn garbage_is_survived_and_always_ends() {
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let good = sample();
        let (mut errors, mut fine) = (0, 0);
        for round in 0..20_000 {
            let mut buf = if round % 2 == 0 {
                good.clone()
            } else {
                (0..next() % 200).map(|_| next() as u8).collect()
            };
            for _ in 0..next() % 6 {
                if !buf.is_empty() {
                    let at = next() as usize % buf.len();
                    buf[at] = next() as u8;
                }
            }
            for ev in Events::new(&buf) {
                match ev {
                    Err(_) => errors += 1,
                    Ok(ev) => {
                        fine += 1;
                        for e in [ev.entry, ev.old, ev.new].into_iter().flatten() {
                            assert!(e.dir.bytes().len() <= HANDLE_BYTES);
                            assert!(!e.name.contains(&0));
                        }
                    }
                }
            }
        }
        assert!(
            errors > 1000 && fine > 1000,
            "{errors} errors, {fine} events"
        );
    }
}
