//! Bytes on their way into a stream. Made for `select!`: dropping the future of [`Outgoing::progress`] loses nothing.

use bytes::{Buf, BytesMut};
use std::collections::VecDeque;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Less is appended to what is there.
const COPIED_BYTES: usize = 64 << 10;

/// Output and what is known of its progress.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// What is written next.
    pub(super) bytes: BytesMut,
    /// What is written after it; nothing if that is empty.
    rest: VecDeque<BytesMut>,
    unflushed: bool,
    moved: Duration,
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

    /// Adds what is to be written after all that is there. Much is not copied.
    pub(super) fn push(&mut self, bytes: BytesMut) {
        if self.bytes.is_empty() {
            self.bytes = bytes;
            return;
        }
        let last = self.rest.back_mut().unwrap_or(&mut self.bytes);
        match bytes.len() {
            0 => {}
            n if n < COPIED_BYTES => last.extend_from_slice(&bytes),
            _ => self.rest.push_back(bytes),
        }
    }

    /// Bytes to be written.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() + self.rest.iter().map(BytesMut::len).sum::<usize>()
    }

    /// Is there anything to write or flush?
    pub(super) fn is_busy(&self) -> bool {
        !self.bytes.is_empty() || self.unflushed
    }

    /// Writes up to `max` bytes, or flushes if all are written. Returns the bytes written.
    pub(super) async fn progress<W: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut W,
        max: usize,
    ) -> io::Result<usize> {
        if self.bytes.is_empty() {
            stream.flush().await?;
            self.unflushed = false;
            return Ok(0);
        }
        let n = self.bytes.len().min(max);
        let n = stream.write(&self.bytes[..n]).await?;
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.bytes.advance(n);
        if self.bytes.is_empty()
            && let Some(next) = self.rest.pop_front()
        {
            self.bytes = next;
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
