# modelkeep: every target sets itself up in .venv; nothing else needs to be installed by hand.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.modelkeep-installed
# Three files at a time on two cores: many tests wait for a server, a deadline or a process most of the time.
TESTS  := -n 3 --dist loadfile --no-loadscope-reorder
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test check bench bench-extraction bench-trace bench-weightmark bench-ownership bench-poison audit clean

help: ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP) ## the main job end to end on embedded defaults; writes demo-report.html
	@$(PY) -m demo

test: $(STAMP) ## every test
	@sh ./tools/packages.sh
	@$(PY) -m pytest $(TESTS)

check: $(STAMP) ## ruff, mypy strict, import-linter
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(VENV)/bin/lint-imports

bench: $(STAMP) ## benchmarks: JSON lines and tables, ratios to a peer in the same run (BENCH=name for one)
	@$(PY) -m benchmarks $(BENCH)

bench-extraction: $(STAMP) ## honest accounts and thieves against the extraction defence (hours; ARGS="adult/mlp blocked runs=5" for a part)
	@$(PY) -m benchmarks extraction -- $(ARGS)

bench-trace: $(STAMP) ## p-values of thieves' accounts, of changed and mixed copies, and of innocent ones (ARGS="fashion/cnn traced runs=5" for a part)
	@$(PY) -m benchmarks trace -- $(ARGS)

bench-weightmark: $(STAMP) ## marks in weights: what they cost, survive and claim (minutes; ARGS="digits claims" for a part)
	@$(PY) -m benchmarks weightmark -- $(ARGS)

bench-ownership: $(STAMP) ## what fingerprints and triggers prove of copies and of independent models (minutes; ARGS="digits victims=2" for a part)
	@$(PY) -m benchmarks ownership -- $(ARGS)

bench-poison: $(STAMP) ## planted and mislabelled rows: what is found, and what models do after the purge (ARGS="badnets rows=6000 runs=3", "flips", device=cuda)
	@$(PY) -m benchmarks poison -- $(ARGS)

audit: $(STAMP) ## look the pinned dependencies up in the vulnerability database (needs network)
	@$(PY) -m pip_audit --strict -r constraints.txt -r tools/scanners.txt -r tools/rivals.txt --disable-pip --no-deps

clean: ## remove what make made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-report.html

$(STAMP): pyproject.toml constraints.txt tools/scanners.txt tools/peers.txt tools/rivals.txt
	@PYTHON=$(PYTHON) VENV=$(VENV) sh ./tools/setup.sh
	@touch $@
