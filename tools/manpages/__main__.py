# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.manpages FOLDER`: write every man page below a folder, as man1/, man5/, man7/ and man8/.

Exit codes: 1 a page cannot be made, 2 wrong usage. Where go-md2man is not installed reimzul-wire(7) is left out, and
that is said: an installed host need not have it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from reimzul.core.errors import ProgramNotFound, ReimzulError
from tools.manpages import commands, settings, wire


def main() -> None:
    """The program."""
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(__doc__)
        return
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print("man: give one folder to write to; --help tells more", file=sys.stderr)
        sys.exit(2)
    try:
        say(write(Path(sys.argv[1])), sys.argv[1])
    except ProgramNotFound as error:
        print(f"man: reimzul-wire(7) is left out: {error}", file=sys.stderr)
    except (OSError, ReimzulError) as error:
        sys.exit(f"man: {error}")


def write(folder: Path) -> list[Path]:
    """Write all pages. Raises `ReimzulError`, and `ProgramNotFound` when all but the last are there."""
    written = [put(folder / page.file, page.text()) for page in (*commands.pages(), settings.page())]
    return [*written, put(folder / wire.FILE, wire.source())]


def put(path: Path, text: str) -> Path:
    """Write one page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def say(written: list[Path], folder: str) -> None:
    """One line: what is there now."""
    print(f"man: {len(written)} pages in {folder}")


if __name__ == "__main__":
    main()
