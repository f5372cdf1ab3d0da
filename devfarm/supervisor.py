# SPDX-License-Identifier: Apache-2.0
"""supervisord as the farm's systemd: it starts the parts, keeps a log of each, and starts again what ended.

Chosen over honcho, which ends everything when one program ends: a farm has to show that it comes back by itself.
circus does that too, and brings compiled libraries. Every part runs under a reaper of its own, and supervisord under
one for all of them, so that nothing outlives the farm whatever is killed. It knows us by a password, over a port:
the path of a unix socket may be no longer than 107 bytes.
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

from devfarm import reaper
from devfarm.parts import Part
from devfarm.plan import Layout
from devfarm.ports import ADDRESS
from reimzul.core.errors import ReimzulError
from reimzul.core.process import Process, spawn, wait_until_exit

#: Seconds a part has to end after SIGTERM, before its reaper kills it; a worker ends a build in that time.
GRACE = 15
#: The same for supervisord, which ends our daemons first and then the rest.
GRACE_OF_ALL = 2 * GRACE + 10
#: Seconds each keeper gets above the one it keeps.
_MARGIN = 5
#: The same for an answer of supervisord: to a stop it comes when the part has ended.
_ANSWER = GRACE + _MARGIN + 10.0
_UP = 15.0

_USER = "farm"


class PartFailed(ReimzulError):
    """A part of the farm does not do what it should: its log says why."""


class _Transport(xmlrpc.client.Transport):
    """XML-RPC that gives up."""

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = super().make_connection(host)
        connection.timeout = _ANSWER
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
        """Its configuration, for `supervisorctl -c` too."""
        return self.layout.conf / "supervisord.conf"

    def ask(self, method: str, *words: str | bool) -> Any:
        """Call its XML-RPC."""
        url = f"http://{_USER}:{self.password}@{ADDRESS}:{self.port}/RPC2"
        with xmlrpc.client.ServerProxy(url, transport=_Transport()) as server:
            return getattr(server.supervisor, method)(*words)

    @contextlib.contextmanager
    def running(self) -> Iterator[Process]:
        """supervisord and all parts, until the block is left."""
        self.config.touch(mode=0o600)
        self.config.write_text(configuration(self.parts, self.port, self.password), encoding="utf-8")
        argv = [sys.executable, "-I", "-m", "supervisor.supervisord", "-c", "conf/supervisord.conf"]
        with (
            (self.layout.log / "supervisord.err").open("ab") as errors,
            spawn(
                reaper.command(argv, grace=GRACE_OF_ALL, parent=os.getpid()),
                output=errors,
                cwd=self.layout.state,
                env={"TMPDIR": str(self.layout.tmp)},
                grace=GRACE_OF_ALL + _MARGIN,
            ) as process,
        ):
            yield process

    def wait_until_up(self, process: Process) -> None:
        """Wait until it answers. Raises `PartFailed`."""
        deadline = time.monotonic() + _UP
        while time.monotonic() < deadline and not wait_until_exit(process, 0.02):
            with contextlib.suppress(OSError, http.client.HTTPException, xmlrpc.client.Error):
                self.ask("getState")
                return
        raise PartFailed(f"supervisord does not come up: {last_lines(self.layout.log / 'supervisord.err')}")

    def pid(self, part: str) -> int:
        """The process of a part itself, below its reaper. Raises `PartFailed` where it does not run."""
        keeper = int(self.ask("getProcessInfo", _full_name(self.parts, part))["pid"])
        below = reaper.children(keeper) if keeper else []
        if not below:
            raise PartFailed(f"{part} does not run: {last_lines(self.layout.part_log(part))}")
        return below[0]

    def stop(self, part: str, *, wait: bool = True) -> None:
        """End a part, and leave it ended; answers when it has, unless it is not to be waited for."""
        self.ask("stopProcess", _full_name(self.parts, part), wait)

    def is_stopped(self, part: str) -> bool:
        """Whether a part that was to end has."""
        return bool(self.ask("getProcessInfo", _full_name(self.parts, part))["pid"] == 0)

    def start(self, part: str) -> None:
        """Start a part that was stopped."""
        self.ask("startProcess", _full_name(self.parts, part))


def _group(part: Part) -> str:
    return "daemons" if part.is_daemon else "parts"


def _full_name(parts: Sequence[Part], name: str) -> str:
    return next(f"{_group(part)}:{name}" for part in parts if part.name == name)


def configuration(parts: Sequence[Part], port: int, password: str) -> str:
    """supervisord's configuration.

    Groups start in the order of their numbers and end in the other; what is in one ends at the same time.
    """
    groups: dict[str, list[str]] = {"parts": [], "daemons": []}
    for part in parts:
        groups[_group(part)].append(part.name)
    texts = [_head(port, password)]
    for number, (name, members) in enumerate(groups.items()):
        if members:
            texts.append(f"[group:{name}]\nprograms = {','.join(members)}\npriority = {number}\n")
    return "\n".join(texts + [_program(part) for part in parts])


def _head(port: int, password: str) -> str:
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


def _program(part: Part) -> str:
    # `%` begins an expansion in there. startsecs: one that ends at once is started again like any other, where
    # supervisord would take growing pauses and then give up
    command = shlex.join(reaper.command(part.argv, grace=GRACE)).replace("%", "%%")
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
        said = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        said = []
    return f"{' / '.join(said[-lines:]) or 'it said nothing'} ({path})"
