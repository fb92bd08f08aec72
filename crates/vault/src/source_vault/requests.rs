//! Wakes prune threads when a request is put into their sources' directories, so that none of them has to look for one.
//! One inotify instance for the whole process, since a user may have few of them, and one thread that waits for it
//! (inotify(7)).

use super::{Shared, keeper};
use parking_lot::Mutex;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, OnceLock, Weak};

/// Room for some events at once.
const EVENTS: usize = 4096;

/// Filesystems that this kernel alone changes (statfs(2)): ext2 to ext4, XFS, Btrfs, ZFS, F2FS, bcachefs, tmpfs, overlayfs. Of others,
/// such as NFS, another machine may write a request, and inotify tells nothing.
const LOCAL: [u32; 8] = [
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0x2fc1_2fc1,
    0xf2f5_2010,
    0xca45_1a4e,
    0x0102_1994,
    0x794c_7630,
];

/// The process's instance; `None` if it could not be made.
static HUB: OnceLock<Option<Hub>> = OnceLock::new();

struct Hub {
    instance: OwnedFd,
    /// By watch number. One directory may be open twice for a moment, and has one number then.
    watched: Mutex<HashMap<i32, Vec<Weak<Shared>>>>,
}

/// A directory is watched as long as this lives.
pub(super) struct Watched {
    hub: &'static Hub,
    number: i32,
    who: Weak<Shared>,
}

impl Watched {
    /// From now on a request that appears in `source_dir` sets `asked` and wakes the prune thread of `shared`. `None` where the
    /// kernel cannot tell; then somebody has to look.
    pub(super) fn begin(source_dir: &Path, shared: &Arc<Shared>) -> Option<Watched> {
        rustix::fs::statfs(source_dir)
            .ok()
            .filter(|s| LOCAL.contains(&(s.f_type as u32)))?;
        let hub = HUB.get_or_init(Hub::start).as_ref()?;
        let mut watched = hub.watched.lock();
        let flags = WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE | WatchFlags::ONLYDIR;
        let number = inotify::add_watch(&hub.instance, source_dir, flags)
            .inspect_err(|e| tracing::debug!("{}: inotify: {e}", source_dir.display()))
            .ok()?;
        let who = Arc::downgrade(shared);
        watched.entry(number).or_default().push(who.clone());
        Some(Watched { hub, number, who })
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut watched = self.hub.watched.lock();
        let Some(all) = watched.get_mut(&self.number) else {
            return;
        };
        all.retain(|w| !w.ptr_eq(&self.who));
        if all.is_empty() {
            watched.remove(&self.number);
            // It is gone already if the directory is.
            let _ = inotify::remove_watch(&self.hub.instance, self.number);
        }
    }
}

impl Hub {
    fn start() -> Option<Hub> {
        let hub = inotify::init(CreateFlags::CLOEXEC).and_then(|instance| {
            let reader = instance.try_clone().map_err(|_| Errno::MFILE)?;
            std::thread::Builder::new()
                .name("vault-requests".into())
                .spawn(move || read(&reader))
                .map_err(|_| Errno::AGAIN)?;
            Ok(Hub {
                instance,
                watched: Mutex::default(),
            })
        });
        hub.inspect_err(|e| tracing::debug!("inotify: {e}")).ok()
    }
}

fn read(instance: &OwnedFd) {
    let mut buffer = [MaybeUninit::uninit(); EVENTS];
    let mut reader = Reader::new(instance, &mut buffer);
    loop {
        let (number, overflow) = match reader.next() {
            Ok(e) => {
                let overflow = e.events().contains(ReadFlags::QUEUE_OVERFLOW);
                let is_request = e
                    .file_name()
                    .is_some_and(|n| n.to_bytes() == keeper::REQUEST.as_bytes());
                if !overflow && !is_request {
                    continue;
                }
                (e.wd(), overflow)
            }
            Err(Errno::INTR) => continue,
            Err(e) => {
                // Nothing else than a bug of ours or of the kernel's.
                tracing::error!("requests to prune are not seen any more: inotify: {e}");
                return;
            }
        };
        // A watch cannot come before the instance is there.
        let hub = HUB.wait().as_ref().expect("it reads for the hub");
        let watched = hub.watched.lock();
        let of_one = watched.get(&number).into_iter().filter(|_| !overflow);
        let of_all = watched.values().filter(|_| overflow);
        let concerned: Vec<Arc<Shared>> = of_one
            .chain(of_all)
            .flatten()
            .filter_map(Weak::upgrade)
            .collect();
        drop(watched);
        for shared in concerned {
            shared.state.lock().forgetting.asked = true;
            shared.keeper.notify_all();
        }
    }
}
