# Requests that must be refused, and requests by chance (a minute of them: --env SECONDS_OF_CHANCE=60).
# deadline: 200
. /guest.sh
insmod /payload/farwrite.ko ring_bytes=3 2>/dev/null && die "a ring of 3 bytes"
insmod /payload/farwrite.ko
mkdir /mnt/ext4/dir
fwctl bad /mnt/ext4/dir
same "functions patched afterwards" 0 "$(wc -l </sys/kernel/tracing/enabled_functions)"
seed=$(date +%s)
act load /mnt/ext4/dir/x 100000 &
load=$!
fwctl fuzz "${SECONDS_OF_CHANCE:-15}" "$seed"
note "requests by chance, seed $seed"
kill $load
wait $load || true
fwctl off
# Releases by chance have cut records: what is left cannot be read.
fwctl forget
fwctl on /mnt/ext4/dir
act pwrite /mnt/ext4/dir/file 1 2
fwctl read >/tmp/records
grep -q '^WRITE .*path=file at=1+2 ' /tmp/records || die "it does not record any more"
fwctl off
rmmod farwrite
