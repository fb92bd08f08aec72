//! The status of a vault in numbers: sources by name, no path and no name of a file.

use crate::openmetrics::Metrics;
use farwrite_control::VaultStatus;

/// The text for `/metrics`.
pub(super) fn text(s: &VaultStatus) -> String {
    let mut m = Metrics::default();
    m.family("info", "vault_build", "", "The daemon.");
    m.sample("vault_build_info", &[("version", &s.version)], 1);
    if let (Some(free), Some(total)) = (s.free_bytes, s.total_bytes) {
        m.gauge(
            "vault_free_bytes",
            "bytes",
            "Room on the vault's filesystem.",
            free,
        );
        m.gauge(
            "vault_size_bytes",
            "bytes",
            "Size of the vault's filesystem.",
            total,
        );
    }
    m.family("gauge", "vault_alert", "", "An alert that is on.");
    for a in &s.alerts {
        m.sample(
            "vault_alert",
            &[("alert", &a.kind), ("source", &a.about)],
            1,
        );
    }
    let age = |t: &Option<String>| {
        let t = t.as_deref()?.parse::<jiff::Timestamp>().ok()?;
        Some(
            jiff::Timestamp::now()
                .duration_since(t)
                .as_secs_f64()
                .max(0.0),
        )
    };
    let mut each = m.each("vault_source_", "source", &s.sources, |s| &s.name);
    each.gauge("connected", "", "The source has a session.", |s| {
        Some(u8::from(s.connected))
    });
    let help = "Time since its last batch was made.";
    each.gauge("last_backup_age_seconds", "seconds", help, |s| {
        age(&s.last_backup)
    });
    let help = "Age of its oldest change that is not durable here, as it says.";
    each.gauge("lag_seconds", "seconds", help, |s| {
        s.lag_ms.map(|ms| ms as f64 / 1e3)
    });
    let help = "Its changes that are not durable here, as it says.";
    each.gauge("pending_changes", "", help, |s| s.pending_changes);
    each.gauge(
        "mirror_behind_batches",
        "",
        "Batches that are not in the mirror yet.",
        |s| Some(s.behind_batches),
    );
    each.gauge("log_bytes", "bytes", "Segments.", |s| {
        Some(s.space.log_bytes)
    });
    each.gauge("catalog_bytes", "bytes", "Catalog.", |s| {
        Some(s.space.catalog_bytes)
    });
    each.gauge("mirror_bytes", "bytes", "Mirror, as counted last.", |s| {
        s.space.mirror_bytes
    });
    each.gauge("batches", "", "Batches in the log.", |s| Some(s.batches));
    each.gauge("versions", "", "Versions recorded.", |s| Some(s.versions));
    let help = "Batches of which something is known to be damaged.";
    each.gauge("damaged_batches", "", help, |s| Some(s.damaged));
    let help = "Something went wrong and has not been well since.";
    each.gauge("failed", "", help, |s| {
        Some(u8::from(s.failure.is_some() || s.error.is_some()))
    });
    let help = "The ransomware brake is set.";
    each.gauge("brake", "", help, |s| Some(u8::from(s.brake.is_some())));
    let help = "Time since the last verification ended.";
    each.gauge("verify_age_seconds", "seconds", help, |s| {
        age(&s.verified.as_ref().map(|v| v.ended.clone()))
    });
    let help = "Things that the last verification found wrong.";
    each.gauge("verify_findings", "", help, |s| {
        s.verified.as_ref().map(|v| v.findings)
    });
    m.finish()
}
