# `make demo` and `make test` each set everything up by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
CURVE ?= 10000 100000 1000000 10000000

.DEFAULT_GOAL := help

.PHONY: help
help:  ## Say what there is to make
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

.PHONY: setup
setup: $(STAMP)  ## Make the virtual environment

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "penchant needs Python 3.11 to 3.13; name one with: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	@touch $(STAMP)

.PHONY: demo
demo: $(STAMP)  ## Train, judge and show a personalised reward model on the planted world
	$(BIN)/penchant demo

.PHONY: test
test: lint  ## Everything that CI runs
	$(BIN)/pytest tests/unit --numprocesses auto --dist loadfile
	$(BIN)/pytest tests/cluster tests/e2e tests/gpu -m "not slow" --numprocesses 2 --dist loadfile --durations=10

.PHONY: slow
slow: $(STAMP)  ## Sweeps, jobs, faults and runs in a bucket, end to end, chats too: 15 minutes more
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[tracking-mlflow,tracking-wandb]'
	$(BIN)/pytest tests/unit/runtime/test_tracking.py
	$(BIN)/pytest tests/cluster tests/e2e -m slow

.PHONY: lint
lint: $(STAMP)  ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: $(STAMP)  ## Put the code in the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: bench
bench: $(STAMP)  ## Run every benchmark; each prints a table and writes runs/benchmarks/NAME.json; AUTHORS=a checkout of ml-postech/CoPL
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@for benchmark in $(filter-out %/rating_peers.py %/graph_trainer.py,$(wildcard benchmarks/[a-z]*.py)); do $(BIN)/python $$benchmark || exit 1; done
	$(BIN)/python benchmarks/graph_trainer.py $(if $(AUTHORS),--authors $(AUTHORS))
	$(BIN)/python benchmarks/graph_scale.py --users $(CURVE)

.PHONY: study
study: $(STAMP)  ## Run the fits that runs/ lacks (hours) and write docs/results*.md and .json; STUDY_DATA="--data alpaca-p4=FOLDER ..."
	$(BIN)/penchant study study/frozen.yaml --page docs/results.md $(STUDY_DATA)
	$(BIN)/penchant study study/experts.yaml --out runs/study-experts --page docs/results-experts.md \
		$(addprefix --data ,$(filter alpaca-p4=%,$(STUDY_DATA)))

.PHONY: docs
docs: reference  ## Build the documentation, strictly: build/docs/index.html
	$(BIN)/sphinx-build -q -W --keep-going --fresh-env docs build/docs

.PHONY: linkcheck
linkcheck: reference  ## Follow the documentation's links to other sites; needs a network
	$(BIN)/sphinx-build -q --fresh-env -b linkcheck docs build/links

.PHONY: reference
reference: $(STAMP)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/sphinx-apidoc -q --force --remove-old --no-toc --templatedir docs/templates -o docs/reference \
		platform/penchant '*/migrations' '*/__main__.py'

.PHONY: clean
clean:  ## Remove the environment and what tools left
	rm -rf $(VENV) build docs/reference .mypy_cache .pytest_cache .ruff_cache .hypothesis platform/*.egg-info
