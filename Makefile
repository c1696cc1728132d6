# Each target sets up what it needs: `make train` and `make test` work in a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
ARGS ?=
SUITE ?= step
# The size at which `make docs` runs the tutorials: smoke, that of tests, or full, minutes each.
TUTORIALS ?= smoke
# Optional dependencies of pyproject.toml beside those of requirements.txt, such as cuda13 or ray,slurm.
EXTRAS ?=
comma := ,
EXTRAS_READY := $(patsubst %,.venv/.extra-%,$(subst $(comma), ,$(EXTRAS)))

.DEFAULT_GOAL := help
.PHONY: help setup train test lint format docs benchmark clean

help: ## this list
	@echo "make TARGET [ARGS=...] [EXTRAS=...] [PYTHON=...]"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | \
		while IFS='|' read -r name text; do printf '%-12s%s\n' "$$name" "$$text"; done
	@echo "ARGS are for the program: make train ARGS=--config.seed=1. EXTRAS are installed first: make train EXTRAS=cuda13."

setup: $(READY) $(EXTRAS_READY) ## .venv with the pinned versions of requirements.txt

$(READY): requirements.txt pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed; name one with PYTHON=..." >&2; exit 2; }
	@echo "setting up .venv with the $$(wc -l < requirements.txt) packages of requirements.txt: one to four minutes, without further output"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@# pip compiles what it copies; with PYTHONDONTWRITEBYTECODE every process would compile this package.
	@$(BIN)/python -m compileall -q kfrtrl_jax
	@touch $(READY)

.venv/.extra-%: $(READY)
	@grep -q '^$* = \[' pyproject.toml || { echo "error: pyproject.toml has no extra '$*'" >&2; exit 2; }
	@echo "installing the extra $*: this may take minutes, without further output"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.txt --no-build-isolation --editable '.[$*]'
	@touch $@

train: setup ## the default experiment: learns to repeat strings, one to three minutes with setting up; logs to runs/copy
	$(BIN)/python -m experiments.train --config=configs/copy.py --workdir=runs/copy $(ARGS)

test: setup ## all tests, in two processes, about ten minutes; ARGS="-k learner" chooses some
	$(BIN)/python -m pytest --numprocesses=2 --dist=worksteal $(ARGS)

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## what ruff can put right by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup .venv/.extra-docs ## the pages as a site, in build/site; TUTORIALS=full runs the tutorials at full size
	KFRTRL_TUTORIAL_SCALE=$(TUTORIALS) NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

benchmark: setup ## speeds as ratios to measured floors; SUITE=step, flax, scaling, peers, memory or compile
	$(BIN)/python -m experiments.benchmark --suite=$(SUITE) --out=runs/benchmark_$(SUITE).json $(ARGS)

clean: ## removes .venv and what was built
	rm -rf .venv build dist *.egg-info
