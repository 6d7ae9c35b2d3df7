# Each target sets up .venv by itself and runs in it: `make demo` on a fresh clone is enough.
# ARGS reaches what is run: make demo ARGS="--url redis://localhost" or make test ARGS="-k retry".

PYTHON ?= python3

.PHONY: help setup demo test check bench faults

help:
	@echo "make demo    a month of real flights through a processor that is killed half-way"
	@echo "make test    style, types, layers and all tests"
	@echo "make check   the same without the tests"
	@echo "make bench   throughput and latency beside hand-written loops"
	@echo "make setup   what the others need, alone"
	@echo "make faults  the long fault runs on real servers"

setup demo test check bench faults:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found: install Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) scripts/dev.py $@ $(if $(ARGS),-- $(ARGS))
