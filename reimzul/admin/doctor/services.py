# SPDX-License-Identifier: Apache-2.0
"""Talks to the farm's four services as their clients do, and checks rsync's uploads, web servers, clocks and units.

The upload check writes one small file into `spool/doctor.<host>/`. The name is the same at every run, and the folder
has no manifest, so no daemon takes it for a build; repogen removes it by its age. Write access to other folders is
tested with --dry-run.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Callable
from urllib.parse import urlsplit

import attr

from reimzul.admin.doctor import (
    Check,
    CheckGroup,
    Result,
    Results,
    describe_error,
    fail,
    is_root,
    ok,
    recommend,
    require,
    shorten,
    warn,
)
from reimzul.admin.doctor.host import PROGRAM_TIMEOUT_SECONDS, UPLOAD_PREFIX, Host
from reimzul.core.beanstalk import Broker
from reimzul.core.clock import MAX_SKEW_SECONDS
from reimzul.core.config import LOCAL
from reimzul.core.errors import BrokerUnavailable, ProgramFailed, ReimzulError
from reimzul.core.formatting import format_time, pluralize
from reimzul.core.fs import find_unreadable
from reimzul.core.process import output_of
from reimzul.core.roles import BSTORE, BUILDER, CONTROLLER, ENABLED_UNITS, Address
from reimzul.core.settings import Settings
from reimzul.core.store_paths import StoreUrls

#: Time limit for one answer of a service.
ANSWER_TIMEOUT_SECONDS = 4.0
BEANSTALKD, INCOMING, RSYNCD, STORE = "beanstalkd", "incoming", "rsyncd", "store"
#: The services each role needs.
NEEDED = {CONTROLLER: (BEANSTALKD, STORE), BSTORE: (BEANSTALKD,), BUILDER: (BEANSTALKD, INCOMING, RSYNCD, STORE)}

#: What shows that systemd runs this host: sd_booted(3).
BOOTED = Path("/run/systemd/system")
#: Units by role; a name that ends with @ is a template with numbered instances.
UNITS = {
    CONTROLLER: ("stunnel@reimzul", "beanstalkd", "nginx", "reimzul-notifier", "reimzul-batch"),
    BUILDER: ("stunnel@reimzul", "reimzul-worker@"),
    BSTORE: ("stunnel@reimzul", "nginx", "rsync", "reimzul-repogen-worker@", "reimzul-signer"),
}
#: Names of units on Fedora and EL, where they differ.
_OTHER_NAMES = {"rsync": ("rsyncd",)}

#: The test upload's file.
UPLOAD_FILE = "doctor.txt"
#: Folders of the store that builders must not write to.
PROTECTED = ("repo", "tosign", "state")
_REFUSED = re.compile(r"excluded|refused?|write only|read only")
_RSYNCD_SETUP = "on bstore: reimzul setup bstore, which writes /etc/rsyncd.conf"
#: What rsync reports of a failed upload, and what helps.
_UPLOAD_REMEDIES = (
    (r"No space left|quota exceeded", "free some space on bstore (reimzul prune there removes old builds)"),
    (r"Read-only file system", "on bstore: dmesg says why its disk is read-only"),
    (r"Permission denied|mkdir|mkstemp", "on bstore: reimzul doctor, which says whose folder it is (store)"),
    (r"refused|timed out|timeout|closed|reset", "on bstore: systemctl restart rsync (rsyncd on Fedora and EL)"),
)
#: Builds get wrong times if two clocks differ by more; smaller differences above MAX_SKEW_SECONDS are a warning.
MAX_CLOCK_DIFFERENCE_SECONDS = 60.0
#: Debian's minimal system has no client of NTP.
_SET_NTP = "timedatectl set-ntp true (Debian: apt-get install systemd-timesyncd first)"
#: The prefix of the test file in incoming/, and the age at which one must be left by a doctor that was killed.
_TEST_PREFIX, _LEFTOVER_SECONDS = "doctor-", 3600
#: A folder of the store that web servers must not offer.
PRIVATE = "spool"


@attr.frozen(kw_only=True)
class Service:
    name: str
    setting: str  #: the setting with its address
    address: Address
    offered_by: str  #: the role of the host that offers it
    program: str  #: the name of its unit
    #: Ask for an answer at an address and describe it. Raises `OSError`, `Misconfigured`
    ask: Callable[[Address], str]


def services(settings: Settings) -> dict[str, Service]:
    incoming, store, uploads = settings.incoming.url, settings.bstore.base_url, settings.bstore.upload_url
    rows = (
        Service(
            name=BEANSTALKD, setting="[beanstalkd] host and port", offered_by=CONTROLLER, program="beanstalkd",
            address=(settings.beanstalkd.host, settings.beanstalkd.port), ask=_ask_beanstalkd,
        ),
        Service(
            name=INCOMING, setting="[incoming] url", offered_by=CONTROLLER, program="nginx",
            address=address_of(incoming), ask=partial(_ask_web_server, incoming, CONTROLLER),
        ),
        Service(
            name=RSYNCD, setting="[bstore] upload_url", offered_by=BSTORE, program="rsync",
            address=address_of(uploads), ask=_ask_rsyncd,
        ),
        Service(
            name=STORE, setting="[bstore] base_url", offered_by=BSTORE, program="nginx",
            address=address_of(store), ask=partial(_ask_web_server, store, BSTORE),
        ),
    )  # fmt: skip
    return {service.name: service for service in rows}


def used_services(host: Host) -> dict[str, Service]:
    """The services this host uses: those its roles need, and those it has a tunnel to."""
    needed = {name for role in host.roles for name in NEEDED[role]}
    return {
        name: service
        for name, service in services(host.settings).items()
        if name in needed or host.stunnel.find_client(*service.address)
    }


def address_of(url: str) -> Address:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or {"https": 443, "rsync": 873}.get(parts.scheme, 80)


def format_address(address: Address) -> str:
    return f"{address[0]}:{address[1]}"


def restart_hint(program: str) -> str:
    other = " (rsyncd on Fedora and EL)" if program == "rsync" else ""
    return f"systemctl restart {program}{other}; journalctl -u {program}"


def connect(settings: Settings) -> Broker:
    return Broker.from_settings(settings.beanstalkd, ANSWER_TIMEOUT_SECONDS)


def _ask_beanstalkd(address: Address) -> str:
    try:
        with Broker(*address, answer=ANSWER_TIMEOUT_SECONDS) as broker:
            return f"beanstalkd {broker.server_stats().version} answers"
    except BrokerUnavailable as error:
        raise ConnectionError(str(error)) from error.__cause__


def _host_of(role: str) -> str:
    return "the controller" if role == CONTROLLER else role


def _ask_rsyncd(address: Address) -> str:
    with socket.create_connection(address, ANSWER_TIMEOUT_SECONDS) as connection:
        greeting = connection.recv(64)
    if not greeting.startswith(b"@RSYNCD:"):
        raise ConnectionError(f"not rsync's greeting: {greeting[:20]!r}" if greeting else "closed without a greeting")
    return f"rsyncd answers, protocol {greeting.split()[1].decode(errors='replace')}"


def _ask_web_server(url: str, role: str, address: Address) -> str:
    """Ask for a folder. The server may refuse to list it (403)."""
    path, status = urlsplit(url).path, fetch(url, address)[0].status
    require(
        status in (200, 403),
        f"the web server at {format_address(address)} answers {status} for {path}",
        f"on {_host_of(role)}: reimzul setup {role}, which writes its configuration",
    )
    return f"the web server answers for {path}"


def fetch(url: str, address: Address | None = None) -> tuple[http.client.HTTPResponse, bytes]:
    """Fetch a URL, at most 64 KB of it; connect to `address` instead of the URL's host if given. Raises `OSError`."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    host, port = address or address_of(url)
    try:
        with contextlib.closing(kind(host, port, timeout=ANSWER_TIMEOUT_SECONDS)) as connection:
            connection.request("GET", parts.path or "/", headers={"Host": parts.netloc, "User-Agent": "reimzul-doctor"})
            response = connection.getresponse()
            return response, response.read(65_536)
    except http.client.HTTPException as error:
        raise ConnectionError(f"not an answer of a web server: {error!r}") from error


