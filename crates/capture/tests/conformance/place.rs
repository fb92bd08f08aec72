//! A protected directory and its outside, on ext4 (whatever the build directory is on) or a tmpfs of its own.

use farwrite_capture::{
    ChangeSource, EbpfSource, FanotifySource, InotifySource, KmodSource, ReadState, ScanSource,
    SensorKind, SensorOptions, WatchRoot,
};
use farwrite_core::{BytePath, Change, FileId};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// The fanotify and inotify state of a process is one: tests take turns where they share a process.
static TURN: Mutex<()> = Mutex::new(());

pub struct Place {
    pub base: PathBuf,
    mounts: Vec<PathBuf>,
    _dir: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// The build directory's, or that of `FARWRITE_CONFORMANCE_DIR`: other programs may change files there as well, so
    /// hard-linked ones of theirs show by identity.
    Disk,
    /// Our own alone.
    Tmpfs,
}

pub fn need_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test needs root (fanotify, mount): run the suite as root"
    );
}

impl Place {
    pub fn new(on: On) -> Self {
        need_root();
        let turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
        let dir = std::env::var_os("FARWRITE_CONFORMANCE_DIR");
        let dir = dir.unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into());
        let dir = tempfile::tempdir_in(dir).unwrap();
        let mut place = Place {
            base: dir.path().canonicalize().unwrap(),
            mounts: Vec::new(),
            _dir: dir,
            _turn: turn,
        };
        if on == On::Tmpfs {
            place.mount("tmpfs", "tmpfs".as_ref(), place.base.clone(), 0);
        }
        std::fs::create_dir(place.root()).unwrap();
        std::fs::create_dir(place.outside()).unwrap();
        place
    }

    pub fn mount(&mut self, fstype: &str, from: &Path, to: PathBuf, flags: libc::c_ulong) {
        let c = |b: &[u8]| CString::new(b).unwrap();
        let (kind, source) = (c(fstype.as_bytes()), c(from.as_os_str().as_bytes()));
        let target = c(to.as_os_str().as_bytes());
        // SAFETY: all three are NUL-terminated and outlive the call; no data is given.
        let r = unsafe {
            libc::mount(
                source.as_ptr(),
                target.as_ptr(),
                kind.as_ptr(),
                flags,
                std::ptr::null(),
            )
        };
        assert_eq!(r, 0, "mount: {}", std::io::Error::last_os_error());
        self.mounts.push(to);
    }

    pub fn unmount(&mut self, at: &Path) {
        let target = CString::new(at.as_os_str().as_bytes()).unwrap();
        // SAFETY: a NUL-terminated path that outlives the call.
        let r = unsafe { libc::umount2(target.as_ptr(), 0) };
        assert_eq!(r, 0, "umount: {}", std::io::Error::last_os_error());
        self.mounts.retain(|m| m != at);
    }

    pub fn root(&self) -> PathBuf {
        self.base.join("root")
    }

    pub fn outside(&self) -> PathBuf {
        self.base.join("outside")
    }

    pub fn watch(&self) -> WatchRoot {
        WatchRoot::lookup(byte_path(&self.root())).unwrap()
    }

    pub fn sensor(&self, kind: SensorKind) -> Box<dyn ChangeSource> {
        self.sensor_with(kind, &SensorOptions::default())
    }

    pub fn sensor_with(&self, kind: SensorKind, opts: &SensorOptions) -> Box<dyn ChangeSource> {
        sensor_on(kind, self.watch(), opts)
    }
}

/// The sensors that this machine is to be tested with: those of `FARWRITE_CONFORMANCE_SENSORS`, by name, or what works on any.
pub fn sensors() -> Vec<SensorKind> {
    let all = [
        SensorKind::Kmod,
        SensorKind::Ebpf,
        SensorKind::Fanotify,
        SensorKind::Inotify,
        SensorKind::Scan,
    ];
    match std::env::var("FARWRITE_CONFORMANCE_SENSORS") {
        Ok(names) => {
            let named = |n: &str| all.into_iter().find(|k| k.to_string() == n);
            let named = |n| named(n).unwrap_or_else(|| panic!("there is no sensor {n}"));
            names.split(',').map(named).collect()
        }
        Err(_) => vec![SensorKind::Fanotify, SensorKind::Inotify, SensorKind::Scan],
    }
}

/// Is it one that sees ranges, from inside the kernel?
pub fn is_exact(kind: SensorKind) -> bool {
    matches!(kind, SensorKind::Kmod | SensorKind::Ebpf)
}

pub fn sensor_on(kind: SensorKind, root: WatchRoot, opts: &SensorOptions) -> Box<dyn ChangeSource> {
    match kind {
        SensorKind::Kmod => Box::new(KmodSource::open(&[root], opts).unwrap()),
        SensorKind::Ebpf => Box::new(EbpfSource::open(&[root], opts).unwrap()),
        SensorKind::Fanotify => Box::new(FanotifySource::open(&[root], opts).unwrap()),
        SensorKind::Inotify => Box::new(InotifySource::open(&[root], opts).unwrap()),
        SensorKind::Scan => Box::new(ScanSource::open(&[root], opts).unwrap()),
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for m in self.mounts.iter().rev() {
            let target = CString::new(m.as_os_str().as_bytes()).unwrap();
            // SAFETY: a NUL-terminated path that outlives the call.
            unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
        }
    }
}

pub fn byte_path(p: &Path) -> BytePath {
    BytePath::new(p.as_os_str().as_bytes()).unwrap()
}

pub fn id_of(p: &Path) -> FileId {
    let m = std::fs::symlink_metadata(p).unwrap();
    FileId {
        dev: m.dev(),
        ino: m.ino(),
    }
}

/// All that the kernel has queued: its queues fill before the changing call returns, so nothing is waited for.
pub fn drain(s: &mut dyn ChangeSource) -> Vec<Change> {
    let mut out = Vec::new();
    while s.read(&mut out, Duration::ZERO).unwrap() == ReadState::More {}
    out
}

/// Ends a sensor with nothing left unread. Loading programs takes longer than most tests: they stay for the next one.
pub fn end(mut s: Box<dyn ChangeSource>) {
    s.release().unwrap();
    match s.kind() {
        SensorKind::Ebpf => s.leave(),
        _ => s.close(),
    }
}
