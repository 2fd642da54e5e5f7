# `make` lists the targets. PYTHON chooses the interpreter, DEVICE=cpu|cuda the packages, TORCH_INDEX=URL a package index
# that is asked for torch alone; ARGS adds to a command.

PYTHON ?= python3
DEVICE ?=
TORCH_INDEX ?=
ARGS ?=

TWO_AT_A_TIME := -n 2 --dist loadfile

BIN := .venv/bin
SETUP := $(PYTHON) scripts/setup_env.py $(if $(DEVICE),--device $(DEVICE)) $(if $(TORCH_INDEX),--torch-index "$(TORCH_INDEX)")

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev quickstart quickstart-tools gpu-check ablation-small docs test test-fast bench-parts chaos soak check format clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 25

setup: ## make .venv with all packages, or bring it up to date
	@$(SETUP)

setup-dev: ## the same, with the tools for tests and checks
	@$(SETUP) --dev

quickstart: setup ## train a tiny model with the whole stack on two cores or one GPU; ARGS="..." is passed on
	@$(BIN)/python scripts/build_quickstart_model.py --output .cache/quickstart/model
	@$(BIN)/python data/quickstart_prompts.py --output .cache/quickstart/prompts
	$(BIN)/dapo-openrlhf train --config configs/quickstart_$$($(SETUP) --which).yaml $(ARGS)

quickstart-tools: setup ## the same with turns: a tiny model learns to call a calculator, on two cores; ARGS="..." is passed on
	@$(BIN)/python scripts/build_tools_model.py --output .cache/tools/model
	@$(BIN)/python data/quickstart_prompts.py --output .cache/tools/prompts
	$(BIN)/dapo-openrlhf train --config configs/quickstart_tools_cpu.yaml $(ARGS)

gpu-check: ## set up, check and measure one GPU or two within ten minutes; ARGS="--stock" adds stock OpenRLHF
	@$(PYTHON) scripts/setup_env.py --device cuda $(if $(TORCH_INDEX),--torch-index "$(TORCH_INDEX)")
	@scripts/gpu_check.sh $(ARGS)

ablation-small: setup ## the paper's Table 1 on a small model: 18 runs, then table and figures; goes on where it stopped
	@$(BIN)/python scripts/build_ablation_model.py --output .cache/ablation/model --threads 2
	@$(BIN)/python data/ablation_prompts.py --output .cache/ablation/prompts
	$(BIN)/python -m scripts.experiments.ablation --config configs/ablation_cpu.yaml $(ARGS)

test: setup-dev ## run every test; ARGS="..." is passed to pytest
	$(BIN)/python -m pytest $(TWO_AT_A_TIME) $(ARGS)

docs: setup-dev ## write the pages of docs/ that are generated from the code
	$(BIN)/python scripts/write_reference.py

test-fast: setup-dev ## run the tests that take a minute or two: no Ray, vLLM or DeepSpeed, and none that takes seconds
	$(BIN)/python -m pytest $(TWO_AT_A_TIME) -m "not real and not long" $(ARGS)

bench-parts: setup ## rates of the parts that a run's controller spends its time in, as ratios to a yardstick
	$(BIN)/python scripts/bench_parts.py $(ARGS)

chaos: setup ## put faults into runs on this machine, for an hour or more, and write a table; ARGS="--short" for two minutes
	$(BIN)/python -m scripts.chaos $(ARGS)

soak: setup ## the growth of every process over 5,000 steps of the real stack; ARGS="--steps N" changes that
	@$(BIN)/python scripts/build_quickstart_model.py --output .cache/quickstart/model
	@$(BIN)/python data/quickstart_prompts.py --output .cache/quickstart/prompts
	$(BIN)/python scripts/soak.py $(ARGS)

check: setup-dev ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup-dev ## format the code and sort its imports
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

clean: ## remove .venv, caches and build artefacts; runs/ stays
	rm -rf .venv .cache build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
