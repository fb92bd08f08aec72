//! The control API of the source daemon: what each request does. Decides nothing by itself.

use super::report;
use super::supervisor::Supervisor;
use farwrite_control::*;
use farwrite_schedule::Interval;
use std::time::Duration;

impl Handler for Supervisor {
    fn status(&self) -> Status {
        report::status(&self.inner())
    }

    fn flush(&self, timeout: Option<Duration>, gone: &dyn Fn() -> bool) -> Answer<()> {
        self.inner().flush(timeout, gone).map_err(Fault::failed)
    }

    fn switch(&self, on: bool) -> Answer<()> {
        self.inner()
            .switch(on)
            .map_err(|e| Fault::failed(format!("{e:#}")))
    }

    fn switch_directories(&self, on: bool, directories: &[String]) -> Answer<()> {
        self.switch_some(on, directories)
    }

    fn set_interval(&self, interval: &str) -> Answer<()> {
        let interval: Interval = interval
            .parse()
            .map_err(|e| Fault::field("interval", format!("{e}")))?;
        self.inner().set_interval(interval);
        Ok(())
    }

    fn reload(&self) -> Answer<()> {
        self.reload_config()
            .map_err(|e| Fault::failed(format!("{e:#}")))
    }

    fn watch(&self) -> Watch {
        Box::new(self.feed().watch())
    }

    fn moments(&self, query: MomentsQuery) -> Answer<Moments> {
        self.past.moments(&query)
    }

    fn marks(&self, query: MomentsQuery) -> Answer<Vec<MarkedMoment>> {
        self.past.marks(&query)
    }

    fn set_mark(&self, mark: SetMark) -> Answer<MarkedMoment> {
        self.past.set_mark(&mark)
    }

    fn list(&self, query: ListQuery) -> Answer<Listing> {
        self.past.list(&query)
    }

    fn versions(&self, query: VersionsQuery) -> Answer<Vec<Version>> {
        self.past.versions(&query)
    }

    fn differences(&self, query: DiffQuery) -> Answer<Differences> {
        self.past.differences(&query)
    }

    fn timeline(&self, query: TimelineQuery) -> Answer<Timeline> {
        self.past.timeline(&query)
    }

    fn content(&self, query: ContentQuery) -> Answer<Content> {
        self.past.content(&query)
    }

    fn restore(&self, request: RestoreRequest) -> Answer<RestoreJob> {
        self.past.restore(&request)
    }

    fn restore_progress(&self, id: u64) -> Answer<RestoreJob> {
        self.past.restore_progress(id)
    }

    fn settings(&self) -> Answer<Settings> {
        self.show_settings()
    }

    fn change_settings(&self, change: SettingsChange) -> Answer<Settings> {
        let _one = self.changes.lock();
        self.put_settings(&change)
    }

    fn test_alerts(&self) -> Answer<TestedAlerts> {
        self.test_channels()
    }

    fn protect(&self, protect: Protect) -> Answer<Settings> {
        self.put_directory(&protect)
    }

    fn unprotect(&self, unprotect: Unprotect) -> Answer<Settings> {
        self.remove_directory(&unprotect)
    }

    fn preview_excludes(&self, preview: PreviewExcludes) -> Answer<ExcludePreview> {
        super::settings::preview(&preview)
    }

    fn open_ui(&self) -> Answer<UiPlace> {
        self.open_the_ui()
    }

    fn metrics(&self) -> Answer<String> {
        Ok(self.metrics_text())
    }
}
