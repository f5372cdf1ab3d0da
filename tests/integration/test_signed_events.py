# SPDX-License-Identifier: Apache-2.0
"""repogen signs what it alone may announce, on a real beanstalkd."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest

from reimzul.core.beanstalk import CREATEREPO, NOTIFY, Broker
from reimzul.core.errors import ConfigError
from reimzul.core.event_signature import EventKeys, add_new_key
from reimzul.core.message import BuildEvent, Status
from reimzul.core.store_paths import StorePaths
from reimzul.repogen.cli import make_daemon
from reimzul.repogen.daemon import Repogen
from tests import uploads
from tests.conftest import Beanstalkd
from tests.repogen import Rpms, as_rpms, ask, make_settings, take_messages, work
from tests.srpms import make_rpm, noarch

pytestmark = pytest.mark.usefixtures("no_rest")


@pytest.fixture
def keys(tmp_path: Path) -> EventKeys:
    made = EventKeys(add_new_key([], time.time(), 7))
    (tmp_path / "event-keys").write_text("".join(f"{key.to_line()}\n" for key in made.keys))
    return made


@pytest.fixture
def signing(tmp_path: Path, beanstalkd: Beanstalkd, keys: EventKeys, store: StorePaths) -> Repogen:
    return make_daemon(make_settings(tmp_path, beanstalkd, f"[farm]\nevent_keys = {tmp_path / 'event-keys'}\n"))


def test_what_is_published_and_what_is_rejected_is_signed(
    broker: Broker, signing: Repogen, store: StorePaths, rpms: Rpms, keys: EventKeys, tmp_path: Path
) -> None:
    first = uploads.upload(store, rpms)
    ask(broker, first)
    work(signing)
    other = as_rpms(make_rpm(tmp_path / "other", "hello", noarch("hello").replace("Summary: ", "Summary: Not ")))
    of = uploads.request(timestamp="20250102030405", srpm_sha256="5a" * 32, rebuild=False)
    ask(broker, uploads.upload(store, other, of=of))
    work(signing)
    verified = [keys.verify(event, time.time()) for event in take_messages(broker, NOTIFY)]
    events = {event.status: event for event in verified if isinstance(event, BuildEvent)}
    assert {status: event.claimed for status, event in events.items()} == {
        Status.PUBLISHED: False,
        Status.REJECTED: False,
    }
    manifest = store.place(first.place) / "build.json"
    assert events[Status.PUBLISHED].manifest_sha256 == hashlib.sha256(manifest.read_bytes()).hexdigest()


def test_a_manifest_that_cannot_be_read_is_signed_later(
    broker: Broker, signing: Repogen, store: StorePaths, rpms: Rpms, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    asked = uploads.upload(store, rpms)
    ask(broker, asked)
    with monkeypatch.context() as patch:
        patch.setattr("reimzul.core.event_signature.sha256_of", fail)
        work(signing)
    assert take_messages(broker, NOTIFY) == []
    stats = broker.tube_stats(CREATEREPO.name)
    assert (stats.delayed, stats.buried) == (1, 0)


def test_without_a_key_nothing_is_signed(broker: Broker, daemon: Repogen, store: StorePaths, rpms: Rpms) -> None:
    ask(broker, uploads.upload(store, rpms))
    work(daemon)
    (event,) = take_messages(broker, NOTIFY)
    assert event.signature == event.manifest_sha256 == ""


def test_repogen_does_not_start_without_the_key_it_is_to_sign_with(tmp_path: Path, beanstalkd: Beanstalkd) -> None:
    with pytest.raises(ConfigError, match=r"\[farm\] event_keys: /missing: no such file"):
        make_daemon(make_settings(tmp_path, beanstalkd, "[farm]\nevent_keys = /missing\n"))
