# Every target does all the set-up it needs: Python 3.11 to 3.13, make and git are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
READY := $(VENV)/.ready
DISTRIBUTED := $(VENV)/.distributed
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true

# Scripts and packages in an environment name its folder: one that was moved or copied would run the code there.
MOVED := $(shell test ! -e $(BIN)/openmed -o -L $(VENV) || head -n 3 $(BIN)/openmed | grep -qF "$(CURDIR)/$(BIN)/" || echo moved)

.PHONY: $(MOVED) distributed demo test test-long test-fast two-hosts fuzz chaos lint format deps docs up down lock clean help

help:  ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

$(READY): requirements.lock distributed-packages.txt pyproject.toml $(MOVED)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "OpenMed needs Python 3.11 to 3.13; choose one with make PYTHON=python3.12 ..."; exit 2; }
	@$(if $(MOVED),rm -rf $(VENV))
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@echo "Installing the locked environment"
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes \
		--excludes distributed-packages.txt -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

$(DISTRIBUTED): $(READY)
	@echo "Installing what several hosts need beyond it"
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	@touch $@

data/films.csv: | $(READY)
	@said=$$($(BIN)/dvc pull data.dvc 2>&1) || { echo "$$said"; exit 4; }

demo: $(READY) data/films.csv  ## Run both DAGs once (DATA=films.zip LIMIT=600 for your own films)
	@$(BIN)/openmed demo $(if $(DATA),--data "$(DATA)") $(if $(LIMIT),--limit $(LIMIT))

test: $(READY) data/films.csv  ## Run all tests with coverage
	@OMP_NUM_THREADS=1 $(BIN)/python -m slipcover --source openmed,pipeline --json --out .coverage.json \
		-m pytest -m "not long" -n 3 --dist loadfile --no-loadscope-reorder --durations=15
	@$(BIN)/python -m slipcover --merge .coverage.json --out .coverage.json --skip-covered --fail-under 95

test-long: $(READY)  ## Run the trainings that `make test` leaves out
	@$(BIN)/python -m pytest -m long

test-fast: $(READY)  ## Run the tests that need no services and no whole pipelines
	@$(BIN)/python -m pytest -m "not slow and not long"

# Apart from the environment: a driver of Postgres that is LGPL, and an S3 server.
TWO_HOSTS := $(VENV)/.two-hosts
$(TWO_HOSTS): $(DISTRIBUTED) tests/two_hosts/requirements.lock
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --target $@ --no-deps --require-hashes \
		-r tests/two_hosts/requirements.lock
	@touch $@

two-hosts: $(TWO_HOSTS)  ## Run both DAGs on two hosts without a common disk, then nine faults (as root)
	@PYTHONPATH=$(TWO_HOSTS) $(BIN)/python -m tests.two_hosts

fuzz: $(READY)  ## Read 20,000 damaged films and 2,000 damaged model folders: each is usable or refused once
	@$(BIN)/python -m tests.openmed.films.fuzzing --mutants 20000
	@$(BIN)/python -m tests.openmed.inference.folder_fuzzing --mutants 2000

chaos: $(READY)  ## Kill trainings 200 times: each must end bit for bit as an undisturbed one
	@$(BIN)/python -m tests.openmed.training.chaos --kills 200

lint: $(READY)  ## Check style, layers and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/mypy

deps: $(READY)  ## Write the code that each stage runs into dvc.yaml
	@$(BIN)/python -m tests.stage_deps

docs: $(READY)  ## Build the pages of documentation into site/; a broken link ends it
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(READY)  ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

up: $(READY) data/films.csv  ## Start Airflow and MLflow for daily use
	@$(BIN)/openmed up

down: $(READY)  ## Stop them, from any terminal
	@$(BIN)/openmed down

distributed: $(DISTRIBUTED)  ## Install what several hosts need: docs/deployment.md

COMPILE := uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url
NAMES := grep -oE '^[a-z0-9][a-z0-9._-]*'
lock: export LC_ALL := C
lock:  ## Write requirements.lock anew, and which of its packages only several hosts need
	@$(COMPILE) --generate-hashes --all-extras pyproject.toml -o requirements.lock
	@$(COMPILE) --extra pipeline --extra dev -c requirements.lock pyproject.toml -o .default.lock
	@{ echo "# What requirements.lock has for the extra \`distributed\` alone; \`make\` leaves it out. Made by \`make lock\`."; \
		$(NAMES) .default.lock | sort -u >.default.names; \
		$(NAMES) requirements.lock | sort -u | grep -vxFf .default.names; } >distributed-packages.txt
	@rm .default.lock .default.names

clean:  ## Remove what stages and tests wrote; the environment and the registry stay
	@rm -rf artifacts site .pytest_cache .ruff_cache .mypy_cache .coverage.json
