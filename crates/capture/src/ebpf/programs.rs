//! The programs and maps in the kernel: loading and attaching them, pinning them below /sys/fs/bpf/farwrite so that they go on
//! without a process, finding them there again, removing them without a trace.

use super::hooks::{self, Fs, Hook};
use super::shared::{self, Control};
use libbpf_rs::btf::{Btf, ReferencesType as _, types};
use libbpf_rs::{Link, MapHandle, ObjectBuilder, PrintLevel, Program};
use rustix::fs::FlockOperation;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The object file, for any kernel.
static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/farwrite.bpf.o"));

/// Where bpffs is.
const BPFFS: &str = "/sys/fs/bpf";
/// Our directory there.
const PINS: &str = "/sys/fs/bpf/farwrite";
/// How long to wait for the kernel to have let go of the programs, looking at intervals.
const DETACH: Duration = Duration::from_secs(5);
const DETACH_STEP: Duration = Duration::from_millis(2);
/// `BPF_FS_MAGIC` of statfs(2).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// What is missing, and what to do.
#[derive(Debug)]
pub(super) struct Missing {
    pub why: String,
    pub remedy: String,
}

fn missing(why: impl Into<String>, remedy: impl Into<String>) -> Missing {
    Missing {
        why: why.into(),
        remedy: remedy.into(),
    }
}

/// The programs at work, and the maps that they share with us. The one process that holds this is the consumer.
pub(super) struct Programs {
    links: Vec<Link>,
    ids: Vec<OwnedFd>,
    pub ring: MapHandle,
    pub control: MapHandle,
    pub devices: MapHandle,
    pub places: MapHandle,
    pub roots: MapHandle,
    /// They were found at work.
    pub adopted: bool,
    /// Locked as long as we are the consumer.
    _lock: File,
}

/// Takes over the programs that are at work, if they are ours and hook all that `filesystems` need; else starts anew.
pub(super) fn start(filesystems: &[Fs]) -> Result<Programs, Missing> {
    check()?;
    let lock = lock()?;
    let lock = match adopt(filesystems, lock) {
        Ok(programs) => return Ok(programs),
        Err(lock) => lock,
    };
    let started = remove_pins()
        .map_err(|e| missing(format!("{PINS} cannot be emptied: {e}"), "remove it"))
        .and_then(|()| load(&choose(filesystems)?, lock));
    if started.is_err() {
        let _ = remove_pins();
        let _ = std::fs::remove_dir(PINS);
    }
    started
}

/// Which programs this kernel takes for these filesystems.
fn choose(filesystems: &[Fs]) -> Result<Vec<&'static Hook>, Missing> {
    let btf = Btf::from_vmlinux().map_err(|e| {
        missing(
            format!("the kernel's type information cannot be read: {e}"),
            "use a kernel with CONFIG_DEBUG_INFO_BTF",
        )
    })?;
    let has = |function: &str| match function.split_once("_file_write_iter") {
        // The type information of a module stands apart; its filesystem is mounted, so it is loaded.
        Some((module, "")) if Path::new("/sys/kernel/btf").join(module).exists() => true,
        _ => btf.type_by_name::<types::Func<'_>>(function).is_some(),
    };
    let wanted = hooks::wanted(filesystems, has).map_err(|f| {
        missing(
            format!("the kernel has no function {f}"),
            "use another sensor",
        )
    })?;
    let strange = wanted
        .iter()
        .find(|h| arguments(&btf, h.function).is_some_and(|n| n != h.arguments));
    if let Some(hook) = strange {
        return Err(missing(
            format!(
                "this kernel's {} takes other arguments than the one that the programs know",
                hook.function
            ),
            "use another sensor, or a later version of Farwrite",
        ));
    }
    let optional = hooks::HOOKS
        .iter()
        .filter(|h| h.need == hooks::Need::IfThere);
    for hook in optional.filter(|h| !has(h.function)) {
        tracing::info!(
            function = hook.function,
            "this kernel does not have it; others of its functions are hooked for the same"
        );
    }
    Ok(wanted)
}

