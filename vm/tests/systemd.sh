# The systemd units, started by systemd: what they take from the daemons is nothing that these need.
# deadline: 500
# memory: 2048
. /guest.sh
VAULT=/mnt/btrfs/vault
SRC=/mnt/ext4/src
MIRROR=$VAULT/sources/vm/mirror$SRC
VAULT_UNIT=farwrite-vault@mnt-btrfs-vault.service
SOURCE_UNIT=farwrite-source.service
CONFIG=/var/lib/farwrite/config.toml
PATH=/payload:/usr/local/bin:$PATH

# systemd as the first process of a namespace, on a root of its own: services get theirs from it, which the initramfs refuses.
mkdir -p /machine /var/lib /var/log
echo 0123456789abcdef0123456789abcdef >/etc/machine-id
mount -t cgroup2 cgroup2 /sys/fs/cgroup
cat >/enter.sh <<'EOF'
mount --make-rprivate /
mount --rbind / /machine
mount -t proc proc /machine/proc
cd /machine
mount --move . /
exec chroot . /lib/systemd/systemd --unit=multi-user.target --log-target=journal --show-status=0
EOF
unshare -p -f -m sh -e /enter.sh &
first_process() { pidof systemd >/dev/null; }
until_true 30 first_process
SYSTEMD=$(pidof systemd)
in_machine() { nsenter -t "$SYSTEMD" -m -p -r -w "$@"; }
property() { in_machine systemctl show --value -p "$1" "$2"; }
state() { [ "$(property ActiveState "$1")" = "$2" ]; }
runs() { in_machine systemctl is-system-running 2>/dev/null | grep -qE 'running|degraded'; }
until_true 60 runs
in_machine systemctl start systemd-journald

# drop_in UNIT LINE...: what `systemctl edit` would add.
drop_in() {
    local file=/run/systemd/system/$1.d/test.conf
    shift
    mkdir -p "${file%/*}"
    { echo "[Service]"; printf '%s\n' "$@"; } >"$file"
    in_machine systemctl daemon-reload
}
take_out() {
    rm "/run/systemd/system/$1.d/test.conf"
    in_machine systemctl daemon-reload
}
said() { in_machine journalctl --no-pager -o cat -u "$1"; }
start() {
    in_machine systemctl "${2:-start}" "$1" || {
        said "$1" | tail -n 30
        die "${2:-start} $1"
    }
    state "$1" active || die "$1 is $(property ActiveState "$1")"
}

# differ COPY: what rsync would change in it stands in /tmp/differences; false if that is nothing.
differ() {
    rsync -aHAXnc --checksum-choice=xxh64 --delete --numeric-ids --itemize-changes $SRC/ "$1/" >/tmp/differences 2>&1 || echo "rsync: $?" >>/tmp/differences
    [ -s /tmp/differences ]
}
equal() { ! differ "$1"; }
# is_copy WHAT COPY
is_copy() {
    equal "$2" && return
    cat /tmp/differences
    said $SOURCE_UNIT | tail -n 20
    said $VAULT_UNIT | tail -n 20
    die "$1: another tree than the source"
}
converges() {
    in_machine farwrite flush --timeout 120s || {
        said $SOURCE_UNIT | tail -n 20
        die "$1: flush"
    }
    is_copy "$1" $MIRROR
}

# As README.md tells a user to.
mkdir -p $SRC
in_machine farwrite vault init $VAULT
start $VAULT_UNIT
in_machine farwrite doctor >/dev/null
in_machine farwrite source add $SRC --to "$(in_machine farwrite vault invite $VAULT --name vm --address 127.0.0.1:9873)"
# Somebody hardens the unit by one line too many.
drop_in $SOURCE_UNIT RestrictSUIDSGID=yes Restart=no
in_machine systemctl start $SOURCE_UNIT 2>/dev/null && die "it starts without openat2"
said $SOURCE_UNIT | grep -q "may not use the system call openat2: .*RestrictSUIDSGID" || {
    said $SOURCE_UNIT
    die "it does not say what is wrong"
}
take_out $SOURCE_UNIT

start $SOURCE_UNIT
converges "at first"

