# `make demo` and `make test` do everything on a machine that has Python >= 3.11 and make.
VENV := .venv
PYTHON ?= python3
CORES ?= $(shell nproc 2>/dev/null || echo 2)
PIP = $(VENV)/bin/python -m pip install --disable-pip-version-check
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: demo test test-quick validate lint install lock schema clean

demo: install
	snakemake --profile profiles/local --configfile workflow/configs/demo.yaml --cores $(CORES)
	python tests/check_planted_effects.py results/tables/scores.csv
	python -m neuropeft summary --configfile workflow/configs/demo.yaml

test: install
	pytest -n $(CORES) --dist loadfile --no-loadscope-reorder

# The units alone.
test-quick: install
	pytest -n $(CORES) --dist loadfile -m "not slow"

# Whether the benchmark finds what is planted in simulated cohorts, and nothing else.
validate: install
	python benchmarks/validate.py --processes $(CORES)

lint: install
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow/rules
	mypy && mypy benchmarks
	snakemake --lint --configfile workflow/configs/demo.yaml

install: $(VENV)/installed

$(VENV)/installed: requirements.lock pyproject.toml envs/lock_here.py
	$(PYTHON) -c "import sys; sys.exit('neuropeft needs Python >= 3.11' if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python envs/lock_here.py > $(VENV)/requirements.lock
	$(PIP) --require-hashes --no-deps --requirement $(VENV)/requirements.lock
	$(PIP) --no-build-isolation --editable .
	touch $@

schema: install
	python -m neuropeft schema > workflow/schemas/config.schema.json

# Resolve pyproject.toml anew and write down what came out, all but torch and the CUDA libraries that its wheel pins.
lock:
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --disable-pip-version-check --quiet pip-tools
	$(VENV)-lock/bin/pip-compile --quiet --extra dev --generate-hashes --allow-unsafe --strip-extras --no-annotate \
	  --no-header --no-emit-options --output-file $(VENV)-lock/resolved pyproject.toml
	( echo "# Exact versions and hashes of everything that is installed; written by 'make lock'."; \
	  awk '/^[a-z]/ { keep = !/^(torch|triton|nvidia-|cuda-)/ } /^[a-z ]/ && keep' $(VENV)-lock/resolved; \
	  cat envs/torch.lock ) > requirements.lock
	rm -rf $(VENV)-lock

clean:
	rm -rf $(VENV) build
