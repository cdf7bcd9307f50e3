# Everything runs in .venv, made by uv from uv.lock. Where uv is missing it is put into .tools/.
.DEFAULT_GOAL := help
.PHONY: help setup demo up test chaos check format bench loadtest docs reference-model clean

PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)
RUN = $(UV) run --locked --
# Each has a stack of its own: 1 GB. Most of the tests' time is waiting, so two do for two cores.
TEST_WORKERS ?= 2
REFERENCE_DATA = --customers 4000 --terminals 6000 --days 90 --seed 2026

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

.tools/bin/uv:
	$(PYTHON) -m venv .tools
	.tools/bin/pip install --quiet --disable-pip-version-check uv

setup: $(filter .tools/%,$(UV))  ## Make the environment (.venv) from the lock file
	$(UV) sync --locked --quiet

demo: setup  ## The main job end to end on real Kafka, Triton and Valkey, with its own checks
	$(RUN) flagger demo $(ARGS)

up: setup  ## Everything at work until Ctrl-C: Kafka, Triton, Valkey, streamer, gateway, desk
	$(RUN) flagger up --services $(ARGS)

test: setup  ## Run the tests
	$(RUN) pytest -n $(TEST_WORKERS) --dist loadfile $(ARGS)

chaos: setup  ## Kill or stop 140 processes at random under load, prove that nothing is lost (ARGS="--seed 1")
	$(RUN) pytest -m chaos -q tests/chaos tests/streamer tests/gateway $(ARGS)

check: setup  ## Lint, formatting and types; changes nothing
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

format: setup  ## Fix formatting and what the linter can fix
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

bench: setup  ## Measure throughput against its ceilings (results in runs/bench)
	$(RUN) flagger bench stream $(ARGS)

loadtest: setup  ## Prove the gateway's latency with Locust (results in runs/loadtest)
	$(RUN) flagger loadtest $(ARGS)

docs: setup  ## The documentation site on http://localhost:8000
	$(RUN) mkdocs serve

reference-model: setup  ## Train the committed model again, from seed to model_repository
	$(RUN) flagger simulate --out runs/reference/transactions.parquet $(REFERENCE_DATA)
	$(RUN) flagger train --data runs/reference/transactions.parquet --out runs/reference/training
	rm -rf model_repository
	$(RUN) flagger export runs/reference/training --keep 1

clean:  ## Remove what the build and the embedded stack made here
	rm -rf .venv .tools .flagger .mypy_cache .pytest_cache .ruff_cache .hypothesis
