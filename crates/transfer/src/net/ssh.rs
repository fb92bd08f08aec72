//! A vault at the other end of ssh: `ssh host farwrite vault stdio DIR --name NAME`, spoken to over its standard input
//! and output. ssh does the authentication on both sides; nothing asks for a password here.

use farwrite_core::{SourceName, path};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, BufReader, ReadBuf};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::watch;
use tokio::time::timeout;

/// Most lines of ssh's standard error that are kept: the last ones.
const STDERR_LINES: usize = 8;
/// Most bytes of one such line.
const STDERR_LINE_BYTES: u64 = 400;
/// How long to wait for the rest of standard error when a connection has ended.
const STDERR_WITHIN: Duration = Duration::from_millis(500);

/// Where and how.
#[derive(Clone, Debug)]
pub struct SshTarget {
    /// Login name there; `None`: ssh's own default.
    pub user: Option<String>,
    /// Host name, or an alias of ssh's configuration.
    pub host: String,
    /// `None`: ssh's own default.
    pub port: Option<u16>,
    /// The vault's directory there.
    pub vault_dir: String,
    /// Name of this source in the vault.
    pub name: SourceName,
    /// The command that stands for ssh, with its first arguments.
    pub ssh: Vec<String>,
}

impl SshTarget {
    /// With the plain `ssh` command and its defaults.
    pub fn new(host: impl Into<String>, vault_dir: impl Into<String>, name: SourceName) -> Self {
        SshTarget {
            user: None,
            host: host.into(),
            port: None,
            vault_dir: vault_dir.into(),
            name,
            ssh: vec!["ssh".into()],
        }
    }

    fn arguments(&self) -> io::Result<Vec<String>> {
        let bad = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        let plain = |s: &str| !s.is_empty() && !s.starts_with('-') && !s.contains(['\0', '\n']);
        if !plain(&self.host) || self.user.as_deref().is_some_and(|u| !plain(u)) {
            return bad("not a host or user name");
        }
        if !plain(&self.vault_dir) {
            return bad("not a directory of a vault");
        }
        let mut args: Vec<String> = ["-o", "BatchMode=yes"].map(Into::into).to_vec();
        if let Some(port) = self.port {
            args.extend(["-p".into(), port.to_string()]);
        }
        args.push(match &self.user {
            Some(user) => format!("{user}@{}", self.host),
            None => self.host.clone(),
        });
        args.push(remote_command(&self.vault_dir, &self.name));
        Ok(args)
    }
}

/// The command line for the shell at the other end.
pub fn remote_command(vault_dir: &str, name: &SourceName) -> String {
    format!(
        "farwrite vault stdio {} --name {}",
        shell_quote(vault_dir),
        shell_quote(name.as_str())
    )
}

/// One word of a POSIX shell: in single quotes, each quote inside replaced by `'\''`.
fn shell_quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A running ssh as a stream. Dropping it ends the process.
pub(super) struct SshStream {
    stdin: ChildStdin,
    stdout: ChildStdout,
    _child: Child,
}

/// The last lines of ssh's standard error.
pub(super) struct StderrTail {
    lines: Arc<Mutex<VecDeque<String>>>,
    finished: watch::Receiver<bool>,
}

/// Starts ssh. Whether it gets through shows later.
pub(super) fn start(target: &SshTarget) -> io::Result<(SshStream, StderrTail)> {
    let (program, first) = target
        .ssh
        .split_first()
        .ok_or(io::ErrorKind::InvalidInput)?;
    let mut child = Command::new(program)
        .args(first)
        .args(target.arguments()?)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdin = child.stdin.take().expect("piped");
    let stdout = child.stdout.take().expect("piped");
    let stderr = child.stderr.take().expect("piped");
    let lines = Arc::new(Mutex::new(VecDeque::new()));
    let (done, finished) = watch::channel(false);
    // Ends with the process, which ends with the stream.
    tokio::spawn(collect(stderr, lines.clone(), done));
    let stream = SshStream {
        stdin,
        stdout,
        _child: child,
    };
    Ok((stream, StderrTail { lines, finished }))
}

async fn collect(
    stderr: ChildStderr,
    lines: Arc<Mutex<VecDeque<String>>>,
    done: watch::Sender<bool>,
) {
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut part = (&mut reader).take(STDERR_LINE_BYTES);
        if !matches!(part.read_until(b'\n', &mut line).await, Ok(n) if n > 0) {
            break;
        }
        let text = path::lossy(line.trim_ascii());
        if !text.is_empty() {
            let mut lines = lines.lock();
            if lines.len() == STDERR_LINES {
                lines.pop_front();
            }
            lines.push_back(text);
        }
    }
    done.send_replace(true);
}

impl StderrTail {
    /// What was said, once no more can come, or after a short while.
    pub(super) async fn finish(mut self) -> String {
        // Late or closed: what is there will do.
        let _ = timeout(STDERR_WITHIN, self.finished.wait_for(|f| *f)).await;
        let lines = self.lines.lock();
        lines.iter().cloned().collect::<Vec<_>>().join(" / ")
    }
}

impl AsyncRead for SshStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdout).poll_read(cx, buf)
    }
}

impl AsyncWrite for SshStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stdin).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdin).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdin).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(dir: &str) -> SshTarget {
        SshTarget::new("box", dir, SourceName::new("web").unwrap())
    }

    #[test]
    fn the_other_shell_sees_the_words_as_they_are() {
        let dir = "/srv/it's $(here) `x`; \"y\" \\";
        let command = remote_command(dir, &SourceName::new("web").unwrap());
        let shown = std::process::Command::new("sh")
            .arg("-c")
            .arg(command.replacen("farwrite", "printf '%s\\n'", 1))
            .output()
            .unwrap();
        let want = format!("vault\nstdio\n{dir}\n--name\nweb\n");
        assert_eq!(String::from_utf8(shown.stdout).unwrap(), want);
    }

    #[test]
    fn nothing_is_taken_for_an_option_of_ssh() {
        let mut t = target("/v");
        t.user = Some("me".into());
        t.port = Some(2222);
        assert_eq!(
            t.arguments().unwrap(),
            [
                "-o",
                "BatchMode=yes",
                "-p",
                "2222",
                "me@box",
                "farwrite vault stdio '/v' --name 'web'"
            ]
        );
        t.user = Some("-oProxyCommand=x".into());
        assert!(t.arguments().is_err());
        t.user = None;
        t.host = "-oProxyCommand=x".into();
        assert!(t.arguments().is_err());
        assert!(target("-x").arguments().is_err());
        assert!(target("").arguments().is_err());
    }
}
