# SPDX-License-Identifier: Apache-2.0
"""`reimzul-worker`: the daemon of a builder."""

from __future__ import annotations

import functools
import os
from typing import NoReturn

from reimzul.core.arch import Arches, read_arches
from reimzul.core.beanstalk import Broker, arch_tube
from reimzul.core.cli import daemon_command, local_hostname, run_command
from reimzul.core.daemon import SdNotify
from reimzul.core.heartbeat import INSTANCE_VARIABLE, ErrorLog, HeartbeatSender, ProcessIdentity, own_instance
from reimzul.core.rpm_header import import_rpm
from reimzul.core.settings import Settings
from reimzul.core.store_paths import StoreUrls
from reimzul.worker.build import BuildEnvironment
from reimzul.worker.daemon import HealthCheck, Worker
from reimzul.worker.download import Downloader
from reimzul.worker.mock import Mock
from reimzul.worker.mock_config import ConfigPuller, MockConfigRepo, read_targets
from reimzul.worker.model import Workspace
from reimzul.worker.roots import MockRoots, RootCleanup
from reimzul.worker.upload import LogStreamer, Uploader

EXAMPLES = """\b
Examples:
  reimzul-worker
  reimzul-worker --config /etc/reimzul/reimzul.ini -v

SIGTERM ends the build and releases its job; SIGUSR1 finishes the build and then ends the worker.
"""


@daemon_command("reimzul-worker", EXAMPLES)
def command(settings: Settings) -> None:
    """Build the requests in the tube of this machine's arch, and of the arches it serves, one at a time."""
    import_rpm()  # reported now, in one line, rather than at the first build
    workspace = Workspace(settings.worker.results)
    workspace.create()
    roots = make_roots(settings, workspace)
    SdNotify().set_status("waiting for the slot of its roots")
    with roots.hold_own_slot(os.environ.get(INSTANCE_VARIABLE, "")):
        make_worker(settings, workspace, roots).run()


def make_worker(settings: Settings, workspace: Workspace, roots: MockRoots) -> Worker:
    """A worker as the settings have it; the rest of a worker that was killed on this host is removed first."""
    arches = read_arches(settings.farm.arches)
    errors = ErrorLog()
    environment = make_environment(settings, roots, arches, errors)
    SdNotify().set_status("cleaning up, should a killed worker have left something")
    workspace.remove_orphaned(environment.mock.recover_root)
    own = settings.worker
    tubes = arches.tubes_of_machine(own.machine or os.uname().machine)
    host = own.fqdn or local_hostname()
    folders = (own.results, own.mock_roots)
    health = HealthCheck(
        folders=folders,
        free_mib=own.min_free_mib,
        free_inodes=own.min_free_inodes,
        max_load=own.max_load,
        mock=own.mock,
        configs=roots.configs,
    )
    identity = ProcessIdentity(host=host, instance=own_instance(), arches=tuple(tubes), folders=folders, mock=own.mock)
    return Worker(
        functools.partial(Broker.from_settings, settings.beanstalkd),
        [arch_tube(name) for name in tubes],
        host,
        environment,
        workspace,
        health,
        own.tries,
        HeartbeatSender(identity, own.presence, errors, lambda: read_targets(roots.configs.folder, arches, tubes)),
        RootCleanup(roots),
        ConfigPuller(roots.configs),
    )


def make_roots(settings: Settings, workspace: Workspace) -> MockRoots:
    """mock's roots on this host. Workers that share them share their records, which lie beside the roots."""
    own = settings.worker
    configs = MockConfigRepo(
        checkout=own.mock_configs,
        rendered_folder=workspace.configs,
        repohost=_store_urls(settings).base.rstrip("/"),
        pull_timeout=own.pull_timeout,
    )
    parent = own.mock_roots if os.access(own.mock_roots, os.W_OK | os.X_OK) else own.results
    return MockRoots(own.mock, configs, parent / ".reimzul", own.mock_roots, own.root_days)


def make_environment(settings: Settings, roots: MockRoots, arches: Arches, errors: ErrorLog) -> BuildEnvironment:
    own, urls = settings.worker, _store_urls(settings)
    return BuildEnvironment(
        arches=arches,
        incoming=Downloader(settings.incoming.url),
        urls=urls,
        configs=roots.configs,
        mock=Mock(
            mock=own.mock,
            configs=roots.configs,
            roots=roots,
            build_timeout=own.build_timeout,
            stall_timeout=own.stall_timeout,
        ),
        uploader=Uploader(rsync=own.rsync, arguments=own.rsync_arguments, urls=urls, errors=errors),
        log_streamer=LogStreamer(own.rsync, own.rsync_arguments, urls, own.live_logs),
    )


def _store_urls(settings: Settings) -> StoreUrls:
    return StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url)


def main() -> NoReturn:
    run_command(command)
