# SPDX-License-Identifier: Apache-2.0
"""`reimzul-worker`: the daemon of a builder."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import NoReturn

import click

from reimzul.core.arch import Arches, read_arches
from reimzul.core.beanstalk import Broker, arch_tube
from reimzul.core.cli import EXIT_CODES, load_settings, local_hostname, run_command, shared_options
from reimzul.core.config import Settings
from reimzul.core.refused import Overflow
from reimzul.core.rpm_header import check_bindings
from reimzul.core.sdnotify import SdNotify
from reimzul.core.store_paths import StoreUrls
from reimzul.worker.build import BuildEnvironment
from reimzul.worker.daemon import Worker
from reimzul.worker.download import Downloader
from reimzul.worker.health import HealthCheck, ResourceLimits
from reimzul.worker.heartbeat import INSTANCE_VARIABLE, HeartbeatSender, WorkerIdentity, own_instance
from reimzul.worker.log_stream import LogStreamer
from reimzul.worker.mock import Mock
from reimzul.worker.mock_config import MockConfigRepo
from reimzul.worker.root_cleanup import RootCleanup
from reimzul.worker.roots import MockRoots
from reimzul.worker.upload import Uploader
from reimzul.worker.workspace import Workspace

EXAMPLES = """\b
Examples:
  reimzul-worker
  reimzul-worker --config /etc/reimzul/reimzul.ini -v

SIGTERM gives back the build under way; SIGUSR1 finishes it, takes no other, and ends.
"""


@click.command("reimzul-worker", epilog=EXAMPLES + "\n" + EXIT_CODES)
@shared_options
def command(config: Path | None, verbose: bool) -> None:
    """Build what lies in the tube of this machine's arch, and of the arches it serves, one request at a time."""
    settings = load_settings(config, verbose)
    check_bindings()  # said now, in one line, rather than at the first build
    workspace = Workspace(settings.worker.results)
    workspace.create()
    roots_here = make_roots(settings, workspace)
    SdNotify().set_status("waiting for the slot of its roots")
    with roots_here.hold_own_slot(os.environ.get(INSTANCE_VARIABLE, "")):
        make_worker(settings, workspace, roots_here).run()


def make_worker(settings: Settings, workspace: Workspace, roots_here: MockRoots) -> Worker:
    """A worker as the settings say; what a killed one left on this host is cleaned up first."""
    known = read_arches(settings.farm.arches)
    kit = make_environment(settings, roots_here, known)
    SdNotify().set_status("cleaning up, should a killed worker have left something")
    workspace.remove_orphaned(kit.mock.recover_root)
    beanstalkd = settings.beanstalkd
    machine = settings.worker.machine or os.uname().machine
    return Worker(
        functools.partial(Broker, beanstalkd.host, beanstalkd.port),
        [arch_tube(name) for name in known.tubes_of_machine(machine)],
        settings.worker.fqdn or local_hostname(),
        kit,
        workspace,
        HealthCheck(make_limits(settings)),
        settings.worker.tries,
        make_heartbeat(settings, known.tubes_of_machine(machine)),
        RootCleanup(roots_here),
        Overflow(settings.farm.refused),
    )


def make_heartbeat(settings: Settings, tubes: list[str]) -> HeartbeatSender:
    """As what this worker says that it is there."""
    who = WorkerIdentity(
        host=settings.worker.fqdn or local_hostname(),
        instance=own_instance(),
        arches=tuple(tubes),
        folders=make_limits(settings).folders,
    )
    return HeartbeatSender(who, settings.worker.presence)


def make_limits(settings: Settings) -> ResourceLimits:
    """What this builder has to have before it takes a job."""
    mine = settings.worker
    return ResourceLimits(
        folders=(mine.results, mine.mock_roots),
        free_mib=mine.min_free_mib,
        free_inodes=mine.min_free_inodes,
        load=mine.max_load,
    )


def make_roots(settings: Settings, workspace: Workspace) -> MockRoots:
    """mock's roots on this host. Workers that share them share what is recorded of them, which lies beside them."""
    mine = settings.worker
    urls = StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url)
    configs = MockConfigRepo(
        checkout=mine.mock_configs,
        rendered_folder=workspace.configs,
        repohost=urls.base.rstrip("/"),
        pull_timeout=mine.pull_timeout,
    )
    beside = mine.mock_roots if os.access(mine.mock_roots, os.W_OK | os.X_OK) else mine.results
    return MockRoots(mine.mock, configs, beside / ".reimzul", mine.mock_roots, mine.root_days)


def make_environment(settings: Settings, roots_here: MockRoots, known: Arches) -> BuildEnvironment:
    """What a build needs of this host."""
    mine = settings.worker
    urls = StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url)
    return BuildEnvironment(
        arches=known,
        incoming=Downloader(settings.incoming.url),
        urls=urls,
        configs=roots_here.configs,
        mock=Mock(
            mock=mine.mock,
            configs=roots_here.configs,
            roots=roots_here,
            build_timeout=mine.build_timeout,
            stall_timeout=mine.stall_timeout,
        ),
        uploader=Uploader(rsync=mine.rsync, arguments=mine.rsync_arguments, urls=urls),
        log_streamer=LogStreamer(mine.rsync, mine.rsync_arguments, urls, mine.live_logs),
    )


def main() -> NoReturn:
    """The console script."""
    run_command(command)
