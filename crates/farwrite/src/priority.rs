//! How much processor time this program leaves to others.

use rustix::process::{getpid, getpriority_process, getsid};

/// Lets the nice value that this program was started with count against the other sessions of the machine, too.
///
/// On a kernel with autogroups (the desktop's and Debian's default) a nice value ranks a process inside its own session only,
/// and every session gets the same share: a daemon that was started with `nice`, but in a session of its own, takes
/// as much from an application as without it. The session has a nice value of its own for that: sched(7), "The
/// autogroup feature". It is set if the session is ours alone, which is so if we lead it. A service of systemd with a
/// `CPUWeight=` is ranked by that instead.
pub(crate) fn count_against_other_sessions() {
    let leads = getsid(None).is_ok_and(|leader| leader == getpid());
    let nice = getpriority_process(None).unwrap_or(0);
    if !leads || nice <= 0 {
        return;
    }
    if let Err(e) = std::fs::write("/proc/self/autogroup", nice.to_string()) {
        tracing::debug!("the session's nice value stays as it is: {e}");
    }
}
