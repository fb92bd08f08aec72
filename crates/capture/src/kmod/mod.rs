//! The kernel module's sensor: reads the records that `farwrite.ko` (kernel/) makes in the place of replaced system calls, and in
//! hooks below them. Sees exact byte ranges and stores through shared mappings.
//!
//! The module goes on recording when this process ends without [`ChangeSource::close`]; records stay in its ring until they are
//! released. Never holds an application up: what finds no room in the ring is counted, and its root is compared.

mod ring;
mod sys;
mod uapi;

use crate::batch::Batch;
use crate::clock::now;
use crate::record::{RecordRoot, Told};
use crate::wake::{Ready, Waker, deadline};
use crate::{
    ChangeSource, Continuity, READ_CHANGES, ReadState, SensorError, SensorKind, SensorOptions,
    SensorStats, WatchRoot,
};
use farwrite_core::{BytePath, Change, ChangeOp, FileId, Guarantee};
use ring::Next;
use rustix::fs::{CWD, Mode, OFlags};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};
use sys::{Device, Memory};
use uapi::{ABI, DEVICE, Info, ROOTS_MAX};

/// How often the kernel is asked whether its function tracing still works, at most.
const CHECK: Duration = Duration::from_secs(1);
/// The same while no records come.
const CHECK_IDLE: Duration = Duration::from_secs(5);
/// 0 after the kernel has found its tracing broken and shut it down (nobody can set it to 0 while the module is on).
const TRACING: &str = "/proc/sys/kernel/ftrace_enabled";
/// How to get the module, for people.
const REMEDY_BUILD: &str = "build and load it (make module && sudo insmod ..., see docs/capture.md), or use another sensor";

/// See the module's text.
pub struct KmodSource {
    device: Device,
    memory: Memory,
    instance: [u8; 16],
    epoch: u64,
    waker: Waker,
    watch: Vec<WatchRoot>,
    /// By the number that the records have.
    roots: Vec<Option<RecordRoot>>,
    /// Which were found being recorded.
    known: Vec<(FileId, bool)>,
    /// Roots whose filesystem was unmounted.
    gone: Vec<BytePath>,
    skip: Vec<BytePath>,
    /// Everything before has been handed out.
    position: u64,
    /// Stopped at a bound: what was recorded then ends here.
    until: Option<u64>,
    /// When the kernel's tracing was last seen to work.
    checked: Instant,
    /// Lost records that were told of before a record in the ring did.
    told: u64,
    /// All records about losses in the ring before this position have been told of.
    told_until: u64,
    /// Something was handed out since the last release.
    owing: bool,
    stats: SensorStats,
}

fn unavailable(why: impl Into<String>, remedy: impl Into<String>) -> SensorError {
    SensorError::Unavailable {
        sensor: SensorKind::Kmod,
        why: why.into(),
        remedy: remedy.into(),
    }
}

fn taken() -> SensorError {
    unavailable(
        "somebody else has replaced one of the same functions (a live patch?)",
        "see /sys/kernel/tracing/enabled_functions, flag I; or use another sensor",
    )
}

fn failed(what: &str, e: &io::Error) -> SensorError {
    unavailable(format!("{what}: {e}"), "use another sensor")
}

/// Opens the device and sees whether the module speaks our language; the error says what is missing.
fn device() -> Result<(Device, Info), SensorError> {
    let device = Device::open().map_err(|e| match e.raw_os_error() {
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => missing(),
        Some(libc::EPERM | libc::EACCES) => unavailable(
            format!("not permitted to open {DEVICE}"),
            "run as root (CAP_SYS_ADMIN), or use another sensor",
        ),
        _ => failed(&format!("opening {DEVICE}"), &e),
    })?;
    let info = device.info();
    match info {
        Ok(info) if info.abi == ABI => Ok((device, info)),
        Ok(info) => Err(unavailable(
            format!(
                "the loaded module speaks ABI {}, this program {ABI}",
                info.abi
            ),
            "build and load the module of this version",
        )),
        Err(e) if e.raw_os_error() == Some(libc::ENOTTY) => Err(unavailable(
            "the loaded module is of another version",
            "build and load the module of this version",
        )),
        Err(e) => Err(failed("asking the module", &e)),
    }
}

