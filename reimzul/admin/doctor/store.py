# SPDX-License-Identifier: Apache-2.0
"""Checks bstore's folders and programs, rsync's uploads, and the web servers of incoming/ and the store.

The upload check writes one small file into `spool/doctor.<host>/`. The name is the same at every run, and the folder
has no manifest, so no daemon takes it for a build; repogen removes it by its age. Write access to other folders is
tested with --dry-run.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from reimzul.admin.doctor.check import OK, Check, Result, combine, describe_error, fail, is_root, ok, shorten, warn
from reimzul.admin.doctor.host import BSTORE, BUILDER, CONTROLLER, Host, check_writable
from reimzul.admin.doctor.network import used_services
from reimzul.admin.doctor.services import INCOMING, RSYNCD, STORE, fetch, format_address, restart_hint, services
from reimzul.admin.doctor.stunnel_config import Address
from reimzul.admin.output import pluralize
from reimzul.core.clock import MAX_SKEW_SECONDS
from reimzul.core.errors import ProgramFailed, ReimzulError
from reimzul.core.process import output_of
from reimzul.core.readable import find_unreadable
from reimzul.core.store_paths import MANIFEST, StorePaths
from reimzul.store.createrepo import read_failure

#: A complete upload that repogen has not taken for this long is reported. Repogen itself scans the spool hourly.
STUCK_UPLOAD_SECONDS = 2 * 3600
#: The test upload: the prefix of its folder in spool/, and its file.
UPLOAD_PREFIX = "doctor."
UPLOAD_FILE = "doctor.txt"
#: Folders of the store that builders must not write to.
PROTECTED = ("repo", "tosign", "state")
_REFUSED = re.compile(r"excluded|refused|write only|read only")
_RSYNCD_SAMPLE = "compare /etc/rsyncd.conf on bstore with conf/rsyncd.conf"
#: Builds get wrong times if two clocks differ by more; smaller differences above MAX_SKEW_SECONDS are a warning.
MAX_CLOCK_DIFFERENCE_SECONDS = 60.0
#: The prefix of the test file in incoming/, and the age at which one must be left by a doctor that was killed.
_TEST_PREFIX, _LEFTOVER_SECONDS = "doctor-", 3600
#: A folder of the store that web servers must not offer.
PRIVATE = "spool"


# --- bstore


def checks(host: Host) -> list[Check]:
    store = StorePaths(host.settings.bstore.root)
    hook = host.settings.repogen.after_createrepo
    return [
        Check(name="createrepo_c", run=lambda: _check_createrepo(host)),
        Check(name="store", run=lambda: _check_folders(host, store)),
        Check(name="spool", run=lambda: _check_spool(store), needs=("store",)),
        Check(name="after_createrepo", run=lambda: check_hook(hook, store)),
    ]


def _check_createrepo(host: Host) -> Result:
    program = host.settings.repogen.createrepo_c
    try:
        version = host.run_as_user(program, "--version").strip()
    except ReimzulError as error:
        return fail(str(error), "install createrepo_c (Debian: createrepo-c), or correct [repogen] createrepo_c")
    return ok(version.splitlines()[0] if version else program)


def _check_folders(host: Host, store: StorePaths) -> Result:
    folders = [store.root, *(folder for folder in store.folders() if folder.is_dir())]
    for folder in folders:
        result = check_writable(host, folder)
        if result.level != OK:
            return result
    if len({folder.stat().st_dev for folder in folders}) > 1:
        return fail(
            f"the folders in {store.root} are on several file systems: publishing needs a rename within one",
            "move all of them to one file system",
        )
    missing = len(folders) <= len(store.folders())
    return ok(f"{store.root}, one file system{'; repogen creates the missing folders' if missing else ''}")


def _check_spool(store: StorePaths) -> Result:
    if not store.spool.is_dir():
        return ok("nothing has been uploaded yet")
    stuck = sorted(_list_stuck(store.spool, time.time() - STUCK_UPLOAD_SECONDS))
    if stuck:
        hours = STUCK_UPLOAD_SECONDS // 3600
        return warn(
            f"{len(stuck)} complete uploads have waited for over {hours} h, the first is {stuck[0]}",
            "journalctl -u 'reimzul-repogen-worker@*' shows why repogen does not take them",
        )
    return ok(f"no complete upload has waited for over {STUCK_UPLOAD_SECONDS // 3600} h")


def _list_stuck(spool: Path, before: float) -> Iterator[str]:
    for folder in spool.iterdir():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if not folder.name.startswith(UPLOAD_PREFIX) and (folder / MANIFEST).lstat().st_ctime < before:
                yield folder.name


def check_hook(argv: Sequence[str], store: StorePaths) -> Result:
    """Check that the program that runs after createrepo_c exists, and succeeded last on each target."""
    if not argv:
        return ok("no program runs after createrepo_c")
    if shutil.which(argv[0]) is None:
        return fail(
            f"{argv[0]} does not exist: no new repodata is published",
            "install it, or correct [repogen] after_createrepo",
        )
    now, results = time.time(), []
    for path in sorted(store.state.glob("*.hook")):
        failure = read_failure(path)
        if failure is not None:
            target, times = path.name[: -len(".hook")], "once" if failure.count == 1 else f"{failure.count} times"
            ago = f"{max(0, int(now - failure.at))} s ago"
            results.append(
                fail(
                    f"{target} keeps its old repodata: {argv[0]} failed {times}, last {ago}: {failure.reason}",
                    f"fix the cause, then: reimzul repogen {target}",
                )
            )
    return combine(results, f"the last run of {argv[0]} succeeded for every target")


# --- uploads


def upload_checks(host: Host) -> list[Check]:
    needs = ("link.rsyncd",) if host.has_role(BUILDER) else ("offer.rsyncd",)
    return [
        Check(name="rsync.write", run=lambda: _check_upload(host), needs=needs),
        Check(name="rsync.read", run=lambda: _check_download(host), needs=(*needs, "rsync.write")),
        Check(name="rsync.elsewhere", run=lambda: _check_protected(host), needs=(*needs, "rsync.write")),
    ]


def _module_url(host: Host) -> str:
    """rsync's module as this host reaches it: through its tunnel, or on bstore itself without."""
    url, offer = host.settings.bstore.upload_url, host.stunnel.offers.get(RSYNCD)
    if offer is None or host.has_role(BUILDER):
        return url
    return re.sub(r"//[^/]+/", f"//{format_address(offer.connect)}/", url, count=1)


