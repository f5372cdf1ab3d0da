# SPDX-License-Identifier: Apache-2.0
"""The options of `reimzul-submit` for batches, plans and builds that wait."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Callable, TypeVar

import attr
import click

from reimzul.core import validators
from reimzul.core.beanstalk import PRIORITY, PRIORITY_BACKGROUND, PRIORITY_NOW
from reimzul.core.errors import ConfigError, InputError
from reimzul.core.option_types import NearestChoice
from reimzul.core.settings import Settings
from reimzul.plan.document import OrderRule

F = TypeVar("F", bound=Callable[..., Any])

#: The bcond of --seed.
BOOTSTRAP = "bootstrap"
_LAST_RESORTS = ("listed", "never")


def batch_options(function: F) -> F:
    """Add the options; they are passed as keyword arguments, which `BatchOptions.take` takes out."""
    options = [
        click.option("--batch", metavar="LIST|DIR", help="Build all source rpms of a list (a file with one per line, "
                     "or -) or of a folder as one batch, in the order that their BuildRequires ask for."),
        click.option("--dependents-of", metavar="PACKAGE", help="Build, as a scratch batch, all sources of the target "
                     "that are built against this source package's binaries."),
        click.option("--plan", is_flag=True, help="Change nothing: print what would be built, in which order and when. "
                     "The exit code is 1 if it cannot be built."),
        click.option("--order", type=NearestChoice(OrderRule.ALL), help="What a member of the batch waits for. needed: "
                     "members that provide what the target lacks; rebuilt (the default): all members that provide what "
                     "it requires; listed: the members before it; none: nothing."),
        click.option("--background", is_flag=True, help="Let all other jobs go before the batch."),
        click.option("--last-resort", type=NearestChoice(_LAST_RESORTS), default="listed", show_default=True,
                     help="What to build against if a member failed and nothing else is left: the build that the "
                     "target lists, or never."),
        click.option("--skip-built", is_flag=True, help="Leave out source rpms whose version and release the target "
                     "lists already."),
        click.option("--seed", "seed", multiple=True, metavar="NAMES", help="Break cycles: build these source "
                     "packages, separated by commas, first --with bootstrap, and again at the end."),
        click.option("--bcond", multiple=True, metavar="NAME=A,B", help="As --seed A,B, with another bcond."),
        click.option("--anyway", is_flag=True, help="Submit a batch although the target lists a newer build of a "
                     "member, another batch builds it, or nobody is known to provide what a cycle requires."),
        click.option("--after", multiple=True, metavar="ID", help="Hold the builds until these builds (ids or their "
                     "first digits, separated by commas) are published."),
        click.option("--dep-wait", is_flag=True, help="If nobody provides a requirement, wait until somebody does, "
                     "for [batch] dep_wait at most."),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


@attr.frozen(kw_only=True)
class BatchOptions:
    batch: str  #: a list, - or a folder; empty: no such batch
    dependents_of: str
    plan: bool
    order: str
    background: bool
    last_resort: bool
    skip_built: bool
    seeds: Mapping[str, str]  #: source package -> the bcond that its seed is built with
    anyway: bool
    after: tuple[str, ...]  #: build ids, or prefixes of them
    dep_wait: bool

    @classmethod
    def take(cls, chosen: dict[str, Any]) -> BatchOptions:
        """Take the options out of those that were chosen. Raises `click.UsageError`, `InputError`."""
        batch, dependents_of = chosen.pop("batch") or "", chosen.pop("dependents_of") or ""
        chosen["scratch"] = scratch = bool(chosen["scratch"] or dependents_of)
        order = chosen.pop("order")
        waits = (batch or dependents_of) and not scratch
        options = cls(
            batch=batch,
            dependents_of=dependents_of,
            plan=chosen.pop("plan"),
            order=order or (OrderRule.REBUILT if waits else OrderRule.NONE),
            background=chosen.pop("background"),
            last_resort=chosen.pop("last_resort") != "never",
            skip_built=chosen.pop("skip_built"),
            seeds=_parse_seeds(chosen.pop("seed"), chosen.pop("bcond")),
            anyway=chosen.pop("anyway"),
            after=tuple(dict.fromkeys(_split_names(chosen.pop("after")))),
            dep_wait=chosen.pop("dep_wait"),
        )
        options._check(order, is_now=chosen["now"], scratch=scratch)
        return options

    @property
    def is_batch(self) -> bool:
        return bool(self.batch or self.dependents_of)

    def priority(self, *, now: bool) -> int:
        """The priority of the member that is released first."""
        if now:
            return PRIORITY_NOW
        return PRIORITY_BACKGROUND if self.background else PRIORITY

    def _check(self, order: str | None, *, is_now: bool, scratch: bool) -> None:
        needs_batch = {
            "--order": order, "--background": self.background, "--last-resort": not self.last_resort,
            "--skip-built": self.skip_built, "--seed": self.seeds, "--anyway": self.anyway,
        }  # fmt: skip
        for option, value in needs_batch.items():
            if value and not self.is_batch:
                raise click.UsageError(f"{option} is for batches: give --batch too")
        if self.batch and self.dependents_of:
            raise click.UsageError("--batch and --dependents-of exclude each other")
        if self.background and is_now:
            raise click.UsageError("--background and --now exclude each other")
        if self.is_batch and (self.after or self.dep_wait):
            raise click.UsageError("--after and --dep-wait are for single builds: members of a batch wait anyway")
        if self.is_batch and scratch and self.order != OrderRule.NONE:
            raise click.UsageError("members of a scratch batch do not wait for each other: leave out --order")


def _split_names(given: Iterable[str]) -> list[str]:
    return [name for each in given for name in each.split(",") if name]


def _parse_seeds(seeds: Iterable[str], bconds: Iterable[str]) -> dict[str, str]:
    found = dict.fromkeys(_split_names(seeds), BOOTSTRAP)
    for each in bconds:
        bcond, equals, names = each.partition("=")
        if not equals or not _split_names([names]):
            raise InputError(f"--bcond {each}: give a bcond and source packages, as --bcond {BOOTSTRAP}=a,b")
        try:
            found.update(dict.fromkeys(_split_names([names]), validators.name(bcond)))
        except ValueError as error:
            raise InputError(f"--bcond {each}: {error}") from None
    return found


def require_batches(settings: Settings, options: BatchOptions) -> None:
    """Raise `ConfigError` if something is to wait on a farm where nothing releases it."""
    given = {
        "--batch": options.batch, "--dependents-of": options.dependents_of, "--after": options.after,
        "--dep-wait": options.dep_wait,
    }  # fmt: skip
    used = [option for option, value in given.items() if value]
    if used and not options.plan and not settings.batch.enabled:
        raise ConfigError(
            f"{used[0]} needs reimzul-batch: set enabled = true in [batch] of the settings, restart reimzul-notifier, "
            "and run systemctl enable --now reimzul-batch"
        )
