# SPDX-License-Identifier: Apache-2.0
"""Messages: what encodes decodes, what is none is refused in one line, and nothing of one can be misused."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any, Callable

import attr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reimzul.core import message as messages
from reimzul.core.batch_event import BatchEvent
from reimzul.core.errors import InvalidMessage
from reimzul.core.json_message import MAX_BYTES, MAX_DEPTH, MAX_EXTRA, Message
from reimzul.core.manifest import Manifest
from reimzul.core.message import (
    BuilderEvent,
    BuildEvent,
    BuildRequest,
    FailedAttempt,
    Refusal,
    RepogenRequest,
    SignRequest,
    Status,
    WorkerHeartbeat,
    decode_event,
    event_for,
)
from reimzul.core.store_paths import StorePaths, leg_key, spool_name
from tests.unit import strategies

#: Every way bytes from outside become a message.
DECODERS: list[Callable[[bytes], Message]] = [
    BuildRequest.decode,
    decode_event,
    BuildEvent.decode,
    Refusal.decode,
    BuilderEvent.decode,
    BatchEvent.decode,
    WorkerHeartbeat.decode,
    RepogenRequest.decode,
    SignRequest.decode,
    Manifest.decode,
]

#: As the original's submit command puts it.
REQUEST: dict[str, Any] = {
    "srpm": "time-1.7-45.el7.src.rpm",
    "arch": "x86_64",
    "target": "c7.1708.u.x86_64",
    "disttag": ".el7",
    "scratch": False,
    "submitter": "johnny",
}
#: As the original's worker puts it: what it was asked, and what became of it.
EVENT: dict[str, Any] = {
    **REQUEST,
    "status": "Success",
    "builder_fqdn": "builder1.example.org",
    "evr": "1.7-45.el7",
    "pkgname": "time",
    "timestamp": "20170913124500",
}
SIGN: dict[str, Any] = {key: EVENT[key] for key in ("pkgname", "status", "target", "arch", "timestamp")}


def body(wire: Any) -> bytes:
    return json.dumps(wire).encode("ascii")


# --- what encodes decodes


@given(strategies.messages)
def test_what_encodes_decodes_to_the_same(sound: Message) -> None:
    encoded = sound.encode()
    assert encoded.decode("ascii").isprintable(), "one line of ASCII"
    again = type(sound).decode(encoded)
    assert again == sound
    assert again.extra == sound.extra


@given(
    strategies.build_events
    | strategies.refusals
    | strategies.builder_events
    | strategies.batch_events
    | strategies.presences
)
def test_each_kind_of_news_is_known_from_the_others(event: messages.NotifyMessage) -> None:
    assert decode_event(event.encode()) == event


@given(strategies.manifests)
def test_a_manifest_reads_back_from_its_text(manifest: Manifest) -> None:
    assert Manifest.decode(manifest.to_text().encode("ascii")) == manifest


@given(strategies.messages, st.text(min_size=1, max_size=20), strategies.json_values)
def test_a_key_of_a_later_version_travels_on_untouched(sound: Message, key: str, value: Any) -> None:
    known = {a.name for a in attr.fields(type(sound))} - {"extra"}
    if key not in known:
        decoded = type(sound).decode(body({**sound.to_json(), key: value}))
        assert json.loads(decoded.encode())[key] == value


def test_a_key_called_extra_is_one_like_any_other() -> None:
    decoded = SignRequest.decode(body({**SIGN, "extra": {"a": 1}}))
    assert decoded.to_json()["extra"] == {"a": 1}


# --- any bytes whatever


@given(strategies.bodies)
def test_any_bytes_are_a_message_or_one_line_of_refusal(bytes_: bytes) -> None:
    for decode in DECODERS:
        _message_or_refusal(decode, bytes_)


def _message_or_refusal(decode: Callable[[bytes], Message], bytes_: bytes) -> None:
    try:
        decoded = decode(bytes_)
    except InvalidMessage as error:
        said = str(error)
        assert said
        assert said.isprintable(), said
        assert len(said) < 1000
    else:
        assert type(decoded).decode(json.dumps(decoded.to_json()).encode()) == decoded


HOSTILE = {
    "nothing": b"",
    "a number": b"17",
    "null": b"null",
    "a list": b"[]",
    "a text": b'"{}"',
    "not UTF-8": b'{"target": "\xff"}',
    "UTF-16": '{"target": "c7.x86_64"}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "NaN": b'{"target": NaN}',
    "Infinity": b'{"target": "c7.x86_64", "x": Infinity}',
    "a number beyond floats": b'{"target": "c7.x86_64", "x": 1e999}',
    "a huge number": b'{"target": "c7.x86_64", "tries": ' + b"9" * 60_000 + b"}",
    "a large number": b'{"target": "c7.x86_64", "tries": ' + b"9" * 4_000 + b"}",
    "nested to the brim": b"[" * 30_000 + b"]" * 30_000,
    "nested and known": b'{"target": ' + b"[" * 900 + b"]" * 900 + b"}",
    "nested and unknown": b'{"target": "c7.x86_64", "x": ' + b'{"a":' * 200 + b"1" + b"}" * 200 + b"}",
    "half a surrogate": rb'{"target": "\ud800"}',
    "truth for a number": b'{"target": "c7.x86_64", "tries": true}',
    "a number for truth": b'{"target": "c7.x86_64", "index": 1}',
    "60 KB of noise": bytes(range(256)) * 240,
    "60 KB of a": b'"' + b"a" * 60_000 + b'"',
    "60 KB along": b'{"target": "c7.x86_64", "x": "' + b"a" * 60_000 + b'"}',
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_hostile_bytes_are_refused_by_all(hostile: bytes) -> None:
    for decode in DECODERS:
        with pytest.raises(InvalidMessage) as refused:
            decode(hostile)
        assert str(refused.value).isprintable()


@given(st.integers(0, 3 * MAX_DEPTH), st.sampled_from(["[", '{"a":']))
def test_nesting_is_no_matter_of_how_much_the_interpreter_bears(depth: int, opening: str) -> None:
    closing = "]" if opening == "[" else "}"
    nested = b'{"target": "c7.x86_64", "x": ' + (opening * depth + "1" + closing * depth).encode() + b"}"
    if depth < MAX_DEPTH:
        decoded = RepogenRequest.decode(nested)
        assert RepogenRequest.decode(decoded.encode()) == decoded
    else:
        with pytest.raises(InvalidMessage, match="nested"):
            RepogenRequest.decode(nested)


@pytest.mark.parametrize(
    ("decode", "needed"),
    [
        (BuildRequest.decode, ["srpm", "arch", "target", "disttag", "submitter"]),
        (decode_event, ["srpm", "arch", "target", "status", "submitter"]),
        (RepogenRequest.decode, ["target"]),
        (SignRequest.decode, ["pkgname", "status", "target", "arch", "timestamp"]),
    ],
)
def test_missing_keys_are_all_named(decode: Callable[[bytes], Message], needed: list[str]) -> None:
    with pytest.raises(InvalidMessage) as refused:
        decode(b"{}")
    assert str(refused.value).endswith(f"missing {', '.join(needed)}")


@pytest.mark.parametrize("missing", ["build_id", "arch", "attempt", "place"])
def test_what_names_a_leg_comes_together(missing: str) -> None:
    leg = {
        "target": "c7.x86_64",
        "build_id": "0" * 32,
        "arch": "i386",
        "attempt": "1-00000000",
        "place": "repo/c7.x86_64/time/20170913124500/1-1.i386",
    }
    assert RepogenRequest.decode(body(leg)).build_id
    with pytest.raises(InvalidMessage, match="come together"):
        RepogenRequest.decode(body({key: value for key, value in leg.items() if key != missing}))


# --- the original's messages


def test_the_originals_request() -> None:
    request = BuildRequest.decode(body(REQUEST))
    assert {key: getattr(request, key) for key in REQUEST} == REQUEST
    assert not request.has_id
    assert request.to_json() == {**REQUEST, "rebuild": True}


@pytest.mark.parametrize("status", ["Building", "Success", "Failed"])
def test_the_originals_event(status: str) -> None:
    event = decode_event(body({**EVENT, "status": status}))
    assert isinstance(event, BuildEvent)
    assert {key: getattr(event, key) for key in EVENT} == {**EVENT, "status": status}
    assert json.loads(event.encode()) == {**EVENT, "status": status}


def test_the_originals_regeneration() -> None:
    request = RepogenRequest.decode(b'{"target": "c7.1708.u.x86_64"}')
    assert request.is_bare
    assert request.index


def test_the_originals_sign_request() -> None:
    request = SignRequest.decode(body(SIGN))
    assert {key: getattr(request, key) for key in SIGN} == SIGN
    assert not request.build_id


# --- nothing that decodes leaves its folder or becomes an option

#: The fields that become part of a path, a URL or a command line.
WORDS = (
    "srpm", "arch", "target", "disttag", "build_id", "timestamp", "builder_fqdn", "pkgname", "evr",
    "attempt", "srpm_sha256", "host",
)  # fmt: skip


@given(st.one_of(strategies.spoilt(strategies.messages), strategies.messages.map(lambda sound: sound.encode())))
def test_no_word_of_a_message_is_an_option_or_a_path(bytes_: bytes) -> None:
    for decode in DECODERS:
        try:
            decoded = decode(bytes_)
        except InvalidMessage:
            continue
        for name in WORDS:
            assert_word(getattr(decoded, name, ""))
        assert_stays_inside(getattr(decoded, "place", ""))


@given(strategies.manifests)
def test_no_word_of_a_manifest_is_an_option_or_a_path(manifest: Manifest) -> None:
    """Of one that was made here, too: a worker fills it from a header it was sent."""
    for word in (manifest.arch, manifest.pkgname, manifest.evr, manifest.attempt, *(f.name for f in manifest.files)):
        assert_word(word)
    assert_stays_inside(manifest.place())


def assert_word(word: Any) -> None:
    assert isinstance(word, str)
    assert word.isprintable()
    assert word.isascii()
    assert " " not in word
    assert not word.startswith("-")
    assert "/" not in word
    assert word not in (".", "..")


def assert_stays_inside(place: str) -> None:
    if place:
        store = StorePaths(PurePosixPath("/srv/store"))  # type: ignore[arg-type]
        folder = store.place(place)
        assert folder.parts[:3] == ("/", "srv", "store")
        assert folder.parts[3] in ("repo", "scratch")
        assert ".." not in folder.parts
        assert len(folder.parts) == 8
        assert place.isprintable()
        assert "//" not in place


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("srpm", "../time-1-1.src.rpm"),
        ("srpm", "/etc/time-1-1.src.rpm"),
        ("srpm", "-rf.src.rpm"),
        ("srpm", "time-1-1.x86_64.rpm"),
        ("srpm", "time-1-1.src.rpm\n"),
        ("srpm", "a b.src.rpm"),
        ("srpm", ".src.rpm"),
        ("srpm", "x" * 200 + ".src.rpm"),
        ("target", "../x"),
        ("target", "x; touch y"),
        ("target", ".."),
        ("target", "--delete"),
        ("target", "x\u200by"),
        ("target", ""),
        ("arch", "x86_64/.."),
        ("arch", "X86"),
        ("arch", None),
        ("disttag", ".el 7"),
        ("disttag", "..el7"),
        ("disttag", "%(id)"),
        ("submitter", "-o"),
        ("submitter", "a\r\nBcc: b"),
        ("submitter", "a\u202eb"),
        ("submitter", "a" * 65),
        ("submitter", " "),
        ("submitter", None),
        ("scratch", "False"),
        ("scratch", 0),
        ("build_id", "0" * 31),
        ("build_id", "0" * 31 + "G"),
        ("build_id", None),
        ("timestamp", "20170230000000"),
        ("timestamp", "2017091312450"),
        ("timestamp", 20170913124500),
        ("timestamp", "２０１７０９１３１２４５００"),
        ("srpm_sha256", "abc"),
        ("tries", [{"builder": "b1"}]),
        ("tries", [{"builder": "b1", "when": True, "words": ""}]),
        ("tries", {}),
        ("tries", [{"builder": "b1", "when": 1, "words": ""}] * 51),
    ],
)
def test_a_field_that_is_not_what_it_may_be_is_named(key: str, bad: Any) -> None:
    with pytest.raises(InvalidMessage, match=f"^not a BuildRequest: {key}: "):
        BuildRequest.decode(body({**REQUEST, key: bad}))


@pytest.mark.parametrize("name", ["CORP\\jdoe", "John Doe", "José", "山田　太郎", ""])
def test_an_old_clients_submitter_is_taken_whatever_its_name(name: str) -> None:
    request = BuildRequest.decode(body({**REQUEST, "submitter": name}))
    assert request.submitter == (name or "unknown")
    told = {"srpm": "a-1-1.src.rpm", "arch": "i386", "target": "c7.i386", "status": "Failed", "submitter": name}
    event = decode_event(body(told))
    assert isinstance(event, BuildEvent)
    assert event.submitter == (name or "unknown")
    assert decode_event(event.encode()) == event


@given(strategies.build_ids, strategies.arches, strategies.attempts)
def test_a_spool_folder_is_known_by_its_leg(build_id: str, arch: str, attempt: str) -> None:
    name = spool_name(build_id, arch, attempt)
    assert_word(name)
    assert name.rpartition(".")[0] == leg_key(build_id, arch)


# --- sizes


@pytest.mark.parametrize("letter", ["a", "\n", "é", "\U0001f6a7", '"'])
@pytest.mark.parametrize("skipped", [0, 20])
def test_an_event_always_fits_and_loses_only_ends_and_lists(letter: str, skipped: int) -> None:
    full = BuildEvent(
        **EVENT,
        reason=letter * 500,
        url=letter * 1000,
        rpms=(letter * 300,) * 50,
        root_log=letter * 8_000,
        build_log=letter * 20_000 + "END",
        first_error=letter * 4_000,
        skipped={f"arch{number}": letter * 200 for number in range(skipped)},
        extra={"x": "a" * (MAX_EXTRA - 10)},
    )
    encoded = full.encode()
    assert len(encoded) <= MAX_BYTES
    kept = BuildEvent.decode(encoded)
    ends = ("root_log", "build_log", "first_error", "rpms")
    assert all(getattr(full, name).endswith(getattr(kept, name)) for name in ends[:3])
    assert set(kept.rpms) <= set(full.rpms)
    whole = {name: getattr(full, name) for name in ends}
    assert kept.skipped in (full.skipped, {})
    assert attr.evolve(kept, **whole, skipped=full.skipped) == full


def test_an_event_that_fits_is_not_cut() -> None:
    event = attr.evolve(BuildEvent.decode(body(EVENT)), build_log="a" * 24_000, root_log="b" * 8_000)
    assert BuildEvent.decode(event.encode()) == event


def test_a_log_that_is_too_long_keeps_its_end() -> None:
    event = BuildEvent.decode(body({**EVENT, "build_log": "x" * 30_000 + "the error"}))
    assert len(event.build_log) == 24_000
    assert event.build_log.endswith("the error")


def test_what_travels_along_leaves_room_for_an_event() -> None:
    room = MAX_EXTRA - len('{"x":""}')
    request = BuildRequest.decode(body({**REQUEST, "x": "a" * room}))
    assert event_for(request, Status.BUILDING).encode()
    with pytest.raises(InvalidMessage, match="unknown keys"):
        BuildRequest.decode(body({**REQUEST, "x": "a" * (room + 1)}))


def test_what_would_not_fit_a_tube_is_not_encoded() -> None:
    words = "\u4e00" * 300
    request = BuildRequest(**REQUEST, tries=(FailedAttempt(builder="b1", when=1, words=words),) * 50)
    with pytest.raises(InvalidMessage, match="60000 is the most"):
        request.encode()


# --- the build of an old client


@given(st.integers(0, 10**9), st.integers(0, 59), st.integers(0, 59))
def test_a_derived_build_is_the_same_within_a_minute(minute: int, first: int, second: int) -> None:
    request = BuildRequest.decode(body(REQUEST))
    builds = {request.with_id(7, "x86_64", body(REQUEST), 60 * minute + at).build_id for at in (first, second)}
    assert len(builds) == 1


def test_derived_builds_differ_across_jobs_tubes_bodies_and_minutes() -> None:
    request = BuildRequest.decode(body(REQUEST))
    put = (7, "x86_64", body(REQUEST), 60_000.0)
    others = [(8, *put[1:]), (7, "i386", *put[2:]), (7, "x86_64", b"{}", 60_000.0), (*put[:3], 60_060.0)]
    assert len({request.with_id(*one).build_id for one in (put, *others)}) == 5


def test_completing_gives_what_lacks_and_changes_nothing_else() -> None:
    old = BuildRequest.decode(body({**REQUEST, "x": 1}))
    completed = old.with_id(7, "x86_64", body(REQUEST), 1_505_306_759.9)
    assert completed.has_id
    assert completed.timestamp == "20170913124500"
    assert attr.evolve(completed, build_id="", timestamp="") == old
    assert completed.with_id(8, "i386", b"", 0.0) == completed


# --- what an event takes from its request


@given(strategies.complete_requests)
def test_an_event_says_what_its_request_said(request: BuildRequest) -> None:
    event = event_for(request, Status.FAILED, reason="because", arch="i386")
    assert (event.srpm, event.target, event.build_id) == (request.srpm, request.target, request.build_id)
    assert (event.status, event.reason, event.arch) == ("Failed", "because", "i386")
    known = {a.name for a in attr.fields(BuildEvent)}
    assert event.extra == {name: value for name, value in request.extra.items() if name not in known}
    assert decode_event(event.encode()) == event


def test_no_unknown_key_of_a_request_is_read_as_its_events_own() -> None:
    request = BuildRequest.decode(body({**REQUEST, "phases": "x", "owed": 1, "extra": 2, "colour": "red"}))
    event = decode_event(event_for(request, Status.BUILDING).encode())
    assert event.extra == {"extra": 2, "colour": "red"}
    assert request.to_json()["phases"] == "x", "it travels on with the request"


def test_a_build_is_known_by_its_id_and_arch() -> None:
    event = BuildEvent.decode(body({**EVENT, "build_id": "0" * 32}))
    assert event.key == "0" * 32 + ".x86_64"


def test_a_build_of_the_original_is_known_by_its_words() -> None:
    building, success = (BuildEvent.decode(body({**EVENT, "status": status})) for status in ("Building", "Success"))
    other = BuildEvent.decode(body({**EVENT, "timestamp": "20170913124501"}))
    assert building.key == success.key != other.key


def test_a_builders_fault_is_told_from_an_uploads() -> None:
    request = (
        BuildRequest.decode(body(REQUEST))
        .with_failed_attempt("b1", "no disk")
        .with_failed_attempt("b2", f"{messages.UPLOAD}sha256")
    )
    assert [one.builder for one in request.tries] == ["b1", "b2"]
    assert [one.builder for one in request.builder_faults] == ["b1"]


def test_tokens_are_new_each_time() -> None:
    assert len({messages.new_build_id() for _ in range(100)}) == 100
    assert len({messages.new_attempt() for _ in range(100)}) == 100


def test_only_the_last_try_carries_its_first_error_and_unknown_keys_of_one_are_left() -> None:
    asked = BuildRequest(srpm="a-1-1.src.rpm", arch="x86_64", target="c7.x86_64", disttag=".el7", submitter="root")
    twice = asked.with_failed_attempt("b1", "one", "text of one", "line of one").with_failed_attempt(
        "b2", "two", "x" * 9_000, "line of two"
    )
    assert [(one.first_error[:4], one.error_line) for one in twice.tries] == [("", ""), ("xxxx", "line of two")]
    assert len(twice.tries[1].first_error) == 2_000
    old: Any = {"builder": "b1", "when": 1.0, "words": "one", "of_a_newer_worker": 3}
    assert attr.evolve(asked, tries=(old,)).tries[0].words == "one"