def _test_folder(host: Host) -> str:
    return f"spool/{UPLOAD_PREFIX}{re.sub(r'[^A-Za-z0-9._-]', '_', host.name)[:150]}"


def _check_upload(host: Host) -> Result:
    with TemporaryDirectory(prefix="reimzul-doctor-") as folder:
        text = f"reimzul doctor on {host.name}, {time.strftime('%FT%TZ', time.gmtime())}\n"
        (Path(folder) / UPLOAD_FILE).write_text(text, encoding="utf-8")
        try:
            options = ("--recursive", "--times", "--chmod=D0755,F0644")
            _run_rsync(host, *options, f"{folder}/", f"{_module_url(host)}{_test_folder(host)}/")
        except ReimzulError as error:
            hint = f"run reimzul doctor on bstore; {_RSYNCD_SAMPLE}"
            return fail(f"the upload of a file into spool/ fails: {error}", hint)
    return ok(f"{_test_folder(host)} was uploaded")


def _check_download(host: Host) -> Result:
    """Try to download that file, which must be refused."""
    try:
        _run_rsync(host, "--dry-run", f"{_module_url(host)}{_test_folder(host)}/{UPLOAD_FILE}", "/tmp")
    except ProgramFailed as error:
        if _REFUSED.search(str(error)):
            return ok("downloads are refused")
        return warn(f"a download fails, but is not refused: {error}", _RSYNCD_SAMPLE)
    return fail("anybody with a key can read the store by rsync", f"set write only = yes; {_RSYNCD_SAMPLE}")


def _check_protected(host: Host) -> Result:
    """Try to write to other folders, which must be refused."""
    writable = [f"{folder}/" for folder in PROTECTED if not _is_protected(host, folder)]
    if writable:
        filters = "include = /spool/ /spool/*** /live/ /live/*** and exclude = *"
        return fail(f"anybody with a key can write to {', '.join(writable)}", f"set {filters}; {_RSYNCD_SAMPLE}")
    return ok(f"writing to {', '.join(f'{folder}/' for folder in PROTECTED)} is refused")


def _is_protected(host: Host, folder: str) -> bool:
    try:
        _run_rsync(host, "--dry-run", __file__, f"{_module_url(host)}{folder}/{UPLOAD_FILE}")
    except ProgramFailed as error:
        return bool(_REFUSED.search(str(error)))
    return False


