//! The eBPF sensor: programs at the exit of the kernel's functions through which changes pass (bpf/farwrite.bpf.c), on a stock
//! kernel. Sees exact byte ranges and stores through shared mappings.
//!
//! Programs and maps are pinned in bpffs, so that they go on recording when this process ends in any way but by
//! [`ChangeSource::close`]; records stay in the ring until they are released. Never holds an application up: what finds no
//! room is counted, and its root is compared.

mod hooks;
mod mount;
mod programs;
mod ring;
mod roots;
mod shared;

use crate::batch::Batch;
use crate::clock::now;
use crate::mark::Mark;
use crate::record::{RecordRoot, Told};
use crate::wake::{Ready, Waker, deadline};
use crate::{
    ChangeSource, Continuity, READ_CHANGES, ReadState, SensorError, SensorKind, SensorOptions,
    SensorStats, WatchRoot,
};
use farwrite_core::{BytePath, Change, ChangeOp, FileId, Guarantee};
use hooks::Fs;
use libbpf_rs::{MapCore, MapFlags};
use mount::Mounted;
pub(crate) use programs::end_left;
use programs::{Missing, Programs};
use ring::{Mapping, Next, Ring};
use rustix::event::epoll;
use shared::{Control, Device, ROOTS_MAX, Root};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

/// How often the kernel is asked whether a program could not run, at most.
const CHECK: Duration = Duration::from_secs(1);
/// The same while no records come.
const CHECK_IDLE: Duration = Duration::from_secs(5);

/// See the module's text.
pub struct EbpfSource {
    programs: Programs,
    control: Mapping,
    ring: Ring,
    /// Readable when the ring's reader is woken, whatever is unreleased.
    wakes: OwnedFd,
    waker: Waker,
    watch: Vec<WatchRoot>,
    /// By the number that the records have.
    roots: Vec<Option<RecordRoot>>,
    /// Which were found being recorded.
    known: Vec<(FileId, bool)>,
    skip: Vec<BytePath>,
    /// Held open: see [`Mounted`].
    mounted: Vec<Mounted>,
    mark: Mark,
    /// Losses told of, not yet released.
    told: [u64; ROOTS_MAX],
    missed: u64,
    checked: Instant,
    /// Something was handed out since the last release.
    owing: bool,
    stats: SensorStats,
}

impl EbpfSource {
    /// Starts recording, or takes over a recording that goes on. From its return on nothing is missed.
    pub fn open(roots: &[WatchRoot], opts: &SensorOptions) -> Result<Self, SensorError> {
        if roots.is_empty() {
            return Err(SensorError::NoRoots);
        }
        if roots.len() > ROOTS_MAX {
            return Err(unavailable(Missing {
                why: format!("it takes {ROOTS_MAX} directories at most"),
                remedy: "use another sensor".into(),
            }));
        }
        // What was left at work may have no numbers to give; what is started anew has.
        for _ in 0..2 {
            let (mounted, filesystems) = look_up(roots)?;
            let programs = programs::start(&filesystems).map_err(unavailable)?;
            if let Some(source) = Self::with(programs, roots, mounted, opts)? {
                return Ok(source);
            }
        }
        Err(failed(io::Error::other("a new table of roots is full")))
    }

    /// Tries everything that opening takes on an ext4 root. Leaves nothing behind, and leaves alone what is at work.
    pub(crate) fn attempt() -> Result<(), SensorError> {
        programs::attempt(&[Fs::Ext4]).map_err(unavailable)
    }

    fn with(
        programs: Programs,
        roots: &[WatchRoot],
        mounted: Vec<Mounted>,
        opts: &SensorOptions,
    ) -> Result<Option<Self>, SensorError> {
        let made = memory(&programs).map_err(failed);
        let (control, ring, wakes, waker) =
            match made.and_then(|(c, r, w)| Ok((c, r, w, Waker::new()?))) {
                Ok(m) => m,
                Err(e) => {
                    programs.remove();
                    return Err(e);
                }
            };
        let mut source = EbpfSource {
            control,
            ring,
            wakes,
            waker,
            watch: roots.to_vec(),
            roots: vec![None; ROOTS_MAX],
            known: Vec::new(),
            skip: opts.skip.clone(),
            mounted,
            mark: Mark::default(),
            told: [0; ROOTS_MAX],
            missed: 0,
            checked: Instant::now(),
            owing: false,
            stats: SensorStats::default(),
            programs,
        };
        let begun = source.begin();
        if let Ok(true) = begun {
            return Ok(Some(source));
        }
        Box::new(source).close();
        begun.map(|_| None).map_err(failed)
    }

