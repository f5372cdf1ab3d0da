# SPDX-License-Identifier: Apache-2.0
"""Running programs: what reaches them, what we learn of their end, and that nothing of them is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from reimzul.core.errors import ProcessStalled, ProgramFailed, ProgramNotFound, ShutdownRequested, TimedOut
from reimzul.core.process import output_of, run, spawn, wait_until_exit
from reimzul.core.retry import CancelToken
from tests.waiting import until

PYTHON = sys.executable
FOREVER = "import time\nwhile True: time.sleep(60)"
#: Starts a child that hears no TERM, notes the child's number, and does what is asked then.
WITH_CHILD = """
import os, signal, sys, time
child = os.fork()
if child == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open(sys.argv[1] + ".new", "w") as note:
        note.write(str(os.getpid()))
    os.rename(sys.argv[1] + ".new", sys.argv[1])
    time.sleep(600)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
"""


@pytest.fixture(params=["pidfd", "no pidfd"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel with pidfd_open(2), and one without."""
    if request.param == "no pidfd":
        monkeypatch.delattr(os, "pidfd_open", raising=False)


def python(script: str, *words: str | Path) -> list[str | Path]:
    return [PYTHON, "-I", "-c", script, *words]


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def noted(path: Path) -> int:
    """The number of a process that wrote it down."""
    return int(until(lambda: path.read_text() if path.exists() else None, 10, f"{path} is written"))


# --- what reaches the program


def test_each_word_arrives_as_it_is(tmp_path: Path) -> None:
    words = [
        "",
        " ",
        "a b",
        "'",
        '"',
        "$(id)",
        "`id`",
        ";",
        "&",
        "|",
        "*",
        "~",
        "\\",
        "a\nb",
        "\t",
        "-x",
        "--",
        "é",
        "%s",
    ]
    said = output_of(python("import json, sys; print(json.dumps(sys.argv[1:]))", *words, tmp_path))
    assert json.loads(said) == [*words, str(tmp_path)]


def test_the_environment_is_made_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {"SECRET": "1", "LC_ALL": "C", "HOME": "/nowhere", "http_proxy": "http://p/", "REIMZUL_X": "3"}
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    script = "import json, os; print(json.dumps(dict(os.environ)))"
    said = json.loads(output_of(python(script), env={"MORE": "2"}))
    assert "SECRET" not in said
    assert {said["LC_ALL"], said["LANG"]} == {"C.UTF-8"}
    assert (said["HOME"], said["http_proxy"], said["REIMZUL_X"], said["MORE"]) == ("/nowhere", "http://p/", "3", "2")
    assert said["PATH"] == os.environ["PATH"]


def test_it_starts_in_the_folder_it_was_given(tmp_path: Path) -> None:
    assert output_of(python("import os; print(os.getcwd())"), cwd=tmp_path) == f"{tmp_path}\n"


def test_it_does_not_read_what_we_are_told(tmp_path: Path) -> None:
    (tmp_path / "input").write_text("ours")
    script = "from reimzul.core.process import output_of; import sys; print([output_of(sys.argv[1:])])"
    program = python("import sys; print(sys.stdin.read())")
    with (tmp_path / "input").open() as ours:  # a process of its own, since pytest has taken ours away
        said = subprocess.run([PYTHON, "-c", script, *program], stdin=ours, stdout=subprocess.PIPE, check=True)
    assert said.stdout == b"['\\n']\n"


def test_it_gets_the_descriptors_given_and_no_others(tmp_path: Path) -> None:
    with (tmp_path / "given").open("w") as given, (tmp_path / "kept").open("w") as kept:
        os.set_inheritable(kept.fileno(), True)
        script = "import os, sys\nfor n in sys.argv[1:]: print(os.path.exists('/proc/self/fd/' + n))"
        output = tmp_path / "output"
        run(python(script, str(given.fileno()), str(kept.fileno())), output=output, inherit=[given.fileno()])
    assert output.read_text().split() == ["True", "False"]


# --- its output


def test_output_is_appended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for word in ("one", "two"):
        run(python(f"print('{word}')"), output=log)
    assert log.read_text() == "one\ntwo\n"


def test_what_it_says_on_stderr_is_kept_with_the_rest_or_apart(tmp_path: Path) -> None:
    script = "import os; os.write(1, b'out'); os.write(2, b'err')"
    run(python(script), output=tmp_path / "both")
    run(python(script), output=tmp_path / "out", errors=tmp_path / "err")
    assert [(tmp_path / name).read_text() for name in ("both", "out", "err")] == ["outerr", "out", "err"]


