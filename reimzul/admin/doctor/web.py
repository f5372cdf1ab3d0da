# SPDX-License-Identifier: Apache-2.0
"""The web servers: that incoming/ and the store are offered, nothing else of the store is, and that clocks agree."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from reimzul.admin.doctor.check import Check, Result, fail, ok, warn
from reimzul.admin.doctor.handshake import start
from reimzul.admin.doctor.host import BSTORE, CONTROLLER, Host, is_root
from reimzul.admin.doctor.links import used
from reimzul.admin.doctor.services import INCOMING, STORE, get
from reimzul.admin.doctor.tunnels import Address
from reimzul.admin.output import pluralize
from reimzul.core.clock import MAX_SKEW_SECONDS
from reimzul.core.readable import find_unreadable

#: Seconds two clocks may be apart before times of builds are wrong; from `APART` on a person should know.
FAR_APART = 60.0
#: How our files in incoming/ are called, and after how many seconds one was left by a doctor that was killed.
_FILE, _LEFT = "doctor-", 3600
#: How many unreadable files are named.
_NAMED = 3
#: What of the store is nobody's to read by HTTP.
CLOSED = "spool"
_CLOCKS = {INCOMING: CONTROLLER, STORE: BSTORE}


def checks(host: Host) -> list[Check]:
    """The servers of this host, and the clocks of those it reaches."""
    found = []
    if host.has(CONTROLLER):
        found.append(Check(name="incoming", look=lambda: _incoming(host)))
    if host.has(BSTORE):
        found.append(Check(name="store.http", look=lambda: _store(host)))
    urls = {INCOMING: host.settings.incoming.url, STORE: host.settings.bstore.base_url}
    for name, other in _CLOCKS.items():
        if name in used(host) and not (host.installed and host.has(other)):
            look = _Clock(urls[name], other)
            found.append(Check(name=f"clock.{other}", look=look, needs=(f"link.{name}",)))
    return found


def _backend(host: Host, name: str) -> Address | None:
    """Where a server of this host is, behind stunnel; None where nothing is offered: then its URL is right."""
    section = host.tunnels.offers.get(name)
    return section.connect if section else None


def _incoming(host: Host) -> Result:
    """A file put into incoming/ has to come out as it is."""
    settings = host.settings.incoming
    try:
        with _file(settings.folder) as (name, content):
            answer = get(f"{settings.url}{name}", _backend(host, INCOMING))
    except PermissionError:
        words = f"{settings.folder} is not ours to write: whether files in it can be fetched is not known"
        return warn(words, "" if is_root() else "run it as root, or as a member of group reimzul")
    except FileNotFoundError:
        return fail(f"{settings.folder} is not there", "make install, or mend [incoming] folder")
    except OSError as error:
        return _away(error)
    if answer.status != 200 or answer.body != content:
        words = f"a file in {settings.folder} is {answer.status} at {urlsplit(settings.url).path}"
        return fail(words, "does nginx offer that folder (conf/nginx-controller.conf), and may its user enter it?")
    return _unreadable(settings.folder) or ok(f"what is in {settings.folder} can be fetched")


def _unreadable(folder: Path) -> Result | None:
    """A warning where some source rpms may not be read by the web server; it names the first ones."""
    bars = [bar for path in sorted(folder.glob("*.src.rpm")) if (bar := find_unreadable(path, folder))]
    bars += [bar for path in sorted(folder.glob("*.nosrc.rpm")) if (bar := find_unreadable(path, folder))]
    if not bars:
        return None
    words = f"{pluralize(len(bars), 'source rpm')} cannot be fetched by builders: {'; '.join(bars[:_NAMED])}"
    return warn(words, "make them readable by all users, as said")


@contextlib.contextmanager
def _file(folder: Path) -> Iterator[tuple[str, bytes]]:
    """A file with a secret in a folder, for as long as the block lasts. No submission takes it for a source rpm."""
    content = secrets.token_hex(16).encode()
    path = folder / f"{_FILE}{os.getpid()}-{secrets.token_hex(4)}"
    for left in folder.glob(f"{_FILE}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _LEFT:
                left.unlink()
    try:
        path.write_bytes(content)
        path.chmod(0o644)
        yield path.name, content
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def _store(host: Host) -> Result:
    url = host.settings.bstore.base_url
    try:
        answer = get(url, _backend(host, STORE))
        closed = get(f"{url[: -len('repo/')]}{CLOSED}/", _backend(host, STORE))
    except OSError as error:
        return _away(error)
    if answer.status not in (200, 403):
        words = f"the web server says {answer.status} to {urlsplit(url).path}"
        return fail(words, "compare its configuration with conf/nginx-bstore.conf")
    if closed.status == 200:
        return fail(f"anybody with a key can read {CLOSED}/", "offer repo/, scratch/, index/ and attempts/ alone")
    return ok(f"repo/ is offered, and {CLOSED}/ is not")


def _away(error: OSError) -> Result:
    return fail(f"the web server: {(error.strerror or str(error)).lower()}", start("nginx"))


class _Clock:
    """The clock of another host, by what its web server says the time is."""

    def __init__(self, url: str, other: str) -> None:
        self.url = url
        self.whose = f"the {other}" if other == CONTROLLER else other

    def __call__(self) -> Result:
        answer = get(self.url)
        if answer.date is None:
            return warn(f"the web server of {self.whose} does not say the time", "have it send a Date header")
        # what it says has whole seconds, of which half is gone on average
        apart = answer.at - answer.date - 0.5
        words = f"{abs(apart):.0f} s {'before' if apart > 0 else 'behind'} that of {self.whose}"
        if abs(apart) > FAR_APART:
            return fail(f"this host's clock is {words}", "have both set by NTP: timedatectl set-ntp true")
        if abs(apart) > MAX_SKEW_SECONDS:
            return warn(f"this host's clock is {words}", "have both set by NTP: timedatectl set-ntp true")
        return ok(f"within {max(1, round(abs(apart)))} s of that of {self.whose}")