    /// `false`: there is no room in the table of roots.
    fn begin(&mut self) -> io::Result<bool> {
        self.set_clock();
        self.sign()?;
        if !self.place_roots().map_err(io::Error::other)? {
            return Ok(false);
        }
        // A page that was dirty before now raises nothing when it is stored to: make it clean.
        for (m, (_, known)) in self.mounted.iter().zip(&self.known) {
            if !known {
                rustix::fs::syncfs(&m.dir)?;
            }
        }
        self.stats.hooked = self.programs.hooked();
        Ok(true)
    }

    fn shared(&self) -> &Control {
        self.control.shared()
    }

    /// New maps are told who they are; what was told of earlier losses is remembered.
    fn sign(&mut self) -> io::Result<()> {
        if !self.programs.adopted {
            let mut instance = [0; 16];
            getrandom::fill(&mut instance).map_err(io::Error::other)?;
            self.programs.sign(self.shared(), instance);
        }
        let c = self.shared();
        let told = std::array::from_fn(|i| c.lost_told[i].load(Ordering::Relaxed));
        let missed = c.missed_told.load(Ordering::Relaxed);
        self.told = told;
        self.missed = missed;
        Ok(())
    }

    /// Writes the roots into the maps, keeping the numbers of those that are there. `false`: there are no numbers left.
    fn place_roots(&mut self) -> libbpf_rs::Result<bool> {
        let wanted: Vec<Root> = (self.watch.iter().zip(&self.mounted))
            .map(|(root, m)| Root {
                dev: shared::kernel_dev(root.id.dev),
                ino: root.id.ino,
                sb_dev: m.sb_dev,
                state: shared::ROOT_RECORDED,
            })
            .collect();
        let is_empty = self.ring.head() == self.ring.position();
        let Some(numbered) = roots::number(&self.old_roots()?, is_empty, &wanted) else {
            return Ok(false);
        };
        let given = self.watch.iter().zip(&wanted).zip(numbered.given);
        for ((root, as_recorded), (number, known)) in given {
            self.known.push((root.id, known));
            self.roots[number] = Some(RecordRoot {
                root: root.clone(),
                dev: as_recorded.dev as u32,
            });
        }
        self.write(&numbered.table)?;
        Ok(true)
    }

    fn old_roots(&self) -> libbpf_rs::Result<Vec<Root>> {
        let unused = Root {
            dev: 0,
            ino: 0,
            sb_dev: 0,
            state: shared::ROOT_UNUSED,
        };
        (0..ROOTS_MAX as u32)
            .map(|n| {
                let bytes = self
                    .programs
                    .roots
                    .lookup(&n.to_ne_bytes(), MapFlags::ANY)?;
                Ok(bytes.and_then(|b| Root::parse(&b)).unwrap_or(unused))
            })
            .collect()
    }

    /// Puts the table into the kernel's maps, and takes out what is not in it. New places come before the devices that make
    /// the programs look at them.
    fn write(&self, table: &[Root]) -> libbpf_rs::Result<()> {
        let mut devices: BTreeMap<u64, Device> = BTreeMap::new();
        let mut places: HashMap<[u8; 16], [u8; 8]> = HashMap::new();
        let recorded = |r: &Root| r.state == shared::ROOT_RECORDED;
        for (n, r) in table.iter().enumerate().filter(|(_, r)| recorded(r)) {
            let d = devices.entry(r.dev).or_default();
            d.roots |= 1 << n;
            d.bits |= shared::ino_bit(r.ino);
            places.insert(shared::place(r.dev, r.ino), shared::place_is(n as u32, 0));
        }
        for path in &self.skip {
            let Some((id, generation)) = generation_of(path) else {
                continue;
            };
            let dev = shared::kernel_dev(id.dev);
            if let Some(d) = devices.get_mut(&dev) {
                d.bits |= shared::ino_bit(id.ino);
                places
                    .entry(shared::place(dev, id.ino))
                    .or_insert(shared::place_is(shared::PLACE_SKIP, generation));
            }
        }
        let p = &self.programs;
        for (n, r) in (0u32..).zip(table) {
            p.roots
                .update(&n.to_ne_bytes(), &r.bytes(), MapFlags::ANY)?;
        }
        for (key, is) in &places {
            p.places.update(key, is, MapFlags::ANY)?;
        }
        for (dev, d) in &devices {
            p.devices
                .update(&dev.to_ne_bytes(), &d.bytes(), MapFlags::ANY)?;
        }
        let stale = |map: &libbpf_rs::MapHandle, keep: &dyn Fn(&[u8]) -> bool| {
            let keys: Vec<Vec<u8>> = map.keys().filter(|k| !keep(k)).collect();
            keys.iter().try_for_each(|k| map.delete(k))
        };
        stale(&p.devices, &|k| {
            devices.keys().any(|dev| k == dev.to_ne_bytes())
        })?;
        stale(&p.places, &|k| places.keys().any(|key| k == key))
    }

