# `make help` lists the targets. Each installs what it needs first, so `make demo` alone works on a fresh machine.
PYTHON  ?=# interpreter to build .venv from; when none is named the one .venv has, else python3
PROFILE ?= auto
DATA    ?=# folder of data sets; OTKD_DATA_DIR does the same
SWEEP   ?=# for make report; the last one run
RUNS    ?=# for make dashboard; OTKD_RUNS does the same
PORT    ?= 5000
ARGS    ?=# passed on to otkd or pytest, e.g. ARGS="--set train.epochs=3"

BIN   := .venv/bin
STAMP := .venv/.otkd-setup
SWEEP_ARGS = --profile $(PROFILE) $(if $(DATA),--data-dir "$(DATA)") $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help setup demo sweep-cifar sweep-svhn sweep-imagenet sweep-ot sweep-zoo ablation-cifar tune-transport report ui dashboard test test-long test-faults bench-ot bench-methods bench-train bench-sweep bench-tuning bench-report postgres lint format lock schema golden clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s%s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## Build .venv from requirements.lock (PYTHON=python3.12 for another interpreter)
	@:

# A named interpreter is compared with the one .venv has; a .venv of another folder (moved, copied) is built anew.
ifneq ($(filter command,$(origin PYTHON))$(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif
$(STAMP): pyproject.toml requirements.lock
	@bash scripts/setup $(if $(PYTHON),"$(PYTHON)")

demo: $(STAMP) ## The whole job in minutes on data that needs no download: teacher, sweep, MLflow, report
	@$(BIN)/otkd sweep sweeps/demo.yaml $(ARGS)

sweep-cifar: $(STAMP) ## CIFAR-100 (PROFILE=auto|quick|paper, DATA=folder, ARGS=…)
	@$(BIN)/otkd sweep sweeps/cifar100.yaml $(SWEEP_ARGS)

sweep-svhn: $(STAMP) ## SVHN (PROFILE, DATA, ARGS as above)
	@$(BIN)/otkd sweep sweeps/svhn.yaml $(SWEEP_ARGS)

sweep-imagenet: $(STAMP) ## ImageNet, from a local copy, with torchvision's teachers (PROFILE, DATA, ARGS as above)
	@$(BIN)/otkd sweep sweeps/imagenet.yaml $(SWEEP_ARGS)

sweep-ot: $(STAMP) ## Every transport solver on one pair: who is best, who is cheap (PROFILE, DATA, ARGS as above)
	@$(BIN)/otkd sweep sweeps/ot_solvers.yaml $(SWEEP_ARGS)

sweep-zoo: $(STAMP) ## Every published method of sweeps/methods.yaml on one pair (PROFILE, DATA, ARGS as above)
	@$(BIN)/otkd sweep sweeps/zoo.yaml $(SWEEP_ARGS)

ablation-cifar: $(STAMP) ## What each part of the transport loss brings on CIFAR-100 (PROFILE, DATA, ARGS as above)
	@$(BIN)/otkd sweep sweeps/ablations/cifar100_transport.yaml $(SWEEP_ARGS)

tune-transport: $(STAMP) ## KD and a transport loss on CIFAR-100, tuned at equal effort (PROFILE, DATA, ARGS as above)
	@$(BIN)/otkd sweep sweeps/tune_transport.yaml $(SWEEP_ARGS)

report: $(STAMP) ## Tables and figures of the last sweep again (SWEEP=name for another)
	@$(BIN)/otkd report $(SWEEP) $(ARGS)

ui: $(STAMP) ## MLflow's pages on 127.0.0.1 (PORT=5000)
	@$(BIN)/otkd ui --port $(PORT) $(ARGS)

dashboard: $(STAMP) ## The live page of a sweep on 127.0.0.1 (PORT=8501, RUNS=folder)
	@exec $(BIN)/python -m dashboards --port $(if $(filter file,$(origin PORT)),8501,$(PORT)) $(if $(RUNS),--runs "$(RUNS)") $(ARGS)

test: $(STAMP) ## The tests, but for the long ones (ARGS="tests/ot -k sinkhorn" for some)
	@$(BIN)/python -m pytest $(ARGS)

test-long: $(STAMP) ## The tests that take half a minute and more (ARGS as above)
	@$(BIN)/python -m pytest -m long $(ARGS)

test-faults: $(STAMP) ## Whole sweeps that are killed, starved and cut off, and must lose nothing; minutes (ARGS as above)
	@$(BIN)/python -m pytest tests/faults $(ARGS)

bench-ot: $(STAMP) ## Transport solvers against POT and geomloss, side by side (ARGS="--quick", "--save")
	@$(BIN)/python benchmarks/ot.py $(ARGS)

bench-methods: $(STAMP) ## What a step with each method costs beside KD, in time, memory and parameters (ARGS as above)
	@$(BIN)/python benchmarks/methods.py $(ARGS)

bench-train: $(STAMP) ## The engine beside its floor and a classic loop (ARGS as above; ARGS=--sweep: a sweep as cohorts and not)
	@$(BIN)/python benchmarks/train.py $(if $(DATA),--data-dir "$(DATA)") $(ARGS)

bench-sweep: $(STAMP) ## A sweep beside its training: 200 trials of a second, 2,000 trials' records (ARGS as above)
	@$(BIN)/python benchmarks/sweep.py $(ARGS)

bench-tuning: $(STAMP) ## A search that stops early beside the whole grid, on CIFAR-100 (DATA, ARGS as above)
	@$(BIN)/python benchmarks/tuning.py $(if $(DATA),--data-dir "$(DATA)") $(ARGS)

bench-report: $(STAMP) ## The report of 5,000 trials: first, again, and beside MLflow's calls (ARGS as above)
	@$(BIN)/python benchmarks/report.py $(ARGS)

postgres: $(STAMP) ## PostgreSQL for MLflow's records on 127.0.0.1 until Ctrl-C; says what to export (data in runs/postgres)
	@exec $(BIN)/python scripts/postgres $(ARGS)

lint: $(STAMP) ## Style, types, and who may import whom
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo 'make format puts this right'; exit 1; }
	@$(BIN)/mypy --no-error-summary
	@report=$$($(BIN)/lint-imports) || { echo "$$report"; exit 1; }
	@echo 'lint: style, types and imports are as they should be'

format: $(STAMP) ## Put right what lint can put right by itself
	@$(BIN)/ruff check --quiet --fix . && $(BIN)/ruff format --quiet .

lock: $(STAMP) ## requirements.lock from pyproject.toml (ARGS=--upgrade for newer versions)
	@$(BIN)/uv pip compile --quiet --no-emit-index-url --no-emit-find-links --generate-hashes --universal \
	  --python-version 3.11 --no-header --extra dev $(ARGS) pyproject.toml -o requirements.lock

schema: $(STAMP) ## docs/sweep.schema.json, by which editors check sweep files
	@$(BIN)/otkd schema $(ARGS)

golden: $(STAMP) ## The texts that the report's test expects (tests/report/golden), after a change that is meant
	@$(BIN)/python tests/report/golden_report.py

clean: ## Remove build and test caches, compiled solvers too; runs/ (everything trained) and .venv stay
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist build *.egg-info
	@find otkd dashboards tests benchmarks scripts -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
