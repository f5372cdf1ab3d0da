# SPDX-License-Identifier: Apache-2.0
"""stunnel's configuration as a wall: no way without a key, and no key for others to read."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from reimzul.admin.doctor.check import Check, Result, closed, fail, ok, worst
from reimzul.admin.doctor.host import ALL, BUILDER, ROLES, Host
from reimzul.admin.doctor.tunnels import Section, Tunnels
from reimzul.core.config import LOCAL


def checks(host: Host) -> list[Check]:
    """Every host's; one that is all roles needs no stunnel."""
    if not host.tunnels.sections and set(host.roles) == set(ROLES):
        return []
    found = [Check(name="tunnels", look=lambda: _tunnels(host.tunnels, host.roles))]
    if host.tunnels.keys:
        found.append(Check(name="keys", look=lambda: _keys(host.tunnels)))
    return found


def _tunnels(tunnels: Tunnels, roles: tuple[str, ...]) -> Result:
    role = roles[0] if len(roles) == 1 else (BUILDER if BUILDER in roles else ALL)
    remedy = f"reimzul setup {role}" if role != ALL else "reimzul setup"
    if tunnels.fault:
        return fail(tunnels.fault, remedy if "no such file" in tunnels.fault else "run it as root")
    ours = [section for section in tunnels.sections if section.is_client or section in tunnels.offers.values()]
    if not ours:
        return fail(f"{tunnels.path} has no section of the farm's", remedy)
    holes = [fail(words, f"{remedy}, or compare it with conf/") for words in _holes(tunnels)]
    return worst(holes, f"{tunnels.path}: {', '.join(section.name for section in ours)}")


def _holes(tunnels: Tunnels) -> Iterator[str]:
    for section in tunnels.sections:
        options = section.options
        asks = any(options.get(name, "no") == "yes" for name in ("verifypeer", "verifychain"))
        if section.secrets is None and not asks:
            yield f"[{section.name}] asks for no key"
        yield from _weaknesses(f"[{section.name}] ", options)
        if section.is_client and not _is_local(section):
            yield f"[{section.name}] lends our key to whoever reaches port {section.accept[1]} of this host"
    yield from _weaknesses("", {name.lower(): value for name, value in tunnels.head})


def _weaknesses(where: str, options: Mapping[str, str]) -> Iterator[str]:
    """What opens a way in stunnel's own options, stunnel(8): of all sections, or of one."""
    for name in ("sslVersionMin", "sslVersion", "sslVersionMax"):
        value = options.get(name.lower(), "")
        if value in ("SSLv2", "SSLv3", "TLSv1", "TLSv1.1") or (value == "all" and name == "sslVersionMin"):
            yield f"{where}{name} = {value}: TLS 1.2 is the oldest that is safe"
    if options.get("verify") == "0":
        yield f"{where}verify = 0: lets in whoever comes"
    open_ = {"NULL", "eNULL", "aNULL", "COMPLEMENTOFALL"} & set(re.split("[:, +]", options.get("ciphers", "")))
    if open_:
        yield f"{where}ciphers has {min(open_)}: nothing is encrypted, or nobody known"


def _is_local(section: Section) -> bool:
    # without a host stunnel listens on every address
    return section.accept[0] in LOCAL or section.accept[0].startswith("127.")


def _keys(tunnels: Tunnels) -> Result:
    results = [_file(path) for path in tunnels.keys]
    return worst(results, "; ".join(result.words for result in results))


def _file(path: Path) -> Result:
    try:
        found = path.stat()
    except FileNotFoundError:
        return fail(f"{path} is not there", "reimzul setup on the controller makes keys, and says where each goes")
    except PermissionError:
        return closed(str(path))
    if stat.S_IMODE(found.st_mode) & 0o077:
        return fail(f"{path} has mode {stat.S_IMODE(found.st_mode):o}: others can read the keys", f"chmod 600 {path}")
    if found.st_uid not in (0, os.geteuid()):
        return fail(f"{path} is not root's", f"chown root: {path}")
    if not os.access(path, os.R_OK):
        return ok(f"{path.name}, closed to others")
    names = [line.partition(":")[0] for line in path.read_text(encoding="utf-8").splitlines() if ":" in line]
    if not names:
        return fail(f"{path} has no key", "reimzul setup on the controller makes keys, and says where each goes")
    return ok(f"{path.name} of {', '.join(names[:8])}{' …' if len(names) > 8 else ''}")
