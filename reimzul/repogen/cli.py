# SPDX-License-Identifier: Apache-2.0
"""`reimzul-repogen`: the daemon that publishes and indexes, on bstore."""

from __future__ import annotations

import functools
from typing import NoReturn

from reimzul.core.arch import read_arches
from reimzul.core.beanstalk import Broker
from reimzul.core.cli import daemon_command, local_hostname, run_command
from reimzul.core.event_signature import EventKeys
from reimzul.core.fs import create_store_dirs
from reimzul.core.heartbeat import SERVICE_INTERVAL_SECONDS, HeartbeatSender, ProcessIdentity, own_instance
from reimzul.core.message import Role
from reimzul.core.rpm_header import import_rpm
from reimzul.core.settings import Settings
from reimzul.core.store_paths import StorePaths, StoreUrls
from reimzul.repogen.copier import UploadCopier
from reimzul.repogen.daemon import Repogen, RepogenContext
from reimzul.repogen.reject import RejectionHandler
from reimzul.store.cleanup import Retention
from reimzul.store.createrepo import CreaterepoRunner
from reimzul.store.listing_rules import ListingRules

EXAMPLES = """\b
Examples:
  reimzul-repogen
  reimzul-repogen --config /etc/reimzul/reimzul.ini -v

Any number may run on one store. SIGTERM requeues the jobs in hand; SIGUSR1 finishes them, takes no more, and ends.
"""


@daemon_command("reimzul-repogen", EXAMPLES)
def command(settings: Settings) -> None:
    """Verify what builders upload, publish it, index it with createrepo_c, and announce it."""
    import_rpm()  # fails here with one line, rather than at the first package
    make_daemon(settings).run()


def make_daemon(settings: Settings) -> Repogen:
    store = StorePaths(settings.bstore.root)
    create_store_dirs(store)
    host = local_hostname()
    arches = read_arches(settings.farm.arches)
    copier = UploadCopier(store, settings.repogen.max_upload_files, settings.repogen.max_upload_mib, arches)
    copier.remove_abandoned()
    keys = EventKeys.load(settings.farm.event_keys)
    urls = StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url)
    context = RepogenContext(
        store=store,
        urls=urls,
        createrepo=CreaterepoRunner(store=store, settings=settings.repogen),
        copier=copier,
        rejections=RejectionHandler(store=store, urls=urls, arches=arches, host=host, event_keys=keys),
        spool_days=settings.repogen.spool_days,
        rules=ListingRules(store=store, duplicates=settings.duplicates),
        retention=Retention(attempts=settings.repogen.attempts_days, rejected=settings.repogen.rejected_days),
        event_keys=keys,
    )
    connect = functools.partial(Broker.from_settings, settings.beanstalkd)
    identity = ProcessIdentity(host=host, instance=own_instance(Role.REPOGEN), role=Role.REPOGEN, folders=(store.root,))
    return Repogen(connect, host, context, HeartbeatSender(identity, SERVICE_INTERVAL_SECONDS))


def main() -> NoReturn:
    run_command(command)
