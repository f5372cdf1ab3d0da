# SPDX-License-Identifier: Apache-2.0
"""A real nginx with a shipped configuration."""

from __future__ import annotations

import contextlib
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from devfarm.processes import find_program
from tests.conftest import free_port
from tests.waiting import until

CONF = Path(__file__).parents[1] / "conf"


@contextlib.contextmanager
def run_nginx(
    name: str, folder: Path, changes: Mapping[str, str] | None = None, prefix: tuple[str, ...] = (), port: int = 0
) -> Iterator[str]:
    """Run nginx with a shipped configuration whose folders lie in `folder`, on a free port or that one; its URL.

    `prefix` is before its command line. What `changes` names is replaced in the configuration first.
    """
    port, server = port or free_port(), (CONF / name).read_text()
    listening = f"listen 127.0.0.1:{port};"
    standard = {"/srv/reimzul/": f"{folder}/", "/etc/reimzul/": f"{folder}/", "listen 127.0.0.1:80;": listening}
    for old, new in {**(changes or {}), **standard, "listen 80;": listening}.items():
        server = server.replace(old, new)
    own = folder / f"nginx-{port}"
    own.mkdir()
    (own / "nginx.conf").write_text(
        f"daemon off; pid {own}/pid; error_log stderr; user root; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {own}/t1; proxy_temp_path {own}/t2; "
        f"fastcgi_temp_path {own}/t3; uwsgi_temp_path {own}/t4; scgi_temp_path {own}/t5;\n{server}\n}}\n"
    )
    argv = [*prefix, find_program("nginx"), "-e", "stderr", "-p", str(own), "-c", str(own / "nginx.conf")]
    with subprocess.Popen(argv) as process:
        try:
            # written once it listens
            until((own / "pid").exists, 20, "nginx runs")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def read_status(url: str, method: str = "GET") -> int:
    """The status of an answer; 0 if there is none."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0
