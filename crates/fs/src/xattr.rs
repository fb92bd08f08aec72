//! Extended attributes (xattr(7)), POSIX ACLs among them.

use crate::Dir;
use farwrite_core::meta::Xattr;
use farwrite_core::{Name, limits};
use rustix::fs::{
    XattrFlags, fgetxattr, flistxattr, lgetxattr, llistxattr, lremovexattr, lsetxattr,
};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A filesystem with this much free space is not full.
const ROOM_BYTES: u64 = 1 << 20;

/// Is the attribute one that we keep? What a filesystem makes up itself (`system.` but for ACLs, `btrfs.`,
/// `afs.` ...) belongs to the machine, not to the file.
pub(crate) fn kept(name: &[u8]) -> bool {
    [&b"user."[..], b"trusted.", b"security."]
        .iter()
        .any(|p| name.starts_with(p))
        || name == b"system.posix_acl_access"
        || name == b"system.posix_acl_default"
}

/// All attributes of `name` in `dir` (`None`: of `dir` itself), sorted by name, not following a link. A
/// filesystem without any gives none. `InvalidData` if they are over [`limits::XATTR_BYTES`].
pub fn list_xattrs(dir: &Dir, name: Option<&Name>) -> io::Result<Vec<Xattr>> {
    let Some(name) = name else {
        return list_file_xattrs(dir);
    };
    let path = dir.proc_path(Some(name));
    all_xattrs(
        |buf| llistxattr(&path, buf),
        |n, buf| lgetxattr(&path, n, buf),
    )
}

/// As [`list_xattrs`] of an open file or directory, which costs no way through /proc.
pub fn list_file_xattrs(file: impl AsFd) -> io::Result<Vec<Xattr>> {
    let file = file.as_fd();
    all_xattrs(
        |buf| flistxattr(file, buf),
        |n, buf| fgetxattr(file, n, buf),
    )
}

fn all_xattrs(
    list: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>,
    mut get: impl FnMut(&OsStr, &mut [u8]) -> rustix::io::Result<usize>,
) -> io::Result<Vec<Xattr>> {
    let mut names = Vec::new();
    read_grown(&mut names, list)?;
    let mut out = Vec::new();
    let mut total = 0;
    for n in names
        .split(|&b| b == 0)
        .filter(|n| !n.is_empty() && kept(n))
    {
        let mut value = Vec::new();
        match read_grown(&mut value, |buf| get(OsStr::from_bytes(n), buf)) {
            Err(e) if Errno::from_io_error(&e) == Some(Errno::NODATA) => continue,
            other => other?,
        }
        total += n.len() + value.len();
        if total > limits::XATTR_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "extended attributes too large",
            ));
        }
        out.push(Xattr {
            name: n.to_vec(),
            value,
        });
    }
    out.sort();
    // Some kernels list an attribute of NFS twice.
    out.dedup_by(|a, b| a.name == b.name);
    Ok(out)
}

/// Makes the attributes of `name` those of `want`: sets what differs, removes what is not wanted. Returns how many
/// could not be set or removed for lack of privilege or of support by the filesystem, or do not fit into it.
pub fn set_xattrs(
    dir: &Dir,
    name: Option<&Name>,
    want: &[Xattr],
    have: &[Xattr],
) -> io::Result<u32> {
    let path = match name {
        Some(_) => dir.proc_path(name),
        None => dir.proc_path(None).join("."),
    };
    let mut skipped = 0;
    for x in want.iter().filter(|x| !have.contains(x)) {
        let name = OsStr::from_bytes(&x.name);
        let done = lsetxattr(&path, name, &x.value, XattrFlags::empty());
        skipped += tolerate(done, dir)?;
    }
    for x in have
        .iter()
        .filter(|h| !want.iter().any(|w| w.name == h.name))
    {
        skipped += tolerate(remove(&path, &x.name), dir)?;
    }
    Ok(skipped)
}

fn remove(path: &Path, name: &[u8]) -> rustix::io::Result<()> {
    match lremovexattr(path, OsStr::from_bytes(name)) {
        Err(Errno::NODATA) => Ok(()),
        other => other,
    }
}

/// 1 if the filesystem, on which `at` lies, refuses an attribute as such: for lack of privilege or of support, or since it has
/// less room for the attributes of one file than another filesystem (ext4: one block, xattr(7)), which it says as if it were full.
pub(crate) fn tolerate(r: rustix::io::Result<()>, at: impl AsFd) -> io::Result<u32> {
    match r {
        Ok(()) => Ok(0),
        Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::INVAL) => Ok(1),
        Err(Errno::TOOBIG | Errno::RANGE) => Ok(1),
        Err(Errno::NOSPC) if !is_full(at)? => Ok(1),
        Err(e) => Err(e.into()),
    }
}

fn is_full(at: impl AsFd) -> io::Result<bool> {
    let s = rustix::fs::fstatvfs(at)?;
    Ok(s.f_bavail.saturating_mul(s.f_frsize) < ROOM_BYTES)
}

/// Calls `f` with buffers growing up to 64 KiB, the kernel's own limit for one list or value. Where there are no
/// attributes at all it is empty.
pub(crate) fn read_grown(
    out: &mut Vec<u8>,
    mut f: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>,
) -> io::Result<()> {
    out.resize(256, 0);
    loop {
        match f(&mut out[..]) {
            Ok(n) => {
                out.truncate(n);
                return Ok(());
            }
            Err(Errno::RANGE) if out.len() < 65536 => out.resize(65536, 0),
            Err(Errno::OPNOTSUPP) => {
                out.clear();
                return Ok(());
            }
            Err(e) => return Err(e.into()),
        }
    }
}
