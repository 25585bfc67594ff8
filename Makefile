# What a developer runs. Each target brings what it needs and is missing, from a fresh Debian or Ubuntu on.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON := .venv/bin/python
# Pytest workers; each starts a Redis and a PostgreSQL of its own. One more than the least machine has cores: half of the
# time tests wait, for leases above all.
JOBS ?= 3
PYTEST := $(PYTHON) -m pytest --numprocesses $(JOBS)
# Words for the command: make demo ARGS="--slots 4", make test ARGS="-k drain".
ARGS ?=

.PHONY: help
help:  ## List the targets
	@echo 'make demo        a whole installation on this machine: queue, database, agent, builds. Ctrl-C ends it'
	@echo 'make test        lint, then every test'
	@echo 'make test-fast   unit and integration tests, the slow ones left out: under 90 seconds'
	@echo 'make lint        ruff, mypy --strict, shellcheck'
	@echo 'make deb         the Debian package, in dist/'
	@echo 'make bench       side by side with other agents, as a table'
	@echo 'make clean       remove the virtual environment, caches and build products'
	@echo
	@echo 'Words for the command: make demo ARGS="--help", make test ARGS="-k drain -x"; JOBS=4 pytest workers;'
	@echo 'TESTS_FULL=1 does what is about many as often as the faults ask for.'

.PHONY: demo
demo:  ## exec: Ctrl-C and SIGTERM reach the demo itself, which then drains
	@packaging/dev/packages.sh demo
	@packaging/dev/venv.sh demo
	@exec .venv/bin/build-agent demo $(ARGS)

.PHONY: test
test: lint
	@$(PYTEST) $(ARGS)

.PHONY: test-fast
test-fast: ready
	@$(PYTEST) -m 'not slow and not machine' tests/unit tests/integration $(ARGS)

.PHONY: lint
lint: ready
	@packaging/dev/lint.sh

.PHONY: deb
deb:
	@packaging/dev/packages.sh deb
	@packaging/deb/build.sh $(ARGS)

.PHONY: bench
bench: ready
	@$(PYTHON) -m benchmarks $(ARGS)

.PHONY: ready
ready:
	@packaging/dev/packages.sh test
	@packaging/dev/venv.sh test

.PHONY: clean
clean:
	@rm -rf .venv build dist ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -path ./.git -prune -o -type d -name __pycache__ -exec rm -rf {} +
	@echo 'Removed the virtual environment, caches and build products.'
