# make demo: measure this machine and render the page.   make test: run the tests.
# make lint: ruff and mypy.   make gpu: everything, on a GPU box.   make help: this list.
# make compile-check: compile every Triton kernel for every target; needs no GPU.
# make compile-check-quick: the most telling cases of each kernel, in two minutes.
# make instrument, make families: show on this machine what docs/instrument.md and
# docs/families.md claim (a quarter of an hour each).

PYTHON ?= python3
VENV   ?= .venv
# For an index or a wheel folder of your own: make demo PIP_FLAGS='--find-links wheels'
PIP_FLAGS ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test test-slow lint format compile-check compile-check-quick instrument families clean
.PHONY: gpu gpu-here gpu-tests gpu-suites gpu-models gpu-proofs

help:
	@sed -n '1,6s/^# //p' Makefile

demo: $(READY)
	@echo "==> attnbench run quick: verify and measure, then render the page"
	@$(BIN)/attnbench run quick

test: $(READY)
	@echo "==> pytest (quick tests; 'make test-slow' runs the rest)"
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(ARGS)

test-slow: $(READY)
	@echo "==> pytest (slow tests only)"
	@$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(READY)
	@echo "==> ruff (lint, format) and mypy --strict"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(READY)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

compile-check: $(READY)
	@echo "==> every Triton kernel in every shipped configuration, compiled for GPUs that are not here"
	@$(BIN)/attnbench compile-check --all $(ARGS)

# Kept apart, so that it does not take the place of the whole check on the page.
compile-check-quick: $(READY)
	@echo "==> the most telling Triton kernels, compiled for GPUs that are not here"
	@$(BIN)/attnbench compile-check --results build $(ARGS)

instrument: $(READY)
	@echo "==> false verdicts, overhead, agreement with other clocks; leave the machine alone"
	@$(BIN)/python tests/proofs instrument $(ARGS)

families: $(READY)
	@echo "==> what sparse and low-rank methods cost; leave the machine alone"
	@$(BIN)/python tests/proofs families $(ARGS)

# A point that fails (1) does not keep the next suite from running; anything else does.
each_suite = failed=0; for suite in $(1); do \
  $(BIN)/attnbench run $$suite --device cuda || { code=$$?; failed=1; [ $$code -eq 1 ] || exit $$code; }; \
  done; exit $$failed

# Each part alone, too: what was recorded is not measured again, so that a part that was cut off
# goes on when it is called again.
gpu: gpu-tests gpu-suites gpu-models gpu-proofs

gpu-here: $(READY)
	@$(BIN)/python -c "import sys, torch; sys.exit(None if torch.cuda.is_available() else 'make gpu needs an NVIDIA GPU that torch can see; torch.cuda.is_available() is False')"

gpu-tests: gpu-here
	@echo "==> GPU tests, and the instrument's test of itself"
	@$(BIN)/python -m pytest -m gpu
	@$(BIN)/attnbench doctor --selftest --device cuda
	@echo "==> conformance of every implementation and of every schedule, on the GPU"
	@$(BIN)/attnbench verify --device cuda '[!t]*' triton-gluon triton:tune=false \
	  triton:tune=false,schedule=persistent triton:tune=false,schedule=specialized

gpu-suites: gpu-here
	@echo "==> GPU suites, results and page in folders named after the GPU"
	@$(call each_suite,triton gpu gqa window decode approximation full)

gpu-models: gpu-here
	@echo "==> models of published sizes, trained and served on the GPU"
	@$(call each_suite,train-gpu generate-gpu)

gpu-proofs: gpu-here
	@echo "==> the goals of the fused Triton attention"
	@$(BIN)/python tests/goals results
	@echo "==> what the instrument says of itself here"
	@$(BIN)/python tests/proofs instrument agreement_cuda

# The environment is made once and made again when pyproject.toml or the pins change.
$(READY): pyproject.toml constraints.txt
	@echo "==> making $(VENV) with the pinned versions of constraints.txt"
	@$(PYTHON) -c "import sys; sys.exit(None if sys.version_info >= (3, 11) else 'attnbench needs Python 3.11 or newer; $(PYTHON) is ' + sys.version.split()[0] + ' (choose another: make PYTHON=python3.12)')"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist reports/out .mypy_cache .ruff_cache .benchmarks
