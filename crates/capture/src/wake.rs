//! The waker (an eventfd), and the wait for "events or a wake".

use crate::SensorError;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Makes a blocked [`crate::ChangeSource::read`] return at once. Clones wake the same source; usable after the source is gone.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    pub(crate) fn new() -> Result<Self, SensorError> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| SensorError::Wake { source: e.into() })?;
        Ok(Waker(Arc::new(fd)))
    }

    /// Wakes. Wakes that come before the reader looks count as one.
    pub fn wake(&self) {
        // EAGAIN means that the counter is full: the wake is pending already.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }

    /// Takes a pending wake away; says whether there was one.
    fn take(&self) -> bool {
        rustix::io::read(&*self.0, &mut [0u8; 8]).is_ok()
    }

    /// Waits until `fd` (if any) is readable, a wake comes or `deadline` passes.
    pub(crate) fn wait(
        &self,
        fd: Option<BorrowedFd<'_>>,
        deadline: Instant,
    ) -> Result<Ready, Errno> {
        let mut fds = vec![PollFd::new(&*self.0, PollFlags::IN)];
        fds.extend(fd.map(|f| PollFd::from_borrowed_fd(f, PollFlags::IN)));
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match poll(&mut fds, Some(&timespec(left))) {
                Err(Errno::INTR) => continue,
                Err(e) => return Err(e),
                Ok(0) => return Ok(Ready::Timeout),
                Ok(_) if !fds[0].revents().is_empty() && self.take() => return Ok(Ready::Woken),
                Ok(_) => return Ok(Ready::Events),
            }
        }
    }
}

/// Does `fd` become readable within `timeout`?
pub(crate) fn readable(fd: BorrowedFd<'_>, timeout: Duration) -> Result<bool, Errno> {
    match poll(
        &mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)],
        Some(&timespec(timeout)),
    ) {
        Err(Errno::INTR) => Ok(true),
        other => other.map(|n| n > 0),
    }
}

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    Events,
    Woken,
    Timeout,
}

/// When `timeout` from now ends; a year at most, so that no addition overflows.
pub(crate) fn deadline(timeout: Duration) -> Instant {
    Instant::now() + timeout.min(Duration::from_secs(366 * 24 * 3600))
}

fn timespec(d: Duration) -> Timespec {
    Timespec {
        tv_sec: d.as_secs().min(i64::MAX as u64) as i64,
        tv_nsec: d.subsec_nanos().into(),
    }
}
