# Four processors write at once, io_uring, direct and mapped writes among them: each write makes its record, once.
# processors: 4
# deadline: 120
. /guest.sh
same "processors" 4 "$(grep -c ^processor /proc/cpuinfo)"
insmod /payload/farwrite.ko
mkdir /mnt/ext4/dir /mnt/xfs/dir
for i in 1 2 3 4 5 6; do dd if=/dev/zero of=/mnt/ext4/dir/file$i bs=4096 count=4 2>/dev/null; done
cp /mnt/ext4/dir/file1 /mnt/xfs/dir/file
fwctl on /mnt/ext4/dir /mnt/xfs/dir >/dev/null
for i in 1 2 3 4; do
    act many /mnt/ext4/dir/file$i 0 5000 &
    writers="$writers $!"
done
(for n in $(seq 20); do act uring-direct /mnt/ext4/dir/file5 4096 4096; act aio-direct /mnt/xfs/dir/file 4096 4096; done) &
writers="$writers $!"
(for n in $(seq 20); do act mmap-again /mnt/ext4/dir/file6 0 1; act rename /mnt/ext4/dir/file6 /mnt/ext4/dir/moved; act rename /mnt/ext4/dir/moved /mnt/ext4/dir/file6; done) &
writers="$writers $!"
for writer in $writers; do wait $writer; done
same "records that were dropped" 0 "$(fwctl info | sed 's/.* dropped=\([0-9]*\).*/\1/')"
fwctl read >/tmp/records
for i in 1 2 3 4; do
    same "writes to file$i" 5000 "$(grep -c "^WRITE root=0 path=file$i at=0+4096 result=4096 call=18 " /tmp/records)"
done
same "direct writes by io_uring" 20 "$(grep -c "^WRITE .*path=file5 at=4096+4096 " /tmp/records)"
same "direct writes by aio" 20 "$(grep -c "^WRITE root=1 path=file at=4096+4096 " /tmp/records)"
same "stores" 40 "$(grep -c "^MMAP .*path=file6 " /tmp/records)"
same "renames" 40 "$(grep -c "^RENAME " /tmp/records)"
fwctl off
rmmod farwrite
