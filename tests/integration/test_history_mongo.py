# SPDX-License-Identifier: Apache-2.0
"""The history in MongoDB, spoken to over its wire protocol."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymongo
import pytest

from reimzul.core.failure_cause import find_cause
from reimzul.history import BuildFilter, History, HistoryUnavailable, open_history
from tests.conftest import free_port
from tests.events import event
from tests.history_contract import HistoryContract
from tests.ini import write_ini
from tests.mongo import Mongo, mongo_or_say_so
from tests.schemas import check_line

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def mongo() -> Iterator[Mongo]:
    """One server for all of them."""
    server = mongo_or_say_so()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def collection(mongo: Mongo) -> Iterator[Any]:
    """The collection, as the original's tools see it; empty."""
    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(mongo.url)
    client["reimzul"]["notify_history"].delete_many({})
    client["reimzul"]["refused"].delete_many({})
    client["reimzul"]["counters"].delete_many({})
    yield client["reimzul"]["notify_history"]
    client.close()


@pytest.fixture
def history(mongo: Mongo, collection: Any) -> Iterator[History]:
    """An empty one."""
    opened = open_history(mongo.url)
    yield opened
    opened.close()


@pytest.fixture
def age_causes(collection: Any) -> Callable[[], None]:
    """Have all causes stored by version 0 of the rule."""

    def age() -> None:
        collection.update_many({"cause": {"$gt": ""}}, {"$set": {"cause": "00000000", "cause_version": 0}})

    return age


class TestMongo(HistoryContract):
    """The suite."""


def test_the_originals_queries_find_our_builds(history: History, collection: Any) -> None:
    history.record([event("Failed", 1), event("Published", 2), event("Building", 3), event("Failed", 4, arch="i386")])
    assert [job["timestamp"] for job in collection.find({"status": "Success", "latest_build": True})] == [
        event("Success", 2).timestamp
    ]
    assert [job["arch"] for job in collection.find({"status": "Failed", "latest_build": True})] == ["i386"]
    (building,) = collection.find({"status": "Building"})
    assert building["builder_fqdn"] == "builder1.example.org"
    assert collection.find_one({"status": "Success"})["_id"] == event("Success", 2).key


def test_what_the_original_left_there_is_no_more_the_latest(history: History, collection: Any) -> None:
    left = {
        "srpm": "time-1.7-45.el7.src.rpm", "arch": "x86_64", "target": "c7.1708.u.x86_64", "status": "Success",
        "timestamp": "20180101000000", "latest_build": True, "builder_fqdn": "old.example.org",
    }  # fmt: skip
    collection.insert_one(dict(left))
    history.record([event("Failed", 1)])
    assert [job["status"] for job in collection.find({"latest_build": True})] == ["Failed"]
    assert [job.status for job in history.find_builds(BuildFilter(), 10)] == ["Failed", "Success"]


def test_an_override_made_meanwhile_by_the_originals_tool_stays(history: History, collection: Any) -> None:
    history.record([event("Failed", 1)])
    collection.find_one_and_update(
        {"srpm": "time-1.7-45.el7.src.rpm", "latest_build": True}, {"$set": {"comment": "fine", "status": "Override"}}
    )
    history.record([event("Published", 1)])
    (document,) = history.find_builds(BuildFilter(), 10)
    assert (document.status, document.comment) == ("Override", "fine")


def test_a_server_that_is_away_is_noticed_soon() -> None:
    away = open_history(f"mongodb://127.0.0.1:{free_port()}/")
    began = time.monotonic()
    with pytest.raises(HistoryUnavailable, match="refused"):
        away.record([event("Success")])
    assert time.monotonic() - began < 4
    away.close()


#: What the original's notifier leaves of one build: an event a document, the first changed to Done by the second
#: (https://github.com/CentOS/reimzul, reimzul-notifier.py at 7b7a81e); before 2019 without a submitter.
LEFT: dict[str, Any] = {
    "srpm": "time-1.7-45.el7.src.rpm", "arch": "x86_64", "target": "c7.1708.u.x86_64", "disttag": ".el7",
    "scratch": False, "evr": "1.7-45.el7", "pkgname": "time", "timestamp": "20181105101010",
    "builder_fqdn": "old.example.org",
}  # fmt: skip


