# Two commands on a fresh machine: `make demo` and `make test`.
# Needs Python 3.11 or later and make; everything else goes into .venv.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
# Small networks gain nothing from a second thread, and lose under load.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-oldest lint docs bench clean

demo: .venv/demo.done
	$(BIN)/python examples/demo.py

test: .venv/tests.done
	$(BIN)/python -m pytest -n auto

OLDEST := .venv-oldest/bin/python
PIP_OLDEST := $(OLDEST) -m pip --disable-pip-version-check install --quiet \
	-c constraints-oldest.txt

test-oldest:
	test -x $(OLDEST) || $(PYTHON) -m venv .venv-oldest
	$(PIP_OLDEST) torch
	$(PIP_OLDEST) -e .[images,plot,tables] array-api-strict numpydoc polars pytest
	$(OLDEST) -m pytest

lint: .venv/lint.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/mypy --strict --follow-imports silent tests/typing

docs: .venv/docs.done
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

bench: .venv/tests.done
	$(BIN)/python -m benchmarks --profile cpu

clean:
	rm -rf .venv .venv-oldest build docs/_build docs/auto_examples docs/generated docs/tables *.egg-info

# torch first, alone and pinned: another package's wider requirement would let pip
# take a newer build with gigabytes of CUDA.
.venv/base.done: constraints.txt setup.cfg
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch
	touch $@

.venv/demo.done: .venv/base.done
	$(PIP) -e .[plot]
	touch $@

.venv/%.done: .venv/base.done
	$(PIP) -e .[$*]
	touch $@
