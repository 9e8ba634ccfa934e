# Everything runs in .venv with the versions of constraints.txt; nothing else is touched.
#   make demo    train a small network, compress it to 40 % of its MAdds, print the table
#   make test    run the tests          make sweep   run the longer checks
#   make lint    ruff                   make types   mypy
#   make docs    build the documentation as a site, into build/site
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt

.PHONY: help demo test sweep lint types docs check clean
.NOTPARALLEL: # two installations into one environment would disturb each other
.DELETE_ON_ERROR:

help:
	@sed -n '2,5s/^# *//p' Makefile

demo: $(VENV)/.demo
	@rm -rf runs/demo
	$(BIN)/compressor compress samples/digits.py --budget madds=40% --finetune 10 --out runs/demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest --quiet --numprocesses 2 --dist loadfile

sweep: $(VENV)/.dev
	$(BIN)/python -m pytest --quiet -m sweep

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict  # docs/design.md tells of its end

check: lint types test docs

clean:
	rm -rf $(VENV) runs build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "$(PYTHON) must be Python 3.10 or newer; set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV); the first time takes minutes"
	@$(INSTALL) -e '.[demo]'
	@touch $@

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) with the tools for the site; the first time takes minutes"
	@$(INSTALL) -e '.[docs]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) with the tools for tests; the first time takes minutes"
	@$(INSTALL) -e '.[demo,test,lint]'
	@touch $@
