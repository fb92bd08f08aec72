//! Chooses and opens a sensor.

use crate::held::WithHeld;
use crate::{
    ChangeSource, FanotifySource, InotifySource, KmodSource, ScanSource, SensorChoice, SensorError,
    SensorKind, SensorOptions, WatchRoot,
};

/// Filesystems whose files others change as well: the kernel here has nothing to tell of that (statfs(2)).
const REMOTE: [(u32, &str); 8] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x0102_1997, "9P"),
    (0x00c3_6400, "Ceph"),
    (0x5346_414f, "AFS"),
    (0x6573_5546, "FUSE"),
];

/// Opens the sensor that was chosen, or for `Auto` the best that this machine allows, and says why this one.
///
/// Once it returns, no change below the roots is missed; the caller scans what was there before. What another sensor was left
/// recording is ended ([`end_recordings`]).
pub fn open(
    choice: SensorChoice,
    roots: &[WatchRoot],
    opts: &SensorOptions,
) -> Result<(Box<dyn ChangeSource>, String), SensorError> {
    let opened = choose(choice, roots, opts)?;
    end_recordings(Some(opened.0.kind()));
    Ok(opened)
}

/// Ends what earlier processes have left recording in the kernel for a next one, but for that of the sensor `except`, and
/// for what a process uses now. Nobody would read it, and each change would be paid for once more. (Of two daemons on one machine
/// the other may have left it: that one then compares everything at its start.) Failing is no reason not to go on: it is logged.
pub fn end_recordings(except: Option<SensorKind>) {
    if except != Some(SensorKind::Kmod) {
        crate::kmod::end_left();
    }
    #[cfg(feature = "ebpf")]
    if except != Some(SensorKind::Ebpf) {
        crate::ebpf::end_left();
    }
}

fn choose(
    choice: SensorChoice,
    roots: &[WatchRoot],
    opts: &SensorOptions,
) -> Result<(Box<dyn ChangeSource>, String), SensorError> {
    match choice {
        SensorChoice::Kmod => Ok((
            Box::new(KmodSource::open(roots, opts)?),
            "chosen by hand".into(),
        )),
        SensorChoice::Ebpf => Ok((ebpf(roots, opts)?, "chosen by hand".into())),
        SensorChoice::Fanotify => Ok((
            helped(FanotifySource::open(roots, opts)?, roots),
            "chosen by hand".into(),
        )),
        SensorChoice::Inotify => Ok((
            helped(InotifySource::open(roots, opts)?, roots),
            "chosen by hand".into(),
        )),
        SensorChoice::Scan => Ok((
            Box::new(ScanSource::open(roots, opts)?),
            "chosen by hand".into(),
        )),
        SensorChoice::Auto => auto(roots, opts),
    }
}

/// A sensor that is not told of all writes to files that are kept open.
fn helped(source: impl ChangeSource + 'static, roots: &[WatchRoot]) -> Box<dyn ChangeSource> {
    Box::new(WithHeld::new(Box::new(source), roots))
}

#[cfg(feature = "ebpf")]
fn ebpf(roots: &[WatchRoot], opts: &SensorOptions) -> Result<Box<dyn ChangeSource>, SensorError> {
    // Not every kernel attaches programs to functions that the module has. Nothing is missed: what a sensor has not seen is
    // found by comparing everything.
    crate::kmod::end_left();
    Ok(Box::new(crate::EbpfSource::open(roots, opts)?))
}

#[cfg(not(feature = "ebpf"))]
fn ebpf(roots: &[WatchRoot], _opts: &SensorOptions) -> Result<Box<dyn ChangeSource>, SensorError> {
    if roots.is_empty() {
        return Err(SensorError::NoRoots);
    }
    Err(SensorError::without_ebpf())
}

fn auto(
    roots: &[WatchRoot],
    opts: &SensorOptions,
) -> Result<(Box<dyn ChangeSource>, String), SensorError> {
    if let Some((root, fs)) = roots.iter().find_map(|r| Some((r, remote(r)?))) {
        let why = format!(
            "{} is on {fs}, whose changes the kernel does not tell of",
            root.path
        );
        return Ok((Box::new(ScanSource::open(roots, opts)?), why));
    }
    let kmod = match KmodSource::open(roots, opts) {
        Ok(s) => {
            let why = "the module is loaded: sees exact byte ranges and mapped stores";
            return Ok((Box::new(s), why.into()));
        }
        Err(e @ (SensorError::NoRoots | SensorError::Root { .. })) => return Err(e),
        Err(e) => e,
    };
    let ebpf = match ebpf(roots, opts) {
        Ok(s) => {
            return Ok((
                s,
                format!("sees exact byte ranges and mapped stores; {kmod}"),
            ));
        }
        Err(e @ (SensorError::NoRoots | SensorError::Root { .. })) => return Err(e),
        Err(e) => e,
    };
    let fanotify = match FanotifySource::open(roots, opts) {
        Ok(s) => {
            let why = format!("sees whole filesystems, names and identities; {ebpf}");
            return Ok((helped(s, roots), why));
        }
        Err(e) => e,
    };
    let inotify = match InotifySource::open(roots, opts) {
        Ok(s) => return Ok((helped(s, roots), format!("{ebpf}; {fanotify}"))),
        Err(e) => e,
    };
    let why = format!("{ebpf}; {fanotify}; {inotify}");
    Ok((Box::new(ScanSource::open(roots, opts)?), why))
}

/// The name of the network filesystem that the root is on, if it is.
fn remote(root: &WatchRoot) -> Option<&'static str> {
    let st = rustix::fs::statfs(root.path.as_path()).ok()?;
    let magic = st.f_type as u32;
    REMOTE.iter().find(|(m, _)| *m == magic).map(|(_, n)| *n)
}
