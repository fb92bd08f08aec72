//! Data past the kernel's cache: the same bytes as through it, and none of them left in it.

use bytes::Bytes;
use farwrite_fs::{
    DIRECT_LEAST_BYTES, DirectFile, Scratch, is_cached, open_direct, overwrites_in_place,
    read_direct,
};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

const MIB: usize = 1 << 20;
/// More than two pages, however large these are.
const STEP: usize = 128 << 10;

/// Numbers that look random, the same each time.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1);
        (self.0 >> 33) as usize % n
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.below(256) as u8).collect()
    }
}

fn create(path: &Path) -> Arc<File> {
    let mut options = File::options();
    let new = options.read(true).write(true).create_new(true);
    Arc::new(new.open(path).unwrap())
}

/// `bytes` at a place in memory that is not aligned, or is.
fn piece(bytes: &[u8], aligned: bool) -> Bytes {
    let mut memory = vec![0; bytes.len() + 8192];
    let skip = memory.as_ptr().addr().next_multiple_of(4096) - memory.as_ptr().addr();
    let from = skip + usize::from(!aligned) * 7;
    memory[from..from + bytes.len()].copy_from_slice(bytes);
    Bytes::from(memory).slice(from..from + bytes.len())
}

/// Random pieces at random places, of which some begin and end within a page, and some are small.
fn writes_as_always(dir: &Path) -> (Arc<File>, bool) {
    let mut rng = Rng(1);
    let file = create(&dir.join("written"));
    let direct = DirectFile::new(file.clone(), true);
    let able = direct.is_direct();
    assert_eq!(able, overwrites_in_place(&*file));
    let mut scratch = Scratch::default();
    let mut want: Vec<u8> = Vec::new();
    for round in 0..60 {
        let offset = match round % 3 {
            0 => want.len(),
            1 => want.len() + rng.below(3 * 4096),
            _ => rng.below(want.len()),
        };
        let mut pieces = Vec::new();
        let mut at = offset;
        for _ in 0..=rng.below(4) {
            let len = match rng.below(4) {
                0 => 1 + rng.below(5000),
                1 => 64 << 10,
                _ => 1 + rng.below(MIB / 2),
            };
            let bytes = rng.bytes(len);
            want.resize(want.len().max(at + len), 0);
            want[at..at + len].copy_from_slice(&bytes);
            at += len;
            pieces.push(piece(&bytes, rng.below(2) == 0));
        }
        direct
            .write_all_at(&pieces, offset as u64, &mut scratch)
            .unwrap();
    }
    assert_eq!(direct.is_direct(), able, "nothing was refused");
    assert!(std::fs::read(dir.join("written")).unwrap() == want);
    (file, able)
}

#[test]
fn what_is_written_past_the_cache_is_what_would_be_written_through_it() {
    let t = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    writes_as_always(t.path());
    // Where the filesystem leaves it to the cache (tmpfs), nothing else changes.
    let shm = Path::new("/dev/shm");
    if shm.is_dir() {
        let (_, able) = writes_as_always(tempfile::tempdir_in(shm).unwrap().path());
        assert!(!able);
    }
}

#[test]
fn several_write_at_once_to_what_was_set_aside() {
    let t = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = t.path().join("file");
    let file = create(&path);
    let direct = DirectFile::new(file.clone(), true);
    let (begin, len) = (1000, 8 * MIB as u64);
    direct.allocate(begin, len).unwrap();
    let stat = rustix::fs::fstat(&file).unwrap();
    if !direct.is_direct() {
        assert_eq!((stat.st_size, stat.st_blocks), (0, 0));
        return;
    }
    assert_eq!(stat.st_size as u64, begin + len);
    assert!(stat.st_blocks as u64 * 512 >= len);
    // What is little is not worth a call, and more than any disk has is told.
    let behind = begin + len + MIB as u64;
    direct.allocate(behind, 4096).unwrap();
    assert_eq!(file.metadata().unwrap().len(), begin + len);
    assert!(direct.allocate(behind, 1 << 60).is_err());

    let want = Rng(4).bytes(len as usize);
    let parts: Vec<(usize, &[u8])> = want.chunks(MIB).enumerate().collect();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let (parts, direct) = (&parts, &direct);
            scope.spawn(move || {
                let mut scratch = Scratch::default();
                for (i, bytes) in parts.iter().skip(writer).step_by(4) {
                    let pieces = [piece(bytes, i % 3 == 0)];
                    let at = begin + (i * MIB) as u64;
                    direct.write_all_at(&pieces, at, &mut scratch).unwrap();
                }
            });
        }
    });
    let all = std::fs::read(&path).unwrap();
    assert!(all[..begin as usize].iter().all(|b| *b == 0) && all[begin as usize..] == want);
}

#[test]
fn little_of_what_is_written_or_read_past_the_cache_is_in_it() {
    let t = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let bytes = Rng(2).bytes(4 * MIB);
    let mut scratch = Scratch::default();
    for aligned in [true, false] {
        let path = t.path().join(format!("{aligned}"));
        let file = create(&path);
        let direct = DirectFile::new(file.clone(), true);
        if !direct.is_direct() {
            eprintln!("this filesystem leaves it to the cache");
            return;
        }
        let pieces: Vec<Bytes> = bytes.chunks(MIB).map(|c| piece(c, aligned)).collect();
        direct.write_all_at(&pieces, 100, &mut scratch).unwrap();
        file.sync_data().unwrap();
        // Who asks whether a page is there has the kernel read it, no others ahead of it, and now and then it is there at once.
        let asks = File::open(&path).unwrap();
        rustix::fs::fadvise(&asks, 0, None, rustix::fs::Advice::Random).unwrap();
        let cached = |from: u64| {
            let pages = (from..4 * MIB as u64).step_by(STEP);
            pages.filter(|at| is_cached(&asks, *at)).count()
        };
        assert!(cached(STEP as u64 / 2) < 4);
        let read = read_direct(&open_direct(&path).unwrap(), 100..100 + 4 * MIB as u64).unwrap();
        assert!(read == bytes);
        assert!(cached(STEP as u64) < 4);
        file.read_exact_at(&mut [0], MIB as u64).unwrap();
        assert!(is_cached(&asks, MIB as u64));
        assert!(!is_cached(&asks, 5 * MIB as u64), "behind the end");
    }
}

#[test]
fn any_range_can_be_read_up_to_the_end_of_the_file() {
    let t = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = t.path().join("file");
    let mut rng = Rng(3);
    let size = 3 * DIRECT_LEAST_BYTES + 1234;
    let want = rng.bytes(size);
    std::fs::write(&path, &want).unwrap();
    // Not on the disk yet: a read past the cache sees it all the same.
    let Ok(file) = open_direct(&path) else {
        eprintln!("this filesystem leaves it to the cache");
        return;
    };
    for _ in 0..200 {
        let from = rng.below(size + 5000);
        let to = from + rng.below(size);
        let read = read_direct(&file, from as u64..to as u64).unwrap();
        assert!(read == want[from.min(size)..to.min(size)], "{from}..{to}");
    }
    assert_eq!(read_direct(&file, 5..5).unwrap().len(), 0);
}
