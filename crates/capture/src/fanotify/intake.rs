//! Takes events out of the kernel's queue in good time.
//!
//! The queue is not only memory: each new event is compared with up to 128 that wait in its chain, of which there are 128
//! (`fanotify_merge` in the kernel's fs/notify/fanotify/fanotify.c), in the application's own time. Behind a reader that works on what
//! it has, some ten thousand events wait, and each system call of the application pays for a hundred cold cache lines. So while
//! there is much to do a helper thread takes what has come every few milliseconds. It sleeps whenever the reader itself waits.

use super::parse;
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

/// Room for one read(2) at least, and by how much it is made larger.
const ROOM_BYTES: usize = 64 << 10;
const MORE_BYTES: usize = 512 << 10;
/// Bytes that wait here at most, about 70,000 events; what comes then stays in the kernel's queue.
const WAITING_BYTES: usize = 8 << 20;
/// The helper is called when this much was found at once, about a hundred events.
const MUCH_BYTES: usize = 16 << 10;
/// What is kept of the memory when all is read.
const KEPT_BYTES: usize = 1 << 20;
/// How often the helper looks, and after how many looks at an empty queue it sleeps.
const STEP: Duration = Duration::from_millis(2);
const IDLE_STEPS: u32 = 10;

/// FIONREAD counts this much for each event in the queue: its fixed part, without the handles and names behind it
/// (`fanotify_ioctl` in the kernel's fs/notify/fanotify/fanotify_user.c).
pub(super) const EVENT_UNIT: u64 = size_of::<libc::fanotify_event_metadata>() as u64;

/// The notification group's descriptor, and what was read from it.
pub(super) struct Intake {
    shared: Arc<Shared>,
    helper: Option<JoinHandle<()>>,
}

struct Shared {
    fd: OwnedFd,
    /// See [`IDLE_STEPS`].
    idle_steps: u32,
    state: Mutex<State>,
    called: Condvar,
}

#[derive(Default)]
struct State {
    /// Whole events, in the kernel's order.
    waiting: Vec<u8>,
    /// What the helper met, for the reader.
    error: Option<Errno>,
    /// The helper is at work.
    helps: bool,
    stop: bool,
}

impl Intake {
    /// `fd` does not block.
    pub fn new(fd: OwnedFd) -> Self {
        Self::with(fd, IDLE_STEPS)
    }

    fn with(fd: OwnedFd, idle_steps: u32) -> Self {
        Intake {
            shared: Arc::new(Shared {
                fd,
                idle_steps,
                state: Mutex::default(),
                called: Condvar::new(),
            }),
            helper: None,
        }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.shared.fd.as_fd()
    }

    /// Puts all that waits, here and in the kernel, in the place of what is in `buf`: whole events, in order. Nothing: the
    /// queue was seen empty.
    pub fn take(&mut self, buf: &mut Vec<u8>) -> io::Result<()> {
        buf.clear();
        let mut state = self.shared.lock();
        if let Some(e) = state.error {
            return Err(e.into());
        }
        self.shared.pull(&mut state.waiting)?;
        if state.waiting.is_empty() {
            buf.shrink_to(KEPT_BYTES);
            state.waiting.shrink_to(KEPT_BYTES);
            return Ok(());
        }
        std::mem::swap(buf, &mut state.waiting);
        let call = buf.len() >= MUCH_BYTES && !state.helps;
        state.helps |= call;
        drop(state);
        if call {
            self.call();
        }
        Ok(())
    }

    /// The reader is about to wait for the descriptor, alone. `false`: there is something here already.
    pub fn rest(&self) -> bool {
        let mut state = self.shared.lock();
        state.helps = false;
        state.waiting.is_empty() && state.error.is_none()
    }

    /// How many events wait here and in the kernel, times [`EVENT_UNIT`].
    pub fn waiting(&self) -> io::Result<u64> {
        let state = self.shared.lock();
        let there = rustix::io::ioctl_fionread(&self.shared.fd)?;
        Ok(there + EVENT_UNIT * parse::count(&state.waiting))
    }