    /// The programs know the time since boot only.
    fn set_clock(&self) {
        let time = |id| {
            let t = rustix::time::clock_gettime(id);
            t.tv_sec as i128 * 1_000_000_000 + i128::from(t.tv_nsec)
        };
        let offset = time(rustix::time::ClockId::Realtime) - time(rustix::time::ClockId::Monotonic);
        self.shared()
            .clock_offset
            .store(offset as u64, Ordering::Relaxed);
    }

    /// Takes what is in the ring, about [`READ_CHANGES`] at most. Says whether all is taken that was there when the last call
    /// that said so had ended.
    fn take(&mut self, out: &mut Vec<Change>) -> Result<ReadState, SensorError> {
        let begin = self.ring.position();
        let head = self.ring.head();
        let mut batch = Batch::new(out, &self.skip);
        let state = loop {
            if batch.out.len() - batch.first >= READ_CHANGES {
                break ReadState::More;
            }
            match self.ring.next() {
                Next::Empty => break ReadState::Drained,
                Next::Corrupt => {
                    return Err(SensorError::Read {
                        sensor: SensorKind::Ebpf,
                        source: io::Error::other("the ring holds what is no record"),
                    });
                }
                Next::Record(bytes) => {
                    self.stats.seen += 1;
                    if batch.add(bytes, &self.roots) == Told::Garbled {
                        self.stats.lost += 1;
                    }
                }
            }
        };
        let taken = batch.out.len() - batch.first;
        self.stats.filtered += batch.filtered;
        self.stats.merged += batch.merged;
        self.stats.delivered += taken as u64;
        self.owing |= taken > 0;
        self.mark.read(self.ring.position() - begin);
        if state == ReadState::Drained && self.ring.position() < self.ring.head() {
            // A program is still writing its record; those behind it are of calls that may have returned.
            std::thread::yield_now();
        } else if state == ReadState::Drained {
            self.mark.clear();
            return Ok(state);
        }
        let waiting = head.saturating_sub(self.ring.position());
        let set = self.mark.set(|| Ok::<_, std::convert::Infallible>(waiting));
        match set {
            Ok(()) if self.mark.is_reached() => Ok(ReadState::Drained),
            _ => Ok(ReadState::More),
        }
    }

    /// Tells of what had no room. The pages that a lost message was about are writable: they are cleaned first, so that the
    /// next store is seen.
    fn losses(&mut self, out: &mut Vec<Change>) {
        let lost: [u64; ROOTS_MAX] =
            std::array::from_fn(|i| self.shared().lost[i].load(Ordering::Acquire));
        let mut missed = self.missed;
        if self.checked.elapsed() >= CHECK {
            self.checked = Instant::now();
            missed = self.programs.missed();
        }
        if lost == self.told && missed <= self.missed {
            return;
        }
        let all = missed > self.missed;
        let concerned: Vec<WatchRoot> = (self.roots.iter().zip(lost).zip(self.told))
            .filter(|((_, lost), told)| all || lost != told)
            .filter_map(|((root, _), _)| Some(root.as_ref()?.root.clone()))
            .collect();
        self.told = lost;
        self.missed = missed.max(self.missed);
        self.owing = true;
        if concerned.is_empty() {
            return;
        }
        for (root, m) in self.watch.iter().zip(&self.mounted) {
            if concerned.contains(root)
                && let Err(e) = rustix::fs::syncfs(&m.dir)
            {
                tracing::warn!(root = %root.path, "syncfs after a loss: {e}");
            }
        }
        self.stats.overflows += 1;
        self.stats.delivered += concerned.len() as u64;
        out.extend(concerned.iter().map(|r| r.whole(now(), ChangeOp::Overflow)));
    }

    fn is_lossless(&self) -> bool {
        let c = self.shared();
        (c.lost.iter().zip(self.told)).all(|(l, told)| l.load(Ordering::Acquire) == told)
    }

    /// Sleeps until a program wakes us, the waker does, or the time has come.
    fn sleep(&mut self, until: Instant) -> Result<Ready, SensorError> {
        let c = self.shared();
        c.waiting.store(1, Ordering::SeqCst);
        // Against the program that puts its record into the ring and then looks at `waiting`.
        fence(Ordering::SeqCst);
        let ready = match self.ring.is_ready() || !self.is_lossless() {
            true => Ok(Ready::Events),
            false => self.waker.wait(Some(self.wakes.as_fd()), until),
        };
        c.waiting.store(0, Ordering::SeqCst);
        let read = |e: rustix::io::Errno| SensorError::Read {
            sensor: SensorKind::Ebpf,
            source: e.into(),
        };
        let ready = ready.map_err(read)?;
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }];
        let zero = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        match epoll::wait(&self.wakes, &mut events, Some(&zero)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(ready),
            Err(e) => Err(read(e)),
        }
    }
}

