//! What the daemon does for the API. All of it may block: the server calls it on threads made for that.

use crate::alerts::*;
use crate::fault::{Answer, Fault};
use crate::history::*;
use crate::settings::*;
use crate::types::*;
use std::io::{self, Write};
use std::time::Duration;

/// What happens, as it happens; `None` items are heartbeats, at least one a second.
pub type Watch = Box<dyn Iterator<Item = Option<Activity>> + Send>;

/// Writes a file's bytes; an error ends the transfer short of their number, so that nobody takes it for whole.
pub type WriteContent = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + Send>;

/// A file's bytes as they were.
pub struct Content {
    /// How many.
    pub size: u64,
    /// Writes them.
    pub write: WriteContent,
}

/// See the module. What is not provided is refused as not offered.
#[expect(
    unused_variables,
    reason = "the names document what an implementation gets"
)]
pub trait Handler: Send + Sync + 'static {
    /// What is protected and how safe it is.
    fn status(&self) -> Status;
    /// Returns once every change made before is durable in every vault and stands in its mirror. `gone` says whether
    /// the client has hung up.
    fn flush(&self, timeout: Option<Duration>, gone: &dyn Fn() -> bool) -> Answer<()>;
    /// The automatic-backup switch.
    fn switch(&self, on: bool) -> Answer<()>;
    /// The same for some directories only.
    fn switch_directories(&self, on: bool, directories: &[String]) -> Answer<()> {
        Err(Fault::not_offered())
    }
    /// Changes the scheduling interval until the daemon ends.
    fn set_interval(&self, interval: &str) -> Answer<()>;
    /// What happens from now on.
    fn watch(&self) -> Watch;
    /// Takes up the configuration file as it is now. If the daemon cannot work with it, it goes on as before, and says why.
    fn reload(&self) -> Answer<()> {
        Err(Fault::not_offered())
    }

    /// The configuration.
    fn settings(&self) -> Answer<Settings> {
        Err(Fault::not_offered())
    }
    /// Changes it, in the file and in effect.
    fn change_settings(&self, change: SettingsChange) -> Answer<Settings> {
        Err(Fault::not_offered())
    }
    /// Sends a test alert by every channel, and waits for the outcome.
    fn test_alerts(&self) -> Answer<TestedAlerts> {
        Err(Fault::not_offered())
    }
    /// Protects a directory from now on.
    fn protect(&self, protect: Protect) -> Answer<Settings> {
        Err(Fault::not_offered())
    }
    /// Protects a directory no more.
    fn unprotect(&self, unprotect: Unprotect) -> Answer<Settings> {
        Err(Fault::not_offered())
    }
    /// What patterns would leave out.
    fn preview_excludes(&self, preview: PreviewExcludes) -> Answer<ExcludePreview> {
        Err(Fault::not_offered())
    }
    /// Begin and end of the history.
    fn moments(&self, query: MomentsQuery) -> Answer<Moments> {
        Err(Fault::not_offered())
    }
    /// All marks, in the order in which they were set.
    fn marks(&self, query: MomentsQuery) -> Answer<Vec<MarkedMoment>> {
        Err(Fault::not_offered())
    }
    /// Names a moment.
    fn set_mark(&self, mark: SetMark) -> Answer<MarkedMoment> {
        Err(Fault::not_offered())
    }
    /// A directory as it was.
    fn list(&self, query: ListQuery) -> Answer<Listing> {
        Err(Fault::not_offered())
    }
    /// Versions of what has been at a path.
    fn versions(&self, query: VersionsQuery) -> Answer<Vec<Version>> {
        Err(Fault::not_offered())
    }
    /// What differs between two moments.
    fn differences(&self, query: DiffQuery) -> Answer<Differences> {
        Err(Fault::not_offered())
    }
    /// How much changed when.
    fn timeline(&self, query: TimelineQuery) -> Answer<Timeline> {
        Err(Fault::not_offered())
    }
    /// A file's bytes as they were.
    fn content(&self, query: ContentQuery) -> Answer<Content> {
        Err(Fault::not_offered())
    }
    /// Begins to bring something back; a dry run is done when this returns.
    fn restore(&self, request: RestoreRequest) -> Answer<RestoreJob> {
        Err(Fault::not_offered())
    }
    /// How far a restore is.
    fn restore_progress(&self, id: u64) -> Answer<RestoreJob> {
        Err(Fault::not_offered())
    }
    /// Counters in the OpenMetrics text format.
    fn metrics(&self) -> Answer<String> {
        Err(Fault::not_offered())
    }
    /// Makes sure that the GUI is served, and lets one browser in.
    fn open_ui(&self) -> Answer<UiPlace> {
        Err(Fault::not_offered())
    }
}
