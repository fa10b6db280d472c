# Set-up makes .venv in this folder; every target uses it. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(shell command -v $(p) >/dev/null 2>&1 && $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
RUST_NEEDED := $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
RUST_SOURCES := Cargo.toml Cargo.lock $(shell find rust -name '*.rs' -o -name Cargo.toml | grep -v '/target/')
MATURIN := env -u CONDA_PREFIX VIRTUAL_ENV=$(CURDIR)/$(VENV) PIP_CONSTRAINT=$(CURDIR)/constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/maturin
RUNS ?= runs

.PHONY: help setup demo test bench lint wheel dashboard chromium sanitize test-aarch64 clean

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

setup: $(VENV)/.core  ## make .venv, build the Rust core, install what the product uses

demo: setup  ## the seven steps on the built-in reference model, offline
	@$(BIN)/tritpress demo --runs $(RUNS)

test: setup chromium  ## Rust tests, Python tests, browser tests
	cargo test --workspace --locked --quiet
	$(BIN)/python -m pytest -q -m "not slow and not cuda" -n 2 --dist loadfile

# The table is of the same run as the file.
BENCH_TABLE := import json, sys; \
  from tritpress.console.shell import console; \
  from tritpress.console.tables import print_bench; \
  print_bench(console(), sys.argv[1], json.load(open(sys.argv[2])))
bench: setup  ## this machine's limits and the kernels beside torch, as JSON under benches/results
	@mkdir -p benches/results
	@for name in matvec matmul pack generate; do \
	  $(BIN)/tritpress bench $$name --json > benches/results/$$name.json && \
	  $(BIN)/python -c '$(BENCH_TABLE)' $$name benches/results/$$name.json || exit $$?; done

lint: setup  ## ruff, mypy, rustfmt, clippy; the Rust benches and fuzz targets compile
	$(BIN)/ruff check python tests benches dashboard
	$(BIN)/mypy
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
	for crate in benches/kernels rust/fuzz; do \
	  cargo fmt --manifest-path $$crate/Cargo.toml --check && \
	  cargo check --manifest-path $$crate/Cargo.toml --all-targets --no-default-features --locked --quiet \
	  --target-dir target/checks || exit $$?; done

sanitize:  ## the Rust tests under AddressSanitizer
	ASAN_OPTIONS=allocator_may_return_null=1 RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address cargo test --quiet --locked -p tritpress-core --lib \
	  --target $$(rustc -vV | sed -n 's/^host: //p') --target-dir target/sanitize

# Needs the Rust target (rustup target add, or Debian's libstd-rust-dev:arm64), gcc-aarch64-linux-gnu and qemu-user.
ARM := aarch64-unknown-linux-gnu
test-aarch64:  ## the Rust tests for ARM under emulation: by NEON, and on a processor without dot products
	@[ -d "$$(rustc --print target-libdir --target $(ARM))" ] && command -v aarch64-linux-gnu-gcc qemu-aarch64 >/dev/null \
	|| { echo "make $@ needs Rust's target $(ARM), gcc-aarch64-linux-gnu and qemu-user." >&2; exit 1; }
	for cpu in max:neon cortex-a53:generic; do \
	  TRITPRESS_ISA=$${cpu#*:} CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
	  CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu $${cpu%:*}" RUSTFLAGS="-Ctarget-feature=+crt-static" \
	  cargo test --quiet --locked -p tritpress-core --lib --target $(ARM) || exit $$?; done

wheel: setup  ## the wheel, in dist/, for every Linux since glibc 2.17 (linked by zig)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt ziglang
	PATH=$(CURDIR)/$(BIN):$$PATH $(MATURIN) build --release --locked --zig --compatibility manylinux2014 --out dist

dashboard: setup  ## the page, on 127.0.0.1
	@$(BIN)/tritpress dashboard --runs $(RUNS)

# Browser tests use Debian's Chromium; without it they are skipped and say so.
chromium:
	@command -v chromium >/dev/null 2>&1 \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 \
	     && { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } >/dev/null 2>&1; } \
	|| echo "No chromium command here and no right to install it: the browser tests are skipped."

$(VENV)/.made:
	@[ -n "$(PYTHON)" ] || { echo "tritpress needs Python 3.11 or newer as python3 (Debian 12: apt-get install python3 python3-venv)." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "$(PYTHON) lacks its venv module (Debian: apt-get install python3-venv)." >&2; exit 1; }
	@command -v cargo >/dev/null 2>&1 && command -v rustc >/dev/null 2>&1 || { echo "tritpress needs a Rust toolchain, $(RUST_NEEDED) or newer, with cargo on the PATH." >&2; exit 1; }
	@have=$$(rustc --version | cut -d' ' -f2); [ "$$(printf '%s\n' $(RUST_NEEDED) $${have%%-*} | sort -V | head -n1)" = "$(RUST_NEEDED)" ] \
	|| { echo "tritpress needs Rust $(RUST_NEEDED) or newer; rustc here is $$have." >&2; exit 1; }
	@command -v cc >/dev/null 2>&1 || { echo "Rust needs a C linker as cc (Debian: apt-get install gcc)." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.dependencies: $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt maturin
	$(MATURIN) develop --release --locked --quiet --extras all,dev
	@touch $@

$(VENV)/.core: $(VENV)/.dependencies $(RUST_SOURCES)
	$(MATURIN) develop --release --locked --quiet --skip-install
	@touch $@

clean:  ## remove what was built (not the runs)
	rm -rf $(VENV) target dist