/// What a skipped directory is, beyond its inode number, which may become another one's. `None`: it is not there, or its
/// filesystem does not tell; what happens below it is then dropped here and not in the kernel.
fn generation_of(path: &BytePath) -> Option<(FileId, u32)> {
    let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let dir = rustix::fs::open(path.as_path(), flags, rustix::fs::Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&dir).ok()?;
    let generation = crate::sys::generation_of(dir.as_fd()).ok()?;
    Some((crate::sys::file_id(&stat), generation))
}

/// Where the roots are.
fn look_up(roots: &[WatchRoot]) -> Result<(Vec<Mounted>, Vec<Fs>), SensorError> {
    let mut mounted = Vec::new();
    let mut filesystems = Vec::new();
    for root in roots {
        let m = mount::of(root).map_err(|source| SensorError::Root {
            path: root.path.clone(),
            source,
        })?;
        let fs = Fs::by_name(&m.fs_type).ok_or_else(|| {
            unavailable(Missing {
                why: format!("{} is on {}", root.path, m.fs_type),
                remedy: format!("it covers {}; use another sensor", Fs::NAMES),
            })
        })?;
        mounted.push(m);
        filesystems.push(fs);
    }
    Ok((mounted, filesystems))
}

/// The maps' memory, and what the ring's wake-ups arrive at.
fn memory(programs: &Programs) -> io::Result<(Mapping, Ring, OwnedFd)> {
    let control = Mapping::new(programs.control.as_fd(), 0, size_of::<Control>(), true)?;
    let ring = Ring::new(programs.ring.as_fd(), programs.ring.max_entries())?;
    let wakes = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    // Edges: what is read and not released keeps the ring readable.
    epoll::add(
        &wakes,
        &programs.ring,
        epoll::EventData::new_u64(0),
        epoll::EventFlags::IN | epoll::EventFlags::ET,
    )?;
    Ok((control, ring, wakes))
}

fn unavailable(m: Missing) -> SensorError {
    SensorError::Unavailable {
        sensor: SensorKind::Ebpf,
        why: m.why,
        remedy: m.remedy,
    }
}

fn failed(source: io::Error) -> SensorError {
    unavailable(Missing {
        why: format!("setting it up failed: {source}"),
        remedy: "use another sensor".into(),
    })
}

impl ChangeSource for EbpfSource {
    fn kind(&self) -> SensorKind {
        SensorKind::Ebpf
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee {
            extents: true,
            mmap: true,
            persists: true,
        }
    }

    fn read(&mut self, out: &mut Vec<Change>, timeout: Duration) -> Result<ReadState, SensorError> {
        let until = deadline(timeout);
        let first = out.len();
        let mut woken = false;
        loop {
            self.set_clock();
            // A loss before the records in front of it: who looks at the bytes that they name has to know that there may
            // be others.
            self.losses(out);
            let state = self.take(out)?;
            self.losses(out);
            if out.len() > first || woken || Instant::now() >= until {
                return Ok(state);
            }
            if !self.owing {
                // All of it was about nothing of ours.
                self.ring.release();
            }
            if state == ReadState::Drained {
                let until = until.min(Instant::now() + CHECK_IDLE);
                woken = self.sleep(until)? == Ready::Woken;
            }
        }
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn stats(&self) -> SensorStats {
        self.stats
    }

    fn release(&mut self) -> Result<(), SensorError> {
        self.ring.release();
        self.owing = false;
        let c = self.shared();
        for (at, told) in c.lost_told.iter().zip(self.told) {
            at.store(told, Ordering::Release);
        }
        c.missed_told.store(self.missed, Ordering::Release);
        Ok(())
    }

    fn continuity(&self) -> Option<Continuity> {
        let c = self.shared();
        Some(Continuity {
            sensor: SensorKind::Ebpf,
            instance: c.instance(),
            epoch: c.epoch.load(Ordering::Relaxed),
            roots: self.known.clone(),
        })
    }

    fn close(self: Box<Self>) {
        let EbpfSource { programs, .. } = *self;
        programs.remove();
    }

    // Drop leaves: the pins keep everything at work, and what was read and not released is read again by the next process.
    fn leave(self: Box<Self>) {}
}
