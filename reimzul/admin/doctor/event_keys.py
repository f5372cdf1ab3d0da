# SPDX-License-Identifier: Apache-2.0
"""Checks the key of events on controller and bstore, and looks for builds that were announced without it."""

from __future__ import annotations

import contextlib
import stat
import time
from collections.abc import Iterator

from reimzul.admin import lookup
from reimzul.admin.doctor import CheckGroup, Result, fail, ok, recommend, require, shorten, warn
from reimzul.admin.doctor.host import BSTORE, BUILDER, CONTROLLER, Host
from reimzul.core.event_signature import EventKeys
from reimzul.core.message import Status
from reimzul.core.validators import TIMESTAMP_FORMAT
from reimzul.history import BuildFilter, BuildRecord, NoHistory

#: How far back claims are searched.
_MAX_AGE_DAYS, _MAX_BUILDS = 30, 5_000
_MAKE_KEY = "on the controller: reimzul setup controller --new-event-key; then the command that it prints, on bstore"

checks = CheckGroup()


@checks.add("events.key", applies=lambda host: host.has_role(CONTROLLER, BSTORE))
def _check_key(host: Host) -> Iterator[Result]:
    path = host.settings.farm.event_keys
    if host.has_role(BUILDER):
        yield ok("a key of events protects nothing here: workers run on this host, as the same user")
        return
    if path is None:
        yield warn("events are not signed: whoever has a builder's key can announce a build as published", _MAKE_KEY)
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    require(
        not mode & stat.S_IRWXO, f"every user can read {path}", f"chown root:reimzul-store {path}; chmod 640 {path}"
    )
    if mode & stat.S_IRGRP and host.user_entry and path.stat().st_gid == host.user_entry.pw_gid:
        yield fail(f"all daemons can read {path}: its group is that of {host.user}", f"chgrp reimzul-store {path}")
    keys = EventKeys.load(path).keys
    ending = [f"key {key.number} until {key.until}" for key in keys if key.until]
    newest = max(key.number for key in keys)
    yield ok("; ".join([f"events are signed by key {newest}", *ending]))


@checks.add("events.claimed", "history", applies=lambda host: host.has_role(CONTROLLER))
def _check_claims(host: Host) -> Result:
    """Look for builds that were announced as published without bstore's signature."""
    since = time.strftime(TIMESTAMP_FORMAT, time.gmtime(time.time() - _MAX_AGE_DAYS * 86400))
    builds: list[BuildRecord] = []
    with contextlib.suppress(NoHistory), lookup.reading_history(host.settings.history.url) as history:
        builds = history.find_builds(BuildFilter(since=since), _MAX_BUILDS)
    claimed = [f"{build.srpm} for {build.arch}" for build in builds if build.claimed]
    recommend(
        not claimed,
        f"announced as published, and not signed by bstore: {shorten(claimed)}",
        "on bstore: reimzul doctor; a repogen of an old version, or without the key, does not sign (reimzul setup "
        "bstore --new-event-key). If bstore signs, somebody has forged it with a builder's key",
    )
    return ok(f"all that was {Status.PUBLISHED} in the last {_MAX_AGE_DAYS} days is signed, or older than the key")
