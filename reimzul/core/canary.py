# SPDX-License-Identifier: Apache-2.0
"""The canary: a tiny source rpm that builds anywhere, to test a farm or one of its builders."""

from __future__ import annotations

import re
import secrets
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from reimzul.core import validators
from reimzul.core.errors import ProgramNotFound, ReimzulError
from reimzul.core.process import output_of

PACKAGE = "reimzul-canary"
DISTTAG = ".canary"
_SPEC = Path(__file__).with_name("canary.spec")
#: Timeout of rpmbuild, which packs one file.
_RPMBUILD_TIMEOUT_SECONDS = 60.0


def make_canary_srpm(folder: Path) -> Path:
    """Make a source rpm with a new version in a folder. Raises `ReimzulError`."""
    version, release = validators.now_timestamp(), f"0.{secrets.token_hex(4)}"
    with TemporaryDirectory(prefix="reimzul-canary-") as top:
        text = _SPEC.read_text(encoding="utf-8").replace("@VERSION@", version).replace("@RELEASE@", release)
        spec = Path(top) / f"{PACKAGE}.spec"
        spec.write_text(text, encoding="utf-8")
        packed = build_srpm(spec)
        packed.chmod(0o644)  # the web server reads it as another user
        return Path(shutil.move(str(packed), str(folder)))


def build_srpm(spec: Path) -> Path:
    """Build the source rpm of a spec file, in its folder. Raises `ReimzulError`."""
    # relative folders: rpmbuild would end a path at a space
    macros = {"_topdir": ".", "_sourcedir": ".", "_srcrpmdir": ".", "_tmppath": ".", "dist": "%{nil}"}
    defines = [word for macro, value in macros.items() for word in ("--define", f"{macro} {value}")]
    try:
        output = output_of(
            ["rpmbuild", "-bs", "--nodeps", *defines, spec.name], cwd=spec.parent, timeout=_RPMBUILD_TIMEOUT_SECONDS
        )
    except ProgramNotFound as error:
        raise ProgramNotFound(f"{error}: install rpm (Debian) or rpm-build (Fedora, EL)") from error
    written = re.search(r"^Wrote: (.+\.src\.rpm)$", output, re.MULTILINE)
    if not written:
        raise ReimzulError(f"rpmbuild made no source rpm of {spec.name}")
    return spec.parent / Path(written[1]).name
