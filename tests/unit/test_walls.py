# SPDX-License-Identifier: Apache-2.0
"""The walls of architecture.md, section 5: who may import whom, one home for each library, and how modules look."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
PACKAGE = TOP / "reimzul"
MODULES = [path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py"))]
ROOMS = ("core", "history", "store", "submit", "worker", "repogen", "tosign", "notifier", "admin", "irc")
#: Rooms that run where no library of the controller's is.
LEAN = ("core", "store", "submit", "worker", "repogen", "tosign")
#: A room that may look into another, and into what of it.
DOORS = {
    "notifier": ("reimzul.history",),
    "repogen": ("reimzul.store",),
    "admin": (
        "reimzul.history",
        "reimzul.store",
    ),
}
#: The one module that imports a library, in each room that speaks it.
HOMES = {
    "greenstalk": ["core/beanstalk.py"],
    "subprocess": ["core/process.py"],
    "rpm": ["core/rpm_header.py"],
    "yaml": ["core/arch.py"],
    "pymongo": ["history/mongo.py"],
    "paho": ["core/mqtt.py", "irc/bot.py"],
    "irc": ["irc/connection.py"],
}
#: Modules of core that are imported only where their library is: by the notifier and the doctor.
OPTIONAL = ("core/mqtt.py",)
#: What a library is imported as, where that is not what it is installed as.
INSTALLED_AS = {"attr": "attrs", "yaml": "pyyaml", "paho": "paho-mqtt"}
LONGEST = 40
LICENCE = "# SPDX-License-Identifier: Apache-2.0\n"


@functools.cache
def text(module: Path) -> str:
    return (PACKAGE / module).read_text(encoding="utf-8")


@functools.cache
def tree(module: Path) -> ast.Module:
    return ast.parse(text(module), str(module), feature_version=(3, 9))


def room(module: Path) -> str:
    return module.parts[0] if len(module.parts) > 1 else ""


def imports(module: Path) -> set[str]:
    """Every name a module imports, in full, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: imports are absolute"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def standard() -> set[str]:
    """The modules of Python's own library (`sys.stdlib_module_names` came with 3.10)."""
    own = Path(sysconfig.get_path("stdlib"))
    files = [*own.iterdir(), *(own / "lib-dynload").glob("*")]
    return {path.name.partition(".")[0] for path in files} | set(sys.builtin_module_names)


def libraries(module: Path) -> set[str]:
    """What a module imports that is neither ours nor Python's."""
    return {name.partition(".")[0] for name in imports(module)} - standard() - {"reimzul"}


def declared(pattern: str) -> set[str]:
    """The names of the distributions in a list of pyproject.toml."""
    found = re.search(pattern + r" = \[\n(.*?)^\]", (TOP / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert found, pattern
    return set(re.findall(r'^ *"([a-z0-9-]+)', found[1], re.MULTILINE))


# --- walls


def test_every_module_is_in_a_room() -> None:
    assert {room(module) for module in MODULES} <= {"", *ROOMS}
    assert [module.name for module in MODULES if not room(module)] == ["__init__.py"]


def test_a_room_opens_on_itself_and_on_core() -> None:
    for module in MODULES:
        doors = ("reimzul.core", f"reimzul.{room(module)}", "reimzul.__version__", *DOORS.get(room(module), ()))
        for name in imports(module):
            if name.startswith("reimzul"):
                assert any(f"{name}.".startswith(f"{door}.") for door in doors), f"{module} imports {name}"


@pytest.mark.parametrize(("library", "homes"), HOMES.items(), ids=HOMES)
def test_a_library_has_one_home(library: str, homes: list[str]) -> None:
    importers = [module.as_posix() for module in MODULES if library in {n.split(".")[0] for n in imports(module)}]
    assert importers == [home for home in homes if (PACKAGE / home).exists()]


def test_every_library_that_needs_a_home_has_one() -> None:
    assert set().union(*map(libraries, MODULES)) <= {"attr", "click", *HOMES}


def test_only_what_is_declared_is_imported() -> None:
    everywhere = declared("^dependencies")
    more = {"history": declared("^controller"), "notifier": declared("^controller"), "irc": declared("^irc")}
    for module in MODULES:
        needed = {INSTALLED_AS.get(name, name) for name in libraries(module)}
        ours = declared("^controller") if module.as_posix() in OPTIONAL else more.get(room(module), set())
        assert needed <= everywhere | ours, module


@pytest.mark.parametrize("program", ["submit", "worker", "repogen", "tosign", "notifier", "admin"])
def test_a_program_starts_without_what_it_may_not_need(program: str) -> None:
    script = f"import sys, reimzul.{program}.{'main' if program == 'admin' else 'cli'}; print(*sorted(sys.modules))"
    said = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True).stdout.decode()
    assert not {"rpm", "pymongo", "paho", "honcho"} & {name.partition(".")[0] for name in said.split()}


def test_no_shell_is_ever_asked() -> None:
    for module in MODULES:
        for node in ast.walk(tree(module)):
            assert not (isinstance(node, ast.keyword) and node.arg == "shell"), module
            asked = isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.system", "os.popen")
            assert not asked, f"{module}:{node.lineno}"


# --- looks


def test_a_module_opens_with_its_licence_and_what_it_is_for() -> None:
    bare = [
        str(module) for module in MODULES if not text(module).startswith(LICENCE) or not ast.get_docstring(tree(module))
    ]
    assert not bare


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every function of ours, with the words that find it."""
    for module in MODULES:
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.FunctionDef):
                yield f"{module}:{node.lineno} {node.name}", node


def length(function: ast.FunctionDef) -> int:
    """Lines of a function's body, its docstring left out."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_no_function_is_long() -> None:
    assert not [f"{where}: {length(function)} lines" for where, function in functions() if length(function) > LONGEST]


def test_every_function_says_what_it_returns() -> None:
    assert not [where for where, function in functions() if function.returns is None]


def test_annotations_are_not_looked_at_on_old_pythons() -> None:
    annotated = {module for module in MODULES if "def " in text(module) or "attr." in text(module)}
    assert not [str(module) for module in annotated if "__future__.annotations" not in imports(module)]


def test_all_that_runs_on_builders_and_bstore_is_importable_on_this_python() -> None:
    for module in MODULES:
        if room(module) in LEAN and module.as_posix() not in OPTIONAL:
            name = ".".join(("reimzul", *module.with_suffix("").parts))
            importlib.import_module(name.removesuffix(".__init__"))
