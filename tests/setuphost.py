# SPDX-License-Identifier: Apache-2.0
"""Hosts to be set up by `reimzul setup`: folders with what a distribution's packages leave, and a systemctl that notes.

The command itself is the real one. systemd does not run in a folder: `Host.systemd` puts a program in its place that
keeps which units are enabled and run, and writes down what it was asked for.
"""

from __future__ import annotations

import io
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from reimzul.admin.main import main
from reimzul.admin.setup.files import System
from tests.schemas import check_line

#: The units that the packages of a farm, and ours, install on a host.
UNITS = (
    "beanstalkd.service", "nginx.service", "rsync.service", "stunnel@.service", "mosquitto.service",
    "reimzul-batch.service",
    "reimzul-notifier.service", "reimzul-repogen-worker@.service", "reimzul-signer.service", "reimzul-worker@.service",
    "reimzul-pages.service",
)  # fmt: skip

#: Debian's own, without some of its comments.
STOCK_SITE = """\
# Default server configuration
#
server {
\tlisten 80 default_server;
\tlisten [::]:80 default_server;

\t# SSL configuration
\t#
\t# listen 443 ssl default_server;
\troot /var/www/html;

\t# Add index.php to the list if you are using PHP
\tindex index.html index.htm index.nginx-debian.html;

\tserver_name _;

\tlocation / {
\t\ttry_files $uri $uri/ =404;
\t}

\t# pass PHP scripts to FastCGI server
\t#
\t#location ~ \\.php$ {
\t#}
}
"""

SYSTEMCTL = """\
#!/usr/bin/env bash
cd "{state}"
words=() now=''
for word; do case $word in --quiet) ;; --now) now=1 ;; *) words+=("$word") ;; esac; done
unit=${{words[1]:-}}
wants="{root}/etc/systemd/system/multi-user.target.wants"
[[ ! -e fails/${{words[0]}}-$unit ]] || {{ echo "Job for $unit.service failed." >&2; exit 1; }}
case ${{words[0]}} in
    is-enabled) [[ -e enabled/$unit ]]; exit ;;
    show) [[ -e active/${{words[-1]}} ]] && echo active || echo inactive; exit ;;
esac
printf '%s\\n' "$*" >>calls
case ${{words[0]}} in
    enable) touch "enabled/$unit"; mkdir -p "$wants"; touch "$wants/$unit.service" ;;
    disable) rm -f "enabled/$unit" "$wants/$unit.service"; [[ -z $now ]] || rm -f "active/$unit" ;;
    start | restart) touch "active/$unit" ;;
    stop) rm -f "active/$unit" ;;
esac
"""


TMPFILES = """\
#!/usr/bin/env bash
[[ $1 == --create ]] || exit 1
while read -r kind path _; do [[ $kind != d ]] || mkdir -p "{root}$path"; done <"{root}$2"
"""


_real_look_up = socket.getaddrinfo


def look_up(host: str, *arguments: Any) -> Any:
    """Names of example.org, and those without a dot, are a farm's hosts; others are asked for really."""
    return [] if host.endswith(".example.org") or "." not in host else _real_look_up(host, *arguments)


class _Person(io.StringIO):
    def isatty(self) -> bool:
        return True


class Host:
    """A folder that is a host, and `reimzul setup` run on it."""

    def __init__(self, root: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.state = root, state
        self._monkeypatch = monkeypatch
        for unit in UNITS:
            self.put(f"/usr/lib/systemd/system/{unit}", "[Service]\n[Install]\nWantedBy=multi-user.target\n")
        self.put("/etc/nginx/nginx.conf", "http {\n    include /etc/nginx/conf.d/*.conf;\n}\n")
        self.put("/etc/nginx/sites-available/default", STOCK_SITE)
        self.at("/etc/nginx/sites-enabled").mkdir()
        self.at("/etc/nginx/sites-enabled/default").symlink_to("/etc/nginx/sites-available/default")

    def at(self, path: str) -> Path:
        """Where a path of the host is."""
        return self.root / path.lstrip("/")

    def put(self, path: str, text: str) -> Path:
        """A file of the host."""
        self.at(path).parent.mkdir(parents=True, exist_ok=True)
        self.at(path).write_text(text)
        return self.at(path)

    def text(self, path: str) -> str:
        """The text of a file of the host."""
        return self.at(path).read_text()

    def systemd(self) -> None:
        """From now on systemd runs on this host, and it is the one that / is."""
        for folder in ("bin", "enabled", "active", "fails"):
            (self.state / folder).mkdir(parents=True)
        for name, script in (("systemctl", SYSTEMCTL), ("systemd-tmpfiles", TMPFILES)):
            program = self.state / "bin" / name
            program.write_text(script.format(state=self.state, root=self.root))
            program.chmod(0o755)
        self._monkeypatch.setenv("PATH", str(self.state / "bin"), prepend=":")
        self._monkeypatch.setattr(System, "at_root", lambda _: System(root=self.root, running=True))

    def calls(self) -> list[str]:
        """The calls of systemctl since the last time."""
        record = self.state / "calls"
        said = record.read_text().splitlines() if record.exists() else []
        record.unlink(missing_ok=True)
        return said

    def setup(self, *words: str, given: str = "", typed: str | None = None) -> tuple[int, str, str]:
        """Run `reimzul setup`: exit code, stdout, stderr. Its stdin is a pipe with `given`, or a person who types."""
        out, err = io.StringIO(), io.StringIO()
        with self._monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["reimzul", "setup", *words, "--root", str(self.root)])
            patch.setattr(sys, "stdin", io.StringIO(given) if typed is None else _Person(typed))
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            patch.setattr(socket, "getaddrinfo", look_up)
            with pytest.raises(SystemExit) as end:
                main()
        check_line(["setup", *words], out.getvalue())
        return int(end.value.code or 0), out.getvalue(), err.getvalue()

    def done(self, *words: str, given: str = "") -> str:
        """The same where it has to work: its stdout."""
        code, out, err = self.setup(*words, given=given)
        assert code == 0, err
        return out

    def files(self) -> dict[str, tuple[str, int]]:
        """Every file below /etc with its text and its inode."""
        paths = [path for path in self.at("/etc").rglob("*") if path.is_file()]
        return {str(path.relative_to(self.root)): (path.read_text(), path.stat().st_ino) for path in paths}
