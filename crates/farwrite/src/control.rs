//! The commands that talk to the running daemon: status, flush, on, off, interval.

use crate::bytes::{grouped, show, span};
use crate::cli::{FlushArgs, StatusArgs};
use crate::state::State;
use farwrite_control::{Client, Done, Status, TestedAlerts, UiPlace};
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// `farwrite status`.
pub fn status(state: &State, args: &StatusArgs) -> anyhow::Result<()> {
    let client = Client::connect(&state.socket_path())?;
    loop {
        let status = client.status()?;
        let text = if args.json {
            serde_json::to_string_pretty(&status)?
        } else {
            in_words(&status)
        };
        let mut out = std::io::stdout().lock();
        if args.watch && !args.json && out.is_terminal() {
            write!(out, "\x1b[H\x1b[2J")?;
        }
        writeln!(out, "{}", text.trim_end())?;
        out.flush()?;
        drop(out);
        if !args.watch {
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// `farwrite flush`.
pub fn flush(state: &State, args: &FlushArgs) -> anyhow::Result<()> {
    let client = Client::connect(&state.socket_path())?;
    Ok(client.flush(args.timeout)?)
}

/// `farwrite on` and `farwrite off`.
pub fn switch(state: &State, on: bool, dirs: &[PathBuf]) -> anyhow::Result<()> {
    let client = match Client::connect(&state.socket_path()) {
        Ok(c) => c,
        Err(farwrite_control::ClientError::NotRunning { path }) => {
            anyhow::bail!(
                "no daemon is running here ({}): there is nothing to switch",
                path.display()
            )
        }
        Err(e) => return Err(e.into()),
    };
    if !dirs.is_empty() {
        return switch_some(&client, on, dirs);
    }
    client.switch(on)?;
    let status = client.status()?;
    match (&status.sensor.kind, on) {
        (Some(kind), true) => println!(
            "automatic backup is on: {kind}, {} in the kernel; catching up",
            marks(&status, kind)
        ),
        (None, true) => {
            let why = status.sensor.warning;
            anyhow::bail!(
                "automatic backup is not on: {}",
                why.as_deref().unwrap_or("the sensor has gone again")
            )
        }
        (_, false) => println!(
            "automatic backup is off: nothing listens in the kernel; `farwrite on` catches up"
        ),
    }
    Ok(())
}

/// Some directories by themselves.
fn switch_some(client: &Client, on: bool, dirs: &[PathBuf]) -> anyhow::Result<()> {
    let mut named = Vec::new();
    for dir in dirs {
        // One that is gone can be switched off by the name that it had.
        let path = crate::config::canonical_dir(dir)
            .or_else(|_| std::path::absolute(dir).map(|d| d.display().to_string()))?;
        named.push(path);
    }
    client.switch_directories(on, &named)?;
    for dir in named {
        match on {
            true => println!("automatic backup of {dir} is on; catching up"),
            false => println!(
                "automatic backup of {dir} is off: its changes are not seen; `farwrite on {dir}` catches up"
            ),
        }
    }
    Ok(())
}

fn marks(status: &Status, kind: &str) -> String {
    let what = if kind == "inotify" {
        "watches"
    } else {
        "marks"
    };
    format!("{} {what}", grouped(status.sensor.marks))
}

/// `farwrite interval`.
pub fn interval(state: &State, interval: farwrite_schedule::Interval) -> anyhow::Result<()> {
    let client = Client::connect(&state.socket_path())?;
    client.set_interval(&interval.to_string())?;
    println!(
        "interval {interval}, until the daemon ends; `interval` in {} keeps it",
        state.config_path().display()
    );
    Ok(())
}

/// `farwrite alert test`.
pub fn test_alerts(state: &State) -> anyhow::Result<()> {
    let client = Client::connect(&state.socket_path())?;
    let config = state.config_path();
    let done = client.post("alerts/test", &Done {})?;
    tested(&done, &config.display().to_string())
}

/// Says how a test of the channels went; an error if one did not work, or there is none. `file` is where they are set.
pub fn tested(tested: &TestedAlerts, file: &str) -> anyhow::Result<()> {
    if tested.channels.is_empty() {
        anyhow::bail!(
            "nobody would be told: there is no command, webhook or mail for alerts in {file}"
        );
    }
    let mut failed = Vec::new();
    for c in &tested.channels {
        match &c.error {
            None => println!("{}: sent to {}", c.channel, c.target),
            Some(why) => failed.push(format!("{} ({}): {why}", c.channel, c.target)),
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => anyhow::bail!("{}", failed.join("; ")),
    }
}

/// `farwrite ui`: prints a link that lets one browser in, and opens it where that can be done.
pub fn ui(state: &State) -> anyhow::Result<()> {
    let client = Client::connect(&state.socket_path())?;
    show_link(&client.post("ui", &Done {})?);
    Ok(())
}

/// Prints a link that lets one browser in, and opens it where that can be done.
pub fn show_link(place: &UiPlace) {
    println!("{}", place.url);
    let has_screen = ["DISPLAY", "WAYLAND_DISPLAY"]
        .iter()
        .any(|v| std::env::var_os(v).is_some_and(|v| !v.is_empty()));
    // A browser must not run as root.
    if has_screen && std::io::stdout().is_terminal() && !rustix::process::geteuid().is_root() {
        let opened = Command::new("xdg-open")
            .arg(&place.url)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        if opened.is_ok() {
            return;
        }
    }
    eprintln!("open this link in a browser on this machine: it is good once, for five minutes");
}

/// The status for people.
pub fn in_words(s: &Status) -> String {
    let mut t = String::new();
    let worst = s.protections.iter().min_by_key(|p| p.state);
    let line = match worst {
        None => "Nothing is protected yet.".into(),
        Some(p) => format!("{:?}: {}", p.state, p.message),
    };
    let _ = writeln!(t, "{line}");
    let _ = writeln!(t);
    for p in &s.protections {
        let _ = writeln!(t, "{}  ->  {}", p.directory, p.vault);
        let _ = writeln!(
            t,
            "    state     {}: {}",
            format!("{:?}", p.state).to_lowercase(),
            p.message
        );
        let waiting = format!("{} changes", grouped(p.pending_changes));
        let bytes = if p.pending_bytes > 0 {
            format!(", {} known", show(p.pending_bytes))
        } else {
            String::new()
        };
        let _ = writeln!(
            t,
            "    lag       {}, {waiting}{bytes} waiting",
            span(Duration::from_millis(p.lag_ms))
        );
        let _ = writeln!(
            t,
            "    last ack  {}",
            p.last_ack.as_deref().map_or("none yet".into(), local_time)
        );
        let _ = writeln!(t, "    lost      {} times, {} repaired", p.lost, p.repaired);
        for n in &p.not_covered {
            let _ = writeln!(
                t,
                "    not in    {n} (another filesystem: protect it with a --state DIR of its own)"
            );
        }
    }
    let _ = writeln!(t);
    match &s.sensor.kind {
        Some(k) => {
            let _ = writeln!(
                t,
                "sensor      {k} ({}); {}",
                s.sensor.why, s.sensor.guarantees
            );
            let _ = writeln!(
                t,
                "            {}, {} events, {} overflows",
                marks(s, k),
                grouped(s.sensor.events),
                s.sensor.overflows
            );
        }
        None => {
            let _ = writeln!(t, "sensor      off");
        }
    }
    if let Some(w) = &s.sensor.warning {
        let _ = writeln!(t, "            {w}");
    }
    let sch = &s.schedule;
    let _ = writeln!(
        t,
        "schedule    interval {}{}; managing {:.0} ms; journal {} of {} messages done, {}",
        sch.interval,
        if sch.applications_first {
            ", applications first (nice)"
        } else {
            ""
        },
        sch.managing_interval_ms,
        grouped(sch.journal_checkpoint),
        grouped(sch.journal_last),
        show(sch.journal_bytes)
    );
    for v in &s.vaults {
        let b = &v.backup;
        let _ = writeln!(
            t,
            "{:<11} {}; processing {:.0} ms; batch {} acked{}; {} on the wire",
            v.name,
            if v.connected {
                "connected"
            } else {
                "not connected"
            },
            v.processing_interval_ms,
            grouped(v.acked),
            v.mirrored
                .map_or(String::new(), |m| format!(", {} in the mirror", grouped(m))),
            show(v.wire_bytes)
        );
        let _ = writeln!(
            t,
            "            {} entries looked at, {} files read ({}), {} new, {} renames",
            grouped(b.entries),
            grouped(b.files_read),
            show(b.bytes_read),
            show(b.bytes_new),
            grouped(b.renames)
        );
        for p in &v.problems {
            let _ = writeln!(t, "            cannot back up {}: {}", p.path, p.why);
        }
    }
    t
}

fn local_time(rfc3339: &str) -> String {
    match rfc3339.parse::<jiff::Timestamp>() {
        Ok(t) => t
            .to_zoned(jiff::tz::TimeZone::system())
            .strftime("%Y-%m-%d %H:%M:%S")
            .to_string(),
        Err(_) => rfc3339.to_owned(),
    }
}
