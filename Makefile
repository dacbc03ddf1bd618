# make demo | make test | make lab: each sets up .venv first, if need be.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lab clean

demo: .venv/ready
	$(BIN)/lilnetx train digits --seeds 0,1,2

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/python -m pytest --nbval

lab: .venv/ready
	$(BIN)/jupyter lab tutorials/

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv runs
