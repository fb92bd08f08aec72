# What a 4 KiB pwrite on ext4 costs, without programs, not watched, and recorded. In instructions with --icount.
# deadline: 120
. /guest.sh
N=3000
mkdir /mnt/ext4/dir /mnt/ext4/else /mnt/xfs/dir /mnt/ext4/before
cost() { act cost "$1" 0 $N; }
ratio() { awk "BEGIN { printf \"%.3f\", $1 / $2 }"; }
tell() { note "$1: $2 ($(ratio "$2" "$none"))"; }

none=$(cost /mnt/ext4/dir/file)
note "without programs: $none"
# A root on both filesystems would hook both: ext4's functions are hooked, and xfs is what is watched.
record ebpf on /mnt/ext4/before >/dev/null
rm -r /mnt/ext4/before
outside=$(cost /mnt/ext4/else/file)
tell "on, another directory of the filesystem is watched" "$outside"
record ebpf off /mnt/ext4/dir >/dev/null
record ebpf on /mnt/ext4/dir >/dev/null
recorded=$(cost /mnt/ext4/dir/file)
tell "recorded" "$recorded"
mkdir -p /mnt/ext4/dir/a/b/c/d
tell "recorded, four directories deeper" "$(cost /mnt/ext4/dir/a/b/c/d/file)"
record ebpf off /mnt/ext4/dir >/dev/null
tell "switched off just now" "$(cost /mnt/ext4/dir/file)"
sleep 5
tell "switched off again" "$(cost /mnt/ext4/dir/file)"
if [ -n "${BOUNDS:-}" ]; then
    awk "BEGIN { exit !($outside <= 1.30 * $none && $recorded <= 1.40 * $none) }" || die "dearer than it may be"
fi
