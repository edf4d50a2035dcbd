# make demo: install and run the whole job on a generated phantom dataset.
# make test: install and run the test suite. Both need Python 3.11 to 3.13 and access to a package index.
PYTHON ?= python3
VENV ?= .venv
STAMP := $(VENV)/.installed
REAL_DATA ?= ../shared/data

.PHONY: install demo test check lint format types docs clean

install: $(STAMP)

demo: $(STAMP)
	$(VENV)/bin/autoseg demo --out demo

test: $(STAMP)
	PYTHONDONTWRITEBYTECODE= $(VENV)/bin/python -m pytest -n 3 --dist worksteal tests --real-data $(REAL_DATA)

check: lint types docs

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(STAMP)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

types: $(STAMP)
	$(VENV)/bin/mypy

docs: $(STAMP)
	$(VENV)/bin/python -m mkdocs build --strict --quiet

define READY
import sys
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit("Python %d.%d is not supported; install Python 3.11, 3.12 or 3.13 and run: make PYTHON=python3.12" % sys.version_info[:2])
try:
    import ensurepip, venv
except ImportError as error:
    sys.exit("Python has no module %s; install it (on Debian and Ubuntu: apt install python3-venv)" % error.name)
endef
export READY

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found; install Python 3.11, 3.12 or 3.13, or run: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c "$$READY"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,docs]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo site build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache *.egg-info
