# SPDX-License-Identifier: Apache-2.0
"""hypothesis strategies for every field and every message, in one place."""

from __future__ import annotations

import json
import string
from datetime import datetime
from typing import Any

import attr
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from reimzul.core import validators
from reimzul.core.batch_event import BatchEvent, BatchStatus
from reimzul.core.json_message import Message
from reimzul.core.manifest import File, Manifest
from reimzul.core.message import (
    MAX_ERRORS,
    BuilderEvent,
    BuildEvent,
    BuildRequest,
    CurrentBuild,
    FailedAttempt,
    Phase,
    RecentError,
    Refusal,
    RepogenRequest,
    Role,
    SignRequest,
    Status,
    WorkerHeartbeat,
    WorkerState,
)

# --- what a field may be


def word(first: str, rest: str, longest: int) -> SearchStrategy[str]:
    """A word of a first letter and others, of these alphabets (much faster than a regular expression)."""
    return st.builds("{}{}".format, st.sampled_from(first), st.text(rest, max_size=longest - 1))


def hexes(digits: int) -> SearchStrategy[str]:
    """A hexadecimal number of so many digits."""
    return st.integers(0, 16**digits - 1).map(lambda number: f"{number:0{digits}x}")


ALNUM = string.ascii_letters + string.digits
names = word(ALNUM + "_", ALNUM + "._+~^-", 30)
targets = st.builds("{}.{}".format, word(ALNUM, ALNUM + "._+-", 20), st.sampled_from(["x86_64", "i386", "aarch64"]))
disttags = st.builds("{}{}".format, st.sampled_from(["", "."]), word(ALNUM, ALNUM + "._+~^", 10))
arches = st.sampled_from(["x86_64", "i386", "aarch64", "armhfp", "ppc64le", "noarch"])
submitters = word(ALNUM + "_", ALNUM + "._@+$-", 20) | st.sampled_from(["CORP\\jdoe", "John Doe", "José", "山田 太郎"])
hosts = word(ALNUM, ALNUM + "._-", 30)
srpms = st.builds("{}{}".format, names, st.sampled_from([".src.rpm", ".nosrc.rpm"]))
build_ids = hexes(32)
sha256s = hexes(64)
attempts = st.builds("{}-{}".format, st.integers(0, 10**12 - 1), hexes(8))
_FIRST_DAY, _LAST_DAY = datetime(1000, 1, 1), datetime(9999, 12, 31)  # noqa: DTZ001  hypothesis wants naive bounds
timestamps = st.datetimes(_FIRST_DAY, _LAST_DAY).map(lambda when: when.strftime(validators.TIMESTAMP_FORMAT))
moments = st.floats(0, 253402300799)
places = st.builds(
    "{}/{}/{}/{}/{}".format, st.sampled_from(["repo", "scratch"]), targets, names, timestamps, names
)  # fmt: skip
words = st.text(max_size=80).map(validators.line(200))
texts = st.text(max_size=200).map(validators.text(1000))

# --- what is not known and travels along: any JSON

json_values: SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
#: Kinds of message whose fields one of another kind may have as keys it does not know.
_KINDS = (
    BuildRequest, BuildEvent, Refusal, BuilderEvent, BatchEvent, WorkerHeartbeat, RepogenRequest, SignRequest, Manifest,
)  # fmt: skip


def extras(kind: type[Message]) -> SearchStrategy[dict[str, Any]]:
    """Keys of a later version of ours, of an operator's own tools, or of another kind of message."""
    named = {a.name for other in _KINDS for a in attr.fields(other)} - {a.name for a in attr.fields(kind)}
    keys = st.text(min_size=1, max_size=12).map("x-{}".format) | st.sampled_from(sorted(named))
    return st.dictionaries(keys, json_values, max_size=3)


# --- messages

