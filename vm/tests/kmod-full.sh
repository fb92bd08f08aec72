# A ring that is full loses records, counts them, says so as soon as there is room, and goes on.
. /guest.sh
insmod /payload/farwrite.ko ring_bytes=65536
mkdir /mnt/ext4/dir /mnt/xfs/dir
: >/mnt/ext4/dir/file
fwctl on /mnt/ext4/dir /mnt/xfs/dir >/dev/null
act many /mnt/ext4/dir/file 0 10000
fwctl info
dropped=$(fwctl info | sed 's/.* dropped=\([0-9]*\).*/\1/')
[ "$dropped" -gt 9000 ] || die "dropped: $dropped"
fwctl read >/tmp/records
kept=$(wc -l </tmp/records)
same "records kept and dropped" 10000 $((kept + dropped))
grep -q LOST /tmp/records && die "a record of the loss before there was room"
# The release made room: the loss is told at once, of the root it is about, with its count.
fwctl read >/tmp/records
cat /tmp/records
same "records" 1 "$(wc -l </tmp/records)"
grep -q "^LOST root=-1 path= at=1+$dropped " /tmp/records || die "not the loss"
act pwrite /mnt/ext4/dir/file 5 6
fwctl read >/tmp/records
grep -q '^WRITE root=0 path=file at=5+6 ' /tmp/records || die "it does not go on"
# Round the end of the ring, many times.
for i in $(seq 300); do
    act pwrite /mnt/xfs/dir/a-file-with-a-rather-long-name-$i $i 7
    if [ $((i % 20)) = 0 ]; then
        fwctl read >/tmp/records
        same "records" 40 "$(wc -l </tmp/records)"
        grep -q "path=a-file-with-a-rather-long-name-$i at=$i+7 " /tmp/records || die "record $i"
    fi
done
# A path longer than a record may hold keeps its end.
act deep /mnt/ext4/dir
fwctl read >/tmp/records
grep '^WRITE' /tmp/records | grep -q 'x/last at=1+2 .* flags=CUT,' || die "a path that is too long: $(cut -c 1-60 /tmp/records)"
same "bytes of the path" yes "$([ "$(grep '^WRITE' /tmp/records | sed 's/.*path=\([^ ]*\) at.*/\1/' | wc -c)" -gt 3800 ] && echo yes)"
fwctl off
rmmod farwrite
