# SPDX-License-Identifier: Apache-2.0
"""Real packages from submit to a client that has only the repository's URL, and a capture at the switch."""

from __future__ import annotations

import re

from tests.hosts import network
from tests.hosts.base import SOURCES_THERE
from tests.hosts.capture import Capture
from tests.hosts.farm import PUBLIC, TARGET, Farm, Tell
from tests.waiting import until

_TLS_PORTS = {13100, 11080, 11874, 11081}
_TLS_1_2 = 0x0303


def test_build_heard(farm: Farm, tell: Tell) -> None:
    """All that passes between the machines while packages are built and published is TLS."""
    path = farm.folder / "build.pcap"
    with network.capture_frames(path):
        # every connection anew, so that its beginning is heard
        for machine in farm.farm:
            machine.run("systemctl restart stunnel@reimzul")
        until(lambda: farm.watchers() == 4, 120, "all workers are back")
        since = float(farm.controller.run("date +%s.%N").out)
        for source in farm.base.sources:
            if source.name.startswith("hello-2"):  # what it is built with is on the builders
                farm.published(farm.submit(f"{SOURCES_THERE}/{source.name}"))
    heard = Capture.read(path)
    assert heard.others == []
    during = [stream for stream in heard.streams if stream.pieces and stream.last > since]
    assert {min(stream.port, stream.source_port) for stream in during} == _TLS_PORTS
    assert {str(stream): stream.fault for stream in during if stream.fault or not stream.begun} == {}
    assert {stream.version for stream in during if stream.is_server} == {_TLS_1_2}
    carried = b"".join(stream.content for stream in during)
    for plain in (b"hello-2", b"reserve", b"build_id", b"HTTP/1.1", b"@RSYNCD"):
        assert plain not in carried
    tell(f"  {len(during)} streams with {len(carried)} bytes, all of them TLS")


def test_ear(farm: Farm) -> None:
    """The capture at the switch works: it shows what is not TLS."""
    path = farm.folder / "plain.pcap"

    def faults() -> list[str]:
        both = [stream for stream in Capture.read(path).streams if PUBLIC in (stream.port, stream.source_port)]
        return [stream.fault for stream in both if stream.fault]

    with network.capture_frames(path):
        farm["customer"].run(f"exec 3<>/dev/tcp/bstore/{PUBLIC}; printf 'GET /repo/ HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3")
        until(lambda: len(faults()) == 2, 60, "both directions are heard")
    assert all("no handshake" in fault for fault in faults()), faults()


def test_customer(farm: Farm) -> None:
    """A real dnf on a machine that has only the repository's URL finds, downloads and installs packages."""
    farm.published(farm.submit(f"{SOURCES_THERE}/some-1.0-1.src.rpm", "--rebuild"))
    customer = farm["customer"]
    customer.run("apt-get install dnf dnf-plugins-core rpm", timeout=600)
    url = f"http://bstore.example.org:{PUBLIC}/repo/{TARGET}.x86_64/"
    # the whole of what they know
    customer.write("/etc/yum.repos.d/farm.repo", f"[farm]\nname=the farm\nbaseurl={url}\ngpgcheck=0\n")
    dnf = "dnf -q -y --releasever=1 --installroot=/srv/system --setopt=reposdir=/etc/yum.repos.d"
    # (Debian's dnf has a plugin that makes a repository of what it has downloaded; here is another one)
    dnf += " --setopt=metadata_expire=0 --disableplugin=local"
    found = customer.run(f"{dnf} repoquery --qf '%{{name}}.%{{arch}}'", timeout=300).out.split()
    assert {"hello.x86_64", "hello.i686", "some.noarch"} <= set(found), found
    customer.run(f"{dnf} download --destdir=/root/downloaded hello", timeout=300)
    checked = customer.run("rpmkeys --checksig --nosignature /root/downloaded/*.rpm").out
    assert re.search(r"hello-\S+x86_64\.rpm: digests OK", checked), checked
    customer.run(f"{dnf} install some", timeout=300)
    assert customer.run("cat /srv/system/usr/share/some/greeting").out == "some\n"
