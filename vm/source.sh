# A vault and a source in the guest, and what has to hold of them whichever sensor it is. Sourced by the tests.
. /guest.sh
ifconfig lo up
export FARWRITE_STATE=/mnt/xfs/state
VAULT=/mnt/btrfs/vault
SRC=/mnt/ext4/src
MIRROR=$VAULT/sources/vm/mirror$SRC
ADDRESS=127.0.0.1:9873

answers() { farwrite status >/dev/null 2>&1; }
vault_answers() { grep -q ^serving /tmp/vault.log; }

set_up() {
    mkdir -p $SRC
    farwrite vault init $VAULT >/dev/null
    farwrite vault serve --listen $ADDRESS $VAULT >/tmp/vault.log 2>&1 &
    VAULT_DAEMON=$!
    until_true 60 vault_answers
    farwrite source add $SRC --to "$(farwrite vault invite $VAULT --name vm --address $ADDRESS)" >/dev/null
}

# start_source SENSOR
start_source() {
    farwrite -v source run --sensor $1 >>/tmp/source.log 2>&1 &
    DAEMON=$!
    until_true 60 answers
}

# number NAME: a number of the status.
number() { farwrite status --json | sed -n "s/^ *\"$1\": \([0-9]*\),*$/\1/p" | head -n 1; }

# judge OPTION...: what rsync would change in the mirror. (xxh64: vectors, which others use, are slow when emulated.)
judge() { rsync -aHAXn --checksum-choice=xxh64 --delete --numeric-ids --itemize-changes "$@" $SRC/ $MIRROR/; }

# Everything made before is durable and in the mirror, and the mirror is the source.
converges() {
    farwrite flush --timeout "${FLUSH:-120s}" || {
        farwrite status
        tail -n 20 /tmp/source.log
        die "$1: flush"
    }
    # Gigabytes of zeros take an emulated processor minutes to hash: of a large file, only what is in it is compared.
    judge -c --exclude=/large >/tmp/differences
    judge --include=/large --exclude='*' >>/tmp/differences
    [ ! -e $SRC/large ] || storm / same $SRC/large $MIRROR/large || echo "large: content differs" >>/tmp/differences
    [ ! -s /tmp/differences ] || {
        cat /tmp/differences
        tail -n 20 /tmp/source.log
        die "$1: mirror and source differ"
    }
}

storms() {
    local round
    for round in 1 2 3 4; do
        storm $SRC $round ${OPERATIONS:-500}
        converges "after storm $round"
    done
    # Two at once, and flushes in between: stores through mappings race with the reader.
    storm $SRC 11 ${OPERATIONS:-500} &
    local one=$!
    storm $SRC 12 ${OPERATIONS:-500} &
    local two=$!
    farwrite flush --timeout 120s
    farwrite flush --timeout 120s
    wait $one $two
    converges "after two storms at once"
}

# What is read and sent follows what was changed.
costs() {
    truncate -s 4G $SRC/large
    converges "a large hole"
    cost_of_a_poke "of 4 GiB, sparse" $((2 << 30))
    rm $SRC/large
    storm $SRC fill $((${FULL_MIB:-64} << 20))
    converges "a large file"
    cost_of_a_poke "of ${FULL_MIB:-64} MiB, full" $((${FULL_MIB:-64} << 19))
    rm $SRC/large
    converges "without it"

    storm $SRC append 1 100
    converges "a log"
    local before=$(number bytes_sent)
    storm $SRC append 100000 100
    converges "100,000 appends"
    local sent=$(($(number bytes_sent) - before))
    note "100,000 appends of 100 bytes: $sent bytes sent"
    [ $sent -le 20000000 ] || die "$sent bytes sent for 10,000,000 appended"
}

cost_of_a_poke() {
    local read=$(number bytes_read) sent=$(number bytes_sent)
    storm $SRC poke $2
    converges "4 KiB $1"
    read=$(($(number bytes_read) - read)) sent=$(($(number bytes_sent) - sent))
    note "4 KiB $1: $read bytes read, $sent sent"
    [ $read -gt 0 ] && [ $read -le 65536 ] || die "4 KiB $1: $read bytes read"
    [ $sent -ge 4096 ] && [ $sent -le 16384 ] || die "4 KiB $1: $sent bytes sent"
}

# Killed in a storm, away for a while, back: nothing is lost, and no tree is walked.
killed_and_back() {
    local i
    mkdir $SRC/still
    for i in $(seq 2000); do echo $i >$SRC/still/$i; done
    converges "before the kill"
    storm $SRC 21 3000 &
    local storming=$!
    sleep 0.5
    kill -9 $DAEMON
    wait $DAEMON 2>/dev/null || true
    wait $storming
    storm $SRC 22 500
    # The daemon's command line names the sensor; the vault goes on.
    start_source $1
    converges "after the kill"
    local looked=$(number entries)
    grep -q "comparing everything" /tmp/source.log && die "it compared everything"
    note "after kill -9 and a restart: $looked names looked at, of $(find $SRC | wc -l)"
    [ $looked -lt 2000 ] || die "$looked names looked at: the tree was walked"
    # A stop in good order is no different.
    kill $DAEMON
    wait $DAEMON 2>/dev/null || true
    storm $SRC 23 300
    start_source $1
    converges "after a stop"
    looked=$(number entries)
    note "after a stop and a restart: $looked names looked at"
    [ $looked -lt 2000 ] || die "$looked names looked at: the tree was walked"
}
