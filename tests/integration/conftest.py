# SPDX-License-Identifier: Apache-2.0
"""What several parts are tested with: an authority and a mosquitto, a builder and its listener, repogen's store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from reimzul.core.beanstalk import Broker
from reimzul.core.settings import RepogenSettings, Settings
from reimzul.core.store_paths import StorePaths
from reimzul.repogen.cli import make_daemon
from reimzul.repogen.daemon import Repogen
from reimzul.store.createrepo import CreaterepoRunner, RunRecord
from tests import srpms, uploads
from tests.builder import Ears, Host
from tests.conftest import Beanstalkd
from tests.mosquitto import Authority, Mosquitto
from tests.repogen import Rpms, as_rpms, make_settings


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Whom all trust."""
    return Authority(tmp_path_factory.mktemp("authority") / "ca")


@pytest.fixture
def mosquitto(tmp_path: Path, authority: Authority) -> Iterator[Mosquitto]:
    """A broker that runs."""
    server = Mosquitto(tmp_path, authority)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Real packages: a source rpm that is compiled, a noarch one, and binary packages for mock to leave."""
    folder = tmp_path_factory.mktemp("packages")
    return {
        "hello": srpms.make_srpm(folder, "hello", srpms.compiled("hello")),
        "just64": srpms.make_srpm(folder, "just64", srpms.compiled("just64", build_arch="x86_64")),
        "zig": srpms.make_srpm(folder, "zig", srpms.compiled("zig", exclusive_arch="%{zig_arches}")),
        "plain": srpms.make_srpm(folder, "plain", srpms.noarch("plain")),
        "plain.noarch": srpms.make_rpm(folder, "plain", srpms.noarch("plain")),
    }


@pytest.fixture
def host(tmp_path: Path, beanstalkd: Beanstalkd, broker: Broker, packages: dict[str, Path]) -> Iterator[Host]:
    """A builder with sources in incoming/ and a target for x86_64 and i386."""
    builder = Host(tmp_path, beanstalkd)
    for name in ("hello", "plain", "just64", "zig"):
        (builder.incoming / packages[name].name).write_bytes(packages[name].read_bytes())
    for name in ("c9.x86_64", "c9.i386"):
        builder.target(name)
        builder.mock.plan(name, rpms=[packages["plain.noarch"], packages["hello"]])
    yield builder
    builder.close()


@pytest.fixture
def ears(beanstalkd: Beanstalkd, broker: Broker) -> Iterator[Ears]:
    """A listener on a connection of its own."""
    listener = Ears(beanstalkd)
    yield listener
    listener.broker.close()


# --- repogen and its store


@pytest.fixture(scope="session")
def rpms(tmp_path_factory: pytest.TempPathFactory) -> Rpms:
    """A real package, as `uploads.upload` takes it."""
    return as_rpms(srpms.make_rpm(tmp_path_factory.mktemp("rpms"), "hello", srpms.noarch("hello")))


@pytest.fixture
def settings(tmp_path: Path, beanstalkd: Beanstalkd) -> Settings:
    """Settings of a store in a folder of its own."""
    return make_settings(tmp_path, beanstalkd)


@pytest.fixture
def store(settings: Settings) -> StorePaths:
    """The store of these settings, with all its folders."""
    return uploads.make_store(settings.bstore.root)


@pytest.fixture
def daemon(settings: Settings, store: StorePaths) -> Repogen:
    """A repogen that is not running."""
    return make_daemon(settings)


@pytest.fixture
def runner(store: StorePaths) -> CreaterepoRunner:
    """createrepo_c with the default settings."""
    return CreaterepoRunner(store=store, settings=RepogenSettings())


@pytest.fixture
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Index what a test asks for at once, however shortly after the last run."""
    monkeypatch.setattr(RunRecord, "rest", 0.0)
