# make demo     the whole path on real data: install, run, verify, summary
# make test     the tests; ARGS='tests/unit -x' goes to pytest
# make check    lint, format, types
# make bench    every benchmark: bench/results.json and a table; ARGS='--quick' for a smoke test
# make fmt      format and fix what can be fixed
# make clean    remove the virtual environment, caches and the demo's files
#
# Needs Linux and Python 3.10 or newer; PYTHON=/path/to/python3.12 chooses one.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check bench fmt clean

demo: $(VENV)/.installed-examples
	@$(BIN)/python -m examples.demo $(ARGS)

test: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/.installed-dev
	@$(BIN)/python -m bench $(ARGS)

fmt: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp says which extras pyproject.toml had when they were installed; it is made last, so an
# installation that was interrupted is done again.
$(VENV)/.installed-examples: EXTRAS := examples
$(VENV)/.installed-dev: EXTRAS := test,examples,dev
$(VENV)/.installed-%: pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "No Python 3.10 or newer found. Install one, or say where it is:" \
		"make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "$(PYTHON) is missing or older than 3.10: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments: install its venv package" \
		"(Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@[ -x $(BIN)/pip ] || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing jobflowd[$(EXTRAS)] into $(VENV), which takes a minute the first time"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@
