# One command each. PYTHON is the interpreter of the environment that `pip install -e '.[dev]'` went into.
PYTHON ?= .venv/bin/python
BIN := $(dir $(PYTHON))

.PHONY: format lint types test bench simulate soak

format:
	$(BIN)ruff check --fix .
	$(BIN)ruff format .

lint:
	$(BIN)ruff check .
	$(BIN)ruff format --check .
	$(BIN)lint-imports

types:
	$(BIN)mypy
	$(BIN)basedpyright

test:
	$(PYTHON) -m pytest

bench:
	$(BIN)multihost bench

simulate:
	$(PYTHON) -m tests.simulation --seeds 0:100000

soak:
	$(PYTHON) tests/soak.py --kills 100 --items 100000
