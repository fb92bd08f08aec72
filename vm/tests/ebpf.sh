# The eBPF sensor: the conformance suite on each filesystem.
# deadline: 400
. /guest.sh
export FARWRITE_CONFORMANCE_SENSORS=ebpf FARWRITE_CONFORMANCE_DOC=/payload/capture.md RUST_BACKTRACE=1
# What does not depend on the filesystem is looked at on one of them.
anywhere="exact:: contract::nothing_changes_without_a_message_from_inside behaviour::a_bind behaviour::a_root_that_is
    behaviour::a_wake behaviour::auto behaviour::messages behaviour::names behaviour::repeated behaviour::what_happens"
each="exact::a_mapping exact::a_reader exact::a_store exact::ranges"
failed=""
for kind in ${FS:-ext4 xfs btrfs tmpfs}; do
    begin=$(cut -d. -f1 /proc/uptime)
    export FARWRITE_CONFORMANCE_DIR=/mnt/$kind
    case $kind in ext4) tests=$anywhere ;; *) tests=$each ;; esac
    conformance --nocapture --test-threads=1 ${ONLY:-$tests} || failed="$failed $kind"
    # Last: it switches off at its end.
    conformance --nocapture --exact table::every_operation_shows_as_documented_on_disk || failed="$failed $kind"
    note "$kind: $(($(cut -d. -f1 /proc/uptime) - begin)) s"
    same "pinned in bpffs after the end" "" "$(ls /sys/fs/bpf)"
    same "hooked functions after the end" 0 "$(wc -l </sys/kernel/tracing/enabled_functions)"
done
[ -z "$failed" ] || die "$failed"
