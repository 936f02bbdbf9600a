# Everything a user runs. `make` alone prints a help text; each of its lines is taken from a target below.

PROFILE ?= default
PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python)
FORCE ?=
FRESH ?=
ALL ?=
C ?= C20
KILLS ?= 10
TORCH ?= 2.5.1
TORCHVISION ?= 0.20.1
comma := ,

# An activated conda environment (other than base) is used as it is; otherwise the project's own virtual environment.
ifneq ($(and $(CONDA_PREFIX),$(filter-out base,$(CONDA_DEFAULT_ENV))),)
ENV := $(CONDA_PREFIX)
else
ENV := .venv
endif
PY = "$(ENV)/bin/python"

# What `make test-torch` runs: the modules that need neither notebooks nor the tests' oracles.
CORE := saliences engine pruning training publish/test_stats.py test_fuzz.py test_data.py test_networks.py

NOTEBOOKS := $(sort $(basename $(notdir $(wildcard notebooks/[0-9][0-9]_*.ipynb))))

# PyTorch's threads wait for each other by spinning. A shorter wait costs little alone, and saves much beside other busy programs.
export GOMP_SPINCOUNT ?= 30000

unexport PYTHONPATH PYTHONHOME PYTHONSTARTUP MPLBACKEND JUPYTER_PATH JUPYTER_PREFER_ENV_PATH
.DEFAULT_GOAL := help
.PHONY: help env env-test data figures redraw smoke verify status claim verify-runs bench robustness test test-lab test-torch audit lint format lab site test-site explorer readme lock clean distclean $(NOTEBOOKS)

help:  ## this list
	@echo "make figures regenerates every figure, table and verdict; make test runs every test."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo "  make NN_slug      one notebook of: $(NOTEBOOKS)"
	@echo
	@echo "Settings: PROFILE=default|full|smoke|path.yaml   FORCE=1 (run notebooks that are up to date, too)   FRESH=1 (and use no kept results)   PYTHON=python3.11"

# $(call install,EXTRAS): create the environment if need be and install with the pins, unless that was done already for
# these very files in this very folder. The stamp is written last, so an interrupted installation is simply done again.
define install
@set -e; stamp="$(ENV)/.snipnb-$(1)"; want="$(CURDIR) $$(cat requirements.lock pyproject.toml | cksum)"; \
if [ "$$(cat "$$stamp" 2>/dev/null)" != "$$want" ]; then \
  if [ "$(ENV)" = .venv ]; then \
    "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
      { echo "Python 3.11 or newer is needed; '$(PYTHON)' is not. Name one: make PYTHON=/path/to/python3.11"; exit 1; }; \
    [ -x .venv/bin/python ] || echo "creating .venv with $(PYTHON)"; "$(PYTHON)" -m venv .venv; \
  fi; \
  echo "installing snipnb[$(1)] with the pins of requirements.lock into $(ENV) (several minutes)"; \
  [ -t 1 ] && quiet= || quiet=--quiet; \
  $(PY) -m pip install $$quiet --disable-pip-version-check --constraint requirements.lock --editable ".[$(1)]"; \
  printf '%s\n' "$$want" > "$$stamp"; \
fi
endef

env:  ## make the environment: .venv, or the activated conda environment
	$(call install,notebooks)

env-test: env
	$(call install,notebooks$(comma)test)

data: env  ## fetch and verify MNIST (55 MB on disk)
	@$(PY) -m snipnb data

figures: env  ## run the notebooks, into figures/: figures, tables, verdicts
	@$(PY) -m tools figures --profile "$(PROFILE)" $(if $(FORCE),--force) $(if $(FRESH),--fresh)

$(NOTEBOOKS): env
	@$(PY) -m tools figures --profile "$(PROFILE)" $(if $(FORCE),--force) $(if $(FRESH),--fresh) $@

redraw: env  ## redraw pictures, tables and ledger from published numbers, in minutes: after changes of captions, looks, prose, rules, or make bench
	@$(PY) -m tools redraw --profile "$(PROFILE)"

smoke: env  ## run every notebook on the shipped sample, into build/smoke/
	@$(PY) -m tools figures --profile smoke $(if $(FORCE),--force) $(if $(FRESH),--fresh)

verify: env  ## recompute every verdict from the published tables, in seconds
	@$(PY) -m tools.verify

status: env  ## say which published notebooks are out of date, and why; runs nothing
	@$(PY) -m tools status

claim: env  ## run the notebook that decides a claim, and compare what came out with what is published (C=C20)
	@$(PY) -m tools claim --profile "$(PROFILE)" "$(C)"

verify-runs: env data  ## train the first epoch of some kept runs again, and compare it with the records (ALL=1: of every run)
	@$(PY) -m tools verify-runs $(if $(ALL),--all)

bench: env-test data  ## measure speed, side by side, into figures/bench/ (20 minutes; on an otherwise idle machine)
	@$(PY) -m tools bench

