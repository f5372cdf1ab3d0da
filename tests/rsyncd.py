# SPDX-License-Identifier: Apache-2.0
"""bstore's rsyncd with the configurations of conf/, on a free port and a store of the test's."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.waiting import until

CONF = Path(__file__).parents[1] / "conf"
STORE = "/srv/reimzul/bstore"


@contextlib.contextmanager
def rsyncd(store: Path, port: int, folder: Path, name: str) -> Iterator[None]:
    """A running one with a file of conf/.

    `original` is none of ours: a bstore of the original, where all can be written to.
    """
    conf = folder / "rsyncd.conf"
    conf.write_text(_originals_own(store, port) if name == "original" else configuration(name, store, port))
    options = [f"--config={conf}", f"--log-file={folder / 'rsyncd.log'}"]
    namespace = ["unshare", "--map-root-user"] if os.geteuid() else []
    argv = [*namespace, "rsync", "--daemon", "--no-detach", *options]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL) as process:
        try:
            until(lambda: answers(port), 20, "rsyncd answers")
            yield
        finally:
            process.kill()


def _originals_own(store: Path, port: int) -> str:
    who = "uid = root\ngid = root\nuse chroot = no\n"
    return f"address = 127.0.0.1\nport = {port}\n{who}[reimzul-bstore]\npath = {store}\nread only = no\n"


def configuration(name: str, store: Path, port: int) -> str:
    text = (CONF / name).read_text()
    for pattern, now in (
        (r"^port = .*$", f"port = {port}"),
        (r"^(uid|gid) = .*$", r"\1 = root"),  # whoever runs the test is root in there, and the only user
        (rf"^path = {STORE}(/live)?$", rf"path = {store}\1"),
    ):
        text, found = re.subn(pattern, now, text, flags=re.MULTILINE)
        assert found, pattern
    return text


def answers(port: int) -> bool:
    """Whether somebody listens on a port of the loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
