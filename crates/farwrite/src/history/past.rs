//! The history as the control API shows it: the same questions that the commands ask, over one session per vault that is
//! kept open. Must never hold up the backup: it has connections and threads of its own.

use super::ask::Ask;
use super::{show, when};
use crate::cli::HistoryFrom;
use crate::config::Config;
use crate::state::State;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use farwrite_control as api;
use farwrite_control::{Answer, Fault};
use farwrite_core::history::{
    DifferenceKind, Entry, Mark, Moment, Request, Response, VersionChange,
};
use farwrite_core::{BytePath, Kind, Name, Timestamp, limits, path};
use farwrite_transfer::net::HistoryError;
use farwrite_vault::write_content;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// Parts of a timeline, unless said otherwise, and at most.
const PARTS: u32 = 120;
const PARTS_MAX: u32 = 500;

/// See the module.
pub struct Past {
    pub(super) state: State,
    open: Mutex<HashMap<String, Arc<Ask>>>,
    pub(super) jobs: super::jobs::Jobs,
}

/// Why a question has no answer.
pub(super) enum Trouble {
    /// It cannot be answered as it is.
    Fault(Fault),
    /// It could not be asked.
    Ask(anyhow::Error),
}

impl From<Fault> for Trouble {
    fn from(f: Fault) -> Trouble {
        Trouble::Fault(f)
    }
}

impl From<anyhow::Error> for Trouble {
    fn from(e: anyhow::Error) -> Trouble {
        Trouble::Ask(e)
    }
}

type Told<T> = Result<T, Trouble>;

impl Past {
    /// Of the vaults in the configuration.
    pub fn new(state: &State) -> Past {
        Past {
            state: state.clone(),
            open: Mutex::default(),
            jobs: super::jobs::Jobs::default(),
        }
    }

    /// Asks a vault. A session that has broken since it was last used is opened anew, once.
    pub(super) fn with<T>(
        &self,
        vault: Option<&str>,
        f: impl Fn(&Arc<Ask>, &str) -> Told<T>,
    ) -> Answer<T> {
        let name = self.vault_name(vault)?;
        let known = self.open.lock().get(&name).cloned();
        if let Some(ask) = known {
            match f(&ask, &name) {
                Err(Trouble::Ask(e)) if e.downcast_ref::<HistoryError>().is_some() => {
                    self.open.lock().remove(&name);
                }
                other => return settle(other),
            }
        }
        let ask = Arc::new(self.session(&name)?);
        let answer = f(&ask, &name);
        if answer.is_ok() {
            self.open.lock().insert(name, ask);
        }
        settle(answer)
    }

    /// A session of its own.
    pub(super) fn session(&self, vault: &str) -> Answer<Ask> {
        let from = HistoryFrom {
            vault: vault.parse().ok(),
            vault_dir: None,
            source: None,
        };
        Ask::open(&self.state, &from).map_err(failed)
    }

    /// The vault of this name, or the only one.
    pub(super) fn vault_name(&self, vault: Option<&str>) -> Answer<String> {
        let config = Config::load(&self.state).map_err(failed)?;
        let wanted = vault.filter(|v| !v.is_empty());
        let found = match wanted {
            Some(name) => config.vaults.iter().find(|v| v.name.as_str() == name),
            None if config.vaults.len() == 1 => config.vaults.first(),
            None => return Err(Fault::field("vault", "there are several vaults: say which")),
        };
        match found {
            Some(v) => Ok(v.name.to_string()),
            None => Err(Fault::field("vault", "there is no vault of that name")),
        }
    }

    /// See [`api::Handler::moments`].
    pub fn moments(&self, q: &api::MomentsQuery) -> Answer<api::Moments> {
        self.with(q.vault.as_deref(), |ask, name| {
            let (first, last) = match ask.raw(Request::Moments)? {
                Response::Moments(Some((a, b))) => (Some(moment(&a)), Some(moment(&b))),
                Response::Moments(None) => (None, None),
                other => return Err(unexpected(other)),
            };
            Ok(api::Moments {
                vault: name.to_owned(),
                directories: ask.directories().iter().map(ToString::to_string).collect(),
                first,
                last,
            })
        })
    }

