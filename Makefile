# Two commands do all the set-up:
#   make run    a virtual environment, the installation, the default experiment and its result
#   make test   the same for everything that is checked: lint, types, tests
# Repeated calls install nothing again, unless a file that names the dependencies has changed.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
PYTEST_ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
INSTALLED_DEV := $(VENV)/installed-dev
NEEDS := setup.cfg pyproject.toml constraints.txt
CHECKED := clframe strategies scenarios tests benchmarks examples docs
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# $(call timed,name,command): run a command and say how long it took, whatever its outcome.
timed = @start=$$(date +%s); $(2); status=$$?; echo "[make] $(1): $$(( $$(date +%s) - start )) s"; exit $$status

.DEFAULT_GOAL := help
.PHONY: help run test install dev lint typecheck pytest docs format clean

help:
	@echo 'make run        install what is needed, run the default experiment, print its result'
	@echo 'make test       install what is needed, then lint, typecheck and pytest'
	@echo 'make lint       ruff: rules and formatting'
	@echo 'make typecheck  mypy, strict'
	@echo 'make pytest     the tests alone; PYTEST_ARGS="-k memory" chooses among them'
	@echo 'make docs       write the generated pages of docs/ again'
	@echo 'make format     let ruff repair what it can'
	@echo 'make clean      remove the virtual environment and everything that the tools left'

run: $(INSTALLED)
	@$(BIN)/clframe run

test: lint typecheck pytest

install: $(INSTALLED)

dev: $(INSTALLED_DEV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("clframe needs Python 3.11 or newer; choose one with make PYTHON=python3.11") \
		if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv $(VENV)

$(INSTALLED): $(NEEDS) | $(BIN)/python
	@echo '[make] installing clframe and what it needs into $(VENV); the first time takes a few minutes'
	$(call timed,install,$(PIP_INSTALL) --editable . && touch $@)

$(INSTALLED_DEV): $(NEEDS) | $(BIN)/python
	@echo '[make] installing clframe, what it needs and the tools into $(VENV); the first time takes a few minutes'
	$(call timed,install,$(PIP_INSTALL) --editable '.[dev]' && touch $@ $(INSTALLED))

lint: $(INSTALLED_DEV)
	$(call timed,lint,$(BIN)/ruff check $(wildcard $(CHECKED)) && $(BIN)/ruff format --check $(wildcard $(CHECKED)))

# mypy can't follow an editable installation whose folders carry other import names than their own: it is shown a
# folder of links in which every package lies where its name says.
typecheck: $(INSTALLED_DEV)
	@rm -rf .typecheck && mkdir -p .typecheck/clframe
	@ln -s $(abspath $(wildcard clframe/*)) $(abspath strategies scenarios) .typecheck/clframe/
	@rm -f .typecheck/clframe/__pycache__
	$(call timed,typecheck,$(BIN)/mypy --package clframe)

pytest: $(INSTALLED_DEV)
	$(call timed,pytest,OMP_NUM_THREADS=1 CLFRAME_TEST_CACHE=$(CURDIR)/.cache $(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS))

docs: $(INSTALLED)
	@$(BIN)/python docs/generate.py

format: $(INSTALLED_DEV)
	@$(BIN)/ruff check --fix $(wildcard $(CHECKED)); $(BIN)/ruff format $(wildcard $(CHECKED))

clean:
	rm -rf $(VENV) .typecheck .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist .cache clframe.egg-info
