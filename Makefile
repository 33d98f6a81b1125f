# `make` lists the targets. demo, test, bench, lint and build run in .venv, which the first of them
# makes; gpu runs in the Python at hand. Variables: PYTHON, MAX_JOBS, and those of setup.py.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.installed
PY := $(VENV)/bin/python
CXX_FILES = find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh'

.PHONY: help demo test bench sass lint format build gpu clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */\1\t/' | expand -t 10

demo: build  ## train small models and plot the results into runs/
	$(PY) -m torchcalc demo --out runs/demo
	$(PY) -m torchcalc features --out runs/features

# With nvcc at hand the CUDA kernels are compiled even where torch has no CUDA to run them; then, to
# save time, for one architecture.
test: export TORCHCALC_CUDA ?= $(if $(shell command -v nvcc),1)
test: export TORCH_CUDA_ARCH_LIST ?= $(if $(shell command -v nvidia-smi),,9.0)
test: build  ## build and run all tests, on the CPU's kernels and on the CUDA code run by the CPU
	$(PY) -m pytest -n auto --durations=20
	$(PY) tests/cuda_host --all-kernels -n auto -q
	$(PY) tests/cuda_host --sanitize races -n auto -q tests/test_forward.py \
		tests/test_derivatives.py::test_hessian

bench: build  ## compare with eager PyTorch and torch.compile
	$(PY) -m benchmarks

sass: export TORCHCALC_CUDA := 1
sass: export TORCH_CUDA_ARCH_LIST ?= 9.0
sass: build  ## without a GPU: print and check what the CUDA kernels' machine code costs
	$(PY) tools/sass.py

lint: $(READY)  ## check format, style and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(CXX_FILES) | xargs $(VENV)/bin/clang-format --dry-run -Werror
	$(VENV)/bin/mypy --strict torchcalc

format: $(READY)  ## rewrite the sources in the project's format
	$(VENV)/bin/ruff check --fix-only
	$(VENV)/bin/ruff format
	$(CXX_FILES) | xargs $(VENV)/bin/clang-format -i

build: $(READY)  ## compile the kernels into torchcalc/, only what has changed
	$(PY) setup.py --quiet build_ext --inplace

gpu:  ## on a GPU machine: build, test and measure within 10 minutes, with its own torch, offline
	$(PYTHON) -m tools.gpu

clean:  ## remove everything that make has made
	rm -rf $(VENV) build dist runs *.egg-info torchcalc/*.so
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# The last line's file says that the lines before it went well.
$(READY): requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
