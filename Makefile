# make figures   all studies, from prompts to figures and reports
# make test      linters, types, workflow checks, tests
# make help      everything else
#
# Each target sets itself up: a virtual environment in $(VENV), from the lock in envs/requirements.txt, done once per lock.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
# The first of these that runs: a shim of pyenv may be found, and yet not run.
PYTHONS := 3.11 3.12 3.13
PYTHON ?= $(or $(shell for p in $(PYTHONS:%=python%) python3 python; do $$p -c "" 2>/dev/null && { command -v $$p; break; }; done),python3)
CORES ?= $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
# Further configuration files, laid over config/config.yaml in this order: make figures CONFIG=config/paper.yaml
CONFIG ?=
# What `make figures` makes: everything, or the studies of some tasks: make figures STUDIES="ioi ravel"
STUDIES ?= all
# How many jobs use the GPU at a time, where there is one.
GPUS ?= $(if $(shell nvidia-smi --list-gpus 2>/dev/null),1)
# Any further options of Snakemake: make figures SNAKEMAKE_OPTIONS=--dry-run
SNAKEMAKE_OPTIONS ?=
# What `make adopt` asks to be up to date; where `make restore` fetches from, if not from the default, and whether it may replace
# results that were made here since.
TARGETS ?=
REMOTE ?=
OVERWRITE ?=
# What `make audit` asks about: a file, or a file and a line.
FILE ?= docs/results/figures/ioi_gpt2-embedded_fig4.png

LOCK := envs/requirements.txt
hash = $(shell cat $(1) | cksum | tr ' ' '-')
version = $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
LOCK_STAMP := $(VENV)/.locked-$(call hash,$(LOCK))
PACKAGE_STAMP := $(VENV)/.installed-$(call hash,$(LOCK) pyproject.toml)
PIP := $(VENV)/bin/python -m pip --quiet --disable-pip-version-check --no-input
SNAKEMAKE := snakemake --cores $(CORES) $(if $(CONFIG),--configfile $(CONFIG)) $(if $(GPUS),--resources gpu=$(GPUS)) $(SNAKEMAKE_OPTIONS)
# Two one-thread processes use two cores better than one process with two threads; jobs get theirs from the rules.
WORKERS := $(shell n=$(CORES); echo $$(( n < 2 ? n : 2 )))
comma := ,
say = @printf '\n== %s\n' "$(1)"

export PATH := $(abspath $(VENV))/bin:$(PATH)
export PYTHONHASHSEED := 0
export PYTHONUTF8 := 1
# Snakemake and others keep caches in the home folder: in this one, where that cannot be written.
export XDG_CACHE_HOME ?= $(if $(shell mkdir -p ~/.cache 2>/dev/null && test -w ~/.cache && echo yes),$(HOME)/.cache,$(CURDIR)/.snakemake/cache)
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup figures study bench test test-fast test-slurm test-faults test-paper lint format report adopt restore audit clean

help: ## What can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

setup: $(PACKAGE_STAMP) ## The environment alone

$(LOCK_STAMP):
	$(if $(filter $(version),$(PYTHONS)),,$(error needs Python 3.11 to 3.13, but $(PYTHON) $(if $(version),is $(version),does not run): name another, as in make setup PYTHON=/path/to/python3.11))
	$(call say,Environment: $(VENV) from $(LOCK) with $(PYTHON))
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	@# torch first and pinned, so that no other package's requirement picks a different build of it
	$(PIP) install "$$(grep -E '^torch==' $(LOCK))"
	$(PIP) install --requirement $(LOCK)
	@rm -f $(VENV)/.locked-*
	@touch $@

$(PACKAGE_STAMP): $(LOCK_STAMP)
	$(call say,Environment: this package$(comma) editable)
	$(PIP) install --no-deps --editable .
	@rm -f $(VENV)/.installed-*
	@touch $@

