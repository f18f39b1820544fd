# `make demo` and `make test` do all the set-up on a machine that has Python 3.11 or newer and make.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
DIR ?= demo-output
EXTRAS ?= cpu,tensorrt-rtx,openvino,docs,test,dev
# Any value: install what requirements-hashed.txt pins, each file compared with its sha256 (docs/security.md).
HASHES ?=
# More arguments for the installation of torch (an index with CPU builds, say).
TORCH_PIP_ARGS ?=
# A worker for each core, each with one thread of its own; the tests of a file share their fixtures.
PYTEST_ARGS ?= --numprocesses auto --maxprocesses 8 --dist loadfile

bin := $(VENV)/bin
# Relative and absolute VENV both work; the stamp carries the extras, so that other extras are another set-up.
comma := ,
stamp := $(VENV)/.installed-$(subst $(comma),+,$(EXTRAS))$(if $(HASHES),-hashes)
torch = $(shell grep '^torch==' constraints.txt)
pip := $(bin)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup demo docs test nightly families soak pins audit schemas lint format clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(stamp) ## create .venv and install everything, once

# torch goes first and pinned: an open range takes the newest CUDA build, with several GB of packages that a CPU does not need.
$(stamp): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and f"dq-deploy needs Python 3.11 or newer, and $(PYTHON) is {v}: set PYTHON=")'
	test -x $(bin)/python || $(PYTHON) -m venv $(VENV)
	$(if $(HASHES),$(by_hash),$(by_version))
	@touch $@

define by_version
$(pip) install --quiet --constraint constraints.txt --upgrade pip
$(pip) install --quiet $(TORCH_PIP_ARGS) $(torch)
$(pip) install --quiet --constraint constraints.txt --build-constraint constraints.txt --editable '.[$(EXTRAS)]'
endef

# Everything that is pinned, whatever EXTRAS are. torch alone has no hash there: an index of CPU builds has other files than PyPI.
define by_hash
$(pip) install --quiet --no-deps --require-hashes --requirement requirements-hashed.txt
$(pip) install --quiet --constraint constraints.txt $(TORCH_PIP_ARGS) $(torch)
$(pip) install --quiet --no-deps --no-build-isolation --editable .
$(pip) check
endef

demo: $(stamp) ## quantize, export, build, check, time and sample the built-in model; writes DIR/index.html (DIR=demo-output)
	$(bin)/dq-deploy demo -o $(DIR) --force

docs: $(stamp) ## build the documentation's site; writes site/index.html (searching it takes a server: python -m http.server -d site)
	NO_MKDOCS_2_WARNING=1 $(bin)/python -m mkdocs build --strict --quiet

test: lint ## lint, then run the tests (15 minutes on two cores)
	OMP_NUM_THREADS=1 $(bin)/python -m pytest $(PYTEST_ARGS)

families: $(stamp) ## take every denoiser class of the catalogue through all stages; writes the table of docs/families.md
	rm -rf families-output
	OMP_NUM_THREADS=1 $(bin)/python -m pytest $(PYTEST_ARGS) --dist load tests/families --families --family-rows families-output; \
	  result=$$?; $(bin)/python -m tests.families.table families-output && exit $$result

nightly: lint ## run every test, every denoiser class, the soak and the audit: hours
	OMP_NUM_THREADS=1 $(bin)/python -m pytest $(PYTEST_ARGS) --nightly
	$(MAKE) families soak audit

# Hours are as good as minutes: SOAK_MINUTES of fuzzing and of load on each runtime, and SOAK_KILLS.
SOAK_MINUTES ?= 10
SOAK_KILLS ?= 200
soak: $(stamp) ## fuzz the reading of files, kill runs at random, and load the runner with 8 threads; writes soak-output/
	$(pip) install --quiet --constraint constraints.txt --editable '.[soak]'
	OMP_NUM_THREADS=1 $(bin)/python -m tests.soak --minutes $(SOAK_MINUTES) --kills $(SOAK_KILLS) -o soak-output

pins: $(stamp) ## write requirements-hashed.txt again: the sha256 of every file of every pinned version, as PyPI has them
	$(pip) install --quiet --constraint constraints.txt --editable '.[audit]'
	$(bin)/uv pip compile --quiet --no-config --no-deps --no-annotate --universal --python-version 3.11 --generate-hashes --no-emit-package torch \
	  --custom-compile-command 'make pins' constraints.txt -o requirements-hashed.txt

AUDIT_SERVICE ?= pypi
audit: $(stamp) ## ask for known vulnerabilities of every pinned package (AUDIT_SERVICE=pypi or osv)
	$(pip) install --quiet --constraint constraints.txt --editable '.[audit]'
	$(bin)/python -m tests.supply_chain.audit --service $(AUDIT_SERVICE)

schemas: $(stamp) ## write docs/schemas again
	$(bin)/python -m dq_deploy.schemas docs/schemas

lint: $(stamp) ## ruff check, ruff format --check, the contracts of imports, what tests import, mypy
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/lint-imports --no-logo
	$(bin)/python -m tests.first_party
	$(bin)/mypy

format: $(stamp) ## let ruff fix what it can
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

clean: ## remove the environment, the caches and the builds
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist site
