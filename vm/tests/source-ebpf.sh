# A whole source with the eBPF sensor, and a vault on loopback: storms, costs, kills, the switch.
# deadline: 500
# memory: 2048
. /payload/source.sh
pinned() { find /sys/fs/bpf -type f | wc -l; }

set_up
start_source ebpf
[ "$(pinned)" -gt 10 ] || die "only $(pinned) programs and maps are pinned"
storms
costs
killed_and_back ebpf

# The switch: everything is detached, and what happens meanwhile is caught up.
farwrite off
same "programs and maps pinned when off" 0 "$(pinned)"
storm $SRC 31 500
farwrite on
[ "$(pinned)" -gt 10 ] || die "on again: only $(pinned) programs and maps are pinned"
converges "after off and on"
farwrite off
kill $DAEMON
wait $DAEMON 2>/dev/null || true
