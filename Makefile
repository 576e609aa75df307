# Targets for people; `make` alone lists them.
PYTHON ?= python3
BIN := .venv/bin
UV := UV_COMPILE_BYTECODE=1 $(BIN)/uv pip
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench lock

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/' | expand -t 16

setup: .venv/ready ## create .venv with everything requirements.lock pins, hash-checked

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "uv>=0.9,<1"
	$(UV) install --quiet --require-hashes -r requirements.lock
	$(UV) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: .venv/ready ## train and evaluate DenseNet-121 on phantom radiographs
	$(BIN)/python train.py experiment=demo

test: .venv/ready ## run the test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/ready ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready ## measure speed against plain and hand-tuned loops, threads and MPI
	$(BIN)/python experiments/throughput/run.py
	$(BIN)/python experiments/generation_speed/run.py
	$(BIN)/python experiments/search_speed/run.py
	$(BIN)/python experiments/embedding_speed/run.py
	$(BIN)/python experiments/blip_speed/run.py

lock: ## renew requirements.lock from pyproject.toml
	$(UV) compile --quiet --upgrade --all-extras --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-header pyproject.toml -o requirements.lock
