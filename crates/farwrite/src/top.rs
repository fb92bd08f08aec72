//! `farwrite top`: the overview in a terminal, live. Asks the daemon twice a second and draws what it says; knows nothing
//! by itself. Text from file names is made harmless before it reaches the terminal.

use crate::bytes::{grouped, show, span};
use crate::state::State;
use anyhow::{Context, bail};
use farwrite_control::{Activity, Client, State as Safety, Status};
use farwrite_core::path::lossy;
use parking_lot::Mutex;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Borders, List, Paragraph, Row, Sparkline, Table, Wrap};
use std::collections::VecDeque;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two questions.
const ASK: Duration = Duration::from_millis(500);
/// Samples of the charts: two minutes.
const SAMPLES: usize = 240;
/// Lines of the feed that are kept.
const LINES: usize = 200;
/// After the feed has ended, this long until it is asked for again.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Default)]
struct View {
    status: Option<Status>,
    error: Option<String>,
    lag: VecDeque<u64>,
    rate: VecDeque<u64>,
    /// Bytes on the wire at the last look, and when that was.
    wire: Option<(u64, Instant)>,
    /// What came of the last key.
    told: String,
}

type Feed = Arc<Mutex<VecDeque<String>>>;

/// See the module.
pub fn run(state: &State) -> anyhow::Result<()> {
    if !std::io::stdout().is_terminal() {
        bail!("this needs a terminal; `farwrite status` prints the same once");
    }
    let client = Client::connect(&state.socket_path())?;
    let feed = Feed::default();
    follow(state, feed.clone())?;
    let mut terminal = ratatui::try_init().context("the terminal")?;
    let ended = show_until_quit(&mut terminal, &client, &feed);
    ratatui::restore();
    ended
}

fn show_until_quit(
    terminal: &mut ratatui::DefaultTerminal,
    client: &Client,
    feed: &Feed,
) -> anyhow::Result<()> {
    let mut view = View::default();
    loop {
        match client.status() {
            Ok(status) => view.take(status),
            Err(e) => view.error = Some(e.to_string()),
        }
        let until = Instant::now() + ASK;
        loop {
            terminal.draw(|frame| draw(frame, &view, &feed.lock()))?;
            if !event::poll(until.saturating_duration_since(Instant::now()))? {
                break;
            }
            if let Event::Key(key) = event::read()?
                && key.kind == KeyEventKind::Press
            {
                match key.code {
                    KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                    KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                        return Ok(());
                    }
                    KeyCode::Char('s') => view.switch(client),
                    _ => {}
                }
            }
        }
    }
}

/// Fills the feed in the background.
fn follow(state: &State, feed: Feed) -> anyhow::Result<()> {
    let socket = state.socket_path();
    let watching = move || {
        loop {
            if let Ok(client) = Client::connect(&socket) {
                // Ends with the daemon; then there may be another.
                let _ = client.watch(|a| {
                    let mut lines = feed.lock();
                    lines.push_front(in_words(&a));
                    lines.truncate(LINES);
                    true
                });
            }
            std::thread::sleep(AGAIN);
        }
    };
    std::thread::Builder::new()
        .name("feed".into())
        .spawn(watching)?;
    Ok(())
}

fn in_words(a: &Activity) -> String {
    match a {
        // Paths in it are harmless already.
        Activity::Change { text, .. } => text.clone(),
        Activity::File { vault, path, bytes } => {
            format!("         {} of {path} to {vault}", show(*bytes))
        }
        Activity::Sent {
            vault,
            batch,
            bytes,
        } => format!("         batch {batch} to {vault}: {}", show(*bytes)),
        Activity::Durable {
            vault,
            batch,
            after_ms,
            ..
        } => {
            format!("         batch {batch} durable in {vault} after {after_ms} ms")
        }
        Activity::Link { vault, text } => format!("vault    {vault}: {}", lossy(text.as_bytes())),
        Activity::Skipped { count } => format!("... {} more", grouped(*count)),
    }
}

impl View {
    fn take(&mut self, status: Status) {
        let now = Instant::now();
        let wire: u64 = status.vaults.iter().map(|v| v.wire_bytes).sum();
        let rate = match self.wire {
            Some((before, at)) => {
                (wire.saturating_sub(before) as f64
                    / now.duration_since(at).as_secs_f64().max(0.001)) as u64
            }
            None => 0,
        };
        self.wire = Some((wire, now));
        for (list, value) in [
            (
                &mut self.lag,
                status.vaults.iter().map(|v| v.lag_ms).max().unwrap_or(0),
            ),
            (&mut self.rate, rate),
        ] {
            list.push_back(value);
            if list.len() > SAMPLES {
                list.pop_front();
            }
        }
        self.status = Some(status);
        self.error = None;
    }

    fn switch(&mut self, client: &Client) {
        let Some(status) = &self.status else { return };
        let on = !status.on;
        self.told = match client.switch(on) {
            Ok(()) => format!("automatic backup is {}", if on { "on" } else { "off" }),
            Err(e) => e.to_string(),
        };
    }
}

