# SPDX-License-Identifier: Apache-2.0
"""Which texts createrepo_c can write: its own judgement was tried for each of these."""

from __future__ import annotations

import pytest

from reimzul.repogen.verify import find_xml_flaw


@pytest.mark.parametrize(
    "text",
    [b"", b"plain", b"tab\tline\nreturn\r", b"caf\xc3\xa9", b"caf\xe9 in Latin-1", b"\x80 \x9f", b"\x7f", b"\xc2\x85"],
)
def test_what_createrepo_c_writes_passes(text: bytes) -> None:
    assert find_xml_flaw(text) == ""


@pytest.mark.parametrize(
    ("text", "flaw"),
    [
        (b"a \x1b[1m", "has the control character 0x1b in 'a \\x1b[1m'"),
        (b"\x00", "has the control character 0x00 in"),
        (b"caf\xe9 \x0c", "has the control character 0x0c in"),
        (b"overlong \xc0\xaf", "has the invalid UTF-8 byte 0xc0 in"),
        (b"surrogate \xed\xa0\x80", "has the invalid UTF-8 byte 0xed in"),
        (b"beyond \xf4\x90\x80\x80", "has the invalid UTF-8 byte 0xf4 in"),
        (b"none \xef\xbf\xbe", "has U+FFFE, which is no character, in"),
    ],
)
def test_what_it_refuses_or_writes_so_that_nobody_can_read_it_is_named(text: bytes, flaw: str) -> None:
    assert find_xml_flaw(text).startswith(flaw)
