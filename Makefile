# Two commands for a newcomer: `make demo` and `make test`. Each sets up all it needs in .venv, from the lock file.
PYTHON ?= python3
CORES ?= $(shell nproc 2>/dev/null || echo 2)
BIN := .venv/bin
READY := .venv/.ready
# A file a process, the files in the order of tests/shared.py: the longest first.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test quick test-gpu check format lock clean help

demo: $(READY)  ## quantise the embedded model, evaluate it, make tables, figures and the report
	@$(BIN)/python benchmarks/how_long.py $(CORES)
	$(BIN)/snakemake --cores $(CORES)
	@cat results/summary.txt

test: $(READY) .venv/.triton check  ## all tests and all checks
	$(BIN)/python -m pytest $(PARALLEL)

quick: $(READY) .venv/.triton  ## lint and the unit tests that take no more than seconds, for while you write
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow" tests/unit

test-gpu: $(READY)  ## the tests that need a CUDA device
	TRITON_INTERPRET=0 $(BIN)/python -m pytest -m gpu tests/gpu

check: $(READY)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules workflow/Snakefile
	$(BIN)/mypy
	$(BIN)/snakemake --lint

format: $(READY)  ## put everything in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile rules workflow/Snakefile

$(READY): envs/lock.txt envs/lock-nodeps.txt pyproject.toml
	envs/setup.sh $(PYTHON)
	@touch $@

# Triton comes with a CUDA build of PyTorch; with a CPU build the tests run its kernels in its interpreter.
.venv/.triton: $(READY)
	$(BIN)/python -c 'import triton' 2>/dev/null || $(BIN)/python -m pip install --quiet --no-deps triton==3.7.1
	@touch $@

lock: $(READY)  ## write the lock file from what .venv holds
	envs/lock.sh

clean:  ## remove the environment, caches and logs; results stay
	rm -rf .venv .snakemake logs .mypy_cache .ruff_cache .pytest_cache

help:
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'
