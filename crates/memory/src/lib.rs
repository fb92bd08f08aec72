//! How the allocator treats memory that this process has freed. It holds nothing else, so that the `unsafe` which that takes is fenced in.

/// Freed memory at the end of a heap that stays with the process; there is a heap for each few threads.
const KEPT_BYTES: i32 = 16 << 20;
/// Requests from this size on have pages of their own, which are given back at once.
const OWN_PAGES_FROM_BYTES: i32 = 4 << 20;

/// Has the GNU C library keep some of what is freed (mallopt(3); with another library this does nothing). Records of a megabyte come and go
/// all the time here: by its own rules they were given back to the kernel and asked for anew, and cleared page by page. False if it
/// would not. To be called before there are other threads.
pub fn keep_freed() -> bool {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let set = |parameter, value| {
            // SAFETY: it sets a number of the allocator's, and touches no memory of ours.
            unsafe { libc::mallopt(parameter, value) == 1 }
        };
        set(libc::M_TRIM_THRESHOLD, KEPT_BYTES) && set(libc::M_MMAP_THRESHOLD, OWN_PAGES_FROM_BYTES)
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    true
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_allocator_takes_it() {
        assert!(super::keep_freed());
        // What is between its own limit and ours comes from a heap, and still does what it should.
        let mut blocks: Vec<Vec<u8>> = (0..32).map(|i| vec![i; 1 << 20]).collect();
        blocks.retain(|b| b[0] % 2 == 0);
        assert!(blocks.iter().all(|b| b.iter().all(|x| *x == b[0])));
    }
}
