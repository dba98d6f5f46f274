# Two commands set everything up: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
TRIALS ?= 1000
SEED ?= 0
TRITON ?= 3.9.0
WORKERS ?= 2
PYTHONS ?= $(BIN)/python
OUT ?= studies/out/codesign_hgx_h100
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Each worker starts with its own stretch of the tests, so that most files keep their fixtures to one worker, and takes
# over from the other's end when it is done. WORKERS=0: one process.
PARALLEL := -n $(WORKERS) --dist worksteal

.PHONY: help demo test test-full test-long lint bench docs pictures accuracy triton-newest packages clean

help:
	@echo "make demo       install, then search, check and report for an 8xH100 node"
	@echo "make test       install, then run the tests, two at a time (about 6 minutes)"
	@echo "make test-full  also the longer ones: wheel install, whole study, fuzzed commands (20 minutes)"
	@echo "make test-long  those of minutes each: every kernel compiled for every target, refits"
	@echo "make lint       ruff and mypy"
	@echo "make docs       the documentation as a site, in build/site"
	@echo "make bench      performance figures, and their page in docs/"
	@echo "make accuracy   every score of measurements that nothing was fitted to, and their page (15 minutes)"
	@echo "make packages   sdist and wheel in dist/, tried without torch: PYTHONS='python3.12 python3.14' (TORCH=1: with it)"
	@echo "make triton-newest  the kernels' tests and compile check with another Triton (TRITON=3.9.0)"

$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "No '$(PYTHON)' here. Install Python 3.11 to 3.14 (Debian/Ubuntu: apt install python3 python3-venv)," \
	       "or name one: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || { \
	  echo "moesim needs Python 3.11 to 3.14; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	       "Install one and name it: make PYTHON=python3.13"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "This Python has no venv module. Debian/Ubuntu: apt install python3-venv" \
	       "(Fedora: dnf install python3-pip)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (the first time this takes a few minutes: torch and triton are large)"
	$(PIP_INSTALL) -e '.[silicon]'
	@echo "Compiling what the first study would compile otherwise (half a minute)"
	@out=$$(mktemp -d) && $(BIN)/python studies/codesign_hgx_h100.py --quick --out $$out >/dev/null 2>&1; rm -rf $$out
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP_INSTALL) -e '.[silicon,dev]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/python studies/codesign_hgx_h100.py --trials $(TRIALS) --seed $(SEED) --out $(OUT)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m "not full and not long and not gpu" --ignore=tests/benchmarks $(PARALLEL)

test-full: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m "not long and not gpu" --ignore=tests/benchmarks $(PARALLEL)

test-long: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m "long and not gpu" --ignore=tests/benchmarks $(PARALLEL)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-dev
	@mkdir -p build
	$(BIN)/python -m pytest -q tests/benchmarks --benchmark-columns=min,median,max,rounds --benchmark-sort=name \
	  --benchmark-json=build/bench.json
	$(BIN)/python docs/tools/performance.py build/bench.json

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/tools/reference.py
	$(BIN)/python -m mkdocs build --quiet --strict

pictures: $(VENV)/.installed-dev
	$(BIN)/python docs/tools/pictures.py

accuracy: $(VENV)/.installed-dev
	$(BIN)/python docs/tools/accuracy.py measure

# A venv beside the usual one whose Triton comes first; everything else is the usual one's. The interpreter of Triton 3.6
# needs a numpy before 2.4.
triton-newest: $(VENV)/.installed-dev
	$(BIN)/python -m venv $(VENV)-triton
	$(BIN)/python -c 'import glob; folder = glob.glob("$(abspath $(VENV))/lib/python*/site-packages")[0]; \
	  finders = "".join(open(p).read() for p in glob.glob(folder + "/__editable__*.pth")); \
	  own = glob.glob("$(VENV)-triton/lib/python*/site-packages")[0]; \
	  open(own + "/moesim.pth", "w").write(folder + "\n" + finders + "\n")'
	$(VENV)-triton/bin/python -m pip install --quiet --disable-pip-version-check --no-deps triton==$(TRITON) \
	  $(if $(filter 3.6.%,$(TRITON)),'numpy<2.4')
	$(VENV)-triton/bin/python -m pytest -q -m "not gpu" tests/kernels

# The wheel made from the source distribution, both in dist/, tried with every interpreter that is named.
packages: $(VENV)/.installed-dev
	$(BIN)/python tests/packaging/packages.py $(PYTHONS) $(if $(TORCH),--torch)

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
