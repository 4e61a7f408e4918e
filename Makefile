# Every target sets up .venv by itself: it needs Python 3.11 or 3.12 with venv, a C compiler and nothing else.
# An existing .venv is reused, and brought up to date whenever pyproject.toml or constraints.txt changes.

SHELL := /bin/sh
VENV := .venv
STAMP := $(VENV)/.installed
IN_RANGE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))

# The first Python that runs and has the right version; override it with `make PYTHON=path`.
PYTHON ?= $(shell for name in python3.11 python3.12 python3; do \
	if $$name -c '$(IN_RANGE)' >/dev/null 2>&1; then echo $$name; break; fi; done)

# Workers of the tests: many tests start several processes of their own.
WORKERS ?= 2

.PHONY: demo test nightly check format parity bench setup clean
.DEFAULT_GOAL := test

demo: $(STAMP)  ## the whole line on made-up clips: data, training, samples and their score in runs/demo
	$(VENV)/bin/megavideo demo

test: $(STAMP)  ## all tests but the slow ones
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

nightly: $(STAMP)  ## the slow tests alone: whole matrices, kills, many damaged inputs; hours
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder -m slow

check: $(STAMP)  ## lint, format and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(STAMP)  ## rewrite the code in the project's format
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

parity: $(STAMP)  ## every layout of the matrix beside one process of plain torch
	$(VENV)/bin/megavideo parity --matrix full

bench: $(STAMP)  ## speed of the model beside diffusers' on this machine
	$(VENV)/bin/python tools/bench/model_speed.py

setup: $(STAMP)  ## only the virtual environment

$(STAMP): pyproject.toml constraints.txt
	@if [ ! -x $(VENV)/bin/python ]; then \
		if [ -z "$(PYTHON)" ]; then \
			echo "error: megavideo needs Python 3.11 or 3.12, and found neither as python3.11, python3.12 or python3." >&2; \
			echo "Install one of them, or name it: make PYTHON=path/to/python3.11" >&2; exit 1; fi; \
		echo "setting up $(VENV) with $(PYTHON)"; \
		$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
			echo "error: $(PYTHON) cannot make a virtual environment; install its venv package" >&2; exit 1; }; fi
	@$(VENV)/bin/python -c '$(IN_RANGE)' || { \
		echo "error: $(VENV) holds a Python that is neither 3.11 nor 3.12; remove $(VENV) and run make again" >&2; exit 1; }
	$(VENV)/bin/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e '.[dev]'
	@touch $@

clean:  ## caches and built packages; runs and .venv stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find megavideo tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
