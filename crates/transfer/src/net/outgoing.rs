//! Bytes on their way into a stream. Made for `select!`: dropping the future of [`Outgoing::progress`] loses nothing.

use crate::session::UNCOPIED_BYTES;
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Output and what is known of its progress.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// What is written next.
    bytes: BytesMut,
    /// What is written after it.
    rest: VecDeque<Chunk>,
    unflushed: bool,
    moved: Duration,
}

/// Bytes that are not copied.
#[derive(Debug)]
enum Chunk {
    Own(BytesMut),
    Shared(Bytes),
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        match self {
            Chunk::Own(bytes) => bytes,
            Chunk::Shared(bytes) => bytes,
        }
    }

    fn advance(&mut self, n: usize) {
        match self {
            Chunk::Own(bytes) => bytes.advance(n),
            Chunk::Shared(bytes) => bytes.advance(n),
        }
    }
}

impl Outgoing {
    pub(super) fn new(now: Duration) -> Self {
        Outgoing {
            bytes: BytesMut::new(),
            rest: VecDeque::new(),
            unflushed: false,
            moved: now,
        }
    }

    /// Where little may be appended that is to be written after all that is there.
    pub(super) fn end(&mut self) -> &mut BytesMut {
        if self.rest.is_empty() {
            return &mut self.bytes;
        }
        if let Some(Chunk::Shared(_)) = self.rest.back() {
            self.rest.push_back(Chunk::Own(BytesMut::new()));
        }
        match self.rest.back_mut() {
            Some(Chunk::Own(bytes)) => bytes,
            _ => unreachable!("pushed above"),
        }
    }

    /// Adds what is to be written after all that is there. Much is not copied.
    pub(super) fn push(&mut self, bytes: BytesMut) {
        if bytes.is_empty() {
            return;
        }
        if self.is_empty() {
            self.bytes = bytes;
        } else if bytes.len() < UNCOPIED_BYTES {
            self.end().extend_from_slice(&bytes);
        } else {
            self.rest.push_back(Chunk::Own(bytes));
        }
    }

    /// As [`Outgoing::push`], without a copy in any case.
    pub(super) fn push_shared(&mut self, bytes: Bytes) {
        self.rest.push_back(Chunk::Shared(bytes));
    }

    /// Bytes to be written.
    pub(super) fn len(&self) -> usize {
        let rest = self.rest.iter().map(|c| c.bytes().len());
        self.bytes.len() + rest.sum::<usize>()
    }

    /// Is there nothing to be written?
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Is there anything to write or flush?
    pub(super) fn is_busy(&self) -> bool {
        !self.is_empty() || self.unflushed
    }

    /// Writes up to `max` bytes, or flushes if all are written. Returns the bytes written.
    pub(super) async fn progress<W: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut W,
        max: usize,
    ) -> io::Result<usize> {
        while self.rest.front().is_some_and(|c| c.bytes().is_empty()) {
            self.rest.pop_front();
        }
        let next = match self.bytes.is_empty() {
            true => self.rest.front().map_or(&[][..], Chunk::bytes),
            false => &self.bytes,
        };
        if next.is_empty() {
            stream.flush().await?;
            self.unflushed = false;
            return Ok(0);
        }
        let n = stream.write(&next[..next.len().min(max)]).await?;
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        if !self.bytes.is_empty() {
            self.bytes.advance(n);
        } else if let Some(chunk) = self.rest.front_mut() {
            chunk.advance(n);
        }
        self.unflushed = true;
        Ok(n)
    }

    /// Progress was made, or there was nothing to do.
    pub(super) fn moved(&mut self, now: Duration) {
        self.moved = now;
    }

    /// When the last progress was made.
    pub(super) fn last_moved(&self) -> Duration {
        self.moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that `out` writes, `max` bytes at once at most.
    fn written(mut out: Outgoing, max: usize) -> Vec<u8> {
        let mut all = Vec::new();
        let run = async {
            while out.is_busy() {
                let before = out.len();
                let n = out.progress(&mut all, max).await.unwrap();
                assert!(n <= max && out.len() == before - n);
            }
        };
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(run);
        all
    }

    #[test]
    fn bytes_go_out_in_the_order_in_which_they_were_added() {
        let large = |b: u8| vec![b; UNCOPIED_BYTES + 1];
        for max in [7, UNCOPIED_BYTES, usize::MAX] {
            let mut out = Outgoing::new(Duration::ZERO);
            assert!(!out.is_busy());
            let mut expected = Vec::new();
            for i in 0..20u8 {
                let bytes = match i % 3 {
                    0 => large(i),
                    _ => vec![i; 3],
                };
                expected.extend_from_slice(&bytes);
                match i % 5 {
                    0 | 1 => out.push(BytesMut::from(&bytes[..])),
                    2 => out.end().extend_from_slice(&bytes),
                    _ => out.push_shared(bytes.into()),
                }
                // Room that nobody uses, and nothing at all.
                out.end();
                out.push(BytesMut::new());
            }
            assert_eq!(out.len(), expected.len());
            assert!(written(out, max) == expected, "{max}");
        }
    }
}
