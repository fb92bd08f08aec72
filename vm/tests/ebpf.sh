# The eBPF sensor: every operation of the conformance suite's table on each filesystem.
# deadline: 400
. /guest.sh
export FARWRITE_CONFORMANCE_SENSORS=ebpf FARWRITE_CONFORMANCE_DOC=/payload/capture.md RUST_BACKTRACE=1
failed=""
for kind in ${FS:-ext4 xfs btrfs tmpfs}; do
    begin=$(cut -d. -f1 /proc/uptime)
    FARWRITE_CONFORMANCE_DIR=/mnt/$kind conformance --nocapture --exact table::every_operation_shows_as_documented_on_disk || failed="$failed $kind"
    note "$kind: $(($(cut -d. -f1 /proc/uptime) - begin)) s"
    same "pinned in bpffs after the end" "" "$(ls /sys/fs/bpf)"
done
[ -z "$failed" ] || die "$failed"