def test_the_originals_documents_are_shown_by_our_commands(mongo: Mongo, collection: Any, tmp_path: Path) -> None:
    collection.insert_one({**LEFT, "status": "Done"})
    collection.insert_one({**LEFT, "status": "Success", "latest_build": True})
    recently = time.strftime("%Y%m%d%H%M%S", time.gmtime(time.time() - 3600))
    collection.insert_one({**LEFT, "status": "Failed", "latest_build": True, "submitter": "me", "timestamp": recently})
    ini = write_ini(tmp_path / "reimzul.ini", {"history": {"url": mongo.url}})

    def run_query(*words: str) -> str:
        done = subprocess.run(
            [BIN / "reimzul", *words, "--config", ini], capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, done.stderr
        check_line(words, done.stdout)
        return done.stdout

    rows = [line.split("\t") for line in run_query("builds").splitlines()]
    assert [(row[0], row[1], row[2], row[5][:4]) for row in rows] == [
        ("-", "failed", LEFT["srpm"], recently[:4]),
        ("-", "built", LEFT["srpm"], "2018"),
        ("-", "done", LEFT["srpm"], "2018"),
    ]
    assert [job["state"] for job in json.loads(run_query("builds", "--json", "--status", "success"))] == ["built"]
    assert ": override" in run_query(
        "override", "-s", LEFT["srpm"], "-t", LEFT["target"], "-a", "x86_64", "-c", "it is fine"
    )
    assert run_query("builds", "--state", "override").startswith("-\toverride")
    history = open_history(mongo.url, reading=True)
    history.close()


def test_the_builds_of_an_earlier_version_are_numbered_and_the_originals_are_left_alone(
    history: History, collection: Any, mongo: Mongo
) -> None:
    history.record([event("Success", 1), event("Success", 2)])
    collection.update_many({}, {"$unset": {"changed": ""}})
    collection.insert_one({"srpm": "old-1-1.el7.src.rpm", "status": "Success", "target": "c7", "arch": "x86_64"})
    upgraded = open_history(mongo.url)
    upgraded.record([event("Failed", 3)])
    found = upgraded.find_changed(0, 10)
    assert sorted(record.timestamp for _, record in found) == sorted(event("Queued", n).timestamp for n in (1, 2, 3))
    assert "changed" not in collection.find_one({"srpm": "old-1-1.el7.src.rpm"})
    upgraded.close()


def test_the_failures_of_an_earlier_version_get_their_causes(history: History, collection: Any, mongo: Mongo) -> None:
    history.record([event("Failed", 1, reason="%build failed"), event("Success", 2)])
    names = (
        "attempt",
        "cause",
        "cause_text",
        "cause_version",
        "newly_failing",
        "fixed",
        "previous_build",
        "previous_evr",
    )
    collection.update_many({}, {"$unset": dict.fromkeys(names, "")})
    original = {"srpm": "old-1-1.src.rpm", "arch": "i386", "target": "c7", "status": "Failed"}
    collection.insert_one({**original, "timestamp": "20200101000000"})
    cause = find_cause("%build failed", "").id
    reader = open_history(mongo.url, reading=True)
    assert {each.cause for each in reader.iterate_failures(BuildFilter())} == {cause, find_cause("", "").id}
    reader.close()
    writer = open_history(mongo.url)
    writer.record([event("Queued", 3)])
    assert [each.cause for each in writer.find_builds(BuildFilter(arch="x86_64", states=["failed"]), 10)] == [cause]
    assert writer.count_old_causes() == 0
    writer.close()
    assert "cause" not in collection.find_one({"srpm": "old-1-1.src.rpm"}), "the original's documents stay as they are"
    assert any(index["key"][0][0] == "cause" for index in collection.index_information().values())
