# SPDX-License-Identifier: Apache-2.0
"""The configurations and keys of all parts of a farm on one machine: those of conf/ with other paths, ports and users.

They work for root and for an ordinary user, and in any folder that `check_state` accepts. Programs start in the state
folder, so paths are relative to it wherever a program allows that. Keys are made at every start, as `reimzul setup`
makes them, and lie in a folder that only its owner can enter.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import time
from collections.abc import Iterable, Mapping
from configparser import ConfigParser
from pathlib import Path

from devfarm.plan import ADDRESS, BSTORE, CONTROLLER, NOTIFIER, TOPIC, Host, Plan
from reimzul.admin.setup.mqtt import issue_certificate, make_authority
from reimzul.admin.setup.psk import format_keys, new_secret
from reimzul.admin.setup.roles import read_template
from reimzul.core.event_signature import add_new_key


class Keys:
    """A PSK for each host's stunnel, a CA with certificates for MQTT, a key for events."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = folder / "ca.crt"  #: the certificate of the CA
        self.all_psks = folder / "psk-all.txt"  #: of all hosts, for the side that accepts
        self.events = folder / "event-keys"  #: repogen signs events by them, and the notifier verifies these

    def psk(self, host: str) -> Path:
        """The PSK of one host, for the side that connects."""
        return self.folder / f"psk-{host}.txt"

    def certificate(self, name: str) -> Path:
        """A certificate whose common name is `name`."""
        return self.folder / f"{name}.crt"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def make(self, hosts: Iterable[str], server: str, clients: Iterable[str]) -> None:
        """Make PSKs of `hosts`, certificates of the MQTT server and its clients."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        psks = {host: new_secret() for host in hosts}
        texts = {self.psk(host): format_keys({host: secret}) for host, secret in psks.items()}
        authority = make_authority()
        issued = {client: issue_certificate(authority, client, "clientAuth") for client in clients}
        issued[server] = issue_certificate(authority, server, "serverAuth", ["localhost", "127.0.0.1"])
        texts.update({self.all_psks: format_keys(psks), self.authority: authority.text})
        for name, certificate in issued.items():
            texts.update({self.certificate(name): certificate.text, self.key(name): certificate.key})
        if not self.events.exists():  # events of an earlier start may still wait to be verified
            texts[self.events] = "".join(f"{key.to_line()}\n" for key in add_new_key([], time.time(), days=0))
        for path, text in texts.items():
            path.touch(mode=0o600)
            path.write_text(text)


def render_services(plan: Plan, keys: Keys) -> dict[str, str]:
    """The configurations of nginx, rsyncd and mosquitto, by their names in the conf folder."""
    return {
        "nginx.conf": _render_nginx("nginx", _render_store_servers(plan)),
        **({"nginx-pages.conf": _render_nginx("nginx-pages", _render_pages_server(plan))} if plan.has_pages else {}),
        "rsyncd.conf": _render_rsyncd(plan),
        "mosquitto.conf": _render_mosquitto(plan, keys),
        "mosquitto.acl": read_template("mosquitto-reimzul.acl"),
    }


def _adapt(name: str, changes: Mapping[str, object]) -> str:
    """The text of a file of conf/ with parts of it replaced, all in one pass: a path may look like another part."""
    return _replace(read_template(name), changes)


def _replace(text: str, changes: Mapping[str, object]) -> str:
    assert all(old in text for old in changes), f"one of {list(changes)} is missing in: {text}"
    return re.sub("|".join(map(re.escape, changes)), lambda found: str(changes[found[0]]), text)


def _if_root(line: str) -> str:
    # a daemon that root starts becomes another user, who could not enter the state folder
    return line if os.geteuid() == 0 else ""


def _render_store_servers(plan: Plan) -> str:
    """The two http servers that all hosts use, the controller's and bstore's: one nginx runs both."""
    servers = ""
    for host, service, folder in (
        (CONTROLLER, "incoming", plan.layout.incoming),
        (BSTORE, "store", plan.layout.store.root),
    ):
        changes = {"127.0.0.1:80;": f"{ADDRESS}:{plan.plain(service)};", f"/srv/reimzul/{folder.name}/": f"{folder}/"}
        # a path may have a space
        servers += re.sub(r"(alias |disable_symlinks on )(.*?);", r'\1"\2";', _adapt(f"nginx-{host}.conf", changes))
    return servers


def _render_pages_server(plan: Plan) -> str:
    changes = {
        "listen 80;": f"listen {ADDRESS}:{plan.plain('pages')};",
        "root /srv/reimzul/pages;": f'root "{plan.layout.pages}";',
        "http://127.0.0.1:11081/bstore/": plan.store_url(CONTROLLER),
    }
    return _adapt("nginx-pages.conf", changes)


def _render_nginx(name: str, servers: str) -> str:
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path tmp/{name}-{kind};" for kind in kinds)
    return f"""\
