//! Reading and setting a file's attributes as one [`Meta`].

use crate::{Dir, Stat, xattr};
use farwrite_core::meta::Xattr;
use farwrite_core::{Kind, Meta, Name, Timestamp};
use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, flistxattr,
    fremovexattr, fsetxattr, openat, utimensat,
};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// All attributes of `name` in `dir`, whose `stat` the caller has just taken.
pub fn read_meta(dir: &Dir, name: &Name, stat: &Stat) -> io::Result<Meta> {
    let target = if stat.kind == Kind::Symlink {
        dir.read_link(name)?
    } else {
        Vec::new()
    };
    Ok(read_meta_with(
        stat,
        target,
        xattr::list_xattrs(dir, Some(name))?,
    ))
}

/// A [`Meta`] of parts already read.
pub fn read_meta_with(stat: &Stat, target: Vec<u8>, xattrs: Vec<Xattr>) -> Meta {
    Meta {
        kind: stat.kind,
        mode: if stat.kind == Kind::Symlink {
            0o777
        } else {
            stat.mode
        },
        uid: stat.uid,
        gid: stat.gid,
        mtime: stat.mtime,
        size: stat.content_bytes(),
        rdev: stat.rdev,
        target,
        xattrs,
    }
}

/// What could not be set for lack of privilege, or because the filesystem does not have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Owner or group.
    pub owner: u32,
    /// Permission bits.
    pub mode: u32,
    /// Extended attributes and ACLs.
    pub xattrs: u32,
    /// Times.
    pub times: u32,
}

impl Skipped {
    /// Anything at all?
    pub fn any(&self) -> bool {
        *self != Skipped::default()
    }

    /// Adds up.
    pub fn add(&mut self, o: Skipped) {
        self.owner += o.owner;
        self.mode += o.mode;
        self.xattrs += o.xattrs;
        self.times += o.times;
    }
}

/// Gives an existing entry (`None`: `dir` itself) the owner, mode, xattrs and mtime of `want`, touching only what
/// differs. Kind, size, target and device number are not its business. mtime is set last; whoever changes the
/// entry or a directory's names afterwards has to call again.
pub fn apply_meta(dir: &Dir, name: Option<&Name>, want: &Meta) -> io::Result<Skipped> {
    let have = match name {
        Some(n) => dir.stat(n)?,
        None => dir.stat_self()?,
    };
    if have.kind != want.kind {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "another kind of file is there",
        ));
    }
    let mut skipped = Skipped::default();
    let owner = have.uid != want.uid || have.gid != want.gid;
    if owner {
        skipped.owner += set_owner(dir, name, want, &have)?;
    }
    let have_xattrs = xattr::list_xattrs(dir, name)?;
    // An ACL carries permission bits too, and a chown clears suid and security.capability: hence the order.
    let have_xattrs = if owner && !have_xattrs.is_empty() {
        xattr::list_xattrs(dir, name)?
    } else {
        have_xattrs
    };
    let xattrs_differ = have_xattrs != want.xattrs;
    if xattrs_differ {
        skipped.xattrs += xattr::set_xattrs(dir, name, &want.xattrs, &have_xattrs)?;
    }
    if want.kind != Kind::Symlink && (owner || xattrs_differ || have.mode != want.mode) {
        skipped.mode += set_mode(dir, name, want)?;
    }
    if owner || xattrs_differ || have.mtime != want.mtime {
        skipped.times += set_mtime(dir, name, want.mtime)?;
    }
    Ok(skipped)
}

/// The mode with which a new file is made that is to get these attributes: the one that it will have, so that it need not be set
/// once more, if nothing else about who may read it is still to be set; else for us alone. `inherits`: its directory has a
/// default ACL.
pub fn mode_to_create(want: &Meta, inherits: bool) -> u32 {
    let ours = (want.uid, want.gid) == (geteuid().as_raw(), getegid().as_raw());
    match ours && !inherits && want.xattrs.is_empty() {
        true => want.mode & 0o777,
        false => 0o600,
    }
}

