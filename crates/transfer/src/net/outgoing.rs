//! Bytes on their way into a stream. Made for `select!`: dropping the future of [`Outgoing::progress`] loses nothing.

use bytes::{Buf, BytesMut};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Output and what is known of its progress.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) bytes: BytesMut,
    unflushed: bool,
    moved: Duration,
}

impl Outgoing {
    pub(super) fn new(now: Duration) -> Self {
        Outgoing {
            bytes: BytesMut::new(),
            unflushed: false,
            moved: now,
        }
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
