# SPDX-License-Identifier: Apache-2.0
"""`reimzul-tosign`: the daemon that lays out packages for the signer, on bstore."""

from __future__ import annotations

import functools
from typing import NoReturn

from reimzul.core.beanstalk import Broker
from reimzul.core.cli import daemon_command, local_hostname, run_command
from reimzul.core.fs import create_store_dirs
from reimzul.core.heartbeat import SERVICE_INTERVAL_SECONDS, HeartbeatSender, ProcessIdentity, own_instance
from reimzul.core.message import Role
from reimzul.core.settings import Settings
from reimzul.core.store_paths import StorePaths
from reimzul.tosign.daemon import Tosign

EXAMPLES = """\b
Examples:
  reimzul-tosign
  reimzul-tosign --config /etc/reimzul/reimzul.ini -v

Folders in tosign/<target>/ are complete and may be moved away at any time; they are not laid out again.
SIGTERM requeues the job in hand; SIGUSR1 finishes it, takes no more, and ends.
"""


@daemon_command("reimzul-tosign", EXAMPLES)
def command(settings: Settings) -> None:
    """Copy the packages of each published build to where they are collected and signed."""
    make_daemon(settings).run()


def make_daemon(settings: Settings) -> Tosign:
    store = StorePaths(settings.bstore.root)
    create_store_dirs(store)
    host = local_hostname()
    identity = ProcessIdentity(host=host, instance=own_instance(Role.TOSIGN), role=Role.TOSIGN, folders=(store.root,))
    heartbeat = HeartbeatSender(identity, SERVICE_INTERVAL_SECONDS)
    return Tosign(functools.partial(Broker.from_settings, settings.beanstalkd), host, store, heartbeat)


def main() -> NoReturn:
    run_command(command)
