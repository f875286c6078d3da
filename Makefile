# `make` alone lists what can be made.
PYTHON ?= python3# any Python >= 3.11: only makes .venv, which all else uses
DATA ?= gas_turbine# a bundled data set or a .csv, .parquet, .npy or .npz file
OUT ?= $(basename $(notdir $(DATA)))_flow# the folder that a search leaves
# options for `autonf search`, as in ARGS="--lam 0.5 --seed 1"; the gas turbine columns are rounded, which no density should see
ARGS ?= $(if $(filter gas_turbine,$(DATA)),--dequantize)
JOBS ?= 2# processes that run tests side by side
FLAGS ?=# FLAGS=slow makes `make notebooks` run the slow cells too
TORCH_INDEX ?=# another package index for PyTorch, as in TORCH_INDEX=https://download.pytorch.org/whl/cpu

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
# one thread a process: the tests run in JOBS processes, and small matrices gain nothing from threads
TEST_ENV := OMP_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help env search test test-all check notebooks sync docs clean distclean
.DELETE_ON_ERROR:

help:           ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */make \1\t/' | expand -t 17

env: $(VENV)/.dev  ## the environment with all that the tests need

# --resume: a search that was stopped goes on, a finished one says so
search: $(VENV)/.run  ## search the best flow for the gas turbine data (DATA=file OUT=folder ARGS="--lam 0.5")
	$(BIN)/autonf search $(DATA) --out $(OUT) --resume $(ARGS)
	@echo "The report: $(abspath $(OUT))/report.html"

test: check     ## all tests but the slow ones; those of the site need chromium
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit; done; \
	echo "No Chromium on the PATH: the tests of the site will be skipped (on Debian: apt-get install chromium)"
	$(TEST_ENV) $(BIN)/nbdev_test --n_workers $(JOBS) --timing
	$(TEST_ENV) $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-all: check ## all tests, the slow ones too
	$(TEST_ENV) $(BIN)/nbdev_test --n_workers $(JOBS) --timing --flags slow
	$(TEST_ENV) $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m ''

check: $(VENV)/.dev  ## the quick checks: lint; package, README and notebooks agree
	$(BIN)/ruff check .
	$(TEST_ENV) $(BIN)/python -m pytest -q tests/test_sync.py

notebooks: $(VENV)/.dev  ## run all notebooks anew, in place, then `make sync`
	MPLBACKEND=module://matplotlib_inline.backend_inline $(TEST_ENV) $(BIN)/python docs/run_nbs.py --flags "$(FLAGS)" nbs/*.ipynb
	@$(MAKE) --no-print-directory sync

sync: $(VENV)/.dev  ## package, module index, sidebar and README from the notebooks
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export
	$(BIN)/python docs/sidebar.py
	$(BIN)/python docs/readme.py

docs: $(VENV)/.dev  ## the documentation site, into docs/_build/html
	$(BIN)/python docs/build.py

clean:          ## remove what was built; keep .venv and searches' folders
	rm -rf build dist *.egg-info _proc _docs docs/_build .pytest_cache .ruff_cache
	find autonf_nb docs nbs tests benchmarks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

distclean: clean  ## remove .venv too
	rm -rf $(VENV)

# The environment: a stamp for each set of packages, made anew when what is asked for changes
REQUIREMENTS := settings.ini setup.py constraints.txt

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"autonf_nb needs Python 3.11 or newer, and $(PYTHON) is {v[0]}.{v[1]}: try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.dev: EXTRAS := [dev,docs]

# torch by itself first: its other index is to serve nothing else
$(VENV)/.run $(VENV)/.dev: $(REQUIREMENTS) | $(BIN)/python
	$(if $(TORCH_INDEX),$(PIP) --no-deps --index-url $(TORCH_INDEX) torch)
	$(PIP) -e '.$(EXTRAS)'
	@touch $(VENV)/.run $@
