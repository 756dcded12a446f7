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

test-all: lint
	$(BIN)/python -m pytest

# The suite on other versions, each in an environment of its own: make matrix MATRIX='torch==2.9.1,triton==3.5.1'.
# Counts of instructions belong to one compiler, so tests/test_analyse.py stays out.
MATRIX ?= torch==2.13.0,triton==3.7.1
comma := ,

matrix: $(MATRIX:%=.matrix/%/passed)

.matrix/%/passed: FORCE
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet $(subst $(comma), ,$*)
	$(@D)/bin/python -m pip install --quiet --editable '.[dev]' $(subst $(comma), ,$*)
	$(@D)/bin/python -m pytest -m 'not slow' --ignore tests/test_analyse.py
	touch $@

FORCE:

clean:
	rm -rf .venv .matrix dist
