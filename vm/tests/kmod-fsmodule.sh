# A filesystem's module that is unloaded and loaded anew while the module is on: its writes are seen before, and again after.
# append: slub_debug=FZPU
. /guest.sh
insmod /payload/farwrite.ko
umount /mnt/xfs
for i in 1 2 3; do
    mount -t xfs /dev/vdb /mnt/xfs
    mkdir -p /mnt/xfs/dir
    fwctl on /mnt/xfs/dir >/dev/null
    act pwrite /mnt/xfs/dir/file $i 10
    fwctl read >/tmp/records
    grep -q "^WRITE .*path=file at=$i+10 " /tmp/records || die "round $i: the write is not seen"
    grep -q '^xfs_file_write_iter ' /sys/kernel/tracing/enabled_functions || die "round $i: not hooked"
    umount /mnt/xfs
    rmmod xfs
    grep -q '^xfs_file_write_iter ' /sys/kernel/tracing/enabled_functions && die "round $i: still hooked"
    insmod /modules/xfs.ko
done
fwctl off
same "functions patched when off" 0 "$(wc -l </sys/kernel/tracing/enabled_functions)"
rmmod farwrite
