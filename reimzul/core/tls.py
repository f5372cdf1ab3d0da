# SPDX-License-Identifier: Apache-2.0
"""TLS contexts of our clients of mail servers and MQTT brokers."""

from __future__ import annotations

import ssl
from contextlib import AbstractContextManager
from pathlib import Path

from reimzul.core.errors import translate_errors


def client_context(
    section: str, *, ca_cert: Path | None, pair: tuple[Path | None, Path | None] = (None, None), any_name: bool = False
) -> ssl.SSLContext:
    """Make a client's context. Errors name the setting of `section`.

    Without `ca_cert` the host's authorities are trusted. `pair` is our certificate and its key, where we have
    them. `any_name` accepts a certificate of another name. Raises `OSError`.
    """
    # ssl's default context of Python 3.13 refuses certificates of authorities that small farms make themselves
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = not any_name
    if ca_cert is None:
        context.load_default_certs()
    else:
        with _naming_setting(section, "ca_cert", ca_cert):
            context.load_verify_locations(ca_cert)
    certificate, key = pair
    if certificate and key:
        with _naming_setting(section, "tls_cert, tls_key", certificate, key):
            context.load_cert_chain(certificate, key)
    return context


def _naming_setting(section: str, setting: str, *files: Path) -> AbstractContextManager[None]:
    """Name the setting and the file in an error: OpenSSL does not."""
    names = ", ".join(map(str, files))
    return translate_errors({OSError: lambda error: OSError(f"[{section}] {setting}: {names}: {error}")})
