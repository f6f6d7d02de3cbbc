# Two commands do everything: `make demo` and `make test`. Both create the environment if it is missing.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.SHELLFLAGS := -euo pipefail -c

VENV   ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN    := $(VENV)/bin
LOCK   := requirements/cpu.lock
READY  := $(VENV)/.ready
UV_VERSION := 0.13.8
# Real runs in one worker, all other tests in a second (tests/conftest.py). Empty on a machine with less than 16 GB.
BESIDE ?= -n 2
# A CPU build of torch comes from PyTorch's own wheels, or from local files named in UV_FIND_LINKS.
UV_TORCH := $(if $(UV_FIND_LINKS),,--torch-backend cpu)

.PHONY: help setup demo test test-all test-fast lint lock docs docs-serve docs-support clean gpu-check fuzz chaos bench

help: ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY) ## create the CPU environment (.venv) from the lock, once

# uv takes a fifth of pip's time. It does not read pip's configuration, so it gets the package sources named there.
# Where none has the CPU build of torch, uv's own knowledge of PyTorch's CPU wheels takes over, and last pip as it is
# configured. The hashes of the lock hold in all three cases: no source can offer another file under the same name.
PIP_SOURCES = $(BIN)/python -m pip config list \
	| sed -nE "s/^.*\.(index-url|extra-index-url|find-links)='(.*)'$$/\1 \2/p" \
	| while read -r name values; do for value in $$values; do echo "--$$name=$$value"; done; done | sort -u
LOCKED := --require-hashes --no-deps -r $(LOCK)
$(READY): $(LOCK) pyproject.toml
	@echo "setup: environment in $(VENV), about 4 GB and a minute"
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v == (3, 11) else f"setup: the lock is for CPython 3.11, found {v[0]}.{v[1]} at {sys.executable}. Install python3.11 or run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@with_uv() { $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --index-strategy unsafe-best-match $(LOCKED) "$$@"; }; \
	  { $(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION) && { with_uv $$($(PIP_SOURCES)) || with_uv --torch-backend cpu; }; } 2> $(VENV)/uv.log \
	  || { tail -n 3 $(VENV)/uv.log; echo "setup: trying again with pip"; $(BIN)/python -m pip install --quiet --disable-pip-version-check $(LOCKED); }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)
	@echo "setup: done"

demo: $(READY) ## train S2L-PO on the toy world and write outputs/demo/
	@$(BIN)/s2l demo $(ARGS)

test: $(READY) ## lint, then every test tier that this machine can run but what test-all adds
	@$(MAKE) --no-print-directory lint
	@$(BIN)/python -m pytest $(BESIDE) -m "not long" $(ARGS)

test-all: $(READY) ## the same with asynchronous modes, FSDP1, faults of explorer and queue, a lost node, the short chaos test
	@$(MAKE) --no-print-directory lint
	@$(BIN)/python -m pytest $(BESIDE) $(ARGS)

test-fast: $(READY) ## the unit tests that take less than half a second each, in about a minute
	@$(MAKE) --no-print-directory --output-sync=target -j 2 fast-early fast-late

# Two processes of one thread each: idle OpenMP threads spin. Contract tests are left to `make test`: importing verl and
# vLLM takes as long as half of the unit tests. Exit status 5: ARGS chose none of these.
fast-early: FILES = tests/unit/test_[a-f]*.py
fast-late: FILES = tests/unit/test_[g-z]*.py
fast-early fast-late: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(FILES) -m "not e2e and not gpu and not slow" $(ARGS) || [ $$? = 5 ]

lint: $(READY) ## ruff, mypy, import rules
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

# gpu.lock serves Python 3.11 too: vllm asks for an older setuptools on 3.12, nothing else differs.
COMPILE = $(BIN)/uv pip compile pyproject.toml --quiet --no-config --no-sources --generate-hashes \
	  --python-platform x86_64-manylinux_2_28 --custom-compile-command "make lock"
lock: $(READY) ## renew requirements/*.lock (needs the package index; set UV_FIND_LINKS where the CPU torch is a local file)
	@$(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	@$(COMPILE) --python-version 3.11 $(UV_TORCH) \
	  --extra cpu --extra dev --extra diversity --override requirements/cpu-overrides.txt -o $(LOCK)
	@$(COMPILE) --python-version 3.12 --extra gpu --extra diversity -o requirements/gpu.lock

# The theme prints an advertisement for its successor otherwise.
docs docs-serve: export NO_MKDOCS_2_WARNING = 1
docs: $(READY) ## build the site into outputs/site/; a dead link or an undescribed key fails
	@$(BIN)/python -m mkdocs build --strict && echo "docs: open outputs/site/index.html"

docs-serve: $(READY) ## the site on http://127.0.0.1:8000, built again when a page changes
	@$(BIN)/python -m mkdocs serve --strict $(ARGS)

docs-support: $(READY) ## write docs/support.md anew: compose every combination, name the tests
	@$(BIN)/python scripts/support_matrix.py

fuzz: $(READY) ## ten times the malformed inputs of the unit tests, another draw each time
	@S2L_FUZZ=10 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit/test_fuzz_inputs.py $(ARGS)

chaos: $(READY) ## 12 steps, five times kill -9 and a full disk, three seeds: about an hour
	@S2L_CHAOS_KILLS=5 S2L_CHAOS_STEPS=12 S2L_CHAOS_SEEDS=1,2,3 $(BIN)/python -m pytest -s tests/e2e/test_chaos.py $(ARGS)

clean: ## remove the environment and everything the demo wrote
	@rm -rf $(VENV) outputs

bench: $(READY) ## every measurement of speed: JSON lines in outputs/bench.jsonl, one table; half an hour on two quiet cores
	@$(BIN)/python benchmarks/bench.py $(ARGS)

gpu-check: ## on a GPU machine, with the active environment's python: what to run first there, PASS or FAIL each (docs/gpu.md)
	@python benchmarks/gpu_check.py $(ARGS)
