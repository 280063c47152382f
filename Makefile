# `make demo` and `make test` need Python 3.11 to 3.13 and make, nothing else. Where there is uv, it installs the same
# packages quicker; `make UV=` leaves it aside.
PYTHON ?= python3
UV ?= $(shell command -v uv 2>/dev/null)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.DEFAULT_GOAL := help
.PHONY: help install demo test lint gates benchmarks clean

help: ## list what can be made
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

demo: $(INSTALLED) ## train a world model of Pong and look at its dreams: minutes on two cores
	$(BIN)/dreamcade fit --config configs/quickstart.yaml

lint: $(INSTALLED) ## ruff, codespell and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

test: lint ## lint, then every test but the slow ones, two files at a time
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n 2 --dist loadfile

gates: $(INSTALLED) ## the slow learning gates
	$(BIN)/pytest -m slow

benchmarks: $(INSTALLED) ## measure everything that README and docs quote
	for file in replay trainer_overhead quickstart frames dyna_maze mbpo_cartpole dyna_cartpole imagination atari_small simple_small search search_exact muzero_cartpole muzero_atari_small emulator_uct world_models_step evolution world_models_atari temperature hostile_files faults ddp ray_actors soak; do $(BIN)/python benchmarks/$$file.py || exit 1; done

clean: ## remove .venv and caches, but no runs
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
