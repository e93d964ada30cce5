# Each target does all of its own set-up in .venv, from Python 3.11 or newer, pip and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# One thread a process: two test workers with a pool each would fight for the cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
FAMILIES := vit.timm bert.transformers convnext.timm resnet unet.diffusers
PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: demo test test-deep lint types bench evidence methods format clean

demo: $(READY)
	$(BIN)/python demo/minilm.py

test: lint types
	$(PYTEST)

test-deep: lint types
	FXTUNE_DEEP=1 $(PYTEST)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

bench: $(READY)
	PYTHONPATH=demo $(BIN)/python bench/run.py

# The long tables of bench/evidence/README.md: some two hours on two cores, to be interrupted and gone on with.
evidence: $(READY)
	$(ONE_THREAD) PYTHONPATH=bench:demo $(BIN)/python -m evidence.run

# The table of methods in rules/README.md, by trying each on every family: ten minutes.
methods: $(READY)
	(sed '/^| method/,$$d' rules/README.md; $(ONE_THREAD) $(BIN)/fxtune methods $(FAMILIES:%=--probe %)) > rules/README.new
	mv rules/README.new rules/README.md

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt hatchling
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) .data bench/results
