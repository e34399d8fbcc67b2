# make demo: measure the embedded model with a few methods.   make test: lint, types and the fast tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The release that the tests have run with. Where the package index gives a CUDA build by default, name
# one with CPU builds: make test TORCH_INDEX=URL
TORCH := torch==2.13.0
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test test-slow lint format types bench-speed pebbles pebble-verifier pebble-card docs clean

demo: $(VENV)/demo
	$(BIN)/thrifty bench --limit 100 --out runs/demo

test: lint types
	$(BIN)/python -m pytest -n auto --dist worksteal

test-slow: $(VENV)/dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/dev
	$(BIN)/mypy

bench-speed: $(VENV)/dev
	$(BIN)/python benchmarks/decode.py

# From nothing; then copy the model files of both folders to src/thrifty/models/, train the verifier and measure.
pebbles: $(VENV)/dev
	$(BIN)/python pebbles/train.py --out runs/pebble
	$(BIN)/python pebbles/train.py --out runs/pebble-small --hidden 128 --layers 5 --tokenizer runs/pebble/tokenizer.json

pebble-verifier: $(VENV)/dev
	$(BIN)/python pebbles/verifier.py --model pebble --out src/thrifty/models/pebble

pebble-card: $(VENV)/dev
	$(BIN)/python pebbles/measure.py --model pebble --run runs/pebble --out evidence/pebbles/pebble.json
	$(BIN)/python pebbles/measure.py --model pebble-small --run runs/pebble-small --out evidence/pebbles/pebble-small.json
	$(BIN)/python pebbles/card.py

docs: $(VENV)/dev
	$(BIN)/python docs/generate.py
	$(BIN)/python pebbles/card.py

$(VENV)/torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "thrifty needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)'
	touch $@

$(VENV)/demo: $(VENV)/torch pyproject.toml
	$(PIP) install -e '.[all]'
	touch $@

$(VENV)/dev: $(VENV)/torch pyproject.toml
	$(PIP) install -e '.[dev]'
	touch $@ $(VENV)/demo

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
