# SPDX-License-Identifier: Apache-2.0
"""Which text of a package createrepo_c can write as XML, as createrepo_c 0.17 to 1.2 decide it.

createrepo_c leaves a package out for a control character. It takes bytes that are no UTF-8 for Latin-1 and converts
them, but libxml2's look at UTF-8 is lenient: bytes that only have its form (overlong, surrogates, beyond U+10FFFF) are
written as they are, and then no client can read the metadata of the whole target.
"""

from __future__ import annotations

import re

_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_FORM_OF_UTF8 = re.compile(
    rb"(?:[\x00-\x7f]|[\xc0-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf7][\x80-\xbf]{3})*"
)
_NO_CHARACTER = re.compile("[\ufffe\uffff]")
#: Bytes shown on each side of the one at fault.
_AROUND = 20


def find_xml_flaw(text: bytes) -> str:
    """Say why a text cannot be part of a repository's metadata; "" if it can."""
    control = _CONTROL.search(text)
    if control:
        return f"has the control character 0x{control[0][0]:02x} in {_around(text, control.start())}"
    try:
        no_character = _NO_CHARACTER.search(text.decode())
    except UnicodeDecodeError as error:
        if _FORM_OF_UTF8.fullmatch(text):
            return f"has the invalid UTF-8 byte 0x{text[error.start]:02x} in {_around(text, error.start)}"
        return ""
    if no_character:
        at = text.find(no_character[0].encode())
        return f"has U+{ord(no_character[0]):04X}, which is no character, in {_around(text, at)}"
    return ""


def _around(text: bytes, at: int) -> str:
    return repr(text[max(0, at - _AROUND) : at + _AROUND])[1:]
