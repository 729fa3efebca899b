# The only entry point: people and CI call these targets, and each builds what it needs.

SHELL         := /bin/bash
.SHELLFLAGS   := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS     += --no-print-directory

# Where cargo builds, and so where the module is.
export IDEMPOTENCY_MODULE ?= $(abspath $(or $(CARGO_TARGET_DIR),target))/wasm32-wasip1/release/envoy_idempotency.wasm

# A module that traps when a header says so, only for tests of that.
export IDEMPOTENCY_TRAP_MODULE ?= $(abspath $(or $(CARGO_TARGET_DIR),target))/trap/wasm32-wasip1/release/envoy_idempotency.wasm

# Where `make image` writes.
export IDEMPOTENCY_IMAGE ?= $(abspath $(or $(CARGO_TARGET_DIR),target))/oci

# Warnings are errors, here and in CI alike.
export RUSTFLAGS ?= -D warnings
export RUSTDOCFLAGS ?= -D warnings

.PHONY: help build wasm trap tool schema image release test lint fmt e2e sim manifests demo serve bench depth soak \
        docker-images docker-demo docker-serve docker-test clean setup

help: ## print this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## get the wasm32 target and an Envoy (under .tools/; ENVOY_BIN=… uses yours); silent if they exist
	@scripts/setup

build: ## compile all crates and their tests natively
	@cargo build --locked --workspace --all-targets

wasm: setup ## compile the module, target/wasm32-wasip1/release/envoy_idempotency.wasm
	@scripts/build-wasm

tool: ## compile the operator's tool, target/release/idempotency
	@cargo build --locked --release -p cli

trap: setup ## compile the module that tests stop on purpose, under target/trap/
	@scripts/build-wasm trap

image: wasm ## write the module as an OCI image, target/oci/, for Istio and Envoy Gateway; prints its digests
	@scripts/image build $(IDEMPOTENCY_MODULE) $(IDEMPOTENCY_IMAGE)

release: image ## fill dist/: module, image, checksums, bill of materials, manifests with the image's digest
	@scripts/release $(IDEMPOTENCY_MODULE) $(IDEMPOTENCY_IMAGE)

test: wasm trap lint ## everything: lint, unit, vectors, architecture, and a real Envoy
	@cargo test --locked --workspace

lint: setup ## formatting, clippy natively and for wasm32, the docs; warnings are errors
	@cargo fmt --all --check
	@cargo clippy --locked --workspace --all-targets -- -D warnings
	@scripts/build-wasm clippy
	@cargo doc --locked --workspace --no-deps --document-private-items

fmt: ## format the code
	@cargo fmt --all

e2e: wasm trap ## only the tests in a real Envoy; T=name picks some
	@cargo test --locked --test e2e --test envoy -- $(T)

sim: ## the simulation at length; SIM_SEEDS=… seeds of each fault, SIM_SEED=… SIM_STORY=1 tells what happens in one
	@SIM_SEEDS=$${SIM_SEEDS:-2000} cargo test --locked -p envoy-idempotency --test simulation

manifests: wasm ## only the tests of the manifests for Istio and Envoy Gateway, and of the image
	@cargo test --locked --test manifests

demo: wasm ## show the filter with real requests, and exit
	@cargo run --quiet --locked --bin demo

serve: wasm ## leave Envoy and an origin running, and print curl lines to try; Ctrl-C ends them
	@cargo run --quiet --locked --bin demo -- --serve

# Unwinding, so that a failed bench ends its Envoys; the release profile is the module's.
bench: wasm ## requests/s and latency with and without the filter, from one run
	@CARGO_PROFILE_RELEASE_PANIC=unwind cargo run --quiet --locked --release -p tools --bin bench

# Unwinding, as in the bench.
depth: wasm trap ## how many streams one callback may let go before V8's stack ends: what BATCH rests on
	@CARGO_PROFILE_RELEASE_PANIC=unwind cargo run --quiet --locked --release -p tools --bin depth

# Unwinding, as in the bench.
soak: wasm ## minutes of retries over two Envoys whose Redis is killed every 20 s; SOAK_SECONDS=…, SOAK_STORE_ERROR=local
	@CARGO_PROFILE_RELEASE_PANIC=unwind cargo run --quiet --locked --release -p tools --bin soak

schema: ## rewrite config.schema.json from the parser's own types and bounds
	@cargo run --quiet --locked --bin idempotency -- schema > config.schema.json.new
	@mv config.schema.json.new config.schema.json
# Compose v2 if the engine's client has it, else docker-compose 1.29; evaluated only by targets that need it.
COMPOSE ?= $(shell if docker compose version >/dev/null 2>&1; then echo docker compose; else echo docker-compose; fi)

docker-images: setup ## get the images of envoy/docker/compose.yaml; builds substitutes for those that cannot be pulled
	@scripts/docker-images

docker-demo: wasm docker-images ## two Envoys, Redis and an origin in containers: real requests, metrics, and all removed again
	@COMPOSE="$(COMPOSE)" cargo run --quiet --locked --bin docker -- --demo

docker-serve: wasm docker-images ## leave these containers running, and print curl lines to try; Ctrl-C removes them
	@COMPOSE="$(COMPOSE)" cargo run --quiet --locked --bin docker -- --serve

docker-test: wasm docker-images ## … through a killed Redis, a network cut, a rolling restart: no key runs twice
	@COMPOSE="$(COMPOSE)" cargo run --quiet --locked --bin docker

clean: ## remove what was built; .tools/ stays
	@cargo clean