def _run_rsync(host: Host, *arguments: str) -> None:
    worker = host.settings.worker
    output_of([worker.rsync, "--timeout=5", "--contimeout=4", *worker.rsync_arguments, *arguments], timeout=10)


# --- web servers and clocks


def web_checks(host: Host) -> list[Check]:
    found = []
    if host.has_role(CONTROLLER):
        found.append(Check(name="incoming", run=lambda: _check_incoming(host)))
    if host.has_role(BSTORE):
        found.append(Check(name="store.http", run=lambda: _check_store(host)))
    rows = ((INCOMING, CONTROLLER, host.settings.incoming.url), (STORE, BSTORE, host.settings.bstore.base_url))
    for service, role, url in rows:
        if service in used_services(host) and not (host.is_installed and host.has_role(role)):
            found.append(Check(name=f"clock.{role}", run=partial(_check_clock, url, role), needs=(f"link.{service}",)))
    return found


def _backend(host: Host, service: str) -> Address | None:
    """The address of a web server of this host behind stunnel; None if stunnel does not offer it."""
    section = host.stunnel.offers.get(service)
    return section.connect if section else None


def _check_incoming(host: Host) -> Result:
    """Put a file into incoming/ and fetch it from the web server."""
    settings = host.settings.incoming
    try:
        with _make_test_file(settings.folder) as (name, content):
            answer = fetch(f"{settings.url}{name}", _backend(host, INCOMING))
    except PermissionError:
        return warn(
            f"not tested whether files can be fetched: this user cannot write to {settings.folder}",
            "" if is_root() else "run reimzul doctor as root, or as a member of group reimzul",
        )
    except FileNotFoundError:
        return fail(f"{settings.folder} does not exist", "make install, or correct [incoming] folder")
    except OSError as error:
        return _web_server_down(error)
    if answer.status != 200 or answer.body != content:
        path = urlsplit(settings.url).path
        return fail(
            f"the web server answers {answer.status} for a file in {settings.folder} (at {path})",
            "check that nginx offers the folder (conf/nginx-controller.conf) and its user can enter it",
        )
    return _find_unreadable_sources(settings.folder) or ok(f"files in {settings.folder} can be fetched")


def _find_unreadable_sources(folder: Path) -> Result | None:
    paths = [path for suffix in ("src", "nosrc") for path in sorted(folder.glob(f"*.{suffix}.rpm"))]
    problems = [problem for path in paths if (problem := find_unreadable(path, folder))]
    if not problems:
        return None
    return warn(
        f"builders cannot fetch {pluralize(len(problems), 'source rpm')}: {shorten(problems)}",
        "run the chmod commands shown, so that the web server can read the files",
    )


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
        with contextlib.suppress(OSError):
            path.unlink()


def _check_store(host: Host) -> Result:
    service, url = services(host.settings)[STORE], host.settings.bstore.base_url
    address = _backend(host, STORE) or service.address
    try:
        service.ask(address)
        private = fetch(f"{url[: -len('repo/')]}{PRIVATE}/", address)
    except OSError as error:
        return _web_server_down(error)
    if private.status == 200:
        return fail(f"anybody with a key can read {PRIVATE}/", "offer only repo/, scratch/, index/ and attempts/")
    return ok(f"the web server offers repo/, and not {PRIVATE}/")


def _web_server_down(error: OSError) -> Result:
    return fail(f"the web server does not answer: {describe_error(error)}", restart_hint("nginx"))


def _check_clock(url: str, role: str) -> Result:
    """Compare this host's clock with the Date header of another host's web server."""
    answer, other = fetch(url), f"the {role}" if role == CONTROLLER else role
    if answer.date is None:
        return warn(f"the web server of {other} sends no Date header", "have it send one")
    # The header has whole seconds, half a second too early on average.
    ahead = answer.received - answer.date - 0.5
    seconds = abs(ahead)
    if seconds <= MAX_SKEW_SECONDS:
        return ok(f"within {max(1, round(seconds))} s of {other}'s clock")
    return (fail if seconds > MAX_CLOCK_DIFFERENCE_SECONDS else warn)(
        f"this host's clock is {seconds:.0f} s {'ahead of' if ahead > 0 else 'behind'} {other}'s",
        "have both clocks set by NTP: timedatectl set-ntp true",
    )
