# 4 KiB changed in a file of 4 GiB (sparse): each kernel sensor, and rsync told by nobody which bytes, in the same machine.
# deadline: 1500
# memory: 3072
. /payload/source.sh

insmod /payload/farwrite.ko
set_up
truncate -s 4G $SRC/large
mkdir -p /mnt/btrfs/copy
# What is written depends on where: nobody writes where another has.
place=0
for sensor in kmod ebpf; do
    start_source $sensor
    converges "the large hole, $sensor"
    source_worked=$(worked $DAEMON) vault_worked=$(worked $VAULT_DAEMON) nothing=$(now)
    farwrite --version >/dev/null
    nothing=$(awk "BEGIN { print int(($(now) - $nothing) * 1000) }")
    for i in 1 2 3 4 5; do
        sent=$(number bytes_sent) read=$(number bytes_read)
        begin=$(now)
        storm $SRC poke $(((i << 29) + place))
        farwrite flush --timeout 120s
        figure $sensor $begin $(now)
        [ $(($(number bytes_sent) - sent)) -ge 4096 ] || die "$sensor: what was changed was not sent"
        note "$sensor: $(($(number bytes_read) - read)) bytes read, $(($(number bytes_sent) - sent)) sent"
    done
    note "$sensor: five changes are $(($(worked $DAEMON) - source_worked)) ms of processor time of the source and $(($(worked $VAULT_DAEMON) - vault_worked)) ms of the vault, with questions for the numbers above; a program that only says its version takes $nothing ms"
    converges "after the changes, $sensor"
    place=$((place + 4096))
    farwrite off
    kill $DAEMON
    wait $DAEMON 2>/dev/null || true
    rm -f $FARWRITE_STATE/switched-off
done
rsync -aS $SRC/ /mnt/btrfs/copy/
for i in 1 2; do
    storm $SRC poke $(((i << 29) + place))
    begin=$(now)
    rsync -a --no-whole-file --inplace $SRC/ /mnt/btrfs/copy/
    figure rsync $begin $(now)
done
storm / same $SRC/large /mnt/btrfs/copy/large || die "rsync: the copy differs"
