# The two commands are `make demo` and `make test`: each makes .venv, installs torch and this package, and runs.
# All they need is Python >= 3.11 (PYTHON=...), gcc or clang, and an index to install from (pip's own configuration).

PYTHON ?= python3
VENV ?= .venv
TORCH_VERSION ?= 2.13.0
# What pip installs for torch, with options if need be; empty: see torch-installed below.
# An index of your own: make test TORCH_SPEC="torch==2.13.0+cpu --index-url ..."
TORCH_SPEC ?=
PYTEST_ARGS ?= -n 2 --maxschedchunk 1
DEMO_ARGS ?=
CONFORMANCE_ARGS ?= --jobs 2

# Threads that spin while they wait slow each other down tenfold where processes share cores.
export OMP_WAIT_POLICY ?= passive

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
READY := $(VENV)/.installed

.PHONY: demo test lint format types layers generated drift conformance torch-installed clean

demo: $(READY)
	$(BIN)/nsa-codegen demo $(DEMO_ARGS)

# pytest ends with 5, hence make with an error, if it collects nothing.
test: $(READY)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)
	$(BIN)/mypy

layers: $(READY)
	$(BIN)/python -m pytest tests/unit/test_layers.py

# The committed kernels: both presets, both directions, float32 for the CPU targets and bfloat16 for the GPU targets
# named here, and for CPUs that multiply pairs of it, whose float32 kernels are those of x86_64_v4 but for a few with
# schedules of their own. Binaries stay out of git. For some architectures only: make generated CPUS=x86_64_v3 GPUS="sm_90a sm_120a"
CPUS ?= x86_64_v4 x86_64_v3
PAIR_CPUS ?= x86_64_amx x86_64_v4_bf16
GPUS ?= sm_80 sm_86 sm_89 sm_90a sm_100a sm_103a sm_120a gfx942 gfx950
generated: $(READY)
	for preset in seed paper; do \
		for cpu in $(CPUS) $(PAIR_CPUS); do \
			NSA_CODEGEN_HOME=generated $(BIN)/nsa-codegen build --target $$cpu --preset $$preset --direction both || exit 1; \
		done; \
		for target in $(PAIR_CPUS) $(GPUS); do \
			NSA_CODEGEN_HOME=generated $(BIN)/nsa-codegen build --target $$target --preset $$preset --dtype bfloat16 \
				--direction both || exit 1; \
		done; \
	done

# Every committed text lowered again; the tests alone take a sample that turns with the day.
drift: $(READY)
	NSA_CODEGEN_DRIFT=all $(BIN)/python -m pytest $(PYTEST_ARGS) tests/golden/test_generated.py

# Every GPU kernel on the executor, which takes nvcc but no GPU: writes docs/conformance.md and the data beside the
# benchmarks'. Most of its time goes into lowering: long at first, short once the texts are in .cache.
conformance: $(READY)
	$(BIN)/python -m nsa_codegen.conformance --cache .cache/executor $(CONFORMANCE_ARGS)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11; give another one with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# PyPI's wheel for Linux brings gigabytes of CUDA. Without an NVIDIA GPU we ask the places that pip is configured for for
# the local version +cpu, which a CUDA wheel can never satisfy; where none of them has it, PyPI's wheel serves as well.
# Platforms without such wheels (macOS) have CPU builds under the plain version.
torch-installed: $(BIN)/python
	@if $(BIN)/python -c 'import torch' 2>/dev/null; then exit 0; fi; set -ex; \
	if [ -n '$(TORCH_SPEC)' ]; then $(PIP) install $(TORCH_SPEC); \
	elif command -v nvidia-smi >/dev/null || [ "$$(uname -s)" != Linux ]; then $(PIP) install 'torch==$(TORCH_VERSION)'; \
	else $(PIP) install 'torch==$(TORCH_VERSION)+cpu' || { \
		echo 'no CPU build of torch found; installing the one from PyPI, which brings CUDA (TORCH_SPEC names another)'; \
		$(PIP) install 'torch==$(TORCH_VERSION)'; }; fi

$(READY): pyproject.toml | $(BIN)/python
	@$(MAKE) --no-print-directory torch-installed
	$(PIP) install --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
