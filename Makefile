# make demo: the whole job on a real model and real questions, into demo/
# make test: the test suite
# make gpu: what needs a GPU, proved and timed; make gpu-smoke: the same script at tiny shapes, without one
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DOCS_VENV ?= .docs-venv

.PHONY: demo test slow mutants lint clean gpu gpu-smoke gpu-wheels docs docs-check figures

demo: $(VENV)/runtime
	$(BIN)/python -m routing demo

test: lint
	$(BIN)/python -m routing fetch
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Style, and which room may import which (contracts in pyproject.toml).
lint: $(VENV)/development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache

# What takes minutes: run before a release.
slow: $(VENV)/extras
	$(BIN)/python -m routing fetch
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist loadfile

# Do the tests notice small changes of core files? A sample, within an hour; the next call goes on (docs/mutants.md).
# MUTANTS_ARGS="--minutes 10 --only routing/search" for a part.
mutants: $(VENV)/development
	$(BIN)/python -m routing fetch
	OMP_NUM_THREADS=1 nice $(BIN)/python benchmarks/mutants.py $(MUTANTS_ARGS)

# The pictures of the pages, from the committed results. FIGURES_ARGS="--only decode" for some of them.
figures: $(VENV)/runtime
	$(BIN)/python benchmarks/figures.py $(FIGURES_ARGS)

# Wheels that were brought along (make gpu-wheels) are for the Python of a machine without a package index; elsewhere
# the environment of this project has all. GPU_ARGS="--sections decode --seconds 120" for a part.
gpu:
	if [ -d .gpu-wheels ]; then $(PYTHON) benchmarks/gpu.py --wheels .gpu-wheels $(GPU_ARGS); \
	else $(MAKE) $(VENV)/runtime && $(BIN)/python benchmarks/gpu.py $(GPU_ARGS); fi

gpu-smoke: $(VENV)/runtime
	$(BIN)/python benchmarks/gpu.py --smoke --output $$(mktemp -d)

gpu-wheels: $(VENV)/runtime
	$(BIN)/python benchmarks/gpu_wheels.py

# The site of docs/, into site/. It reads the code and imports none of it, so its environment is small and its own.
docs: $(DOCS_VENV)/installed
	$(DOCS_VENV)/bin/python docs/make_files.py
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict

# Every command of the pages exists and knows its options; each is asked for its --help once, so this takes minutes.
docs-check: $(VENV)/runtime
	$(BIN)/python docs/make_files.py --check
	$(BIN)/python docs/check_commands.py

# Python compiles what is imported when it is imported; pip would compile all of it, which takes longer than the rest.
$(VENV)/runtime: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --editable .
	touch $@

$(VENV)/development: $(VENV)/runtime requirements-dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile -r requirements-dev.txt
	touch $@

# Optional for users, and for the slow tests of what uses it.
$(VENV)/extras: $(VENV)/development requirements-slow.txt
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile --editable ".[app,ray]" -r requirements-slow.txt
	touch $@

$(DOCS_VENV)/installed: requirements-docs.txt
	test -x $(DOCS_VENV)/bin/python || $(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --disable-pip-version-check -r requirements-docs.txt
	touch $@

clean:
	rm -rf $(VENV) $(DOCS_VENV) site demo
