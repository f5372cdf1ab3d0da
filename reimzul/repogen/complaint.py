# SPDX-License-Identifier: Apache-2.0
"""Which package createrepo_c refused, or crashes on: found by its output, or by running it on one leg alone."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from tempfile import TemporaryDirectory

from reimzul.core.errors import TimedOut
from reimzul.core.process import run
from reimzul.core.retry import CancelToken
from reimzul.repogen.place import Placed
from reimzul.repogen.repodata import HUNG, Heed, Indexer, paths

#: Signals that a program's own mistake brings; others come from the host (a lack of memory, a stop).
CRASHES = frozenset(-number for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL))
#: createrepo_c's words for a package whose text cannot be written: they stay true however often it is run.
_UNWRITABLE = "Cannot dump XML"
#: Begins the complaint about a leg on which createrepo_c, run on it alone, crashed again.
CRASHED = "createrepo_c crashes on a package of it: "
#: Its threads write at once, so that a line may begin with the beginnings of others.
_PREFIX = re.compile(r"^(?:\S*C_CREATEREPOLIB: |[\d:]+ |(?:Critical|Warning|error): )+")
#: Bytes read of an output that may have a line for each of 50,000 packages.
_READ = 8 << 20


def find_complaint(output: Path, folder: Path, leg: Placed) -> str:
    """The package of a leg that createrepo_c refused and its line about it; "" if it wrote none.

    `folder` is the target's, which createrepo_c was run on.
    """
    try:
        with output.open("rb") as stream:
            lines = stream.read(_READ).decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    packages = paths(leg)
    for line in lines:
        for path, sha256 in packages.items():
            if sha256 in line or f"{path}:" in line or line.endswith(path):
                said = _PREFIX.sub("", line).replace(f"{folder}/", "").replace(f" ({sha256})", "")
                return f"createrepo_c refuses {path.rpartition('/')[2]}: {said}"
    return ""


def is_lasting(complaint: str) -> bool:
    """Whether createrepo_c would say the same of the package again."""
    return _UNWRITABLE in complaint or complaint.startswith(CRASHED)


def crashes_on(indexer: Indexer, leg: Placed, heed: Heed) -> bool:
    """Whether createrepo_c, run on this leg alone, is ended by a signal of its own making."""
    with TemporaryDirectory(dir=indexer.store.cache, prefix="alone-") as alone:
        output = Path(alone) / "output"
        argv: list[str | os.PathLike[str]] = [
            indexer.settings.createrepo_c, *indexer.settings.arguments, "--outputdir", alone,
            indexer.store.place(leg.place),
        ]  # fmt: skip
        try:
            return run(argv, output=output, cancel=CancelToken(heed), every=0.1, idle=HUNG) in CRASHES
        except TimedOut:
            return False
