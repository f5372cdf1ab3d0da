# SPDX-License-Identifier: Apache-2.0
"""A canary on its way through the farm, on one arch: the hops it has made, by what the history says of it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attr

from reimzul.admin.doctor.check import FAIL, OK, Finding, one_line
from reimzul.core.message import Status

#: The hops in their order, each named after what ends with it.
QUEUE, BUILD, UPLOAD, PLACED, TOTAL = "queue", "build", "upload", "placed", "total"


@attr.define(kw_only=True)
class Flight:
    """One build of a canary. Times are of a clock that only goes forward, in seconds."""

    arch: str
    tube: str
    build_id: str
    job: int  #: beanstalkd's number of it
    began: float  #: when it was submitted
    since: float  #: when the hop under way began
    hop: str = QUEUE  #: which is under way; empty where it has ended
    document: Mapping[str, Any] = attr.field(factory=dict)  #: what the history says last

    @property
    def status(self) -> str:
        """The history's word; empty while that knows nothing."""
        return str(self.document.get("status", ""))

    def heed(self, document: Mapping[str, Any], now: float) -> Iterator[Finding]:
        """The hops that are over by what the history says now."""
        self.document = document
        if self.status in ("", Status.QUEUED) or self.hop not in (QUEUE, BUILD):
            return
        if self.hop == QUEUE and self.document.get("builder_fqdn"):
            yield self._over(QUEUE, now, f"building on {self.document['builder_fqdn']}")
            self.hop = BUILD
        if self.status == Status.SUCCESS:
            yield from self._built(now)
        elif self.status in Status.FINAL:
            url = self.document.get("url")
            words = f"{self.status}: {self.document.get('reason') or 'no reason is given'}"
            yield self.failed(now, words, f"its logs: {url}" if url else f"reimzul builds --build {self.build_id}")

    def _built(self, now: float) -> Iterator[Finding]:
        # by the builder's own clock: when mock had ended, and when it said so with everything uploaded
        finished, said = (float(self.document.get(name) or 0.0) for name in ("finished", "at"))
        upload = min(max(0.0, said - finished), now - self.since) if finished else 0.0
        packages = ", ".join(self.document.get("rpms") or ())
        yield self._over(BUILD, now - upload, f"built by mock: {packages}")
        yield self._over(UPLOAD, now, "uploaded, announced, and in the history")
        self.hop = PLACED

    def placed(self, now: float, words: str) -> Iterator[Finding]:
        """It lies where it belongs: the last hop."""
        yield self._over(PLACED, now, words)
        self.hop = ""
        yield finding(self.arch, TOTAL, OK, f"build {self.build_id}", "", now - self.began)

    def failed(self, now: float, words: str, remedy: str) -> Finding:
        """The hop under way does not end, or ends badly: nothing comes after it."""
        hop, self.hop = self.hop, ""
        return finding(self.arch, hop, FAIL, words, remedy, now - self.since)

    def _over(self, hop: str, now: float, words: str) -> Finding:
        seconds, self.since = now - self.since, now
        return finding(self.arch, hop, OK, words, "", seconds)


def finding(arch: str, hop: str, level: str, words: str, remedy: str, seconds: float) -> Finding:
    """What is shown of a hop."""
    told = f"{seconds:.1f} s: {one_line(words)}"
    name = f"canary.{arch}.{hop}" if arch else f"canary.{hop}"
    return Finding(name=name, level=level, words=told, remedy=one_line(remedy), seconds=round(seconds, 3))