daemon off;
{_if_root("user root root;")}
worker_processes 1;
pid tmp/{name}.pid;
error_log stderr;
events {{ worker_connections 1024; }}
http {{
{temporary}
access_log log/{name}-access.log;
sendfile on;
tcp_nopush on;
types {{ application/x-rpm rpm; }}
{servers}}}
"""


def _render_rsyncd(plan: Plan) -> str:
    changes = {
        "port = 873": f"port = {plan.plain('rsyncd')}\nlog file = {plan.layout.log / 'rsyncd-transfers.log'}",
        "uid = reimzul": _if_root("uid = root"),
        "gid = reimzul": _if_root("gid = root"),
        "use chroot = yes": f"use chroot = {'no' if os.geteuid() else 'yes'}",
        "/srv/reimzul/bstore": plan.layout.store.root,
    }
    return _adapt("rsyncd.conf", changes)


def _render_mosquitto(plan: Plan, keys: Keys) -> str:
    changes = {
        "8883 127.0.0.1": f"{plan.plain('mqtt')} {ADDRESS}",
        "/etc/mosquitto/certs/reimzul-ca.crt": keys.authority,
        "/etc/mosquitto/certs/reimzul.crt": keys.certificate("mosquitto"),
        "/etc/mosquitto/certs/reimzul.key": keys.key("mosquitto"),
        "/etc/mosquitto/reimzul.acl": plan.layout.conf / "mosquitto.acl",
    }
    return f"""\
{_if_root("user root")}
persistence true
persistence_location {plan.layout.mosquitto}/
autosave_interval 5
log_dest stderr
log_type error
log_type warning
log_type notice
{_adapt("mosquitto-reimzul.conf", changes)}"""


def render_stunnel(plan: Plan, host: Host, keys: Keys) -> str:
    """A host's stunnel: a section for each service that the host offers, and for each that it uses."""
    head, sections = _read_tunnels("builder")
    texts = [head]
    for name in host.offers:
        offered = _read_tunnels(host.name)[1][f"{name}-server"]
        for number, address in enumerate(sorted({other.address for other in plan.hosts}), 1):
            ends = f"{address}:{plan.tls(name)}", f"{ADDRESS}:{plan.plain(name)}"
            text = offered.replace(f"[{name}-server]", f"[{name}-server-{number}]")
            texts.append(_set_ends(text, *ends, keys.all_psks))
    for name in host.uses:
        ends = f"{ADDRESS}:{plan.local(host.name, name)}", f"{host.address}:{plan.tls(name)}"
        texts.append(_set_ends(sections[name], *ends, keys.psk(host.name)))
    return "\n\n".join(texts)


def _read_tunnels(role: str) -> tuple[str, dict[str, str]]:
    """What comes before the first section of a role's configuration of stunnel, and the sections by name."""
    text = re.sub(r"^;.*\n", "", read_template(f"stunnel-{role}.conf"), flags=re.MULTILINE)
    head, *sections = text.split("\n[")
    return head, {section.partition("]")[0]: f"[{section}" for section in sections}


def _set_ends(section: str, accept: str, connect: str, keys: Path) -> str:
    for option, value in (("accept", accept), ("connect", connect), ("PSKsecrets", keys)):
        section = re.sub(rf"^{option} = .*$", f"{option} = {value}", section, flags=re.MULTILINE)
    return section


def beanstalkd_command(binlog: Path, port: int, sync_ms: int, program: str = "beanstalkd") -> list[str]:
    """beanstalkd's command line, as its unit has it: a shell that becomes beanstalkd."""
    found = re.search("^ExecStart=(/bin/sh .+)$", read_template("beanstalkd-service.conf"), re.MULTILINE)
    assert found
    shell, option, script = shlex.split(found[1].replace("$$", "$"))
    own = {"/usr/bin/beanstalkd": shlex.quote(program), "/var/lib/beanstalkd": shlex.quote(str(binlog))}
    return [shell, option, _replace(script, {**own, "-p 11300": f"-p {port}", "-f0": f"-f{sync_ms}"})]


def render_reimzul(plan: Plan, host: Host, keys: Keys, mock: str, *more: Mapping[str, Mapping[str, str]]) -> str:
    """A host's reimzul.ini; every address in it is the local end of the host's stunnel. The last of `more` counts."""
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
        values["bstore"]["public_url"] = plan.store_url(CONTROLLER)
    # the controller's also describes the first builder, for `reimzul doctor --role all`
    builder = next((each for each in plan.hosts if each.is_builder), host) if host.name == CONTROLLER else host
    if builder.is_builder:
        values["worker"] = {
            "mock": mock,
            "mock_configs": plan.layout.checkout(builder.name),
            "results": plan.layout.results(builder.name),
            "fqdn": builder.fqdn,
        }
    parser = ConfigParser(interpolation=None)
    for settings in (values, *more):
        parser.read_dict(settings)
    text = io.StringIO()
    parser.write(text)
    return text.getvalue()


def _controller(plan: Plan, keys: Keys) -> dict[str, dict[str, object]]:
    layout = plan.layout
    return {
        "incoming": {"folder": layout.incoming, "url": plan.incoming_url(CONTROLLER)},
        "notifier": {"ledger": layout.notifier / "ledger.sqlite", "presence": layout.notifier / "presence.sqlite"},
        "batch": {"enabled": "true"},
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
        "pages": {"folder": layout.pages, **({"url": plan.pages_url} if plan.has_pages else {})},
    }
