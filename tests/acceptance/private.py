# SPDX-License-Identifier: Apache-2.0
"""This machine with folders of its own in the place of those an installation changes, for commands run as written.

Each command runs in a mount namespace in which /etc, /srv, /var/log and three folders of /usr/local are the test's;
the machine itself stays as it is. Who is not root is root in a user namespace, where the user reimzul is made up
front, as another name of the only user there is.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

#: Folders that are replaced; those marked true begin as a copy of the machine's.
REPLACED = {
    "/etc": True,
    **dict.fromkeys(["/srv", "/var/log", "/usr/local/bin", "/usr/local/lib", "/usr/local/share"], False),
}

#: Enabling is done for real, offline; what needs a running systemd is written down.
SYSTEMCTL = """\
#!/usr/bin/env bash
printf '%s\\n' "$*" >>{record}
case $1 in
    enable)
        words=()
        for word; do [[ $word == --now ]] || words+=("$word"); done
        exec {real} --root=/ "${{words[@]}}" ;;
    daemon-reload) ;;
    *) echo "not expected: systemctl $*" >&2; exit 1 ;;
esac
"""


class PrivateMachine:
    """Folders that stand in for this machine's, and commands run among them."""

    def __init__(self, state: Path, checkout: Path) -> None:
        self.state = state
        self.checkout = checkout
        self.record = state / "systemctl.log"
        for path, copied in REPLACED.items():
            self.resolve(path).mkdir(parents=True)
            if copied:  # what an ordinary user cannot read is left out
                subprocess.run(["cp", "-a", f"{path}/.", self.resolve(path)], stderr=subprocess.DEVNULL, check=False)
        if os.geteuid():
            self._name_only_user()
        self._record_systemctl()

    def resolve(self, path: str) -> Path:
        """Where a path of the private machine is, seen from outside."""
        return self.state / "root" / path.lstrip("/")

    def run(self, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a bash script, in the checkout, as root."""
        binds = [shlex.join(["mount", "--bind", str(self.resolve(path)), path]) for path in REPLACED]
        checkout = shlex.quote(str(self.checkout))
        # into the checkout first, and back: it may lie in a folder that is replaced
        back = f"mkdir -p {checkout}; mount --bind . {checkout}; cd {checkout}"
        whole = "\n".join(["set -e", f"cd {checkout}", *binds, back, script])
        namespace = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else [])]
        path = f"{self.state / 'bin'}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return subprocess.run(
            [*namespace, "bash", "-c", whole],
            env={**os.environ, "PATH": path, **environment},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=900,
        )  # fmt: skip

    def systemctl_calls(self) -> list[str]:
        """What systemctl was called with, in order."""
        return self.record.read_text().splitlines() if self.record.exists() else []

    def _name_only_user(self) -> None:
        for file, line in (
            ("passwd", "reimzul:x:0:0::/srv/reimzul:/sbin/nologin"),
            ("group", "reimzul:x:0:\nreimzul-store:x:0:"),
        ):
            path = self.resolve(f"/etc/{file}")
            path.write_text(f"{line}\n{path.read_text()}")

    def _record_systemctl(self) -> None:
        real = shutil.which("systemctl")
        assert real, "systemctl is not installed: tools/setup installs it"
        wrapper = self.state / "bin" / "systemctl"
        wrapper.parent.mkdir()
        wrapper.write_text(SYSTEMCTL.format(record=shlex.quote(str(self.record)), real=real))
        wrapper.chmod(0o755)
