# Every way into a file, on every filesystem: the record that it makes, and its extent.
# deadline: 180
. /guest.sh

insmod /payload/farwrite.ko

# expect WHAT PATTERN: the ring holds exactly one record, and it is this.
expect() {
    fwctl read >/tmp/records || die "$1: the ring cannot be read"
    [ "$(wc -l </tmp/records)" = 1 ] && grep -qE "$2" /tmp/records || {
        cat /tmp/records
        die "$FS: $1: expected one record: $2"
    }
}
# among WHAT PATTERN: one of the records is this.
among() {
    fwctl read >/tmp/records || die "$1: the ring cannot be read"
    grep -qE "$2" /tmp/records || { cat /tmp/records; die "$FS: $1: expected among others: $2"; }
}
none() {
    fwctl read >/tmp/records
    [ ! -s /tmp/records ] || { cat /tmp/records; die "$FS: $1: expected nothing"; }
}

contents() {
    act pwrite $R/file 1000 5000;        expect pwrite '^WRITE root=[0-9]+ path=file at=1000\+5000 result=5000 call=18 '
    act write $R/file 10 20;             expect write '^WRITE .*path=file at=10\+20 result=20 call=1 '
    act writev $R/file 100 50;           expect writev '^WRITE .*path=file at=100\+50 result=50 call=20 '
    act pwritev2 $R/file 4096 10;        expect pwritev2 '^WRITE .*path=file at=4096\+10 result=10 call=328 '
    act pwritev2-append $R/file 0 10;    expect "pwritev2, append" '^WRITE .*path=file at=6000\+10 result=10 call=328 '
    act append $R/file 0 100;            expect append '^WRITE .*path=file at=6010\+100 result=100 call=1 '
    act aio $R/file 50 60;               expect aio '^WRITE .*path=file at=50\+60 result=60 call=-1 '
    act uring $R/file 70 80;             expect io_uring '^WRITE .*path=file at=70\+80 result=80 call=-1 '
    act uring-worker $R/file 70 80;      expect "io_uring, worker" '^WRITE .*path=file at=70\+80 result=80 call=-1 '
    act splice $R/file 300 40;           among splice '^WRITE .*path=file at=300\+40 result=40 call=-1 '
    act sendfile $R/file 0 5000;         expect sendfile '^WRITE .*path=file at=0\+5000 result=5000 call=40 '
    act copy $R/file 200 3000 $R/other;  expect copy_file_range '^WRITE .*path=file at=200\+3000 result=3000 call=326 '
    act truncate $R/file 5000;           expect truncate '^TRUNCATE .*path=file at=5000\+6110 result=0 call=76 '
    act ftruncate $R/file 7000;          expect ftruncate '^TRUNCATE .*path=file at=7000\+5000 result=0 call=77 '
    act allocate $R/file 0 100000;       expect fallocate '^WRITE .*path=file at=0\+100000 result=0 call=285 '
    act allocate-keep $R/file 0 200000;  expect "fallocate, size kept" '^WRITE .*path=file at=0\+200000 result=0 call=285 '
    act punch $R/file 4096 8192;         expect "punch hole" '^WRITE .*path=file at=4096\+8192 result=0 call=285 flags=HOLE,'
    if [ $FS != tmpfs ]; then
        act zero $R/file 4096 8192;      expect "zero range" '^WRITE .*path=file at=4096\+8192 .* flags=HOLE,'
        act direct $R/file 8192 4096;    expect O_DIRECT '^WRITE .*path=file at=8192\+4096 result=4096 call=18 '
        act aio-direct $R/file 8192 4096;   among "aio, O_DIRECT" '^WRITE .*path=file at=8192\+4096 result=4096 call=-1 '
        act uring-direct $R/file 8192 4096; among "io_uring, O_DIRECT" '^WRITE .*path=file at=8192\+4096 result=4096 call=-1 '
        # The whole folio, which holds at least the page.
        act mmap $R/file 8192 4096;      covers mmap 8192 12288
        act mmap-again $R/file 0 1;      twice "mmap, writeback, mmap"
        act mmap-read-first $R/file 0 1; covers "mmap, read first" 0 4096
    else
        act mmap-read-first $R/file 0 1
        among "mmap on tmpfs" '^MMAP .*path=file at=0\+-1 .* flags=TO_EOF,SHARED,'
        act mmap $R/file 0 1;            among "end of a mapping on tmpfs" '^WRITE .*path=file at=0\+-1 .* flags=TO_EOF,'
    fi
    if [ $FS = ext4 ] || [ $FS = xfs ]; then
        act collapse $R/file 4096 4096;  expect "collapse range" '^WRITE .*path=file at=4096\+-1 .* flags=TO_EOF,'
        act insert $R/file 4096 4096;    expect "insert range" '^WRITE .*path=file at=4096\+-1 .* flags=TO_EOF,'
    fi
    if [ $FS = xfs ] || [ $FS = btrfs ]; then
        act reflink $R/file 4096 8192 $R/other; among reflink '^WRITE .*path=file at=4096\+8192 result=8192 '
    fi
    act open-trunc $R/file;              expect O_TRUNC '^TRUNCATE .*path=file at=0\+[0-9]+ result=0 call=(2|257) '
    act int80-write $R/file 5 6;         expect "int 0x80, write" '^WRITE .*path=file at=5\+6 result=6 call=4 flags=COMPAT,'
    act int80-pwrite $R/file 50 60;      expect "int 0x80, pwrite" '^WRITE .*path=file at=50\+60 result=60 call=181 flags=COMPAT,'
    act int80-ftruncate $R/file 60;      expect "int 0x80, ftruncate" '^TRUNCATE .*path=file at=60\+110 result=0 call=93 flags=COMPAT,'
}
# covers WHAT START END: one MMAP record that has all of it.
covers() {
    fwctl read | grep '^MMAP .*path=file ' >/tmp/records || die "$FS: $1: no record"
    sed -E 's/.* at=([0-9]+)\+([0-9]+) .*/\1 \2/' /tmp/records | {
        read -r at length
        [ "$at" -le "$2" ] && [ $((at + length)) -ge "$3" ] || die "$FS: $1: $at+$length does not cover $2..$3"
    }
}
twice() {
    fwctl read >/tmp/records
    same "$FS: $1: records" 2 "$(grep -c '^MMAP .*path=file ' /tmp/records)"
}

