# The source is started again and again over a million files that nobody has changed: with the module, which has watched meanwhile, nothing is compared.
# /mnt/ext4 is what bench/million-in-image has made.
# deadline: 3000
# memory: 4096
. /payload/source.sh
export FARWRITE_STATE=/mnt/ext4/state
VAULT=/mnt/ext4/vault

insmod /payload/farwrite.ko
farwrite vault serve --listen $ADDRESS $VAULT >/tmp/vault.log 2>&1 &
until_true 60 vault_answers
begin=$(now)
start_source kmod
farwrite flush --timeout 2400s
figure "the first time: all is compared" $begin $(now)
begin=$(now)
farwrite --version >/dev/null
note "a program that only says its version takes $(awk "BEGIN { print int(($(now) - $begin) * 1000) }") ms"
begin=$(now)
find $SRC -type f -newer /payload/farwrite | wc -l
figure "find -newer" $begin $(now)
for i in 1 2 3 4 5; do
    kill $DAEMON
    wait $DAEMON
    begin=$(now)
    start_source kmod
    farwrite flush --timeout 120s
    figure "farwrite, kmod" $begin $(now)
    [ "$(number entries)" = 0 ] || die "$(number entries) names were looked at"
    note "0 names looked at"
done
note "of the last time, the source has had $(worked $DAEMON) ms of processor time"
echo changed >$SRC/0/0
farwrite flush --timeout 120s
note "after a change: $(number entries) names looked at"
farwrite restore --to /tmp/restored $SRC/0/0
[ "$(cat /tmp/restored/0)" = changed ] || die "the change is not in the vault"
