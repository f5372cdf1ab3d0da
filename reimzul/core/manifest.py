# SPDX-License-Identifier: Apache-2.0
"""`build.json`, the manifest of an uploaded leg: its result, and each file with its checksum.

It includes the request, so that the build can be requeued from the manifest alone. It is uploaded last; nothing is
written into its folder afterwards.
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
from reimzul.core.failure_cause import CausedResult
from reimzul.core.json_message import field, nested, parse_json
from reimzul.core.message import BuildRequest, Phase, Status, phases
from reimzul.core.retry import CancelToken
from reimzul.core.store_paths import MANIFEST, package_dir

#: Larger manifests are refused unread. A kernel has some 100 rpms, 200 bytes each.
MAX_BYTES = 8 * 1024 * 1024
_CHUNK = 1024 * 1024


@attr.frozen(kw_only=True)
class File:
    name: str = field(validators.name)
    size: int = field(validators.integer(0, 2**50))  #: bytes
    sha256: str = field(validators.sha256)
    nevra: str = field(validators.optional(validators.line(300)), "")  #: of an rpm, from its header

    @property
    def is_rpm(self) -> bool:
        return self.name.endswith(".rpm")


def _check_request(value: Any) -> BuildRequest:
    request = nested(BuildRequest, "a request")(value)
    if not request.has_id:
        raise ValueError("it has no build_id or timestamp")
    return request


@attr.frozen(kw_only=True)
class Manifest(CausedResult):
    """The result of an attempt at a leg, and its files."""

    request: BuildRequest = field(_check_request)
    arch: str = field(validators.arch)  #: of the leg
    attempt: str = field(validators.attempt)
    #: Success and Failed decide the leg; Cancelled and Unfit say why logs are kept
    status: str = field(validators.one_of(Status.SUCCESS, Status.FAILED, Status.CANCELLED, Status.UNFIT))
    pkgname: str = field(validators.name)
    evr: str = field(validators.name)
    builder_fqdn: str = field(validators.host)
    started: float = field(validators.unix_time)
    finished: float = field(validators.unix_time)
    exit_code: int | None = field(validators.integer(-255, 255), None)  #: mock's
    reason: str = field(validators.line(500), "")
    config: str = field(validators.line(300), "")  #: mock's configuration: file and commit
    files: tuple[File, ...] = field(validators.list_of(nested(File, "a file"), 100_000), ())
    skipped: Mapping[str, str] = field(validators.dict_of(validators.arch, validators.line(200), 20), {})
    phases: tuple[Phase, ...] = field(phases, ())  #: durations, without the upload
    schema: int = field(validators.integer(1, 1), 1, always=True)

    @property
    def build_id(self) -> str:
        return self.request.build_id

    @property
    def rpm_files(self) -> list[File]:  # the source rpm too
        return [file for file in self.files if file.is_rpm]

    def place(self, timestamp: str = "") -> str:
        """The leg's place; another `timestamp` if the place is taken by another build."""
        return package_dir(
            self.request.target,
            self.pkgname,
            timestamp or self.request.timestamp,
            self.evr,
            self.arch,
            scratch=self.request.scratch,
        )

    def to_text(self) -> str:
        return json.dumps(self.to_json(), indent=1, sort_keys=True) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest in a folder. Raises `FileNotFoundError`, `InvalidMessage`."""
    with (folder / MANIFEST).open("rb") as stream:
        body = stream.read(MAX_BYTES + 1)
    if len(body) > MAX_BYTES:
        raise InvalidMessage(f"{MANIFEST} is over {MAX_BYTES} bytes")
    return Manifest.from_json(parse_json(body))


def sha256_of(path: Path, cancel: CancelToken | None = None) -> str:
    digest = sha256()
    with path.open("rb", buffering=0) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            if cancel is not None:
                cancel.raise_if_cancelled()
    return digest.hexdigest()
