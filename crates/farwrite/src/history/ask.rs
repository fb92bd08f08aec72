//! Where the history's answers come from: a vault over the network, or its directory on this machine. Whoever asks does
//! not know which.

use super::{show, when};
use crate::cli::HistoryFrom;
use crate::config::Config;
use crate::state::State;
use crate::vault;
use anyhow::{Context, bail};
use farwrite_core::history::{Entry, Mark, Moment, Request, Response, Version};
use farwrite_core::{BatchSeq, BytePath, Name, NodeId, SourceName, limits};
use farwrite_transfer::net::HistoryClient;
use farwrite_vault::{History, SourceVault, Vault, VaultError};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// For who has a source open to bring its catalog to where its log is.
const OTHERS_TIME: Duration = Duration::from_secs(2);
/// How this program calls itself to a vault.
const SOFTWARE: &str = concat!("farwrite ", env!("CARGO_PKG_VERSION"));

/// A history to ask.
pub(super) struct Ask {
    from: From,
    /// What is protected, as far as this machine knows.
    directories: Vec<BytePath>,
}

enum From {
    Directory(Box<History>),
    /// The session ends before the runtime does.
    Network(
        HistoryClient,
        #[expect(dead_code, reason = "drives the session")] Runtime,
    ),
}

impl Ask {
    /// Opens what the arguments name.
    pub(super) fn open(state: &State, from: &HistoryFrom) -> anyhow::Result<Ask> {
        if let (Some(dir), Some(source)) = (&from.vault_dir, &from.source) {
            let vault = vault::open(dir)?;
            let source_dir = vault.source_dir(source);
            if !source_dir.is_dir() {
                bail!(
                    "{} has no source {source}{}",
                    dir.display(),
                    known_sources(&vault)
                );
            }
            bring_forward(&vault, source);
            let from = From::Directory(Box::new(History::open(&source_dir)?));
            return Ok(Ask {
                from,
                directories: vec![BytePath::root()],
            });
        }
        let config = Config::load(state)?;
        let vault = config.vault(from.vault.as_ref())?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let client = HistoryClient::connect(runtime.handle(), vault.dialer(state)?, SOFTWARE)
            .with_context(|| format!("vault {}", vault.name))?;
        let directories = vault
            .directories
            .iter()
            .map(BytePath::new)
            .collect::<Result<_, _>>()?;
        Ok(Ask {
            from: From::Network(client, runtime),
            directories,
        })
    }

    /// The answer as it comes.
    pub(super) fn raw(&self, request: Request) -> anyhow::Result<Response> {
        match &self.from {
            From::Directory(history) => Ok(history.answer(&request)),
            From::Network(client, _) => Ok(client.ask(request)?),
        }
    }

    /// The answer; an error if the history cannot give one.
    fn ask(&self, request: Request) -> anyhow::Result<Response> {
        match self.raw(request)? {
            Response::Error(text) => bail!(
                "the vault says: {}",
                farwrite_core::path::lossy(text.as_bytes())
            ),
            other => Ok(other),
        }
    }

    /// The protected directories; `/` if this machine does not know.
    pub(super) fn directories(&self) -> &[BytePath] {
        &self.directories
    }

    /// Are user and group numbers of the source those of this machine?
    pub(super) fn is_local_source(&self) -> bool {
        matches!(self.from, From::Network(..))
    }

    /// The first and the last moment.
    pub(super) fn moments(&self) -> anyhow::Result<(Moment, Moment)> {
        match self.ask(Request::Moments)? {
            Response::Moments(Some(both)) => Ok(both),
            Response::Moments(None) => bail!("nothing has been backed up yet"),
            _ => Err(nonsense()),
        }
    }

    /// The moment of a time as a person wrote it; the last one without a time.
    pub(super) fn moment(&self, at: Option<&str>) -> anyhow::Result<Moment> {
        if let Some(name) = at.and_then(mark_name) {
            return self.marked(name);
        }
        let time = at.map(when::parse_now).transpose()?;
        let (first, last) = self.moments()?;
        let Some(time) = time else { return Ok(last) };
        match self.ask(Request::Resolve(time))? {
            Response::Moment(Some(m)) => Ok(m),
            Response::Moment(None) => bail!(
                "{} is before the oldest moment that is kept, which is of {}",
                show::time(time),
                show::time(first.time)
            ),
            _ => Err(nonsense()),
        }
    }

    /// All marks.
    pub(super) fn marks(&self) -> anyhow::Result<Vec<Mark>> {
        match self.ask(Request::Marks)? {
            Response::Marks(list) => Ok(list),
            _ => Err(nonsense()),
        }
    }

