# Two commands: `make demo` and `make test`. Each sets up what it needs and can be run again at any time.

# The first Python 3.10 or later that starts; triport chooses the best one for each framework itself.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.10 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && { echo $$p; break; }; done)
# The frameworks that are set up, tested and shown; torch is always one of them.
FRAMEWORKS ?= torch paddle oneflow
# More words for pytest, e.g. make test TESTS="-k schedule -x".
TESTS ?=

comma := ,
empty :=
space := $(empty) $(empty)
VENVS := $(or $(TRIPORT_VENVS),.venvs)
TORCH := $(VENVS)/torch/bin/python
OTHERS := $(filter-out torch,$(FRAMEWORKS))
# A worker that dies ends the run: a new one in its place would leave the rest waiting for ever.
SPREAD := -n $(or $(WORKERS),auto) --dist loadfile --max-worker-restart=0

.PHONY: help demo test check format setup clean

help:
	@echo "make demo    set up, pretrain a small network on real images and show what it learned"
	@echo "make test    set up and run every test"
	@echo "make check   formatting, lint and types"
	@echo "make format  put the formatting right"
	@echo "make clean   remove environments and caches (runs are kept)"

# What cannot be set up beside PyTorch is said, and the demo goes on without it.
demo:
	@test -n "$(PYTHON)" || { echo "triport needs Python 3.10 or later on PATH"; exit 2; }
	@$(PYTHON) -m triport setup torch
	@test -z "$(OTHERS)" || $(PYTHON) -m triport setup $(OTHERS) || echo "(going on without what cannot be set up)"
	@$(PYTHON) -m triport demo

# Everything in PyTorch's environment, which asks the other frameworks in theirs; before it, in each of theirs, the tests
# that need a framework in their own interpreter (of which -k in TESTS may leave none: exit code 5).
test: setup
	@failed=0; for framework in $(OTHERS); do \
		echo "tests inside $$framework's environment"; \
		$(VENVS)/$$framework/bin/python -m pytest parity_tests --own $(SPREAD) --require=$$framework $(TESTS); \
		code=$$?; [ $$code -eq 0 ] || [ $$code -eq 5 ] || failed=1; \
	done; \
	$(TORCH) -m pytest parity_tests $(SPREAD) --require=$(subst $(space),$(comma),$(strip $(FRAMEWORKS))) $(TESTS) || failed=1; \
	exit $$failed

check: setup
	@$(TORCH) -m ruff format --check .
	@$(TORCH) -m ruff check .
	@$(TORCH) -m mypy

format: setup
	@$(TORCH) -m ruff format .
	@$(TORCH) -m ruff check --fix .

setup:
	@test -n "$(PYTHON)" || { echo "triport needs Python 3.10 or later on PATH"; exit 2; }
	@$(PYTHON) -m triport setup torch $(OTHERS)

clean:
	rm -rf .venvs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