/// Switches the module off if it was left on and no process uses it.
pub(crate) fn end_left() {
    // Whoever may not open it has not switched it on.
    let Ok(device) = Device::open() else { return };
    if !device.info().is_ok_and(|i| i.abi == ABI && i.on != 0) {
        return;
    }
    match device.attach().and_then(|()| device.switch(false)) {
        Ok(()) => tracing::info!("the module was left recording for nobody: it is switched off"),
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
        Err(e) => tracing::warn!("the module records for nobody and cannot be switched off: {e}"),
    }
}

/// Why there is no device.
fn missing() -> SensorError {
    if !Path::new("/proc/modules").exists() {
        return unavailable(
            "this kernel takes no modules",
            "use a kernel with module support, or another sensor",
        );
    }
    if Path::new("/sys/module/farwrite").exists() {
        return unavailable(
            format!("the module is loaded, but there is no {DEVICE}"),
            "mount devtmpfs on /dev (in a container, pass the device in)",
        );
    }
    let lockdown = std::fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    let locked = lockdown.contains("[integrity]") || lockdown.contains("[confidentiality]");
    let enforced = std::fs::read("/sys/module/module/parameters/sig_enforce");
    if locked || enforced.is_ok_and(|v| v.starts_with(b"Y")) {
        return unavailable(
            "the module is not loaded, and this kernel takes signed modules only (Secure Boot)",
            "sign it with a key enrolled by mokutil (dkms does), or use another sensor",
        );
    }
    if is_installed() {
        return unavailable("the module is not loaded", "modprobe farwrite");
    }
    unavailable("the module is not installed", REMEDY_BUILD)
}

/// What nobody wants to read.
const TRACING_STOPPED: &str =
    "the kernel has shut its function tracing down (see dmesg), which the module stands on";

fn tracing_works() -> bool {
    std::fs::read(TRACING).map_or(true, |v| v.trim_ascii() != b"0")
}

/// Does the running kernel's module tree name it?
fn is_installed() -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let index = Path::new("/lib/modules").join(release).join("modules.dep");
    std::fs::read_to_string(index).is_ok_and(|text| text.contains("/farwrite.ko"))
}

/// Opens the root's directory and makes sure that it is the one meant.
fn open_root(root: &WatchRoot) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(CWD, root.path.as_path(), flags, Mode::empty())?;
    match crate::sys::file_id(&rustix::fs::fstat(&fd)?) == root.id {
        true => Ok(fd),
        false => Err(io::Error::other("is not the directory that it was")),
    }
}

impl KmodSource {
    /// Attaches to the module and switches it on, or takes over a recording that goes on. From its return on nothing is missed.
    pub fn open(roots: &[WatchRoot], opts: &SensorOptions) -> Result<Self, SensorError> {
        if roots.is_empty() {
            return Err(SensorError::NoRoots);
        }
        let (device, before) = device()?;
        device.attach().map_err(|e| match e.raw_os_error() {
            Some(libc::EBUSY) => unavailable(
                format!("another process ({}) uses the module", before.consumer),
                "one at a time can: stop it, or use another sensor",
            ),
            _ => failed("attaching to the module", &e),
        })?;
        device.switch(true).map_err(|e| match e.raw_os_error() {
            Some(libc::EBUSY) => taken(),
            _ => failed("replacing the system calls", &e),
        })?;
        if !tracing_works() {
            return Err(unavailable(
                TRACING_STOPPED,
                "reboot, or use another sensor",
            ));
        }
        let opened = Self::start(device, roots, opts);
        opened.map_err(|(e, device)| {
            // Whoever recorded before goes on being recorded; else everything is put back.
            if before.on == 0
                && let Err(e) = device.switch(false)
            {
                tracing::warn!("switching the module off again: {e}");
            }
            e
        })
    }

    fn start(
        device: Device,
        roots: &[WatchRoot],
        opts: &SensorOptions,
    ) -> Result<Self, (SensorError, Device)> {
        let mut numbers = vec![None; ROOTS_MAX];
        let mut known = Vec::new();
        let watched = watch_all(&device, roots, &mut numbers, &mut known);
        let mapped = watched.and_then(|()| {
            let info = device.info().map_err(|e| failed("asking the module", &e))?;
            let memory = device.map(info.ring_bytes);
            let memory = memory.map_err(|e| failed("mapping the ring", &e))?;
            Ok((info, memory, Waker::new()?))
        });
        let (info, memory, waker) = match mapped {
            Ok(m) => m,
            Err(e) => return Err((e, device)),
        };
        Ok(KmodSource {
            device,
            memory,
            instance: info.instance,
            epoch: info.epoch,
            waker,
            watch: roots.to_vec(),
            roots: numbers,
            known,
            gone: Vec::new(),
            skip: opts.skip.clone(),
            position: info.tail,
            until: None,
            checked: Instant::now(),
            told: 0,
            told_until: 0,
            owing: false,
            stats: SensorStats::default(),
        })
    }

