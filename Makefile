# `make demo` and `make test` do all their own set-up.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
FAISS  := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1 && echo faiss-gpu || echo faiss-cpu)
STAMP  := $(VENV)/.installed-$(FAISS)
PROTOS := $(sort $(wildcard proto/vitscope/v1/*.proto))

.PHONY: help install demo test check bench bench-check protos clean

help:
	@echo "make demo     set up, index 2,000 drawn scenes, serve and query them"
	@echo "make test     set up and run all tests"
	@echo "make check    linters, types, import rules, stub freshness and tests"
	@echo "make bench    measure everything into vitscope-bench (BENCH=--quick: in 20 minutes)"
	@echo "make bench-check  fail where a ratio is worse than in benchmarks/baseline.json"
	@echo "make protos   generate the stubs from proto/"
	@echo "make install  only the set-up, in $(VENV)"

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[all,$(FAISS),dev]'
	@touch $@

demo: install
	$(BIN)/vitscope demo --out vitscope-demo

test: install
	$(BIN)/python -m pytest

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python proto/generate.py --check
	$(BIN)/python -m pytest

bench: install
	$(BIN)/vitscope bench $(BENCH)

bench-check: install
	$(BIN)/vitscope bench store query --quick --out vitscope-bench-check --check benchmarks/baseline.json

protos: install
	$(BIN)/python proto/generate.py

clean:
	rm -rf $(VENV) vitscope-demo vitscope-bench vitscope-bench-check .mypy_cache .ruff_cache .pytest_cache .hypothesis
