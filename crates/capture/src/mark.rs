//! How far a queue has to be read for everything that was in it at some moment to have been delivered.
//!
//! A queue that is filled as fast as it is read is never seen empty. So when a read stops at its bound, the length of the queue
//! is noted once; when as much has been read, all that was there at that moment has been. Asking for the length walks
//! the queue in the kernel, so it is done once per such stretch and never for a queue that is seen empty.

/// See the module. Units are those in which the kernel tells the length.
#[derive(Debug, Default)]
pub(crate) struct Mark {
    read: u64,
    until: Option<u64>,
}

impl Mark {
    /// This much has been taken out.
    pub fn read(&mut self, units: u64) {
        self.read += units;
    }

    /// Sets the mark behind what waits now, unless one is set.
    pub fn set<E>(&mut self, waiting: impl FnOnce() -> Result<u64, E>) -> Result<(), E> {
        if self.until.is_none() {
            self.until = Some(self.read + waiting()?);
        }
        Ok(())
    }

    /// The queue was seen empty.
    pub fn clear(&mut self) {
        self.until = None;
    }

    /// Has the mark been come up to? Takes it away if so.
    pub fn is_reached(&mut self) -> bool {
        let reached = self.until.is_some_and(|until| self.read >= until);
        if reached {
            self.until = None;
        }
        reached
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_reached_when_all_that_waited_has_been_read_and_is_not_moved_meanwhile() {
        let mut m = Mark::default();
        m.read(10);
        assert!(!m.is_reached(), "none is set");
        m.set(|| Ok::<_, ()>(5)).unwrap();
        m.set(|| Ok::<_, ()>(1000)).unwrap();
        m.read(4);
        assert!(!m.is_reached());
        m.read(1);
        assert!(m.is_reached());
        assert!(!m.is_reached(), "once");
        assert_eq!(m.set(|| Err("no")), Err("no"));
        assert!(!m.is_reached());
    }
}
