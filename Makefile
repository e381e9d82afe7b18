# Every target starts from nothing: it makes what it needs first, and is quick when that is there already.

# Which Python makes the virtual environments (3.11 or newer).
PYTHON ?= python3
# More words for the command that a target ends in: make run ARGS='--listen 127.0.0.1:6000', make test ARGS='-k limits'.
ARGS ?=
# How many processes share the tests: a number, or `logical` for one a core.
TEST_WORKERS ?= logical

VENV := .venv
BIN := $(VENV)/bin
DEV := $(VENV)/.installed
STUBS := .venv-stubs/.installed
EXAMPLES := .venv-examples/.installed
IMAGE := .venv-image/.installed
CHART := .venv-chart/.installed
CHECKOV := .venv-checkov/.installed
AUDIT := .venv-audit/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo run test soak lint bench model image chart audit panels stubs lock format release-image clean

help: ## Say what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(DEV) ## Make the virtual environment, with the locked packages and this project in it

demo: $(DEV) $(EXAMPLES) ## Serve beside three small services that it protects (examples/)
	$(BIN)/python examples/demo.py $(ARGS)

run: $(DEV) ## Serve on this machine, with all it needs in ./formgate-data
	$(BIN)/formgate serve $(ARGS)

test: $(DEV) ## Run the tests
	$(BIN)/pytest --numprocesses $(TEST_WORKERS) --dist worksteal $(ARGS)

soak: $(DEV) ## Run the tests at length: more rounds, more examples
	FORMGATE_SOAK=1 $(BIN)/pytest --numprocesses $(TEST_WORKERS) --dist worksteal --timeout 3600 --reruns 0 $(ARGS)

lint: $(DEV) $(STUBS) ## Check style, types, layers, the contract and the stubs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd protos && ../$(BIN)/buf lint
	cd protos && ../$(BIN)/buf format --diff --exit-code --path formgate
	cd protos && ../$(BIN)/buf breaking --against image/released.binpb
	scripts/stubs --check
	scripts/no-private-names

bench: $(DEV) ## Measure the speed of a check
	$(BIN)/python -m bench $(ARGS)

model: $(DEV) ## Explore the protocol of revocation in every interleaving (needs gcc; a quarter of an hour, 2 GB)
	$(BIN)/python -m scripts.model $(ARGS)

image: $(DEV) $(IMAGE) ## Build the image for real, serve a check out of it, and list what is in it
	$(BIN)/python -m scripts.image $(ARGS)

chart: $(DEV) $(CHART) $(CHECKOV) ## Check the Helm chart with the real Helm, for each Kubernetes
	$(BIN)/python -m scripts.chart $(ARGS)

audit: $(DEV) $(AUDIT) ## Ask for known vulnerabilities of what is locked (needs osv.dev; ends with 3 where that is not reached)
	$(BIN)/python scripts/audit.py $(ARGS)

panels: $(DEV) ## Draw the dashboard's panels from a real run (needs Prometheus; three minutes)
	$(BIN)/python -m scripts.panels $(ARGS)

stubs: $(STUBS) ## Generate the Python stubs from the protos
	scripts/stubs

lock: $(DEV) ## Resolve the newest versions into requirements/*.txt
	$(BIN)/python scripts/lock.py $(ARGS)

format: $(DEV) ## Put code and protos into their form
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format
	cd protos && ../$(BIN)/buf format --write --path formgate

release-image: $(DEV) ## With a release: make its contract the one that must not break
	cd protos && ../$(BIN)/buf build --exclude-source-info --output image/released.binpb

clean: ## Remove what make has made (never ./formgate-data)
	rm -rf $(VENV) .venv-* dist clients/typescript/dist clients/typescript/node_modules .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The locked packages, then ourselves, editable and without resolving anything again.
$(VENV)/.locked: requirements/dev.txt scripts/venv
	scripts/venv $(PYTHON) $(VENV) $<
	@touch $@

$(DEV): $(VENV)/.locked pyproject.toml clients/python/pyproject.toml
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable clients/python --editable .
	@touch $@

# The others, each apart: .venv-NAME holds what requirements/NAME.txt says.
.venv-%/.installed: requirements/%.txt scripts/venv
	scripts/venv $(PYTHON) $(@D) $<
	@touch $@

# What the examples are made of, and our client as anybody else would install it.
$(EXAMPLES): requirements/examples.txt clients/python/pyproject.toml scripts/venv
	scripts/venv $(PYTHON) .venv-examples $<
	.venv-examples/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable clients/python
	@touch $@
