# SPDX-License-Identifier: Apache-2.0
"""`reimzul-submit`: checks a source rpm and queues it, once for each arch.

`--after` names builds that a submission has to wait for.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import attr
import click

from reimzul.core import validators
from reimzul.core.arch import Arches, read_arches
from reimzul.core.beanstalk import BATCH, Broker
from reimzul.core.cli import EXIT_CODES, current_user, load_settings, print_error, run_command, shared_options
from reimzul.core.errors import EXIT_FAILED, EXIT_INPUT, InputError
from reimzul.core.formatting import pluralize, to_output
from reimzul.core.option_types import Seconds
from reimzul.core.process import run_in_foreground
from reimzul.core.roles import require_controller
from reimzul.core.settings import Settings
from reimzul.core.store_paths import StoreUrls
from reimzul.history import BuildFilter, BuildRecord, History, NoHistory, open_history
from reimzul.history.build_record import BuildState
from reimzul.history.workers import submitter_for_workers
from reimzul.submit.batch_options import BatchOptions, batch_options, require_batches
from reimzul.submit.sources import RefusedSource, Source, check_sources, import_sources, read_names
from reimzul.submit.submission import (
    QueuedBuild,
    SubmissionOptions,
    check_options,
    count_watchers,
    make_requests,
    queue_requests,
    refuse_listed,
    request_repodata,
)
from reimzul.submit.target_check import complete_target, refuse_unknown_target

EXAMPLES = """\b
Examples:
  reimzul-submit -s time-1.7-45.el7.src.rpm -d .el7 -a x86_64 -t c7.1708.u
  reimzul-submit -s ~/rpmbuild/SRPMS/time-1.9-1.src.rpm -d .el9 -a x86_64,aarch64 -t c9s --scratch
  reimzul-submit -s time-1.7-45.el7.src.rpm -d .el7 -a x86_64 -t c7.1708.u --wait
  reimzul-submit -s 'python-*.src.rpm' -s time-1.9-1.src.rpm -d .el9 -a x86_64 -t c9s
  ls *.src.rpm | reimzul-submit -s - -d .el9 -a x86_64 -t c9s
  reimzul-submit --batch ~/soname-bump -d .el9_1 -a x86_64,aarch64 -t c9s --plan
  reimzul-submit --batch ~/soname-bump -d .el9_1 -a x86_64,aarch64 -t c9s
  reimzul-submit --batch gcc.list -d .el9 -a x86_64 -t c9s --seed binutils,gcc
  reimzul-submit --dependents-of openssl -d .el9 -a x86_64 -t c9s
  reimzul-submit -s user-1-1.src.rpm -d .el9 -a x86_64 -t c9s --after 4f2a91c0

