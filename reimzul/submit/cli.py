# SPDX-License-Identifier: Apache-2.0
"""`reimzul-submit`: check a source rpm and queue it, once for each arch."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import attr
import click

from reimzul.core.arch import read_arches
from reimzul.core.beanstalk import Broker
from reimzul.core.cli import EXIT_CODES, current_user, load_settings, print_error, run_command, shared_options
from reimzul.core.config import Settings
from reimzul.core.errors import EXIT_FAILED, InputError
from reimzul.core.rpm_header import Header, read_source_header
from reimzul.core.store_paths import StoreUrls
from reimzul.submit.incoming import Source, bring_in, find
from reimzul.submit.newtarget import ask_for_repodata
from reimzul.submit.request import (
    Queued,
    Wanted,
    check_arches,
    check_words,
    count_watchers,
    queue,
    requests,
)
from reimzul.submit.submitters import name_for_workers

EXAMPLES = """\b
Examples:
  reimzul-submit -s time-1.7-45.el7.src.rpm -d .el7 -a x86_64 -t c7.1708.u
  reimzul-submit -s ~/rpmbuild/SRPMS/time-1.9-1.src.rpm -d .el9 -a x86_64,aarch64 -t c9s --scratch
  reimzul-submit -s time-1.7-45.el7.src.rpm -d .el7 -a x86_64 -t c7.1708.u --wait

i386 is built beside x86_64, and ppc beside ppc64, with the same timestamp: they need no submission of their own.
"""


@click.command("reimzul-submit", epilog=EXAMPLES + "\n" + EXIT_CODES)
@click.option(
    "-s",
    "--srpm",
    required=True,
    metavar="SRPM",
    help="The source rpm: the name of a file in incoming/, or a path, which is copied there first.",
)
@click.option(
    "-a",
    "--arch",
    "arches",
    required=True,
    multiple=True,
    metavar="ARCH",
    help="An arch to build for, as x86_64, armhfp or aarch64; several by commas or by giving it again.",
)
@click.option(
    "-t",
    "--target",
    required=True,
    metavar="TARGET",
    help="The repository to build against and for, without an arch, as c7.1708.u.",
)
@click.option("-d", "--disttag", required=True, metavar="DISTTAG", help="The disttag to build with, as .el7_4.")
@click.option("--now", is_flag=True, help="Put it in front of what waits (priority 1024 instead of 8192).")
@click.option("--scratch", is_flag=True, help="Only build it, into scratch/: nothing is published or signed.")
@click.option(
    "--rebuild",
    is_flag=True,
    help="Replace the build of the same version and release that the target lists. Without it, that is refused.",
)
@click.option("--wait", is_flag=True, help="Then follow the builds, as `reimzul watch` does, and exit as it does.")
@click.option("--json", "as_json", is_flag=True, help="Say what was queued as JSON.")
@shared_options
def command(
    srpm: str,
    arches: Sequence[str],
    target: str,
    disttag: str,
    now: bool,
    scratch: bool,
    rebuild: bool,
    wait: bool,
    as_json: bool,
    config: Path | None,
    verbose: bool,
) -> int:
    """Queue a source rpm to be built.

    Everything is checked before anything is queued. For each arch it says in which tube the build waits and what its
    build id is.
    """
    settings = load_settings(config, verbose)
    known = read_arches(settings.farm.arches)
    words = [word for given in arches for word in given.split(",") if word]
    wanted = Wanted(
        arches=check_words(words, target, disttag, known),
        target=target,
        disttag=disttag,
        now=now,
        scratch=scratch,
        rebuild=rebuild,
    )
    who = current_user()
    incoming = settings.incoming.folder
    path = find(srpm, incoming)
    header = read_source_header(path)
    for doubt in check_arches(path.name, header, wanted.arches, known):
        warn(doubt)
    refuse_listed(header, wanted, settings)
    source = bring_in(path, incoming)
    with Broker(settings.beanstalkd.host, settings.beanstalkd.port) as broker:
        name = name_for_workers(broker, who, shared(config), originals=settings.farm.original_workers)
        asked = requests(source, wanted, name)
        urls = StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url)
        ask_for_repodata(broker, urls, [request.target for request in asked])
        rows = count_watchers(broker, queue(broker, asked, source, wanted, known))
    code = report(rows, source, asked[0].submitter, wanted, as_json=as_json)
    if wait and code == 0:
        watch(rows, config, as_json=as_json)
    return code


def shared(config: Path | None) -> list[str]:
    """The options that the operator's program needs to work on the same farm."""
    return ["--config", str(config)] if config else []


def refuse_listed(header: Header, wanted: Wanted, settings: Settings) -> None:
    """Raise `InputError` where a target lists this version and release already; repogen looks again."""
    targets = [f"{wanted.target}.{arch}" for arch in wanted.arches]
    checked = [target for target in targets if "builds" not in settings.duplicates.kinds_for(target)]
    if wanted.rebuild or wanted.scratch or not checked:
        return
    from reimzul.submit import listed  # no other submission needs http

    faults = listed.find_listed(header, wanted.disttag, checked, settings.bstore.base_url, warn)
    if faults:
        raise InputError("\n".join(faults))


def warn(line: str) -> None:
    """Warn on stderr."""
    print_error(command, f"warning: {line}")


def watch(rows: Sequence[Queued], config: Path | None, *, as_json: bool) -> NoReturn:
    """Go on as `reimzul watch`, the operator's program beside this one: rooms do not look into each other."""
    from reimzul.core.process import exec_program

    options = [*shared(config), *(["--json"] if as_json else [])]
    program = Path(sys.argv[0]).resolve().with_name("reimzul")
    exec_program([program, "watch", "--new", *options, *(row.build_id for row in rows)])


def report(rows: Sequence[Queued], source: Source, submitter: str, wanted: Wanted, *, as_json: bool) -> int:
    """Print what became of each arch; the exit code."""
    if as_json:
        click.echo(
            json.dumps({"srpm": source.name, "copied": source.copied, "builds": [attr.asdict(row) for row in rows]})
        )
    for row in rows:
        if row.job is None:
            print_error(command, f"not queued for {row.arch}: {row.fault}")
            continue
        if not as_json:
            click.echo(
                f"Submitted SRPM {source.name} to build queue {row.tube} for target {row.target} "
                f"(scratch: {wanted.scratch}) by {submitter}: build {row.build_id}"
            )
        if row.watchers == 0:
            print_error(command, f"warning: no builder watches the tube {row.tube}; it waits there until one does")
    return EXIT_FAILED if any(row.job is None for row in rows) else 0


def main() -> NoReturn:
    """The console script."""
    run_command(command, help_without_arguments=True)
