# Needs Python 3.11 or newer and make, nothing else: the rest goes into .venv/, .node/ and .tools/.

.DEFAULT_GOAL := help
SHELL := /bin/sh
PY := .venv/bin/python
# Twice quiet: errors only.
PIP := $(PY) -m pip install -qq --disable-pip-version-check
TESTS ?= tests
WORKERS ?= 2

# The first Python that is new enough and can make virtual environments.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)

# make cubins: what for.
ARCH ?= sm_90

# make gpu: seconds it may take, where rows go, where keys and cubins are kept, rows of other machines' calls,
# some cases only, and the commit where there is no .git.
DEADLINE ?= 540
OUT ?= gpu-out
WORK ?= .cache/gpu
RESUME ?=
ONLY ?=
COMMIT ?=

.PHONY: help setup ready demo test test-full lint format warm lock cubins gpu clean

help:
	@echo "make demo       prove and verify a real circuit (sets up what it needs)"
	@echo "make test       lint, types and the tests: a quarter of an hour on two cores"
	@echo "make test-full  the long tests too"
	@echo "make lint       ruff and mypy"
	@echo "make format     let ruff rewrite the layout"
	@echo "make lock       versions and hashes of what the images install, made anew"
	@echo "make setup      the environment of the tests, without running them"
	@echo "make cubins     the CUDA kernels compiled for ARCH=sm_90, to carry to a machine with a GPU"
	@echo "make gpu        on a machine with a GPU: its tests and measurements, within DEADLINE=540 seconds"
	@echo "make clean      remove all that make has made"

setup: .venv/test .node/installed .tools/installed

demo: .venv/core
	@$(PY) -m gpuprover.demo

lint: .venv/test
	@.venv/bin/ruff check --quiet .
	@.venv/bin/ruff format --quiet --check .
	@.venv/bin/mypy --no-error-summary

format: .venv/test
	@.venv/bin/ruff check --quiet --fix .
	@.venv/bin/ruff format --quiet .

test: ready
	@$(PY) -m pytest -n $(WORKERS) -m "not slow" $(TESTS)

test-full: ready
	@$(MAKE) --no-print-directory .venv/full
	@$(PY) -m pytest -n $(WORKERS) $(TESTS)

# What waits for the network side by side, then what needs a core.
ready:
	@$(MAKE) --no-print-directory -j3 setup
	@$(MAKE) --no-print-directory -j2 lint warm

# Both curves at once: else every worker of the tests would compile the same code.
warm: .venv/core
	@echo "Compiling the kernels ..."
	@for curve in bn254 bls12-381; do .venv/bin/gpuprover warmup --quiet --curve $$curve & done; wait

# One file for every system and Python from 3.11 on; without the index's address, which is the installer's business.
lock: .venv/full
	@for extras in server cuda13,server; do \
		.venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header \
			--no-emit-index-url --no-annotate $$(echo $$extras | sed 's/^/--extra /; s/,/ --extra /g') pyproject.toml \
			--output-file deploy/locks/$$(echo $$extras | tr , -).txt || exit 1; \
	done
	@echo 'setuptools>=77' | .venv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
		--generate-hashes --no-header --no-emit-index-url --no-annotate - --output-file deploy/locks/build.txt

# To be carried to a machine with a GPU: no kernel is compiled there. What fits the sources already is kept.
cubins: .venv/test
	@$(PY) -m gpuprover.cuda.build --arch "$(ARCH)" --output kernels/cubins

# Installs nothing and makes no environment: for machines that have what is needed, and no network.
gpu:
	@GPUPROVER_COMMIT="$${GPUPROVER_COMMIT:-$(COMMIT)}" $(if $(findstring command,$(origin PYTHON)),$(PYTHON),python3) \
		-m gpuprover.bench.gpu --deadline "$(DEADLINE)" --output "$(OUT)" --work "$(WORK)" --only "$(ONLY)" \
		$(addprefix --resume ,$(RESUME)) $(GPU_OPTIONS)

clean:
	rm -rf kernels/cubins .venv .node .tools demo-out build dist *.egg-info .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer with venv found; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Making .venv with $(PYTHON) ..."
	@$(PYTHON) -m venv .venv

.venv/core: pyproject.toml | .venv/bin/python
	@echo "Installing gpuprover into .venv ..."
	@$(PIP) --editable .
	@touch $@

.venv/test: pyproject.toml | .venv/bin/python
	@echo "Installing gpuprover and its test tools into .venv ..."
	@$(PIP) --editable '.[test]'
	@touch .venv/core $@

.venv/full: pyproject.toml | .venv/test
	@$(PIP) --editable '.[full]'
	@touch .venv/core .venv/test $@

# Without npm the interop tests skip, with this as the reason; .ci/run does not accept that.
.node/installed: tests/interop/package.json tests/interop/package-lock.json tests/interop/install.py | .venv/bin/python
	@echo "Installing snarkjs, circom2, solc and Midnight's clients into .node ..."
	@$(PY) tests/interop/install.py || true

# Without them the tests of deploy/ skip in part, with this as the reason; .ci/run does not accept that either.
.tools/installed: tests/deploy/install.py | .venv/bin/python
	@echo "Installing kustomize, promtool and docker-compose into .tools ..."
	@$(PY) tests/deploy/install.py || true
