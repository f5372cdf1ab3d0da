# SPDX-License-Identifier: Apache-2.0
"""The history in MongoDB, where the original kept it: database `reimzul`, collection `notify_history`.

Only this module imports pymongo. `_id` is the build's key, so a repeated event finds its document. Documents that the
original left in the collection stay, and their `latest_build` is honoured and updated. Other programs may write too (an
override): a document is replaced only if its status is still the one that was read.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Optional

import attr
import pymongo
from pymongo.errors import BulkWriteError, PyMongoError

from reimzul.core.errors import translate_errors
from reimzul.core.failure_cause import CAUSE_VERSION
from reimzul.core.message import BuildEvent, Event, Refusal, Status
from reimzul.core.validators import package_of
from reimzul.history import BuildFilter, FailedBuild, History, HistoryUnavailable, is_pattern
from reimzul.history.build_record import (
    EXPLANATION,
    FAILURES,
    OVER,
    BuildRecord,
    BuildState,
    RefusalRecord,
    apply_events,
    with_cause,
)

#: Milliseconds until a server counts as unreachable, and that one reply may take.
CONNECT_TIMEOUT_MS, REPLY_TIMEOUT_MS = 2_000, 10_000
#: How often a batch is read and merged again because another program writes the same documents.
MAX_WRITE_ROUNDS = 5
#: Documents that one delete names.
DELETE_BATCH = 1_000
#: A state in `BuildFilter.statuses` that is stored as `Queued`.
_HELD = BuildState.HELD.capitalize()
_DUPLICATE_KEY = 11000  # MongoDB's error code
#: The number of a document's last write (`History.find_changed`), and the counter that gives these numbers.
_CHANGED = "changed"
_COUNTER = {"_id": "notify_history.changed"}
#: Documents that are numbered at once where an earlier version has left them without.
_NUMBER_BATCH = 1_000
#: Failures whose cause is not by this version of the rule; those of the original have no build id, and stay.
_OLD_CAUSES = {
    "status": {"$in": list(FAILURES)}, "build_id": {"$gt": ""}, "cause_version": {"$ne": CAUSE_VERSION},
}  # fmt: skip
_NEWEST = [("timestamp", pymongo.DESCENDING), ("_id", pymongo.DESCENDING)]


class MongoHistory(History):
    def __init__(self, url: str, *, reading: bool = False) -> None:
        """Connect with the first query. With `reading` no indexes are created. Raises `HistoryUnavailable`."""
        with _translating_errors():
            self._client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(
                url,
                serverSelectionTimeoutMS=CONNECT_TIMEOUT_MS,
                connectTimeoutMS=CONNECT_TIMEOUT_MS,
                socketTimeoutMS=REPLY_TIMEOUT_MS,
                appname="reimzul",
            )
            self._builds = self._client["reimzul"]["notify_history"]
            self._refused = self._client["reimzul"]["refused"]
            self._counters = self._client["reimzul"]["counters"]
        self._is_indexed = reading

    def record(self, events: Sequence[Event]) -> None:
        builds = [event for event in events if isinstance(event, BuildEvent)]
        refusals = [RefusalRecord.from_event(event) for event in events if isinstance(event, Refusal)]
        with _translating_errors():
            self._create_indexes()
            for _ in range(MAX_WRITE_ROUNDS):
                before = self._load_records({event.key for event in builds})
                after = apply_events(before, builds)
                if self._save(before, after):
                    break
            else:
                raise HistoryUnavailable("MongoDB: another program keeps changing the same builds")
            # also for unchanged records: a notifier that was killed may not have got to this
            self._mark_latest({record.group for record in {**before, **after}.values() if record.is_over})
            if refusals:
                writes = [
                    pymongo.UpdateOne({"_id": each.key}, {"$setOnInsert": each.to_document()}, upsert=True)
                    for each in refusals
                ]
                self._refused.bulk_write(writes, ordered=False)

    def find_builds(self, wanted: BuildFilter, limit: int) -> list[BuildRecord]:
        return list(self._find(_query(wanted), sort=_NEWEST, limit=limit))

    def iterate_builds(self, wanted: BuildFilter) -> Iterator[BuildRecord]:
        return self._find(_query(wanted))

    def find_unfinished(self) -> list[BuildRecord]:
        return list(self._find({"status": {"$in": [Status.QUEUED, Status.BUILDING]}}))

    def iterate_failures(self, wanted: BuildFilter, cause: str = "") -> Iterator[FailedBuild]:
        query = _query(attr.evolve(wanted, states=[BuildState.FAILED]))
        about = {"cause_version": CAUSE_VERSION, "cause": _prefix(cause) if cause else {"$gt": ""}}
        names = ["timestamp", "target", "pkgname", "srpm", *about]
        with _translating_errors():
            for found in self._builds.find({**query, **about}, projection=names):
                build_id, _, arch = str(found["_id"]).partition(".")
                package = found.get("pkgname") or package_of(found["srpm"])
                yield FailedBuild(build_id, arch, found["timestamp"], found["target"], package, found["cause"])
        for record in self._find({**query, "cause_version": {"$ne": CAUSE_VERSION}}):
            if (failed := FailedBuild.from_record(record)).cause.startswith(cause):
                yield failed

    def count_old_causes(self) -> int:
        with _translating_errors():
            return self._builds.count_documents(_OLD_CAUSES)

    def find_old_causes(self, limit: int) -> dict[str, BuildRecord]:
        with _translating_errors():
            found = list(self._builds.find(_OLD_CAUSES, limit=limit))
            return {document["_id"]: BuildRecord.from_document(_to_plain(document)) for document in found}

    def store_causes(self, records: Mapping[str, BuildRecord]) -> None:
        if not records:
            return
        with _translating_errors():
            first = self._take_numbers(len(records))
            writes = []
            for number, (key, record) in enumerate(records.items(), first):
                same = {"_id": key, "status": record.status, "attempt": record.attempt or {"$in": ["", None]}}
                explanation = {name: getattr(with_cause(record), name) for name in EXPLANATION}
                writes.append(pymongo.UpdateOne(same, {"$set": {**explanation, _CHANGED: number}}))
            self._builds.bulk_write(writes, ordered=False)

    def recent_successes(self, name: str, arch: str, limit: int) -> list[BuildRecord]:
        wanted = {"srpm": _prefix(f"{name}-"), "arch": arch, "status": Status.SUCCESS, "pkgname": name}
        return list(self._find(wanted, sort=_NEWEST, limit=limit))

    def iterate_refusals(self) -> Iterator[RefusalRecord]:
        with _translating_errors():
            for document in self._refused.find({}, sort=[("at", pymongo.DESCENDING)]):
                yield RefusalRecord.from_document(_to_plain(document))

    def delete_refusals(self, keys: Sequence[str]) -> None:
        with _translating_errors():
            for first in range(0, len(keys), DELETE_BATCH):
                self._refused.delete_many({"_id": {"$in": list(keys[first : first + DELETE_BATCH])}})

    def list_targets(self) -> list[str]:
        with _translating_errors():
            return sorted(map(str, self._builds.distinct("target")))

    def override(self, srpm: str, target: str, arch: str, comment: str, build_id: str = "") -> Optional[BuildRecord]:
        which = {"build_id": build_id, "status": {"$in": list(OVER)}} if build_id else {"latest_build": True}
        # in one step, and on the original's documents too
        with _translating_errors():
            found = self._builds.find_one_and_update(
                {"srpm": srpm, "target": target, "arch": arch, **which},
                {"$set": {"status": Status.OVERRIDE, "comment": comment, _CHANGED: self._take_numbers(1)}},
                sort=_NEWEST,
                return_document=pymongo.ReturnDocument.AFTER,
            )
        return None if found is None else BuildRecord.from_document(_to_plain(found))

    def find_changed(self, after: int, limit: int) -> list[tuple[int, BuildRecord]]:
        with _translating_errors():
            found = self._builds.find({_CHANGED: {"$gt": after}}, sort=[(_CHANGED, pymongo.ASCENDING)], limit=limit)
            return [(document[_CHANGED], BuildRecord.from_document(_to_plain(document))) for document in found]

    def last_change(self) -> int:
        with _translating_errors():
            counter = self._counters.find_one(_COUNTER)
        return 0 if counter is None else int(counter["value"])

    def close(self) -> None:
        with contextlib.suppress(PyMongoError):
            self._client.close()

    def _create_indexes(self) -> None:
        if self._is_indexed:
            return
        for name in ("status", "target", "arch", "submitter"):
            self._builds.create_index([(name, pymongo.ASCENDING), *_NEWEST])
        self._builds.create_index(_NEWEST)
        self._builds.create_index([("batch", pymongo.ASCENDING), *_NEWEST], sparse=True)
        self._builds.create_index([(name, pymongo.ASCENDING) for name in ("srpm", "arch", "target")])
        self._refused.create_index([("at", pymongo.DESCENDING)])
        self._builds.create_index([(_CHANGED, pymongo.ASCENDING)])
        self._builds.create_index([("cause", pymongo.ASCENDING), *_NEWEST], sparse=True)
        self._number_unnumbered()
        while self._builds.find_one({**_OLD_CAUSES, "cause_version": None}, projection=["_id"]):
            self.store_causes(self.find_old_causes(_NUMBER_BATCH))
        self._is_indexed = True

    def _number_unnumbered(self) -> None:
        """Number the builds that an earlier version has recorded; the original's have no build id, and stay."""
        unnumbered = {_CHANGED: None, "build_id": {"$gt": ""}}
        while found := list(self._builds.find(unnumbered, projection=["_id"], limit=_NUMBER_BATCH)):
            first = self._take_numbers(len(found))
            writes = [
                pymongo.UpdateOne({"_id": each["_id"], _CHANGED: None}, {"$set": {_CHANGED: number}})
                for number, each in enumerate(found, first)
            ]
            self._builds.bulk_write(writes, ordered=False)

    def _take_numbers(self, count: int) -> int:
        """Take so many numbers for writes that follow; return the first."""
        counter: Any = self._counters.find_one_and_update(
            _COUNTER, {"$inc": {"value": count}}, upsert=True, return_document=pymongo.ReturnDocument.AFTER
        )
        return int(counter["value"]) - count + 1

    def _find(self, query: Mapping[str, Any], **options: Any) -> Iterator[BuildRecord]:
        with _translating_errors():
            for document in self._builds.find(query, **options):
                yield BuildRecord.from_document(_to_plain(document))

    def _load_records(self, keys: Collection[str]) -> dict[str, BuildRecord]:
        if not keys:
            return {}
        found = self._builds.find({"_id": {"$in": list(keys)}})
        return {document["_id"]: BuildRecord.from_document(_to_plain(document)) for document in found}

    def _save(self, before: Mapping[str, BuildRecord], after: Mapping[str, BuildRecord]) -> bool:
        """Write the changed records; return False if one of their documents has changed since it was read."""
        if not after:
            return True
        numbers = itertools.count(self._take_numbers(len(after)))
        documents = {key: {"_id": key, **each.to_document(), _CHANGED: next(numbers)} for key, each in after.items()}
        writes: list[Any] = [
            pymongo.ReplaceOne({"_id": key, "status": before[key].status}, document)
            if key in before
            else pymongo.InsertOne(document)
            for key, document in documents.items()
        ]
        try:
            done = self._builds.bulk_write(writes, ordered=False)
        except BulkWriteError as error:
            if all(fault["code"] == _DUPLICATE_KEY for fault in error.details["writeErrors"]):
                return False
            raise
        return done.matched_count + done.inserted_count == len(after)

    def _mark_latest(self, groups: Iterable[tuple[str, str, str]]) -> None:
        for srpm, arch, target in groups:
            group = {"srpm": srpm, "arch": arch, "target": target}
            newest = self._builds.find_one({**group, "status": {"$in": list(OVER)}}, sort=_NEWEST, projection=["_id"])
            if newest is None:
                continue
            others = {**group, "_id": {"$ne": newest["_id"]}, "latest_build": True}
            for each in self._builds.find(others, projection=["_id"]):
                self._set_latest(each, False)
            unmarked = {"_id": newest["_id"], "latest_build": {"$ne": True}}
            if self._builds.find_one(unmarked, projection=["_id"]):
                self._set_latest(unmarked, True)

    def _set_latest(self, which: Mapping[str, Any], is_latest: bool) -> None:
        self._builds.update_one(which, {"$set": {"latest_build": is_latest, _CHANGED: self._take_numbers(1)}})


