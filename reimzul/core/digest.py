# SPDX-License-Identifier: Apache-2.0
"""sha256, fetched when something is hashed and not before: OpenSSL's library takes 3 MiB of an idle daemon."""

from __future__ import annotations

from typing import Protocol


class Digest(Protocol):
    """What is being hashed."""

    def update(self, piece: bytes, /) -> None:
        """The next piece of it."""

    def hexdigest(self) -> str:
        """The sha256 of all pieces so far."""


def sha256() -> Digest:
    """A new one."""
    import hashlib

    return hashlib.sha256()
