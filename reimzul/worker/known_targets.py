# SPDX-License-Identifier: Apache-2.0
"""The targets that this worker has mock configurations for: it reports them with its heartbeats.

An idle worker pulls its checkout every few minutes, so that a target is known soon after its configuration is pushed,
and at once when a person asks for it by `reimzul targets --refresh`.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Optional

import attr

from reimzul.core import control, validators
from reimzul.core.arch import Arches
from reimzul.core.beanstalk import Broker
from reimzul.core.builder_needs import find_missing_configs
from reimzul.core.targets import TargetList, split_arch
from reimzul.worker.mock_config import MockConfigRepo

log = logging.getLogger(__name__)

#: Seconds between two pulls of an idle worker, and of one whose checkout has no configurations.
PULL_INTERVAL_SECONDS, EMPTY_PULL_INTERVAL_SECONDS = 300.0, 60.0
#: Seconds between two looks for the flag of `reimzul targets --refresh`.
FLAG_POLL_SECONDS = 5.0
#: The configuration of a single package, without arch: `<name>-<version>-<release>`, a disttag as `.el7` at the end.
#: Other names are targets, as `centos-7-1708`; a package's that is reported as a target does no harm.
_PACKAGE_CONFIG = re.compile(r".+-[0-9][^-]*-[0-9][^-]*\.[A-Za-z_+]+[0-9][^-]*")


def read_targets(folder: Path, arches: Arches, tubes: Collection[str]) -> TargetList:
    """Return the targets with a configuration in a folder whose arch's tube is one of `tubes`."""
    return TargetList.from_names(_iterate_targets(folder, arches, tubes))


def _iterate_targets(folder: Path, arches: Arches, tubes: Collection[str]) -> Iterator[str]:
    try:
        files = [entry.name for entry in os.scandir(folder) if entry.name.endswith(".cfg") and entry.is_file()]
    except OSError as error:
        log.debug("no mock configuration can be read: %s", error)
        return
    for file in files:
        target = file[: -len(".cfg")]
        name, arch = split_arch(target, arches)
        if not arch or arches.tube_of(arch) not in tubes or _PACKAGE_CONFIG.fullmatch(name):
            continue
        try:
            yield validators.target(target)
        except ValueError:
            continue  # no request can name it


@attr.define
class ConfigPuller:
    """Pulls the checkout while the worker is idle, in a thread: no job waits for a git server that is slow."""

    configs: MockConfigRepo
    _pulled_at: float = attr.field(default=float("-inf"), init=False)
    _polled_at: float = attr.field(default=float("-inf"), init=False)
    _flag: Optional[control.ControlFlag] = attr.field(default=None, init=False)  #: the last one that was obeyed
    _thread: Optional[threading.Thread] = attr.field(default=None, init=False)

    def pull_if_due(self, broker: Broker) -> None:
        """Start a pull if the last one is long ago or a person wants one. Raises `BrokerUnavailable`."""
        now = time.monotonic()
        if self._thread is not None and self._thread.is_alive():
            return
        is_empty = bool(find_missing_configs(self.configs.checkout))
        interval = EMPTY_PULL_INTERVAL_SECONDS if is_empty else PULL_INTERVAL_SECONDS
        if self._has_new_flag(broker, now) or now - self._pulled_at >= interval:
            self._pulled_at = now
            self._thread = threading.Thread(target=self._pull, name="mock configurations", daemon=True)
            self._thread.start()

    def _has_new_flag(self, broker: Broker, now: float) -> bool:
        if now - self._polled_at < FLAG_POLL_SECONDS:
            return False
        self._polled_at = now
        flag = control.refresh_flag(broker)
        is_new = flag is not None and flag != self._flag
        self._flag = flag or self._flag
        return is_new

    def _pull(self) -> None:
        try:
            self.configs.pull()
        except OSError as error:  # a folder that cannot be written to; each build reports it
            log.warning("%s cannot be pulled: %s", self.configs.checkout, error)
