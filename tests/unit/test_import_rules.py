# SPDX-License-Identifier: Apache-2.0
"""Which package may import which, which module may import which library, and what every module has."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import subprocess
import sys
import sysconfig
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

TOP = Path(__file__).parents[2]
PACKAGE = TOP / "reimzul"
MODULES = [path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py"))]
PACKAGES = (
    "core", "history", "store", "plan", "submit", "worker", "repogen", "tosign", "notifier", "batch", "admin", "irc",
    "pages",
)  # fmt: skip
#: Packages that also run on hosts without the controller's libraries.
PACKAGES_OF_EVERY_HOST = ("core", "store", "submit", "worker", "repogen", "tosign")
#: Packages that import others than core, and which.
ALLOWED_IMPORTS = {
    "submit": ("reimzul.history", "reimzul.plan"),
    "notifier": ("reimzul.history",),
    "plan": (),
    "batch": ("reimzul.history", "reimzul.plan"),
    "repogen": ("reimzul.store",),
    "tosign": ("reimzul.store",),
    "admin": ("reimzul.history", "reimzul.store", "reimzul.plan"),
    "pages": ("reimzul.history", "reimzul.plan"),
}
#: The only modules that import a library: at most one in a package.
LIBRARY_IMPORTERS = {
    "greenstalk": ["core/beanstalk.py"],
    "subprocess": ["core/process.py"],
    "rpm": ["core/rpm_header.py"],
    "yaml": ["core/arch.py"],
    "pymongo": ["history/mongo.py"],
    "paho": ["core/mqtt.py", "irc/bot.py"],
    "irc": ["irc/connection.py"],
    "jinja2": ["pages/rendering.py"],
}
#: Modules of core that need a library of the controller.
OPTIONAL_MODULES = ("core/mqtt.py",)
#: Import names that differ from the name of the distribution.
DISTRIBUTIONS = {"attr": "attrs", "yaml": "pyyaml", "paho": "paho-mqtt"}
MAX_FUNCTION_LINES = 40
MAX_MODULE_LINES = 500
LICENCE = "# SPDX-License-Identifier: Apache-2.0\n"


@functools.cache
def text(module: Path) -> str:
    return (PACKAGE / module).read_text(encoding="utf-8")


@functools.cache
def tree(module: Path) -> ast.Module:
    return ast.parse(text(module), str(module), feature_version=(3, 9))


def package_of(module: Path) -> str:
    return module.parts[0] if len(module.parts) > 1 else ""


@functools.cache
def imports(module: Path) -> set[str]:
    """The full names that a module imports, also within functions."""
    found: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: use an absolute import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


@functools.cache
def standard_library() -> set[str]:
    """The modules of Python's standard library (`sys.stdlib_module_names` needs 3.10)."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = [*folder.iterdir(), *(folder / "lib-dynload").glob("*")]
    return {path.name.partition(".")[0] for path in files} | set(sys.builtin_module_names)


def third_party_imports(module: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(module)} - standard_library() - {"reimzul"}


