//! Work for other threads, whose results come out in the order in which it went in. While the oldest is not begun, who waits for it
//! does it himself.

use crossbeam_channel::{Receiver, Sender};
use std::collections::VecDeque;

/// Threads at most; one processor is left to whoever hands out.
const THREADS: usize = 3;

type Job = Box<dyn FnOnce() + Send>;

/// The threads, from the first piece of work on; they end when this is dropped, with what they have begun.
pub(super) struct InOrder<T> {
    /// What the threads are called.
    name: &'static str,
    jobs: Option<Jobs>,
    /// What went in and has not come out, the oldest first.
    under_way: VecDeque<Receiver<T>>,
}

struct Jobs {
    put: Sender<Job>,
    /// For jobs that this thread takes back.
    take: Receiver<Job>,
}

impl Jobs {
    fn start(name: &str) -> Jobs {
        let (put, take) = crossbeam_channel::unbounded::<Job>();
        let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
        for _ in 0..(processors - 1).clamp(1, THREADS) {
            let jobs = take.clone();
            let thread = std::thread::Builder::new().name(name.into());
            if let Err(e) = thread.spawn(move || jobs.into_iter().for_each(|job| job())) {
                tracing::debug!("{name}: no thread: {e}");
            }
        }
        Jobs { put, take }
    }
}

impl<T> Drop for InOrder<T> {
    fn drop(&mut self) {
        if let Some(jobs) = &self.jobs {
            jobs.take.try_iter().for_each(drop);
        }
    }
}

impl<T: Send + 'static> InOrder<T> {
    pub(super) fn new(name: &'static str) -> Self {
        InOrder {
            name,
            jobs: None,
            under_way: VecDeque::new(),
        }
    }

    /// How much went in and has not come out.
    pub(super) fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// Takes work in.
    pub(super) fn put(&mut self, work: impl FnOnce() -> T + Send + 'static) {
        let jobs = self.jobs.get_or_insert_with(|| Jobs::start(self.name));
        let (done, result) = crossbeam_channel::bounded(1);
        let job: Job = Box::new(move || {
            // Nobody waits any more: it was dropped.
            let _ = done.send(work());
        });
        if let Err(refused) = jobs.put.send(job) {
            refused.into_inner()();
        }
        self.under_way.push_back(result);
    }

    /// The oldest result, if it is there.
    pub(super) fn ready(&mut self) -> Option<T> {
        let result = self.under_way.front()?.try_recv().ok()?;
        self.under_way.pop_front();
        Some(result)
    }

    /// The oldest result; waits for it. While there is work that no thread has begun with, this one does it.
    pub(super) fn next(&mut self) -> Option<T> {
        let oldest = self.under_way.pop_front()?;
        loop {
            if let Ok(result) = oldest.try_recv() {
                return Some(result);
            }
            match self.jobs.as_ref().map(|j| j.take.try_recv()) {
                Some(Ok(job)) => job(),
                _ => return Some(oldest.recv().expect("all work is done")),
            }
        }
    }
}