def _translating_errors() -> AbstractContextManager[None]:
    return translate_errors(
        {PyMongoError: lambda error: HistoryUnavailable(f"MongoDB: {' '.join(str(error).split())[:300]}")}
    )


def _to_plain(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document without what the history adds to a record."""
    return {name: value for name, value in document.items() if name not in ("_id", _CHANGED)}


def _query(wanted: BuildFilter) -> dict[str, Any]:
    query: dict[str, Any] = {}
    if wanted.states is not None:
        query.update(_state_query(wanted))
    if wanted.targets is not None:
        names = [re.compile(_to_regex(each)) if is_pattern(each) else each for each in wanted.targets]
        query["target"] = {"$in": names}
    for name in ("arch", "submitter"):
        if (value := getattr(wanted, name)) is not None:
            query[name] = _match(value)
    if wanted.srpm is not None:
        whole = wanted.is_whole_srpm or is_pattern(wanted.srpm)
        query["srpm"] = _match(wanted.srpm) if whole else _prefix(wanted.srpm)
    between = {"$gte": wanted.since, "$lt": wanted.until}
    if given := {name: value for name, value in between.items() if value is not None}:
        query["timestamp"] = given
    if wanted.build_id is not None:
        query["_id"] = _prefix(wanted.build_id)
    if wanted.batch is not None:
        query["batch"] = _prefix(wanted.batch) if wanted.batch else {"$in": [None, ""]}
    return query


def _state_query(wanted: BuildFilter) -> dict[str, Any]:
    """The original's documents, and those of version 0.1, lack keys that are looked at here."""
    plain = [status for status in wanted.statuses if status not in (Status.QUEUED, _HELD)]
    terms: list[dict[str, Any]] = [{"status": {"$in": plain}}] if plain else []
    chosen = {Status.QUEUED, _HELD} & set(wanted.statuses)
    if chosen:
        held = {} if len(chosen) == 2 else {"held": True if _HELD in chosen else {"$ne": True}}
        terms.append({"status": Status.QUEUED, **held})
    if wanted.needs_published is not None:
        published: Any = {"$gt": 0} if wanted.needs_published else {"$in": [0, None]}
        terms.append({"status": Status.SUCCESS, "published": published})
    return {"$or": terms} if len(terms) > 1 else terms[0] if terms else {"status": {"$in": []}}


def _match(wanted: str) -> Any:
    return {"$regex": _to_regex(wanted)} if is_pattern(wanted) else wanted


def _to_regex(pattern: str) -> str:
    """Return a pattern of `*` and `?` as a regular expression; an index finds what is before the first of them."""
    return "^" + re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".") + "$"


def _prefix(text: str) -> dict[str, str]:
    return {"$regex": f"^{re.escape(text)}"}
