# The module's sensor, as the daemon uses it: messages, restarts, kills, the switch, an overflow.
# deadline: 180
. /guest.sh
insmod /payload/farwrite.ko
mkdir /mnt/ext4/dir
kmod /mnt/ext4/dir
rmmod farwrite
