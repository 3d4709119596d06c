# Each target sets up what it needs: `make test` or `make demo` on a fresh machine is enough.
PYTHON ?= python3
VENV ?= .venv
MINUTES ?= 30
BIN := $(VENV)/bin
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo test test-gpu bench bench-gpu soak lint format clean

demo: $(VENV)/.installed
	$(BIN)/fastreg compare

# Hypothesis draws the same examples every time; `pytest -m hypothesis` searches for new ones.
test: $(VENV)/.installed
	$(BIN)/python -m pytest --hypothesis-profile ci --numprocesses 2 --dist worksteal
	NUMBA_ENABLE_CUDASIM=1 $(BIN)/python -m pytest --hypothesis-profile ci --numprocesses 2 tests/cuda

bench: $(VENV)/.installed
	$(BIN)/fastreg bench --plot

# Random trainings, other ones each time; `make soak MINUTES=15 SEED=1` runs these again.
soak: $(VENV)/.installed
	$(BIN)/python -m fastreg_benchmarks.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

# On a machine with an NVIDIA GPU and its driver; the package index has everything else.
test-gpu: $(VENV)/.installed-gpu
	FASTREG_TEST_GPU=1 $(BIN)/python -m pytest tests/cuda

bench-gpu: $(VENV)/.installed-gpu
	$(BIN)/fastreg bench --device gpu

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(VENV)/.installed-gpu: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet 'tensorflow[and-cuda]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache dist
