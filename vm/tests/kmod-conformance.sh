# The module's sensor: every operation of the conformance suite's table on each filesystem, and what the suite asks of exact sensors.
# deadline: 400
. /guest.sh
insmod /payload/farwrite.ko
export FARWRITE_CONFORMANCE_SENSORS=kmod FARWRITE_CONFORMANCE_DOC=/payload/capture.md RUST_BACKTRACE=1
failed=""
for kind in ${FS:-ext4 xfs btrfs tmpfs}; do
    begin=$(cut -d. -f1 /proc/uptime)
    FARWRITE_CONFORMANCE_DIR=/mnt/$kind conformance --nocapture --exact table::every_operation_shows_as_documented_on_disk || failed="$failed $kind"
    note "$kind: $(($(cut -d. -f1 /proc/uptime) - begin)) s"
    same "functions patched after the end" 0 "$(wc -l </sys/kernel/tracing/enabled_functions)"
done
FARWRITE_CONFORMANCE_DIR=/mnt/ext4 conformance --nocapture --test-threads 1 exact:: || failed="$failed exact"
[ -z "$failed" ] || die "$failed"
rmmod farwrite
