# make book | make test: the two commands. Everything else is a part of them.
PYTHON ?= python3
PROFILE ?= smoke
RESULTS ?= small
BIN := .venv/bin
unexport PYTHONDONTWRITEBYTECODE  # a process that compiles torch anew starts five seconds later

.PHONY: help env book pages numbers run test lint lock clean
help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

book: env  ## run the notebooks of PROFILE (default smoke), show RESULTS (default small) on the results pages, build the book
	$(BIN)/python -m nda run --profile $(PROFILE) --results $(RESULTS) --jobs 2
	@$(MAKE) --no-print-directory -j 2 pages numbers
	@echo "The book: $(CURDIR)/_build/html/index.html"

pages:
	$(BIN)/jupyter-book build . -n -W --keep-going -q
	NDA_BOOK=. $(BIN)/python -m pytest --noconftest tests/test_book.py

numbers:
	NDA_BOOK=. $(BIN)/python -m pytest tests/test_lds_page.py tests/test_removals_page.py

test: env  ## run the tests: module, notebooks (nbval), book
	$(BIN)/python -m pytest -n 2

run: env  ## run the notebooks of PROFILE into book/runs/
	$(BIN)/python -m nda run --profile $(PROFILE) --jobs 2

lint: env  ## ruff and mypy
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

env: .venv/installed  ## create .venv from requirements.lock, once

.venv/installed: requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found; install Python 3.11 or newer, or call make PYTHON=/path/to/python" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, $$($(PYTHON) --version) was found; call make PYTHON=/path/to/python" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make environments; install its venv module (Debian: python3-venv)" >&2; exit 2; }
	@echo "Making .venv with the packages of requirements.lock; this takes some minutes and gigabytes, once."
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --no-deps -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

lock:  ## resolve requirements.lock again (needs uv)
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 -o requirements.lock

clean:  ## remove what was built: the book, executed notebooks, working files of PROFILE
	rm -rf _build book/runs data/$(PROFILE) data/results/$(PROFILE)
