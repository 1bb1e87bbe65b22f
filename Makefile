# make demo: the laptop sweep of Table 3 on generated data. make tables: every row of all five tables for ten iterations.
# make test: all quick tests. make slow: the others, but for faults. make faults: all that kill, freeze, damage and
# fill. make overfit: every head and assigner learns eight images by heart. make statistics: the report's statistics on
# simulated sweeps. Each makes the environment first.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
export RAY_USAGE_STATS_ENABLED = 0
export MLFLOW_DISABLE_TELEMETRY = true

.PHONY: demo tables test slow faults overfit statistics lint format benchmarks clean

demo: $(VENV)/.installed
	$(BIN)/python -m orchestrator.sweep sweeps/table3.yaml --profile laptop --storage $(CURDIR)/demo

tables: $(VENV)/.installed
	@start=$$(date +%s); \
	$(BIN)/python -m orchestrator.sweep sweeps/paper.yaml --profile laptop --set schedule.iterations=10 \
		--storage $(CURDIR)/demo-tables; \
	status=$$?; echo "all tables: $$(( $$(date +%s) - start )) s"; exit $$status

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --no-loadscope-reorder

slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

faults: $(VENV)/.installed
	$(BIN)/python -m pytest tests/faults -m "long or not long" --resume -rs

overfit: $(VENV)/.installed
	$(BIN)/python -m tests.overfit

statistics: $(VENV)/.installed
	$(BIN)/python -m tests.statistics

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmarks: $(VENV)/.installed
	$(BIN)/python -m tests.benchmarks

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name it by: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo demo-tables dist .pytest_cache .mypy_cache .ruff_cache
