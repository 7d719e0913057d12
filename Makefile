# The whole vocabulary: make demo | test | bench | clean.   PYTHON=python3.12 make demo   picks another interpreter.
PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=

bin     := $(VENV)/bin
install := $(bin)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: help demo test bench clean

help:
	@echo "make demo    set up $(VENV) and certify a small network on handwritten digits (no data download)"
	@echo "make test    lint, types, tests and coverage"
	@echo "make bench   measure bounds and training steps (ARGS='--help' for the options)"
	@echo "make clean   remove $(VENV) and everything generated"

demo: $(VENV)/run.stamp
	@$(bin)/ironbound demo $(ARGS)

test: $(VENV)/dev.stamp
	@VENV=$(VENV) scripts/check
	@VENV=$(VENV) scripts/test $(ARGS)

bench: $(VENV)/run.stamp
	@$(bin)/python -m benchmarks.peers $(ARGS)

# A changed dependency list makes a fresh environment: what is left over from the old one would hide a missing line.
$(VENV)/run.stamp: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (only the first time and after a change of dependencies; it installs PyTorch) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(install) '.[figures]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	@echo "Adding the development tools to $(VENV) ..."
	@$(install) '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) ironbound-demo build dist htmlcov .coverage .coverage.* .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
