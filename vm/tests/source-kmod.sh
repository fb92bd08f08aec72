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

# The same by the page: what a browser sends when the switch is clicked there.
URL=$(farwrite ui | grep -o 'http://[^ ]*' | head -n 1)
SITE=${URL%%/enter*}
COOKIE=$(wget -S -O /dev/null "$URL" 2>&1 | sed -n 's/^ *[Ss]et-[Cc]ookie: \([^;]*\);.*/\1/p' | head -n 1)
page() { wget -q -O - --header "Cookie: $COOKIE" "$SITE/"; }
click() {
    CSRF=$(page | sed -n 's/.*name="csrf" value="\([^"]*\)".*/\1/p' | head -n 1)
    wget -q -O /dev/null --header "Cookie: $COOKIE" --header "Origin: $SITE" --post-data "csrf=$CSRF&on=$1" "$SITE/switch" || true
}
page | grep -q 'id="in-kernel">Nothing' && die "the page says that nothing is replaced"
click false
same "functions patched after the page's switch" 0 "$(replaced)"
page | grep -q 'id="in-kernel">Nothing' || die "the page does not say that the original calls are back"
storm $SRC 37 300
click true
[ "$(replaced)" -gt 60 ] || die "on by the page: only $(replaced) functions are patched"
converges "after the page's switch"
note "switched off and on by the page: original calls back, and replaced again"
farwrite off
kill $DAEMON
wait $DAEMON 2>/dev/null || true
rmmod farwrite
