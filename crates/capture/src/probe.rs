//! What this machine allows: for the doctor.

use crate::{
    FanotifySource, InotifySource, SensorError, SensorKind, SensorOptions, WatchRoot, fanotify,
    kmod,
};
use farwrite_core::BytePath;

/// What is known about one sensor on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SensorProbe {
    /// Which.
    pub kind: SensorKind,
    /// Can be opened now, by this process.
    pub available: bool,
    /// What it sees, or what is missing.
    pub why: String,
    /// What to do about it; empty if nothing is to be done.
    pub remedy: String,
    /// The kernel's limits that concern it: sysctl name and value.
    pub limits: Vec<(String, u64)>,
}

/// Tries every sensor, best first. Leaves nothing behind.
pub fn probe() -> Vec<SensorProbe> {
    vec![
        probe_kmod(),
        probe_ebpf(),
        probe_fanotify(),
        probe_inotify(),
        probe_scan(),
    ]
}

fn probe_ebpf() -> SensorProbe {
    #[cfg(feature = "ebpf")]
    let tried = crate::EbpfSource::attempt();
    #[cfg(not(feature = "ebpf"))]
    let tried = Err(SensorError::without_ebpf());
    result(
        SensorKind::Ebpf,
        tried,
        "every operation with exact byte ranges and mapped stores, on ext4, xfs, btrfs and tmpfs; goes on while \
         the daemon is away",
        Vec::new(),
    )
}

fn probe_kmod() -> SensorProbe {
    let sees = "exact ranges and stores through mappings, also while the daemon is away";
    match kmod::attempt() {
        Ok(used) => result(
            SensorKind::Kmod,
            Ok(()),
            &format!("{sees}{used}"),
            Vec::new(),
        ),
        Err(e) => result(SensorKind::Kmod, Err(e), sees, Vec::new()),
    }
}

fn probe_fanotify() -> SensorProbe {
    let root = WatchRoot::lookup(BytePath::root());
    let tried = root.and_then(|r| {
        // The group alone says whether the kernel can; the mark and the handles, on `/`, whether we may. `/` may be
        // on a filesystem that has no handles (an overlay) while the roots are on one that does.
        let _group = fanotify::init(false)?;
        match FanotifySource::open(&[r], &SensorOptions::default()) {
            Ok(_) | Err(SensorError::Mark { .. }) => Ok(()),
            Err(e) => Err(e),
        }
    });
    let limits = ["max_queued_events", "max_user_groups", "max_user_marks"];
    result(
        SensorKind::Fanotify,
        tried,
        "every named operation of whole filesystems, without ranges",
        limits.map(|l| ("fanotify", l)).to_vec(),
    )
}

fn probe_inotify() -> SensorProbe {
    let none = SensorOptions {
        max_watches: Some(0),
        ..SensorOptions::default()
    };
    let tried = WatchRoot::lookup(BytePath::root())
        .and_then(|r| InotifySource::open(&[r], &none))
        .map(drop);
    let limits = [
        "max_queued_events",
        "max_user_instances",
        "max_user_watches",
    ];
    result(
        SensorKind::Inotify,
        tried,
        "every named operation of watched directories, one watch per directory",
        limits.map(|l| ("inotify", l)).to_vec(),
    )
}

fn probe_scan() -> SensorProbe {
    result(
        SensorKind::Scan,
        Ok(()),
        "whatever a comparison at intervals finds",
        Vec::new(),
    )
}

fn result(
    kind: SensorKind,
    tried: Result<(), SensorError>,
    sees: &str,
    limits: Vec<(&str, &str)>,
) -> SensorProbe {
    let (available, why, remedy) = match tried {
        Ok(()) => (true, sees.to_string(), String::new()),
        Err(SensorError::Unavailable { why, remedy, .. }) => (false, why, remedy),
        Err(e) => (false, e.to_string(), String::new()),
    };
    let limits = limits.into_iter().filter_map(|(family, name)| {
        let value = std::fs::read_to_string(format!("/proc/sys/fs/{family}/{name}")).ok()?;
        Some((format!("fs.{family}.{name}"), value.trim().parse().ok()?))
    });
    SensorProbe {
        kind,
        available,
        why,
        remedy,
        limits: limits.collect(),
    }
}
