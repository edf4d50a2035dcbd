# make demo: install and run the whole job on a generated phantom dataset.
# make test: install and run the test suite. Both need Python 3.11 and a route to a package index.
PYTHON ?= python3.11
VENV ?= .venv
STAMP := $(VENV)/.installed
REAL_DATA ?= ../shared/data

.PHONY: demo test lint types clean

demo: $(STAMP)
	$(VENV)/bin/autoseg demo --out demo

test: $(STAMP)
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal tests --real-data $(REAL_DATA)

lint: $(STAMP)
	$(VENV)/bin/ruff check .

types: $(STAMP)
	$(VENV)/bin/mypy

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo .pytest_cache .hypothesis .mypy_cache .ruff_cache *.egg-info