    fn marked(&self, name: &str) -> anyhow::Result<Moment> {
        let marks = self.marks()?;
        match marks.iter().find(|m| m.name == name) {
            Some(mark) => Ok(mark.moment),
            None if marks.is_empty() => bail!("there is no mark {name}: nothing is marked"),
            None => {
                let names: Vec<&str> = marks.iter().map(|m| m.name.as_str()).collect();
                bail!("there is no mark {name} (there are {})", names.join(", "))
            }
        }
    }

    /// Marks the last kept moment at or before a time.
    pub(super) fn set_mark(&self, name: &str, at: Option<&str>) -> anyhow::Result<Moment> {
        let at = at.map(when::parse_now).transpose()?;
        let name = name.to_owned();
        match self.ask(Request::SetMark { name, at })? {
            Response::Moment(Some(moment)) => Ok(moment),
            _ => Err(nonsense()),
        }
    }

    /// What was at a path.
    pub(super) fn stat(&self, path: &BytePath, at: BatchSeq) -> anyhow::Result<Option<Entry>> {
        match self.ask(Request::Stat {
            path: path.clone(),
            at,
        })? {
            Response::Stat(e) if e.as_ref().is_none_or(|e| e.can_be_at(path)) => Ok(e),
            _ => Err(nonsense()),
        }
    }

    /// Calls `each` with a directory's entries, in byte order of their names, page by page.
    pub(super) fn pages(
        &self,
        dir: NodeId,
        at: BatchSeq,
        each: &mut dyn FnMut(Vec<Entry>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut after: Option<Name> = None;
        loop {
            let limit = limits::HISTORY_PAGE as u32;
            let Response::List { entries, more } = self.ask(Request::List {
                dir,
                at,
                after: after.clone(),
                limit,
            })?
            else {
                return Err(nonsense());
            };
            // A list that does not go forward would never end.
            if entries.first().is_some_and(|e| e.name <= after) {
                return Err(nonsense());
            }
            after = entries.last().and_then(|e| e.name.clone());
            each(entries)?;
            if !more || after.is_none() {
                return Ok(());
            }
        }
    }

    /// Versions of what was at a path, newest first.
    pub(super) fn versions(&self, path: &BytePath, limit: u32) -> anyhow::Result<Vec<Version>> {
        match self.ask(Request::Versions {
            path: path.clone(),
            limit,
        })? {
            Response::Versions(all) => Ok(all),
            _ => Err(nonsense()),
        }
    }

    /// Differences below a path.
    pub(super) fn diff(
        &self,
        path: &BytePath,
        from: BatchSeq,
        to: BatchSeq,
    ) -> anyhow::Result<(Vec<farwrite_core::history::Difference>, bool)> {
        match self.ask(Request::Diff {
            path: path.clone(),
            from,
            to,
        })? {
            Response::Diff { changes, truncated } => Ok((changes, truncated)),
            _ => Err(nonsense()),
        }
    }
}

/// The name in `mark:NAME`.
pub(super) fn mark_name(at: &str) -> Option<&str> {
    at.trim().strip_prefix("mark:")
}

/// What a crash of the vault has left out of the catalog is to be seen, too. Where that cannot be done (a copy that is only read,
/// another user's vault) what is there is what can be had.
fn bring_forward(vault: &Vault, source: &SourceName) {
    if !SourceVault::is_behind(vault, source) {
        return;
    }
    let owner = std::fs::metadata(vault.source_dir(source)).map(|m| m.uid());
    let done = match owner.is_ok_and(|uid| uid == rustix::process::geteuid().as_raw()) {
        true => match SourceVault::bring_forward(vault, source) {
            Err(e @ VaultError::Short(_)) => {
                eprintln!("farwrite: {e}");
                return;
            }
            other => other.map_err(|e| e.to_string()),
        },
        false => Err("it is another user's".into()),
    };
    if matches!(done, Ok(true)) {
        return;
    }
    // Who has it open brings its catalog forward; what was written just now takes a moment.
    let until = Instant::now() + OTHERS_TIME;
    let (last, why) = match (SourceVault::last_logged(vault, source), done) {
        (Ok(last), Ok(_)) => (last, "another process is bringing it forward".into()),
        (Ok(last), Err(why)) => (last, why),
        (Err(e), _) => (BatchSeq(u64::MAX), e.to_string()),
    };
    while SourceVault::last_shown(vault, source) < last {
        if Instant::now() >= until {
            eprintln!(
                "farwrite: the catalog of {source} is behind its log, and the newest may be missing: {why}"
            );
            return;
        }
        std::thread::sleep(OTHERS_TIME / 40);
    }
}

fn nonsense() -> anyhow::Error {
    anyhow::anyhow!("the vault's answer makes no sense")
}

fn known_sources(vault: &farwrite_vault::Vault) -> String {
    let names: Vec<String> = vault
        .sources()
        .unwrap_or_default()
        .into_iter()
        .map(|s| s.name.to_string())
        .collect();
    if names.is_empty() {
        String::new()
    } else {
        format!(" (it has {})", names.join(", "))
    }
}
