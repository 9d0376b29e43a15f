# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: help demo test fast-test lint types imports check clean

help:  ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "%-12s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "budgetsweep needs Python 3.11 or newer; this is " + sys.version.split()[0] + " (set PYTHON=python3.12)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

install: $(VENV)/.installed  ## Make .venv and install

demo: $(VENV)/.installed  ## search -> promote -> report on an embedded corpus (CPU, under five minutes)
	@PATH="$(abspath $(BIN)):$$PATH" bash examples/demo.sh

test: $(VENV)/.installed  ## Run all tests, one process a core
	$(BIN)/python -m pytest -n auto --dist worksteal

fast-test: $(VENV)/.installed  ## Run the tests that are not marked slow
	$(BIN)/python -m pytest -n auto --dist worksteal -m 'not slow'

lint: $(VENV)/.installed  ## ruff
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --no-cache --check .

types: $(VENV)/.installed  ## mypy, strict
	$(BIN)/mypy

imports: $(VENV)/.installed  ## Dependency rules between the packages
	$(BIN)/lint-imports

check: lint types imports test  ## Everything that CI runs

clean:  ## Remove the virtual environment and caches (never your studies)
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
