//! What of the past is kept and for how long. This is the only code that takes away what a user may want, so it is
//! slow to do so: nothing goes unless a policy asks for it, what is to stay is on the disk before the first row or byte goes,
//! and no content is freed that any kept moment still needs.

mod brake;
mod kept;
mod live;
mod marks;
mod plan;
mod policy;
mod prune;

pub(crate) use brake::percent as brake_percent;
pub use brake::{BRAKE_MARKS, BRAKE_PERCENT, BRAKE_WINDOW, Brake, Counts, Watch};
pub use kept::Kept;
pub use marks::{MARK_NAME_BYTES, MARKS_MAX, MarkError, Marks, check_mark_name};
pub use plan::{Plan, Planner};
pub use policy::{BadPolicy, POLICY_FILE, Policy, Span};
pub use prune::{PruneError, PruneOptions, PruneReport, Write, preview, prune};
