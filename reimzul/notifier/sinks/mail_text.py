# SPDX-License-Identifier: Apache-2.0
"""What a mail about a result says. Pure: the same event always makes the same mail, so that a double is known as one.

Its words are the original's; the first real error goes before all of them. Its headers hang the mails of a package on
one arch and target together, and say to a filter what it is about.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from email.header import Header
from email.quoprimime import body_encode
from email.utils import formatdate

import attr

from reimzul.core.message import NAMESPACE, BuilderEvent, BuildEvent, Status
from reimzul.core.store_paths import StoreUrls, package_folder

#: The longest line that goes as it is: SMTP's limit is 998.
LONGEST_LINE = 900
#: How many lines of the logs' ends are shown, as in the original.
ROOT_LINES, BUILD_LINES = 30, 80
_NO_LOG = "(its end did not come with the result: look at the logs themselves)"


@attr.frozen(kw_only=True)
class Writer:
    """What all mails of a farm have in common."""

    sender: str
    urls: StoreUrls

    def mail(self, event: BuildEvent | BuilderEvent, recipients: Sequence[str]) -> bytes:
        """The mail about a result, or about a builder, as it goes over the wire."""
        text = about_builder(event) if isinstance(event, BuilderEvent) else self.body(event)
        plain = text.isascii() and max(map(len, text.splitlines())) <= LONGEST_LINE
        headers = [
            *self._headers(event, recipients),
            ("MIME-Version", "1.0"),
            ("Content-Type", 'text/plain; charset="utf-8"'),
            ("Content-Transfer-Encoding", "7bit" if plain else "quoted-printable"),
        ]
        content = text if plain else body_encode(text.encode().decode("latin-1"))
        return "\r\n".join([*(f"{name}: {value}" for name, value in headers), "", *content.splitlines(), ""]).encode()

    def _headers(self, event: BuildEvent | BuilderEvent, recipients: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Written as they stand: what is in them is ASCII without line breaks, each field checked for it.

        A submitter's name alone may be anything that can be shown.
        """
        yield "From", self.sender
        yield "To", ",\r\n ".join(recipients)
        yield "Subject", subject(event)
        yield "Date", formatdate(event.at or None)
        yield "Message-ID", self._id(f"{event.key}.{event.status}")
        yield "In-Reply-To", self._id(thread(event))
        yield "References", self._id(thread(event))
        yield "Auto-Submitted", "auto-generated"
        for name in ("status", "pkgname", "target", "arch", "submitter", "build_id", "builder"):
            if getattr(event, name, ""):
                yield f"X-Reimzul-{name.replace('_', '-').title()}", _encoded(getattr(event, name))

    def body(self, event: BuildEvent) -> str:
        """Its text: for a failure what went wrong first, then who, what and where, then the logs' ends."""
        failed = event.status != Status.SUCCESS
        parts = [*(_what_went_wrong(event) if failed else ()), *self._facts(event), *_logs(event)]
        return "\n".join(parts) + "\n"

    def _facts(self, event: BuildEvent) -> list[str]:
        facts = [
            "#### Reimzul build results #####",
            f" Builder      : {event.builder_fqdn}",
            f" Package      : {event.pkgname} {event.evr}".rstrip(),
            f" Timestamp    : {event.timestamp}",
            f" Submitted by : {event.submitter}",
            f" Status       : {event.status}",
        ]
        skipped = [f" Not built    : {arch}, {why}" for arch, why in sorted(event.skipped.items())]
        return [*facts, *skipped, f" Full logs available at {self._where(event)}", ""]

    def _where(self, event: BuildEvent) -> str:
        """Where the logs are; a worker of the original does not say, but uploads to where they always were."""
        if event.url or not (event.pkgname and event.evr and event.timestamp):
            return event.url or "(nowhere that is known)"
        place = f"repo/{event.target}/{event.pkgname}/{event.timestamp}/{package_folder(event.evr, event.arch)}"
        return self.urls.place(place)

    def _id(self, left: str) -> str:
        _, _, domain = self.sender.partition("@")
        return f"<{left}@{domain or 'localhost'}>"


def _encoded(value: str) -> str:
    """A header's value: of other letters than ASCII in encoded words (RFC 2047), as what only looks like one."""
    plain = value.isascii() and "=?" not in value and value == value.strip()
    return value if plain else Header(value, "utf-8").encode(linesep="\r\n")


def about_builder(event: BuilderEvent) -> str:
    """What became of a builder, and what a person can do."""
    facts = [f"{event.builder}: {event.status}", "", event.reason, ""]
    if event.status == Status.QUARANTINED:
        facts += [f"It takes no more jobs. `reimzul resume {event.builder}` on the controller lets it back at once."]
    return "\n".join(facts) + "\n"


def subject(event: BuildEvent | BuilderEvent) -> str:
    """The original's."""
    if isinstance(event, BuilderEvent):
        return f"[reimzul] Builder {event.builder} : {event.status}"
    return (
        f"[reimzul] Build task {event.timestamp} {event.srpm} (arch: {event.arch}) target {event.target} "
        f": {event.status}"
    )


def thread(event: BuildEvent | BuilderEvent) -> str:
    """What all mails of a package on an arch and target refer to, or of a builder; no mail has this id itself."""
    if isinstance(event, BuilderEvent):
        return f"thread-{uuid.uuid5(NAMESPACE, event.builder).hex}"
    return f"thread-{uuid.uuid5(NAMESPACE, '/'.join(group(event))).hex}"


def group(event: BuildEvent) -> tuple[str, str, str]:
    """The builds whose results are compared with each other: of one package on one arch and target."""
    return (event.pkgname or event.srpm, event.target, event.arch)


def _what_went_wrong(event: BuildEvent) -> list[str]:
    why = [f"{event.srpm} for {event.arch}: {event.reason or event.status}", ""]
    return [*why, *event.first_error.splitlines(), ""] if event.first_error else why


def _logs(event: BuildEvent) -> list[str]:
    return [
        "#### Mock output logs ####",
        "    ========== Mock root log ============",
        *_end(event.root_log, ROOT_LINES),
        "",
        "    ========== Mock build log ==========",
        *_end(event.build_log, BUILD_LINES),
    ]


def _end(log: str, lines: int) -> list[str]:
    return log.splitlines()[-lines:] or [_NO_LOG]
