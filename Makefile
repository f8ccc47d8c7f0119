# The two commands of a bare clone: `make run` trains, `make test` checks everything.
# `make digits` trains a small classifier instead, in under a minute.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: setup run digits test lint types unit clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("attent needs Python 3.11 or newer, not %d.%d: make PYTHON=..." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

run: setup
	$(BIN)/attent pretrain --config tasks/configs/multimae_scenes.yaml

digits: setup
	$(BIN)/attent classify --config tasks/configs/digits.yaml

test: lint types unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Type checkers do not follow an editable install's import hook: the packages are linked under
# the name they are imported by.
types: setup
	mkdir -p build/typing/attent
	for part in pipeline models tasks loops; do ln -sfn ../../../$$part build/typing/attent/$$part; done
	$(BIN)/pyright --pythonpath $(BIN)/python

# In as many processes as there are cores on the smallest machine; a file's tests stay together.
unit: setup
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --cov=pipeline --cov-report=term-missing:skip-covered --cov-fail-under=95

clean:
	rm -rf $(VENV) build
