# make repro: the main job.  make test: the tests.  Both are complete on a fresh machine.
.DEFAULT_GOAL := repro
.PHONY: repro report check accept test test-slow lint format ui plan profile params schema lock clean-cache bench growth docs house

PYTHON ?= python3
PORT ?= 5000
VENV := .venv
STAMP := $(VENV)/stamp-$(shell cat requirements.lock pyproject.toml | cksum | tr -d ' ')
# Stages and tests run in .venv without anybody activating it.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PYTHONUNBUFFERED := 1
export DO_NOT_TRACK := 1
# Threads that wait by spinning starve each other as soon as anything else wants a core.
export OMP_WAIT_POLICY ?= PASSIVE
export MLFLOW_DISABLE_TELEMETRY := true

# Scripts of an environment, and where it finds the package, are absolute paths.
ifneq ($(wildcard $(VENV)/bin/activate),)
ifneq ($(shell test -L $(VENV) || grep -qF '$(CURDIR)/$(VENV)' $(VENV)/bin/activate || echo moved),)
$(error $(VENV) was made in another place than $(CURDIR), as in a moved checkout: remove it (rm -r $(VENV)), and make sets it up again)
endif
endif

repro: $(STAMP)
	@git rev-parse --verify -q HEAD > /dev/null 2>&1 || { \
	  echo "make repro needs a git checkout with a commit: DVC finds its root by it and every run is"; \
	  echo "tagged with the commit. Clone the repository, or here: git init && git add -A && git commit -m start"; \
	  exit 1; }
	@git diff --quiet HEAD -- . ':!reports' ':!dvc.lock' || echo "note: the tree has uncommitted changes; runs are tagged dirty"
	@python stages/write_params.py --complete
	@python stages/plan.py
	@python stages/unlock.py
	dvc repro
	@python stages/provenance.py

# The report's page alone, within a minute: after a clone from the committed tables and figures.
report: $(STAMP)
	@python stages/report.py

# Do the study's numbers stand? Red where one moved (docs/gate.md); make says 2 for every failure.
check: $(STAMP)
	@python stages/check.py

# make accept REASON="..." takes them as the new baseline.
accept: export STEADYMAP_REASON := $(REASON)
accept: $(STAMP)
	@python stages/check.py --accept --reason "$$STEADYMAP_REASON"

plan: $(STAMP)
	@python stages/plan.py

# The tests' networks are too small to share out: one thread per process, a process per core.
test: export OMP_NUM_THREADS := 1
test: $(STAMP)
	pytest -m "not slow" -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow: $(STAMP)
	pytest -m slow

lint: $(STAMP)
	ruff format --check .
	ruff check .
	mypy

format: $(STAMP)
	ruff format .
	ruff check --fix .

ui: $(STAMP)
	@python -m steadymap.tracking ui --port $(PORT)

# make profile P=embedded writes the whole params.yaml.
profile: $(STAMP)
	@python stages/write_params.py $(P)

# A short params.yaml gets the defaults of what it leaves out, which DVC looks up; so does make repro.
params: $(STAMP)
	@python stages/write_params.py --complete

# After a change of src/steadymap/params/: what editors know of params.yaml.
schema: $(STAMP)
	@python stages/write_params.py --schema

# Beside Captum, lime and others, in one run; on two quiet cores about 22 minutes.
bench: $(STAMP)
	@python benchmarks/bench.py

growth: $(STAMP)
	@python benchmarks/bench.py --growth

# Tables of README and docs/, from the files under reports/.
docs: $(STAMP)
	@python studies/pages.py

# Folders, imports between them, lines of code, functions over the limits; draws the architecture.
house: $(STAMP)
	@python studies/structure.py --draw

clean-cache:
	@du -m -d 1 .cache 2> /dev/null | sort -k 2 | awk '{print $$1 " MB  " $$2}' | grep . || echo "no task cache"
	@test ! -d .cache || echo "freed; the next run computes again what results/ and DVC's own cache don't hold"
	@rm -rf .cache

# One environment per lock: a changed lock makes a new stamp and brings .venv up to it.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "steadymap needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
	       "name another: make PYTHON=python3.12"; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) from requirements.lock"
	@$(VENV)/bin/python -m pip install -q -r requirements.lock
	@$(VENV)/bin/python -m pip install -q --no-deps --no-build-isolation -e .
	@rm -f $(VENV)/stamp-*
	@touch $@

# After a change of pyproject.toml: exact versions of what is installed, free of platform lines.
lock:
	$(VENV)/bin/python -m pip freeze --all --exclude-editable \
	  | grep -viE '^(nvidia|cuda|triton|pip=)' > requirements.lock
