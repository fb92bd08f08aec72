//! The backup command: what the schedule-processing unit tells the network backup unit to look at.

use crate::{BytePath, ChangeSeq, ExtentSet, FileId, Name, Timestamp};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// One backup command. Has at least the changed file's path.
///
/// It says where to look, not what is there: the backup unit compares the file with what it last sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupCommand {
    /// Path as of the last message about it; for people and for excludes.
    pub path: BytePath,
    /// What to look at.
    pub target: Target,
    /// Why.
    pub what: What,
    /// The bytes that changed, if the sensor knew them all; `None`: find out.
    pub extents: Option<ExtentSet>,
    /// First message that this command stands for. Its journal entry is kept until the command's batch is acked.
    pub first: ChangeSeq,
    /// Time of that message.
    pub since: Timestamp,
    /// The newest of its messages that told of content or attributes: who has read the file since has seen what it is
    /// about. 0: none did; [`ChangeSeq::UNKNOWN`]: perhaps one that is still to come.
    pub newest: ChangeSeq,
    /// How often the backup unit has put it off.
    pub attempts: u32,
}

/// What a command is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Target {
    /// A name in a directory.
    Name {
        /// The directory.
        dir: FileId,
        /// The name.
        name: Name,
    },
    /// A file whatever its name.
    File(FileId),
    /// A directory itself: its attributes; with [`What::compare`] the names in it too.
    Directory(FileId),
}

/// A known file that was read whole, since nobody knew where it had changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Search {
    /// What later commands about it aim at.
    pub target: Target,
    /// How long it took.
    pub took: Duration,
    /// Part of what was read that had not changed, 0 to 1.
    pub in_vain: f64,
}

/// What may have changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct What {
    /// The name came, went, or names something else.
    pub name: bool,
    /// The name was made: a new file, or one more link to a known one.
    pub created: bool,
    /// The name went away by a rename: it may be found elsewhere.
    pub moved: bool,
    /// Content.
    pub data: bool,
    /// Content that shared mappings may be changing: start writeback of what is read before it is read.
    pub mapped: bool,
    /// Attributes.
    pub attr: bool,
    /// Messages about it may have been lost and a compare is on its way: extents are not all that changed, and times that
    /// are new may be those of a change that nobody told of.
    pub doubt: bool,
    /// Every entry of the directory.
    pub compare: bool,
    /// With `compare`: everything below, too.
    pub recursive: bool,
}

impl What {
    /// Only that the file was written to (or its attributes set): nothing waits behind this for names to be right.
    pub fn is_content_only(self) -> bool {
        (self.data || self.attr) && !(self.name || self.created || self.moved || self.compare)
    }

    /// Nothing is said of content or attributes, nor is everything to be compared.
    pub fn is_about_names_only(self) -> bool {
        !(self.created || self.data || self.mapped || self.attr || self.compare)
    }

    /// Both together.
    pub fn or(self, o: What) -> What {
        What {
            name: self.name | o.name,
            created: self.created | o.created,
            moved: self.moved | o.moved,
            data: self.data | o.data,
            mapped: self.mapped | o.mapped,
            attr: self.attr | o.attr,
            doubt: self.doubt | o.doubt,
            compare: self.compare | o.compare,
            recursive: self.recursive | o.recursive,
        }
    }
}
