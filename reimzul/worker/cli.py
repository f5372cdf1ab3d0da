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
from reimzul.core.rpm_header import import_rpm
from reimzul.core.sdnotify import SdNotify
from reimzul.core.store_paths import StoreUrls
from reimzul.worker.build import Tools
from reimzul.worker.chroot import Chroot
from reimzul.worker.configs import Configs
from reimzul.worker.daemon import Worker
from reimzul.worker.fitness import Fitness, Limits
from reimzul.worker.live import Live
from reimzul.worker.roots import Roots
from reimzul.worker.ship import Shipper
from reimzul.worker.source import Incoming
from reimzul.worker.tidying import Tidying
from reimzul.worker.voice import INSTANCE, Self, Voice, own_instance
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
    import_rpm()  # said now, in one line, rather than at the first build
    workspace = Workspace(settings.worker.results)
    workspace.make()
    roots_here = roots(settings, workspace)
    SdNotify().set_status("waiting for the slot of its roots")
    with roots_here.owned(os.environ.get(INSTANCE, "")):
        worker(settings, workspace, roots_here).run()


def worker(settings: Settings, workspace: Workspace, roots_here: Roots) -> Worker:
    """A worker as the settings say; what a killed one left on this host is cleaned up first."""
    known = read_arches(settings.farm.arches)
    kit = tools(settings, roots_here, known)
    SdNotify().set_status("cleaning up, should a killed worker have left something")
    workspace.sweep(kit.chroot.clean_left)
    beanstalkd = settings.beanstalkd
    machine = settings.worker.machine or os.uname().machine
    return Worker(
        functools.partial(Broker, beanstalkd.host, beanstalkd.port),
        [arch_tube(name) for name in known.tubes_of_machine(machine)],
        settings.worker.fqdn or local_hostname(),
        kit,
        workspace,
        Fitness(limits(settings)),
        settings.worker.tries,
        voice(settings, known.tubes_of_machine(machine)),
        Tidying(roots_here),
    )


def voice(settings: Settings, tubes: list[str]) -> Voice:
    """As what this worker says that it is there."""
    who = Self(
        host=settings.worker.fqdn or local_hostname(),
        instance=own_instance(),
        arches=tuple(tubes),
        folders=limits(settings).folders,
    )
    return Voice(who, settings.worker.presence)


def limits(settings: Settings) -> Limits:
    """What this builder has to have before it takes a job."""
    mine = settings.worker
    return Limits(
        folders=(mine.results, mine.mock_roots),
        free_mib=mine.min_free_mib,
        free_inodes=mine.min_free_inodes,
        load=mine.max_load,
    )


def roots(settings: Settings, workspace: Workspace) -> Roots:
    """mock's roots on this host. Workers that share them share what is recorded of them, which lies beside them."""
    mine = settings.worker
    urls = StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url)
    configs = Configs(
        checkout=mine.mock_configs,
        rendered=workspace.configs,
        repohost=urls.base.rstrip("/"),
        pull_timeout=mine.pull_timeout,
    )
    beside = mine.mock_roots if os.access(mine.mock_roots, os.W_OK | os.X_OK) else mine.results
    return Roots(mine.mock, configs, beside / ".reimzul", mine.mock_roots, mine.root_days)


def tools(settings: Settings, roots_here: Roots, known: Arches) -> Tools:
    """What a build needs of this host."""
    mine = settings.worker
    urls = StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url)
    return Tools(
        known=known,
        incoming=Incoming(settings.incoming.url),
        urls=urls,
        configs=roots_here.configs,
        chroot=Chroot(
            mock=mine.mock,
            configs=roots_here.configs,
            roots=roots_here,
            build_timeout=mine.build_timeout,
            stall_timeout=mine.stall_timeout,
        ),
        shipper=Shipper(rsync=mine.rsync, arguments=mine.rsync_arguments, urls=urls),
        live=Live(mine.rsync, mine.rsync_arguments, urls, mine.live_logs),
    )


def main() -> NoReturn:
    """The console script."""
    run_command(command)