/// How many arguments the function takes; `None`: it is in a module, or not there.
fn arguments(btf: &Btf<'_>, function: &str) -> Option<usize> {
    let function: types::Func<'_> = btf.type_by_name(function)?;
    let proto = types::FuncProto::try_from(function.referenced_type()).ok()?;
    Some(proto.len())
}

/// What has to be there for any of this. Leaves nothing behind.
pub(super) fn check() -> Result<(), Missing> {
    if !rustix::process::geteuid().is_root() {
        return Err(missing(
            "loading eBPF programs needs root (CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN)",
            "run it as root",
        ));
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Err(missing(
            "the kernel has no type information (/sys/kernel/btf/vmlinux)",
            "use a kernel with CONFIG_DEBUG_INFO_BTF",
        ));
    }
    let lockdown = std::fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    if lockdown.contains("[confidentiality]") {
        return Err(missing(
            "kernel lockdown is at \"confidentiality\", which forbids eBPF programs to read the kernel",
            "boot with lockdown=integrity or none",
        ));
    }
    let fs = rustix::fs::statfs(BPFFS);
    if !fs.is_ok_and(|fs| fs.f_type as u64 == BPF_FS_MAGIC) {
        return Err(missing(
            format!("no bpffs is mounted at {BPFFS}"),
            format!("mount -t bpf bpf {BPFFS}"),
        ));
    }
    Ok(())
}

/// Makes us the one consumer.
fn lock() -> Result<File, Missing> {
    let opened = std::fs::create_dir(PINS).or_else(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => Ok(()),
        _ => Err(e),
    });
    let file = opened
        .and_then(|()| File::open(PINS))
        .map_err(|e| missing(format!("{PINS}: {e}"), "see what is there"))?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        missing(
            "another process records with eBPF on this machine",
            "stop it, or use another sensor here",
        )
    })?;
    // A consumer that was stopping may have removed the directory between the two steps.
    let id = |s: rustix::io::Result<rustix::fs::Stat>| s.ok().map(|s| crate::sys::file_id(&s));
    if id(rustix::fs::stat(PINS)) != id(rustix::fs::fstat(&file)) {
        return Err(missing(
            "another process has just stopped recording",
            "try again",
        ));
    }
    Ok(file)
}

fn link_pin(hook: &Hook) -> PathBuf {
    Path::new(PINS).join(format!("link_{}", hook.program))
}

fn map_pin(name: &str) -> PathBuf {
    Path::new(PINS).join(format!("map_{name}"))
}

fn maps() -> libbpf_rs::Result<[MapHandle; 5]> {
    let open = |name| MapHandle::from_pinned_path(map_pin(name));
    Ok([
        open("ring")?,
        open("control")?,
        open("devices")?,
        open("places")?,
        open("roots")?,
    ])
}

/// Which programs these are.
fn build() -> [u64; 4] {
    let hash = blake3::hash(OBJECT);
    let word = |i: usize| {
        let mut b = [0; 8];
        b.copy_from_slice(&hash.as_bytes()[8 * i..8 * i + 8]);
        u64::from_ne_bytes(b)
    };
    [word(0), word(1), word(2), word(3)]
}

/// What an earlier process left at work, if that is what we would start; else the lock is given back.
fn adopt(filesystems: &[Fs], lock: File) -> Result<Programs, File> {
    match find_at_work(filesystems) {
        Some((links, ids, [ring, control, devices, places, roots])) => Ok(Programs {
            links,
            ids,
            ring,
            control,
            devices,
            places,
            roots,
            adopted: true,
            _lock: lock,
        }),
        None => Err(lock),
    }
}

type AtWork = (Vec<Link>, Vec<OwnedFd>, [MapHandle; 5]);

