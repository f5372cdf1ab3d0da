# SPDX-License-Identifier: Apache-2.0
"""rsync's module on bstore: into spool/ can be written, and nothing else can be done there.

What is written is a folder with one small file, of one name a host: it never grows, has no manifest, so nobody takes it
for a build, and repogen removes it by its age. Whether other folders could be written to is tried without writing.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from reimzul.admin.doctor.check import Check, Result, fail, ok, warn
from reimzul.admin.doctor.host import BSTORE, BUILDER, Host
from reimzul.admin.doctor.services import RSYNCD
from reimzul.core.errors import ProgramFailed, ReimzulError
from reimzul.core.process import output_of

#: How the name of our folder in spool/ begins.
FOLDER = "doctor."
FILE = "doctor.txt"
#: Folders of the store that builders have no business in.
CLOSED = ("repo", "tosign", "state")
_REFUSED = re.compile(r"excluded|refused|write only|read only")
_SAMPLE = "compare /etc/rsyncd.conf on bstore with conf/rsyncd.conf"


def checks(host: Host) -> list[Check]:
    """What is tried of the module, on those who upload and on who takes it."""
    if not host.has(BUILDER, BSTORE):
        return []
    module = Module(host)
    needs = ("link.rsyncd",) if host.has(BUILDER) else ("offer.rsyncd",)
    return [
        Check(name="rsync.write", look=module.write, needs=needs),
        Check(name="rsync.read", look=module.read, needs=(*needs, "rsync.write")),
        Check(name="rsync.elsewhere", look=module.elsewhere, needs=(*needs, "rsync.write")),
    ]


class Module:
    """The module as this host reaches it: through its way to it, or on bstore itself behind stunnel."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.url = host.settings.bstore.upload_url
        offer = host.tunnels.offers.get(RSYNCD)
        if offer is not None and not host.has(BUILDER):
            address, port = offer.connect
            self.url = re.sub(r"//[^/]+/", f"//{address}:{port}/", self.url, count=1)
        self.folder = FOLDER + re.sub(r"[^A-Za-z0-9._-]", "_", host.name)[:150]

    def write(self) -> Result:
        """A file into spool/."""
        with TemporaryDirectory(prefix="reimzul-doctor-") as made:
            said = f"reimzul doctor on {self.host.name}, {time.strftime('%FT%TZ', time.gmtime())}\n"
            (Path(made) / FILE).write_text(said, encoding="utf-8")
            try:
                self._rsync("--recursive", "--times", "--chmod=D0755,F0644", f"{made}/", f"spool/{self.folder}/")
            except ReimzulError as error:
                return fail(f"an upload into spool/ fails: {error}", f"reimzul doctor on bstore; {_SAMPLE}")
        return ok(f"spool/{self.folder} was uploaded")

    def read(self) -> Result:
        """That file back, which has to be refused."""
        with TemporaryDirectory(prefix="reimzul-doctor-") as made:
            try:
                self._rsync(f"spool/{self.folder}/{FILE}", f"{made}/{FILE}")
            except ProgramFailed as error:
                return _refusal(error, "reading")
        return fail("anybody with a key can read the store by rsync", f"write only = yes; {_SAMPLE}")

    def elsewhere(self) -> Result:
        """Files into other folders, which have to be refused."""
        open_to = [folder for folder in CLOSED if not self._is_closed(folder)]
        if open_to:
            words = f"anybody with a key can write into {', '.join(f'{folder}/' for folder in open_to)}"
            return fail(words, f"include = /spool/ /spool/*** /live/ /live/***, exclude = *; {_SAMPLE}")
        return ok(f"writing into {', '.join(f'{folder}/' for folder in CLOSED)} is refused")

    def _is_closed(self, folder: str) -> bool:
        with TemporaryDirectory(prefix="reimzul-doctor-") as made:
            (Path(made) / FILE).touch()
            try:
                self._rsync("--dry-run", f"{made}/{FILE}", f"{folder}/{FILE}")
            except ProgramFailed as error:
                return bool(_REFUSED.search(str(error)))
        return False

    def _rsync(self, *words: str) -> None:
        """Run it; the last word or the one before it is in the module where it is no path."""
        *options, source, goal = words
        ends = [end if end.startswith("/") else f"{self.url}{end}" for end in (source, goal)]
        mine = self.host.settings.worker
        output_of([mine.rsync, "--timeout=5", "--contimeout=4", *mine.rsync_arguments, *options, *ends], timeout=10)


def _refusal(error: ProgramFailed, what: str) -> Result:
    if _REFUSED.search(str(error)):
        return ok(f"{what} is refused")
    return warn(f"{what} fails, but not by a refusal: {error}", _SAMPLE)
