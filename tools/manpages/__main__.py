# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.manpages FOLDER`: write every man page below a folder, as man1/, man5/, man7/ and man8/.

Exit codes: 1 a page cannot be made, 2 wrong usage. Without go-md2man, which a host need not have, reimzul-wire(7) is
left out with a message.
"""

from __future__ import annotations

import sys
from pathlib import Path

from reimzul.core.errors import ProgramNotFound, ReimzulError
from tools.manpages import commands, settings, wire


def main() -> None:
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(__doc__)
        return
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print("man: give one folder to write to; see --help", file=sys.stderr)
        sys.exit(2)
    try:
        written = write_pages(Path(sys.argv[1]))
        print(f"man: {len(written)} pages in {sys.argv[1]}")
    except ProgramNotFound as error:
        print(f"man: reimzul-wire(7) is left out: {error}", file=sys.stderr)
    except (OSError, ReimzulError) as error:
        sys.exit(f"man: {error}")


def write_pages(folder: Path) -> list[Path]:
    """Write all pages. Raises `ReimzulError`, and `ProgramNotFound` after all but the last are written."""
    written = [_write(folder / page.file, page.text()) for page in (*commands.pages(), settings.page())]
    return [*written, _write(folder / wire.FILE, wire.source())]


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
