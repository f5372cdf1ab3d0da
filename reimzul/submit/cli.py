# SPDX-License-Identifier: Apache-2.0
"""`reimzul-submit`: checks a source rpm and queues it, once for each arch."""

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
from reimzul.core.errors import EXIT_FAILED
from reimzul.core.process import exec_program
from reimzul.core.rpm_header import read_source_header
from reimzul.core.store_paths import StoreUrls
from reimzul.submit.submission import (
    QueuedBuild,
    Source,
    SubmissionOptions,
    check_arches,
    check_options,
    find_source,
    import_source,
    make_requests,
    queue_requests,
    refuse_listed,
    request_repodata,
    submitter_for_workers,
)
from reimzul.submit.target_check import complete_target, refuse_unknown_target

EXAMPLES = """\b
Examples:
  reimzul-submit -s time-1.7-45.el7.src.rpm -d .el7 -a x86_64 -t c7.1708.u
  reimzul-submit -s ~/rpmbuild/SRPMS/time-1.9-1.src.rpm -d .el9 -a x86_64,aarch64 -t c9s --scratch
  reimzul-submit -s time-1.7-45.el7.src.rpm -d .el7 -a x86_64 -t c7.1708.u --wait

i386 is built together with x86_64, and ppc with ppc64, with the same timestamp: do not submit them separately.
"""


@click.command("reimzul-submit", epilog=EXAMPLES + "\n" + EXIT_CODES)
@click.option(
    "-s",
    "--srpm",
    required=True,
    metavar="SRPM",
    help="The source rpm: the name of a file in incoming/, or a path; a file elsewhere is copied to incoming/.",
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
@click.option("--scratch", is_flag=True, help="Only build it, into scratch/: nothing is published or signed.")
@click.option(
    "--rebuild",
    is_flag=True,
    help="Replace the build of the same version and release that the target lists. Without it, that is refused.",
)
@click.option("--wait", is_flag=True, help="Then follow the builds and exit as `reimzul watch` does.")
@click.option("--json", "as_json", is_flag=True, help="Print the queued builds as JSON.")
@shared_options
def command(
    srpm: str,
    arches: Sequence[str],
    target: str,
    new_target: bool,
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

    Everything is checked before anything is queued. Prints the tube and the build id for each arch.
    """
    settings = load_settings(config, verbose)
    known = read_arches(settings.farm.arches)
    names = [name for given in arches for name in given.split(",") if name]
    options = SubmissionOptions(
        arches=check_options(names, target, disttag, known),
        target=target,
        disttag=disttag,
        now=now,
        scratch=scratch,
        rebuild=rebuild,
    )
    if not new_target:
        refuse_unknown_target(target, options.arches, settings, known, _warn)
    user = current_user()
    path = find_source(srpm, settings.incoming.folder)
    header = read_source_header(path)
    for doubt in check_arches(path.name, header, options.arches, known):
        _warn(doubt)
    if not (rebuild or scratch):
        targets = [f"{target}.{arch}" for arch in options.arches]
        checked = [each for each in targets if "builds" not in settings.duplicates.kinds_for(each)]
        refuse_listed(header, disttag, checked, settings.bstore.base_url, _warn)
    source = import_source(path, settings.incoming.folder)
    with Broker.from_settings(settings.beanstalkd) as broker:
        requests = make_requests(source, options, submitter_for_workers(broker, user, settings.notifier.presence))
        urls = StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url)
        request_repodata(broker, urls, [request.target for request in requests])
        builds = queue_requests(broker, requests, header, options, known)
    _print_report(builds, source, requests[0].submitter, options, as_json=as_json)
    if any(build.job is None for build in builds):
        return EXIT_FAILED
    if wait:  # by the program beside this one, as submit does not import the admin package
        program = Path(sys.argv[0]).resolve().with_name("reimzul")
        shared = [*(["--config", str(config)] if config else []), *(["--json"] if as_json else [])]
        exec_program([program, "watch", "--new", *shared, *(build.build_id for build in builds)])
    return 0


def _warn(line: str) -> None:
    print_error(command, f"warning: {line}")


def _print_report(
    builds: Sequence[QueuedBuild], source: Source, submitter: str, options: SubmissionOptions, *, as_json: bool
) -> None:
    if as_json:
        rows = [attr.asdict(build) for build in builds]
        click.echo(json.dumps({"srpm": source.name, "copied": source.copied, "builds": rows}))
    for build in builds:
        if build.job is None:
            print_error(command, f"not queued for {build.arch}: {build.fault}")
            continue
        if not as_json:
            click.echo(
                f"Submitted SRPM {source.name} to build queue {build.tube} for target {build.target} "
                f"(scratch: {options.scratch}) by {submitter}: build {build.build_id}"
            )
        if build.watchers == 0:
            _warn(f"no builder watches the tube {build.tube}; the build waits until one does")


def main() -> NoReturn:
    run_command(command, help_without_arguments=True)
