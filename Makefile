# make demo   set up and run the main job on synthetic scans
# make test   set up and pass the tests
# make check  what CI runs: lint, types, tests
# make label  a MONAI Label server with the demo's model and scans; PORT=8000 MODEL=BUNDLE STUDIES=FOLDER APP=FOLDER
#
# H-SAM's decoder:       make demo DECODER=hierarchical
# A GPU build of torch:  make demo TORCH=torch==2.13.0
PYTHON ?= python3
VENV ?= .venv
DECODER ?= sam
BIN := $(VENV)/bin
# two processes; the tests of a file stay together, since they share what a fixture has trained
WORKERS ?= -n 2 --dist loadfile
ifeq ($(shell uname -s),Linux)
TORCH ?= torch==2.13.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu --retries 1
else
TORCH ?= torch==2.13.0
endif

# threads that wait for a busy core sleep instead of spinning: several times faster where other programs run too
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test slow check lint setup label test-label test-ohif
setup: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

demo: setup
	$(BIN)/python -m samora_monai.demo --decoder $(DECODER)

test: setup
	$(BIN)/python -m pytest $(WORKERS)

slow: setup
	$(BIN)/python -m pytest -m slow $(WORKERS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy samora_monai

check: lint test

# MONAI Label, in an environment of its own: its requirements are not the package's
LABEL_VENV ?= .venv-label
PORT ?= 8000
MODEL ?= demo/samora
STUDIES ?=
APP ?= label/app
HOST ?= 127.0.0.1
ALLOWED_HOSTS ?=
MAX_UPLOAD_GB ?= 4
BASE ?=
LABELS ?=
LABEL_PIP := $(LABEL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check

$(LABEL_VENV)/.installed: label/requirements.txt setup.cfg pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	'error: the server needs Python 3.11 or newer, this is %d.%d; give another: PYTHON=python3.12' % sys.version_info[:2])"
	$(PYTHON) -m venv $(LABEL_VENV)
	$(LABEL_PIP) $(TORCH)
	$(LABEL_PIP) --no-deps --requirement label/requirements.txt
	$(LABEL_PIP) --no-deps --no-build-isolation --editable .
	touch $@

label: $(LABEL_VENV)/.installed
	$(LABEL_VENV)/bin/python label/start.py --model "$(MODEL)" --studies "$(STUDIES)" --app "$(APP)" --port $(PORT) \
	--host "$(HOST)" --allowed_hosts "$(ALLOWED_HOSTS)" --max_upload_gb $(MAX_UPLOAD_GB) \
	--base "$(BASE)" --labels "$(LABELS)"

test-label: setup $(LABEL_VENV)/.installed
	LABEL_PYTHON=$(abspath $(LABEL_VENV))/bin/python $(BIN)/python -m pytest tests/label/server_checks.py tests/label/guard_checks.py \
	tests/label/click_checks.py

# in a browser; PICTURES=FOLDER also makes the pictures of the documentation, with the trained model MODEL
PICTURES ?=
$(LABEL_VENV)/.ohif: $(LABEL_VENV)/.installed
	$(LABEL_PIP) playwright==1.65.2 'pytest>=8'
	touch $@

test-ohif: $(LABEL_VENV)/.ohif
	OHIF_PICTURES="$(PICTURES)" OHIF_MODEL="$(MODEL)" $(LABEL_VENV)/bin/python -m pytest tests/label/ohif_checks.py