/// As [`apply_meta`] for a regular file that is open for writing. `fresh`: just created by this process in a directory that has no
/// default ACL, so that it has no xattrs.
pub fn apply_meta_fd(file: &File, want: &Meta, fresh: bool) -> io::Result<Skipped> {
    let have = Stat::of(file)?;
    let mut skipped = Skipped::default();
    let owner = have.uid != want.uid || have.gid != want.gid;
    if owner {
        match rustix::fs::fchown(file, uid(want.uid, have.uid), gid(want.gid, have.gid)) {
            Ok(()) => {}
            Err(Errno::PERM | Errno::INVAL) => skipped.owner += 1,
            Err(e) => return Err(e.into()),
        }
    }
    let xattrs = !fresh || !want.xattrs.is_empty();
    if xattrs {
        skipped.xattrs += set_file_xattrs(file, want)?;
    }
    // A chown clears suid, an ACL carries permission bits.
    if owner || xattrs || have.mode != want.mode {
        match rustix::fs::fchmod(file, Mode::from_raw_mode(want.mode)) {
            Ok(()) => {}
            Err(Errno::PERM) => skipped.mode += 1,
            Err(e) => return Err(e.into()),
        }
    }
    rustix::fs::futimens(file, &times(want.mtime))?;
    Ok(skipped)
}

fn set_file_xattrs(file: &File, want: &Meta) -> io::Result<u32> {
    let mut names = Vec::new();
    xattr::read_grown(&mut names, |buf| flistxattr(file, buf))?;
    let mut skipped = 0;
    for have in names.split(|&b| b == 0).filter(|n| xattr::kept(n)) {
        if !want.xattrs.iter().any(|w| w.name == have) {
            match fremovexattr(file, OsStr::from_bytes(have)) {
                Err(Errno::NODATA) => {}
                done => skipped += xattr::tolerate(done, file)?,
            }
        }
    }
    for x in &want.xattrs {
        let name = OsStr::from_bytes(&x.name);
        let done = fsetxattr(file, name, &x.value, XattrFlags::empty());
        skipped += xattr::tolerate(done, file)?;
    }
    Ok(skipped)
}

fn uid(want: u32, have: u32) -> Option<Uid> {
    (want != have && want != u32::MAX).then(|| Uid::from_raw(want))
}

fn gid(want: u32, have: u32) -> Option<Gid> {
    (want != have && want != u32::MAX).then(|| Gid::from_raw(want))
}

fn set_owner(dir: &Dir, name: Option<&Name>, want: &Meta, have: &Stat) -> io::Result<u32> {
    let (path, flags) = match name {
        Some(n) => (Path::new(n.as_os_str()), AtFlags::SYMLINK_NOFOLLOW),
        None => (Path::new(""), AtFlags::EMPTY_PATH),
    };
    match chownat(
        dir,
        path,
        uid(want.uid, have.uid),
        gid(want.gid, have.gid),
        flags,
    ) {
        Ok(()) => Ok(0),
        Err(Errno::PERM | Errno::INVAL) => Ok(1),
        Err(e) => Err(e.into()),
    }
}

/// chmod through an O_PATH handle: never follows a link, never opens a device, works on a fifo.
fn set_mode(dir: &Dir, name: Option<&Name>, want: &Meta) -> io::Result<u32> {
    let mode = Mode::from_raw_mode(want.mode);
    let done = match name {
        None => rustix::fs::fchmod(dir, mode),
        Some(n) => {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = openat(dir, n.as_os_str(), flags, Mode::empty())?;
            if Stat::of(&fd)?.kind == Kind::Symlink {
                return Ok(1);
            }
            rustix::fs::chmod(format!("/proc/self/fd/{}", fd.as_raw_fd()), mode)
        }
    };
    match done {
        Ok(()) => Ok(0),
        Err(Errno::PERM | Errno::OPNOTSUPP) => Ok(1),
        Err(e) => Err(e.into()),
    }
}

/// Sets when an entry (`None`: `dir` itself) was last changed. How often that was refused: 0 or 1.
pub fn set_mtime(dir: &Dir, name: Option<&Name>, mtime: Timestamp) -> io::Result<u32> {
    let done = match name {
        Some(n) => utimensat(dir, n.as_os_str(), &times(mtime), AtFlags::SYMLINK_NOFOLLOW),
        None => rustix::fs::futimens(dir, &times(mtime)),
    };
    match done {
        Ok(()) => Ok(0),
        Err(Errno::PERM) => Ok(1),
        Err(e) => Err(e.into()),
    }
}

fn times(mtime: Timestamp) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: mtime.sec,
            tv_nsec: i64::from(mtime.nsec),
        },
    }
}
