# Each target makes the environment it needs; nothing has to be done before.
VENV := .venv
PYTHON_IN := $(VENV)/bin/python
READY := $(VENV)/.ready

# Small models compute slower, not faster, with more threads than cores per process.
export OMP_NUM_THREADS ?= 1
# Files of tests at once, of which one starts many ranks (tests/conftest.py).
TEST_PROCESSES ?= 2
PYTEST := $(PYTHON_IN) -m pytest --numprocesses $(TEST_PROCESSES) --dist loadscope

.PHONY: help quickstart quickstart-seeds compare test test-fast test-layouts test-gpu test-sglang test-real test-image soak fuzz soak-collector mutants lint env clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(READY) ## distil a tiny student on this machine, minutes; writes runs/quickstart/
	$(PYTHON_IN) -m examples.quickstart

quickstart-seeds: $(READY) ## the same on several seeds, with intervals; about an hour
	$(PYTHON_IN) -m examples.quickstart --seeds 10 11 12 13 14 --out runs/quickstart_seeds

compare: $(READY) ## every way of learning from the teacher's text at equal compute; about an hour; resumes
	$(PYTHON_IN) -m examples.compare

test: $(READY) ## all tests that need neither a GPU nor SGLang
	$(PYTEST) -m "not gpu and not sglang and not layouts and not real"

test-fast: $(READY) ## those of them that start no ranks, no server and no training run
	$(PYTEST) -m "not gpu and not slow" tests/unit tests/engines/test_embedded.py tests/test_architecture.py

test-layouts: $(READY) ## every layout of four ranks; make test has each two settings together
	$(PYTHON_IN) -m pytest -m layouts tests/distributed

test-gpu: $(READY) ## the tests that need a CUDA device
	$(PYTHON_IN) -m pytest -m gpu

test-sglang: $(READY) ## the tests against a real SGLang server on the CPU (.venv-sglang, 2.6 GB)
	tools/make_sglang_env.sh
	$(PYTEST) -m sglang

test-real: $(READY) ## a real model of 135 M through all of it (fetches 0.1 to 0.3 GB; skipped without a network)
	$(PYTHON_IN) -m pytest -m real tests/real

test-image: $(READY) ## build the image for CPUs without Docker, and test it (root, buildah, debootstrap)
	$(PYTHON_IN) -m tools.check_image

soak: $(READY) ## kill runs of one and two ranks 30 times, and compare every bit; minutes
	$(PYTHON_IN) -m tests.soak_runs --kills 30

fuzz: $(READY) ## give the command thousands of bad inputs; minutes
	$(PYTHON_IN) -m tests.fuzz

soak-collector: $(READY) ## collect 10,000 rows from a bad endpoint through five kills; a minute
	$(PYTHON_IN) -m tests.soak_collector --rows 10000 --kills 5

mutants: $(READY) ## put faults into copies of the package, one by one; the tests have to fail
	$(PYTHON_IN) -m tests.mutants --jobs $(TEST_PROCESSES)

lint: $(READY) ## ruff (rules and format) and pyright
	$(PYTHON_IN) -m ruff check .
	$(PYTHON_IN) -m ruff format --check .
	$(PYTHON_IN) -m pyright --pythonpath $(PYTHON_IN)

env: $(READY) ## create .venv (PYTHON=/path/to/python chooses the interpreter)

$(READY): setup.py tools/make_env.sh
	tools/make_env.sh $(VENV)

clean: ## remove caches and .venv; runs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
