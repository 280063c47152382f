# `make demo` and `make test` need Python 3.11 to 3.13 and make, and nothing else. If uv is installed, it installs the
# packages faster; `make UV=` uses pip.
PYTHON ?= python3
UV ?= $(shell command -v uv 2>/dev/null)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
# Files of benchmarks/ that can be run, except those that need a GPU. The other files are libraries.
BENCHMARKS = $(filter-out %_gpu.py,$(shell grep -l __main__ benchmarks/*.py))

.DEFAULT_GOAL := help
.PHONY: help install demo test lint gates benchmarks smoke clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(INSTALLED) ## create .venv with the pinned packages

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 13) else "dreamcade needs Python 3.11 to 3.13, but $(PYTHON) is " + sys.version.split()[0] + ": set PYTHON=/path/to/another")'
ifneq ($(UV),)
	$(UV) venv --quiet --seed --allow-existing --python $(PYTHON) $(VENV)
	$(UV) pip install --quiet --python $(BIN)/python -c constraints.txt -e ".[dev]"
else
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
endif
	@touch $@

demo: $(INSTALLED) ## train a world model of Pong and film its dreams, in minutes on two cores
	$(BIN)/dreamcade fit --config configs/quickstart.yaml

lint: $(INSTALLED) ## run ruff, codespell and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

test: lint ## lint, then run all tests except the slow ones, two files at a time
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n 2 --dist loadfile

gates: $(INSTALLED) ## run the slow tests, which check that models and policies learn
	$(BIN)/pytest -m slow

benchmarks: $(INSTALLED) ## measure everything that README and docs quote
	failed=; for file in $(BENCHMARKS); do $(BIN)/python $$file || failed="$$failed $$file"; done; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

smoke: $(INSTALLED) ## run every benchmark with --smoke, at sizes that measure nothing
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/benchmarks

clean: ## remove .venv and caches; runs stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
