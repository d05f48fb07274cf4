# Secateur. On a fresh machine `make demo` and `make test` are all the set-up there is.
#
#   make demo     compress, select, benchmark and report the embedded workload       (make demo DEMO=--quick: digits)
#   make test     lint, types and tests            (make test ARGS="tests/core -k budget" runs some of the tests)
#   make docs     the documentation as a site, into build/docs
#   make train    train the embedded workloads again
#
# PYTHON chooses the interpreter (3.11 or newer), VENV the folder of the environment.

PYTHON ?= python3
VENV ?= .venv
WORKLOADS ?= scenes scenes-moe digits multifashion multifashion-moe scenes-detect scenes-vit
ARGS ?=
DEMO ?=

bin := $(abspath $(VENV))/bin
install := $(bin)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint types docs train clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(bin)/secateur demo $(DEMO)

test: lint types
	OMP_NUM_THREADS=1 $(bin)/python -m pytest -n auto --dist worksteal $(ARGS)

lint: $(VENV)/.installed-dev
	$(bin)/ruff check .
	$(bin)/ruff format --check .

# The type checker and the reference of the docs cannot follow the mapping of an editable install: they get a plain one.
site = rm -rf build && $(install) --no-deps --target build/site .

types: $(VENV)/.installed-dev
	$(site)
	cd build/site && $(bin)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p secateur

docs: $(VENV)/.installed-docs
	$(site)
	NO_MKDOCS_2_WARNING=1 $(bin)/mkdocs build --strict --quiet

train: $(VENV)/.installed
	$(bin)/python -m secateur.workloads.train $(WORKLOADS)
	$(bin)/python -m secateur.verbs.train_elastic scenes-elastic

$(VENV)/pyvenv.cfg:
	$(PYTHON) -c 'import sys; sys.exit("Secateur needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(install) --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(install) --editable ".[dev]"
	touch $(VENV)/.installed $@

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(install) --editable ".[docs]"
	touch $(VENV)/.installed
	touch $@

# The results under runs/ are the user's and stay.
clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
