# SPDX-License-Identifier: Apache-2.0
"""The mock.cfg beside a build's logs has no credentials, and is otherwise the configuration that was used."""

from __future__ import annotations

from pathlib import Path

import pytest

from reimzul.worker import mock
from reimzul.worker.mock_config import redact_credentials

SECRETS = (
    "baseurl=https://jane:S3CRET@example.org/repo",
    "baseurl=https://S3CRET@example.org/repo",
    "proxy=http://jane:p@S3CRET@proxy:3128",
    "password=S3CRET",
    "password = S3CRET with spaces",
    "proxy_password=S3CRET",
    "proxy_username: S3CRET",
    "username=S3CRET",
    "password=\n    S3CRET",
    "auth_token = S3CRET",
    "config_opts['x_password'] = 'S3CRET'",
    'config_opts["plugin_conf"]["sign_opts"]["Token"] = "S3CRET"',
    "config_opts['client_secret'] = (\n    'S3CRET'\n    'S3CRET'\n)",
    "config_opts['client_secret'] = \"\"\"\nS3CRET\n\"\"\"",
    "config_opts['environment'] = {'LANG': 'C', 'GITHUB_TOKEN': 'S3CRET'}",
    "config_opts['environment'].update(API_TOKEN='S3CRET')",
    "config_opts.setdefault('proxy_password', 'S3CRET')",
    "config_opts['nspawn_args'] = ['--setenv=API_TOKEN=S3CRET']",
    "config_opts['dnf.conf'] = '[main]\\npassword=S3CRET\\nbest=1'",
    "config_opts['dnf.conf'] = \"\"\"\n[a]\npassword=S3CRET\nusername=S3CRET\n\"\"\"",
    "config_opts['x_password'] += 'S3CRET'",
    "token = 'S3CRET'",
    "this is no Python: config_opts['x_password'] = 'S3CRET'",
)  # fmt: skip
KEPT = """config_opts['root'] = 'demo'
config_opts['chroot_setup_cmd'] = 'install @build'
config_opts['dnf.conf'] = \"\"\"
[main]
keepcache=1
best=1
[base]
baseurl=https://example.org/passwords/$basearch/
gpgkey=file:///etc/pki/key
sslclientkey=/etc/pki/client.key
\"\"\"
"""


@pytest.mark.parametrize("line", SECRETS)
def test_no_credential_is_left(line: str) -> None:
    text = f"{KEPT}{line}\n{KEPT}"
    redacted = redact_credentials(text)
    assert "S3CRET" not in redacted
    assert "REDACTED" in redacted
    assert redacted.startswith(KEPT)
    assert redacted.endswith(KEPT)


def test_what_is_no_credential_stays_as_it_is() -> None:
    assert redact_credentials(KEPT) == KEPT


def test_the_copy_beside_the_logs_is_redacted_and_the_configuration_is_not(tmp_path: Path) -> None:
    text = f"{KEPT}config_opts['x_password'] = 'S3CRET'  # \xe9\n"
    (tmp_path / "mock.cfg").write_bytes(text.encode("latin-1"))
    mock._copy_config(tmp_path / "mock.cfg", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes().endswith(b"config_opts['x_password'] = 'REDACTED'  # \xe9\n")
    assert b"S3CRET" in (tmp_path / "mock.cfg").read_bytes()
