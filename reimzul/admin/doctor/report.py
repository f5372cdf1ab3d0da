# SPDX-License-Identifier: Apache-2.0
"""What was found, for a person on a terminal and for a program in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import attr
import click

from reimzul.admin.doctor.check import FAIL, OK, WARN, Finding

_COLOURS = {OK: "green", WARN: "yellow", FAIL: "red"}
_LEVEL = 4


def show(findings: Iterable[Finding], names: Sequence[str]) -> list[Finding]:
    """Each finding as it comes; all of them."""
    width = max(map(len, names), default=0)
    shown = []
    for finding in findings:
        for line in lines(finding, width) if sys.stdout.isatty() else [in_a_pipe(finding)]:
            click.echo(line)
        shown.append(finding)
    return shown


def lines(finding: Finding, width: int) -> list[str]:
    """A finding on a terminal, what to do about it on a line of its own below the words."""
    bold = True if finding.level == FAIL else None
    level = click.style(finding.level.ljust(_LEVEL), fg=_COLOURS[finding.level], bold=bold)
    first = f"{level}  {finding.name.ljust(width)}  {finding.words}"
    indent = " " * (_LEVEL + 2 + width + 2)
    return [first, f"{indent}-> {finding.remedy}"] if finding.remedy else [first]


def in_a_pipe(finding: Finding) -> str:
    """A line of four cells."""
    return "\t".join((finding.level, finding.name, finding.words, finding.remedy))


def as_json(findings: Iterable[Finding]) -> list[dict[str, object]]:
    """Findings as JSON has them."""
    return [attr.asdict(finding) for finding in findings]


def count(findings: Iterable[Finding], level: str) -> int:
    """How many are of a level."""
    return sum(finding.level == level for finding in findings)