# --- rsyncd


upload_checks = CheckGroup("link.rsyncd", "offer.rsyncd")


def _module_url(host: Host) -> str:
    """rsync's module as this host reaches it: through its tunnel, or on bstore itself without."""
    url, backend = host.settings.bstore.upload_url, _backend(host, RSYNCD)
    if backend is None or host.has_role(BUILDER):
        return url
    return re.sub(r"//[^/]+/", f"//{format_address(backend)}/", url, count=1)


def _test_folder(host: Host) -> str:
    return f"spool/{UPLOAD_PREFIX}{re.sub(r'[^A-Za-z0-9._-]', '_', host.name)[:150]}"


@upload_checks.add("rsync.write")
def _check_upload(host: Host) -> Result:
    options = ("--recursive", "--times", "--chmod=D0755,F0644")
    with TemporaryDirectory(prefix="reimzul-doctor-") as folder:
        text = f"reimzul doctor on {host.name}, {format_time(time.time())}\n"
        (Path(folder) / UPLOAD_FILE).write_text(text, encoding="utf-8")
        try:
            _run_rsync(host, *options, f"{folder}/", f"{_module_url(host)}{_test_folder(host)}/")
        except ReimzulError as error:
            return fail(f"the upload of a file into spool/ fails: {error}", _find_upload_remedy(str(error)))
    try:
        _run_rsync(host, "--dry-run", "--append", __file__, StoreUrls("", _module_url(host)).live_module)
    except ReimzulError as error:
        return warn(f"logs cannot be read while they grow, as their upload fails: {error}", _RSYNCD_SETUP)
    return ok(f"{_test_folder(host)} was uploaded")


