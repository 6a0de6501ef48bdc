# One word for each thing, the same here and in CI. Everything happens in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What is installed there: enough to train and export, then all of it.
TRAINS := $(VENV)/.trains
INSTALLED := $(VENV)/.installed

.PHONY: quickstart test lint types contract unit format install clean bench fuzz gpu-check

quickstart: $(TRAINS)
	PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/quickstart/run.sh quickstart

test: lint types contract unit

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(INSTALLED)
	$(BIN)/mypy

contract: $(INSTALLED)
	$(BIN)/lint-imports

# A file's tests run in one process, which makes once what they share. tests/conftest.py says which
# files begin.
unit: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# PEERS="genai:int4=FOLDER --python genai=VENV/bin/python" puts others beside: benchmarks/inference.py.
bench: $(INSTALLED)
	$(BIN)/plc fetch smollm2-135m
	$(BIN)/python benchmarks/make_bundles.py build/bench
	$(BIN)/python benchmarks/inference.py plc:int4=build/bench/int4 plc:int8=build/bench/int8 \
		plc:float=build/bench/none $(PEERS) --json

# GPU="--limit 420 --wheels FOLDER" says how: benchmarks/gpu_check.py. Without a GPU, on stand-ins.
gpu-check: $(INSTALLED)
	$(BIN)/python benchmarks/gpu_check.py --output build/gpu-check $(GPU)

# FUZZ="--atheris test_bundles" chooses how and what: tests/fuzz/deep.py.
MINUTES ?= 5
fuzz: $(INSTALLED)
	$(BIN)/python tests/fuzz/deep.py --minutes $(MINUTES) $(FUZZ)

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(INSTALLED)

# The CPU build of torch is a third of the size of the default one; where a machine offers only
# another build, TORCH= overrides the pin.
TORCH ?= torch==2.13.0

$(TRAINS): EXTRAS := train,export
$(INSTALLED): EXTRAS := dev
$(TRAINS) $(INSTALLED): setup.cfg setup.py pyproject.toml $(wildcard runtime/kernels/*.cc runtime/kernels/*.h runtime/kernels/*.inc)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS)]"
	touch $(TRAINS) $@

clean:
	rm -rf $(VENV) build dist quickstart *.egg-info
