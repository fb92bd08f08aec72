# A whole source with the module's sensor, and a vault on loopback: storms, costs, kills, the switch.
# deadline: 500
# memory: 2048
. /payload/source.sh
replaced() { wc -l </sys/kernel/tracing/enabled_functions; }

insmod /payload/farwrite.ko
set_up
start_source kmod
[ "$(replaced)" -gt 60 ] || die "only $(replaced) functions are patched"
storms
costs
killed_and_back kmod

# The switch: the original calls are back, and what happens meanwhile is caught up.
farwrite off
same "functions patched when off" 0 "$(replaced)"
storm $SRC 31 500
farwrite on
[ "$(replaced)" -gt 60 ] || die "on again: only $(replaced) functions are patched"
converges "after off and on"
farwrite off
kill $DAEMON
wait $DAEMON 2>/dev/null || true
rmmod farwrite
