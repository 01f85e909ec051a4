.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
export DAGSTER_HOME ?= $(CURDIR)/.dagster

.PHONY: help install demo test test-all audit docs ui clean
export NO_MKDOCS_2_WARNING = 1

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

.venv/.runtime: setup.cfg pyproject.toml constraints.txt scripts/install.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m scripts.install
	@touch $@

.venv/.test: .venv/.runtime
	$(BIN)/python -m scripts.install test
	@touch $@

$(DAGSTER_HOME)/dagster.yaml: | brainmri_dagster/dagster.yaml
	@mkdir -p $(DAGSTER_HOME)
	@cp brainmri_dagster/dagster.yaml $@

install: .venv/.runtime  ## install into .venv

demo: .venv/.runtime $(DAGSTER_HOME)/dagster.yaml  ## run the whole graph on the built-in synthetic data set
	$(BIN)/brainmri pipeline --config configs/demo.yaml

test: .venv/.test  ## lint, types, import contract, documentation and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict --quiet
	$(BIN)/pytest

test-all: .venv/.test  ## the tests, the long ones included
	BRAINMRI_LONG_TESTS=1 $(BIN)/pytest

audit: .venv/.test  ## ask for known vulnerabilities of the pinned packages
	$(BIN)/python -m scripts.audit

docs: .venv/.test  ## build the documentation into site/
	$(BIN)/mkdocs build --strict --quiet

ui: .venv/.runtime $(DAGSTER_HOME)/dagster.yaml  ## open the Dagster UI on 127.0.0.1:3000
	$(BIN)/dagster dev --host 127.0.0.1 --port 3000 --workspace workspace.yaml

clean:  ## remove the environment and the caches, not the data
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
