# Each target sets up what it needs: `make test` or `make demo` on a fresh machine is enough.
PYTHON ?= python3
VENV ?= .venv
MINUTES ?= 30
BIN := $(VENV)/bin
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo test test-gpu bench bench-gpu soak coverage mutation lint format clean

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

# Which branches the tests run; "Coverage and mutation" in CONTRIBUTING.md says what is left out, and why.
coverage: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[coverage]'
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --hypothesis-profile ci
	NUMBA_ENABLE_CUDASIM=1 $(BIN)/coverage run -m pytest --hypothesis-profile ci tests/cuda
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Which changes of the library no test notices, some of each module. `make mutation SAMPLE=10 SEED=1
# MODULES=fastreg/_tables/rules.py` draws others, of one.
mutation: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[mutation]'
	$(BIN)/python tests/mutation/run.py --sample $(or $(SAMPLE),5) --seed $(or $(SEED),0) $(MODULES)

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
