# Two commands, each of which does all of its own set-up in ./.venv:
#   make demo    choose a subset of a generated instruction set with a small model, and show the summary
#   make test    lint, types, import contracts and the whole test suite
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two processes of one thread each beat one of two threads, on tests as small as these.
WORKERS ?= 2
TORCH := $(shell sed -n 's/^torch==\([0-9.]*\).*/torch==\1/p' constraints.txt)

.PHONY: demo test lint bench clean
.DELETE_ON_ERROR:

demo: $(STAMP)
	$(BIN)/spice-select demo --output demo-run --overwrite

test: $(STAMP) lint
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# torch goes first and by exact version, so that a CPU wheel that is at hand is taken and no other version follows.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train,eval,ray,dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo-run .pytest_cache .ruff_cache .hypothesis
