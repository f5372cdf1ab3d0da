# SPDX-License-Identifier: Apache-2.0
"""Asking a person before something is done that cannot be undone."""

from __future__ import annotations

import sys

import click

from reimzul.core.errors import EXIT_USAGE, ReimzulError


class NobodyToAsk(ReimzulError):
    """There is a question, and no terminal to ask it on."""

    exit_code = EXIT_USAGE


def agreed(question: str, yes: bool) -> bool:
    """True where a person agrees, or did before. Raises `ReimzulError` where the answer is no."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise NobodyToAsk(f"there is no terminal to ask on: give --yes ({question})")
    if not click.confirm(question, err=True):
        raise ReimzulError("nothing was done")
    return True
