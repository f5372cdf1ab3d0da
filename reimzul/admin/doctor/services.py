# SPDX-License-Identifier: Apache-2.0
"""The four services of the farm, spoken to as their clients do: whoever answers right is really there."""

from __future__ import annotations

import email.utils
import http.client
import socket
import time
from typing import Callable, Optional
from urllib.parse import urlsplit

import attr

from reimzul.admin.doctor.tunnels import Address
from reimzul.core.beanstalk import Broker
from reimzul.core.config import Settings
from reimzul.core.errors import ReimzulError

#: Seconds an answer may take.
PATIENCE = 4.0

BEANSTALKD, INCOMING, RSYNCD, STORE = "beanstalkd", "incoming", "rsyncd", "store"


class Wrong(ReimzulError):
    """The service is there, and does not do what it should."""

    def __init__(self, words: str, remedy: str) -> None:
        super().__init__(words)
        self.remedy = remedy


@attr.frozen(kw_only=True)
class Service:
    """A service as the settings of this host point to it."""

    name: str
    setting: str  #: which says where it is
    address: Address
    offerer: str  #: the role of the host that offers it
    program: str  #: what offers it, as its unit is called
    speak: Callable[[Address], str]  #: what it answers, in words. Raises `OSError`, `BrokerUnavailable`, `Wrong`


@attr.frozen
class Answer:
    """What an http server says."""

    status: int
    body: bytes
    date: Optional[float]  #: its clock, in seconds since 1970, where it says so
    at: float  #: ours, at that moment


def services(settings: Settings) -> dict[str, Service]:
    """All four, by name."""
    incoming, store, uploads = settings.incoming.url, settings.bstore.base_url, settings.bstore.upload_url
    rows = (
        Service(
            name=BEANSTALKD, setting="[beanstalkd] host and port", offerer="controller", program="beanstalkd",
            address=(settings.beanstalkd.host, settings.beanstalkd.port), speak=beanstalkd,
        ),
        Service(
            name=INCOMING, setting="[incoming] url", offerer="controller", program="nginx",
            address=where(incoming), speak=_folder(incoming, "conf/nginx-controller.conf"),
        ),
        Service(
            name=RSYNCD, setting="[bstore] upload_url", offerer="bstore", program="rsync",
            address=where(uploads), speak=rsyncd,
        ),
        Service(
            name=STORE, setting="[bstore] base_url", offerer="bstore", program="nginx",
            address=where(store), speak=_folder(store, "conf/nginx-bstore.conf"),
        ),
    )  # fmt: skip
    return {service.name: service for service in rows}


def where(url: str) -> Address:
    """The host and port of a URL."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or {"https": 443, "rsync": 873}.get(parts.scheme, 80)


def beanstalkd(address: Address) -> str:
    """What beanstalkd is there. Raises `BrokerUnavailable`."""
    with Broker(*address, answer=PATIENCE) as broker:
        return f"beanstalkd {broker.server_stats().version} answers"


def rsyncd(address: Address) -> str:
    """Which protocol an rsync daemon speaks. Raises `OSError`."""
    with socket.create_connection(address, PATIENCE) as connection:
        said = connection.recv(64)
    if not said.startswith(b"@RSYNCD:"):
        raise ConnectionError("closed without a greeting" if not said else f"not rsync's greeting: {said[:20]!r}")
    return f"rsyncd answers, protocol {said.split()[1].decode(errors='replace')}"


def get(url: str, address: Address | None = None) -> Answer:
    """What is at a URL, at most 64 KB of it; at another address than its own where that is given. Raises `OSError`."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    host, port = address or where(url)
    connection = kind(host, port, timeout=PATIENCE)
    try:
        connection.request("GET", parts.path or "/", headers={"Host": parts.netloc, "User-Agent": "reimzul-doctor"})
        response = connection.getresponse()
        at = time.time()
        body = response.read(65_536)
    except http.client.HTTPException as error:
        raise ConnectionError(f"no answer of an http server: {error!r}") from error
    finally:
        connection.close()
    return Answer(response.status, body, _moment(response.getheader("Date")), at)


def _moment(text: str | None) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp() if text else None
    except (TypeError, ValueError):
        return None


def _folder(url: str, sample: str) -> Callable[[Address], str]:
    """A folder that a web server has to offer; that it does not list what is in it is as good."""
    path = urlsplit(url).path

    def speak(address: Address) -> str:
        status = get(url, address).status
        if status not in (200, 403):
            raise Wrong(f"the web server says {status} to {path}", f"compare its configuration with {sample}")
        return f"the web server answers for {path}"

    return speak
