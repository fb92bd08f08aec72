# What vm/run, vm/kernel and the programs in vm/payload share. To be sourced by bash.
#
# Never writes outside the cache directory: ${CARGO_TARGET_DIR:-target}/vm.

VM_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO=$(dirname "$VM_DIR")
TARGET_DIR=${CARGO_TARGET_DIR:-$REPO/target}
CACHE=$TARGET_DIR/vm
KERNELS=(6.1 6.12)
# mkfs and modprobe are in the system's own directories, which a user's PATH may lack.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

fail() {
    echo "vm: $*" >&2
    exit 1
}

# need PROGRAM PACKAGE
need() {
    command -v "$1" >/dev/null || fail "$1 is missing: apt-get install $2 (or scripts/setup test)"
}

# ship FILE DIRECTORY: copies a program without its debugging information into the guest's DIRECTORY (below $ROOT, which the
# guest sees as /), and the shared libraries that it needs to where its loader looks for them.
ship() {
    local file=$1 directory=$ROOT/$2 library
    mkdir -p "$directory"
    strip --strip-debug -o "$directory/${file##*/}" "$file" 2>/dev/null || cp "$file" "$directory/"
    chmod 755 "$directory/${file##*/}"
    for library in $(ldd "$file" 2>/dev/null | grep -o '/[^ ]*'); do
        [ -e "$ROOT$library" ] || install -D -m 755 "$(readlink -f "$library")" "$ROOT$library"
    done
}

# Says in FARWRITE_PROGRAM which program is tried: the one that it names already (what is measured is built for that), else one that is built.
farwrite_program() {
    [ -z "${FARWRITE_PROGRAM:-}" ] || return 0
    (cd "$REPO" && cargo build --quiet --locked -p farwrite)
    FARWRITE_PROGRAM=$TARGET_DIR/debug/farwrite
}

# test_program CRATE NAME: builds a crate's test program and prints where it is.
test_program() {
    (cd "$REPO" && cargo test --quiet --locked -p "$1" --test "$2" --no-run --message-format=json) |
        grep -o '"executable":"[^"]*"' | cut -d'"' -f4 | grep "/$2-" | tail -n 1
}
