# SPDX-License-Identifier: Apache-2.0
"""The plan of a batch: its members, what each needs, and in which order they are released.

`reimzul-submit` writes it to `.batches/<batch>.json` in incoming/. It never changes; replacing a member makes another
plan beside it, `<batch>.<first 12 digits of its sha256>.json`.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import attr

from reimzul.core import fs, validators
from reimzul.core.errors import InputError, InvalidMessage, describe_os_error
from reimzul.core.json_message import Message, encode, field, is_sent, nested, parse_json

#: The folder of plans and journals in incoming/.
FOLDER = ".batches"
#: A plan of 40,000 members has some 60 MB.
_MAX_BYTES = 256 << 20
MAX_MEMBERS = 100_000
#: What ends the name of a seed's member.
SEED_SUFFIX = "~seed"


class OrderRule:
    """What makes a member wait for another (`reimzul-submit --order`)."""

    NEEDED = "needed"  #: it requires what the target does not have, and the other provides it
    REBUILT = "rebuilt"  #: it requires what the other provides, whatever the target has
    LISTED = "listed"  #: the other stands before it in the list
    NONE = "none"  #: nothing

    ALL = (NEEDED, REBUILT, LISTED, NONE)


@attr.frozen(kw_only=True)
class Member(Message):
    """A source rpm on one arch of a batch.

    A seed of a cycle is a member of its own, `<name>~seed`, which is built before the others of the cycle; the member
    without that suffix is the plain build, and comes after them.
    """

    name: str = field(validators.name)  #: of the package; of a seed with `~seed`
    arch: str = field(validators.arch)
    target: str = field(validators.target)  #: with the arch
    srpm: str = field(validators.srpm)
    srpm_sha256: str = field(validators.sha256)
    evr: str = field(validators.name)  #: version-release of the source rpm
    tube: str = field(validators.name)
    #: the legs that must be published before others are built against it; a leg that follows, as i386, is not one
    legs: tuple[str, ...] = field(validators.list_of(validators.arch, 20))
    disttag: str = field(validators.disttag)
    bconds: tuple[str, ...] = field(validators.list_of(validators.name, 20), ())
    needs: tuple[str, ...] = field(validators.list_of(validators.name, MAX_MEMBERS), ())  #: keys of members
    #: capabilities, by name, that it provides: those of its header, and of its last build in the target
    provides: tuple[str, ...] = field(validators.list_of(validators.line(300), MAX_MEMBERS), ())
    packages: tuple[str, ...] = field(validators.list_of(validators.line(300), 20_000), ())  #: names of its packages
    #: whether the target lists a build of it, against which others can be built if it fails
    is_listed: bool = field(validators.flag, False)
    seconds: float = field(validators.number(0, 1e9), 0.0)  #: how long it takes
    is_measured: bool = field(validators.flag, False)  #: whether that is of its earlier builds, and not a guess
    chain: float = field(validators.number(0, 1e12), 0.0)  #: seconds of the longest chain that begins with it
    rank: int = field(validators.integer(0, 4095), 0)  #: 0 is released first

    @property
    def key(self) -> str:
        return f"{self.name}.{self.arch}"

    def to_json(self) -> dict[str, Any]:
        values = ((each, getattr(self, each.name)) for each in _MEMBER_FIELDS)  # a plan has thousands: no attr.asdict
        return {**self.extra, **{each.name: value for each, value in values if is_sent(each, value)}}


_MEMBER_FIELDS = attr.fields(Member)


@attr.frozen(kw_only=True)
class Plan(Message):
    batch: str = field(validators.batch_id)
    target: str = field(validators.target)  #: without an arch
    arches: tuple[str, ...] = field(validators.list_of(validators.arch, 40))
    submitter: str = field(validators.submitter)
    created: float = field(validators.unix_time)
    order: str = field(validators.one_of(*OrderRule.ALL), OrderRule.REBUILT)
    priority: int = field(validators.integer(0, 2**31))  #: of rank 0
    scratch: bool = field(validators.flag, False)  #: over at Success, releases nobody
    last_resort: bool = field(validators.flag, True)  #: build against the listed build of a member that failed
    members: tuple[Member, ...] = field(validators.list_of(nested(Member, "a member"), MAX_MEMBERS))
    schema: int = field(validators.integer(1, 1), 1, always=True)

    def to_bytes(self) -> bytes:
        """The plan as JSON, a member a line."""
        head = encode({**attr.evolve(self, members=()).to_json(), "members": None}).decode("ascii")
        members = ",\n".join(encode(member.to_json()).decode("ascii") for member in self.members)
        return head.replace('"members":null', f'"members":[\n{members}\n]', 1).encode("ascii") + b"\n"


def plan_path(incoming: Path, batch: str, plan_sha256: str = "") -> Path:
    """The file of a batch's plan; with a sha256, of the plan that replaced it."""
    suffix = f".{plan_sha256[:12]}" if plan_sha256 else ""
    return incoming / FOLDER / f"{batch}{suffix}.json"


def journal_path(incoming: Path, batch: str) -> Path:
    return incoming / FOLDER / f"{batch}.log"


def write_plan(path: Path, plan: Plan) -> str:
    """Write a plan durably; return the sha256 of its file."""
    body = plan.to_bytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    fs.write_atomic(path, body.decode("ascii"), mode=0o644)  # whatever the umask: reimzul-batch reads it
    return sha256(body).hexdigest()


def read_plan(path: Path, plan_sha256: str = "") -> Plan:
    """Read a plan, and check its sha256 if one is given. Raises `InputError`."""
    try:
        with path.open("rb") as stream:
            body = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: {describe_os_error(error)}") from None
    if len(body) > _MAX_BYTES:
        raise InputError(f"{path}: a plan of over {_MAX_BYTES} bytes")
    if plan_sha256 and sha256(body).hexdigest() != plan_sha256:
        raise InputError(f"{path}: not the plan that was accepted (its sha256 differs)")
    try:
        return Plan.from_json(parse_json(body))
    except InvalidMessage as error:
        raise InputError(f"{path}: {error}") from None
