# SPDX-License-Identifier: Apache-2.0
"""`reimzul-batch`: the daemon that holds builds and releases them in order, on the controller."""

from __future__ import annotations

import functools
import stat
from pathlib import Path
from typing import NoReturn

from reimzul.batch.batches import Batches
from reimzul.batch.daemon import BatchDaemon
from reimzul.batch.job_checks import JobChecker, Pipeline
from reimzul.batch.single_builds import SingleBuilds
from reimzul.batch.target_provides import TargetWatcher
from reimzul.batch.throttle import Throttle
from reimzul.core.arch import read_arches
from reimzul.core.beanstalk import Broker
from reimzul.core.cli import daemon_command, local_hostname, run_command
from reimzul.core.errors import ConfigError, ReimzulError, describe_os_error
from reimzul.core.fs import file_lock
from reimzul.core.rpm_header import import_rpm
from reimzul.core.settings import Settings
from reimzul.core.store_paths import StoreUrls
from reimzul.plan.document import FOLDER


@daemon_command("reimzul-batch")
def command(settings: Settings) -> None:
    """Hold builds until what they need is published, and release them in the order of their batch's plan.

    Runs on the controller until SIGTERM, which it obeys within a second. There must be one: another waits for
    nothing, and ends with exit code 1. It goes on where an earlier one was stopped or killed. Until it runs, nothing
    of a batch is released; builds that wait stay where they are.

    \b
    Example:
      reimzul-batch --config /etc/reimzul/reimzul.ini
    """
    import_rpm()  # fails here with one line, rather than at the first comparison of versions
    folder = settings.incoming.folder / FOLDER
    try:
        make_folder(folder)
        with file_lock(folder / ".lock") as descriptor:
            if descriptor is None:
                raise ReimzulError(f"{folder}: another reimzul-batch works there; there can be only one")
            make_daemon(settings).run()
    except OSError as error:
        raise ConfigError(f"[incoming] folder: {error.filename or folder}: {describe_os_error(error)}") from error


def make_folder(folder: Path) -> None:
    """Make the folder of plans, which the same users write to as to incoming/. Raises `OSError`."""
    if not folder.exists():
        folder.mkdir()
        folder.chmod(stat.S_IMODE(folder.parent.stat().st_mode))


def make_daemon(settings: Settings) -> BatchDaemon:
    arches = read_arches(settings.farm.arches)
    incoming = settings.incoming.folder
    pipeline = Pipeline(settings)
    targets = TargetWatcher(StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url))
    batches = Batches(incoming, arches)
    batches.load_unfinished()
    return BatchDaemon(
        functools.partial(Broker.from_settings, settings.beanstalkd),
        local_hostname(),
        batches,
        SingleBuilds(incoming, arches, pipeline, targets),
        targets,
        Throttle(settings.notifier.presence),
        JobChecker(pipeline),
    )


def main() -> NoReturn:
    run_command(command)
