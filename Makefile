# Each target creates what it needs: a virtual environment in .venv, from the project's own settings.
PYTHON ?= python3
BIN := .venv/bin
# Tests of what needs newer packages: the experiments, the pages, the recipes, Flax's NNX, Equinox, and gradients of
# convolutions that sum in a wider type, which JAX 0.8 refuses.
NOT_OLDEST := tests/experiments tests/benchmarks tests/documentation tests/frameworks/test_flax.py \
  tests/frameworks/test_flax_arguments.py tests/frameworks/test_flax_sharpness.py \
  tests/frameworks/test_flax_slices.py tests/frameworks/test_flax_writes.py tests/frameworks/test_equinox.py \
  tests/frameworks/test_adapters.py tests/frameworks/test_names_of_biases.py tests/frameworks/test_recipes.py \
  tests/frameworks/test_computing_nodes.py \
  tests/fuzzing/test_fuzz_convolutions.py tests/clients optax_sam/flax.py
NOT_NEWEST := tests/experiments tests/benchmarks tests/documentation
export XLA_PYTHON_CLIENT_PREALLOCATE ?= false

.PHONY: help demo test test-slow test-oldest test-newest check format derived results bench bench-devices accelerators notebooks \
  docs dist clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 16

demo: .venv/experiments  ## train and compare the methods on real data: table and picture in runs/demo
	$(BIN)/python -m experiments.compare --out runs/demo

test: .venv/test  ## all guarantees, products of methods over one of each kind: everything but the slow tests
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: .venv/test  ## everything, fast and slow: products over every method, every program, full counts
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-oldest: .venv-oldest/test  ## the package's tests with the oldest versions that it supports
	.venv-oldest/bin/python -m pytest -n 2 --dist loadfile -m "not slow" $(NOT_OLDEST:%=--ignore=%)

test-newest: .venv-newest/test  ## the package's tests with the newest versions that there are
	.venv-newest/bin/python -m pytest -n 2 --dist loadfile -m "not slow" $(NOT_NEWEST:%=--ignore=%)

check: .venv/dev  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check

format: .venv/dev  ## write the format, mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

derived: .venv/dev  ## write what follows from the methods (exports, tables, citations), list what they lack
	$(BIN)/python -m docs.derived

results: .venv/experiments  ## tables and picture of docs/results.md, docs/radius.md and docs/language_models.md; TASK=mnist1d DATA=folder first runs what a task lacks
	$(if $(TASK),$(BIN)/python -m experiments.evidence $(TASK) $(if $(DATA),--data $(DATA)))
	$(BIN)/python -m experiments.evidence.tables
	$(BIN)/python -m experiments.evidence.radius_tables
	$(BIN)/python -m experiments.evidence.forgetting_tables

bench: .venv/experiments  ## what every method costs, relative to SGD: tables, JSON lines, picture in runs/benchmarks
	$(BIN)/python -m benchmarks.steps
	$(BIN)/python -m benchmarks.report runs/benchmarks/steps.jsonl --picture runs/benchmarks/costs.png
	$(BIN)/python -m benchmarks.conditionals
	$(BIN)/python -m benchmarks.norms
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.sharpness
	$(BIN)/python -m benchmarks.products
	$(BIN)/python -m benchmarks.traces

bench-devices: .venv/experiments  ## what every step sends between devices: counted, timed, and on paper for many
	$(BIN)/python -m benchmarks.devices --check
	$(BIN)/python -m benchmarks.device_times
	$(BIN)/python -m benchmarks.scaling

accelerators: .venv-gpu/accelerators .venv-tpu/accelerators  ## programs for GPUs and TPUs that are not there: compiled, read, compared with those by hand
	.venv-gpu/bin/python -m benchmarks.accelerators --check
	.venv-gpu/bin/python -m benchmarks.accelerators --check --machines h100:1x1x8 --models decoder --parameters split
	.venv-tpu/bin/python -m benchmarks.accelerators --check --machines v5e:2x2 --models mlp
	.venv-tpu/bin/python -m benchmarks.accelerators --check --machines v5e:2x2 --models decoder --parameters split

notebooks: .venv/test  ## execute the notebooks again, in place, and draw the gallery's thumbnails
	$(BIN)/python notebooks/execute.py notebooks/*.ipynb
	$(BIN)/python docs/drawing/thumbnails.py

docs: .venv/docs  ## build the documentation site in runs/site, check its links; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -c docs . runs/site
	$(BIN)/python -m docs.links runs/site
	@echo "see runs/site/index.html"

dist: .venv/dist  ## wheel and sdist in dist/, the wheel tried in an environment of its own
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python .ci/check_wheel.py dist/*.whl

clean:  ## remove the virtual environment and the caches
	rm -rf .venv .venv-oldest .venv-newest .venv-gpu .venv-tpu .pytest_cache .ruff_cache .hypothesis

.venv/bin/python .venv-oldest/bin/python .venv-newest/bin/python .venv-gpu/bin/python .venv-tpu/bin/python:
	@command -v $(PYTHON) >/dev/null || \
	  { echo "$(PYTHON) is not there: name a Python 3.11 or newer, make PYTHON=/path/to/python3 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11: name a newer one, make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) has no venv: install it (Debian, Ubuntu: apt install python3-venv), or name another Python" >&2; exit 2; }
	$(PYTHON) -m venv $(@D:/bin=)

.venv/experiments: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[experiments]'
	@touch $@

.venv/test: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[experiments,notebooks,test]'
	@touch $@

.venv/docs: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[experiments,docs]'
	@touch $@

.venv-oldest/test: pyproject.toml tests/oldest.txt | .venv-oldest/bin/python
	.venv-oldest/bin/python -m pip install --quiet --editable '.[sharpness,test]' flax --constraint tests/oldest.txt
	@touch $@

.venv-newest/test: pyproject.toml | .venv-newest/bin/python
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[sharpness,test]' flax
	@touch $@

.venv/dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[experiments,notebooks,test,dev]'
	@touch $@

.venv/dist: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dist]'
	@touch $@

.venv-gpu/accelerators: pyproject.toml | .venv-gpu/bin/python
	.venv-gpu/bin/python -m pip install --quiet --editable '.[experiments,test,gpu-compiler]'
	@touch $@

.venv-tpu/accelerators: pyproject.toml | .venv-tpu/bin/python
	.venv-tpu/bin/python -m pip install --quiet --editable '.[experiments,test,tpu-compiler]'
	@touch $@
