# SPDX-License-Identifier: Apache-2.0
"""What passed the switch, read from tcpdump's file: each TCP connection's two streams, and whether they are TLS.

The format is that of pcap-savefile(5); a TLS record's head is RFC 8446, section 5.1.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator
from pathlib import Path

import attr

_ETHERNET = 1
_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD
_ICMP, _IGMP, _TCP, _ICMPV6 = 1, 2, 6, 58
_HEADS = {"d4c3b2a1": "<", "a1b2c3d4": ">"}
_SYN = 0x02
#: Kinds of TLS records: a change of cipher, an alert, a handshake, data.
_RECORDS = (20, 21, 22, 23)
_HANDSHAKE, _CLIENT_HELLO, _SERVER_HELLO = 22, 1, 2
_LONGEST = 2**14 + 2048


@attr.define
class Stream:
    """One direction of a TCP connection."""

    source: str
    target: str
    port: int  #: of the target
    source_port: int
    begun: bool = False  #: its SYN was seen
    first: int = 0  #: the number of its first byte
    pieces: dict[int, bytes] = attr.field(factory=dict)
    last: float = 0.0  #: when it last carried something, seconds since 1970

    @property
    def content(self) -> bytes:
        """What was carried, in order, up to the first hole; a piece that was sent again counts once."""
        whole = b""
        for place in sorted(self.pieces, key=lambda number: (number - self.first) % 2**32):
            offset = (place - self.first) % 2**32
            if offset > len(whole):
                break
            whole += self.pieces[place][len(whole) - offset :]
        return whole

    @property
    def fault(self) -> str:
        """Why it is not TLS; empty where it is, or where nothing was carried."""
        content, place = self.content, 0
        if content and content[0] != _HANDSHAKE:
            return f"begins with {content[:40]!r} and no handshake"
        while place + 5 <= len(content):
            kind, version, length = struct.unpack_from(">BHH", content, place)
            if kind not in _RECORDS or version >> 8 != 3 or length > _LONGEST:
                return f"no TLS record at byte {place}: {content[place : place + 40]!r}"
            place += 5 + length
        return ""

    @property
    def hello(self) -> int:
        """The kind of its first handshake message."""
        return self.content[5] if len(self.content) > 5 else 0

    @property
    def version(self) -> int:
        """What its ServerHello says; 0x0303 is TLS 1.2 and all that came after it."""
        return int(struct.unpack_from(">H", self.content, 9)[0])

    @property
    def is_server(self) -> bool:
        """Whether it is the answer of a server."""
        return self.hello == _SERVER_HELLO

    def __str__(self) -> str:
        return f"{self.source}:{self.source_port} to {self.target}:{self.port}"


@attr.frozen
class Capture:
    """All that passed."""

    streams: list[Stream]
    others: list[str]  #: what was neither TCP nor what keeps a network going

    @classmethod
    def read(cls, path: Path) -> Capture:
        """A file of tcpdump's."""
        streams: dict[tuple[str, int, str, int], Stream] = {}
        others: set[str] = set()
        for at, frame in _frames(path.read_bytes()):
            kind = int(struct.unpack_from(">H", frame, 12)[0])
            if kind == _IPV4:
                _ipv4(at, frame[14:], streams, others)
            elif kind == _IPV6 and frame[20] not in (0, _ICMPV6):  # 0: hop-by-hop options, before multicast's ICMPv6
                others.add(f"IPv6 with next header {frame[20]}")
            elif kind not in (_ARP, _IPV6):
                others.add(f"a frame of kind {kind:#06x}")
        return cls(list(streams.values()), sorted(others))


def _frames(content: bytes) -> Iterator[tuple[float, bytes]]:
    order = _HEADS[content[:4].hex()]
    assert struct.unpack_from(f"{order}I", content, 20)[0] == _ETHERNET
    place = 24
    while place + 16 <= len(content):
        seconds, micros, length, whole = struct.unpack_from(f"{order}IIII", content, place)
        assert length == whole, "a frame was cut"
        if place + 16 + length > len(content):  # it is being written
            return
        yield seconds + micros / 1e6, content[place + 16 : place + 16 + length]
        place += 16 + length


def _ipv4(at: float, packet: bytes, streams: dict[tuple[str, int, str, int], Stream], others: set[str]) -> None:
    head, protocol = (packet[0] & 15) * 4, packet[9]
    source, target = (str(ipaddress.IPv4Address(packet[place : place + 4])) for place in (12, 16))
    if protocol not in (_TCP, _ICMP, _IGMP):
        others.add(f"IP protocol {protocol} from {source} to {target}")
    if protocol != _TCP:
        return
    segment = packet[head : int(struct.unpack_from(">H", packet, 2)[0])]
    source_port, port, number = struct.unpack_from(">HHI", segment)
    carried = segment[(segment[12] >> 4) * 4 :]
    name = (source, source_port, target, port)
    if segment[13] & _SYN:
        first, before = (number + 1) % 2**32, streams.get(name)
        if before is not None and before.first != first:  # the same ports again, another connection
            streams[(source, source_port, f"{target} until {at}", port)] = streams.pop(name)
        streams.setdefault(name, Stream(source, target, port, source_port, begun=True, first=first))
    stream = streams.setdefault(name, Stream(source, target, port, source_port, first=number))
    if carried:
        stream.last = at
        if len(carried) > len(stream.pieces.get(number, b"")):
            stream.pieces[number] = carried
