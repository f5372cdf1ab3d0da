# SPDX-License-Identifier: Apache-2.0
"""The examples in docs/, made by the code itself: `python -m tests.examples` updates them."""

from __future__ import annotations

import tempfile
from pathlib import Path

from reimzul.core.error_extractor import find_first_error
from reimzul.core.links import LinkRoots
from reimzul.core.message import BuildEvent
from reimzul.notifier.sinks.mail import MailWriter
from reimzul.worker.upload import read_tail
from tests.events import BEGINNING, event

EXAMPLE = "python -m tests.examples"
EXAMPLE_FILE = Path(__file__).parents[1] / "docs" / "example-mail.txt"
SAMPLES = Path(__file__).parent / "samples"


def failing_event() -> BuildEvent:
    """The event of a build that failed in the compiler, as a worker announces it."""
    root = SAMPLES / "mock-logs" / "failbuild" / "root.log"
    with tempfile.TemporaryDirectory() as folder:
        build = Path(folder) / "build.log"
        build.write_text(_build_log(), encoding="utf-8")
        first = find_first_error(build, root)
        return event(
            "Failed",
            reason="%build failed",
            exit_code=1,
            finished=BEGINNING,
            place="repo/c7.1708.u.x86_64/time/20251122000001/1.7-45.el7.x86_64",
            first_error=first.text,
            error_line=first.line,
            error_log=first.log,
            root_log=_narrow(read_tail(root, 30, 8_000)),
            build_log=read_tail(build, 80, 24_000),
        )


def _build_log() -> str:
    """The log of mock's own sample, whose compiler says what gcc says under `make -j`."""
    sample = (SAMPLES / "mock-logs" / "failbuild" / "build.log").read_text(encoding="utf-8")
    said = (SAMPLES / "first-errors" / "gcc-under-make-j.log").read_text(encoding="utf-8").partition("\n\n")[2]
    wrong = "cc1: fatal error: nosuch.c: No such file or directory\ncompilation terminated.\n"
    assert wrong in sample
    return _narrow(sample.replace("failbuild-1.0-1.el7", "time-1.7-45.el7").replace(wrong, said))


def _narrow(log: str) -> str:
    """Lines that a page can show."""
    return "\n".join(line if len(line) <= 160 else f"{line[:157]}..." for line in log.split("\n"))


def main() -> None:
    """Write them."""
    writer = MailWriter(sender="buildsys@example.org", roots=LinkRoots(store="http://bstore.example.org/"))
    mail = writer.format_mail(failing_event(), ["me@example.org"])
    EXAMPLE_FILE.parent.mkdir(exist_ok=True)
    EXAMPLE_FILE.write_text(mail.decode().replace("\r\n", "\n"), encoding="utf-8")


if __name__ == "__main__":
    main()
