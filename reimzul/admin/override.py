# SPDX-License-Identifier: Apache-2.0
"""`reimzul override`: a person's word on a build that the farm could not make, or not as it is wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import click

from reimzul.admin.table import show_json
from reimzul.core import validators
from reimzul.core.cli import EXIT_CODES, load_settings, shared_options
from reimzul.core.errors import InputError
from reimzul.history import BuildRecord, open_history

#: What each option may be.
_CHECKS: dict[str, Callable[[Any], str]] = {
    "srpm": validators.srpm,
    "target": validators.target,
    "arch": validators.arch,
    "comment": validators.line(1000),
}


@click.command("override", epilog=EXIT_CODES)
@click.option("-s", "--srpm", required=True, metavar="SRPM", help="The file's whole name.")
@click.option("-t", "--target", required=True, metavar="TARGET", help="With its arch, as c7.1810.00.armhfp.")
@click.option("-a", "--arch", required=True, metavar="ARCH")
@click.option("-c", "--comment", required=True, metavar="COMMENT", help="Why.")
@click.option("--json", "as_json", is_flag=True, help="All that is known of the build now.")
@shared_options
def command(config: Path | None, verbose: bool, as_json: bool, **given: str) -> None:
    """Set the status of the latest build of a source rpm to Override, in the history, with a comment.

    Nothing that is told of that build later changes it back.

    \b
    Example:
      reimzul override -s time-1.7-45.el7.src.rpm -t c7.1810.00.armhfp -a armhfp -c "built against devtoolset-7"
    """
    wanted = checked(given)
    document = override(load_settings(config, verbose).history.url, **wanted)
    if document is None:
        raise InputError(
            f"no build of {wanted['srpm']} on {wanted['arch']} for {wanted['target']} has come to an end; "
            f"`reimzul builds --srpm {wanted['srpm']}` shows what is known"
        )
    if as_json:
        show_json(document.to_document())
    else:
        click.echo(f"{document.srpm} ({document.timestamp}) on {document.arch}: {document.status}")


def checked(given: dict[str, str]) -> dict[str, str]:
    """The options as they have to be. Raises `InputError` that names the first that is not."""
    wanted = {}
    for name, check in _CHECKS.items():
        try:
            wanted[name] = check(given[name])
        except ValueError as error:
            raise InputError(f"--{name}: {error}") from None
    if not wanted["comment"]:
        raise InputError("--comment: is empty; say why")
    return wanted


def override(url: str, *, srpm: str, target: str, arch: str, comment: str) -> BuildRecord | None:
    """The build as it is now; None where there is none. Raises `NoHistory` where nothing was ever recorded."""
    open_history(url, reading=True).close()  # to write opens what is not there too, and makes it
    history = open_history(url)
    try:
        return history.override(srpm, target, arch, comment)
    finally:
        history.close()
