# SPDX-License-Identifier: Apache-2.0
"""What several parts are tested with: an authority and a mosquitto, a builder and who listens to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from reimzul.core.beanstalk import Broker
from tests import srpms
from tests.builder import Ears, Host
from tests.conftest import Beanstalkd
from tests.mosquitto import Authority, Mosquitto


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