    /// Takes what is in the ring, about [`READ_CHANGES`] at most.
    fn take(&mut self, out: &mut Vec<Change>) -> ReadState {
        let (head, first) = (self.memory.head(), out.len());
        // A loss before the records that are in front of it: who looks at the bytes that they name has to know that there may
        // be others.
        let mut lost = self.tell_losses(head, out);
        let mut batch = Batch::new(out, &self.skip);
        let state = loop {
            if batch.out.len() - batch.first >= READ_CHANGES {
                break ReadState::More;
            }
            let data = |at, len| self.memory.data(at, len);
            let bytes = match ring::next(&mut self.position, head, self.memory.data_bytes(), data) {
                Next::Empty => break ReadState::Drained,
                Next::Record { bytes, size } => {
                    self.position += size;
                    bytes
                }
                Next::Corrupt => {
                    tracing::error!(
                        "the module's ring holds what is no record: everything is to be compared"
                    );
                    self.position = head;
                    &[]
                }
            };
            self.stats.seen += 1;
            if lost_count(bytes).is_some() && self.position <= self.told_until {
                continue;
            }
            match batch.add(bytes, &self.roots) {
                Told::Changes => {}
                Told::Lost => {
                    self.stats.overflows += 1;
                    lost = true;
                }
                Told::Garbled => self.stats.lost += 1,
            }
            note_gone(bytes, &self.roots, &mut self.gone);
        };
        self.stats.filtered += batch.filtered;
        self.stats.merged += batch.merged;
        // Those since the beginning: a drained ring is one of which all is known.
        lost |= self.tell_losses(head, out);
        let taken = out.len() - first;
        self.stats.delivered += taken as u64;
        self.owing |= taken > 0;
        if lost {
            self.clean_pages();
        }
        if state == ReadState::Drained {
            self.until = None;
            return state;
        }
        let until = *self.until.get_or_insert(head);
        match self.position >= until {
            true => {
                self.until = None;
                ReadState::Drained
            }
            false => ReadState::More,
        }
    }

    /// Reports what was lost and not told of yet; says whether there was any. Besides what the module counts, that are records
    /// about a loss that lie further on in the ring, up to `head`.
    fn tell_losses(&mut self, head: u64, out: &mut Vec<Change>) -> bool {
        // First, since the record about what was told of already begins a new count.
        let mut mask = self.losses_ahead(head);
        let (mut count, mut roots) = self.memory.lost();
        loop {
            // Taken back when a record about it goes into the ring; the two numbers have to be of one moment.
            let again = self.memory.lost();
            if again == (count, roots) {
                break;
            }
            (count, roots) = again;
        }
        if count > self.told && roots != 0 {
            self.told = count;
            mask |= roots;
        }
        if mask == 0 {
            return false;
        }
        self.stats.overflows += 1;
        out.extend(overflows(&self.roots, mask));
        true
    }

    /// The roots of those records about a loss in the ring that have not been looked for yet.
    fn losses_ahead(&mut self, head: u64) -> u64 {
        let (mut at, mut mask) = (self.position.max(self.told_until), 0);
        while at < head {
            let data = |at, len| self.memory.data(at, len);
            match ring::next(&mut at, head, self.memory.data_bytes(), data) {
                Next::Record { bytes, size } => {
                    if let Some(count) = lost_count(bytes) {
                        if count > self.told {
                            mask |= lost_roots(bytes).unwrap_or(u64::MAX);
                        }
                        self.told = 0;
                    }
                    at += size;
                }
                // What is wrong there is told when it is its turn.
                Next::Empty | Next::Corrupt => break,
            }
        }
        self.told_until = head;
        mask
    }

