# Three commands: `make run`, `make test`, `make bench`.
.DEFAULT_GOAL := help
SHELL := /bin/sh

# Debian's own interpreter: the first python3 on root's PATH may lie where an ordinary user cannot run it.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
SOURCES := $(shell find src bin -name __pycache__ -prune -o -print)
PYTEST_ARGS ?=

.PHONY: help run test lint format bench clean

help:
	@echo 'make run     run a container: makes .venv, installs utsuwa into it, runs the built-in image "hello"'
	@echo 'make test    lint, type-check, check the layers, run every test (as root: root and rootless)'
	@echo 'make lint    the first three of these'
	@echo 'make bench   measure against podman, docker and runc (root; installs them)'
	@echo 'make clean   remove what was built'

# No setuptools: its distutils-precedence.pth costs every start of the interpreter. No editable install, for the same reason.
$(VENV)/.made:
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || sh scripts/test-deps.sh python3-venv
	$(PYTHON) -m venv $(VENV)
	$(PIP) install hatchling
	$(BIN)/pip --quiet uninstall --yes setuptools 2>/dev/null || true
	@touch $@

$(VENV)/.dependencies: $(VENV)/.made pyproject.toml
	$(PIP) install --no-build-isolation .
	@touch $@

$(VENV)/.tools: $(VENV)/.dependencies
	$(PIP) install --no-build-isolation '.[dev]'
	@touch $@

# A real install (0.5 s), redone whenever a source is newer: what runs is what is in the checkout.
$(VENV)/.installed: $(VENV)/.dependencies $(SOURCES) README.md LICENSE
	$(PIP) install --no-deps --no-build-isolation --force-reinstall .
	@touch $@

run: $(VENV)/.installed
	$(BIN)/utsuwa run --rm hello

lint: $(VENV)/.tools
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

# The lanes are one pytest run, so the last lines are pytest's own summary; tests/conftest.py fails the run when a lane did not run.
test:
	sh scripts/test-deps.sh
	$(MAKE) --no-print-directory $(VENV)/.tools $(VENV)/.installed
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

format: $(VENV)/.tools
	$(BIN)/ruff check --fix

bench: $(VENV)/.installed
	sh scripts/test-deps.sh podman runc docker.io docker-registry skopeo busybox-static libnftables1 libseccomp2 iptables iproute2 util-linux
	$(BIN)/python bench/run.py $(BENCH_ARGS)

clean:
	rm -rf $(VENV) .cache dist build
