//! The one program: source daemon, vault daemon and every command.

mod alert;
mod bell;
mod bytes;
mod cli;
mod config;
mod control;
mod doctor;
mod history;
mod openmetrics;
mod priority;
mod source;
mod state;
mod toml_merge;
mod top;
mod try_it;
mod vault;

use clap::Parser;
use std::process::ExitCode;

/// What a shell shows of a program that SIGPIPE ended.
const SIGPIPE_STATUS: u8 = 128 + 13;

fn main() -> ExitCode {
    // Before there are other threads. Without it all goes on, only slower.
    farwrite_memory::keep_freed();
    let cli = cli::Cli::parse();
    init_logs(&cli);
    // The usual 1024 are soon used up by a vault of many sources.
    farwrite_fs::raise_open_files();
    priority::count_against_other_sessions();
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        // Who reads our output has seen enough. Not a success: what was asked for may not be done.
        Err(e) if is_broken_pipe(&e) && nobody_reads() => ExitCode::from(SIGPIPE_STATUS),
        Err(e) => {
            eprintln!("farwrite: {}", one_line(&e));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes in one line, without saying the same twice.
fn one_line(e: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in e.chain() {
        let text = cause.to_string().replace('\n', " ");
        if !line.contains(&text) {
            line.push_str(if line.is_empty() { "" } else { ": " });
            line.push_str(&text);
        }
    }
    line
}

/// Has the reader of our standard output gone? (A connection that breaks is a broken pipe, too.)
fn nobody_reads() -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    let out = std::io::stdout();
    let mut fds = [PollFd::new(&out, PollFlags::empty())];
    let now = rustix::event::Timespec::default();
    matches!(poll(&mut fds, Some(&now)), Ok(1)) && fds[0].revents().contains(PollFlags::ERR)
}

fn is_broken_pipe(e: &anyhow::Error) -> bool {
    let kind = e
        .root_cause()
        .downcast_ref::<std::io::Error>()
        .map(std::io::Error::kind);
    kind == Some(std::io::ErrorKind::BrokenPipe)
}

/// Logs go to standard error: warnings only, unless `-v` or `FARWRITE_LOG` asks for more.
fn init_logs(cli: &cli::Cli) {
    let default = match cli.verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("FARWRITE_LOG")
        .unwrap_or_else(|_| default.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}
