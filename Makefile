# Every target sets itself up: `git clone`, then `make sweep` or `make test`.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: sweep gpu test test-all matrix lint clean

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

sweep: .venv/ready
	$(BIN)/python -m perf measure --set quick --plot

gpu: .venv/ready
	$(BIN)/python -m perf gpu

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -m 'not slow'

# What PyTorch 2.13 brings to a GPU; beside its CPU build pip takes the newest Triton. Kernels have to pass under both.
PINNED := triton==3.7.1
KERNEL_TESTS := tests/core tests/formulas tests/ops tests/integration/test_modules.py tests/perf/test_gpu.py tests/perf/test_analyse.py

.venv/pinned: .venv/ready
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $@ $(PINNED)

test-all: test .venv/pinned
	$(BIN)/python -m pytest -m slow
	PYTHONPATH='$(CURDIR)/.venv/pinned' $(BIN)/python -m pytest -m 'not slow' $(KERNEL_TESTS)

# The suite on other versions, each in an environment of its own: make matrix MATRIX="torch==2.14.1 torch==2.10.0,numpy==2.3.5".
# Triton's interpreter before 3.7 wants numpy before 2.4: https://github.com/triton-lang/triton/issues/9171.
MATRIX ?= torch==2.13.0,triton==3.7.1
comma := ,

matrix: $(MATRIX:%=.matrix/%/passed)

.matrix/%/passed: FORCE
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet $(subst $(comma), ,$*)
	$(@D)/bin/python -m pip install --quiet --editable '.[dev]' $(subst $(comma), ,$*)
	$(@D)/bin/python -m pytest -m 'not slow'
	touch $@

FORCE:

clean:
	rm -rf .venv .matrix dist
