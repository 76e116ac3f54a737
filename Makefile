# Every target works on a machine that has only Python 3.11: it makes .venv,
# installs what it needs with the exact versions of constraints.txt, and does its
# job. Run again, it goes straight to the job.
#
#   make quickstart   pre-train a small BERT on the CPU, about two minutes
#   make test         all fast tests             make lint     ruff and mypy
#   make test-all     slow ones too              make format   apply ruff's fixes
#   make notebooks    rebuild notebooks/*.ipynb  make clean    remove what make made
#
# Settings, for example `make test PYTHON=python3.11 WORKERS=8`:
PYTHON ?= python3
WORKERS ?= 2
# Passed to pip, for example to name another package index.
PIP_ARGS ?=
# Passed to pytest or to the quickstart, for example ARGS="-k masking -x".
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq $(PIP_ARGS) -c constraints.txt
# What an installation depends on: a change in one of these installs again.
PINS := setup.cfg pyproject.toml constraints.txt

# The workers of pytest share the cores, so each computes on one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -q

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-all lint format notebooks clean

help:
	@sed -n 's/^#   //p' Makefile

quickstart: $(VENV)/.installed-quickstart
	@$(BIN)/python -m lmkit quickstart $(ARGS)

test: $(VENV)/.installed-test
	$(PYTEST) -m "not slow" $(ARGS)

test-all: $(VENV)/.installed-test
	$(PYTEST) $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

notebooks: $(VENV)/.installed-test
	$(BIN)/python notebooks/build.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "lmkit needs Python 3.11 or newer and $(PYTHON) is" \
	    "$$($(PYTHON) -V 2>&1); name another with: make PYTHON=python3.11 ..." >&2; exit 1; }
	@echo "Making a virtual environment in $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-quickstart: $(PINS) | $(BIN)/python
	@echo "Installing lmkit and its dependencies; the first time takes a few minutes ..."
	@$(PIP) -e '.[plot]'
	@touch $@

$(VENV)/.installed-test: $(PINS) | $(BIN)/python
	@echo "Installing lmkit with its test dependencies; the first time takes a few minutes ..."
	@$(PIP) -e '.[test]'
	@touch $@

$(VENV)/.installed-dev: $(PINS) | $(BIN)/python
	@echo "Installing the formatter and the type checker ..."
	@$(PIP) -e '.[dev]'
	@touch $@
