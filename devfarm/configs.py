# SPDX-License-Identifier: Apache-2.0
"""The configuration of every part of a farm on one machine, as text.

They work for root and for an ordinary user, and in any folder `check_state` takes: programs start in the state
folder, so that paths in here are relative to it wherever a program allows that.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from configparser import ConfigParser

from devfarm.keys import Keys
from devfarm.plan import BSTORE, CONTROLLER, INCOMING, LISTENER, MODULE, NOTIFIER, STORE, TOPIC, Host, Plan
from devfarm.ports import ADDRESS

#: What others may read of the store; spool/, tosign/, state/ and the rest are nobody's.
SERVED = ("repo", "scratch", "index", "attempts", "live")

#: What browsers and dnf are told of a file, by its ending.
_TYPES = (
    ("text/plain", "log txt ini cfg"), ("application/json", "json"), ("text/xml", "xml"),
    ("application/gzip", "gz"), ("application/zstd", "zst"), ("application/x-rpm", "rpm"),
)  # fmt: skip
#: A host that vanishes becomes a closed connection: architecture.md, section 1.
_KEEPALIVE = (
    ("SO_KEEPALIVE", 1), ("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3), ("TCP_NODELAY", 1),
)  # fmt: skip
#: Pre-shared keys alone. Where DHE is among them, stunnel reckons parameters for it at each start, for seconds.
_CIPHERS = "PSK:!kDHEPSK:!kRSAPSK:!eNULL"


def _if_root(line: str) -> str:
    # a daemon that root starts becomes another user, who could not enter our folder
    return line if os.geteuid() == 0 else ""


def nginx(plan: Plan) -> str:
    """One nginx for the two http servers of a farm, the controller's and bstore's."""
    kept = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n".join(f"    {kind}_temp_path tmp/nginx-{kind};" for kind in kept)
    served = "\n".join(
        f'        location /{STORE}/{area}/ {{ alias "{plan.layout.store.root / area}/"; }}' for area in SERVED
    )
    types = "\n".join(f"        {kind} {endings};" for kind, endings in _TYPES)
    return f"""\
daemon off;
{_if_root("user root root;")}
worker_processes 1;
pid tmp/nginx.pid;
error_log stderr;
events {{ worker_connections 1024; }}
http {{
{temporary}
    access_log log/nginx-access.log;
    sendfile on;
    tcp_nopush on;
    autoindex on;
    autoindex_exact_size off;
    charset utf-8;
    default_type application/octet-stream;
    types {{
{types}
    }}
    server {{
        listen {ADDRESS}:{plan.plain("incoming")};
        location /{INCOMING}/ {{ alias "{plan.layout.incoming}/"; }}
        location / {{ return 404; }}
    }}
    server {{
        listen {ADDRESS}:{plan.plain("store")};
{served}
        location / {{ return 404; }}
    }}
}}
"""


def rsyncd(plan: Plan) -> str:
    """The module builders upload to: only spool/ and live/ can be written to, nothing can be read.

    The filters hold for the whole tree, so a path that leaves them is refused whatever the client says. Symbolic
    links that came with an upload would point wherever they like; they are not taken.
    """
    return f"""\
use chroot = no
{_if_root("uid = root")}
{_if_root("gid = root")}
log file = {plan.layout.log / "rsyncd-transfers.log"}
reverse lookup = no
timeout = 300
socket options = TCP_NODELAY

