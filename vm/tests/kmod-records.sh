# Load, watch, write: a record with name and path, by the replaced call. And what is replaced before, on, and off.
. /guest.sh
replaced() { wc -l </sys/kernel/tracing/enabled_functions; }

insmod /payload/farwrite.ko
same "functions patched before" 0 "$(replaced)"
mkdir -p /mnt/ext4/root/dir /mnt/ext4/outside
echo old >/mnt/ext4/root/dir/file
fwctl on /mnt/ext4/root
fwctl info
[ "$(replaced)" -gt 60 ] || die "only $(replaced) functions are patched"
grep -q '^__x64_sys_pwrite64 .* I' /sys/kernel/tracing/enabled_functions || die "pwrite64 is not replaced"
note "$(replaced) functions patched while on"
act pwrite /mnt/ext4/root/dir/file 4096 100
act pwrite /mnt/ext4/outside/file 4096 100
fwctl read >/tmp/records
cat /tmp/records
same "records" 1 "$(wc -l </tmp/records)"
grep -q '^WRITE root=0 path=dir/file at=4096+100 result=100 call=18 ' /tmp/records || die "not the record that it should be"
fwctl counters
fwctl off
same "functions patched when off" 0 "$(replaced)"
act pwrite /mnt/ext4/root/dir/file 4096 100
fwctl read >/tmp/records
same "records when off" 0 "$(wc -l </tmp/records)"
rmmod farwrite
