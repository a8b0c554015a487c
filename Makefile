# make demo   install into .venv and run the main job        make test   install with the test extra and run the tests
# make lint   the style and type checks                      make docs   install with the docs extra, build the site/
# make clean  remove environments, outputs, build files
#
# Only python3 (>= 3.10), make and sh are needed. Another interpreter or place: make demo PYTHON=python3.12 VENV=/tmp/env

PYTHON ?= python3
VENV ?= .venv
RUN ?= trace=lte
PYTEST ?=

BIN := $(VENV)/bin
# Stamps: an environment is installed again only when pyproject.toml has changed since.
INSTALLED := $(VENV)/.installed
INSTALLED_TEST := $(VENV)/.installed-test
INSTALLED_DEV := $(VENV)/.installed-dev
INSTALLED_DOCS := $(VENV)/.installed-docs

.PHONY: demo test lint docs clean help

demo: $(INSTALLED)
	$(BIN)/python -m experiments.run $(RUN)

test: $(INSTALLED_TEST)
	$(BIN)/python -m pytest $(PYTEST)

lint: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --exclude '*.md' .
	$(BIN)/mypy

docs: $(INSTALLED_DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv .venv-ci build dist site outputs multirun *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:
	@sed -n '1,5p' Makefile

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed, not " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(INSTALLED): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(INSTALLED_TEST): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[test]'
	@touch $(INSTALLED) $@

$(INSTALLED_DEV): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $(INSTALLED) $(INSTALLED_TEST) $(INSTALLED_DOCS) $@

$(INSTALLED_DOCS): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	@touch $(INSTALLED) $@