i386 is built together with x86_64, and ppc with ppc64, with the same timestamp: do not submit them separately.
"""


@click.command("reimzul-submit", epilog=EXAMPLES + "\n" + EXIT_CODES)
@click.argument("positional", metavar="[SRPM]...", nargs=-1)
@click.option(
    "-s",
    "--srpm",
    "srpms",
    multiple=True,
    metavar="SRPM",
    help="A source rpm: the name of a file in incoming/, or a path; a file elsewhere is copied to incoming/. Or a "
    "pattern in quotes, for files in incoming/ and in this folder; or - for a list on stdin, one per line. May be "
    "given again; SRPM without -s means the same.",
)
@click.option(
    "-a",
    "--arch",
    "arches",
    required=True,
    multiple=True,
    metavar="ARCH",
    help="An arch to build for, as x86_64, armhfp or aarch64; several separated by commas or by giving it again.",
)
@click.option(
    "-t",
    "--target",
    required=True,
    metavar="TARGET",
    shell_complete=complete_target,
    help="The repository to build against and for, without an arch, as c7.1708.u.",
)
@click.option("--new-target", is_flag=True, help="Accept a target that no worker has a mock configuration for yet.")
@click.option("-d", "--disttag", required=True, metavar="DISTTAG", help="The disttag to build with, as .el7_4.")
@click.option("--now", is_flag=True, help="Queue before all other jobs (priority 1024 instead of 8192).")
@click.option("--scratch", is_flag=True, help="Only build, into scratch/: nothing is published or signed.")
@click.option(
    "--rebuild",
    is_flag=True,
    help="Replace the build of the same version and release that the target lists. Without it, that is refused.",
)
@click.option("--wait", is_flag=True, help="Then follow all builds and exit as `reimzul watch` does.")
@click.option(
    "--timeout",
    type=Seconds(),
    metavar="SECONDS",
    help="With --wait: stop waiting after this time, with exit code 1.",
)
@batch_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON: an object. See docs/json.md.")
@shared_options
def command(
    srpms: Sequence[str],
    positional: Sequence[str],
    arches: Sequence[str],
    new_target: bool,
    wait: bool,
    timeout: float | None,
    as_json: bool,
    config: Path | None,
    verbose: bool,
    **chosen: Any,
) -> int:
    """Queue source rpms to be built on each given arch.

    Everything is checked before anything is queued. Source rpms that cannot be built are refused, with a line on stderr
    for each; the others are queued, with a line for each build: its id, arch, target and source rpm. The exit code is 1
    if some are refused, and 4 if all are.

    With --batch they are built in the order that their BuildRequires ask for, with what is published meanwhile. A batch
    is submitted whole or not at all: the exit code is 1 if something makes it impossible. --plan shows it before.
    """
    batch = BatchOptions.take(chosen)
    given = [*srpms, *positional]
    _check_usage(given, batch, timeout, wait=wait)
    settings = load_settings(config, verbose)
    require_controller("`reimzul-submit`", settings, config)
    require_batches(settings, batch)
    known = read_arches(settings.farm.arches)
    names = [name for given_arches in arches for name in given_arches.split(",") if name]
    options = SubmissionOptions(arches=check_options(names, chosen["target"], chosen["disttag"], known), **chosen)
    if not new_target:
        refuse_unknown_target(options.target, options.arches, settings, known, _warn)
    user = current_user()
    if given:
        given = read_names(given, sys.stdin)
    if batch.is_batch or batch.plan:
        from reimzul.submit.batch import BatchSubmission  # a single build starts without it

        fail = print_error
        run = BatchSubmission(
            options=options, batch=batch, settings=settings, known=known, user=user, warn=_warn, fail=fail
        )
        return run.run(given, as_json=as_json)
    options = _add_waits(options, batch, settings)
    code, queued = _submit_builds(given, options, settings, known, user, as_json=as_json)
    if not (wait and queued):
        return code
    shared = ["--config", str(config)] if config else []  # for the `reimzul` program
    return _watch_builds(queued, shared, timeout, as_json=as_json) or code


def _add_waits(options: SubmissionOptions, batch: BatchOptions, settings: Settings) -> SubmissionOptions:
    """Add what builds wait for. Raises `InputError` if that failed."""
    after: tuple[str, ...] = ()
    if batch.after:
        after = resolve_builds(batch.after, settings.history.url)
    return attr.evolve(options, after=after, dep_wait=settings.batch.dep_wait if batch.dep_wait else 0)


def _check_usage(given: Sequence[str], batch: BatchOptions, timeout: float | None, *, wait: bool) -> None:
    """Raise `click.UsageError` for options that do not go together."""
    if timeout is not None and not wait:
        raise click.UsageError("--timeout is for --wait: give both")
    if wait and (batch.is_batch or batch.plan):
        raise click.UsageError("--wait is for single builds: `reimzul batch watch` follows a batch")
    if given and batch.is_batch:
        raise click.UsageError("give source rpms by --batch, or without it")
    if not (given or batch.is_batch):
        raise click.UsageError("no source rpm is given: -s SRPM, or -s - for a list on stdin")


def _submit_builds(
    given: Sequence[str],
    options: SubmissionOptions,
    settings: Settings,
    known: Arches,
    user: str,
    *,
    as_json: bool,
) -> tuple[int, list[str]]:
    """Queue the builds of source rpms; return the exit code and the ids of those that are queued."""
    sources, refused = _prepare_sources(given, options, settings, known)
    builds: Sequence[QueuedBuild] = ()
    try:
        if sources:
            builds = _queue_builds(sources, options, settings, known, user, as_json=as_json)
    finally:
        for each in refused:
            print_error(each.message)
    _print_report(builds, refused, options, as_json=as_json)
    queued = [build.build_id for build in builds if build.job is not None]
    if not queued:
        return EXIT_INPUT, queued
    return EXIT_FAILED if refused or len(queued) < len(builds) else 0, queued


def _prepare_sources(
    names: Sequence[str], options: SubmissionOptions, settings: Settings, known: Arches
) -> tuple[list[Source], list[RefusedSource]]:
    """Check source rpms and bring them into incoming/; return those that can be queued, and the others."""
    files, refused = check_sources(names, settings.incoming.folder, options.arches, known, _warn)
    if not (options.rebuild or options.scratch):
        targets = [each for each in options.targets.values() if "builds" not in settings.duplicates.kinds_for(each)]
        files, listed = refuse_listed(files, options.disttag, targets, settings.bstore.base_url, _warn)
        refused += listed
    sources, unimported = import_sources(files, settings.incoming.folder)
    return sources, refused + unimported


def _queue_builds(
    sources: Sequence[Source],
    options: SubmissionOptions,
    settings: Settings,
    known: Arches,
    user: str,
    *,
    as_json: bool,
) -> list[QueuedBuild]:
    """Queue the builds of source rpms, and print a line for each as soon as it is queued."""
    builds = []
    with Broker.from_settings(settings.beanstalkd) as broker:
        submitter = submitter_for_workers(broker, user, settings.notifier.presence)
        urls = StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url)
        request_repodata(broker, urls, options.targets.values())
        requests = ((source, each) for source in sources for each in make_requests(source, options, submitter))
        for build in queue_requests(broker, requests, options, known):
            builds.append(build)
            if build.job is not None and not as_json:
                _print_queued(build, options)
        return count_watchers(broker, builds)


def _print_queued(build: QueuedBuild, options: SubmissionOptions) -> None:
    """Print a build; if the reader has ended, as `head` does, the rest is queued all the same."""
    try:
        click.echo(_format_build(build, options))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _format_build(build: QueuedBuild, options: SubmissionOptions) -> str:
    """Format a build for a terminal, or with its whole id and tabs for a pipe."""
    if not sys.stdout.isatty():
        return "\t".join((build.build_id, build.arch, build.target, build.srpm))
    arch_width, target_width = max(map(len, options.targets)), max(map(len, options.targets.values()))
    return f"{build.build_id[:8]}  {build.arch:{arch_width}}  {build.target:{target_width}}  {build.srpm}"


def _print_report(
    builds: Sequence[QueuedBuild], refused: Sequence[RefusedSource], options: SubmissionOptions, *, as_json: bool
) -> None:
    for build in builds:
        if build.job is None:
            print_error(f"{build.srpm} is not queued for {build.arch}: {build.message}")
    for tube in dict.fromkeys(build.tube for build in builds if build.watchers == 0):
        program = "reimzul-batch" if tube == BATCH.name else "builder"
        _warn(f"no {program} watches the tube {tube}; builds wait there until one does")
    if as_json:
        rows = [attr.asdict(build) for build in builds]
        report = {"scratch": options.scratch, "builds": rows, "refused": [attr.asdict(each) for each in refused]}
        click.echo(json.dumps(to_output(report), indent=2, sort_keys=True))
        return
    queued = [build.srpm for build in builds if build.job is not None]
    sources = len(set(queued))
    if sys.stdout.isatty() and sources + len(refused) > 1:
        rest = f", {len(refused)} refused" if refused else ""
        click.echo(f"{pluralize(len(queued), 'build')} of {pluralize(sources, 'source rpm')} queued{rest}")


def _watch_builds(build_ids: Sequence[str], shared: Sequence[str], timeout: float | None, *, as_json: bool) -> int:
    """Follow builds by the program beside this one, as submit does not import the admin package."""
    program = Path(sys.argv[0]).resolve().with_name("reimzul")
    passed_on = [*(["--json"] if as_json else []), *(["--timeout", str(timeout)] if timeout is not None else [])]
    return run_in_foreground([program, "watch", "--new", *shared, *passed_on, *build_ids])


def _warn(line: str) -> None:
    print_error(f"warning: {line}")


# --- builds to wait for

_BROKEN = (BuildState.FAILED, BuildState.REJECTED, BuildState.CANCELLED)
#: Records that a prefix may match; a build has one for each leg.
_MAX_RECORDS = 100


def resolve_builds(prefixes: Iterable[str], url: str) -> tuple[str, ...]:
    """Return the ids of the builds that are not published yet. Raises `InputError` with a line for each fault."""
    found: list[str] = []
    faults: list[str] = []
    try:
        history = open_history(url, reading=True)
    except NoHistory as error:
        raise InputError(f"--after: {error}") from None
    try:
        for prefix in prefixes:
            try:
                found += _resolve_build(history, prefix)
            except InputError as error:
                faults.append(f"--after {prefix}: {error}")
    finally:
        history.close()
    if faults:
        raise InputError("\n".join(faults))
    return tuple(dict.fromkeys(found))


def _resolve_build(history: History, prefix: str) -> list[str]:
    """Return the id of a build, or nothing if it is published."""
    try:
        validators.build_id(prefix.ljust(32, "0"))
    except ValueError:
        raise InputError("give the id of a build, or its first digits, as `reimzul builds` prints them") from None
    records = history.find_builds(BuildFilter(build_id=prefix), _MAX_RECORDS)
    ids = sorted({each.build_id for each in records})
    if not ids:
        raise InputError("no such build")
    if len(ids) > 1:
        raise InputError(f"several builds begin with that: {', '.join(ids[:3])}")
    main = _list_main_legs(records)
    for each in main:
        if each.state in _BROKEN:
            reason = f": {each.reason}" if each.reason else ""
            raise InputError(f"{each.srpm} for {each.target} is {each.state}{reason}")
    if records[0].scratch:
        raise InputError(f"{records[0].srpm} is a scratch build, which is never published")
    return [] if main and all(each.state == BuildState.PUBLISHED for each in main) else ids


def _list_main_legs(records: Sequence[BuildRecord]) -> list[BuildRecord]:
    """The legs that others can be built against; one that follows, as i386, holds up nobody."""
    main = {records[0].target.rpartition(".")[2], "noarch"}
    return [each for each in records if each.arch in main]


def main() -> NoReturn:
    run_command(command, help_without_arguments=True)
