# All targets make their own environment, and are quick when it exists.

PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
BENCHMARK ?= benchmark

.PHONY: demo benchmark test coverage lint clean

demo: $(VENV)/installed
	$(VENV)/bin/python -m gist_jax.demo --output=$(DEMO)

# Of the demo's model, which is trained first if it is not there.
benchmark: $(VENV)/installed
	$(VENV)/bin/python -m gist_jax.train --config=quickstart --workdir=$(DEMO)/gist
	$(VENV)/bin/python -m gist_jax.benchmark --model=$(DEMO)/gist --output=$(BENCHMARK)

# Optimizing takes longer than the tests themselves. XLA ends any process that has a flag it does not
# know, and jaxlib 0.12 no longer knows the second.
COMPILE_QUICKLY = flags=--xla_backend_optimization_level=0; more=--xla_cpu_use_fusion_emitters=false; \
	try='import jax; jax.devices()'; \
	JAX_PLATFORMS=cpu XLA_FLAGS=$$more $(VENV)/bin/python -c "$$try" 2> /dev/null || more=; \
	export XLA_FLAGS="$$XLA_FLAGS $$flags $$more"
test: $(VENV)/installed
	@$(COMPILE_QUICKLY); $(VENV)/bin/python -m pytest -n 2 -m "not slow" $(TESTS)

# Which lines of the library the tests run; fails below what pyproject.toml asks for.
coverage: $(VENV)/installed
	rm -rf .cache/coverage && mkdir -p .cache/coverage
	@$(COMPILE_QUICKLY); $(VENV)/bin/coverage run -m pytest -n 2 -m "not slow" $(TESTS)
	$(VENV)/bin/coverage combine --quiet
	$(VENV)/bin/coverage report

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports --cache-dir .cache/import_linter
	$(VENV)/bin/mypy

# Made anew when what it depends on changes; the mark is set only when all was installed.
$(VENV)/installed: setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gist_jax needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(DEMO) $(BENCHMARK) .cache
