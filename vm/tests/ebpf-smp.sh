# The eBPF sensor with two processors: storms, and a reader of only the told ranges.
# deadline: 300
# processors: 2
. /guest.sh
same processors 2 "$(grep -c ^processor /proc/cpuinfo)"
export FARWRITE_CONFORMANCE_SENSORS=ebpf FARWRITE_CONFORMANCE_DIR=/mnt/ext4 RUST_BACKTRACE=1
conformance --nocapture --test-threads=1 contract::nothing_changes_without_a_message_from_inside contract::what_moves exact::a_reader behaviour::a_wake exact::a_full
