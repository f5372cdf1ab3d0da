# SPDX-License-Identifier: Apache-2.0
"""The configurations of all parts of a farm on one machine, as text.

They work for root and for an ordinary user, and in any folder that `check_state` accepts. Programs start in the state
folder, so paths are relative to it wherever a program allows that.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from configparser import ConfigParser

from devfarm.keys import Keys
from devfarm.plan import BSTORE, CONTROLLER, INCOMING, LISTENER, MODULE, NOTIFIER, STORE, TOPIC, Host, Plan
from devfarm.ports import ADDRESS

#: The areas of the store that nginx serves; spool/, tosign/, state/ and the rest are private.
SERVED = ("repo", "scratch", "index", "attempts", "live")

#: nginx's types block.
_TYPES = """\
        text/plain log txt ini cfg;
        application/json json;
        text/xml xml;
        application/gzip gz;
        application/zstd zst;
        application/x-rpm rpm;"""
#: Closes the connection to a host that vanished within 11 s.
_KEEPALIVE = ("SO_KEEPALIVE=1", "TCP_KEEPIDLE=5", "TCP_KEEPINTVL=2", "TCP_KEEPCNT=3", "TCP_NODELAY=1")
#: Pre-shared keys alone. With DHE among them, stunnel computes parameters for seconds at each start.
_CIPHERS = "kECDHEPSK:!eNULL"
#: The notifier alone may publish.
MOSQUITTO_ACL = f"user {NOTIFIER}\ntopic write {TOPIC}/#\n\nuser {LISTENER}\ntopic read {TOPIC}/#\n"


def _if_root(line: str) -> str:
    # a daemon that root starts becomes another user, who could not enter the state folder
    return line if os.geteuid() == 0 else ""


def render_nginx(plan: Plan) -> str:
    """One nginx for the two http servers of a farm, the controller's and bstore's."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n".join(f"    {kind}_temp_path tmp/nginx-{kind};" for kind in kinds)
    served = "\n".join(
        f'        location /{STORE}/{area}/ {{ alias "{plan.layout.store.root / area}/"; }}' for area in SERVED
    )
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
{_TYPES}
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


def render_rsyncd(plan: Plan) -> str:
    """The module to which builders upload: only spool/ and live/ can be written to, nothing can be read.

    The filters hold for the whole tree, so a path outside is refused whatever the client sends. Symbolic links in an
    upload could point anywhere; they are refused.
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


def render_mosquitto(plan: Plan, keys: Keys) -> str:
    """An MQTT broker that identifies its clients by their certificates."""
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


def render_stunnel(plan: Plan, host: Host, keys: Keys) -> str:
    """A host's stunnel: a section for each service that the host offers, and for each that it uses."""
    sockets = "\n".join(f"socket = {side}:{option}" for side in "lr" for option in _KEEPALIVE)
    offered = (
        f"[{name}-server-{number}]\naccept = {address}:{plan.tls(name)}\nconnect = {ADDRESS}:{plan.plain(name)}\n"
        f"ciphers = {_CIPHERS}\nPSKsecrets = {keys.all_psks}\n"
        for name in host.offers
        for number, address in enumerate(sorted({other.address for other in plan.hosts}), 1)
    )
    used = (
        f"[{name}]\nclient = yes\naccept = {ADDRESS}:{plan.local(host.name, name)}\n"
        f"connect = {host.address}:{plan.tls(name)}\nciphers = {_CIPHERS}\nPSKsecrets = {keys.psk(host.name)}\n"
        for name in host.uses
    )
    head = f"foreground = yes\npid =\nsyslog = no\ndebug = notice\nsslVersionMin = TLSv1.2\n{sockets}\n"
    return "\n".join([head, *offered, *used])


def render_reimzul(plan: Plan, host: Host, keys: Keys, mock: str, extra: Mapping[str, Mapping[str, str]]) -> str:
    """A host's reimzul.ini; every address in it is the local end of the host's stunnel."""
    values: dict[str, dict[str, object]] = {
        "beanstalkd": {"host": ADDRESS, "port": plan.local(host.name, "beanstalkd")},
        "bstore": {"base_url": plan.store_url(host.name) + "repo/"},
    }
    if host.name != BSTORE:
        values["bstore"]["upload_url"] = plan.upload_url(host.name)
        values["incoming"] = {"url": plan.incoming_url(host.name)}
    if not host.is_builder:
        values["bstore"]["root"] = plan.layout.store.root
        values["farm"] = {"event_keys": keys.events}
    if host.name == CONTROLLER:
        values.update(_controller(plan, keys))
    # the controller's also describes the first builder, for `reimzul doctor --role all`
    builder = next((each for each in plan.hosts if each.is_builder), host) if host.name == CONTROLLER else host
    if builder.is_builder:
        values["worker"] = {
            "mock": mock,
            "mock_configs": plan.layout.checkout(builder.name),
            "results": plan.layout.results(builder.name),
            "fqdn": builder.fqdn,
        }
    for section, settings in extra.items():
        values.setdefault(section, {}).update(settings)
    parser = ConfigParser(interpolation=None)
    parser.read_dict(values)
    text = io.StringIO()
    parser.write(text)
    return text.getvalue()


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
