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
    /// Minor faults of this process so far: proc_pid_stat(5), the tenth field.
    fn faults() -> u64 {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let behind_name = stat.rsplit_once(')').unwrap().1;
        behind_name
            .split_whitespace()
            .nth(7)
            .unwrap()
            .parse()
            .unwrap()
    }

    /// Blocks of a megabyte that come and go together, as records do.
    fn records() {
        let blocks: Vec<Vec<u8>> = (1..=8).map(|i| vec![i; 1 << 20]).collect();
        assert!(blocks.iter().all(|b| b[b.len() - 1] == b[0]));
    }

    #[test]
    fn pages_of_records_that_are_gone_are_used_again() {
        assert!(super::keep_freed());
        records();
        let before = faults();
        (0..50).for_each(|_| records());
        let each = (faults() - before) / 50;
        // 8 MiB are 2,048 pages. Without it nearly all of them are new each time.
        assert!(each < 300, "{each} pages were asked for anew each time");
    }
}
