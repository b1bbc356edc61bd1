# Needs Python 3.11 or newer, make and git. Every target makes the environment in .venv first, if it is missing or old.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.DEFAULT_GOAL := help
.PHONY: help demo test slow libraries lint types check docs table bench fuzz clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /\1	/' | expand -t 10

demo: $(READY) ## train a LoRA on a real model, merge it with PEFT and with Suture, compare
	$(BIN)/python demo/run.py

test: $(READY) ## the tests, without the slow ones
	$(PYTEST)

slow: $(READY) ## the slow tests: real models, long crash tests
	$(PYTEST) -m slow

LIBRARIES := $(VENV)/libraries
libraries: $(LIBRARIES)/.ready ## compare with the libraries that quantise: GPT-QModel, AutoAWQ, torchao … (400 MB)
	PYTHONPATH=$(LIBRARIES) $(PYTEST) tests/formats/quantized tests/test_schemes_of_libraries.py

$(LIBRARIES)/.ready: tests/libraries.txt $(READY)
	rm -rf $(LIBRARIES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check setuptools wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --target $(LIBRARIES) -r $<
	touch $@

lint: $(READY) ## style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## mypy --strict
	$(BIN)/mypy

check: lint types test slow libraries ## all of the above but the demo

docs: $(READY) ## write docs/rules.md and docs/failure_modes.md from the source
	$(BIN)/python docs/make_pages.py

table: $(READY) ## write src/suture/arch/table.json from the installed Transformers (three minutes)
	OMP_NUM_THREADS=1 $(BIN)/python tools/make_table.py

bench: $(READY) ## time merges against a plain copy and PEFT (an hour, 60 GB of disk), and training against TRL
	$(BIN)/python benchmarks/bench_merge.py
	$(BIN)/python benchmarks/bench_train.py --quick

FUZZ_SECONDS := 60
fuzz: $(READY) ## fuzz every reader of untrusted files for FUZZ_SECONDS each, led by coverage (Linux)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	for target in $(patsubst fuzz/fuzz_%.py,%,$(wildcard fuzz/fuzz_*.py)); do \
		mkdir -p fuzz/out/$$target && $(BIN)/python fuzz/fuzz_$$target.py -max_total_time=$(FUZZ_SECONDS) \
			-artifact_prefix=fuzz/out/ fuzz/out/$$target tests/corpus/found/$$target || exit 1; \
	done

clean: ## remove everything that make has made
	rm -rf $(VENV) demo/out fuzz/out benchmarks/results dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt hatch_build.py src/suture/floats.h src/suture/noise.c src/suture/execute/fused.c src/suture/verification/exact.c src/suture/formats/quantized/four_bits.c
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'Suture needs Python 3.11 or newer. Name one: make PYTHON=python3.12 $(MAKECMDGOALS)'; exit 1; }
	@echo 'Making the environment in $(VENV): about 1.5 GB, most of it torch.'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)