fn find_at_work(filesystems: &[Fs]) -> Option<AtWork> {
    let [ring, control, devices, places, roots] = maps().ok()?;
    let memory = super::ring::Mapping::new(control.as_fd(), 0, size_of::<Control>(), false).ok()?;
    let is: &Control = memory.shared();
    if is.abi.load(Ordering::Acquire) != shared::ABI || is.build() != build() {
        return None;
    }
    // What is pinned was chosen from what this kernel has.
    let pinned = |h: &Hook| link_pin(h).exists();
    let wanted = hooks::wanted(filesystems, |f| {
        hooks::HOOKS.iter().any(|h| h.function == f && pinned(h))
    });
    let complete = wanted.is_ok_and(|w| w.iter().all(|h| pinned(h)));
    if !complete {
        return None;
    }
    let at_work = hooks::HOOKS.iter().filter(|h| pinned(h));
    let links: Vec<Link> = at_work
        .map(|h| Link::open(link_pin(h)).ok())
        .collect::<Option<_>>()?;
    let ids = program_fds(&links)?;
    Some((links, ids, [ring, control, devices, places, roots]))
}

fn program_fds(links: &[Link]) -> Option<Vec<OwnedFd>> {
    let fd = |l: &Link| Program::fd_from_id(l.info().ok()?.prog_id).ok();
    links.iter().map(fd).collect()
}

/// What libbpf had to say during the load under way.
static SAID: Mutex<String> = Mutex::new(String::new());
/// Most bytes of it that are kept.
const SAID_BYTES: usize = 16 * 1024;

fn note(level: PrintLevel, text: String) {
    tracing::debug!(?level, "libbpf: {}", text.trim_end());
    let mut said = SAID.lock().unwrap_or_else(|e| e.into_inner());
    if said.len() + text.len() <= SAID_BYTES {
        said.push_str(&text);
    }
}

/// The most telling line of it.
fn reason() -> String {
    let said = SAID.lock().unwrap_or_else(|e| e.into_inner());
    let telling = ["failed to", "failed:", "can't", "not supported", "failed"];
    let find = |what: &str| said.lines().find(|l| l.contains(what));
    let line = telling.iter().find_map(|t| find(t)).unwrap_or("");
    line.trim_start_matches("libbpf: ").trim().to_string()
}