def declared_distributions(pattern: str) -> set[str]:
    """The distributions in a list of pyproject.toml."""
    found = re.search(pattern + r" = \[\n(.*?)^\]", (TOP / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert found, pattern
    return set(re.findall(r'^ *"([a-z0-9-]+)', found[1], re.MULTILINE))


# --- imports


@pytest.mark.sources
def test_every_module_belongs_to_a_known_package() -> None:
    assert {package_of(module) for module in MODULES} <= {"", *PACKAGES}
    assert [module.name for module in MODULES if not package_of(module)] == ["__init__.py"]


@pytest.mark.sources
def test_a_package_imports_only_itself_core_and_what_it_is_allowed() -> None:
    for module in MODULES:
        package = package_of(module)
        allowed = ("reimzul.core", f"reimzul.{package}", "reimzul.__version__", *ALLOWED_IMPORTS.get(package, ()))
        for name in imports(module):
            if name.startswith("reimzul"):
                assert any(f"{name}.".startswith(f"{each}.") for each in allowed), f"{module} imports {name}"


@pytest.mark.sources
@pytest.mark.parametrize(("library", "importers"), LIBRARY_IMPORTERS.items(), ids=LIBRARY_IMPORTERS)
def test_a_library_is_imported_only_where_it_is_wrapped(library: str, importers: list[str]) -> None:
    found = [module.as_posix() for module in MODULES if library in {n.split(".")[0] for n in imports(module)}]
    assert found == importers


def test_every_third_party_library_has_its_importers_listed() -> None:
    assert set().union(*map(third_party_imports, MODULES)) <= {"attr", "click", *LIBRARY_IMPORTERS}


def test_every_imported_distribution_is_declared() -> None:
    common, controller, irc = map(declared_distributions, ("^dependencies", "^controller", "^irc"))
    extras = {"history": controller, "notifier": controller, "pages": controller, "irc": irc}
    for module in MODULES:
        needed = {DISTRIBUTIONS.get(name, name) for name in third_party_imports(module)}
        extra = controller if module.as_posix() in OPTIONAL_MODULES else extras.get(package_of(module), set())
        assert needed <= common | extra, module


@pytest.mark.parametrize("program", ["submit", "worker", "repogen", "tosign", "notifier", "admin", "pages"])
def test_a_program_starts_without_optional_libraries(program: str) -> None:
    script = f"import sys, reimzul.{program}.{'main' if program == 'admin' else 'cli'}; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True).stdout.decode()
    assert not {"rpm", "pymongo", "paho", "honcho", "jinja2"} & {name.partition(".")[0] for name in loaded.split()}


#: Modules that commands start without, as most of their runs do not need them.
_LATE = {
    "admin.setup.cli": ("admin.doctor.cli",),
    "admin.causes": ("admin.batch_lookup", "plan"),
    "admin.stats": ("admin.batch_lookup", "plan"),
    "submit.cli": ("submit.batch", "plan.maker"),
}


@pytest.mark.parametrize("module", _LATE)
def test_a_command_starts_without_what_few_of_its_runs_need(module: str) -> None:
    script = f"import sys, reimzul.{module}; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True).stdout.decode()
    assert {f"reimzul.{each}" for each in _LATE[module]} & set(loaded.split()) == set()


@pytest.mark.sources
def test_no_command_is_run_by_a_shell() -> None:
    for module in MODULES:
        for node in ast.walk(tree(module)):
            assert not (isinstance(node, ast.keyword) and node.arg == "shell"), module
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in ("os.system", "os.popen"), f"{module}:{node.lineno}"


# --- what every module has


@pytest.mark.sources
def test_a_module_starts_with_its_licence_and_a_docstring() -> None:
    for module in MODULES:
        assert text(module).startswith(LICENCE), module
        assert ast.get_docstring(tree(module)), module


@pytest.mark.sources
def test_every_function_has_a_return_annotation() -> None:
    for module in MODULES:
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.FunctionDef):
                assert node.returns is not None, f"{module}:{node.lineno} {node.name}"


@pytest.mark.sources
def test_annotations_are_not_evaluated_at_runtime() -> None:
    annotated = {module for module in MODULES if "def " in text(module) or "attr." in text(module)}
    assert not [str(module) for module in annotated if "__future__.annotations" not in imports(module)]


def test_every_module_of_builders_and_bstore_imports_on_this_python() -> None:
    for module in MODULES:
        if package_of(module) in PACKAGES_OF_EVERY_HOST and module.as_posix() not in OPTIONAL_MODULES:
            name = ".".join(("reimzul", *module.with_suffix("").parts))
            importlib.import_module(name.removesuffix(".__init__"))


# --- size and names, as tools/measure counts them


@functools.cache
def measure() -> ModuleType:
    path = TOP / "tools" / "measure"
    loader = SourceFileLoader("measure", str(path))
    spec = spec_from_file_location("measure", path, loader=loader)
    assert spec
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.sources
def test_no_class_name_is_defined_twice() -> None:
    assert measure().repeated_classes() == {}


@pytest.mark.sources
def test_no_function_is_named_by_a_bare_word() -> None:
    assert measure().bare_names() == []


@pytest.mark.sources
def test_no_function_is_too_long() -> None:
    lines, place = measure().longest_function()
    assert lines <= MAX_FUNCTION_LINES, place


@pytest.mark.sources
def test_no_module_is_too_long() -> None:
    lines, place = measure().longest_module()
    assert lines <= MAX_MODULE_LINES, place
