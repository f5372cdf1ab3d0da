# SPDX-License-Identifier: Apache-2.0
"""The source rpms of a batch: those of a list or a folder, or those in a target that are built against a package."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Callable, TextIO
from urllib.parse import quote

import attr

from reimzul.core.arch import Arches
from reimzul.core.errors import InputError, describe_os_error
from reimzul.core.formatting import suggest_nearest
from reimzul.core.http_client import HttpSession, HttpUnavailable, NotFound
from reimzul.core.listed_packages import iterate_contents
from reimzul.core.rpm_header import read_source_header
from reimzul.core.validators import is_source_rpm
from reimzul.plan.contents import TargetContents, list_required_names
from reimzul.plan.edges import PlannedSource
from reimzul.submit.sources import STDIN, RefusedSource, SourceFile, check_sources, refuse_source

#: Characters of a package's name at most: a member's key has to remain a name (core/validators.py).
_MAX_NAME_CHARACTERS = 150


@attr.frozen(kw_only=True)
class Exclusion:
    """A source that is not built for an arch."""

    name: str
    arch: str
    reason: str


def list_given(given: str, stdin: TextIO) -> list[str]:
    """Return the source rpms that a list names, one a line, or that lie in a folder. Raises `InputError`."""
    path = Path(given)
    try:
        if given == STDIN:
            lines = list(stdin)
        elif path.is_dir():
            lines = [str(each) for each in sorted(path.iterdir()) if is_source_rpm(each.name)]
        else:
            lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--batch {given}: {describe_os_error(error)}") from None
    names = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not names:
        raise InputError(f"--batch {given}: no source rpm; give a folder with some, or a list with one per line")
    return list(dict.fromkeys(names))


def check_batch(
    names: Iterable[str], incoming: Path, known: Arches, warn: Callable[[str], None]
) -> tuple[list[SourceFile], list[RefusedSource]]:
    """Return the source rpms that can be read, one of each package, and the others."""
    files, refused = check_sources(names, incoming, (), known, warn)
    found: dict[str, SourceFile] = {}
    for file in files:
        name, other = file.header.name, found.get(file.header.name)
        if other is not None:
            fault = f"{name} is in the batch twice, as {other.header.evr} too: give one of them"
            refused.append(refuse_source(file.given, InputError(fault)))
        elif len(name) > _MAX_NAME_CHARACTERS:
            fault = f"a package's name may have {_MAX_NAME_CHARACTERS} characters in a batch"
            refused.append(refuse_source(file.given, InputError(fault)))
        else:
            found[name] = file
    return list(found.values()), refused


def plan_source(file: SourceFile) -> PlannedSource:
    header = file.header
    return PlannedSource(
        name=header.name,
        srpm=file.path.name,
        evr=header.evr,
        requires=header.requires,
        provides=tuple(dict.fromkeys(header.provides)),
        has_dynamic_requires=header.has_dynamic_requires,
    )


def split_by_arch(
    files: Sequence[SourceFile], arches: Iterable[str], known: Arches
) -> tuple[dict[str, dict[str, PlannedSource]], list[Exclusion]]:
    """Return the sources that are built on each arch, by name, and those that are not."""
    found: dict[str, dict[str, PlannedSource]] = {}
    excluded = []
    planned = {file.header.name: plan_source(file) for file in files}
    for arch in arches:
        found[arch] = {}
        for file in files:
            name, reason = file.header.name, known.exclusion_reason(arch, file.header)
            if reason:
                excluded.append(Exclusion(name=name, arch=arch, reason=reason))
            else:
                found[arch][name] = planned[name]
    return found, excluded


# --- what a target lists


def read_target(session: HttpSession, base_url: str, target: str) -> TargetContents:
    """Read what a target lists on one arch; nothing if it has no repodata yet. Raises `HttpUnavailable`."""
    try:
        return TargetContents(iterate_contents(session, f"{base_url}{quote(target)}/"))
    except NotFound:
        return TargetContents()
    except HttpUnavailable as error:
        why = str(error).replace(base_url, "bstore: repo/")  # nobody can open the URL
        raise HttpUnavailable(f"nothing can be planned while it is unknown what {target} lists: {why}") from error


def find_dependents(package: str, contents: Mapping[str, TargetContents]) -> dict[str, dict[str, PlannedSource]]:
    """Return the sources of each arch's target whose BuildRequires the package's binaries provide.

    Raises `InputError` if no target lists the package, or none a source rpm that is built against it.
    """
    if not any(package in each.sources for each in contents.values()):
        near = suggest_nearest(package, {name for each in contents.values() for name in each.sources})
        raise InputError(f"--dependents-of {package}: the target lists no build of a source package of that name{near}")
    found: dict[str, dict[str, PlannedSource]] = {}
    for arch, target in contents.items():
        provided = target.sources[package].provides if package in target.sources else set()
        found[arch] = {
            source.name: PlannedSource(
                name=source.name,
                srpm=source.location.rpartition("/")[2],
                evr=source.evr,
                requires=source.build_requires,
                provides=tuple(sorted(source.packages)),
            )
            for source in target.sources.values()
            if source.location and source.name != package
            if any(each in provided for text in source.build_requires for each in list_required_names(text))
        }
    if not any(found.values()):
        raise InputError(f"--dependents-of {package}: no source rpm that the target lists is built against it")
    return found


def fetch_dependents(
    session: HttpSession,
    base_url: str,
    sources: Mapping[str, Mapping[str, PlannedSource]],
    targets: Mapping[str, str],
    contents: Mapping[str, TargetContents],
    incoming: Path,
    folder: Path,
) -> list[SourceFile]:
    """Return the files of sources: those in `incoming/`, the others copied from the store into a folder.

    Raises `InputError`, `HttpUnavailable`.
    """
    files: dict[str, SourceFile] = {}
    for arch, found in sources.items():
        for name, source in found.items():
            if source.srpm in files:
                continue
            path = incoming / source.srpm
            if not path.is_file():
                path = folder / source.srpm
                url = f"{base_url}{quote(targets[arch])}/{quote(contents[arch].sources[name].location)}"
                with path.open("wb") as sink:
                    for piece in session.stream(url):
                        sink.write(piece)
            files[source.srpm] = SourceFile(given=source.srpm, path=path, header=read_source_header(path))
    return list(files.values())
