//! Checks of the machine as a whole: kernel, privileges, sensors, clock.

use super::Check;
use farwrite_capture::SensorProbe;
use std::time::{Duration, SystemTime};

/// Bits of `CapEff` in proc(5), from capabilities(7).
const CAP_DAC_READ_SEARCH: u32 = 2;
const CAP_SYS_ADMIN: u32 = 21;
/// The sensors and the mirror want openat2(2), statx(2) and FAN_REPORT_TARGET_FID at best.
const KERNEL_WANTED: (u32, u32) = (5, 17);
/// openat2(2) is needed for anything.
const KERNEL_NEEDED: (u32, u32) = (5, 6);
/// 2026-01-01: no clock that is right shows less.
const EARLIEST: Duration = Duration::from_secs(1_767_225_600);

/// All of them.
pub(super) fn checks() -> Vec<Check> {
    let mut all = vec![kernel(), privileges(), clock()];
    all.extend(farwrite_capture::probe().iter().map(sensor));
    all
}

fn kernel() -> Check {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let text = format!("Linux {release}");
    if let Err(e) = farwrite_fs::check_openat2() {
        return Check::fail("kernel", text, e.to_string());
    }
    match version(release) {
        None => Check::warn(
            "kernel",
            "its version cannot be read from /proc",
            "mount /proc",
        ),
        Some(v) if v < KERNEL_NEEDED => Check::fail(
            "kernel",
            text,
            format!(
                "Linux {}.{} or later is needed",
                KERNEL_NEEDED.0, KERNEL_NEEDED.1
            ),
        ),
        Some(v) if v < KERNEL_WANTED => {
            let wanted = format!(
                "with Linux {}.{} or later whole filesystems can be watched",
                KERNEL_WANTED.0, KERNEL_WANTED.1
            );
            Check::warn("kernel", text, wanted)
        }
        Some(_) => Check::ok("kernel", text),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn privileges() -> Check {
    let root = rustix::process::geteuid().is_root();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let effective = line
        .and_then(|l| u64::from_str_radix(l.trim(), 16).ok())
        .unwrap_or(0);
    let lacks = |bit: u32| effective & (1 << bit) == 0;
    let missing: Vec<&str> = [
        (CAP_SYS_ADMIN, "CAP_SYS_ADMIN"),
        (CAP_DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH"),
    ]
    .iter()
    .filter(|(bit, _)| lacks(*bit))
    .map(|(_, name)| *name)
    .collect();
    match (root, missing.is_empty()) {
        (true, true) => Check::ok("privileges", "root, with what the sensors need"),
        (false, true) => Check::ok("privileges", "not root, but with what the sensors need"),
        (true, false) => Check::warn(
            "privileges",
            format!(
                "root, but without {}: whole filesystems cannot be watched",
                missing.join(" and ")
            ),
            "give the container or the service these capabilities",
        ),
        (false, false) => Check::warn(
            "privileges",
            "not root: only files that this user may read are protected, one watch per directory",
            "run the daemon as root, or go on without",
        ),
    }
}

fn sensor(probe: &SensorProbe) -> Check {
    let what = format!("sensor {}", format!("{:?}", probe.kind).to_lowercase());
    let limits: Vec<String> = probe
        .limits
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let limits = if limits.is_empty() {
        String::new()
    } else {
        format!(" [{}]", limits.join(" "))
    };
    match probe.available {
        true => Check::ok(what, format!("{}{limits}", probe.why)),
        false => Check::warn(
            what,
            format!("not available: {}", probe.why),
            probe.remedy.clone(),
        ),
    }
}

fn clock() -> Check {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    if since < EARLIEST {
        let text = "the clock is years behind: versions would carry wrong times";
        return Check::fail(
            "clock",
            text,
            "set it, and run an NTP client (systemd-timesyncd, chrony)",
        );
    }
    Check::ok("clock", "plausible")
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn kernel_versions() {
        assert_eq!(version("6.12.57+deb13-amd64"), Some((6, 12)));
        assert_eq!(version("5.4-rc1"), Some((5, 4)));
        assert_eq!(version("x"), None);
    }
}
