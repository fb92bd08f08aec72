//! A command of the user's choice, told by its environment what it is about. One that hangs is killed.

use super::{Alert, NotSent};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Time for the command.
const WITHIN: Duration = Duration::from_secs(30);

/// Runs it. It is not run again if it fails: it may have done half of what it does.
pub(super) fn send(command: &str, alert: &Alert) -> Result<(), NotSent> {
    let child = Command::new("sh")
        .args(["-c", command])
        .env("FARWRITE_ALERT", alert.kind)
        .env("FARWRITE_PHASE", alert.phase.name())
        .env("FARWRITE_VAULT", &alert.about)
        .env("FARWRITE_ABOUT", &alert.about)
        .env("FARWRITE_MESSAGE", alert.message.replace('\0', " "))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut child = child.map_err(|e| NotSent::for_good(format!("cannot be run: {e}")))?;
    let end = Instant::now() + WITHIN;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(NotSent::for_good(format!("it ended with {status}"))),
            Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(20)),
            _ => {
                // It may have ended in between.
                let _ = child.kill();
                let _ = child.wait();
                let why = format!(
                    "it did not end within {} s and was killed",
                    WITHIN.as_secs()
                );
                return Err(NotSent::for_good(why));
            }
        }
    }
}