    /// See [`api::Handler::marks`].
    pub fn marks(&self, q: &api::MomentsQuery) -> Answer<Vec<api::MarkedMoment>> {
        self.with(q.vault.as_deref(), |ask, _| {
            match ask.raw(Request::Marks)? {
                Response::Marks(list) => Ok(list.iter().map(mark).collect()),
                other => Err(unexpected(other)),
            }
        })
    }

    /// See [`api::Handler::set_mark`].
    pub fn set_mark(&self, m: &api::SetMark) -> Answer<api::MarkedMoment> {
        let name = m.name.trim();
        let plain = |c: char| c.is_ascii_alphanumeric() || ['.', '_', '-'].contains(&c);
        if name.is_empty() || !name.chars().all(plain) {
            let why = "a name of letters, digits, '.', '_' and '-' is needed";
            return Err(Fault::field("name", why));
        }
        self.with(m.vault.as_deref(), |ask, _| {
            let time = at(ask, m.at.as_deref())?.time;
            let at = m.at.as_deref().filter(|t| !t.trim().is_empty());
            let request = Request::SetMark {
                name: name.to_owned(),
                at: at.map(|_| time),
            };
            match ask.raw(request)? {
                Response::Moment(Some(found)) => Ok(api::MarkedMoment {
                    name: name.to_owned(),
                    moment: moment(&found),
                    by: "source".into(),
                }),
                // It says what is wrong with the name, or that there are too many.
                Response::Error(why) => Err(Fault::field("name", why).into()),
                other => Err(unexpected(other)),
            }
        })
    }

    /// See [`api::Handler::list`].
    pub fn list(&self, q: &api::ListQuery) -> Answer<api::Listing> {
        let path = byte_path(&q.path, q.path_bytes.as_deref())?;
        let after = match q.after.as_deref().filter(|a| !a.is_empty()) {
            Some(text) => Some(name_from(text).ok_or_else(|| Fault::field("after", "no name"))?),
            None => None,
        };
        let limit = q
            .limit
            .unwrap_or(u32::MAX)
            .clamp(1, limits::HISTORY_PAGE as u32);
        self.with(q.vault.as_deref(), |ask, _| {
            let at = at(ask, q.at.as_deref())?;
            let found = there(ask, &path, &at)?;
            let (entries, more) = match found.meta.kind {
                Kind::Dir => {
                    let request = Request::List {
                        dir: found.node,
                        at: at.seq,
                        after: after.clone(),
                        limit,
                    };
                    match ask.raw(request)? {
                        Response::List { entries, more } => (entries, more),
                        other => return Err(unexpected(other)),
                    }
                }
                _ => (vec![found.clone()], false),
            };
            let last = entries.last().and_then(|e| e.name.as_ref());
            let next = last.filter(|_| more).map(|n| STANDARD.encode(n.as_bytes()));
            Ok(api::Listing {
                moment: moment(&at),
                path: text(path.as_bytes()),
                path_bytes: bytes(path.as_bytes()),
                kind: show::kind(found.meta.kind).into(),
                entries: entries.iter().map(entry).collect(),
                next,
            })
        })
    }

    /// See [`api::Handler::versions`].
    pub fn versions(&self, q: &api::VersionsQuery) -> Answer<Vec<api::Version>> {
        let path = byte_path(&q.path, q.path_bytes.as_deref())?;
        let limit = q.limit.unwrap_or(100).clamp(1, limits::HISTORY_PAGE as u32);
        self.with(q.vault.as_deref(), |ask, _| {
            let all = ask.versions(&path, limit)?;
            if all.is_empty() {
                let why = format!("{path}: nothing of that name has been backed up");
                return Err(Fault::not_found(why).into());
            }
            Ok(all.iter().map(version).collect())
        })
    }

