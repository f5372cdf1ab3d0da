# SPDX-License-Identifier: Apache-2.0
"""The history in MongoDB, where the original had it: database `reimzul`, collection `notify_history`.

The one place that imports pymongo. `_id` is the build's key, so an event that comes again finds its document. What
the original left in the collection stays, and its `latest_build` is heeded and taken over. Somebody else may write
too (an override): a document is only replaced while its status is the one that was read.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Optional

import attr
import pymongo
from pymongo.errors import BulkWriteError, PyMongoError

from reimzul.core.message import BuildEvent, Event, Refusal, Status
from reimzul.history.base import BuildFilter, History, HistoryUnavailable, PendingCount
from reimzul.history.build_record import OVER, Document, apply_events, group, is_over, of_refusal, with_override

#: Milliseconds until a server that is away counts as such, and that one answer may take.
CONNECT_TIMEOUT_MS, REPLY_TIMEOUT_MS = 2_000, 10_000
#: How often a batch is read and merged anew when somebody else writes the same documents.
MAX_WRITE_ROUNDS = 5
#: Documents one delete names.
DELETE_BATCH = 1_000
_DUPLICATE = 11000  # MongoDB's code of an _id that is there already
_NEWEST = [("timestamp", pymongo.DESCENDING), ("_id", pymongo.DESCENDING)]


class MongoHistory(History):
    """The history in a MongoDB database."""

    def __init__(self, url: str, *, reading: bool = False) -> None:
        """Nothing is asked of the server yet; who reads makes no indexes. Raises `HistoryAway`."""
        with _translating_errors():
            self._client: pymongo.MongoClient[Document] = pymongo.MongoClient(
                url,
                serverSelectionTimeoutMS=CONNECT_TIMEOUT_MS,
                connectTimeoutMS=CONNECT_TIMEOUT_MS,
                socketTimeoutMS=REPLY_TIMEOUT_MS,
                appname="reimzul",
            )
            self._builds = self._client["reimzul"]["notify_history"]
            self._refused = self._client["reimzul"]["refused"]
            self._owed = self._client["reimzul"]["owed"]
        self._indexed = reading

    def record(self, events: Sequence[Event]) -> None:
        """Take in events; where the server goes away in between, all of them may come again."""
        builds = [event for event in events if isinstance(event, BuildEvent)]
        with _translating_errors():
            self._index()
            for _ in range(MAX_WRITE_ROUNDS):
                before = self._load_records({event.key for event in builds})
                after = apply_events(before, builds)
                if self._save(before, after):
                    break
            else:
                raise HistoryUnavailable("MongoDB: somebody else keeps changing the same builds")
            # also of documents that are no news: a notifier that was killed may have left just this undone
            self._mark_latest({group(document) for document in {**before, **after}.values() if is_over(document)})
            self._refuse([event for event in events if isinstance(event, Refusal)])

    def find_builds(self, wanted: BuildFilter, limit: int) -> list[Document]:
        """The newest that match."""
        with _translating_errors():
            found = self._builds.find(_query(wanted), sort=_NEWEST, limit=limit)
            return [_without_id(document) for document in found]

    def iterate_builds(self, wanted: BuildFilter) -> Iterator[Document]:
        """All that match, one at a time."""
        with _translating_errors():
            for document in self._builds.find(_query(wanted)):
                yield _without_id(document)

    def find_unfinished(self) -> list[Document]:
        """All that wait or are under way."""
        with _translating_errors():
            found = self._builds.find({"status": {"$in": [Status.QUEUED, Status.BUILDING]}})
            return [_without_id(document) for document in found]

    def recent_successes(self, name: str, arch: str, limit: int) -> list[Document]:
        """The newest of a package."""
        wanted = {"srpm": _begins(f"{name}-"), "arch": arch, "status": Status.SUCCESS, "pkgname": name}
        with _translating_errors():
            return [_without_id(document) for document in self._builds.find(wanted, sort=_NEWEST, limit=limit)]

    def iterate_refusals(self) -> Iterator[Document]:
        """The messages that were none."""
        with _translating_errors():
            for document in self._refused.find({}, sort=[("at", pymongo.DESCENDING)]):
                yield _without_id(document)

    def delete_refusals(self, keys: Sequence[str]) -> None:
        """Drop these of what was refused."""
        with _translating_errors():
            for first in range(0, len(keys), DELETE_BATCH):
                self._refused.delete_many({"_id": {"$in": list(keys[first : first + DELETE_BATCH])}})

    def save_pending_counts(self, owed: Sequence[PendingCount]) -> None:
        """Keep what is owed now; a sink at a time, so that no reader finds nothing in between."""
        with _translating_errors():
            for each in owed:
                self._owed.replace_one({"_id": each.sink}, attr.asdict(each), upsert=True)
            self._owed.delete_many({"_id": {"$nin": [each.sink for each in owed]}})

    def pending_counts(self) -> list[PendingCount]:
        """What was owed last."""
        with _translating_errors():
            return [PendingCount(**_without_id(document)) for document in self._owed.find({}, sort=[("sink", 1)])]

    def override(self, srpm: str, target: str, arch: str, comment: str) -> Optional[Document]:
        """A person's word on the latest build; one that the original left is as good as ours."""
        latest = {"srpm": srpm, "target": target, "arch": arch, "latest_build": True}
        with _translating_errors():
            found = self._builds.find_one_and_update(
                latest,
                {"$set": with_override({}, comment)},
                sort=_NEWEST,
                return_document=pymongo.ReturnDocument.AFTER,
            )
        return None if found is None else _without_id(found)

    def close(self) -> None:
        """Leave."""
        with contextlib.suppress(PyMongoError):
            self._client.close()

    def _index(self) -> None:
        if self._indexed:
            return
        for name in ("status", "target", "arch", "submitter"):
            self._builds.create_index([(name, pymongo.ASCENDING), *_NEWEST])
        self._builds.create_index(_NEWEST)
        self._builds.create_index([(name, pymongo.ASCENDING) for name in ("srpm", "arch", "target")])
        self._refused.create_index([("at", pymongo.DESCENDING)])
        self._indexed = True

    def _load_records(self, keys: Collection[str]) -> dict[str, Document]:
        if not keys:
            return {}
        found = self._builds.find({"_id": {"$in": list(keys)}})
        return {document["_id"]: _without_id(document) for document in found}

    def _save(self, before: Mapping[str, Document], after: Mapping[str, Document]) -> bool:
        """Write what changed; False where a document is not any more what was read."""
        if not after:
            return True
        writes: list[Any] = [
            pymongo.ReplaceOne({"_id": key, "status": before[key]["status"]}, {"_id": key, **document})
            if key in before
            else pymongo.InsertOne({"_id": key, **document})
            for key, document in after.items()
        ]
        try:
            done = self._builds.bulk_write(writes, ordered=False)
        except BulkWriteError as error:
            if all(fault["code"] == _DUPLICATE for fault in error.details["writeErrors"]):
                return False
            raise
        return done.matched_count + done.inserted_count == len(after)

    def _mark_latest(self, groups: Collection[tuple[str, str, str]]) -> None:
        for srpm, arch, target in groups:
            mine = {"srpm": srpm, "arch": arch, "target": target}
            newest = self._builds.find_one({**mine, "status": {"$in": list(OVER)}}, sort=_NEWEST, projection=["_id"])
            if newest is None:
                continue
            self._builds.update_many(
                {**mine, "_id": {"$ne": newest["_id"]}, "latest_build": True}, {"$set": {"latest_build": False}}
            )
            self._builds.update_one(
                {"_id": newest["_id"], "latest_build": {"$ne": True}}, {"$set": {"latest_build": True}}
            )

    def _refuse(self, refusals: Sequence[Refusal]) -> None:
        writes = [
            pymongo.UpdateOne({"_id": event.key}, {"$setOnInsert": of_refusal(event)}, upsert=True)
            for event in refusals
        ]
        if writes:
            self._refused.bulk_write(writes, ordered=False)


@contextlib.contextmanager
def _translating_errors() -> Iterator[None]:
    """What pymongo says, in our own words."""
    try:
        yield
    except PyMongoError as error:
        raise HistoryUnavailable(f"MongoDB: {' '.join(str(error).split())[:300]}") from error


def _without_id(document: Mapping[str, Any]) -> Document:
    return {name: value for name, value in document.items() if name != "_id"}


def _query(wanted: BuildFilter) -> dict[str, Any]:
    query: dict[str, Any] = {
        name: getattr(wanted, name)
        for name in ("status", "target", "arch", "submitter")
        if getattr(wanted, name) is not None
    }
    if wanted.status == Status.PUBLISHED:
        query.update(status=Status.SUCCESS, published={"$gt": 0})
    if wanted.srpm is not None:
        query["srpm"] = wanted.srpm if wanted.whole_srpm else _begins(wanted.srpm)
    if wanted.since is not None:
        query["timestamp"] = {"$gte": wanted.since}
    if wanted.build_id is not None:
        query["_id"] = _begins(wanted.build_id)
    return query


def _begins(beginning: str) -> dict[str, str]:
    return {"$regex": f"^{re.escape(beginning)}"}
