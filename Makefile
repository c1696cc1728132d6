# Each target sets up what it needs: `make train` and `make test` work in a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
ARGS ?=
SUITE ?= step

.PHONY: setup train test lint format benchmark clean

setup: $(READY)

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed; name one with PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(READY)

train: $(READY)
	$(BIN)/python -m experiments.train --config=configs/copy.py --workdir=runs/copy $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest --numprocesses=2 --dist=worksteal $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(READY)
	$(BIN)/python -m experiments.benchmark --suite=$(SUITE) --out=runs/benchmark_$(SUITE).json $(ARGS)

clean:
	rm -rf .venv build dist *.egg-info