def _find_upload_remedy(error: str) -> str:
    remedies = (remedy for pattern, remedy in _UPLOAD_REMEDIES if re.search(pattern, error, re.IGNORECASE))
    return next(remedies, _RSYNCD_SETUP)


@upload_checks.add("rsync.read", "rsync.write")
def _check_download(host: Host) -> Result:
    try:
        _run_rsync(host, "--dry-run", f"{_module_url(host)}{_test_folder(host)}/{UPLOAD_FILE}", "/tmp")
    except ProgramFailed as error:
        recommend(
            _REFUSED.search(str(error)),
            f"a download fails, but is not refused: {error}",
            _find_upload_remedy(str(error)),
        )
    else:
        return fail("anybody with a key can read the store by rsync", _RSYNCD_SETUP)
    # of a file in blocks of one byte, the checksums that rsyncd sends are the file
    readable = _is_accepted(host, "--block-size=1", __file__, f"{_module_url(host)}{_test_folder(host)}/{UPLOAD_FILE}")
    require(not readable, "anybody with a key can read uploads by their checksums", _RSYNCD_SETUP)
    return ok("downloads are refused")


@upload_checks.add("rsync.elsewhere", "rsync.write")
def _check_protected(host: Host) -> Result:
    url = _module_url(host)
    writable = [f"{folder}/" for folder in PROTECTED if _is_accepted(host, __file__, f"{url}{folder}/{UPLOAD_FILE}")]
    require(
        not writable,
        f"anybody with a key can write to {', '.join(writable)}",
        _RSYNCD_SETUP,
    )
    return ok(f"writing to {', '.join(f'{folder}/' for folder in PROTECTED)} is refused")


def _is_accepted(host: Host, *arguments: str) -> bool:
    try:
        _run_rsync(host, "--dry-run", *arguments)
    except ProgramFailed as error:
        return not _REFUSED.search(str(error))
    return True