figures: setup ## Figures, tables and report of all studies (STUDIES="ioi ravel ...", CONFIG=, CORES=)
	$(call say,Study: prompts to figures on $(CORES) core(s))
	$(SNAKEMAKE) -- $(STUDIES)
	@echo "Figures are in results/figures, tables in results/tables; open results/report.html and results/studies.html."

study: setup ## The study over dimension, training steps, seeds and ablations, and the frontier
	$(call say,Study over dimension$(comma) steps$(comma) seeds and ablations$(comma) and frontier on $(CORES) core(s))
	$(SNAKEMAKE) -- study
	$(SNAKEMAKE) --forcerun make_report -- all

report: setup ## Snakemake's own report with figures, run times and code: results/workflow.html
	$(call say,Workflow report)
	$(SNAKEMAKE) --report results/workflow.html -- all

adopt: setup ## Record a finished run in DVC and git, if nothing is stale (TARGETS=ioi asks for no more than that)
	$(if $(CONFIG),$(error DVC versions the study of config/config.yaml: see docs/lineage.md for others))
	$(call say,Lineage: is the run complete$(comma) then DVC)
	inversescope adopt $(TARGETS)

restore: setup ## Fetch, check and date what dvc.lock names (REMOTE= a remote's name, a directory or a URL; OVERWRITE=1)
	$(call say,Lineage: pull$(comma) check every byte$(comma) date)
	inversescope restore $(if $(REMOTE),--remote $(REMOTE)) $(if $(OVERWRITE),--overwrite)

audit: setup ## Where a result comes from, and what became of that: FILE=results/figures/ioi_gpt2-embedded_fig4.png
	inversescope audit $(FILE)

bench: setup ## Ratios against TransformerLens, HF generate and faiss: results/bench
	$(call say,Peers that the benchmarks compare with)
	$(PIP) install --constraint $(LOCK) --requirement envs/bench.txt
	$(call say,Benchmarks)
	OMP_NUM_THREADS=1 python -m bench

lint: setup ## Linters, types and workflow checks
	$(call say,ruff)
	ruff check .
	ruff format --check .
	$(call say,mypy)
	mypy
	$(call say,import-linter)
	lint-imports --no-cache --no-logo
	$(call say,snakefmt)
	snakefmt --check Snakefile rules
	$(call say,snakemake --lint)
	snakemake --lint

test-fast: setup ## Unit tests alone, under a minute: no target model is trained, no Snakemake started
	$(call say,pytest of tests/unit with $(WORKERS) worker(s))
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 pytest -q -n $(WORKERS) --dist loadfile tests/unit

test: lint ## All checks and tests, at most two workers
	$(call say,pytest with $(WORKERS) worker(s))
	@# Whole runs first: a long file at the end would leave a core idle.
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=10 \
	  tests/workflow tests/study tests/unit tests/faults

SLURM_PACKAGES := slurmctld slurmd slurm-client munge

test-slurm: setup ## The small study through a SLURM of its own (installs Debian's, as root): same tables as a local run
	$(call say,SLURM: Debian's packages$(comma) where they are missing)
	command -v slurmctld slurmd squeue munged >/dev/null || { apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends $(SLURM_PACKAGES); } >/dev/null
	$(call say,SLURM: a cluster of one node on the loopback interface)
	OMP_NUM_THREADS=1 pytest -q -m slurm --durations=5 tests/workflow/test_slurm.py

test-faults: setup ## Killed, damaged and starved runs of all studies
	$(call say,Faults)
	OMP_NUM_THREADS=1 pytest -q -m "" --durations=10 tests/faults

test-paper: setup ## Every job of the paper's configurations at full width, with few layers and prompts: operations and memory
	$(call say,The paper's configurations)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 pytest -q -m paper --durations=10 tests/study/test_paper_jobs.py

format: setup ## Rewrite sources in the project's format
	ruff check --fix .
	ruff format .
	snakefmt Snakefile rules

clean: setup ## Remove what the workflow made: data, results, logs and its records
	$(call say,Removing everything that the workflow made)
	$(SNAKEMAKE) --quiet all --delete-all-output -- all study
	rm -rf logs benchmarks .snakemake
