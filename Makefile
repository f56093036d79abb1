# Two commands: make demo, make test. PYTHON chooses the interpreter; PIP_ARGS goes to pip (for a CPU-only torch, for instance).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_ARGS ?=

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(BIN)/vitrarium experiment quick

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Python's venv module is missing: on Debian, apt install python3-venv"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/pip install $(PIP_ARGS) -e .
	@touch $@

# Strict links, so that mypy can follow the renamed folders. They are made file by file: a folder that has changed since
# may hold a new one, so they are made again.
ROOMS := $(shell find api configs data eval models train -type d -not -name __pycache__)
$(VENV)/.installed-dev: pyproject.toml $(ROOMS) | $(BIN)/python
	$(BIN)/pip install $(PIP_ARGS) -e '.[dev]' --config-settings editable_mode=strict
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build *.egg-info
