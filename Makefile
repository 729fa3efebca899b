# The only door: people and CI call these targets, and each does the set-up it needs.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

MODULE := target/wasm32-wasip1/release/envoy_idempotency.wasm

# Warnings are errors, here and in CI alike.
export RUSTFLAGS ?= -D warnings
export RUSTDOCFLAGS ?= -D warnings

.PHONY: help
help: ## print this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-8s %s\n", $$1, $$2 }'

.PHONY: setup
setup: ## get what the rest needs: the wasm target, an Envoy under .tools/ (ENVOY_BIN overrides)
	@scripts/setup

.PHONY: build
build: ## compile the core and its tests natively
	cargo build --locked --all-targets

.PHONY: wasm
wasm: setup ## compile the module: target/wasm32-wasip1/release/envoy_idempotency.wasm
	@scripts/build-wasm

.PHONY: test
test: wasm lint ## everything: lint, unit, vectors, contract, simulation, and a real Envoy
	ENVOY_BIN="$$(scripts/setup --envoy)" cargo test --locked

.PHONY: e2e
e2e: wasm ## the tests in a real Envoy alone; T=name picks some
	ENVOY_BIN="$$(scripts/setup --envoy)" cargo test --locked --test e2e -- $(T)

.PHONY: lint
lint: setup ## formatting, clippy natively and for wasm32, docs
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	@scripts/build-wasm clippy
	cargo doc --locked --no-deps --document-private-items

.PHONY: fmt
fmt: ## format the code
	cargo fmt

.PHONY: demo
demo: wasm ## tell the story with real requests, and exit
	ENVOY_BIN="$$(scripts/setup --envoy)" cargo run --quiet --locked --example demo

.PHONY: serve
serve: wasm ## leave Envoy and an origin running, and print curl lines to try
	ENVOY_BIN="$$(scripts/setup --envoy)" cargo run --quiet --locked --example demo -- --serve

.PHONY: bench
bench: wasm ## requests/s and latency with and without the filter, from one run
	ENVOY_BIN="$$(scripts/setup --envoy)" cargo run --quiet --locked --release --example bench

.PHONY: clean
clean: ## remove what was built; .tools/ stays
	cargo clean