# What only root may read or make.
mkdir $SRC/dir
echo secret >$SRC/dir/secret
chown 1234:4321 $SRC/dir/secret
chmod 4750 $SRC/dir/secret
chmod 0 $SRC/dir
cp /bin/busybox $SRC/tool
chmod 6755 $SRC/tool
setfattr -n trusted.x -v of-root $SRC/tool
setfattr -n security.capability -v 0sAQAAAgAgAAAAAAAAAAAAAAAAAAA= $SRC/tool
# Not one of those that every service may use.
mknod $SRC/device c 99 7
mkfifo $SRC/fifo
ln -s nowhere $SRC/link
storm $SRC 1 300
converges "what only root may"

# A file that stays open and mapped is looked up in /proc, where the sensor does not see the store.
sensor() {
    sed -i '/^sensor/d' $CONFIG
    sed -i "1i sensor = \"$1\"" $CONFIG
    start $SOURCE_UNIT restart
    in_machine farwrite status --json >/tmp/status
    grep -q "\"kind\": \"$1\"" /tmp/status || {
        cat /tmp/status
        die "the sensor is not $1"
    }
    converges "with the sensor $1"
}
# What the sensor before has left recording is for nobody any more, and must not hide anything from the next.
pinned() { find /sys/fs/bpf -type f | wc -l; }
uses() { cat /sys/module/farwrite/refcnt; }
[ "$(pinned)" -gt 10 ] || die "only $(pinned) programs and maps are pinned"
insmod /payload/farwrite.ko
sensor kmod
same "programs and maps pinned beside the module" 0 "$(pinned)"
storm $SRC 11 300
converges "the module behind eBPF"
sensor ebpf
same "uses of the module beside eBPF" 0 "$(uses)"
storm $SRC 12 300
converges "eBPF behind the module"
sensor fanotify
same "programs and maps pinned beside fanotify" 0 "$(pinned)"
head -c 100000 /dev/zero >$SRC/mapped
converges "a file of zeros"
>/tmp/hold
in_machine storm $SRC hold mapped 5000 >/tmp/hold &
stored() { grep -q stored /tmp/hold; }
until_true 20 stored
seen() { in_machine farwrite flush >/dev/null && cmp -s $SRC/mapped $MIRROR/mapped; }
until_true 60 seen
kill "$(pidof storm)"
storm $SRC 2 300
converges "a storm"
sensor inotify
storm $SRC 3 300
converges "a storm"
sensor kmod
replaced() { wc -l </sys/kernel/tracing/enabled_functions; }
[ "$(replaced)" -gt 60 ] || die "only $(replaced) functions are patched"
storm $SRC 4 300
converges "a storm"
in_machine farwrite off
same "functions patched when off" 0 "$(replaced)"
storm $SRC 5 300
in_machine farwrite on
converges "after off and on"
sensor ebpf

# Killed: systemd starts both again, and what was done meanwhile is there.
killed() {
    local before=$(property MainPID "$1")
    in_machine kill -9 "$before"
    storm $SRC $2 300
    again() { [ "$(property MainPID "$UNIT")" != "$OLD" ] && state "$UNIT" active; }
    UNIT=$1 OLD=$before until_true 60 again
}
killed $SOURCE_UNIT 6
converges "after the source was killed"
killed $VAULT_UNIT 7
converges "after the vault was killed"
in_machine systemctl reload $SOURCE_UNIT || die "reload"
state $SOURCE_UNIT active || die "not active after a reload"

# The page, a verification, a restore.
in_machine farwrite vault ui $VAULT | grep -q http:// || die "no page of the vault"
in_machine farwrite vault verify $VAULT 2>/dev/null || die "verify"
in_machine farwrite vault retention $VAULT --keep-all 1h --hourly 1d || die "retention"
in_machine farwrite vault prune $VAULT || die "prune"
in_machine farwrite restore $SRC --to /mnt/xfs/back >/dev/null 2>&1
is_copy "a restore" /mnt/xfs/back/src

