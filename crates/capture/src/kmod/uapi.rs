//! The requests and layouts of uapi/farwrite.h, written by hand. A test compiles the header's own program and compares every
//! size, offset and number; nothing here is used before the module has said that it speaks this ABI.

/// `FARWRITE_DEVICE`.
pub(super) const DEVICE: &str = "/dev/farwrite";
/// `FARWRITE_ABI`.
pub(super) const ABI: u32 = 1;
/// `FARWRITE_ROOTS_MAX`.
pub(super) const ROOTS_MAX: usize = 64;
/// `FARWRITE_OP_PAD`.
pub(super) const OP_PAD: u16 = 0;
/// `FARWRITE_OP_LOST`.
pub(super) const OP_LOST: u16 = 9;
/// `FARWRITE_OP_GONE`.
pub(super) const OP_GONE: u16 = 10;
/// Bytes of what every record begins with: `size`, `version`, `op`.
pub(super) const RECORD_MIN: u64 = 8;
/// Where `length` is in a record.
pub(super) const RECORD_LENGTH: usize = 56;
/// `offset` of a record: of a loss, the roots.
pub(super) const RECORD_OFFSET: usize = 48;
/// Where `root` is in a record.
pub(super) const RECORD_ROOT: usize = 92;
/// Bytes of the page in front of the ring's data.
pub(super) const PAGE: usize = 4096;

/// `struct farwrite_ring`; read through atomics only, see `sys`.
#[repr(C)]
pub(super) struct RingHeader {
    pub head: std::sync::atomic::AtomicU64,
    pub tail: std::sync::atomic::AtomicU64,
    pub dropped: std::sync::atomic::AtomicU64,
    pub recorded: std::sync::atomic::AtomicU64,
    pub lost: std::sync::atomic::AtomicU64,
    pub lost_roots: std::sync::atomic::AtomicU64,
}

/// `struct farwrite_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Info {
    pub abi: u32,
    pub on: u32,
    pub instance: [u8; 16],
    pub epoch: u64,
    pub ring_bytes: u64,
    pub head: u64,
    pub tail: u64,
    pub dropped: u64,
    pub next_seq: u64,
    pub replaced: u32,
    pub hooked: u32,
    pub roots: u32,
    pub consumer: u32,
    pub counters: u32,
    pub reserved: u32,
}

/// `struct farwrite_watch`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Watch {
    pub dirfd: i32,
    pub root: u16,
    pub fresh: u16,
    pub dev: u32,
    pub reserved: u32,
    pub ino: u64,
}

const MAGIC: u32 = 0xfb;
const READ: u32 = 2;
const WRITE: u32 = 1;

/// A request's number as asm-generic/ioctl.h makes it.
const fn request(direction: u32, number: u32, bytes: usize) -> u64 {
    (direction << 30 | (bytes as u32) << 16 | MAGIC << 8 | number) as u64
}

pub(super) const IOC_INFO: u64 = request(READ, 0, size_of::<Info>());
pub(super) const IOC_ATTACH: u64 = request(0, 2, 0);
pub(super) const IOC_WATCH: u64 = request(READ | WRITE, 3, size_of::<Watch>());
pub(super) const IOC_UNWATCH: u64 = request(0, 4, 0);
pub(super) const IOC_SWITCH: u64 = request(0, 5, 0);
pub(super) const IOC_RELEASE: u64 = request(WRITE, 6, 8);
pub(super) const IOC_SEEN: u64 = request(WRITE, 7, 8);

