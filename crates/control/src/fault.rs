//! Why a request was not done: what the daemon tells, and what a client shows. A text is for people and never holds a
//! secret; a field names the part of the request that is wrong, so that a form can point at it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What sort of refusal; decides the HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// The request is wrong: 422.
    Invalid,
    /// There is no such thing: 404.
    NotFound,
    /// It does not go together with what is there: 409.
    Conflict,
    /// It did not work, and may work later: 503.
    Failed,
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{why}")]
pub struct Fault {
    /// What sort.
    pub kind: FaultKind,
    /// In words.
    pub why: String,
    /// Which field of the request is wrong, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

/// What a request gives.
pub type Answer<T> = Result<T, Fault>;

impl Fault {
    fn new(kind: FaultKind, why: impl Into<String>) -> Fault {
        Fault {
            kind,
            why: why.into(),
            field: None,
        }
    }

    /// A field of the request is wrong.
    pub fn field(field: &str, why: impl Into<String>) -> Fault {
        Fault {
            field: Some(field.into()),
            ..Fault::new(FaultKind::Invalid, why)
        }
    }

    /// The request is wrong.
    pub fn invalid(why: impl Into<String>) -> Fault {
        Fault::new(FaultKind::Invalid, why)
    }

    /// There is no such thing.
    pub fn not_found(why: impl Into<String>) -> Fault {
        Fault::new(FaultKind::NotFound, why)
    }

    /// It does not go together with what is there.
    pub fn conflict(why: impl Into<String>) -> Fault {
        Fault::new(FaultKind::Conflict, why)
    }

    /// It did not work.
    pub fn failed(why: impl Into<String>) -> Fault {
        Fault::new(FaultKind::Failed, why)
    }

    /// This daemon does not offer it.
    pub(crate) fn not_offered() -> Fault {
        Fault::not_found("this daemon does not offer that")
    }

    /// The HTTP status that goes with it.
    pub fn status(&self) -> u16 {
        match self.kind {
            FaultKind::Invalid => 422,
            FaultKind::NotFound => 404,
            FaultKind::Conflict => 409,
            FaultKind::Failed => 503,
        }
    }
}
