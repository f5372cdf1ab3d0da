# SPDX-License-Identifier: Apache-2.0
"""`reimzul download`: fetches packages or logs from the store, and checks them against the builds' manifests.

A file gets its name when it is whole and its checksum is right. Until then it is a hidden `.part` file, from whose end
the next run goes on.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Callable
from urllib.parse import quote

import attr
import click

from reimzul.admin import lookup, target_lookup
from reimzul.admin.builds import fetch_manifest, list_manifest_urls
from reimzul.admin.output import json_option, pass_settings, print_json
from reimzul.admin.target_option import complete_package, target_option
from reimzul.core.cli import EXIT_CODES, print_error
from reimzul.core.errors import EXIT_FAILED, InputError, ReimzulError, describe_os_error
from reimzul.core.formatting import join_words
from reimzul.core.fs import file_lock
from reimzul.core.http_client import HttpSession, NotFound
from reimzul.core.manifest import File, Manifest, sha256_of
from reimzul.core.settings import Settings
from reimzul.core.store_paths import MANIFEST, StoreUrls
from reimzul.history.build_record import BuildState

#: The most names of files that a note has.
_MAX_NAMED = 3

#: What is called with the number of bytes that have come.
Progress = Callable[[int], None]


def _complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[Any]:
    if context.params.get("target"):
        return complete_package(context, parameter, incomplete)
    return lookup.complete_build_id(context, parameter, incomplete)


@click.command("download", epilog=EXIT_CODES)
@click.argument("given", metavar="ID|PATTERN", shell_complete=_complete)
@target_option("Download the latest build of each package that PATTERN matches of this target")
@click.option("--rpms/--logs", "wants_rpms", default=True, help="Download packages (the default), or logs.")
@click.option("--arch", metavar="ARCH", help="Only what was built for this arch.")
@click.option(
    "--dest",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    metavar="DIR",
    help="The folder to write to, which is made if needed; the current one by default.",
)
@json_option("a list of files")
@pass_settings
def command(
    settings: Settings, given: str, target: str | None, wants_rpms: bool, arch: str | None, dest: Path, as_json: bool
) -> int:
    """Download the packages of a build, or its logs; with -t those of a target's latest builds.

    Each file is checked against the sha256 that its builder wrote down. A file that is there already is not downloaded
    again, a broken download is continued by the next run. Prints the paths; on a terminal also the progress. Logs are
    written to a folder for each arch. Files of one name that differ, as those of several targets, are written to a
    folder for each target (and arch). Exit code 1: a file could not be downloaded; the others are complete.

    \b
    Examples:
      reimzul download 72b893f8
      reimzul download 72b893f8 --logs --arch i386 --dest /tmp/logs
      reimzul download -t c9s.x86_64 "hello*" --dest packages
    """
    urls = StoreUrls.from_settings(settings.bstore.base_url, settings.bstore.upload_url)
    with HttpSession(target_lookup.STORE_TIMEOUT_SECONDS) as session:
        sources = _find_by_target(settings, session, urls, target, given) if target else None
        if sources is None:
            sources = _find_by_id(settings, session, urls, given, arch)
        wanted = _select_files([each for each in sources if arch in (None, each.manifest.arch)], wants_rpms)
        if not wanted:
            raise InputError(_describe_nothing(given, sources, wants_rpms, arch))
        if note := _describe_separated(wanted, wants_rpms):
            print_error(note)
        results = _download_all(session, wanted, dest)
    if as_json:
        print_json([result.to_dict() for result in results])
    for result in results:
        if result.fault:
            print_error(result.fault)
        elif not as_json:
            click.echo(result.path)
    return EXIT_FAILED if any(result.fault for result in results) else 0


# --- what to download


@attr.frozen(kw_only=True)
class _Source:
    """A leg's folder in the store."""

    url: str
    manifest: Manifest


@attr.frozen(kw_only=True)
class _WantedFile:
    source: _Source
    file: File
    path: Path  #: relative to the destination


def _find_by_id(
    settings: Settings, session: HttpSession, urls: StoreUrls, given: str, arch: str | None
) -> list[_Source]:
    build = lookup.read_builds(settings, [given])[0]
    arches = [leg.arch for leg in build.legs]
    if arch and arch not in arches:
        raise InputError(f"build {build.build_id[:8]} was not built for {arch}, but for {', '.join(arches)}")
    found = [_find_source(session, list_manifest_urls(urls, leg)) for leg in build.legs]
    return [source for source in found if source]


def _find_source(session: HttpSession, manifest_urls: Iterable[str]) -> _Source | None:
    for url in manifest_urls:
        with contextlib.suppress(NotFound):
            return _Source(url=url[: -len(MANIFEST)], manifest=fetch_manifest(session, url))
    return None


def _find_by_target(
    settings: Settings, session: HttpSession, urls: StoreUrls, target: str, pattern: str
) -> list[_Source]:
    targets = target_lookup.find_known_targets(settings, session, target)
    builds = target_lookup.find_latest_builds(settings, session, targets, pattern)
    if not builds:
        raise InputError(
            f"{target} lists no package that matches {pattern!r}; `reimzul packages -t {target}` lists all"
        )
    found = [_find_source(session, [urls.place(build.place) + MANIFEST]) for build in builds]
    return [source for source in found if source]


