# Two commands matter: `make run` and `make test`. Everything they need is made on the way.

.DEFAULT_GOAL := help

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.made-from-lock

.PHONY: help
help: ## Show what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# One environment for running and for developing, so that the two never differ.
$(STAMP): requirements-dev.lock requirements.lock pyproject.toml .ci/venv
	@.ci/venv requirements-dev.lock $(VENV)
	@touch $@

.PHONY: setup
setup: $(STAMP) ## Make .venv from the lock

.PHONY: run
run: export SECRETSVC_DATA_DIR ?= .run/data
run: export SECRETSVC_KEY_FILE ?= .run/kek
run: $(STAMP) ## Start the service on 127.0.0.1:8080, data under .run
	@exec $(VENV)/bin/secretsvc serve --with-worker

.PHONY: check
check: $(STAMP) ## Format, lint, types, direction of imports
	@$(VENV)/bin/ruff format --check secretsvc tests
	@$(VENV)/bin/ruff check secretsvc tests
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports

.PHONY: unit
unit: $(STAMP) ## Tests that need no server
	@$(PYTHON) -m pytest -m "not rig and not products and not bench"

.PHONY: test
test: rig-build ## All tests, real servers included
	@$(PYTHON) -m pytest -m "not products and not bench"

.PHONY: rig-build
rig-build: $(STAMP) ## Build the tests' real servers: minutes once, then cached
	@$(PYTHON) -m tests.rig.build

.PHONY: rig
rig: rig-build ## Start the real servers and print how to use them
	@exec $(PYTHON) -m tests.rig

.PHONY: bench
bench: rig-build ## Measure
	@$(PYTHON) -m pytest tests/bench -m bench -s
