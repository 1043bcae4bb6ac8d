# Everything runs in virtual environments of the project's own; a second run starts at once.
PYTHON ?= $(shell scripts/find-python)
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml scripts/install requirements/build.txt

SERVERS := .venv-servers/bin/python

.PHONY: demo check test lint bench unit other-pythons servers servers-page suites update clean

demo: $(VENV)/.demo
	$(BIN)/python examples/three_services/demo.py

# For every change: lint, types and the unit tests with few examples each, under one Python.
check: lint $(VENV)/.test
	$(BIN)/python -m pytest -q -n auto --dist worksteal --hypothesis-profile quick -m "not thorough" --ignore tests/servers --ignore tests/test_demo.py

# What the servers are built from is installed while the first tests run.
test:
	@nice -n 10 $(MAKE) .venv-servers/.servers >.servers-install.log 2>&1 & installing=$$!; \
	$(MAKE) lint unit; first=$$?; wait $$installing || cat .servers-install.log; exit $$first
	$(MAKE) servers other-pythons

unit: $(VENV)/.test
	$(BIN)/python -X dev -m pytest -n auto --dist worksteal --ignore tests/servers --ignore tests/test_demo.py
	$(BIN)/python -X dev -m pytest tests/test_demo.py

# Guardrails under every real server; what is seen must be what docs/servers.md says.
servers: .venv-servers/.servers
	rm -rf .servers
	$(SERVERS) -X dev -m pytest tests/servers -n 4 -p no:randomly
	$(SERVERS) tests/servers/page.py check

servers-page: .venv-servers/.servers
	rm -rf .servers
	$(SERVERS) -X dev -m pytest tests/servers -n 4 -p no:randomly
	$(SERVERS) tests/servers/page.py write

.venv-servers/.servers: $(SOURCES) scripts/install-servers requirements/servers.txt requirements/built-servers.txt
	scripts/install-servers "$(PYTHON)" .venv-servers
	touch $@

# The test suites of Flask, Werkzeug, Falcon, Bottle, WebOb, WebTest and whitenoise, with guardrails
# before every app: no test may fail that passes without it.
suites: .venv-suites/.suites
	scripts/test-suites .venv-suites

.venv-suites/.suites: $(SOURCES) requirements/suites.txt
	scripts/install "$(PYTHON)" .venv-suites suites
	touch $@

lint: $(VENV)/.lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

other-pythons:
	scripts/test-other-pythons

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/run.py

$(VENV)/.%: $(SOURCES) requirements/%.txt
	scripts/install "$(PYTHON)" $(VENV) $*
	touch $@

# Everything that is installed here is pinned, with hashes, in requirements/: this renews it, and tries it.
update:
	scripts/update "$(PYTHON)"
	$(MAKE) test
	$(MAKE) demo
	$(MAKE) bench

clean:
	rm -rf .servers .servers-install.log .suites .venv .venv-* .pytest_cache .mypy_cache .ruff_cache .hypothesis
