# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
empty :=
space := $(empty) $(empty)
comma := ,
# pip separates wheel folders by spaces, uv by commas; empty where none is configured.
export UV_FIND_LINKS ?= $(subst $(space),$(comma),$(strip $(or $(PIP_FIND_LINKS),$(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null))))
BIN := $(VENV)/bin

.PHONY: demo test test-all lint docs clean

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q "uv>=0.13,<1"
	$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python -c constraints.txt -e . --group dev
	$(BIN)/python -c "import torch; print('torch', torch.__version__)"
	touch $@

demo: $(VENV)/.ready
	$(BIN)/efface demo --out runs/demo

test: $(VENV)/.ready lint
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

# The slow ones too: every command of the pages, every script of benchmarks/.
test-all: $(VENV)/.ready lint
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "slow or not slow"

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs
