# When the module cannot be unloaded, and that nothing hangs: while on, while open, while a call that it replaced is under way.
. /guest.sh
insmod /payload/farwrite.ko
mkdir /mnt/ext4/dir
mkfifo /mnt/ext4/dir/fifo

(sleep 1; while [ ! -e /tmp/go ]; do sleep 0.1; done) | fwctl hold >/tmp/held &
until_true 10 grep -q held /tmp/held
rmmod farwrite 2>/dev/null && die "unloaded while a process has it open"
touch /tmp/go
wait

fwctl on /mnt/ext4/dir >/dev/null
rmmod farwrite 2>/dev/null && die "unloaded while on"
# Creating open(2) of a fifo waits for a reader, for ever if need be; in the replaced call.
(: >/mnt/ext4/dir/fifo) &
writer=$!
until_true 10 sh -c "grep -q fifo_open /proc/$writer/stack || grep -q wait_for_partner /proc/$writer/stack"
grep -q farwrite /proc/$writer/stack || die "the writer does not wait in the replaced call: $(cat /proc/$writer/stack)"
begin=$(cut -d. -f1 /proc/uptime)
fwctl off
took=$(($(cut -d. -f1 /proc/uptime) - begin))
[ $took -le 5 ] || die "off took $took s"
same "functions patched when off" 0 "$(wc -l </sys/kernel/tracing/enabled_functions)"
rmmod farwrite 2>/dev/null && die "unloaded while a call is under way"
# On again, with that call still under way.
fwctl on /mnt/ext4/dir >/dev/null
act pwrite /mnt/ext4/dir/file 1 2
fwctl read >/tmp/records
grep -q '^WRITE .*path=file at=1+2 ' /tmp/records || die "it does not record"
fwctl off
cat /mnt/ext4/dir/fifo >/dev/null
wait $writer
until_true 20 rmmod farwrite
note "off with a call under way took $took s"