    /// Pages that a lost record was about are writable, and tell nothing more: makes them clean, before the compare.
    fn clean_pages(&self) {
        for root in &self.watch {
            let synced = open_root(root).and_then(|fd| Ok(rustix::fs::syncfs(&fd)?));
            if let Err(e) = synced {
                tracing::warn!(root = %root.path, "syncfs after a loss: {e}");
            }
        }
    }

    fn read_error(e: io::Error) -> SensorError {
        SensorError::Read {
            sensor: SensorKind::Kmod,
            source: e,
        }
    }
}

/// What [`KmodSource`] does with records of its ring, the kernel left out: what a bench measures. `records` lie one behind the
/// other as in uapi/farwrite.h, about `root` as root 0; their messages are appended to `out`. Ends at what is no record.
#[doc(hidden)]
pub fn drain_records(records: &[u8], root: &WatchRoot, out: &mut Vec<Change>) {
    let roots = [Some(RecordRoot {
        root: root.clone(),
        dev: 0,
    })];
    let (mut position, head) = (0, records.len() as u64);
    let mut batch = Batch::new(out, &[]);
    let data = |at: u64, len: u64| &records[at as usize..(at + len) as usize];
    while let Next::Record { bytes, size } = ring::next(&mut position, head, head, data) {
        position += size;
        batch.add(bytes, &roots);
    }
}

/// Has the module watch these roots and no others. Pages that were dirty before would raise nothing when they are stored to:
/// they are made clean.
fn watch_all(
    device: &Device,
    roots: &[WatchRoot],
    numbers: &mut [Option<RecordRoot>],
    known: &mut Vec<(FileId, bool)>,
) -> Result<(), SensorError> {
    let mut fresh = Vec::new();
    for root in roots {
        let at_root = |source| SensorError::Root {
            path: root.path.clone(),
            source,
        };
        let fd = open_root(root).map_err(at_root)?;
        let watch = device
            .watch(fd.as_fd())
            .map_err(|e| match e.raw_os_error() {
                Some(libc::EOPNOTSUPP) => unavailable(
                    format!("the module cannot hook the filesystem of {}", root.path),
                    "it covers ext4, xfs, btrfs, f2fs and tmpfs; use another sensor",
                ),
                Some(libc::ENOSPC) => unavailable(
                    format!("the module watches {ROOTS_MAX} directories at most"),
                    "protect directories above them, or use another sensor",
                ),
                Some(libc::EBUSY) => taken(),
                // From the kernel's function tracing: others attach programs all the time, or it has shut itself down.
                Some(libc::EAGAIN | libc::ENODEV) => failed("hooking the filesystem", &e),
                _ => at_root(e),
            })?;
        let place = numbers.get_mut(usize::from(watch.root));
        let place =
            place.ok_or_else(|| at_root(io::Error::other("got a number beyond the last")))?;
        *place = Some(RecordRoot {
            root: root.clone(),
            dev: watch.dev,
        });
        known.push((root.id, watch.fresh == 0));
        if watch.fresh != 0 {
            fresh.push(fd);
        }
    }
    for (number, _) in numbers.iter().enumerate().filter(|(_, n)| n.is_none()) {
        // ENODEV: there is none of this number.
        let _ = device.unwatch(number);
    }
    for fd in fresh {
        rustix::fs::syncfs(&fd).map_err(|e| failed("writing dirty pages back", &e.into()))?;
    }
    Ok(())
}

/// How many records were lost, if this is the record that says so.
fn lost_count(bytes: &[u8]) -> Option<u64> {
    let op = u16::from_ne_bytes(bytes.get(6..8)?.try_into().ok()?);
    let count = u64::from_ne_bytes(bytes.get(uapi::RECORD_LENGTH..)?.first_chunk().copied()?);
    (op == uapi::OP_LOST).then_some(count)
}

/// Of which roots (bit n: root n).
fn lost_roots(bytes: &[u8]) -> Option<u64> {
    let field = bytes.get(uapi::RECORD_OFFSET..)?.first_chunk().copied()?;
    Some(u64::from_ne_bytes(field))
}

/// Messages that everything below these roots (bit n: root n) is to be compared.
fn overflows(roots: &[Option<RecordRoot>], mask: u64) -> impl Iterator<Item = Change> {
    let concerned = (roots.iter().take(64).enumerate()).filter(move |(i, _)| mask >> i & 1 == 1);
    concerned.filter_map(|(_, root)| Some(root.as_ref()?.root.whole(now(), ChangeOp::Overflow)))
}

