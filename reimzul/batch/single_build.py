# SPDX-License-Identifier: Apache-2.0
"""A single build that is held, outside batches: what it waits for, and the file that remembers it.

`.batches/single.log` has a line for each change of a build: all of it as it is then. The last line of a build counts.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import attr

from reimzul.core import fs, validators
from reimzul.core.errors import InvalidMessage, RetryLater, describe_os_error
from reimzul.core.json_message import Message, encode, field, nested
from reimzul.core.message import BuildEvent, BuildRequest, Status
from reimzul.plan.document import FOLDER
from reimzul.plan.journal import Entry, Journal, read_journal

_KIND = "single"


class SingleState:
    ACCEPTED = "accepted"  #: its job is to be put, or was put and not noted
    HELD = "held"  #: waits for other builds
    RELEASED = "released"
    WAITING = "waiting"  #: its builder found that nobody provides a requirement
    ENDED = "ended"  #: it ends without being built, which is to be announced
    OVER = "over"

    ALL = (ACCEPTED, HELD, RELEASED, WAITING, ENDED, OVER)


#: What a build that others wait for has come to: published, or why not; empty: nothing yet.
PUBLISHED = "published"


@attr.frozen(kw_only=True)
class SingleBuild(Message):
    request: BuildRequest = field(nested(BuildRequest, "a request"))
    tube: str = field(validators.name)
    priority: int = field(validators.integer(0, 2**32 - 1))
    state: str = field(validators.one_of(*SingleState.ALL))
    number: int = field(validators.integer(0, 2**63 - 1), 0)  #: of the job in `batch` that asked for it
    job: int = field(validators.integer(0, 2**63 - 1), 0)
    #: build id -> what that build has come to
    after: dict[str, str] = field(validators.dict_of(validators.build_id, validators.line(300), 50), {})
    #: leg -> what nobody provides to it; once released, what it waited for
    missing: dict[str, tuple[str, ...]] = field(
        validators.dict_of(validators.arch, validators.list_of(validators.line(300), 50), 20), {}
    )
    since: float = field(validators.unix_time, 0.0)  #: when it began to wait for what is missing
    event_at: float = field(validators.unix_time, 0.0)  #: of the last event by which its builder held it
    at: float = field(validators.unix_time, 0.0)
    reason: str = field(validators.line(500), "")  #: why it ended

    @property
    def build_id(self) -> str:
        return self.request.build_id

    @property
    def all_missing(self) -> list[str]:
        return list(dict.fromkeys(each for missing in self.missing.values() for each in missing))

    @property
    def unmet_builds(self) -> list[str]:
        """The builds that have come to nothing yet."""
        return [each for each, outcome in self.after.items() if not outcome]

    @property
    def failed_builds(self) -> list[str]:
        """The builds that will not be published, with the reason."""
        return [f"{each[:8]} {outcome}" for each, outcome in self.after.items() if outcome and outcome != PUBLISHED]


def is_main(event: BuildEvent) -> bool:
    """Whether an event is about the arch that was asked for; others, as i386 with x86_64, hold up nobody."""
    return event.target.endswith(f".{event.arch}")


def outcome_of(event: BuildEvent) -> str:
    """What an event says about the build that others wait for; empty if it decides nothing."""
    if not is_main(event) or event.claimed:
        return ""
    if event.status == Status.PUBLISHED or (event.scratch and event.status == Status.SUCCESS):
        return PUBLISHED
    if event.status in (Status.FAILED, Status.CANCELLED, Status.REJECTED):
        return f"({event.srpm}) {event.status.lower()}"
    return ""


class SingleStore:
    """The file of the builds that are not over. Raises `RetryLater` if the disk does not take a change."""

    def __init__(self, incoming: Path) -> None:
        """Load the builds. Raises `InputError`."""
        path = incoming / FOLDER / "single.log"
        self.builds: dict[str, SingleBuild] = {}
        for entry in read_journal(path) if path.exists() else ():
            self._apply(_parse(entry))
        path.parent.mkdir(parents=True, exist_ok=True)
        fs.write_atomic(path, "".join(encode(_entry_of(each)).decode() + "\n" for each in self.builds.values()))
        self._journal = Journal(path)

    def save(self, builds: Iterable[SingleBuild]) -> None:
        builds = [attr.evolve(each, at=time.time()) for each in builds]
        try:
            self._journal.append(map(_entry_of, builds))
        except OSError as error:
            raise RetryLater(f"{self._journal.path}: {describe_os_error(error)}") from error
        for each in builds:
            self._apply(each)

    def _apply(self, build: SingleBuild) -> None:
        if build.state == SingleState.OVER:
            self.builds.pop(build.build_id, None)
        else:
            self.builds[build.build_id] = build


def _entry_of(build: SingleBuild) -> Entry:
    return {"kind": _KIND, "build": build.to_json()}


def _parse(entry: Entry) -> SingleBuild:
    if entry["kind"] != _KIND or not isinstance(entry.get("build"), dict):
        raise InvalidMessage("an entry of single.log is not a held build")
    return SingleBuild.from_json(entry["build"])
