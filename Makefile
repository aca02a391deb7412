# modelkeep: every target sets itself up in .venv; nothing else needs to be installed by hand.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.modelkeep-installed
# Tests of real servers with deadlines, which have the machine to themselves; the others run two files at a time.
ALONE  := tests/app tests/cli tests/demo tests/e2e tests/house tests/http tests/ports
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test check bench audit clean

help: ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP) ## the main job end to end on embedded defaults; writes demo-report.html
	@$(PY) -m demo

test: $(STAMP) ## every test
	@sh ./tools/packages.sh
	@$(PY) -m pytest -n 2 --dist loadfile $(addprefix --ignore=,$(ALONE))
	@$(PY) -m pytest $(ALONE)

check: $(STAMP) ## ruff, mypy strict, import-linter
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(VENV)/bin/lint-imports

bench: $(STAMP) ## benchmarks: JSON lines and tables, ratios to a peer in the same run (BENCH=name for one)
	@$(PY) -m benchmarks $(BENCH)

audit: $(STAMP) ## look the pinned dependencies up in the vulnerability database (needs network)
	@$(PY) -m pip_audit --strict -r constraints.txt -r tools/scanners.txt --disable-pip --no-deps

clean: ## remove what make made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-report.html

$(STAMP): pyproject.toml constraints.txt
	@PYTHON=$(PYTHON) VENV=$(VENV) sh ./tools/setup.sh
	@touch $@
