# make demo   set up and run the main job on synthetic scans
# make test   set up and pass the tests
# make check  what CI runs: lint, types, tests
#
# H-SAM's decoder:       make demo DECODER=hierarchical
# A GPU build of torch:  make demo TORCH=torch==2.13.0
PYTHON ?= python3
VENV ?= .venv
DECODER ?= sam
BIN := $(VENV)/bin
ifeq ($(shell uname -s),Linux)
TORCH ?= torch==2.13.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu --retries 1
else
TORCH ?= torch==2.13.0
endif

# threads that wait for a busy core sleep instead of spinning: several times faster where other programs run too
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test slow check lint setup
setup: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

demo: setup
	$(BIN)/python -m samora_monai.demo --decoder $(DECODER)

test: setup
	$(BIN)/python -m pytest

slow: setup
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy samora_monai

check: lint test
