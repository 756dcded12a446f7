# Every target sets itself up: `git clone`, then `make sweep` or `make test`.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin

# Tests run on all cores; those that measure time or memory run afterwards, alone.
PYTEST := $(BIN)/python -m pytest
PARALLEL := -n auto --dist loadgroup

.PHONY: sweep gpu test test-all matrix lint docs wheel hub clean

.venv/torch:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	touch $@

.venv/sweep: .venv/torch pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[perf]'
	touch $@

.venv/dev: .venv/torch pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

sweep: .venv/sweep
	$(BIN)/python -m perf measure --set quick --plot

# The documentation as a site, in dist/docs/site.
docs: .venv/dev
	$(BIN)/python docs/site/build_site.py --output dist/docs

# What a package index takes: a wheel and a source distribution, and whether it would show them as they are meant.
wheel: .venv/dev
	rm -rf dist/index
	$(BIN)/python -m hatchling build -d dist/index
	$(BIN)/python -m twine check --strict dist/index/*

# A folder to upload to the hub of Hugging Face's `kernels` as it is.
hub: .venv/torch
	$(BIN)/python hub/build.py --output dist/hub

gpu: .venv/dev
	$(BIN)/python -m perf gpu --output perf/data

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(PYTEST) -m 'not slow and not alone' $(PARALLEL)
	$(PYTEST) -m 'not slow and alone'

# What PyTorch 2.13 brings to a GPU; with its CPU build pip takes the newest Triton. Kernels have to pass under both.
PINNED := triton==3.7.1

.venv/pinned: .venv/dev
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $@ $(PINNED)

test-all: test .venv/pinned
	$(PYTEST) -m 'slow and not alone' $(PARALLEL)
	$(PYTEST) -m 'slow and alone'
	PYTHONPATH='$(CURDIR)/.venv/pinned' $(PYTEST) -m 'kernels and not slow' $(PARALLEL)

# The suite on other versions, each in an environment of its own, and a row of what passed: make matrix MATRIX="torch==2.14.1 torch==2.10.0,numpy==2.3.5".
# Triton's interpreter before 3.7 wants numpy before 2.4: https://github.com/triton-lang/triton/issues/9171.
MATRIX ?= torch==2.13.0,triton==3.7.1
comma := ,

matrix: $(MATRIX:%=.matrix/%/passed)

.matrix/%/passed: FORCE
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet $(subst $(comma), ,$*)
	$(@D)/bin/python -m pip install --quiet --editable '.[dev]' $(subst $(comma), ,$*)
	$(@D)/bin/python -m pytest -m 'not slow and not alone' $(PARALLEL) --junitxml $(@D)/together.xml
	$(@D)/bin/python -m pytest -m 'not slow and alone' --junitxml $(@D)/alone.xml
	$(@D)/bin/python -m perf suite $(@D)/together.xml $(@D)/alone.xml
	touch $@

FORCE:

clean:
	rm -rf .venv .matrix dist
