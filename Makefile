# `make train` and `make test` need nothing but Python 3.10 or newer: the virtual environment is made on first use.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SCALE ?= $(if $(FASTCIFAR_DATA),quick,small)

.PHONY: train test examples reliability test-torch foreign-tests mutants fuzz bench bench-compare docs lint dist dist-test
.PHONY: clean

train: $(VENV)/installed
	$(BIN)/fastcifar train --recipe davidnet --quick --synthetic-fallback

test: export PYTHONDONTWRITEBYTECODE =  # each process that a test starts, hundreds, would compile the package anew
test: $(VENV)/installed
	$(BIN)/python -m pytest -n auto --dist worksteal

examples: $(VENV)/installed  # small on real images where FASTCIFAR_DATA names their folder, else on made ones
	$(BIN)/python examples/course/homework.py --scale $(SCALE) --out runs/homework-$(SCALE)
	$(BIN)/python examples/transfer/tutorial.py --scale $(SCALE)
	OUT=runs/warm-start-$(SCALE) $(BIN)/python examples/warm_start/notebooks.py --run $(SCALE)

test-torch:  # TORCH=2.14.1: the tests on that version, in an environment of its own
	$(PYTHON) -m venv .venv-torch-$(TORCH)
	.venv-torch-$(TORCH)/bin/python -m pip install --quiet --editable '.[dev]' torch==$(TORCH)
	.venv-torch-$(TORCH)/bin/python -m pytest -n auto --dist worksteal

foreign-tests: $(VENV)/installed
	$(BIN)/python -m bench.foreign --checkouts $(DIR)

reliability: $(VENV)/installed
	$(BIN)/python -m tests.reliability $(RELIABILITY)

mutants: $(VENV)/installed
	$(BIN)/python -m tests.mutants $(MUTANTS)

fuzz: $(VENV)/installed  # SECONDS=600: so long for each parser
	$(BIN)/python -m tests.fuzz --all --jobs 2 --seconds $(or $(SECONDS),60) --json build/fuzz/figures.json

bench: $(VENV)/installed
	$(BIN)/python -m pytest bench --benchmark-autosave $(BENCH)

bench-compare: $(VENV)/installed
	mkdir -p .benchmarks
	$(BIN)/python -m pytest bench --benchmark-json=.benchmarks/compared.json $(BENCH)
	$(BIN)/python -m bench.compare .benchmarks/compared.json

docs: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)/installed  # into build/site; a warning is an error
	$(BIN)/python -m mkdocs build --strict --quiet

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/types/fastcifar
	ln -sfn ../../../kernels build/types/fastcifar/kernels
	$(BIN)/python tests/pages.py build/pages
	$(BIN)/pyright --pythonpath $(BIN)/python

dist: $(VENV)/installed  # an sdist, and of it a wheel
	rm -rf build/dist
	$(BIN)/python -m build --outdir build/dist

dist-test: dist
	$(BIN)/python tests/dist.py build/dist

$(VENV)/installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
