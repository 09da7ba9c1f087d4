# make quickstart | make test | make lint : each sets itself up once, later calls reuse it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JOBS ?= 2

.PHONY: quickstart test slow lint setup clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	touch $(STAMP)

quickstart: setup
	$(BIN)/rayfed run quickstart

# Tests that start a Ray of their own run one at a time.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow and not ray' -n $(JOBS)
	$(BIN)/python -m pytest -m 'not slow and ray' tests/ray

slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'slow and not ray' -n $(JOBS)
	$(BIN)/python -m pytest -m 'slow and ray' tests/ray

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