    /// See [`api::Handler::differences`].
    pub fn differences(&self, q: &api::DiffQuery) -> Answer<api::Differences> {
        let path = byte_path(&q.path, q.path_bytes.as_deref())?;
        self.with(q.vault.as_deref(), |ask, _| {
            let from = at(ask, Some(&q.from)).map_err(|t| in_field(t, "from"))?;
            let to = at(ask, q.to.as_deref()).map_err(|t| in_field(t, "to"))?;
            if from.seq > to.seq {
                return Err(Fault::field("from", "this is later than the other moment").into());
            }
            let (changes, truncated) = ask.diff(&path, from.seq, to.seq)?;
            Ok(api::Differences {
                from: moment(&from),
                to: moment(&to),
                changes: changes.iter().map(difference).collect(),
                truncated,
            })
        })
    }

    /// See [`api::Handler::timeline`].
    pub fn timeline(&self, q: &api::TimelineQuery) -> Answer<api::Timeline> {
        let name = self.vault_name(q.vault.as_deref())?;
        let parts = q.buckets.unwrap_or(PARTS).clamp(1, PARTS_MAX);
        // A session of its own: a vault that does not know the question ends it.
        let ask = self.session(&name)?;
        let (first, last) = ask.moments().map_err(failed)?;
        let limit = |text: &Option<String>, field, or: Timestamp| match text.as_deref() {
            None | Some("") => Ok(or),
            Some(t) => when::parse_now(t).map_err(|e| Fault::field(field, e.to_string())),
        };
        let (from, to) = (
            limit(&q.from, "from", first.time)?,
            limit(&q.to, "to", last.time)?,
        );
        if to < from {
            return Err(Fault::field("to", "this is before the begin"));
        }
        let found = match ask
            .raw(Request::Timeline { from, to, parts })
            .map_err(failed)?
        {
            Response::Timeline(found) => found,
            other => return settle(Err(unexpected(other))),
        };
        let span_ms = to.since(from).as_millis() as u64;
        Ok(api::Timeline {
            from: show::rfc3339(from),
            to: show::rfc3339(to),
            bucket_ms: span_ms / u64::from(parts),
            buckets: found
                .iter()
                .map(|p| api::Bucket {
                    batches: p.batches,
                    changes: p.ops,
                    bytes: p.bytes,
                })
                .collect(),
        })
    }

    /// See [`api::Handler::content`].
    pub fn content(&self, q: &api::ContentQuery) -> Answer<api::Content> {
        let path = byte_path(&q.path, q.path_bytes.as_deref())?;
        let (ask, found, at) = self.with(q.vault.as_deref(), |ask, _| {
            let at = at(ask, q.at.as_deref())?;
            let found = there(ask, &path, &at)?;
            if found.meta.kind != Kind::File {
                let why = format!("{path} is no file: a {}", show::kind(found.meta.kind));
                return Err(Fault::conflict(why).into());
            }
            Ok((ask.clone(), found, at))
        })?;
        Ok(api::Content {
            size: found.meta.size,
            write: Box::new(move |out| {
                let answer = |request: Request| ask.raw(request).map_err(Into::into);
                write_content(&answer, &found, at.seq, out).map_err(std::io::Error::other)
            }),
        })
    }
}

fn settle<T>(told: Told<T>) -> Answer<T> {
    told.map_err(|t| match t {
        Trouble::Fault(f) => f,
        Trouble::Ask(e) => failed(e),
    })
}

/// An error as a refusal, in one line.
pub(super) fn failed(e: anyhow::Error) -> Fault {
    Fault::failed(crate::one_line(&e))
}

fn in_field(t: Trouble, field: &str) -> Trouble {
    match t {
        Trouble::Fault(f) if f.field.is_some() => Trouble::Fault(Fault::field(field, f.why)),
        other => other,
    }
}

fn unexpected(response: Response) -> Trouble {
    let why = match response {
        Response::Error(text) => format!("the vault says: {}", path::lossy(text.as_bytes())),
        _ => "the vault's answer makes no sense".into(),
    };
    Fault::failed(why).into()
}

