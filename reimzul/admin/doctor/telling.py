# SPDX-License-Identifier: Apache-2.0
"""Whom the notifier tells: the history, and the servers for MQTT and mail, greeted as the notifier does.

Nothing is said to anybody. The libraries for it are on a controller alone, so they are imported when they are asked.
"""

from __future__ import annotations

import time
from pathlib import Path

from reimzul.admin import originals, reading
from reimzul.admin.doctor.access import READ, WRITE, may, writable
from reimzul.admin.doctor.check import OK, Check, Result, fail, ok, warn
from reimzul.admin.doctor.host import CONTROLLER, Host, is_root
from reimzul.core.errors import ConfigError, ReimzulError
from reimzul.core.pending import read_pending
from reimzul.history import BuildFilter, HistoryAway, NoHistory

_SQLITE = "sqlite://"
#: Seconds after which what is owed to a sink is no passing thing.
OWED = 600


def checks(host: Host) -> list[Check]:
    """The controller's; MQTT and mail where they are switched on."""
    if not host.has(CONTROLLER):
        return []
    found = [
        Check(name="history", look=lambda: _history(host)),
        Check(name="owed", look=lambda: _owed(host), needs=("history",)),
        Check(name="originals", look=lambda: _originals(host), needs=("history",)),
    ]
    if host.settings.mqtt.notifications:
        found.append(Check(name="mqtt", look=lambda: _mqtt(host)))
    if host.settings.mail.notifications:
        found.append(Check(name="mail", look=lambda: _mail(host)))
    return found


def _history(host: Host) -> Result:
    url = host.settings.history.url
    if url.startswith(_SQLITE):
        found = _file(host, Path("/" + url[len(_SQLITE) :].lstrip("/")))
        if found.level != OK:
            return found
    try:
        with reading.history(url) as history:
            history.builds(BuildFilter(), 1)
    except NoHistory:
        return ok("nothing was recorded yet")
    except ConfigError as error:
        return fail(str(error), "make install ROLE=controller")
    except HistoryAway as error:
        return fail(str(error), "is the MongoDB of [history] url up?" if not url.startswith(_SQLITE) else "")
    return ok("it can be read")


def _file(host: Host, path: Path) -> Result:
    """Whether the notifier can write a history of SQLite's, and we can read it."""
    folder = writable(host, path.parent)
    if folder.level != OK:
        return folder
    user = host.entry
    files = [path, *(path.with_name(f"{path.name}-{more}") for more in ("wal", "shm"))]
    for file in files:
        if user is not None and file.exists() and not may(user, file, READ | WRITE):
            return fail(f"user {host.user} cannot write {file}", f"chown {host.user}: {file}")
    return ok(str(path))


def _owed(host: Host) -> Result:
    owed = read_pending(host.settings.notifier.ledger)
    late = [each for each in owed if time.time() - each.oldest > OWED]
    if not late:
        return ok("every sink has what it is to be told")
    words = ", ".join(f"{each.count} events to {each.sink} for {_for(each.oldest)}" for each in late)
    return warn(f"owed: {words}", "journalctl -u reimzul-notifier says what is wrong with it")


def _originals(host: Host) -> Result:
    """Whether the setting about workers of the original is as the last builds say."""
    try:
        with reading.history(host.settings.history.url) as history:
            found = originals.builders(history)
    except NoHistory:
        found = {}
    on = host.settings.farm.original_workers
    there = {name: build for name, build in found.items() if on or originals.is_lost(build)}
    names = ", ".join(f"{name} (last build {originals.when(build)})" for name, build in there.items())
    if on or not there:
        return ok(f"builders of the original: {names or f'none in {originals.DAYS} days'}")
    return warn(f"what builders of the original build is not published: {names}", "docs/upgrading.md")


def _for(since: float) -> str:
    minutes = int(time.time() - since) // 60
    return f"{minutes // 60} h" if minutes > 120 else f"{minutes} min"


def _mqtt(host: Host) -> Result:
    try:
        from reimzul.core.mqtt import MqttConnection
    except ImportError as error:
        return fail(f"paho-mqtt is not installed ({error})", "make install ROLE=controller")
    settings = host.settings.mqtt
    try:
        MqttConnection(settings).close()
    except ReimzulError as error:
        return _unlike(error, "systemctl status mosquitto; are the files of [mqtt] its authority's?")
    return ok(f"the broker at {settings.host}:{settings.port} welcomes us")


def _mail(host: Host) -> Result:
    from reimzul.core.smtp import SmtpSession

    settings = host.settings.mail
    try:
        SmtpSession(settings).close()
    except ReimzulError as error:
        return _unlike(error, "is the mail server of [mail] up, and does it take mail from this host?")
    return ok(f"the mail server at {settings.smtp_host}:{settings.smtp_port} welcomes us")


def _unlike(error: ReimzulError, remedy: str) -> Result:
    """What failed; keys and passwords are not everybody's to read."""
    if "Permission denied" in str(error) and not is_root():
        return warn(str(error), "run it as root, or as user reimzul")
    return fail(str(error), remedy)