fn draw(frame: &mut Frame<'_>, view: &View, feed: &VecDeque<String>) {
    let Some(s) = &view.status else {
        let text = view.error.as_deref().unwrap_or("asking the daemon");
        frame.render_widget(Paragraph::new(text), frame.area());
        return;
    };
    let vaults = s.vaults.len() as u16 + 3;
    let [head, table, charts, lines, foot] = Layout::vertical([
        Constraint::Length(3),
        Constraint::Length(vaults.min(10)),
        Constraint::Length(5),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(headline(s, view), head);
    frame.render_widget(vault_table(s), table);
    let [left, right] = Layout::horizontal([Constraint::Percentage(50); 2]).areas(charts);
    chart(frame, left, "behind", &view.lag, |ms| {
        span(Duration::from_millis(ms))
    });
    chart(frame, right, "sent a second", &view.rate, show);
    let list = List::new(
        feed.iter()
            .take(lines.height as usize)
            .map(|l| Line::from(l.as_str())),
    );
    frame.render_widget(list.block(block("activity")), lines);
    let foot_text = format!(
        " q quit   s switch automatic backup {}   {}",
        if s.on { "off" } else { "on" },
        view.told
    );
    frame.render_widget(
        Paragraph::new(foot_text).style(Style::new().add_modifier(Modifier::REVERSED)),
        foot,
    );
}

fn block(title: &str) -> Block<'_> {
    Block::new().borders(Borders::TOP).title(title)
}

fn colour(state: Safety) -> Color {
    match state {
        Safety::Safe => Color::Green,
        Safety::Comparing | Safety::Behind => Color::Yellow,
        _ => Color::Red,
    }
}

fn headline<'a>(s: &Status, view: &'a View) -> Paragraph<'a> {
    let worst = s.protections.iter().min_by_key(|p| p.state);
    let (state, text) = match (worst, &view.error) {
        (_, Some(e)) => (Safety::Error, e.clone()),
        (Some(p), None) => (p.state, format!("{:?}: {}", p.state, p.message)),
        (None, None) => (Safety::Error, "nothing is protected yet".into()),
    };
    let sensor = match &s.sensor.kind {
        Some(k) => format!(
            "sensor {k}: {} in the kernel, {} system calls replaced, {} functions hooked; {} changes, {} overflows",
            grouped(s.sensor.marks),
            s.sensor.replaced,
            s.sensor.hooked,
            grouped(s.schedule.messages),
            s.sensor.overflows
        ),
        None => "automatic backup is off: nothing of ours is in the kernel".into(),
    };
    let style = Style::new().fg(colour(state)).add_modifier(Modifier::BOLD);
    Paragraph::new(vec![Line::styled(text, style), Line::from(sensor)]).wrap(Wrap { trim: true })
}

fn vault_table(s: &Status) -> Table<'static> {
    let rows = s.vaults.iter().map(|v| {
        let state = format!("{:?}", v.state).to_lowercase();
        Row::new([
            v.name.clone(),
            state,
            span(Duration::from_millis(v.lag_ms)),
            grouped(v.pending_changes),
            format!("{:.0} ms", v.ack_ms),
            show(v.wire_bytes),
        ])
        .style(Style::new().fg(colour(v.state)))
    });
    let widths = [
        Constraint::Fill(2),
        Constraint::Fill(1),
        Constraint::Length(10),
        Constraint::Length(12),
        Constraint::Length(10),
        Constraint::Length(10),
    ];
    let head = Row::new(["vault", "state", "behind", "waiting", "ack", "sent"]);
    Table::new(rows, widths).header(head).block(block("vaults"))
}

fn chart(
    frame: &mut Frame<'_>,
    area: Rect,
    name: &str,
    values: &VecDeque<u64>,
    words: impl Fn(u64) -> String,
) {
    let now = values.back().copied().unwrap_or(0);
    let room = area.width as usize;
    let shown: Vec<u64> = values
        .iter()
        .skip(values.len().saturating_sub(room))
        .copied()
        .collect();
    let title = format!("{name}: {}", words(now));
    frame.render_widget(Sparkline::default().data(&shown).block(block(&title)), area);
}

#[cfg(test)]
mod tests {
    use super::*;
    use farwrite_control::{Protection, Vault};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    #[test]
    fn the_screen_says_what_the_status_says() {
        let mut view = View::default();
        view.take(Status {
            on: true,
            protections: vec![Protection {
                state: Safety::Safe,
                message: "everything is safe".into(),
                ..Protection::default()
            }],
            vaults: vec![Vault {
                name: "nas".into(),
                state: Safety::Safe,
                ..Vault::default()
            }],
            ..Status::default()
        });
        let feed = VecDeque::from(["write    /srv/a".to_owned()]);
        for (width, height) in [(100, 30), (40, 12), (5, 3)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal.draw(|f| draw(f, &view, &feed)).unwrap();
            if width == 100 {
                let text = format!("{:?}", terminal.backend().buffer());
                for part in ["everything is safe", "nas", "write    /srv/a", "q quit"] {
                    assert!(text.contains(part), "{part}: {text}");
                }
            }
        }
    }
}
