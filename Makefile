# Everything runs in virtual environments of the project's own; a second run starts at once.
PYTHON ?= $(shell scripts/find-python)
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml scripts/install

.PHONY: demo test lint bench unit other-pythons clean

demo: $(VENV)/.demo
	$(BIN)/python examples/three_services/demo.py

test: lint unit other-pythons

unit: $(VENV)/.test
	$(BIN)/python -X dev -m pytest

lint: $(VENV)/.lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

other-pythons:
	scripts/test-other-pythons

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/run.py

$(VENV)/.%: $(SOURCES)
	scripts/install "$(PYTHON)" $(VENV) $*
	touch $@

clean:
	rm -rf .venv .venv-* .pytest_cache .mypy_cache .ruff_cache .hypothesis
