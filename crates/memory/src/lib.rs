//! How the allocator treats memory that this process has freed. It holds nothing else, so that the `unsafe` which that takes is fenced in.
//! With another library than the GNU C library, all of this does nothing.

/// Freed memory at the end of a heap that stays with the process; there is a heap for each few threads.
const KEPT_BYTES: i32 = 16 << 20;
/// Requests from this size on have pages of their own, which are given back at once.
const OWN_PAGES_FROM_BYTES: i32 = 4 << 20;

/// Has the C library keep some of what is freed (mallopt(3)). Records of a megabyte come and go
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

/// Gives the kernel back what is free in all heaps, but for the end of each (malloc_trim(3)): for when there is nothing more to do for
/// a while. Takes a few milliseconds, in which others wait for memory.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: it gives back pages in which nothing is allocated.
        unsafe { libc::malloc_trim(0) };
    }
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

    /// Pages of this process that are in memory: proc_pid_statm(5), the second field.
    fn resident() -> u64 {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn pages_of_records_that_are_gone_are_used_again_and_given_back_when_asked_for() {
        assert!(super::keep_freed());
        records();
        let before = faults();
        (0..50).for_each(|_| records());
        let each = (faults() - before) / 50;
        // 8 MiB are 2,048 pages. Without it nearly all of them are new each time.
        assert!(each < 300, "{each} pages were asked for anew each time");
        // What is at the end of a heap stays.
        let (blocks, last) = (vec![vec![1u8; 1 << 20]; 8], vec![1u8; 1 << 20]);
        drop(blocks);
        let kept = resident();
        super::give_back();
        let left = resident();
        assert!(left + 1500 < kept, "{left} of {kept} pages are still there");
        drop(last);
    }
}
