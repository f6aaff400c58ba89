# Two commands: `make demo` and `make test`. Each sets up what it needs and can be run again at any time.

# The first Python 3.10 or later that starts; triport chooses the best one for each framework itself.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.10 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && { echo $$p; break; }; done)
# The frameworks whose environments the tests require.
FRAMEWORKS ?= torch
# More words for pytest, e.g. make test TESTS="-k schedule -x".
TESTS ?=

comma := ,
empty :=
space := $(empty) $(empty)
VENVS := $(or $(TRIPORT_VENVS),.venvs)
TORCH := $(VENVS)/torch/bin/python

.PHONY: help demo test check format setup clean

help:
	@echo "make demo    set up, pretrain a small network on real images and show what it learned"
	@echo "make test    set up and run every test"
	@echo "make check   formatting, lint and types"
	@echo "make format  put the formatting right"
	@echo "make clean   remove environments and caches (runs are kept)"

demo: setup
	@$(PYTHON) -m triport demo --backend $(subst $(space),$(comma),$(strip $(FRAMEWORKS)))

test: setup
	@$(TORCH) -m pytest parity_tests -n $(or $(WORKERS),auto) --dist loadfile --require=$(subst $(space),$(comma),$(strip $(FRAMEWORKS))) $(TESTS)

check: setup
	@$(TORCH) -m ruff format --check .
	@$(TORCH) -m ruff check .
	@$(TORCH) -m mypy

format: setup
	@$(TORCH) -m ruff format .
	@$(TORCH) -m ruff check --fix .

setup:
	@test -n "$(PYTHON)" || { echo "triport needs Python 3.10 or later on PATH"; exit 2; }
	@$(PYTHON) -m triport setup $(FRAMEWORKS)

clean:
	rm -rf .venvs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