fn mark(m: &Mark) -> api::MarkedMoment {
    api::MarkedMoment {
        name: m.name.clone(),
        moment: moment(&m.moment),
        by: m.by.clone(),
    }
}

/// The moment of a time as a person wrote it.
pub(super) fn at(ask: &Ask, text: Option<&str>) -> Told<Moment> {
    let text = text.filter(|t| !t.trim().is_empty());
    if let Some(t) = text.filter(|t| super::ask::mark_name(t).is_none()) {
        when::parse_now(t).map_err(|e| Fault::field("at", e.to_string()))?;
    }
    match ask.moment(text) {
        Ok(m) => Ok(m),
        Err(e) if e.downcast_ref::<HistoryError>().is_some() => Err(e.into()),
        Err(e) => Err(Fault::field("at", e.to_string()).into()),
    }
}

pub(super) fn there(ask: &Ask, path: &BytePath, at: &Moment) -> Told<Entry> {
    match ask.stat(path, at.seq)? {
        Some(e) => Ok(e),
        None => Err(Fault::not_found(super::diff::nothing_there(ask, path, at)?).into()),
    }
}

/// The path of a request.
pub(super) fn byte_path(text: &str, bytes: Option<&str>) -> Answer<BytePath> {
    let bad = |e: &dyn std::fmt::Display| Fault::field("path", e.to_string());
    match bytes.filter(|b| !b.is_empty()) {
        Some(b) => {
            let raw = STANDARD.decode(b).map_err(|e| bad(&e))?;
            BytePath::new(raw).map_err(|e| bad(&e))
        }
        None => BytePath::new(text).map_err(|e| bad(&e)),
    }
}

fn name_from(base64: &str) -> Option<Name> {
    Name::new(STANDARD.decode(base64).ok()?).ok()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn bytes(raw: &[u8]) -> Option<String> {
    std::str::from_utf8(raw)
        .is_err()
        .then(|| STANDARD.encode(raw))
}

pub(super) fn moment(m: &Moment) -> api::Moment {
    api::Moment {
        batch: m.seq.0,
        time: show::rfc3339(m.time),
        clean: m.clean,
    }
}

fn entry(e: &Entry) -> api::Entry {
    let name = e.name.as_ref().map_or(&b"/"[..], |n| n.as_bytes());
    let m = &e.meta;
    api::Entry {
        name: text(name),
        name_bytes: bytes(name),
        kind: show::kind(m.kind).into(),
        size: (m.kind == Kind::File).then_some(m.size),
        mode: show::mode(m),
        uid: m.uid,
        gid: m.gid,
        mtime: show::rfc3339(m.mtime),
        target: (m.kind == Kind::Symlink).then(|| text(&m.target)),
    }
}

fn version(v: &farwrite_core::history::Version) -> api::Version {
    let change = match v.what {
        VersionChange::Created => "created",
        VersionChange::RenamedHere => "renamed-here",
        VersionChange::Replaced => "replaced",
        VersionChange::Content => "content",
        VersionChange::Attributes => "attributes",
        VersionChange::Removed => "removed",
    };
    let file = v.meta.as_ref().filter(|m| m.kind == Kind::File);
    api::Version {
        moment: moment(&v.moment),
        change: change.into(),
        bytes_new: v.bytes_new,
        kind: v.meta.as_ref().map(|m| show::kind(m.kind).into()),
        size: file.map(|m| m.size),
    }
}

fn difference(d: &farwrite_core::history::Difference) -> api::Difference {
    let change = match d.what {
        DifferenceKind::Added => "added",
        DifferenceKind::Removed => "removed",
        DifferenceKind::Content => "content",
        DifferenceKind::Attributes => "attributes",
    };
    api::Difference {
        path: text(d.path.as_bytes()),
        path_bytes: bytes(d.path.as_bytes()),
        kind: show::kind(d.kind).into(),
        change: change.into(),
        size_from: d.size_from,
        size_to: d.size_to,
    }
}
