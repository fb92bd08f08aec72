# On and off, loaded and unloaded, again and again while files are written: no warning, no hang, nothing left. Long: --env ROUNDS=100.
# deadline: 500
. /guest.sh
replaced() { wc -l </sys/kernel/tracing/enabled_functions; }
dirs=
for fs in ext4 xfs btrfs tmpfs; do
    mkdir -p /mnt/$fs/dir
    dirs="$dirs /mnt/$fs/dir"
    while :; do act load /mnt/$fs/dir/x 50 || exit 1; done &
    loads="$loads $!"
done

ROUNDS=${ROUNDS:-15}
insmod /payload/farwrite.ko
for i in $(seq $ROUNDS); do
    fwctl on $dirs >/dev/null
    [ "$(replaced)" -gt 60 ] || die "on: $(replaced) functions"
    fwctl read >/tmp/records
    # Every other time at once.
    [ $((i % 2)) = 0 ] || sleep 0.1
    fwctl off
    same "functions patched when off" 0 "$(replaced)"
    fwctl read >/tmp/records
done
note "on and off $ROUNDS times under load"
rmmod farwrite
for i in $(seq $((ROUNDS / 5))); do
    insmod /payload/farwrite.ko
    fwctl on $dirs >/dev/null
    rmmod farwrite 2>/dev/null && die "unloaded while on"
    sleep 0.1
    fwctl read >/tmp/records
    [ -s /tmp/records ] || die "nothing was recorded"
    fwctl off
    until_true 20 rmmod farwrite
    same "functions patched when unloaded" 0 "$(replaced)"
done
note "loaded and unloaded $((ROUNDS / 5)) times under load"
kill $loads
