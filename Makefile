# `make demo` and `make test` do all the set-up on a machine that has Python 3.11 or newer and make.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
DIR ?= demo-output
EXTRAS ?= cpu,tensorrt-rtx,openvino,docs,test,dev
# More arguments for the installation of torch (an index with CPU builds, say).
TORCH_PIP_ARGS ?=
# A worker for each core, each with one thread of its own; the tests of a file share their fixtures.
PYTEST_ARGS ?= --numprocesses auto --maxprocesses 8 --dist loadfile

bin := $(VENV)/bin
# Relative and absolute VENV both work; the stamp carries the extras, so that other extras are another set-up.
comma := ,
stamp := $(VENV)/.installed-$(subst $(comma),+,$(EXTRAS))
pip := $(bin)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup demo docs test soak schemas lint format clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(stamp) ## create .venv and install everything, once

# torch goes first and pinned: an open range takes the newest CUDA build, with several GB of packages that a CPU does not need.
$(stamp): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and f"dq-deploy needs Python 3.11 or newer, and $(PYTHON) is {v}: set PYTHON=")'
	test -x $(bin)/python || $(PYTHON) -m venv $(VENV)
	$(pip) install --quiet --constraint constraints.txt --upgrade pip
	$(pip) install --quiet $(TORCH_PIP_ARGS) $(shell grep '^torch==' constraints.txt)
	$(pip) install --quiet --constraint constraints.txt --build-constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

demo: $(stamp) ## quantize, export, build, check, time and sample the built-in model; writes DIR/index.html (DIR=demo-output)
	$(bin)/dq-deploy demo -o $(DIR) --force

docs: $(stamp) ## build the documentation's site; writes site/index.html (searching it takes a server: python -m http.server -d site)
	NO_MKDOCS_2_WARNING=1 $(bin)/python -m mkdocs build --strict --quiet

test: lint ## lint, then run every test
	OMP_NUM_THREADS=1 $(bin)/python -m pytest $(PYTEST_ARGS)

# Hours are as good as minutes: SOAK_MINUTES of fuzzing and of load each, and 200 kills.
SOAK_MINUTES ?= 10
soak: $(stamp) ## fuzz the reading of files, kill runs 200 times, and load the runner with 8 threads; writes soak-output/
	$(pip) install --quiet --constraint constraints.txt --editable '.[soak]'
	OMP_NUM_THREADS=1 $(bin)/python -m tests.soak --minutes $(SOAK_MINUTES) -o soak-output

schemas: $(stamp) ## write docs/schemas again
	$(bin)/python -m dq_deploy.schemas docs/schemas

lint: $(stamp) ## ruff check, ruff format --check, mypy
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy

format: $(stamp) ## let ruff mend what it can
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

clean: ## remove the environment, the caches and the builds
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist site