const _: () = {
    assert!(size_of::<RingHeader>() == 48);
    assert!(size_of::<Info>() == 96 && std::mem::offset_of!(Info, replaced) == 72);
    assert!(size_of::<Watch>() == 24 && std::mem::offset_of!(Watch, ino) == 16);
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Record;
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::process::Command;

    /// `struct farwrite_record` without the paths.
    #[repr(C)]
    struct Header {
        size: u32,
        version: u16,
        op: u16,
        seq: u64,
        time: u64,
        ino: u64,
        parent: u64,
        to_parent: u64,
        offset: u64,
        length: u64,
        result: i64,
        dev: u32,
        generation: u32,
        flags: u32,
        pid: u32,
        tid: u32,
        root: u16,
        call: u16,
        hook: u16,
        path_len: u16,
        to_path_len: u16,
        reserved: [u16; 5],
    }

    /// What the C compiler says, by name.
    fn c_layout() -> BTreeMap<String, u64> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernel/test/fwctl.c");
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("fwctl");
        let cc = Command::new("cc")
            .args(["-Wall", "-Werror", "-o"])
            .args([&program, &source])
            .output()
            .unwrap();
        assert!(
            cc.status.success(),
            "{}",
            String::from_utf8_lossy(&cc.stderr)
        );
        let said = Command::new(&program).arg("layout").output().unwrap();
        let lines = String::from_utf8(said.stdout).unwrap();
        let parse = |l: &str| {
            let (name, value) = l.split_once(' ').unwrap();
            (name.to_string(), value.parse().unwrap())
        };
        lines.lines().map(parse).collect()
    }

    macro_rules! layout {
        ($all:ident, $c:literal, $rust:ty, $($field:ident)*) => {
            $all.push(($c.to_string(), size_of::<$rust>() as u64));
            $($all.push((
                format!("{}.{}", $c, stringify!($field)),
                std::mem::offset_of!($rust, $field) as u64,
            ));)*
        };
    }

    #[test]
    fn every_field_lies_where_the_c_compiler_puts_it() {
        let c = c_layout();
        let mut rust = Vec::new();
        layout!(rust, "farwrite_record", Header, size version op seq time ino parent to_parent offset length
            result dev generation flags pid tid root call hook path_len to_path_len reserved);
        layout!(rust, "farwrite_ring", RingHeader, head tail dropped recorded lost lost_roots);
        layout!(rust, "farwrite_info", Info, abi on instance epoch ring_bytes head tail dropped next_seq replaced
            hooked roots consumer counters reserved);
        layout!(rust, "farwrite_watch", Watch, dirfd root fresh dev reserved ino);
        for (name, value) in [
            ("FARWRITE_IOC_INFO", IOC_INFO),
            ("FARWRITE_IOC_ATTACH", IOC_ATTACH),
            ("FARWRITE_IOC_WATCH", IOC_WATCH),
            ("FARWRITE_IOC_UNWATCH", IOC_UNWATCH),
            ("FARWRITE_IOC_SWITCH", IOC_SWITCH),
            ("FARWRITE_IOC_RELEASE", IOC_RELEASE),
            ("FARWRITE_IOC_SEEN", IOC_SEEN),
            ("FARWRITE_ABI", u64::from(ABI)),
            ("FARWRITE_ROOTS_MAX", ROOTS_MAX as u64),
            ("FARWRITE_OP_LOST", u64::from(OP_LOST)),
            ("FARWRITE_OP_GONE", u64::from(OP_GONE)),
        ] {
            rust.push((name.to_string(), value));
        }
        let rust: BTreeMap<_, _> = rust.into_iter().collect();
        for (name, value) in &rust {
            assert_eq!(c.get(name), Some(value), "{name}");
        }
        // What C has and Rust does not use.
        let only_c: Vec<_> = c.keys().filter(|n| !rust.contains_key(*n)).collect();
        assert!(
            only_c
                .iter()
                .all(|n| n.contains("ounter") || *n == "FARWRITE_IOC_COUNTER"),
            "{only_c:?}"
        );
        assert_eq!(c["farwrite_record.root"], RECORD_ROOT as u64);
        assert_eq!(c["farwrite_record.offset"], RECORD_OFFSET as u64);
        assert_eq!(c["farwrite_record.length"], RECORD_LENGTH as u64);
    }

    #[test]
    fn the_reader_of_records_finds_each_field_where_the_layout_has_it() {
        let header = Header {
            size: 120,
            version: ABI as u16,
            op: 3,
            seq: 1,
            time: 2,
            ino: 3,
            parent: 4,
            to_parent: 5,
            offset: 6,
            length: 7,
            result: 8,
            dev: 9,
            generation: 10,
            flags: 11,
            pid: 12,
            tid: 13,
            root: 14,
            call: 15,
            hook: 16,
            path_len: 2,
            to_path_len: 3,
            reserved: [0; 5],
        };
        // SAFETY: plain integers without padding (asserted above by the offsets), read as the bytes that they are.
        let bytes: [u8; size_of::<Header>()] = unsafe { std::mem::transmute(header) };
        let bytes = [&bytes[..], b"abcde\0\0\0"].concat();
        let expected = Record {
            op: 3,
            time: 2,
            ino: 3,
            parent: 4,
            to_parent: 5,
            offset: 6,
            length: 7,
            dev: 9,
            flags: 11,
            root: 14,
            path: b"ab",
            to_path: b"cde",
        };
        assert_eq!(Record::parse(&bytes), Ok(expected));
    }
}
