//! The status of a source in numbers. No path and no name of a file is in it: whoever may read numbers must not learn names.

use super::supervisor::Supervisor;
use crate::openmetrics::Metrics;
use farwrite_control::{State, Status};
use parking_lot::Mutex;
use std::time::Duration;

/// Upper bounds of the ack histogram, in seconds.
const BOUNDS: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0,
];

/// Times from closing a batch to its ack, counted by length.
#[derive(Debug, Default)]
pub struct AckTimes(Mutex<Times>);

#[derive(Clone, Copy, Debug, Default)]
struct Times {
    /// Not cumulative; the last is for what is longer than all bounds.
    counts: [u64; BOUNDS.len() + 1],
    seconds: f64,
}

impl AckTimes {
    /// Counts one.
    pub fn note(&self, time: Duration) {
        let s = time.as_secs_f64();
        let at = BOUNDS.iter().position(|b| s <= *b).unwrap_or(BOUNDS.len());
        let mut t = self.0.lock();
        t.counts[at] += 1;
        t.seconds += s;
    }
}

impl Supervisor {
    pub(super) fn metrics_text(&self) -> String {
        let status = self.status();
        let mut m = Metrics::default();
        of_source(&mut m, &status);
        of_vaults(&mut m, &status);
        let name = "ack_seconds";
        m.family(
            "histogram",
            name,
            "seconds",
            "From closing a batch to its ack.",
        );
        for (vault, link) in &self.inner().links {
            let t = *link.acks.0.lock();
            let vault = vault.name.as_str();
            let mut sum = 0;
            for (bound, count) in BOUNDS.iter().zip(t.counts) {
                sum += count;
                m.sample(
                    "ack_seconds_bucket",
                    &[("vault", vault), ("le", &format!("{bound:?}"))],
                    sum,
                );
            }
            sum += t.counts[BOUNDS.len()];
            m.sample(
                "ack_seconds_bucket",
                &[("vault", vault), ("le", "+Inf")],
                sum,
            );
            m.sample("ack_seconds_sum", &[("vault", vault)], t.seconds);
            m.sample("ack_seconds_count", &[("vault", vault)], sum);
        }
        m.finish()
    }
}

fn of_source(m: &mut Metrics, s: &Status) {
    m.family("info", "build", "", "The daemon.");
    m.sample("build_info", &[("version", &s.version)], 1);
    m.gauge(
        "switch_on",
        "",
        "Automatic backup is switched on.",
        u8::from(s.on),
    );
    m.family(
        "gauge",
        "sensor_active",
        "",
        "Which sensor listens to the kernel.",
    );
    if let Some(kind) = &s.sensor.kind {
        m.sample("sensor_active", &[("sensor", kind)], 1);
    }
    m.gauge(
        "sensor_marks",
        "",
        "Marks or watches in the kernel.",
        s.sensor.marks,
    );
    m.gauge(
        "sensor_replaced_calls",
        "",
        "System calls replaced now.",
        s.sensor.replaced,
    );
    m.gauge(
        "sensor_hooked_functions",
        "",
        "Other kernel functions hooked now.",
        s.sensor.hooked,
    );
    m.counter(
        "sensor_events",
        "",
        "Events read from the kernel.",
        s.sensor.events,
    );
    m.counter(
        "sensor_overflows",
        "",
        "Overflows of the kernel's queue.",
        s.sensor.overflows,
    );
    m.counter(
        "changes",
        "",
        "File modification messages queued.",
        s.schedule.messages,
    );
    m.counter(
        "changes_filtered",
        "",
        "Messages about what is left out.",
        s.schedule.filtered,
    );
    let most = |f: fn(&farwrite_control::Protection) -> u64| {
        s.protections.iter().map(f).max().unwrap_or(0)
    };
    m.counter(
        "losses",
        "",
        "Times that changes were lost and everything concerned was compared.",
        most(|p| p.lost),
    );
    m.counter(
        "repairs",
        "",
        "Losses that have been made good.",
        most(|p| p.repaired),
    );
    m.gauge(
        "journal_bytes",
        "bytes",
        "Size of the journal.",
        s.schedule.journal_bytes,
    );
    let behind = s
        .schedule
        .journal_last
        .saturating_sub(s.schedule.journal_checkpoint);
    m.gauge(
        "queue_messages",
        "",
        "Messages in the journal that are not durable in every vault.",
        behind,
    );
    let interval = s.schedule.managing_interval_ms / 1e3;
    m.gauge(
        "managing_interval_seconds",
        "seconds",
        "What the managing unit waits between two rounds.",
        interval,
    );
}

fn of_vaults(m: &mut Metrics, s: &Status) {
    let mut each = m.each("", "vault", &s.vaults, |v| &v.name);
    each.gauge(
        "lag_seconds",
        "seconds",
        "Age of the oldest change that is not durable.",
        |v| Some(v.lag_ms as f64 / 1e3),
    );
    each.gauge("pending_changes", "", "Changes waiting.", |v| {
        Some(v.pending_changes)
    });
    each.gauge(
        "pending_bytes",
        "bytes",
        "Bytes known to be waiting.",
        |v| Some(v.pending_bytes),
    );
    each.gauge(
        "in_flight_bytes",
        "bytes",
        "Bytes sent and not acked.",
        |v| Some(v.in_flight_bytes),
    );
    each.gauge("connected", "", "The vault is reached.", |v| {
        Some(u8::from(v.connected))
    });
    each.gauge(
        "stopped",
        "",
        "Backup to the vault has stopped and needs a person.",
        |v| Some(u8::from(v.state == State::Error)),
    );
    each.gauge("problems", "", "Entries that cannot be backed up.", |v| {
        Some(v.problem_count)
    });
    each.gauge(
        "processing_interval_seconds",
        "seconds",
        "What the processing unit waits between two rounds.",
        |v| Some(v.processing_interval_ms / 1e3),
    );
    each.counter("commands", "", "Backup commands carried out.", |v| {
        v.backup.commands
    });
    each.counter("batches", "", "Batches sent.", |v| v.backup.batches);
    each.counter("read_bytes", "bytes", "Bytes read from files.", |v| {
        v.backup.bytes_read
    });
    each.counter("new_bytes", "bytes", "Bytes of files that were new.", |v| {
        v.backup.bytes_new
    });
    each.counter("wire_bytes", "bytes", "Bytes on the wire.", |v| {
        v.wire_bytes
    });
    each.counter("reconnects", "", "Connections made anew.", |v| v.reconnects);
}