# A restore by the page: the daemon may not write there, until its unit is told so (README.md).
mkdir /mnt/xfs/page
restore_by_page() {
    local url=$(in_machine farwrite ui | grep -o 'http://[^ ]*' | head -n 1) csrf
    SITE=${url%%/enter*}
    COOKIE=$(wget -S -O /dev/null "$url" 2>&1 | sed -n 's/^ *[Ss]et-[Cc]ookie: \([^;]*\);.*/\1/p' | head -n 1)
    csrf=$(wget -q -O - --header "Cookie: $COOKIE" "$SITE/" | sed -n 's/.*name="csrf" value="\([^"]*\)".*/\1/p' | head -n 1)
    # It posts again where it is sent on to: what came of it is looked at below.
    wget -q -O /dev/null --header "Cookie: $COOKIE" --header "Origin: $SITE" "$SITE/history/restore" --post-data \
        "csrf=$csrf&vault=&path=$SRC&path_bytes=&at=&place=elsewhere&to=/mnt/xfs/page&overwrite=false&dry_run=false" 2>/dev/null || true
}
# The page says: the first job of this daemon has ended so.
page_says() { wget -q -O - --header "Cookie: $COOKIE" "$SITE/history/restore/1" | grep -q "$1"; }
restore_by_page
until_true 30 page_says "Read-only file system"
drop_in $SOURCE_UNIT ReadWritePaths=/mnt/xfs "CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE CAP_FSETID CAP_MKNOD CAP_SETFCAP"
start $SOURCE_UNIT restart
restore_by_page
until_true 60 equal /mnt/xfs/page/src
take_out $SOURCE_UNIT
start $SOURCE_UNIT restart
converges "as it was"

# A vault that is not root's, at another address, as its unit says: the mirror cannot be all that the source is, a restore is.
OWN=/mnt/xfs/own
OWN_UNIT=farwrite-vault@mnt-xfs-own.service
echo farwrite:x:990:990::/:/bin/sh >>/etc/passwd
echo farwrite:x:990: >>/etc/group
in_machine farwrite vault init $OWN >/dev/null
chown -R farwrite: $OWN
drop_in $OWN_UNIT User=farwrite CapabilityBoundingSet= ExecStart= "ExecStart=/usr/local/bin/farwrite vault serve %f --listen 127.0.0.1:9874"
start $OWN_UNIT
in_machine farwrite source add $SRC --to "$(in_machine farwrite vault invite $OWN --name vm --address 127.0.0.1:9874)" >/dev/null
storm $SRC 8 300
converges "with a second vault"
in_machine farwrite restore $SRC --to /mnt/xfs/own-back --vault-dir $OWN --source vm >/dev/null 2>&1
is_copy "a restore from a user's vault" /mnt/xfs/own-back/src

# Through ssh, which the daemon starts: root's key, one command.
SSH=/mnt/xfs/ssh
mkdir -p /run/sshd /root/.ssh
echo sshd:x:991:991::/run/sshd:/bin/false >>/etc/passwd
ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519
ssh-keygen -q -t ed25519 -N '' -f /root/host_key
echo "restrict,command=\"/usr/local/bin/farwrite vault stdio $SSH --name vm\" $(cat /root/.ssh/id_ed25519.pub)" >/root/.ssh/authorized_keys
echo "127.0.0.1 $(cut -d' ' -f1,2 /root/host_key.pub)" >/root/.ssh/known_hosts
chmod -R go= /root/.ssh
farwrite vault init $SSH >/dev/null
/usr/local/bin/sshd -e -f /dev/null -o ListenAddress=127.0.0.1 -o HostKey=/root/host_key -o StrictModes=no 2>/tmp/sshd
in_machine farwrite source add $SRC --to ssh://root@127.0.0.1$SSH --name vm >/dev/null
storm $SRC 9 300
converges "with a vault behind ssh"
is_copy "the mirror behind ssh" $SSH/sources/vm/mirror$SRC

# A stop in good order.
in_machine farwrite off
for unit in $SOURCE_UNIT $VAULT_UNIT $OWN_UNIT; do
    in_machine systemctl stop $unit
    same "result of $unit" success "$(property Result $unit)"
done
for unit in $SOURCE_UNIT $VAULT_UNIT $OWN_UNIT; do said $unit; done >/tmp/said
# Of anything that is refused somebody would have to be told.
if grep -E 'not permitted|ermission denied|not implemented|cannot be backed up' /tmp/said; then die "the daemons complain"; fi
