# The module and eBPF programs that sit on the same functions of the kernel (fexit), whichever comes first: each is told of everything.
# deadline: 400
# memory: 2048
. /payload/source.sh
insmod /payload/farwrite.ko
set_up
# Another source of the same tree, with the module.
second() (
    export FARWRITE_STATE=/mnt/xfs/second
    MIRROR=$VAULT/sources/second/mirror$SRC
    "$@"
)
second farwrite source add $SRC --to "$(farwrite vault invite $VAULT --name second --address $ADDRESS)" >/dev/null
start_second() {
    second start_source kmod
    until_true 60 second answers
}
storms_for_both() {
    local round
    for round in $2; do
        storm $SRC $round 300
        converges "$1, storm $round: eBPF"
        second converges "$1, storm $round: module"
    done
    same "losses of the module" 0 "$(second number lost)"
}

start_source ebpf
start_second
storms_for_both "eBPF first" "1 2 3"
# The originals are back for one while the other goes on.
second farwrite off
storm $SRC 4 300
converges "with the module off: eBPF"
second farwrite on
storms_for_both "the module once more" "5 6"

# 6.1 cannot attach a program to a function that the module has: docs/capture.md.
if [ $KERNEL != 6.1 ]; then
    farwrite off
    storm $SRC 7 300
    second converges "without eBPF: module"
    farwrite on
    storms_for_both "the module first" "8 9 10"
fi
farwrite off
second farwrite off
