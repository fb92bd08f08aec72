//! The scheduling module: a queue unit (journal and dirty set), a schedule-managing unit that puts file
//! modification messages in, and a schedule-processing unit that takes them out in order as backup commands.
//! Both units pace themselves with one algorithm, the [`Pacer`].
//!
//! Knows neither sensors nor network nor the files themselves: messages come in through [`MessageSource`],
//! commands go out through [`CommandSink`].
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod dirty;
mod journal;
mod manage;
mod pacer;
mod process;
mod queue;

pub use dirty::{DirtySet, Taken};
pub use journal::{Journal, JournalError, JournalStats, Recovered};
pub use manage::{
    Drain, DrainTicket, Haste, ManagingShared, ManagingStats, ManagingUnit, MessageSource,
};
pub use pacer::{Interval, Pacer, PacerSetting, ParseIntervalError, REST_MAX, Round};
pub use process::{CommandSink, Outcome, ProcessingStats, ProcessingUnit, Stopped};
pub use queue::{Queue, QueueStats, Wait};
