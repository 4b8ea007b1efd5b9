PYTHON ?= python3
VENV := .venv
BENCH := .venv-bench
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile -c constraints.txt
# Packages are compiled when they are first imported, which many environments of containers forbid.
export PYTHONDONTWRITEBYTECODE :=
# Small models run slower on two threads than on one; cores are used by processes.
TEST_ENV := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
# A file's tests share what they make; long files begin first (tests/conftest.py). Some tests wait for processes of
# their own, and leave a core to a third worker.
PYTEST := $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# Where gradients, activations and trained weights are held against oracles.
FLOATS := tests/attribute/test_per_example.py tests/attribute/test_lora_gradients.py tests/patch/test_finetune.py

# Pages of the documentation that are written from the code.
PAGES := config_reference artifacts_reference cli_reference methods_reference python_reference results_reference \
  decisions_index

.DEFAULT_GOAL := help
.PHONY: help demo study leaderboard test types suite test-default portable slow bench docs notebook clean

help:
	@echo "make demo    install, run the whole study on the embedded model organism, say where the report is"
	@echo "make test    install the development tools; linters, types, import layers, tests"
	@echo "make test-default  the tests of gradients and training as a CPU without AVX adds its floats"
	@echo "make portable  all tests as three kinds of CPU add their floats, one of them on two threads"
	@echo "make study   the same study with five training seeds of both protocols"
	@echo "make leaderboard  all methods on all organisms, resumable; writes studies/leaderboard/"
	@echo "make slow    the tests that take minutes"
	@echo "make bench   our kernels against their best peers, and against the ratios of the last committed run;"
	@echo "             20 minutes, with FULL=1 two hours at published shapes"
	@echo "make docs    write the pages that are generated from the code, build the site into site/"
	@echo "make notebook  write lda_attribution_notebook.ipynb from its source in notebooks/"
	@echo "make clean   remove .venv, .venv-bench and caches; runs/ stays"

demo: $(VENV)/installed
	$(BIN)/datablame run organism --out runs/organism --resume

study: $(VENV)/installed
	$(BIN)/datablame run organism --set 'patch.seeds=[0,1,2,3,4]' --out runs/study --resume

leaderboard: $(VENV)/installed
	$(BIN)/datablame leaderboard --out runs/leaderboard --write studies/leaderboard

test: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	@$(MAKE) --no-print-directory -j2 types suite

types:
	$(BIN)/mypy

suite:
	$(TEST_ENV) $(PYTEST) --nbmake --nbmake-timeout=900 lda_attribution_notebook.ipynb tests

test-default: $(VENV)/installed-dev
	$(TEST_ENV) ATEN_CPU_CAPABILITY=default $(PYTEST) $(FLOATS) -k 'not killed'

portable: $(VENV)/installed-dev
	$(TEST_ENV) ATEN_CPU_CAPABILITY=default $(PYTEST) tests
	$(TEST_ENV) ATEN_CPU_CAPABILITY=avx2 $(PYTEST) tests
	env -u ATEN_CPU_CAPABILITY $(TEST_ENV) OMP_NUM_THREADS=2 $(PYTEST) tests

slow: $(VENV)/installed-dev
	$(TEST_ENV) $(BIN)/python -m pytest -m slow --timeout=3600

bench: $(BENCH)/installed
	HF_HUB_OFFLINE=1 $(BENCH)/bin/python benchmarks/bench.py $(if $(FULL),--full)

docs: $(VENV)/installed-dev
	for page in $(PAGES); do $(BIN)/python scripts/$$page.py || exit; done
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "the site is in site/; to read it with its search: $(BIN)/python -m http.server -d site"

notebook: $(VENV)/installed-dev
	$(BIN)/python scripts/notebook.py

clean:
	rm -rf $(VENV) $(BENCH) build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

# Editable, so that a change in src needs no installation; only these two files ask for a new one.
$(VENV)/installed: $(VENV)/made pyproject.toml constraints.txt
	@echo "installing datablame into $(VENV) (some minutes the first time)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/made pyproject.toml constraints.txt
	@echo "installing datablame and its development tools into $(VENV) (some minutes the first time)"
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/installed

# A place of their own: some of the peers bring packages named tests and examples, which hide ours.
$(BENCH)/installed: pyproject.toml constraints.txt $(VENV)/made
	@echo "installing datablame and the peers of the benchmarks into $(BENCH) (some minutes the first time)"
	@$(PYTHON) -m venv $(BENCH)
	@$(subst $(VENV)/,$(BENCH)/,$(PIP)) --editable '.[bench]'
	@# The peers ask for these and do not use them; built for CUDA, they break transformers beside a torch for CPUs.
	@$(BENCH)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio
	@touch $@

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "datablame needs Python 3.11 or newer, and $(PYTHON) is not; name one: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@
