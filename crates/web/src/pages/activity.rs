//! The feed of what happens. What it shows comes by [`crate::live`].

use super::{Frame, Page, html};
use askama::Template;
use axum::response::IntoResponse;

#[derive(Template)]
#[template(path = "activity.html")]
struct Feed {
    frame: Frame,
    operations: &'static [&'static str],
}

/// As the daemon calls them.
const OPERATIONS: [&str; 10] = [
    "create", "write", "truncate", "rename", "delete", "attrib", "mmap", "links", "compare",
    "overflow",
];

/// `GET /activity`.
pub(crate) async fn page() -> Page {
    Ok(html(&Feed {
        frame: Frame::new("Activity"),
        operations: &OPERATIONS,
    })
    .into_response())
}