robustness: env-test  ## kill `make figures` at random moments, fill its disk, damage its files ...; report in figures/robustness.md (KILLS=10, ONLY=)
	@KILLS="$(KILLS)" $(PY) -m pytest -m robustness $(if $(ONLY),-k "$(ONLY)")

test: env-test lint  ## run all tests, including the notebooks' smoke runs; needs no network and no data
	@$(PY) -m pytest --numprocesses auto --dist loadfile

test-lab: env  ## run every notebook in a real JupyterLab, in a headless browser; needs Chromium and playwright, and says if they are missing
	@$(PY) tests/browser/lab.py $(if $(PICTURES),--pictures "$(PICTURES)")

test-torch:  ## run the core's tests on the package, built and installed with another PyTorch (TORCH=2.5.1, TORCHVISION=0.20.1)
	@set -e; place="build/torch-$(TORCH)"; rm -rf "$$place"; "$(PYTHON)" -m venv "$$place"; \
	"$$place/bin/python" -m pip install --quiet build pytest hypothesis "torch==$(TORCH)" "torchvision==$(TORCHVISION)"; \
	"$$place/bin/python" -m build --sdist --outdir "$$place/sdist" . > "$$place/build.log"; \
	"$$place/bin/python" -m pip install --quiet "$$place"/sdist/*.tar.gz; \
	cp -r tests "$$place/tests"; cd "$$place/tests"; printf '[pytest]\nmarkers =\n  smoke: -\n' > pytest.ini; \
	../bin/python -m pytest -q -c pytest.ini -p no:cacheprovider $(CORE)

audit:  ## check the pinned versions for known vulnerabilities, with pip-audit and PyPI's advisories; needs the network
	@set -e; rm -rf build/audit; "$(PYTHON)" -m venv build/audit; build/audit/bin/python -m pip install --quiet pip-audit; \
	build/audit/bin/python -m pip_audit --requirement requirements.lock --no-deps --disable-pip --strict --progress-spinner off

lint: env-test  ## check the style of code and notebooks, types, and import rules
	@$(PY) -m ruff check --quiet . && $(PY) -m ruff format --check --quiet .
	@$(PY) -m mypy --no-error-summary
	@said="$$("$(ENV)/bin/lint-imports" --no-cache)" || { echo "$$said"; exit 1; }

format: env-test  ## format code and notebooks
	@$(PY) -m ruff check --quiet --fix . ; $(PY) -m ruff format --quiet .

lab: env  ## open the notebooks in JupyterLab
	@$(PY) -m jupyterlab --notebook-dir=notebooks

site: env  ## make pages that need no network: front page, ledger, notebooks, explorer, reference and search, in build/site/index.html
	$(call install,notebooks$(comma)site)
	@$(PY) -m sphinx -q -W --keep-going -b html -c docs . build/site && echo "build/site/index.html"

test-site: site  ## test the site in a headless browser; needs Chromium and playwright, and says if they are missing
	@$(PY) tests/browser/pages.py $(if $(PICTURES),--pictures "$(PICTURES)")
	@$(PY) tests/browser/explorer.py $(if $(PICTURES),--pictures "$(PICTURES)")

explorer: env  ## make the explorer alone: one page with LeNet-5, its loss paths and masks, in build/explorer.html
	@$(PY) -m tools explorer build/explorer.html

readme: env  ## update the generated parts of README.md and the gallery figures/README.md
	@$(PY) -m tools readme

lock: ## resolve the newest versions again: requirements.lock and environment.yml
	@rm -rf build/lock && "$(PYTHON)" -m venv build/lock
	@build/lock/bin/python -m pip install --quiet torch==2.13.0 torchvision==0.28.0
	@build/lock/bin/python -m pip install --quiet ".[notebooks,test]"
	@build/lock/bin/python -m pip list --format=freeze --exclude snipnb --exclude pip --exclude setuptools --exclude wheel \
	  | sed 's/+.*//' | LC_ALL=C sort -f > build/lock/pins
	@{ echo "# Exact versions that are tested together, for Python 3.11. Written by \`make lock\`."; cat build/lock/pins; } > requirements.lock
	@{ echo "# The same pins as requirements.lock, for conda and Binder. Written by \`make lock\`."; \
	  printf 'name: snipnb\nchannels: [conda-forge]\ndependencies:\n  - python=3.11\n  - pip\n  - pip:\n'; \
	  sed 's/^/      - /' build/lock/pins; echo '      - -e .'; } > environment.yml
	@rm -rf build/lock

clean:  ## remove build/ (kept training runs too) and caches; figures, data and environment stay
	rm -rf build .pytest_cache .ruff_cache .mypy_cache .hypothesis; find snipnb tests tools -name __pycache__ -prune -exec rm -rf {} +

distclean: clean  ## remove the environment and the data too
	rm -rf .venv data *.egg-info