[{MODULE}]
path = {plan.layout.store.root}
list = no
read only = no
write only = yes
include = /spool/ /spool/*** /live/ /live/***
exclude = *
munge symlinks = yes
refuse options = delete* remove-* links devices specials backup* *-dest
"""


def mosquitto(plan: Plan, keys: Keys) -> str:
    """An MQTT broker that knows its clients by their certificates."""
    return f"""\
{_if_root("user root")}
listener {plan.plain("mqtt")} {ADDRESS}
cafile {keys.authority}
certfile {keys.certificate("mosquitto")}
keyfile {keys.key("mosquitto")}
tls_version tlsv1.2
require_certificate true
use_identity_as_username true
allow_anonymous false
acl_file {plan.layout.conf / "mosquitto.acl"}
persistence true
persistence_location {plan.layout.mosquitto}/
autosave_interval 5
log_dest stderr
log_type error
log_type warning
log_type notice
"""


def mosquitto_acl() -> str:
    """The notifier alone may publish."""
    return f"user {NOTIFIER}\ntopic write {TOPIC}/#\n\nuser {LISTENER}\ntopic read {TOPIC}/#\n"


def stunnel(plan: Plan, host: Host, keys: Keys) -> str:
    """A host's stunnel: what it offers to the others, and its ways to what they offer."""
    sockets = "\n".join(f"socket = {side}:{name}={value}" for side in "lr" for name, value in _KEEPALIVE)
    offered = (
        f"[{name}-server-{number}]\naccept = {way}:{plan.tls(name)}\nconnect = {ADDRESS}:{plan.plain(name)}\n"
        f"ciphers = {_CIPHERS}\nPSKsecrets = {keys.all_psks}\n"
        for name in host.offers
        for number, way in enumerate(sorted({other.way for other in plan.hosts}), 1)
    )
    used = (
        f"[{name}]\nclient = yes\naccept = {ADDRESS}:{plan.local(host.name, name)}\n"
        f"connect = {host.way}:{plan.tls(name)}\nciphers = {_CIPHERS}\nPSKsecrets = {keys.psk(host.name)}\n"
        for name in host.uses
    )
    head = f"foreground = yes\npid =\nsyslog = no\ndebug = notice\nsslVersionMin = TLSv1.2\n{sockets}\n"
    return "\n".join([head, *offered, *used])


def reimzul(plan: Plan, host: Host, keys: Keys, mock: str, extra: Mapping[str, Mapping[str, str]]) -> str:
    """A host's reimzul.ini; every address in it is the local end of that host's stunnel."""
    values: dict[str, dict[str, object]] = {
        "beanstalkd": {"host": ADDRESS, "port": plan.local(host.name, "beanstalkd")},
        "bstore": {"base_url": plan.store_url(host.name) + "repo/"},
    }
    if host.name != BSTORE:
        values["bstore"]["upload_url"] = plan.upload_url(host.name)
        values["incoming"] = {"url": plan.incoming_url(host.name)}
    if not host.is_builder:
        values["bstore"]["root"] = plan.layout.store.root
    if host.name == CONTROLLER:
        values.update(_controller(plan, keys))
    # it is one machine: the controller's has the first builder too, for `reimzul doctor --role all`
    builder = next((each for each in plan.hosts if each.is_builder), None) if host.name == CONTROLLER else host
    if builder is not None and builder.is_builder:
        values["worker"] = _worker(plan, builder, mock)
    for section, settings in extra.items():
        values.setdefault(section, {}).update(settings)
    return _ini(values)


def _worker(plan: Plan, host: Host, mock: str) -> dict[str, object]:
    return {
        "mock": mock,
        "mock_configs": plan.layout.checkout(host.name),
        "results": plan.layout.results(host.name),
        "fqdn": host.fqdn,
    }


def _controller(plan: Plan, keys: Keys) -> dict[str, dict[str, object]]:
    layout = plan.layout
    return {
        "incoming": {"folder": layout.incoming, "url": plan.incoming_url(CONTROLLER)},
        "notifier": {"ledger": layout.notifier / "ledger.sqlite", "presence": layout.notifier / "presence.sqlite"},
        "history": {"url": f"sqlite:///{layout.history}"},
        "logs": {"logfile": layout.log / "reimzul.log"},
        "mqtt": {
            "notifications": "true",
            "host": "localhost",
            "port": plan.plain("mqtt"),
            "ca_cert": keys.authority,
            "tls_cert": keys.certificate(NOTIFIER),
            "tls_key": keys.key(NOTIFIER),
            "topic": TOPIC,
        },
    }


def _ini(values: Mapping[str, Mapping[str, object]]) -> str:
    parser = ConfigParser(interpolation=None)
    parser.read_dict(values)
    text = io.StringIO()
    parser.write(text)
    return text.getvalue()
