# SPDX-License-Identifier: Apache-2.0
"""A mock that does to each build what its trial wrote down. Run by its path, on the standard library alone.

Which build it is, its disttag says; the plan of a build lies in `plans/<disttag>.json` of our home. As the real one it
has a root below `roots/` while it builds, with a process in a session of its own in there, and leaves both behind when
it is killed, for `--orphanskill` and `--clean`.
"""

import json
import os
import shutil
import signal
import subprocess
import time


def main(home: str, argv: list[str]) -> int:
    given = dict(word[2:].split("=", 1) for word in argv if word.startswith("--") and "=" in word)
    name = "reimzul-" + os.path.basename(given["configdir"])
    if "--print-root-path" in argv:
        print(os.path.join(home, "roots", name, "root", ""))
        return 0
    root = os.path.join(home, "roots", name + "-" + given["uniqueext"])
    if "--orphanskill" in argv:
        return orphanskill(root)
    if "--clean" in argv:
        shutil.rmtree(root, ignore_errors=True)
        return 0
    build = argv[argv.index("--define") + 1].split()[1]
    return make(home, root, build, os.path.basename(given["configdir"]).rpartition(".")[2], given["resultdir"])


def make(home: str, root: str, build: str, arch: str, results: str) -> int:
    with open(os.path.join(home, "plans", build + ".json")) as plans:
        plan = json.load(plans)
    leg = plan["legs"][arch]
    tries = note(home, build, arch, "start")
    shutil.rmtree(root, ignore_errors=True)  # what a mock that was killed has left
    os.makedirs(root)
    nowhere = subprocess.DEVNULL
    child = subprocess.Popen(["sleep", "600"], stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True)
    with open(os.path.join(root, "pid"), "w") as pid:
        pid.write(str(child.pid))
    fault = tries <= plan["faults"] and arch in (plan["faulty"] or [arch]) or is_unfit(home)
    logs = os.path.join(home, "logs", "unfit" if fault else leg["logs"])
    for name in os.listdir(logs):
        shutil.copy(os.path.join(logs, name), results)
    seconds = plan["seconds"][min(tries, len(plan["seconds"])) - 1]
    time.sleep(seconds)
    for rpm in () if fault else leg["rpms"]:
        shutil.copy(rpm, results)
    child.kill()
    child.wait()
    shutil.rmtree(root)
    note(home, build, arch, "end")
    return 3 if fault else int(leg["code"])


def is_unfit(home: str) -> bool:
    """Whether this host is a broken one now: `unfit` in our home names it."""
    try:
        with open(os.path.join(home, "unfit")) as said:
            return os.environ.get("REIMZUL_FQDN", "") in said.read().split()
    except OSError:
        return False


def note(home: str, build: str, arch: str, what: str) -> int:
    """Write down that something happened, and say how often it has."""
    line = {"at": time.time(), "build": build, "arch": arch, "what": what, "host": os.environ.get("REIMZUL_FQDN", "")}
    path = os.path.join(home, "calls", build)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(handle, json.dumps(line).encode() + b"\n")
    os.close(handle)
    with open(path) as calls:
        said = [json.loads(each) for each in calls]
    return sum(each["what"] == what and each["arch"] == arch for each in said)


def orphanskill(root: str) -> int:
    try:
        with open(os.path.join(root, "pid")) as pid:
            os.kill(int(pid.read()), signal.SIGKILL)
    except (OSError, ValueError):
        pass
    return 0
