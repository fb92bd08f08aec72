# What an untar pays for a sensor: the processor time of tar itself (its system calls included), whatever is done with the events.
# /payload/some.tar is a part of the kernel's tree. With --icount the same in every run.
# deadline: 1200
# memory: 3072
. /guest.sh
DIR=/mnt/ext4/dir
mkdir $DIR

once() {
    rm -rf $DIR/*
    sync
    time -p tar -xf /payload/some.tar -C $DIR 2>/tmp/time
    figure "$1" 0 $(awk '/^(user|sys)/ { s += $2 } END { print s }' /tmp/time)
}

for round in 1 2; do
    once "no sensor"
    mark $DIR >/tmp/mark &
    MARK=$!
    until_true 10 grep -q ready /tmp/mark
    once "fanotify, events thrown away"
    kill $MARK
    wait $MARK 2>/dev/null || true
    insmod /payload/farwrite.ko
    fwctl on $DIR >/dev/null
    while :; do fwctl forget; sleep 0.05; done &
    DRAIN=$!
    once "kernel module, records thrown away"
    kill $DRAIN
    wait $DRAIN 2>/dev/null || true
    note "kernel module: $(fwctl info | sed -n 's/.* dropped=\([0-9]*\).*/\1/p') records dropped"
    fwctl off
    rmmod farwrite
done
