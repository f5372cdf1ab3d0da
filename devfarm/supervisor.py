# SPDX-License-Identifier: Apache-2.0
"""supervisord as the farm's systemd: it starts the parts, keeps a log of each, and restarts what ended.

Every part runs under a subreaper of its own, and supervisord under one for all of them, so that nothing outlives the
farm whatever is killed. We call supervisord over a TCP port with a password: the path of a unix socket may not be
longer than 107 bytes.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import shlex
import sys
import time
import xmlrpc.client
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attr

from devfarm import subreaper
from devfarm.plan import Layout
from devfarm.ports import ADDRESS
from devfarm.processes import Part
from reimzul.core.errors import ReimzulError
from reimzul.core.process import Process, spawn, wait_until_exit

#: Seconds that a part has to end after SIGTERM, before its subreaper kills it; a worker ends a build in that time.
GRACE = 15
#: The same for supervisord, which ends our daemons first and then the rest.
GRACE_OF_ALL = 2 * GRACE + 10
#: Seconds that each keeper has in addition to the one it keeps.
_MARGIN = 5
#: The same for an answer of supervisord: to a stop it answers when the part has ended.
_ANSWER_SECONDS = GRACE + _MARGIN + 10.0
_START_SECONDS = 15.0
_USER = "farm"


class PartFailed(ReimzulError):
    """A part of the farm does not work: its log shows why."""


class _Transport(xmlrpc.client.Transport):
    """XML-RPC with a timeout."""

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = super().make_connection(host)
        connection.timeout = _ANSWER_SECONDS
        return connection


@attr.frozen(kw_only=True)
class Supervisor:
    """supervisord for these parts."""

    layout: Layout
    parts: Sequence[Part]
    port: int
    password: str = attr.field(factory=lambda: secrets.token_hex(16), repr=False)

    @property
    def config(self) -> Path:
        """Its configuration, also for `supervisorctl -c`."""
        return self.layout.conf / "supervisord.conf"

    def call(self, method: str, *arguments: str | bool) -> Any:
        """Call a method of its XML-RPC."""
        url = f"http://{_USER}:{self.password}@{ADDRESS}:{self.port}/RPC2"
        with xmlrpc.client.ServerProxy(url, transport=_Transport()) as server:
            return getattr(server.supervisor, method)(*arguments)

    @contextlib.contextmanager
    def run(self) -> Iterator[Process]:
        """Run supervisord and all parts until the block is left."""
        self.config.touch(mode=0o600)
        self.config.write_text(render_config(self.parts, self.port, self.password), encoding="utf-8")
        argv = [sys.executable, "-I", "-m", "supervisor.supervisord", "-c", "conf/supervisord.conf"]
        with (
            (self.layout.log / "supervisord.err").open("ab") as errors,
            spawn(
                subreaper.wrap_command(argv, grace=GRACE_OF_ALL, parent=os.getpid()),
                output=errors,
                cwd=self.layout.state,
                env={"TMPDIR": str(self.layout.tmp)},
                grace=GRACE_OF_ALL + _MARGIN,
            ) as process,
        ):
            yield process

    def wait_until_up(self, process: Process) -> None:
        """Wait until it answers. Raises `PartFailed`."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and not wait_until_exit(process, 0.02):
            with contextlib.suppress(OSError, http.client.HTTPException, xmlrpc.client.Error):
                self.call("getState")
                return
        raise PartFailed(f"supervisord does not start: {last_lines(self.layout.log / 'supervisord.err')}")

    def pid(self, part: str) -> int:
        """The process of a part itself, below its subreaper. Raises `PartFailed` where it does not run."""
        keeper = int(self.call("getProcessInfo", self._full_name(part))["pid"])
        children = subreaper.children(keeper) if keeper else []
        if not children:
            raise PartFailed(f"{part} does not run: {last_lines(self.layout.part_log(part))}")
        return children[0]

    def stop(self, part: str, *, wait: bool = True) -> None:
        """Stop a part; return when it has ended, unless `wait` is false."""
        self.call("stopProcess", self._full_name(part), wait)

    def is_stopped(self, part: str) -> bool:
        return bool(self.call("getProcessInfo", self._full_name(part))["pid"] == 0)

    def start(self, part: str) -> None:
        """Start a part that was stopped."""
        self.call("startProcess", self._full_name(part))

    def _full_name(self, name: str) -> str:
        return next(f"{_group(part)}:{name}" for part in self.parts if part.name == name)


def _group(part: Part) -> str:
    return "daemons" if part.is_daemon else "parts"


def render_config(parts: Sequence[Part], port: int, password: str) -> str:
    """supervisord's configuration.

    Groups start in the order of their priorities and stop in reverse; the members of a group stop at the same time.
    """
    texts = [_render_head(port, password)]
    for priority, name in enumerate(("parts", "daemons")):
        if members := [part.name for part in parts if _group(part) == name]:
            texts.append(f"[group:{name}]\nprograms = {','.join(members)}\npriority = {priority}\n")
    return "\n".join([*texts, *map(_render_program, parts)])


def _render_head(port: int, password: str) -> str:
    return f"""\
[supervisord]
nodaemon = true
silent = true
logfile = log/supervisord.log
pidfile = tmp/supervisord.pid
childlogdir = log

[inet_http_server]
port = {ADDRESS}:{port}
username = {_USER}
password = {password}

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl = http://{ADDRESS}:{port}
username = {_USER}
password = {password}
"""


def _render_program(part: Part) -> str:
    # `%` begins an expansion. With startsecs = 0 a part that ends at once is restarted like any other; otherwise
    # supervisord would wait longer each time and then give up.
    command = shlex.join(subreaper.wrap_command(part.argv, grace=GRACE)).replace("%", "%%")
    environment = ",".join(f'{name}="{value}"' for name, value in part.env.items()).replace("%", "%%")
    return f"""\
[program:{part.name}]
command = {command}
environment = {environment}
autorestart = true
startsecs = 0
stopwaitsecs = {GRACE + _MARGIN}
redirect_stderr = true
stdout_logfile = log/{part.name}.log
stdout_logfile_maxbytes = 20MB
stdout_logfile_backups = 1
"""


def last_lines(path: Path, lines: int = 5) -> str:
    """The end of a log, on one line."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        text = []
    return f"{' / '.join(text[-lines:]) or 'it printed nothing'} ({path})"