def _select_files(sources: Iterable[_Source], wants_rpms: bool) -> list[_WantedFile]:
    """Select files, each once: the legs of a build share the source rpm. What differs under one path gets folders."""
    by_path: dict[Path, dict[str, _WantedFile]] = {}
    for source in sources:
        leg = source.manifest
        folder = Path() if wants_rpms else Path(f"{leg.pkgname}-{leg.evr}.{leg.arch}")
        for file in leg.files:
            if file.is_rpm == wants_rpms:
                wanted = _WantedFile(source=source, file=file, path=folder / file.name)
                by_path.setdefault(wanted.path, {}).setdefault(file.sha256, wanted)
    return [wanted for alike in by_path.values() for wanted in _separate(list(alike.values()))]


def _separate(alike: list[_WantedFile]) -> list[_WantedFile]:
    """Files that differ and would have one path, each in a folder of its target, or of its target and arch."""
    if len(alike) == 1:
        return alike
    manifests = [each.source.manifest for each in alike]
    has_own_target = len({manifest.request.target for manifest in manifests}) == len(alike)
    folders = [Path(leg.request.target, *(() if has_own_target else (leg.arch,))) for leg in manifests]
    return [attr.evolve(each, path=folder / each.path) for each, folder in zip(alike, folders)]


def _describe_separated(wanted: Iterable[_WantedFile], wants_rpms: bool) -> str:
    """A note about files that got folders; empty without any."""
    depth = 1 if wants_rpms else 2
    names = sorted({str(Path(*each.path.parts[-depth:])) for each in wanted if len(each.path.parts) > depth})
    if not names:
        return ""
    shown = join_words(names[:_MAX_NAMED]) if len(names) <= _MAX_NAMED else f"{names[0]} and {len(names) - 1} others"
    return f"several files that differ are called {shown}: each is in a folder of its own"


def _describe_nothing(given: str, sources: list[_Source], wants_rpms: bool, arch: str | None) -> str:
    what, where = "packages" if wants_rpms else "logs", f" for {arch}" if arch else ""
    results = ", ".join(f"{each.manifest.arch}: {BuildState.from_status(each.manifest.status)}" for each in sources)
    results = f" ({results})" if results else "; it has no result yet, or it was removed: reimzul explain"
    return f"{given} has no {what} in the store{where}{results}"


# --- downloading


@attr.frozen(kw_only=True)
class _Result:
    wanted: _WantedFile
    path: Path
    fault: str = ""

    def to_dict(self) -> dict[str, Any]:
        file, manifest = self.wanted.file, self.wanted.source.manifest
        about = {"build_id": manifest.build_id, "arch": manifest.arch, "path": str(self.path), "message": self.fault}
        return {**about, "name": file.name, "bytes": file.size, "sha256": file.sha256}


def _download_all(session: HttpSession, wanted: list[_WantedFile], dest: Path) -> list[_Result]:
    results = []
    with _show_progress(sum(each.file.size for each in wanted)) as progress:
        for each in wanted:
            path, fault = dest / each.path, ""
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                download_file(session, each.source.url + quote(each.file.name), each.file, path, progress)
            except ReimzulError as error:
                fault = str(error)
            except OSError as error:
                fault = f"{path}: {describe_os_error(error)}"
            results.append(_Result(wanted=each, path=path, fault=fault))
    return results


@contextlib.contextmanager
def _show_progress(size: int) -> Iterator[Progress]:
    """Show a bar on stderr if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    with click.progressbar(length=size, file=sys.stderr, show_eta=True) as bar:
        yield bar.update


def download_file(session: HttpSession, url: str, file: File, path: Path, progress: Progress) -> None:
    """Download a file to `path`, unless it is there. Raises `ReimzulError`, `OSError`; `path` is whole or absent."""
    if path.exists():
        if sha256_of(path) != file.sha256:
            raise ReimzulError(f"{path} is another file already: remove it, or give another --dest")
        progress(file.size)
        return
    part = path.with_name(f".{file.name}.part")
    with file_lock(part) as lock:
        if lock is None:
            raise ReimzulError(f"{path}: another download of it is running")
        try:
            is_whole = _continue_download(session, url, file, part, progress)
            if not is_whole:  # the part was of another file, or damaged
                os.truncate(part, 0)
                is_whole = _continue_download(session, url, file, part, lambda _: None)
            if not is_whole:
                os.truncate(part, 0)
                raise ReimzulError(f"{url} is not the file that was built: its sha256 is not {file.sha256}")
            part.rename(path)
        finally:
            if part.exists() and not part.stat().st_size:
                part.unlink()


def _continue_download(session: HttpSession, url: str, file: File, part: Path, progress: Progress) -> bool:
    """Download what a part lacks; return whether its content is right. Raises `HttpUnavailable`, `ReimzulError`."""
    size = part.stat().st_size
    if size > file.size:
        return False
    progress(size)
    with part.open("ab") as stream:
        if size < file.size:
            for piece in session.stream(url, size):
                stream.write(piece)
                progress(len(piece))
                if stream.tell() > file.size:
                    break
        stream.flush()
        os.fsync(stream.fileno())  # a power cut must not leave an empty file under the final name
    if part.stat().st_size < file.size:
        raise ReimzulError(f"{url}: the connection ended early; run it again to continue")
    return sha256_of(part) == file.sha256