def _run_rsync(host: Host, *arguments: str) -> None:
    worker = host.settings.worker
    output_of([worker.rsync, "--timeout=5", "--contimeout=4", *worker.rsync_arguments, *arguments], timeout=10)


# --- web servers and clocks


web_checks = CheckGroup()


def _backend(host: Host, service: str) -> Address | None:
    """The address of a service of this host behind stunnel; None if stunnel does not offer it."""
    section = host.stunnel.offers.get(service)
    return section.connect if section else None


@web_checks.add("incoming", applies=lambda host: host.has_role(CONTROLLER))
def _check_incoming(host: Host) -> Result:
    settings = host.settings.incoming
    try:
        with _make_test_file(settings.folder) as (name, content):
            response, body = fetch(f"{settings.url}{name}", _backend(host, INCOMING))
    except PermissionError:
        return warn(
            f"not tested whether files can be fetched: this user cannot write to {settings.folder}",
            "" if is_root() else "run reimzul doctor as root, or as a member of group reimzul",
        )
    except FileNotFoundError:
        hint = f"install -d -m 3775 -o {host.user} -g {host.user} {settings.folder}, or correct [incoming] folder"
        return fail(f"{settings.folder} does not exist", hint)
    except OSError as error:
        return _web_server_down(error)
    require(
        response.status == 200 and body == content,
        f"the web server answers {response.status} for a file in {settings.folder} (at {urlsplit(settings.url).path})",
        f"reimzul setup controller, which writes nginx's configuration; where [incoming] folder is another, its alias "
        f"has to be that; chmod o+x {settings.folder} and the folders above it",
    )
    sources = [path for suffix in ("src", "nosrc") for path in sorted(settings.folder.glob(f"*.{suffix}.rpm"))]
    problems = list(filter(None, (find_unreadable(path, settings.folder) for path in sources)))
    recommend(
        not problems,
        f"builders cannot fetch {pluralize(len(problems), 'source rpm')}: {shorten(problems)}",
        "run the chmod commands shown, so that the web server can read the files",
    )
    return ok(f"files in {settings.folder} can be fetched")


