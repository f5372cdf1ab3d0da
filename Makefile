# SPDX-License-Identifier: Apache-2.0
# What a newcomer types. Every target that needs the set-up runs it first; it costs a moment when nothing is to be done.

SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv/bin

# Of `make install`: what this host is (controller, builder, bstore, all), and where things go.
ROLE ?= all
PREFIX ?= /usr/local
DESTDIR ?=

# Of `make faults`: how many trials (40, or 10 of one kind), of which kind (all), and one trial again by its seed.
N ?=
KIND ?=
SEED ?=

# Of `make farm-test`: words of the proofs' names (pytest -k), when it is not to be all of them.
ONLY ?=

# An SRPM of yours for `make demo`; it may be anywhere, and have spaces in its name.
SRPM ?=

.PHONY: help setup farm-setup demo farm test faults faults-ci farm-test bench check man rpm install clean

help: ## Show what can be made here
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install what is missing and make the virtual environments
	@tools/setup

# The test environments are left out here: a newcomer's first `make demo` is a minute shorter for it.
farm-setup:
	@tools/setup --farm

demo: farm-setup ## Build real packages through a whole farm on this machine (SRPM=path builds yours)
	@$(VENV)/python -m devfarm demo $(if $(SRPM),--srpm "$$SRPM")

farm: farm-setup ## Keep such a farm up in the foreground, until Ctrl-C
	@$(VENV)/python -m devfarm up

test: setup ## Run all tests, and the unit tests on the oldest and the newest Python too
	@tools/test

faults: setup ## Kill, cut and fill parts of a farm, and see that nothing is lost (N=500, KIND=kill, SEED=7)
	@$(VENV)/python -m tests.faults $(if $(N),--trials $(N)) $(if $(KIND),--kind $(KIND)) $(if $(SEED),--seed $(SEED))

# A fixed choice, for .ci/run: one trial of every kind that does not take long, and the flood in small.
faults-ci: setup
	@$(VENV)/python -m tests.faults --ci

farm-test: setup ## Boot machines with systemd, make a farm of them by the docs, and prove it (root; ONLY=link)
	@$(VENV)/python -m tests.hosts $(if $(ONLY),-k "$(ONLY)")

bench: setup ## Measure, all in some ten minutes; bench-NAME one alone (docs/performance.md)
	@$(VENV)/python -m bench

bench-%: setup
	@$(VENV)/python -m bench $*

check: farm-setup ## Run the linters: ruff and mypy --strict
	$(VENV)/ruff check .
	$(VENV)/mypy --strict

man: farm-setup ## Make the man pages, in build/man (man -l build/man/man1/reimzul.1)
	@rm -rf build/man
	@$(VENV)/python -m tools.manpages build/man

rpm: farm-setup ## Make packages of this checkout, in build/rpm
	@tools/rpm

install: ## Install on this host, as root (ROLE=builder, ...; docs/install.md tells the rest)
	@tools/install --role "$(ROLE)"

clean: ## Remove the environments and caches (what was installed by apt or dnf stays)
	rm -rf .venv .venv-mongo .venv-py39 .venv-newest .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	rm -rf reimzul.egg-info .setup.lock
	find reimzul devfarm bench tools tests -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -maxdepth 1 -name '.farm*' -type d -exec rm -rf {} +

export SRPM PREFIX DESTDIR