/// Remembers the root of a record that says that its filesystem is gone.
fn note_gone(bytes: &[u8], roots: &[Option<RecordRoot>], gone: &mut Vec<BytePath>) {
    let short = |at: usize| Some(u16::from_ne_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    if short(6) == Some(uapi::OP_GONE)
        && let Some(number) = short(uapi::RECORD_ROOT)
        && let Some(Some(root)) = roots.get(usize::from(number))
    {
        gone.push(root.root.path.clone());
    }
}

/// Whether it can be used now, for the doctor. Changes nothing.
pub(crate) fn attempt() -> Result<String, SensorError> {
    let (_device, info) = device()?;
    Ok(match info.consumer {
        0 => String::new(),
        pid => format!("; process {pid} uses it"),
    })
}

impl ChangeSource for KmodSource {
    fn kind(&self) -> SensorKind {
        SensorKind::Kmod
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee {
            extents: true,
            mmap: true,
            persists: true,
        }
    }

    fn read(&mut self, out: &mut Vec<Change>, timeout: Duration) -> Result<ReadState, SensorError> {
        let (until, first) = (deadline(timeout), out.len());
        let mut woken = false;
        loop {
            if self.checked.elapsed() >= CHECK {
                if !tracing_works() {
                    return Err(Self::read_error(io::Error::other(TRACING_STOPPED)));
                }
                self.checked = Instant::now();
            }
            let state = self.take(out);
            if out.len() > first || woken || Instant::now() >= until {
                return Ok(state);
            }
            // All of it was about nothing of ours: nobody is going to release it.
            if !self.owing {
                self.device
                    .release(self.position)
                    .map_err(Self::read_error)?;
            }
            if state == ReadState::Drained {
                self.device.seen(self.position).map_err(Self::read_error)?;
                let until = until.min(Instant::now() + CHECK_IDLE);
                let ready = self.waker.wait(Some(self.device.as_fd()), until);
                woken = ready.map_err(|e| Self::read_error(e.into()))? == Ready::Woken;
            }
        }
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn stats(&self) -> SensorStats {
        let mut stats = self.stats;
        if let Ok(info) = self.device.info() {
            stats.replaced = u64::from(info.replaced);
            stats.hooked = u64::from(info.hooked);
        }
        stats
    }

    fn release(&mut self) -> Result<(), SensorError> {
        self.owing = false;
        self.device.release(self.position).map_err(Self::read_error)
    }

    fn continuity(&self) -> Option<Continuity> {
        Some(Continuity {
            sensor: SensorKind::Kmod,
            instance: self.instance,
            epoch: self.epoch,
            roots: self.known.clone(),
        })
    }

    fn state(&self) -> Option<String> {
        let first = self.gone.first()?;
        Some(format!(
            "the filesystem of {first} was unmounted: nothing is seen there until the daemon is restarted with it mounted"
        ))
    }

    fn close(self: Box<Self>) {
        if let Err(e) = self.device.switch(false) {
            tracing::error!("the module could not be switched off: {e}");
        }
    }

    fn leave(self: Box<Self>) {
        // Closing the device detaches, no more.
        drop(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_is_no_module_the_error_says_what_to_do() {
        let Err(e) = device() else { return };
        let SensorError::Unavailable { why, remedy, .. } = e else {
            panic!("{e}")
        };
        assert!(!why.is_empty() && !remedy.is_empty());
    }

    #[test]
    fn a_filesystem_that_went_is_remembered_by_its_root() {
        let root = WatchRoot {
            path: BytePath::new("/data").unwrap(),
            id: FileId { dev: 1, ino: 2 },
        };
        let roots = vec![None, Some(RecordRoot { root, dev: 1 })];
        let mut bytes = vec![0; 112];
        bytes[6..8].copy_from_slice(&uapi::OP_GONE.to_ne_bytes());
        let mut gone = Vec::new();
        note_gone(&bytes, &roots, &mut gone);
        assert!(gone.is_empty(), "root 0 is not ours");
        bytes[92..94].copy_from_slice(&1u16.to_ne_bytes());
        note_gone(&bytes, &roots, &mut gone);
        assert_eq!(gone.len(), 1);
        for n in 0..94 {
            note_gone(&bytes[..n], &roots, &mut gone);
        }
        assert_eq!(gone.len(), 1, "cut");
    }
}
