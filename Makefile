# Everything that it takes to try, check and test Shoal; `make help` lists the targets.
# Each target first sets up .venv where that is needed: at first, and whenever the requirements change.

PYTHON ?= python3
# What to compute on: cpu, or cuda (NVIDIA GPUs). Changing it recreates .venv, since both builds of fbgemm share a folder.
ACCEL ?= cpu
# Folder of real logs; tests that need it skip without.
DATA ?= ../shared/data
# How many test files run at a time; of `make mutate`, how many faults are tried at a time.
JOBS ?= 2
# Which faults `make mutate` plants: a pattern of their names or files, such as 'seed' or 'sharding/*'; all by default.
ONLY ?=
# Of `make soak`: the number of faults, and their seed.
FAULTS ?= 200
SEED ?= 1

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
READY := $(VENV)/.ready-$(ACCEL)
TOOLS_READY := $(VENV)/.ready-tools
BENCH_READY := $(VENV)/.ready-bench
DOCS_READY := $(VENV)/.ready-docs
OTHER_ACCEL := $(filter-out $(READY),$(wildcard $(VENV)/.ready-cpu $(VENV)/.ready-cuda))

ifeq ($(filter $(ACCEL),cpu cuda),)
$(error ACCEL=$(ACCEL): choose cpu or cuda)
endif

.PHONY: help setup demo test test-quick test-all test-faults soak test-gpu mutate check bench bench-gpu bench-peers docs format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'variables: ACCEL=cuda (GPU requirements), PYTHON=python3.12, DATA=folder of real logs for the tests, JOBS=tests at a time, ONLY=faults to plant, FAULTS and SEED of a soak'

setup: $(READY) $(TOOLS_READY) ## create .venv with all that the other targets need

demo: $(READY) ## generate logs, train on two local workers, evaluate: a few minutes
	$(BIN)/shoal synth runs/demo-logs --users 4000 --items 1000
	$(BIN)/shoal run configs/demo.toml

# Test files run side by side, long ones first; each process has its own Ray session and rank processes. Commands of end-to-end
# tests mostly wait for the start of their processes, so other tests run meanwhile (tests/support/side_by_side.py).
# Where the environment forbids Python to keep compiled modules, each of hundreds of processes would compile them itself.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --shared-data=$(DATA)
SIDE_BY_SIDE := --numprocesses=$(JOBS) --dist=loadfile --no-loadscope-reorder

test: $(TOOLS_READY) ## run all tests, of pairwise ones a sample; those that need a GPU skip without one
	$(PYTEST) $(SIDE_BY_SIDE)

test-quick: $(TOOLS_READY) ## run the tests that start neither Ray nor rank processes: less than three minutes
	$(PYTEST) $(SIDE_BY_SIDE) -m 'not ray and not ranks and not slow'

test-all: $(TOOLS_READY) ## run all tests with every combination
	$(PYTEST) $(SIDE_BY_SIDE) --all-combinations

test-faults: $(TOOLS_READY) ## inject faults into whole runs, one run after another (an hour), with a log in build/faults.log
	mkdir -p build
	$(PYTEST) -m faults --all-combinations -v > build/faults.log 2>&1; code=$$?; tail -n 40 build/faults.log; exit $$code

soak: $(TOOLS_READY) ## train once with FAULTS=200 random faults of SEED=1, compare the end bit for bit; result in build/soak.json
	mkdir -p build
	$(BIN)/python -m tests.end_to_end.soak --faults=$(FAULTS) --seed=$(SEED) --json=build/soak.json

test-gpu: $(TOOLS_READY) ## run the tests that need a GPU (with ACCEL=cuda)
	$(PYTEST) -m gpu --all-combinations

mutate: $(TOOLS_READY) ## plant small faults, one at a time, and report those that no test finds (about an hour; ONLY=pattern)
	$(BIN)/python -m tests.mutation --shared-data=$(DATA) --jobs=$(JOBS) --only='$(ONLY)'

check: $(TOOLS_READY) ## lint, formatting, types, direction of imports, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

bench: $(BENCH_READY) ## measure speed against ceilings and peers measured in the same run
	$(BIN)/python -m benchmarks

bench-peers: $(READY) ## compare the speed of training with RePlay and RecTools, in an environment of their own (2 GB)
	$(BIN)/python -m benchmarks.peers --logs $(DATA)/ml-1m/events_3416_items.parquet --json build/peers.json \
	  --gate docs/results/benchmark_peers.json

bench-gpu: $(READY) ## measure attention and steps on a GPU against its peak, with parity (8 minutes at most; with ACCEL=cuda)
	$(BIN)/python -m benchmarks.gpu

docs: $(DOCS_READY) ## write docs/configuration.md, and build the site in build/site; a warning is an error
	$(BIN)/python -m cluster.cli.config_docs > docs/.configuration.md.new
	mv docs/.configuration.md.new docs/configuration.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

format: $(TOOLS_READY) ## format the code, and fix what the linter can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## delete caches and what was built; keeps .venv and runs/
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
	find shoal cluster trainer sharding models tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The order and --no-deps matter: see docs/installation.md.
$(READY): requirements/base.txt requirements/$(ACCEL).txt pyproject.toml
	@$(if $(OTHER_ACCEL),rm -rf $(VENV))
	@test -x $(BIN)/pip || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo 'Shoal needs Python 3.11 or later, and $(PYTHON) is not; name one, as in: make PYTHON=python3.11' >&2; exit 1; }; \
	  $(PYTHON) -m venv $(VENV); }
	@echo 'setting up $(VENV) (ACCEL=$(ACCEL)); the first time this takes some minutes'
	@$(PIP) install torch==2.13.0
	@$(PIP) install --no-deps -r requirements/$(ACCEL).txt
	@$(PIP) install --no-deps --no-build-isolation --config-settings editable_mode=compat -e .
	@touch $@

$(TOOLS_READY): requirements/dev.txt requirements/interpreter.txt $(READY)
	@$(PIP) install --no-deps -r requirements/dev.txt $(if $(filter cpu,$(ACCEL)),-r requirements/interpreter.txt)
	@touch $@

$(BENCH_READY): requirements/bench.txt $(READY)
	@$(PIP) install --no-deps -r requirements/bench.txt
	@touch $@

$(DOCS_READY): requirements/docs.txt $(READY)
	@$(PIP) install --no-deps -r requirements/docs.txt
	@touch $@
