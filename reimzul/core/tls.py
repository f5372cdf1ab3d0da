# SPDX-License-Identifier: Apache-2.0
"""TLS towards somebody whose certificate is checked: what the notifier's links and the subscribers share."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path


def client_context(
    section: str, *, ca_cert: Path | None, pair: tuple[Path, Path] | None = None, any_name: bool = False
) -> ssl.SSLContext:
    """What a client of ours trusts, and who it says it is; the faults name the setting of `section`.

    Without `ca_cert` it trusts what the host trusts. `any_name`: the other's certificate need not have its name.
    Raises `OSError` where a file is not what it should be.
    """
    # not ssl's default context: from Python 3.13 on that refuses authorities as small farms make them
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = not any_name
    if ca_cert is None:
        context.load_default_certs()
    else:
        with _naming_setting(section, "ca_cert", ca_cert):
            context.load_verify_locations(ca_cert)
    if pair is not None:
        with _naming_setting(section, "tls_cert, tls_key", *pair):
            context.load_cert_chain(*pair)
    return context


@contextlib.contextmanager
def _naming_setting(section: str, setting: str, *files: Path) -> Iterator[None]:
    """What is wrong with a file, with the setting that names it: OpenSSL says neither."""
    try:
        yield
    except OSError as error:
        raise OSError(f"[{section}] {setting}: {', '.join(map(str, files))}: {error}") from error
