//! The first backup as people see it: a bar on a terminal, a few plain lines elsewhere.

use super::supervisor::Supervisor;
use crate::bytes::{grouped, show, span};
use farwrite_control::State;
use farwrite_fs::Dir;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often the bar moves.
const STEP: Duration = Duration::from_millis(100);
/// How often a plain line is printed.
const LINE: Duration = Duration::from_secs(10);

/// Shows the compare that a daemon starts with until it is over and durable, or `stop` says so. Returns whether it
/// came to its end.
pub fn first_compare(daemon: &Supervisor, stop: &AtomicBool) -> bool {
    let started = Instant::now();
    let total = count_entries(daemon.directories(), stop);
    let terminal = std::io::stderr().is_terminal();
    let bar = ProgressBar::with_draw_target(
        None,
        if terminal {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        },
    );
    bar.set_style(
        ProgressStyle::with_template("{msg} {wide_bar:.cyan/dim} {percent:>3}%")
            .expect("a valid template"),
    );
    let mut last_line = Instant::now();
    loop {
        let s = daemon.status();
        let entries: u64 = s.vaults.iter().map(|v| v.backup.entries).min().unwrap_or(0);
        let new: u64 = s.vaults.iter().map(|v| v.backup.bytes_new).sum();
        let over = s.vaults.iter().all(|v| {
            v.lag_ms == 0 && v.backup.compares_open == 0 && v.connected && v.pending_changes == 0
        });
        let message = format!("{} entries, {} new", grouped(entries), show(new));
        let known = total.load(Ordering::Relaxed).max(entries).max(1);
        bar.set_length(known);
        bar.set_position(entries);
        bar.set_message(match s.vaults.iter().find(|v| v.state <= State::Offline) {
            Some(v) => format!("{}: {}", v.name, v.message),
            None => message.clone(),
        });
        if !terminal && last_line.elapsed() >= LINE {
            last_line = Instant::now();
            eprintln!(
                "first compare: {message}, {} to go",
                grouped(known.saturating_sub(entries))
            );
        }
        if over || stop.load(Ordering::Acquire) {
            bar.finish_and_clear();
            if over {
                eprintln!("compared {message}, in {}", span(started.elapsed()));
            }
            return over;
        }
        std::thread::sleep(STEP);
    }
}

/// Counts the entries of the trees in the background, so that the bar knows its length.
fn count_entries(dirs: Vec<PathBuf>, stop: &AtomicBool) -> Arc<AtomicU64> {
    let total = Arc::new(AtomicU64::new(0));
    let count = total.clone();
    if stop.load(Ordering::Acquire) {
        return total;
    }
    let counting = move || {
        let mut stack: Vec<Dir> = dirs.iter().filter_map(|d| Dir::open(d).ok()).collect();
        while let Some(dir) = stack.pop() {
            let Ok(entries) = dir.list() else { continue };
            count.fetch_add(entries.len() as u64, Ordering::Relaxed);
            let below = entries
                .iter()
                .filter(|e| e.kind == Some(farwrite_core::Kind::Dir));
            // A bound on open directories: a very wide tree is only estimated.
            stack.extend(below.filter_map(|e| dir.open_dir(&e.name).ok()).take(256));
        }
    };
    if let Err(e) = std::thread::Builder::new()
        .name("count".into())
        .spawn(counting)
    {
        tracing::debug!(error = %e, "no count of the tree");
    }
    total
}