tries = st.builds(FailedAttempt, builder=hosts, when=moments, words=words)
build_requests = st.builds(
    BuildRequest,
    srpm=srpms,
    arch=arches,
    target=targets,
    disttag=disttags,
    submitter=submitters,
    scratch=st.booleans(),
    build_id=st.just("") | build_ids,
    timestamp=st.just("") | timestamps,
    srpm_sha256=st.just("") | sha256s,
    tries=st.lists(tries, max_size=3),
    parent=st.just("") | build_ids,
    legs=st.lists(arches, max_size=3),
    source_rounds=st.integers(0, 1_000_000),
    extra=extras(BuildRequest),
)
complete_requests = st.builds(
    BuildRequest,
    srpm=srpms, arch=arches, target=targets, disttag=disttags, submitter=submitters, scratch=st.booleans(),
    build_id=build_ids, timestamp=timestamps, srpm_sha256=sha256s, extra=extras(BuildRequest),
)  # fmt: skip
phases = st.lists(st.builds(Phase, name=words, start=moments, end=moments), max_size=3)
build_events = st.builds(
    BuildEvent,
    srpm=srpms,
    arch=arches,
    target=targets,
    status=st.sampled_from(Status.BUILD),
    submitter=submitters,
    disttag=st.just("") | disttags,
    scratch=st.booleans(),
    build_id=st.just("") | build_ids,
    timestamp=st.just("") | timestamps,
    builder_fqdn=st.just("") | hosts,
    pkgname=st.just("") | names,
    evr=st.just("") | names,
    attempt=st.just("") | attempts,
    reason=words,
    exit_code=st.none() | st.integers(-255, 255),
    started=moments,
    finished=moments,
    place=st.just("") | places,
    url=words,
    rpm_count=st.integers(0, 1_000_000),
    rpms=st.lists(words, max_size=3),
    root_log=texts,
    build_log=texts,
    first_error=texts,
    skipped=st.dictionaries(arches, words, max_size=3),
    phases=phases,
    parent=st.just("") | build_ids,
    tube=st.just("") | names,
    job=st.integers(0, 2**63 - 1),
    priority=st.none() | st.integers(0, 2**32 - 1),
    due=moments,
    waits_for=words,
    at=moments,
    manifest_sha256=st.just("") | sha256s,
    signature=st.just("") | st.builds("{}:{}".format, st.integers(1, 10**9 - 1), sha256s),
    claimed=st.none() | st.booleans(),
    owed=st.dictionaries(names, st.integers(0, 1_000_000), max_size=3),
    extra=extras(BuildEvent),
)
refusals = st.builds(
    Refusal,
    tube=words,
    job=st.integers(0, 2**63 - 1),
    reason=words,
    begins=texts,
    host=st.just("") | hosts,
    at=moments,
    owed=st.dictionaries(names, st.integers(0, 1_000_000), max_size=3),
    extra=extras(Refusal),
)
builder_events = st.builds(
    BuilderEvent,
    builder=hosts,
    status=st.sampled_from([Status.QUARANTINED, Status.RELEASED]),
    reason=words,
    arches=st.lists(arches, max_size=3),
    at=moments,
    owed=st.dictionaries(names, st.integers(0, 1_000_000), max_size=3),
    extra=extras(BuilderEvent),
)
batch_events = st.builds(
    BatchEvent,
    batch=hexes(8),
    status=st.sampled_from(BatchStatus.ALL),
    key=build_ids,
    target=targets,
    submitter=submitters,
    arches=st.lists(arches, max_size=3),
    counts=st.dictionaries(names, st.integers(0, 1_000_000), max_size=3),
    text=words,
    lines=st.lists(words, max_size=3),
    scratch=st.booleans(),
    at=moments,
    owed=st.dictionaries(names, st.integers(0, 1_000_000), max_size=3),
    extra=extras(BatchEvent),
)
presences = st.builds(
    WorkerHeartbeat,
    host=hosts,
    instance=names,
    state=st.sampled_from(WorkerState.ALL),
    why=words,
    arches=st.lists(arches, max_size=3),
    version=words.map(validators.line(60)),
    load=st.floats(0, 1e6),
    free_mib=st.integers(0, 2**53),
    free_inodes=st.integers(0, 2**53),
    build=st.none()
    | st.builds(
        CurrentBuild,
        build_id=build_ids, srpm=srpms, target=targets, arch=arches, attempt=attempts, phase=words, since=moments,
        started=moments,
    ),
    at=moments,
    role=st.sampled_from([Role.WORKER, Role.REPOGEN, Role.TOSIGN]),
    interval=st.integers(0, 86_400),
    mock=st.none() | st.booleans(),
    errors=st.lists(
        st.builds(
            RecentError,
            what=words.map(validators.line(40)), message=words, build_id=st.just("") | build_ids,
            arch=st.just("") | arches, target=st.just("") | targets, since=moments, at=moments,
            count=st.integers(1, 1_000_000),
        ),
        max_size=MAX_ERRORS,
    ),
    extra=extras(WorkerHeartbeat),
)  # fmt: skip
repogen_requests = st.builds(RepogenRequest, target=targets, extra=extras(RepogenRequest)) | st.builds(
    RepogenRequest,
    target=targets,
    build_id=build_ids,
    arch=arches,
    attempt=attempts,
    place=places,
    index=st.booleans(),
    request=st.none() | build_requests,
    logs=st.booleans(),
    tries=st.integers(0, 1000),
    extra=extras(RepogenRequest),
)
sign_requests = st.builds(
    SignRequest,
    pkgname=names,
    status=st.sampled_from(Status.BUILD),
    target=targets,
    arch=arches,
    timestamp=timestamps,
    build_id=st.just("") | build_ids,
    place=st.just("") | places,
    extra=extras(SignRequest),
)
messages: SearchStrategy[Message] = st.one_of(
    build_requests, build_events, refusals, builder_events, batch_events, presences, repogen_requests, sign_requests
)

