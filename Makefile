# setup, demo, test, test-ci, check, docs, bench and viewers: each first brings .venv up to date, which takes minutes once and nothing after.
# Another interpreter: make setup PYTHON=python3.12. pip's own settings (index, find-links, constraint, proxy) are kept.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
VIEWERS := .venv-viewers
SETTINGS := pyproject.toml constraints.txt requirements-sam2.txt Makefile
STAMP := $(VENV)/setup-$(firstword $(shell cat $(SETTINGS) | sha256sum))
SOURCES := train.py mois adapters datamodules tests docs/site
export OMP_NUM_THREADS ?= 1

# Two workers of one thread each: more threads make the small tensors of the tests slower.
PYTEST := $(PY) -m pytest -n 2 --dist worksteal --durations=20

.PHONY: setup demo test test-ci check docs bench viewers format constraints clean
.DEFAULT_GOAL := setup

# In a shell of its own, python and mois are not yet those of .venv.
ENTER := In each new shell, before python or mois: . $(VENV)/bin/activate

setup: $(STAMP)
	@$(if $(filter-out setup,$(MAKECMDGOALS)),:,echo "$(ENTER)")

# The stamp's name holds the hash of what was installed: it is missing exactly where something changed.
$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "error: $(PYTHON) is missing or \
	older than 3.11; install Python 3.11 or newer, or name one: make setup PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) cannot make virtual environments; \
	install its venv module (Debian: apt install python3-venv) and run make again" >&2; exit 2; }
	@$(PY) -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) install -q -c constraints.txt setuptools wheel
	$(PIP) install -c constraints.txt torch torchvision
	SAM2_BUILD_CUDA=0 $(PIP) install -q --no-deps --no-build-isolation --require-hashes -r requirements-sam2.txt
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[dev]'
	@rm -f $(VENV)/setup-* && touch $@

demo: setup
	$(PY) -m mois.cli demo --out runs/demo
	@echo "$(ENTER)"

# What every change has to pass, in minutes; the closing line says how many slower ones were left out.
test: setup
	$(PYTEST) -m "not ci" $(ARGS)

# The slower ones: fuzzing, trainings, whole predictors as oracles, nnU-Net.
test-ci: $(STAMP)-nnunet
	$(PYTEST) -m ci $(ARGS)

$(STAMP)-nnunet: $(STAMP)
	$(PIP) install -q -c constraints.txt --no-build-isolation -e '.[nnunet]'
	@touch $@

check: setup
	$(VENV)/bin/ruff check $(SOURCES)
	$(VENV)/bin/ruff format --check $(SOURCES)
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(PY) -m tests.support.house

# The site, into build/site: every warning is an error, nothing is fetched while it is built.
docs: $(STAMP)-docs
	$(PY) docs/site/draw_rooms.py
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict -f docs/site/mkdocs.yml
	@echo "open build/site/index.html"

$(STAMP)-docs: $(STAMP)
	$(PIP) install -q -c constraints.txt --no-build-isolation -e '.[docs]'
	@touch $@

bench: setup
	$(PY) -m tests.bench.run --out runs/bench $(ARGS)

# The server of MONAI Label pins old packages, so it has an environment of its own. It shares what .venv has.
viewers: $(VIEWERS)/$(notdir $(STAMP))
	@echo "mois serve monailabel --studies DIR"

$(VIEWERS)/$(notdir $(STAMP)): $(STAMP) requirements-viewers.txt
	$(PY) -m venv --clear $(VIEWERS)
	@echo "import site; site.addsitedir('$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
	> "$$($(VIEWERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/mois.pth"
	$(VIEWERS)/bin/python -m pip --disable-pip-version-check install -q --no-deps -r requirements-viewers.txt
	@touch $@

format: setup
	$(VENV)/bin/ruff check --fix $(SOURCES)
	$(VENV)/bin/ruff format $(SOURCES)

# After a change of versions: pin what is installed now.
constraints: $(STAMP)-docs
	@sed -n '/^#/p' constraints.txt > constraints.new
	@$(PIP) freeze --all --exclude-editable | grep -vE '^(pip|sam2|triton|nvidia-|cuda-)' >> constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
