# One command each. PYTHON is the interpreter of the environment that `pip install -e '.[dev]'` went into.
PYTHON ?= .venv/bin/python
BIN := $(dir $(PYTHON))

.PHONY: format lint types test bench simulate rules soak

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
	$(PYTHON) -m tests.simulation --seeds 0:100000 --detached
	$(PYTHON) -m tests.simulation --seeds 0:100000 --shared

rules:
	MULTIHOST_RULES=30000 $(PYTHON) -m pytest tests/test_rules.py tests/test_rules_shared.py

soak:
	$(PYTHON) -m tests.soaks kills
	$(PYTHON) -m tests.soaks churn
	$(PYTHON) -m tests.soaks steady
	$(PYTHON) -m tests.soaks detached
	$(PYTHON) -m tests.soaks queues
