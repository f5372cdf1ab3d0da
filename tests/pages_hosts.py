# SPDX-License-Identifier: Apache-2.0
"""The web server of the pages, and the store on another host: in a network of its own, behind both stunnels."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from devfarm.processes import find_program
from reimzul.admin.setup.psk import format_keys, new_secret
from tests.conftest import free_port
from tests.faults.room import Cable
from tests.nginx import CONF, run_nginx

#: bstore's address at the far end of the cable.
BSTORE = "10.213.77.2"


@contextlib.contextmanager
def run_two_hosts(store: Path, pages: Path, folder: Path) -> Iterator[str]:
    """Run a controller with the folder `pages/` of one folder, and a bstore with `bstore/` of another; yields the URL.

    All four programs have their shipped configurations. Needs root.
    """
    with contextlib.closing(Cable(folder)) as cable, serve_pages(cable, store, pages, folder) as (url, _):
        yield url


@contextlib.contextmanager
def serve_pages(cable: Cable, store: Path, pages: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Run the four programs, the store's at the far end of a cable; yields the URLs of the pages and of the tunnel."""
    keys = folder / "psk.txt"
    keys.write_text(format_keys({"controller": new_secret()}))
    keys.chmod(0o600)
    near = f"127.0.0.1:{free_port()}"
    far = {"accept": f"{BSTORE}:11081", "connect": "127.0.0.1:80", "PSKsecrets": str(keys)}
    tunnel = {"accept": near, "connect": f"{BSTORE}:11081", "PSKsecrets": str(keys)}
    with contextlib.ExitStack() as stack:
        stack.enter_context(run_nginx("nginx-bstore.conf", store, prefix=cable.prefix, port=80))
        stack.enter_context(_run_stunnel("bstore", "store-server", folder, far, cable.prefix))
        stack.enter_context(_run_stunnel("controller", "store", folder, tunnel, ()))
        url = stack.enter_context(run_nginx("nginx-pages.conf", pages, {"127.0.0.1:11081": near}))
        yield url, f"http://{near}/"


@contextlib.contextmanager
def _run_stunnel(
    role: str, section: str, folder: Path, ends: dict[str, str], prefix: tuple[str, ...]
) -> Iterator[None]:
    """Run one section of a role's shipped configuration of stunnel; `ends` are its options with other values."""
    head, *sections = re.sub(r"^;.*\n", "", (CONF / f"stunnel-{role}.conf").read_text(), flags=re.MULTILINE).split(
        "\n["
    )
    (text,) = [f"{head}\n[{each}" for each in sections if each.startswith(f"{section}]")]
    for option, value in ends.items():
        text = re.sub(rf"^{option} = .*$", f"{option} = {value}", text, flags=re.MULTILINE)
    file = folder / f"stunnel-{role}.conf"
    file.write_text(text)
    with subprocess.Popen([*prefix, find_program("stunnel"), str(file)], stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()
