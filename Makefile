# Farwrite: `make run` to see it work, `make test` to check it, `make help` for the rest.
# Each target first lets scripts/setup install what lacks (named before anything is done).

DIR      ?= $(CURDIR)
PREFIX   ?= /usr/local
DESTDIR  ?=
ARGS     ?=

CARGO_TARGET_DIR ?= target
BINARY   := $(CARGO_TARGET_DIR)/release/farwrite
UNITS    := $(DESTDIR)$(PREFIX)/lib/systemd/system
# Where rustup puts cargo, for shells that have not been started anew since.
export PATH := $(PATH):$(HOME)/.cargo/bin

.DEFAULT_GOAL := help
.PHONY: help run test check build bench bench-quick install module install-module

help:
	@echo 'make run DIR=/some/directory   protect it on this machine and watch what travels (default: this checkout)'
	@echo 'make test                      run the whole test suite'
	@echo 'make check                     formatting, lints (warnings denied), documents'
	@echo 'make bench ROWS="latency storm" measure beside rsync, lsyncd, syncthing, restic and borg (root; RUNS=5 turns,'
	@echo '                               FILESYSTEM=xfs, SLOW=1 where peers take minutes, too; default: all, and single functions: hours;'
	@echo '                               PROFILE=1: where the time goes)'
	@echo 'make bench-quick               count what changes cost, and fail if that is more than before (root)'
	@echo 'make build                     build target/release/farwrite'
	@echo 'make module KDIR=/lib/modules/RELEASE/build   build the kernel module (default: for the running kernel)'
	@echo 'make install-module            hand the kernel module to dkms, which builds and installs it (root)'
	@echo 'make install PREFIX=/usr/local install the program and the systemd units (DESTDIR= for packagers)'

# What is being built here is no part of what is worth protecting.
run: build
	'$(BINARY)' try '$(DIR)' $(if $(filter $(CURDIR),$(DIR)),--exclude /target) $(ARGS)

test:
	@scripts/setup test
	scripts/test $(ARGS)

ROWS    ?=
RUNS    ?= 3
PROGRAM ?= $(BINARY)
# Syncthing, restic and borg also where they take minutes.
SLOW    ?=
FILESYSTEM ?= ext4
# Where the time of each row goes, instead of its figures.
PROFILE ?=

bench: build
	@scripts/setup bench
	cargo build --release --locked -p farwrite --example sources
	$(if $(ROWS)$(PROFILE),,cargo bench --locked -p farwrite --bench hot)
	bench/run --runs $(RUNS) $(if $(SLOW),--slow) $(if $(PROFILE),--profile) --filesystem $(FILESYSTEM) --place '$(abspath $(CARGO_TARGET_DIR))/bench' --program '$(BINARY)' $(ROWS)

# A program that was named is taken as it is.
bench-quick: $(if $(filter file,$(origin PROGRAM)),build)
	@scripts/setup test
	bench/quick --program '$(PROGRAM)' --place '$(abspath $(CARGO_TARGET_DIR))/bench-quick'

check:
	@scripts/setup build
	scripts/claims
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

build:
	@scripts/setup build
	cargo build --release --locked -p farwrite

# Does not build if there is something to install, so that `make build && sudo make install` leaves no root-owned files.
install:
	@test -x '$(BINARY)' || $(MAKE) build
	install -D -m 755 '$(BINARY)' '$(DESTDIR)$(PREFIX)/bin/farwrite'
	install -d '$(UNITS)'
	for unit in packaging/*.service; do \
	    sed 's|@BINDIR@|$(PREFIX)/bin|g' "$$unit" > '$(UNITS)/'"$${unit##*/}" || exit 1; \
	done

RELEASE ?= $(shell uname -r)
KDIR    ?= /lib/modules/$(RELEASE)/build
# dkms wants a version; the module's is that of the layouts. It builds none twice: what is there of the same is taken out first.
MODULE  := farwrite-$(shell sed -n 's/^\#define FARWRITE_ABI[^0-9]*//p' uapi/farwrite.h).0
SOURCES := $(DESTDIR)/usr/src/$(MODULE)
DKMS    := farwrite/$(MODULE:farwrite-%=%)

module:
	scripts/module '$(KDIR)' '$(CARGO_TARGET_DIR)/module/$(RELEASE)'
	@echo 'built $(CARGO_TARGET_DIR)/module/$(RELEASE)/farwrite.ko'

install-module:
	install -d '$(SOURCES)/kernel/probes' '$(SOURCES)/uapi'
	install -m 644 kernel/*.c kernel/*.h kernel/*.S kernel/Kbuild kernel/Makefile '$(SOURCES)/kernel'
	install -m 644 kernel/probes/*.c '$(SOURCES)/kernel/probes'
	install -m 644 uapi/farwrite.h '$(SOURCES)/uapi'
	sed 's|@VERSION@|$(MODULE:farwrite-%=%)|' kernel/dkms.conf > '$(SOURCES)/dkms.conf'
	test -n '$(DESTDIR)' || { dkms remove '$(DKMS)' --all >/dev/null 2>&1; dkms add '$(DKMS)' && dkms install '$(DKMS)'; }