names() {
    act creat $R/new;                    expect creat '^CREATE .*path=new at=0\+0 result=0 call=85 '
    act openat2 $R/new2;                 expect openat2 '^CREATE .*path=new2 .*call=437 '
    act int80-open $R/new3;              expect "int 0x80, open" '^CREATE .*path=new3 .*call=5 flags=COMPAT,'
    act mkdir $R/dir;                    expect mkdir '^CREATE .*path=dir .*call=83 flags=DIR,'
    act int80-mkdir $R/dir/below;        expect "int 0x80, mkdir" '^CREATE .*path=dir/below .*call=39 flags=DIR,COMPAT,'
    act mkfifo $R/fifo;                  expect mkfifo '^CREATE .*path=fifo .*call=(133|259) '
    act symlink $R/dir/symlink target;   expect symlink '^CREATE .*path=dir/symlink .*call=88 '
    act link $R/new $R/dir/link;         expect link '^CREATE .*path=dir/link .*call=86 '
    act rename $R/new $R/dir/moved;      expect rename '^RENAME .*path=new to=dir/moved .*call=82 '
    act rename $R/dir/moved $R/new2;     expect "rename over" '^RENAME .*path=dir/moved to=new2 .*flags=OVER,'
    act exchange $R/new2 $R/dir/symlink; expect exchange '^EXCHANGE .*path=new2 to=dir/symlink .*call=316 '
    act exchange $R/new2 $R/dir/symlink; expect exchange '^EXCHANGE .*path=new2 to=dir/symlink .*call=316 '
    act rename $R/new2 $O/out;           expect "rename out" '^DELETE .*path=new2 .*call=82 flags=MOVED,'
    act rename $O/out $R/new2;           expect "rename in" '^CREATE .*path=new2 .*call=82 flags=MOVED,'
    mkdir $O/dir
    act rename $O/dir $R/dir2;           expect "rename a directory in" '^CREATE .*path=dir2 .*flags=DIR,MOVED,'
    act rmdir $R/dir2;                   expect rmdir '^DELETE .*path=dir2 .*call=84 flags=DIR,'
    act unlink $R/dir/symlink;           expect unlink '^DELETE .*path=dir/symlink .*call=87 '
    act rename $R/dir $R/deep;           expect "rename a directory" '^RENAME .*path=dir to=deep .*flags=DIR,'
    act pwrite $R/deep/link 0 3;         expect "write below it" '^WRITE .*path=deep/link at=0\+3 '
    ln $R/deep/link $O/link;             fwctl read >/dev/null
    act pwrite $O/link 7 3;              expect "write through a link outside" '^WRITE root=-1 path= at=7\+3 .* flags=IDENTITY,'
    rm $O/link
    act tmpfile $R $R/named
    among "linkat of O_TMPFILE" '^CREATE .*path=named .* flags=TMPFILE,'
    grep -qE '^WRITE root=-1 path= at=100\+6 .* flags=IDENTITY,' /tmp/records || die "$FS: write after linkat: $(cat /tmp/records)"
    act unlinked $R/short;               among "unlinked" '^DELETE .*path=short '
    grep -q '^WRITE' /tmp/records && die "$FS: a file without a name made a record"
    act pwrite $O/elsewhere 0 10;        none "write outside"
    act mkdir $O/elsewhere2;             none "mkdir outside"
    act open-trunc $O/elsewhere;         none "O_TRUNC outside"
    act mmap-read-first $O/elsewhere2/.. 0 0 2>/dev/null || true
}

