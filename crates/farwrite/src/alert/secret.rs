//! A password or token of the configuration: it goes into the file and to the server it is for, and is printed nowhere.

use serde::{Deserialize, Serialize};
use std::fmt;

/// See the module.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// From what somebody typed.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// For the server that it is for, and for nobody else.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() {
            "none"
        } else {
            "(secret)"
        })
    }
}
