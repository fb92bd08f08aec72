# Words for tests in the guest: `. /guest.sh`. A test is `sh -e`: it passes if it ends with status 0.

# The host shows these lines even if the test passes.
note() { echo "note: $*"; }

# now: seconds since the start, with hundredths.
now() { cut -d' ' -f1 /proc/uptime; }

# worked PID: milliseconds of processor time that a process has had, with its threads that have not ended.
worked() { cat /proc/$1/task/*/schedstat | awk '{ s += $1 } END { print int(s / 1000000) }'; }

# figure WHAT BEGIN END: what was measured, in seconds.
figure() { note "FIGURE $1 $(awk "BEGIN { print $3 - $2 }")"; }

die() {
    echo "FAILED: $*"
    exit 1
}

# same WHAT EXPECTED GOT
same() { [ "$2" = "$3" ] || die "$1: expected '$2', got '$3'"; }

# until_true SECONDS COMMAND...: waits for a condition.
until_true() {
    local left=$(($1 * 10)) ; shift
    while ! "$@"; do
        left=$((left - 1))
        [ $left -gt 0 ] || die "not within the deadline: $*"
        sleep 0.1
    done
}
