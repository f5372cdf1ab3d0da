# SPDX-License-Identifier: Apache-2.0
"""Checks the history and the servers that the notifier notifies; connects to them as it does, and sends nothing.

The libraries for MQTT and mail are installed on controllers alone, so they are imported when they are needed.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Callable, TypeVar

from reimzul.admin import lookup
from reimzul.admin.doctor.check import OK, Check, Result, fail, is_root, ok, shorten, warn
from reimzul.admin.doctor.host import READ, WRITE, Host, check_writable, user_can
from reimzul.admin.output import format_duration, format_size
from reimzul.core.errors import ConfigError, ReimzulError
from reimzul.core.message import Status
from reimzul.core.pending import CORRUPT_PATTERN, read_pending
from reimzul.core.validators import TIMESTAMP_FORMAT
from reimzul.history import BuildFilter, History, HistoryUnavailable, NoHistory

T = TypeVar("T")
_SQLITE = "sqlite://"
#: Deliveries that have been pending for this long are reported.
PENDING_SECONDS = 600
#: An outbox of this size is reported.
_LARGE_OUTBOX_BYTES = 1 << 30
#: A successful build that has not been published for this long is reported.
UNPUBLISHED_SECONDS = 3600
#: How far back unpublished builds are searched.
_MAX_AGE_DAYS, _MAX_BUILDS = 30, 5_000


def checks(host: Host) -> list[Check]:
    found = [
        Check(name="history", run=lambda: _check_history(host)),
        Check(name="outbox", run=lambda: _check_outbox(host)),
        Check(name="owed", run=lambda: _check_pending(host)),
        Check(name="unpublished", run=lambda: _check_unpublished(host), needs=("history",)),
    ]
    if host.settings.mqtt.notifications:
        found.append(Check(name="mqtt", run=lambda: _check_mqtt(host)))
    if host.settings.mail.notifications:
        found.append(Check(name="mail", run=lambda: _check_mail(host)))
    return found


def _check_history(host: Host) -> Result:
    url = host.settings.history.url
    if url.startswith(_SQLITE):
        found = _check_history_file(host, Path("/" + url[len(_SQLITE) :].lstrip("/")))
        if found.level != OK:
            return found
    try:
        with lookup.reading_history(url) as history:
            history.find_builds(BuildFilter(), 1)
    except NoHistory:
        return ok("nothing has been recorded yet")
    except ConfigError as error:
        return fail(str(error), "make install ROLE=controller")
    except HistoryUnavailable as error:
        return fail(str(error), "" if url.startswith(_SQLITE) else "check that the MongoDB of [history] url runs")
    return ok("the history can be read")


def _check_history_file(host: Host, path: Path) -> Result:
    folder = check_writable(host, path.parent)
    if folder.level != OK:
        return folder
    user = host.user_entry
    for file in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        if user is not None and file.exists() and not user_can(user, file, READ | WRITE):
            return fail(f"user {host.user} cannot write {file}", f"chown {host.user}: {file}")
    return ok(str(path))


def _query(host: Host, ask: Callable[[History], list[T]]) -> list[T]:
    """Ask the history for a list, which is empty before anything was recorded."""
    try:
        with lookup.reading_history(host.settings.history.url) as history:
            return ask(history)
    except NoHistory:
        return []


def _check_outbox(host: Host) -> Result:
    """Look for a damaged outbox, which the notifier has moved aside, and for one that has grown large."""
    outbox = host.settings.notifier.ledger
    if corrupt := sorted(outbox.parent.glob(CORRUPT_PATTERN)):
        names = ", ".join(map(str, corrupt))
        return fail(f"the outbox was damaged, and events may be lost: {names}", f"look for the cause, then rm {names}")
    size = outbox.stat().st_size if outbox.exists() else 0
    if size > _LARGE_OUTBOX_BYTES:
        return warn(f"{outbox} has {format_size(size)}", "`reimzul queues` shows which sink lacks so many events")
    return ok(f"{outbox} has {format_size(size)}" if size else f"{outbox} does not exist yet")


def _check_pending(host: Host) -> Result:
    now = time.time()
    pending = read_pending(host.settings.notifier.ledger)
    late = [each for each in pending if now - each.oldest > PENDING_SECONDS]
    if not late:
        return ok(f"no delivery has been pending for over {PENDING_SECONDS // 60} min")
    counts = ", ".join(f"{each.count} events for {each.sink} for {format_duration(now - each.oldest)}" for each in late)
    return warn(f"deliveries are pending: {counts}", "journalctl -u reimzul-notifier shows why they fail")


def _check_unpublished(host: Host) -> Result:
    """Look for successful builds that are still not published; scratch builds never are."""
    now = time.time()
    since = time.strftime(TIMESTAMP_FORMAT, time.gmtime(now - _MAX_AGE_DAYS * 86400))
    wanted = BuildFilter(status=Status.SUCCESS, since=since)
    late = [
        f"{build.srpm} for {build.arch}, built by {build.builder_fqdn or 'an unknown builder'}"
        for build in _query(host, lambda history: history.find_builds(wanted, _MAX_BUILDS))
        # documents of the original have no `published`
        if build.published == 0 and not build.scratch and now - build.at > UNPUBLISHED_SECONDS
    ]
    if not late:
        return ok(f"every successful build of the last {_MAX_AGE_DAYS} days is published, or less than an hour old")
    return warn(
        f"built successfully, but not published for over an hour: {shorten(late)}",
        "on bstore: reimzul doctor; journalctl -u 'reimzul-repogen-worker@*'",
    )


def _check_mqtt(host: Host) -> Result:
    try:
        from reimzul.core.mqtt import MqttConnection
    except ImportError as error:
        return fail(f"paho-mqtt is not installed ({error})", "make install ROLE=controller")
    settings = host.settings.mqtt
    try:
        MqttConnection(settings).close()
    except ReimzulError as error:
        return _explain_failure(error, "check mosquitto, and that its authority signed the files of [mqtt]")
    return ok(f"the broker at {settings.host}:{settings.port} accepts the notifier")


def _check_mail(host: Host) -> Result:
    from reimzul.core.smtp import SmtpSession

    settings = host.settings.mail
    try:
        SmtpSession(settings).close()
    except ReimzulError as error:
        return _explain_failure(error, "check that the mail server of [mail] runs and accepts mail from this host")
    return ok(f"the mail server at {settings.smtp_host}:{settings.smtp_port} accepts the notifier")


def _explain_failure(error: ReimzulError, hint: str) -> Result:
    """The result for a failed connection. Ordinary users cannot read the keys and passwords it needs."""
    if "Permission denied" in str(error) and not is_root():
        return warn(str(error), "run reimzul doctor as root, or as user reimzul")
    return fail(str(error), hint)
