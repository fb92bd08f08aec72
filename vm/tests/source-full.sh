# The ring is full while the daemon is away: the loss is told, counted, repaired where it was, and nothing is missing.
# deadline: 300
# memory: 2048
. /payload/source.sh

insmod /payload/farwrite.ko ring_bytes=65536
set_up
start_source kmod
storm $SRC 1 200
converges "before"
same "losses before" 0 "$(number lost)"
kill -9 $DAEMON
wait $DAEMON 2>/dev/null || true
storm $SRC 2 2000
start_source kmod
converges "after a loss"
lost=$(number lost) repaired=$(number repaired)
note "lost $lost times, repaired $repaired times"
[ "$lost" -ge 1 ] || die "nothing was lost"
repaired() { [ "$(number repaired)" = "$(number lost)" ]; }
until_true 30 repaired
# And under way, with a daemon that is there.
storm $SRC 3 2000
converges "after a storm"
farwrite off
kill $DAEMON
wait $DAEMON 2>/dev/null || true
