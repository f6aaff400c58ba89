# Two commands: `make demo` and `make test`. Each sets up what it needs and can be run again at any time.

# The first Python 3.10 or later that starts; triport chooses the best one for each framework itself.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.10 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && { echo $$p; break; }; done)
# The frameworks that are set up, tested and shown; torch is always one of them.
FRAMEWORKS ?= torch paddle oneflow
# More options for pytest, e.g. make test TESTS="-k schedule -x".
TESTS ?=

# Paths may contain spaces: each use is quoted, and tools are called as modules (a script's first line cannot contain a space).
VENVS := $(or $(TRIPORT_VENVS),.venvs)
TORCH := "$(VENVS)/torch/bin/python"
OTHERS := $(filter-out torch,$(FRAMEWORKS))
# A worker that dies ends the run: a replacement would leave the others waiting for ever.
# The files come in the order of conftest.py, longest first; xdist would put those of the most tests first.
SPREAD := -n $(or $(WORKERS),auto) --dist loadfile --no-loadscope-reorder --max-worker-restart=0

.PHONY: help demo test check format setup lint-tools python locks clean

help:
	@echo "make demo    set up, pretrain a small network on real images and show what it learned"
	@echo "make test    set up and run every test"
	@echo "make check   formatting, lint and types"
	@echo "make format  fix the formatting"
	@echo "make locks   compile locks/*.in into locks/*.txt (needs uv)"
	@echo "make clean   remove environments and caches (runs are kept)"

# Frameworks other than PyTorch that cannot be set up are reported, and the demo continues without them.
demo: python
	@$(PYTHON) -m triport setup torch
	@test -z "$(OTHERS)" || $(PYTHON) -m triport setup --where-possible $(OTHERS) || \
		echo "*** CONTINUING WITHOUT WHAT COULD NOT BE SET UP ***"
	@$(PYTHON) -m triport demo

# First, in the environment of each other framework, the tests that need that framework in their own interpreter (-k in TESTS
# may select none: exit code 5). Then everything in PyTorch's environment, which starts processes of the other frameworks.
# A framework that this machine does not support is left out with a message; one that is supported but fails ends the set-up.
# Hundreds of processes read the same sources, so Python may keep what it has compiled, whatever the shell says.
test: setup
	@unset PYTHONDONTWRITEBYTECODE; failed=0; ready=$$($(PYTHON) -m triport setup --list torch $(OTHERS)) || exit 1; \
	for framework in $$ready; do \
		[ $$framework != torch ] || continue; \
		echo "tests inside $$framework's environment"; \
		"$(VENVS)/$$framework/bin/python" -m pytest parity_tests --own $(SPREAD) --require=$$framework $(TESTS); \
		code=$$?; [ $$code -eq 0 ] || [ $$code -eq 5 ] || failed=1; \
	done; \
	$(TORCH) -m pytest parity_tests $(SPREAD) --require="$$(echo $$ready | tr ' ' ,)" $(TESTS) || failed=1; \
	exit $$failed

check: lint-tools
	@$(TORCH) -m ruff format --check .
	@$(TORCH) -m ruff check .
	@$(TORCH) -m mypy

format: lint-tools
	@$(TORCH) -m ruff format .
	@$(TORCH) -m ruff check --fix .

lint-tools: python
	@$(PYTHON) -m triport setup torch

setup: python
	@$(PYTHON) -m triport setup --where-possible torch $(OTHERS)

python:
	@test -n "$(PYTHON)" || { echo "triport needs Python 3.10 or later on PATH"; exit 2; }

locks: python
	@$(PYTHON) .ci/compile-locks

clean:
	rm -rf .venvs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
