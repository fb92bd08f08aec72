//! When a message was read: the kernel's queues carry no times of their own.

use farwrite_core::Timestamp;
use std::time::SystemTime;

/// Wall time of the reading; the time of every [`farwrite_core::Change`] of one buffer.
pub(crate) fn now() -> Timestamp {
    SystemTime::now().into()
}