# --- its end


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(
    ("script", "status"), [("pass", 0), ("exit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL)]
)
def test_its_status_is_told_as_it_is(script: str, status: int) -> None:
    assert run(python(script), every=60) == status  # noticed at once: nobody waits for a minute


@pytest.mark.usefixtures("kernel")
def test_one_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    script = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid()))\n" + FOREVER
    with pytest.raises(TimedOut, match=r"^\S+ was ended after 0.3 s$"):
        run(python(script, tmp_path / "pid"), timeout=0.3, every=0.05)
    assert not (tmp_path / "pid").exists() or not alive(noted(tmp_path / "pid"))


@pytest.mark.usefixtures("kernel")
def test_what_heed_raises_ends_it_and_all_its_children(tmp_path: Path) -> None:
    note = tmp_path / "child"

    def heed() -> None:
        if note.exists():
            raise ShutdownRequested("told to stop")

    with pytest.raises(ShutdownRequested):
        run(python(WITH_CHILD + FOREVER, note), cancel=CancelToken(heed), every=0.02, grace=0.2)
    until(lambda: not alive(noted(note)), 10, "the child that hears no TERM has ended")


def test_a_child_it_leaves_behind_is_ended(tmp_path: Path) -> None:
    assert run(python(WITH_CHILD, tmp_path / "child")) == 0
    until(lambda: not alive(noted(tmp_path / "child")), 10, "the child that was left has ended")


def test_a_program_is_asked_kindly_first(tmp_path: Path) -> None:
    script = (
        "import signal, sys, time\n"
        "def tidy(*_):\n    open(sys.argv[1] + '/tidy', 'w').close()\n    sys.exit()\n"
        "signal.signal(signal.SIGTERM, tidy)\nopen(sys.argv[1] + '/ready', 'w').close()\n" + FOREVER
    )
    with spawn(python(script, tmp_path)):
        until((tmp_path / "ready").exists, 10, "it listens")
    assert (tmp_path / "tidy").exists()


def test_a_program_that_may_not_be_signalled_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    refused: list[int] = []

    def killpg(group: int, number: int) -> None:  # as for mock while it is root
        refused.append(number)
        (tmp_path / "go").touch()
        raise PermissionError

    monkeypatch.setattr(os, "killpg", killpg)
    script = "import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.01)\nsys.exit(5)"
    with spawn(python(script, tmp_path / "go"), grace=10) as process:
        pass
    assert refused[0] == signal.SIGTERM
    assert process.returncode == 5, "it ended by itself, and not before"


@pytest.mark.usefixtures("kernel")
def test_a_running_program_has_not_ended() -> None:
    with spawn(python(FOREVER)) as process:
        assert not wait_until_exit(process, 0)
        process.kill()
        assert wait_until_exit(process, 60)


@pytest.mark.parametrize("program", ["no-such-program", "/no/such/program", "/etc", "/etc/hostname"])
def test_a_program_that_is_not_there_is_told(program: str) -> None:
    with pytest.raises(ProgramNotFound, match=f"^cannot run {program}: "):
        run([program])


# --- capture


def test_what_it_prints_is_text_whatever_it_is() -> None:
    script = "import os; os.write(1, b'\\xff\\n'); os.write(2, b'warning')"
    assert output_of(python(script)) == "\ufffd\n"


def test_a_failure_says_the_last_lines_of_its_complaint() -> None:
    script = "import sys; sys.exit('one\\ntwo\\nthree\\nfour')"
    with pytest.raises(ProgramFailed, match="exited with 1: two / three / four$"):
        output_of(python(script))


def test_one_that_must_answer_and_does_not_is_ended() -> None:
    with pytest.raises(TimedOut):
        output_of(python(FOREVER), timeout=0.1)


def test_what_it_prints_is_had_whole_from_both_ends() -> None:
    script = "import sys; sys.stderr.write('e' * 10**6); sys.stdout.write('o' * 10**6)"
    assert output_of(python(script)) == "o" * 10**6


@pytest.mark.parametrize("output", ["kept open", "closed"])
def test_a_child_that_outlives_the_one_asked_is_ended(tmp_path: Path, output: str) -> None:
    closing = "    for end in (1, 2): os.close(end)\n" if output == "closed" else ""
    script = WITH_CHILD.replace("    with open", f"{closing}    with open") + "print('said')"
    assert output_of(python(script, tmp_path / "child"), timeout=120) == "said\n"
    until(lambda: not alive(noted(tmp_path / "child")), 10, "the child has ended")


def test_a_program_that_does_nothing_is_ended_and_one_that_works_is_not() -> None:
    with pytest.raises(ProcessStalled, match=r"^sleep was ended: it did nothing for 0.4 s$"):
        run(["sleep", "60"], every=0.05, idle=0.4)
    busy = "import time\nend = time.monotonic() + 1\nwhile time.monotonic() < end: pass"
    assert run([sys.executable, "-c", busy], every=0.05, idle=0.4) == 0