/// Loads and attaches all of `wanted` at once.
fn attach(wanted: &[&'static Hook], pin: bool) -> Result<Vec<Link>, Missing> {
    let refused = |e: libbpf_rs::Error| {
        let reason = reason();
        let why = match reason.is_empty() {
            true => format!("the kernel refuses the eBPF programs: {e}"),
            false => format!("the kernel refuses the eBPF programs: {reason} ({e})"),
        };
        missing(
            why,
            "use a kernel with CONFIG_FUNCTION_TRACER and BPF trampolines (Linux 6.1 or later), or another sensor",
        )
    };
    SAID.lock().unwrap_or_else(|e| e.into_inner()).clear();
    let before = libbpf_rs::set_print(Some((PrintLevel::Info, note)));
    let result = load_and_attach(wanted, pin).map_err(refused);
    libbpf_rs::set_print(before);
    result
}

fn load(wanted: &[&'static Hook], lock: File) -> Result<Programs, Missing> {
    let links = attach(wanted, true)?;
    let opened = maps().map_err(|e| missing(format!("{PINS}: {e}"), "remove that directory"));
    let [ring, control, devices, places, roots] = opened?;
    let ids = program_fds(&links)
        .ok_or_else(|| missing("the programs cannot be found again", "use another sensor"))?;
    Ok(Programs {
        links,
        ids,
        ring,
        control,
        devices,
        places,
        roots,
        adopted: false,
        _lock: lock,
    })
}

/// Loads and attaches all programs for `filesystems`, and lets go of them at once.
pub(super) fn attempt(filesystems: &[Fs]) -> Result<(), Missing> {
    check()?;
    if map_pin("control").exists() {
        return Ok(());
    }
    attach(&choose(filesystems)?, false).map(|_| ())
}

fn load_and_attach(wanted: &[&'static Hook], pin: bool) -> libbpf_rs::Result<Vec<Link>> {
    let mut open = ObjectBuilder::default().open_memory(OBJECT)?;
    for mut program in open.progs_mut() {
        let name = program.name().to_os_string();
        program.set_autoload(wanted.iter().any(|h| name == h.program));
    }
    for mut map in open.maps_mut() {
        let name = map.name().to_string_lossy().into_owned();
        // Constants of the compiler's making are not shared.
        if pin && !name.contains('.') {
            map.set_pin_path(map_pin(&name))?;
        }
    }
    let object = open.load()?;
    let mut links = Vec::new();
    for program in object.progs_mut() {
        let Some(hook) = wanted.iter().find(|h| program.name() == h.program) else {
            continue;
        };
        let mut link = program.attach()?;
        if pin {
            link.pin(link_pin(hook))?;
        }
        links.push(link);
    }
    Ok(links)
}

/// Ends what was left at work, if no process uses it.
pub(crate) fn end_left() {
    if !map_pin("control").exists() {
        return;
    }
    let _lock = match lock() {
        Ok(lock) => lock,
        // In use, as a rule.
        Err(m) => return tracing::debug!("eBPF programs are left at work: {}", m.why),
    };
    let links = (hooks::HOOKS.iter())
        .filter_map(|h| Link::open(link_pin(h)).ok())
        .collect();
    if end(links) {
        tracing::info!("the eBPF programs were left recording for nobody: they are taken out");
    }
}

/// Unpins everything, and waits until the kernel has let go of these. Whether it has.
fn end(links: Vec<Link>) -> bool {
    use io::ErrorKind::{ReadOnlyFilesystem, ResourceBusy};
    if let Err(e) = remove_pins() {
        tracing::warn!("{PINS}: {e}");
        return false;
    }
    // The programs are off once the kernel has forgotten their links, which it does a moment after the last reference.
    let ids: Vec<u32> = (links.iter())
        .filter_map(|l| Some(l.info().ok()?.id))
        .collect();
    drop(links);
    let until = Instant::now() + DETACH;
    let at_work = || ids.iter().any(|id| link_exists(*id));
    while at_work() && Instant::now() < until {
        std::thread::sleep(DETACH_STEP);
    }
    match std::fs::remove_dir(PINS) {
        // In a unit something is mounted there: it is the one place of its kind that may be written.
        Err(e) if !matches!(e.kind(), ResourceBusy | ReadOnlyFilesystem) => {
            tracing::warn!("{PINS}: {e}");
        }
        _ => {}
    }
    !at_work()
}

/// Unpins everything that is there. What no process holds ends with that.
fn remove_pins() -> io::Result<()> {
    for entry in std::fs::read_dir(PINS)? {
        std::fs::remove_file(entry?.path())?;
    }
    Ok(())
}

impl Programs {
    /// Functions hooked, entry and exit of one counted once.
    pub(super) fn hooked(&self) -> u64 {
        let functions: std::collections::BTreeSet<_> = hooks::HOOKS
            .iter()
            .filter(|h| link_pin(h).exists())
            .map(|h| h.function)
            .collect();
        functions.len() as u64
    }

    /// Calls at which a program did not run because it was running already on that processor.
    pub(super) fn missed(&self) -> u64 {
        self.ids.iter().map(recursion_misses).sum()
    }

    /// Writes who these are; from now on a later process can take them over.
    pub(super) fn sign(&self, control: &Control, instance: [u8; 16]) {
        control.set_instance(instance);
        control.epoch.store(1, Ordering::Relaxed);
        for (at, word) in control.build.iter().zip(build()) {
            at.store(word, Ordering::Relaxed);
        }
        control.abi.store(shared::ABI, Ordering::Release);
    }

    /// Ends the recording: nothing of ours is left in the kernel.
    pub(super) fn remove(self) {
        end(self.links);
    }
}

fn link_exists(id: u32) -> bool {
    // SAFETY: takes an integer; the descriptor that it may give is ours to close.
    unsafe {
        let fd = libbpf_sys::bpf_link_get_fd_by_id(id);
        fd >= 0 && libc::close(fd) == 0
    }
}

fn recursion_misses(program: &OwnedFd) -> u64 {
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut len = size_of_val(&info) as u32;
    // SAFETY: `info` is a plain structure with room for `len` bytes, whose array pointers are null and counts zero, so that
    // the call writes nothing else; the descriptor is open.
    let r = unsafe {
        libbpf_sys::bpf_prog_get_info_by_fd(program.as_raw_fd(), &raw mut info, &raw mut len)
    };
    if r == 0 { info.recursion_misses } else { 0 }
}