@contextlib.contextmanager
def _make_test_file(folder: Path) -> Iterator[tuple[str, bytes]]:
    """A file with random content in a folder, deleted at the end. Its name is not that of a source rpm."""
    content = secrets.token_hex(16).encode()
    path = folder / f"{_TEST_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    for leftover in folder.glob(f"{_TEST_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _LEFTOVER_SECONDS:
                leftover.unlink()
    try:
        path.write_bytes(content)
        path.chmod(0o644)
        yield path.name, content
    finally:
        path.unlink(missing_ok=True)


@web_checks.add("store.http", applies=lambda host: host.has_role(BSTORE))
def _check_store(host: Host) -> Result:
    service, url = services(host.settings)[STORE], host.settings.bstore.base_url
    address = _backend(host, STORE) or service.address
    try:
        service.ask(address)
        private, _ = fetch(f"{url[: -len('repo/')]}{PRIVATE}/", address)
    except OSError as error:
        return _web_server_down(error)
    require(
        private.status != 200,
        f"anybody with a key can read {PRIVATE}/",
        "reimzul setup bstore, which writes nginx's configuration",
    )
    return ok(f"the web server offers repo/, and not {PRIVATE}/")


def _web_server_down(error: OSError) -> Result:
    return fail(f"the web server does not answer: {describe_error(error)}", restart_hint("nginx"))


def clock_checks(host: Host) -> list[Check]:
    rows = ((INCOMING, CONTROLLER, host.settings.incoming.url), (STORE, BSTORE, host.settings.bstore.base_url))
    return [
        Check(name=f"clock.{role}", run=partial(_check_clock, url, role), needs=(f"link.{service}",))
        for service, role, url in rows
        if service in used_services(host) and not (host.is_installed and host.has_role(role))
    ]


def _check_clock(url: str, role: str) -> Result:
    response, _ = fetch(url)
    now, other = time.time(), "the controller" if role == CONTROLLER else role
    date = email.utils.parsedate_tz(response.headers.get("Date", ""))
    if date is None:
        return warn(f"the web server of {other} sends no Date header", "have it send one")
    # The header has whole seconds, half a second too early on average.
    ahead = now - email.utils.mktime_tz(date) - 0.5
    seconds = abs(ahead)
    if seconds <= MAX_SKEW_SECONDS:
        return ok(f"within {max(1, round(seconds))} s of {other}'s clock")
    return (fail if seconds > MAX_CLOCK_DIFFERENCE_SECONDS else warn)(
        f"this host's clock is {seconds:.0f} s {'ahead of' if ahead > 0 else 'behind'} {other}'s",
        f"have both clocks set by NTP: {_SET_NTP}",
    )


# --- units


def checks(host: Host) -> list[Check]:
    """One check for each unit, if systemd runs and the settings are this machine's own."""
    if not host.is_installed or not BOOTED.is_dir():
        return []
    return [Check(name=f"unit.{unit.rstrip('@')}", run=partial(_check_unit, unit)) for unit in _list_units(host)]


def _list_units(host: Host) -> Iterator[str]:
    units = dict.fromkeys(unit for role in host.roles for unit in UNITS[role])
    yield from (unit for unit in units if host.needs_stunnel or unit != "stunnel@reimzul")
    if host.has_role(CONTROLLER) and host.settings.mqtt.notifications and host.settings.mqtt.host in LOCAL:
        yield "mosquitto"
    for unit in ("reimzul-pages", "reimzul-irc"):
        if any(ENABLED_UNITS.glob(f"*.wants/{unit}.service")):
            yield unit


def _check_unit(unit: str) -> Results:
    names = [unit, *_OTHER_NAMES.get(unit, ())]
    if unit.endswith("@"):
        names = sorted({link.stem for link in ENABLED_UNITS.glob(f"*.wants/{unit}*.service")})
    require(names, f"no instance of {unit} is enabled", f"systemctl enable --now {unit}1")
    argv = ["systemctl", "show", "--property=Id,LoadState,ActiveState,SubState,UnitFileState"]
    shown = output_of([*argv, *(f"{name}.service" for name in names)], timeout=PROGRAM_TIMEOUT_SECONDS)
    blocks = (block.splitlines() for block in shown.strip().split("\n\n"))
    units = [dict(line.split("=", 1) for line in block if "=" in line) for block in blocks]
    if not unit.endswith("@"):
        units = [each for each in units if each.get("LoadState") != "not-found"][:1] or units[:1]
    problems = [problem for each in units for problem in find_unit_problems(each)]
    return [*problems, ok(f"{len(units)} of {len(units)} run" if unit.endswith("@") else "runs")]


def find_unit_problems(unit: Mapping[str, str]) -> Iterator[Result]:
    name = unit.get("Id", "").removesuffix(".service")
    if unit.get("LoadState") == "not-found":
        yield fail(f"{name} is not installed", "make install, which installs all that a role needs")
        return
    if unit.get("ActiveState") != "active":
        state = f"{unit.get('ActiveState')} ({unit.get('SubState')})"
        first = f"systemctl unmask {name}; " if unit.get("UnitFileState") == "masked" else ""
        if unit.get("ActiveState") == "failed":  # of one that has failed too often, systemd refuses the start
            first += f"systemctl reset-failed {name}; "
        yield fail(f"{name} is {state}", f"{first}systemctl start {name}; journalctl -u {name}")
    state = unit.get("UnitFileState", "")
    if state in ("disabled", "masked", "bad"):
        unmask = f"systemctl unmask {name}; " if state == "masked" else ""
        yield fail(f"{name} is {state}: it will not start after a reboot", f"{unmask}systemctl enable --now {name}")
