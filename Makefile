# make quickstart | make test | make lint : each sets itself up once, later calls reuse it.
# make oldest | make newest : the suite at the ends of what pyproject.toml allows; make constraints : the tested set anew.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JOBS ?= 2
# The torch that is tested; others may bring gigabytes of CUDA.
TORCH := torch==2.13.0

.PHONY: quickstart test slow lint docs notebooks setup constraints oldest newest clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	touch $(STAMP)

quickstart: setup
	$(BIN)/rayfed run quickstart

# Tests that start a Ray of their own run one at a time.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow and not ray' -n $(JOBS) --dist worksteal
	$(BIN)/python -m pytest -m 'not slow and ray' tests/ray

# All of them take more than an hour: before a release.
slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'slow and not ray' -n $(JOBS) --dist worksteal
	$(BIN)/python -m pytest -m 'slow and ray' tests/ray

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Pages that are made from code: one per method and per system, and benchmarks/CLAIMS.md; tests hold them to it.
# Then the pages of docs/ as a site, in site/.
docs: setup
	$(BIN)/python -m rayfed.launch.claims
	$(BIN)/python -m rayfed.launch.method_pages
	$(BIN)/python -m rayfed.launch.system_pages
	$(BIN)/python -m rayfed.launch.config_schema
	$(BIN)/python docs/reference/make.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	$(BIN)/python -m mkdocs build --strict

# The notebooks of docs/ as Jupyter executes them, in an environment of its own.
notebooks:
	$(PYTHON) -m venv --clear $(VENV)-notebooks
	$(VENV)-notebooks/bin/python -m pip install --quiet -c constraints.txt -e '.[test,notebooks]'
	$(VENV)-notebooks/bin/python -m pytest tests/docs/test_notebooks.py

# Environments of their own, built anew each time: the lowest versions that pyproject.toml allows, and the newest there are.
oldest:
	$(PYTHON) -m venv --clear $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e '.[test]'
	$(call suite,$(VENV)-oldest)

newest: $(VENV)-newest
	$(call suite,$(VENV)-newest)

# What `make newest` tests becomes the tested set.
constraints: $(VENV)-newest
	$(VENV)-newest/bin/python benchmarks/constraints.py > constraints.new
	mv constraints.new constraints.txt

.PHONY: $(VENV)-newest
$(VENV)-newest:
	$(PYTHON) -m venv --clear $@
	$@/bin/python -m pip install --quiet --disable-pip-version-check '$(TORCH)' -e '.[test,lint]'

define suite
	OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -m 'not slow and not ray' -n $(JOBS) --dist worksteal
	$(1)/bin/python -m pytest -m 'not slow and ray' tests/ray/test_runs.py
endef

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest $(VENV)-notebooks build *.egg-info .pytest_cache .mypy_cache .ruff_cache
