# SPDX-License-Identifier: Apache-2.0
"""`build.json`, the manifest of one uploaded leg: what a worker says it sent, and repogen checks it has.

It carries the whole request, so that a leg can be asked for again from it alone. It is uploaded last; nothing
writes to its folder after it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import attr

from reimzul.core import validators
from reimzul.core.errors import InvalidMessage
from reimzul.core.message import BuildRequest, Message, Phase, Status, field, parse_json, phases
from reimzul.core.retry import CancelToken
from reimzul.core.store_paths import MANIFEST, package_dir

#: Manifests over this are refused unread: a kernel's has some 100 rpms, 200 bytes each.
MAX_BYTES = 8 * 1024 * 1024
_CHUNK = 1024 * 1024


@attr.frozen(kw_only=True)
class File:
    """One file of a leg."""

    name: str = field(validators.name)
    size: int = field(validators.integer(0, 2**50))  #: bytes
    sha256: str = field(validators.sha256)
    nevra: str = field(validators.optional(validators.line(300)), "")  #: of an rpm, as its header says

    @property
    def is_rpm(self) -> bool:
        """Whether it is a package, source or binary."""
        return self.name.endswith(".rpm")


def _parse_file(raw: Any) -> File:
    if isinstance(raw, File):
        return raw
    if not isinstance(raw, dict):
        raise ValueError(f"{validators.quoted(raw)} is no file")
    try:
        return File(**{name: raw[name] for name in ("name", "size", "sha256", "nevra") if name in raw})
    except TypeError:
        raise ValueError(f"{validators.quoted(raw)} lacks name, size or sha256") from None


def _parse_request(raw: Any) -> BuildRequest:
    if isinstance(raw, BuildRequest):
        return raw
    if not isinstance(raw, dict):
        raise ValueError(f"{validators.quoted(raw)} is no request")
    try:
        request = BuildRequest.from_json(raw)
    except InvalidMessage as error:
        raise ValueError(str(error)) from None
    if not request.has_id:
        raise ValueError("it has no build_id or timestamp")
    return request


@attr.frozen(kw_only=True)
class Manifest(Message):
    """What one attempt at one leg came to, and every file of it."""

    request: BuildRequest = field(_parse_request)
    arch: str = field(validators.arch)  #: of the leg
    attempt: str = field(validators.attempt)
    #: Success or Failed decide the leg; Cancelled and Unfit only say why there are logs to be kept
    status: str = field(validators.one_of(Status.SUCCESS, Status.FAILED, Status.CANCELLED, Status.UNFIT))
    pkgname: str = field(validators.name)
    evr: str = field(validators.name)
    builder_fqdn: str = field(validators.host)
    started: float = field(validators.unix_time)
    finished: float = field(validators.unix_time)
    exit_code: int | None = field(validators.integer(-255, 255), None)  #: mock's
    reason: str = field(validators.line(500), "")
    config: str = field(validators.line(300), "")  #: mock's configuration: file and commit
    files: tuple[File, ...] = field(validators.list_of(_parse_file, 100_000), ())
    skipped: Mapping[str, str] = field(validators.dict_of(validators.arch, validators.line(200), 20), {})
    phases: tuple[Phase, ...] = field(phases, ())  #: what took how long, the upload left out
    schema: int = field(validators.integer(1, 1), 1)

    @property
    def build_id(self) -> str:
        """Of the request it answers."""
        return self.request.build_id

    @property
    def rpm_files(self) -> list[File]:
        """Its packages, source rpm included."""
        return [file for file in self.files if file.is_rpm]

    def place(self, timestamp: str = "") -> str:
        """Where the leg belongs; `timestamp` for one second later, where the place is another build's."""
        return package_dir(
            self.request.target,
            self.pkgname,
            timestamp or self.request.timestamp,
            self.evr,
            self.arch,
            scratch=self.request.scratch,
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON, the request as it travels through tubes."""
        return {**super().to_json(), "request": self.request.to_json(), "schema": self.schema}

    def to_text(self) -> str:
        """As `build.json` has it."""
        return json.dumps(self.to_json(), indent=1, sort_keys=True) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """The manifest in a folder. Raises `FileNotFoundError` where there is none, `InvalidMessage` where it is none."""
    with (folder / MANIFEST).open("rb") as stream:
        body = stream.read(MAX_BYTES + 1)
    if len(body) > MAX_BYTES:
        raise InvalidMessage(f"{MANIFEST} is over {MAX_BYTES} bytes")
    return Manifest.from_json(parse_json(body))


def sha256_of(path: Path, cancel: CancelToken | None = None) -> str:
    """The sha256 of a file, read in pieces; `cancel` is asked between two of them."""
    digest = sha256()
    with path.open("rb", buffering=0) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            if cancel is not None:
                cancel.raise_if_cancelled()
    return digest.hexdigest()
