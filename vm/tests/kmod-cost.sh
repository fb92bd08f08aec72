# What a 4 KiB pwrite on ext4 costs, without the module, not watched, and recorded. In instructions with --icount.
# deadline: 120
. /guest.sh
N=3000
mkdir /mnt/ext4/dir /mnt/ext4/else /mnt/xfs/dir
cost() { act cost "$1" 0 $N; }
ratio() { awk "BEGIN { printf \"%.3f\", $1 / $2 }"; }
tell() { note "$1: $2 ($(ratio "$2" "$none"))"; }

none=$(cost /mnt/ext4/dir/file)
note "without the module: $none"
insmod /payload/farwrite.ko
tell "loaded, switched off" "$(cost /mnt/ext4/dir/file)"
fwctl on /mnt/xfs/dir >/dev/null
other=$(cost /mnt/ext4/dir/file)
tell "on, another filesystem is watched" "$other"
fwctl on /mnt/ext4/dir >/dev/null
outside=$(cost /mnt/ext4/else/file)
tell "on, another directory of the filesystem is watched" "$outside"
fwctl forget
recorded=$(cost /mnt/ext4/dir/file)
tell "recorded" "$recorded"
mkdir -p /mnt/ext4/dir/a/b/c/d
fwctl forget
tell "recorded, four directories deeper" "$(cost /mnt/ext4/dir/a/b/c/d/file)"
fwctl off
tell "switched off again" "$(cost /mnt/ext4/dir/file)"
rmmod farwrite
# Nanoseconds are no measure here; instructions are.
if [ -n "${BOUNDS:-}" ]; then
    awk "BEGIN { exit !($other <= 1.04 * $none && $recorded <= 1.10 * $none) }" || die "dearer than it may be"
fi
