//! The way to the channels: a bounded queue and a thread for each, so that a mail server that hangs holds up neither the
//! backup nor the webhook. What cannot be delivered is tried again, ever more slowly, and in the end given up, in the log.

use super::channels::Channels;
use super::{Alert, NotSent, Phase, command, mail, webhook};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Alerts that wait for one channel; the oldest makes room.
const WAITING: usize = 64;
/// Times that one alert is tried: with the pauses between, about an hour.
const TRIES: u32 = 16;
/// The first pause, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// One way to tell a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Channel {
    Command,
    Webhook,
    Mail,
}

const ALL: [Channel; 3] = [Channel::Command, Channel::Webhook, Channel::Mail];

impl Channel {
    fn name(self) -> &'static str {
        match self {
            Channel::Command => "command",
            Channel::Webhook => "webhook",
            Channel::Mail => "mail",
        }
    }

    fn wanted(self, c: &Channels) -> bool {
        match self {
            Channel::Command => !c.command.trim().is_empty(),
            Channel::Webhook => !c.webhook.is_empty(),
            Channel::Mail => !c.mail.server.is_empty(),
        }
    }

    fn send(self, c: &Channels, alert: &Alert) -> Result<(), NotSent> {
        match self {
            Channel::Command => command::send(&c.command, alert),
            Channel::Webhook => webhook::send(&c.webhook, &c.webhook_token, alert),
            Channel::Mail => mail::send(&c.mail, alert),
        }
    }

    /// Where it goes, in words; a webhook's path may be a secret.
    fn target(self, c: &Channels) -> String {
        match self {
            Channel::Command => "the command".into(),
            Channel::Webhook => {
                let uri = c.webhook.parse::<ureq::http::Uri>().ok();
                let host = uri.as_ref().and_then(|u| u.authority()).map(|a| a.as_str());
                host.unwrap_or_default().to_owned()
            }
            Channel::Mail => format!("{} by {}", c.mail.to.join(", "), c.mail.server),
        }
    }
}

/// Takes alerts; its threads end with it.
pub struct Dispatcher {
    lanes: Vec<Arc<Lane>>,
}

struct Lane {
    channel: Channel,
    inner: Mutex<Inner>,
    news: Condvar,
}

#[derive(Default)]
struct Inner {
    channels: Channels,
    waiting: VecDeque<Alert>,
    ended: bool,
}

impl Dispatcher {
    /// Starts the threads.
    pub fn start() -> std::io::Result<Dispatcher> {
        let dispatcher = Dispatcher {
            lanes: ALL
                .map(|channel| {
                    Arc::new(Lane {
                        channel,
                        inner: Mutex::default(),
                        news: Condvar::new(),
                    })
                })
                .into(),
        };
        for lane in &dispatcher.lanes {
            let mine = lane.clone();
            std::thread::Builder::new()
                .name(format!("alert-{}", lane.channel.name()))
                .spawn(move || mine.run())?;
        }
        Ok(dispatcher)
    }

    /// Where alerts go from now on, also those that wait.
    pub fn configure(&self, channels: &Channels) {
        for lane in &self.lanes {
            let mut i = lane.inner.lock();
            if i.channels != *channels {
                i.channels = channels.clone();
                lane.news.notify_all();
            }
        }
    }

    /// Tells it, in the log at once and by the channels soon.
    pub fn tell(&self, alert: &Alert) {
        match alert.phase {
            Phase::End => tracing::info!(alert = alert.kind, "{}", alert.message),
            _ => tracing::warn!(alert = alert.kind, "{}", alert.message),
        }
        for lane in &self.lanes {
            let mut i = lane.inner.lock();
            if !lane.channel.wanted(&i.channels) {
                continue;
            }
            if i.waiting.len() == WAITING {
                i.waiting.pop_front();
                tracing::warn!(
                    channel = lane.channel.name(),
                    "an alert was given up: too many wait"
                );
            }
            i.waiting.push_back(alert.clone());
            lane.news.notify_all();
        }
    }
}

impl Drop for Dispatcher {
    fn drop(&mut self) {
        for lane in &self.lanes {
            lane.inner.lock().ended = true;
            lane.news.notify_all();
        }
    }
}

impl Lane {
    fn run(&self) {
        while let Some((alert, mut channels)) = self.next() {
            let mut tries = 0;
            loop {
                tries += 1;
                let Err(e) = self.channel.send(&channels, &alert) else {
                    break;
                };
                let name = self.channel.name();
                if !e.again || tries >= TRIES {
                    tracing::warn!(
                        channel = name,
                        alert = alert.kind,
                        "not delivered: {}",
                        e.why
                    );
                    break;
                }
                tracing::info!(
                    channel = name,
                    tries,
                    "not delivered, trying again: {}",
                    e.why
                );
                match self.pause(tries, &channels) {
                    Some(now) if self.channel.wanted(&now) => channels = now,
                    _ => break,
                }
            }
        }
    }

    /// The oldest that waits; `None` at the end.
    fn next(&self) -> Option<(Alert, Channels)> {
        let mut i = self.inner.lock();
        loop {
            if i.ended {
                return None;
            }
            if let Some(alert) = i.waiting.pop_front() {
                return Some((alert, i.channels.clone()));
            }
            self.news.wait(&mut i);
        }
    }

    /// Waits before another try; other channels end the pause. `None` at the end.
    fn pause(&self, tries: u32, tried: &Channels) -> Option<Channels> {
        let (first, longest) = PAUSES;
        let pause = first.saturating_mul(1 << (tries - 1).min(16)).min(longest);
        let end = Instant::now() + pause;
        let mut i = self.inner.lock();
        loop {
            if i.ended {
                return None;
            }
            if i.channels != *tried || Instant::now() >= end {
                return Some(i.channels.clone());
            }
            self.news.wait_until(&mut i, end);
        }
    }
}

/// How a test went.
pub struct Tested {
    /// "command", "webhook" or "mail".
    pub channel: &'static str,
    /// Where it goes.
    pub target: String,
    /// Why it did not get there, if so.
    pub error: Option<String>,
}

/// Sends a test alert by every channel that is there, once, and waits for the outcome.
pub fn test(channels: &Channels) -> Vec<Tested> {
    let alert = Alert::new("test", "", Phase::Test, "this is a test alert; all is well");
    std::thread::scope(|scope| {
        let threads: Vec<_> = ALL
            .into_iter()
            .filter(|c| c.wanted(channels))
            .map(|c| {
                let alert = &alert;
                (c, scope.spawn(move || c.send(channels, alert)))
            })
            .collect();
        threads
            .into_iter()
            .map(|(c, thread)| {
                let sent = thread
                    .join()
                    .unwrap_or_else(|_| Err(NotSent::for_good("an internal error")));
                Tested {
                    channel: c.name(),
                    target: c.target(channels),
                    error: sent.err().map(|e| e.why),
                }
            })
            .collect()
    })
}
