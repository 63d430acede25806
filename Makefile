# `make` lists the targets. Everything is installed into .venv; a stamp per set of extras makes the second call quick.
PYTHON ?= python3
EXTRAS ?=
JOBS ?= 2

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip -qq --disable-pip-version-check

comma := ,
DEV   := dev$(if $(EXTRAS),$(comma)$(EXTRAS))

.PHONY: help quickstart test lint slow docs clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  PYTHON=python3.12    the interpreter to make .venv with (3.11 or newer)"
	@echo "  EXTRAS=tensorrt-rtx  more extras for test, lint and slow, separated by commas"
	@echo "  JOBS=2               processes that share the tests, about 2 GB each"

quickstart: $(VENV)/.installed-demo  ## install, then quantize, export, verify and time a real model
	$(BIN)/qdq quickstart -o quickstart/

# xdist would sort the files by their number of tests, and start the ones with few and long tests last.
test: lint  ## install, lint, then the tests that need no GPU and take no minutes
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-$(DEV)  ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

slow: $(VENV)/.installed-$(DEV)  ## the tests that take minutes
	$(BIN)/python -m pytest -q -m slow

docs: $(VENV)/.installed-docs  ## install, then build the documentation into build/docs; warnings are errors
	$(BIN)/python -m sphinx -b html -W --keep-going -q -d build/doctrees docs build/docs

clean:  ## remove .venv, caches and what quickstart wrote
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist quickstart
	find qdq calibration exporters tests tools docs -name __pycache__ -type d -prune -exec rm -rf {} +

# A half-made .venv (no ensurepip, disk full) would look finished to the next call, so it goes.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "qdq needs Python 3.11 or newer, and '$(PYTHON)' is not: try make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# torch goes first and alone: pip then takes its CPU build where one is on offer, before anything else can ask for another.
$(VENV)/.installed-torch: constraints.txt | $(BIN)/python
	@echo "installing torch into $(VENV) (a few minutes the first time)"
	@$(PIP) install -c constraints.txt torch
	@touch $@

$(VENV)/.installed-%: pyproject.toml constraints.txt $(VENV)/.installed-torch
	@echo "installing qdq[$*] into $(VENV)"
	@$(PIP) install -c constraints.txt -e '.[$*]'
	@touch $@