    fn call(&mut self) {
        if self.helper.is_some() {
            self.shared.called.notify_one();
            return;
        }
        let shared = self.shared.clone();
        let helper = std::thread::Builder::new().name("fanotify".into());
        match helper.spawn(move || shared.help()) {
            Ok(thread) => self.helper = Some(thread),
            // The reader reads all the same.
            Err(e) => tracing::debug!("no thread to empty the queue of fanotify: {e}"),
        }
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.called.notify_one();
        if let Some(Err(_)) = self.helper.take().map(JoinHandle::join) {
            tracing::error!("the thread that empties the queue of fanotify has panicked");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Reads until the queue is empty or there is enough.
    fn pull(&self, waiting: &mut Vec<u8>) -> Result<(), Errno> {
        while waiting.len() < WAITING_BYTES {
            if waiting.capacity() - waiting.len() < ROOM_BYTES {
                waiting.reserve_exact(MORE_BYTES);
            }
            match rustix::io::read(&self.fd, spare_capacity(waiting)) {
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn help(&self) {
        let mut state = self.lock();
        let mut idle = 0;
        while !state.stop {
            if !state.helps {
                idle = 0;
                state = (self.called.wait(state)).unwrap_or_else(|e| e.into_inner());
                continue;
            }
            let slept = self.called.wait_timeout(state, STEP);
            state = slept.unwrap_or_else(|e| e.into_inner()).0;
            if !state.helps || state.stop {
                continue;
            }
            let before = state.waiting.len();
            if let Err(e) = self.pull(&mut state.waiting) {
                state.error = Some(e);
                state.helps = false;
                continue;
            }
            let nothing = state.waiting.len() == before;
            idle = if nothing { idle + 1 } else { 0 };
            // When it is full there is nothing to be done until the reader takes it, and calls.
            state.helps = idle < self.idle_steps && state.waiting.len() < WAITING_BYTES;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;
    use std::time::Instant;

    const NEVER: u32 = u32::MAX;
    const MOST_BYTES: usize = WAITING_BYTES + ROOM_BYTES + MORE_BYTES;

    /// Long enough for the helper to do what it must not.
    fn some_steps() {
        std::thread::sleep(10 * STEP);
    }

    /// A pipe in the place of the kernel's queue.
    fn intake(idle_steps: u32) -> (Intake, File) {
        let flags = rustix::pipe::PipeFlags::NONBLOCK | rustix::pipe::PipeFlags::CLOEXEC;
        let (read, write) = rustix::pipe::pipe_with(flags).unwrap();
        (Intake::with(read, idle_steps), File::from(write))
    }

    /// The `n`th event: nothing but a head.
    fn event(n: u32) -> Vec<u8> {
        let mut e = (EVENT_UNIT as u32).to_ne_bytes().to_vec();
        e.extend_from_slice(&n.to_ne_bytes());
        e.resize(EVENT_UNIT as usize, 0);
        e
    }

    fn events(range: std::ops::Range<u32>) -> Vec<u8> {
        range.flat_map(event).collect()
    }

    fn until(what: &str, is: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !is() {
            assert!(Instant::now() < end, "{what}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn while_there_is_much_the_queue_is_emptied_without_the_reader() {
        let (mut intake, mut queue) = intake(NEVER);
        let mut buf = Vec::new();
        intake.take(&mut buf).unwrap();
        assert!(buf.is_empty() && intake.helper.is_none());
        queue.write_all(&events(0..10)).unwrap();
        intake.take(&mut buf).unwrap();
        assert_eq!(buf, events(0..10));
        assert!(intake.helper.is_none(), "little is no reason to help");
        queue.write_all(&events(10..1000)).unwrap();
        intake.take(&mut buf).unwrap();
        assert_eq!(buf, events(10..1000));
        for turn in 1..20 {
            let more = events(turn * 1000..turn * 1000 + 100);
            queue.write_all(&more).unwrap();
            assert_eq!(intake.waiting().unwrap(), 100 * EVENT_UNIT);
            if turn % 2 == 0 {
                let queued = || rustix::io::ioctl_fionread(intake.fd()).unwrap();
                until("the helper takes them", || queued() == 0);
                assert_eq!(intake.waiting().unwrap(), 100 * EVENT_UNIT);
            }
            intake.take(&mut buf).unwrap();
            assert_eq!(buf, more, "turn {turn}");
        }
    }

    #[test]
    fn the_helper_sleeps_when_nothing_comes_and_while_the_reader_waits() {
        let (mut intake, mut queue) = intake(IDLE_STEPS);
        let mut buf = Vec::new();
        let much = events(0..1000);
        for round in 0..3 {
            queue.write_all(&much).unwrap();
            intake.take(&mut buf).unwrap();
            let helps = || intake.shared.lock().helps;
            match round {
                0 => assert!(intake.rest() && !helps()),
                _ => until("the helper sleeps", || !helps()),
            }
            queue.write_all(&event(7)).unwrap();
            intake.take(&mut buf).unwrap();
            assert_eq!(buf, event(7));
            assert!(!intake.shared.lock().helps);
        }
        let (mut intake, mut queue) = self::intake(NEVER);
        queue.write_all(&much).unwrap();
        intake.take(&mut buf).unwrap();
        queue.write_all(&event(8)).unwrap();
        let waits = || !intake.shared.lock().waiting.is_empty();
        until("the helper takes one", waits);
        assert!(!intake.rest(), "nobody would be woken for it");
        intake.take(&mut buf).unwrap();
        assert_eq!(buf, event(8));
        assert!(intake.rest());
        // The reader would never wake up for what somebody else took.
        queue.write_all(&event(9)).unwrap();
        some_steps();
        let queued = rustix::io::ioctl_fionread(intake.fd()).unwrap();
        assert_eq!(queued, EVENT_UNIT);
    }

    #[test]
    fn what_waits_is_bounded() {
        let (mut intake, mut queue) = intake(NEVER);
        let mut buf = Vec::new();
        let all = events(0..500_000);
        let mut sent = 1000 * EVENT_UNIT as usize;
        queue.write_all(&all[..sent]).unwrap();
        intake.take(&mut buf).unwrap();
        assert_eq!(buf.len(), sent);
        let end = Instant::now() + Duration::from_secs(60);
        // As long as somebody takes them.
        loop {
            let full = intake.shared.lock().waiting.len() >= WAITING_BYTES;
            match queue.write(&all[sent..]) {
                Ok(n) => sent += n,
                Err(_) if full => break,
                Err(_) => std::thread::sleep(STEP / 4),
            }
            assert!(Instant::now() < end && sent < all.len());
        }
        some_steps();
        assert!(queue.write(&all[sent..]).is_err(), "nobody takes more");
        let state = intake.shared.lock();
        assert!(!state.helps && state.waiting.len() <= MOST_BYTES);
        drop(state);
        let mut got = buf.clone();
        while got.len() < sent {
            intake.take(&mut buf).unwrap();
            assert!(buf.len() <= MOST_BYTES);
            got.extend_from_slice(&buf);
        }
        assert!(got == all[..sent], "in order, each once");
    }
}
