//! How much processor time this program leaves to others.

use rustix::process::getpriority_process;
use std::time::Duration;

/// What the kernel is too busy for is tried again so often, and after so long.
const TRIES: usize = 3;
const RETRY_AFTER: Duration = Duration::from_millis(120);

/// Lets the nice value that this program was started with count against the other sessions of the machine, too.
///
/// On a kernel with autogroups (the desktop's and Debian's default) a nice value ranks a process inside its own session only,
/// and every session gets the same share: a daemon that was started with `nice`, but in a session of its own, takes
/// as much from an application as without it. The session has a nice value of its own for that: sched(7), "The
/// autogroup feature". It is set if the session is ours alone, which is so if we lead it. A service of systemd with a
/// `CPUWeight=` is ranked by that instead.
pub(crate) fn count_against_other_sessions() {
    let nice = nice();
    if nice <= 0 || session() != Some(std::process::id()) {
        return;
    }
    let set = || std::fs::write("/proc/self/autogroup", nice.to_string());
    let mut done = set();
    for _ in 0..TRIES {
        // Without CAP_SYS_ADMIN one of these in a tenth of a second is taken, from the whole machine.
        match &done {
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                std::thread::sleep(RETRY_AFTER);
                done = set();
            }
            _ => break,
        }
    }
    if let Err(e) = done {
        tracing::debug!("the session's nice value stays as it is: {e}");
    }
}

/// Was the program started with `nice`, so that applications come first?
pub(crate) fn is_low() -> bool {
    nice() > 0
}

fn nice() -> i32 {
    getpriority_process(None).unwrap_or(0)
}

/// The session's leader, from proc(5): getsid(2) says 0 if that is outside of our namespace, which rustix takes for impossible.
fn session() -> Option<u32> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let (_, behind_the_name) = stat.rsplit_once(") ")?;
    behind_the_name.split(' ').nth(3)?.parse().ok()
}
