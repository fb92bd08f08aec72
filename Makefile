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
.PHONY: help run test check build install

help:
	@echo 'make run DIR=/some/directory   protect it on this machine and watch what travels (default: this checkout)'
	@echo 'make test                      run the whole test suite'
	@echo 'make check                     formatting, lints (warnings denied), documents'
	@echo 'make build                     build target/release/farwrite'
	@echo 'make install PREFIX=/usr/local install the program and the systemd units (DESTDIR= for packagers)'

# What is being built here is no part of what is worth protecting.
run: build
	'$(BINARY)' try '$(DIR)' $(if $(filter $(CURDIR),$(DIR)),--exclude /target) $(ARGS)

test:
	@scripts/setup test
	scripts/test $(ARGS)

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
