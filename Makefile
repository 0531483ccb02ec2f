# Every target makes .venv and installs what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OUT ?= demo
# Tests run one process per core; more threads in each would only fight.
WORKERS ?= auto

.PHONY: demo test long check docs bench kills clean help

help:
	@echo "make demo   the tour on rendered slides; ends with $(OUT)/report.html"
	@echo "make test   the tests"
	@echo "make long   tests that take longer than make test has time for (about 10 minutes)"
	@echo "make check  format, lint, types, layers and the fast tests"
	@echo "make docs   the documentation site, in site/; rewrites the table of condensers in docs/methods/baselines.md"
	@echo "make kills  encode killed 50 times at random, training at every write, and resumed (about 10 minutes)"
	@echo "make bench  the benchmarks behind benchmarks/results (about an hour on two cores)"
	@echo "make clean  remove .venv, site/ and caches"

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

$(INSTALLED)-docs: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[docs]"
	@touch $@

demo: $(INSTALLED)
	$(BIN)/abbe demo --out $(OUT)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not long"

long: $(INSTALLED)
	$(BIN)/python -m pytest -m long

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	@# Types are checked while the tests run: it is one process, and half a minute without its cache.
	@$(BIN)/mypy & types=$$!; \
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q -m "not slow and not long and not gpu"; tests=$$?; \
	wait $$types && exit $$tests

docs: $(INSTALLED)-docs
	$(BIN)/python -m abbe.condensers docs/methods/baselines.md
	$(BIN)/python -m mkdocs build --strict

bench: $(INSTALLED)
	$(BIN)/abbe bench texture --results benchmarks/results $(if $(PATCHES),--patches $(PATCHES))
	$(BIN)/abbe bench flops --results benchmarks/results
	$(BIN)/abbe bench ops --results benchmarks/results
	$(BIN)/abbe bench slots --out out/bench-slots --results benchmarks/results $(if $(PATCHES),--mosaic $(PATCHES))
	$(BIN)/abbe bench needle --out out/bench-needle --results benchmarks/results

kills: $(INSTALLED)
	ABBE_KILLS=50 $(BIN)/python -m pytest tests/slides/test_killed.py -s
	ABBE_KILLS=1000 $(BIN)/python -m pytest tests/evaluate/protocols/test_resume_by_content.py -s

clean:
	rm -rf $(VENV) build dist site .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