files = st.builds(
    File, name=names, size=st.integers(0, 2**50), sha256=sha256s, nevra=st.just("") | words.filter(bool)
)  # fmt: skip
manifests = st.builds(
    Manifest,
    request=complete_requests,
    arch=arches,
    attempt=attempts,
    status=st.sampled_from([Status.SUCCESS, Status.FAILED, Status.CANCELLED, Status.UNFIT]),
    pkgname=names,
    evr=names,
    builder_fqdn=hosts,
    started=moments,
    finished=moments,
    exit_code=st.none() | st.integers(-255, 255),
    reason=words,
    config=words,
    files=st.lists(files, max_size=3),
    phases=phases,
    skipped=st.dictionaries(arches, words, max_size=3),
    extra=extras(Manifest),
)

# --- what may lie in a tube and be no message

#: Values of the wrong kind, or of the right kind and the wrong content.
strange: SearchStrategy[Any] = st.one_of(
    json_values,
    st.sampled_from([
        True, 1, 0, -1, 2**4000, 1e300, "", " ", "..", ".", "/", "../x", "-x", "--rsh=x", "x; touch y", "x\ny", "x\0",
        "\ud800", "\u202e", "a" * 201, "a" * 5000, [], {}, [[]], None, "20250230000000", "repo/../../../etc",
        ".src.rpm", "-.src.rpm", "../a.src.rpm", "a/b.src.rpm", "a\n.src.rpm",
        "repo/t/n/20250101000000/-f", "scratch/t/n/2/e",
    ]),
)  # fmt: skip


def spoilt(message: SearchStrategy[Message]) -> SearchStrategy[bytes]:
    """Bodies that are nearly a message: keys left out, or with strange values."""

    def spoil(sound: Message, changes: list[tuple[int, Any, bool]]) -> bytes:
        wire = sound.to_json()
        for number, value, drop in changes:
            key = sorted(wire)[number % len(wire)] if wire else "target"
            if drop:
                wire.pop(key, None)
            else:
                wire[key] = value
        return json.dumps(wire).encode("ascii")

    change = st.tuples(st.integers(0, 100), strange, st.booleans())
    return st.builds(spoil, message, st.lists(change, min_size=1, max_size=3))


#: Any bytes whatever: noise, JSON of any shape, and nearly messages.
bodies: SearchStrategy[bytes] = st.one_of(
    st.binary(max_size=300),
    json_values.map(lambda value: json.dumps(value).encode("ascii")),
    json_values.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    spoilt(messages),
    spoilt(manifests),
)
