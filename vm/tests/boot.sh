# The machine itself: the kernel asked for, its four filesystems, and what the sensors stand on.
. /guest.sh
same release "$RELEASE" "$(uname -r)"
for kind in ext4 xfs btrfs tmpfs; do
    echo hello >/mnt/$kind/file
    same "a file on $kind" hello "$(cat /mnt/$kind/file)"
done
test -e /sys/kernel/btf/vmlinux || die "no BTF"
grep -q bpf /sys/kernel/security/lsm || die "no bpf in the list of LSMs"
grep -q bpf /proc/filesystems
same "replaced functions" 0 "$(wc -l </sys/kernel/tracing/enabled_functions)"
echo out >/out/file