attributes() {
    act chmod $R/file;                   expect chmod '^ATTRIB .*path=file .*call=90 '
    act fchmod $R/file;                  expect fchmod '^ATTRIB .*path=file .*call=91 '
    act chown $R/file;                   expect chown '^ATTRIB .*path=file .*call=92 '
    act utimes $R/file;                  expect utimensat '^ATTRIB .*path=file .*call=280 '
    act chmod $R;                        expect "chmod of the root" '^ATTRIB .*path= at=.*flags=DIR,'
    if [ $FS != tmpfs ]; then
        act setxattr $R/file;            expect setxattr '^ATTRIB .*path=file .*call=188 flags=XATTR,'
        act removexattr $R/file;         expect removexattr '^ATTRIB .*path=file .*call=197 flags=XATTR,'
        act chattr $R/file;              expect chattr '^ATTRIB .*path=file '
    fi
    act acl $R/file;                     among ACL '^ATTRIB .*path=file .*call=188 flags=ACL,'
}

for FS in ext4 xfs btrfs tmpfs; do
    R=/mnt/$FS/root O=/mnt/$FS/outside
    mkdir -p $R $O
    dd if=/dev/urandom of=$R/other bs=4096 count=16 2>/dev/null
    : >$R/file
    sync
    fwctl on $R >/tmp/on || die "cannot watch $FS"
    contents
    attributes
    names
    note "$FS: every operation made its record"
done

# The root goes with its filesystem, and does not hold it.
umount /mnt/ext4 || die "a root keeps its filesystem mounted"
fwctl read >/tmp/records
grep -q '^GONE root=0' /tmp/records || die "no record of the unmount"
same "roots left" 3 "$(fwctl info | sed 's/.* roots=\([0-9]*\).*/\1/')"
fwctl off
rmmod farwrite
