# SPDX-License-Identifier: Apache-2.0
# Every target that needs the environment runs tools/setup first, which takes a moment if nothing is missing.

SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv/bin

# For `make install`: this host's role (controller, builder, bstore, all), and where files go.
ROLE ?= all
PREFIX ?= /usr/local
DESTDIR ?=

# For `make faults`: how many trials (40, or 10 of one kind), which kind (all), and the seed of one trial to repeat.
# For `make simulate`: how many seeds (10,000), and one to repeat.
N ?=
KIND ?=
SEED ?=

# For `make mutate`: some of its modules.
MODULE ?=

# For `make farm-test`: words of the proofs' names (pytest -k), to run only some.
ONLY ?=

# For `make demo`: a source rpm of yours; its path may have spaces.
SRPM ?=

.PHONY: help setup farm-setup demo farm test simulate simulate-ci faults faults-ci mutate farm-test bench check man rpm
.PHONY: lock install clean relabel

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install missing packages and make the virtual environments
	@tools/setup

# Without the test environments: a newcomer's first `make demo` is a minute shorter.
farm-setup:
	@tools/setup --farm

demo: farm-setup ## Build real packages through a whole farm on this machine (SRPM=path builds yours)
	@$(VENV)/python -m devfarm demo $(if $(SRPM),--srpm "$$SRPM")

farm: farm-setup ## Run such a farm in the foreground until Ctrl-C
	@$(VENV)/python -m devfarm up

test: setup ## Run all tests, and the unit tests on the oldest and the newest Python too
	@tools/test

simulate: farm-setup ## Run the daemons on a virtual clock under faults of 10,000 seeds (N=500; SEED=7 repeats one)
	@$(VENV)/python -m tests.simulate $(if $(SEED),--seed $(SEED),--seeds $(or $(N),10000))

# For .ci/run: 2,000 seeds, and fewer where a slow machine does not get to them in two minutes.
simulate-ci: farm-setup
	@$(VENV)/python -m tests.simulate --seeds 2000 --seconds 120

faults: setup ## Kill, disconnect and fill parts of a farm, and check that nothing is lost (N=500, KIND=kill, SEED=7)
	@$(VENV)/python -m tests.faults $(if $(N),--trials $(N)) $(if $(KIND),--kind $(KIND)) $(if $(SEED),--seed $(SEED))

# For .ci/run: one trial of every kind that does not take long, and a small flood.
faults-ci: setup
	@$(VENV)/python -m tests.faults --ci

mutate: setup ## Change the modules that hold promises, one spot at a time, and check that tests fail (hours; MODULE=path)
	@$(VENV)/python -m tools.mutate $(MODULE)

farm-test: setup ## Boot machines with systemd, install a farm as documented, and test it (root; ONLY=link)
	@$(VENV)/python -m tests.hosts $(if $(ONLY),-k "$(ONLY)")

bench: setup ## Run all benchmarks, about ten minutes; bench-NAME runs one (docs/performance.md)
	@$(VENV)/python -m bench

bench-%: setup
	@$(VENV)/python -m bench $*

check: farm-setup ## Run the linters: ruff check, ruff format --check and mypy --strict
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy --strict

man: farm-setup ## Make the man pages, in build/man (man -l build/man/man1/reimzul.1)
	@rm -rf build/man
	@$(VENV)/python -m tools.manpages build/man

rpm: farm-setup ## Make packages of this checkout, in build/rpm
	@tools/rpm

relabel: farm-setup ## Store the causes of earlier failures by the present rule, on a controller (reimzul causes --relabel)
	@$(VENV)/reimzul causes --relabel

lock: ## Renew requirements/*.txt: newer versions from PyPI, and their hashes
	@tools/lock

install: ## Install on this host, as root (ROLE=builder, ...; see docs/install.md)
	@tools/install --role "$(ROLE)"

clean: ## Remove the environments and caches (packages installed by apt or dnf stay)
	rm -rf .venv .venv-mongo .venv-py39 .venv-newest .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	rm -rf reimzul.egg-info .setup.lock
	find reimzul devfarm bench tools tests -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -maxdepth 1 -name '.farm*' -type d -exec rm -rf {} +

export SRPM PREFIX DESTDIR
