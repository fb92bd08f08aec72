//! The values of the maps as bpf/shared.h has them: the same bytes on both sides.

use std::mem::offset_of;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::{AtomicU32, Ordering};

/// `FARWRITE_EBPF_ABI`.
pub(super) const ABI: u32 = 1;
/// `FARWRITE_ROOTS_MAX`.
pub(super) const ROOTS_MAX: usize = 64;
/// `FARWRITE_PLACE_SKIP`.
pub(super) const PLACE_SKIP: u32 = u32::MAX;
/// `FARWRITE_ROOT_UNUSED`.
pub(super) const ROOT_UNUSED: u32 = 0;
/// `FARWRITE_ROOT_RECORDED`.
pub(super) const ROOT_RECORDED: u32 = 1;
/// `FARWRITE_ROOT_GONE`.
#[cfg(test)]
pub(super) const ROOT_GONE: u32 = 2;
/// `FARWRITE_ROOT_RETIRED`.
pub(super) const ROOT_RETIRED: u32 = 3;

/// `struct farwrite_control`, in memory shared with the programs.
#[repr(C)]
pub(super) struct Control {
    pub abi: AtomicU32,
    pub waiting: AtomicU32,
    pub instance: [AtomicU64; 2],
    pub epoch: AtomicU64,
    pub clock_offset: AtomicU64,
    pub seq: AtomicU64,
    pub lost: [AtomicU64; ROOTS_MAX],
    pub lost_told: [AtomicU64; ROOTS_MAX],
    pub missed_told: AtomicU64,
    pub build: [AtomicU64; 4],
}

const _: () = {
    assert!(offset_of!(Control, waiting) == 4);
    assert!(offset_of!(Control, instance) == 8);
    assert!(offset_of!(Control, epoch) == 24);
    assert!(offset_of!(Control, clock_offset) == 32);
    assert!(offset_of!(Control, seq) == 40);
    assert!(offset_of!(Control, lost) == 48);
    assert!(offset_of!(Control, lost_told) == 560);
    assert!(offset_of!(Control, missed_told) == 1072);
    assert!(offset_of!(Control, build) == 1080);
    assert!(size_of::<Control>() == 1112);
};

impl Control {
    pub(super) fn instance(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(&self.instance) {
            chunk.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        bytes
    }

    pub(super) fn set_instance(&self, bytes: [u8; 16]) {
        for (chunk, word) in bytes.chunks_exact(8).zip(&self.instance) {
            let n = u64::from_ne_bytes(chunk.try_into().expect("eight bytes"));
            word.store(n, Ordering::Relaxed);
        }
    }

    pub(super) fn build(&self) -> [u64; 4] {
        [0, 1, 2, 3].map(|i: usize| self.build[i].load(Ordering::Relaxed))
    }
}

/// `struct farwrite_device`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Device {
    pub roots: u64,
    pub bits: u64,
}

impl Device {
    pub(super) fn bytes(self) -> [u8; 16] {
        pack([self.roots, self.bits])
    }
}

/// `struct farwrite_place`.
pub(super) fn place(dev: u64, ino: u64) -> [u8; 16] {
    pack([dev, ino])
}

/// `struct farwrite_place_is`.
pub(super) fn place_is(number: u32, generation: u32) -> [u8; 8] {
    let mut b = [0; 8];
    b[..4].copy_from_slice(&number.to_ne_bytes());
    b[4..].copy_from_slice(&generation.to_ne_bytes());
    b
}

/// `FARWRITE_INO_BIT`.
pub(super) fn ino_bit(ino: u64) -> u64 {
    1 << (ino.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58)
}

/// `struct farwrite_root`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Root {
    pub dev: u64,
    pub ino: u64,
    pub sb_dev: u32,
    pub state: u32,
}

impl Root {
    /// Bytes of the value.
    pub(super) const BYTES: usize = 24;

    pub(super) fn bytes(self) -> [u8; Root::BYTES] {
        let mut b = [0; Root::BYTES];
        b[..16].copy_from_slice(&pack([self.dev, self.ino]));
        b[16..20].copy_from_slice(&self.sb_dev.to_ne_bytes());
        b[20..].copy_from_slice(&self.state.to_ne_bytes());
        b
    }

    /// `None`: too short.
    pub(super) fn parse(b: &[u8]) -> Option<Root> {
        let long = |at: usize| Some(u64::from_ne_bytes(b.get(at..at + 8)?.try_into().ok()?));
        let int = |at: usize| Some(u32::from_ne_bytes(b.get(at..at + 4)?.try_into().ok()?));
        Some(Root {
            dev: long(0)?,
            ino: long(8)?,
            sb_dev: int(16)?,
            state: int(20)?,
        })
    }
}

fn pack(words: [u64; 2]) -> [u8; 16] {
    let mut b = [0; 16];
    b[..8].copy_from_slice(&words[0].to_ne_bytes());
    b[8..].copy_from_slice(&words[1].to_ne_bytes());
    b
}

/// A device number as the kernel has it (20 bits of minor number), out of that of stat(2).
pub(super) fn kernel_dev(dev: u64) -> u64 {
    u64::from(rustix::fs::major(dev)) << 20 | u64::from(rustix::fs::minor(dev))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_survives_its_bytes() {
        let r = Root {
            dev: 0x12_3456,
            ino: u64::MAX - 7,
            sb_dev: 9,
            state: ROOT_RECORDED,
        };
        assert_eq!(Root::parse(&r.bytes()), Some(r));
        assert_eq!(Root::parse(&r.bytes()[1..]), None);
    }

    #[test]
    fn device_numbers_are_the_kernels() {
        assert_eq!(kernel_dev(rustix::fs::makedev(8, 1)), 0x80_0001);
        assert_eq!(kernel_dev(rustix::fs::makedev(0, 70_000)), 70_000);
    }

    #[test]
    fn there_is_one_bit_for_each_inode_number() {
        for ino in [0, 1, 2, 256, u64::MAX] {
            assert_eq!(ino_bit(ino).count_ones(), 1);
        }
    }
}
