# SPDX-License-Identifier: Apache-2.0
"""Twelve source rpms that require each other in every way a distribution's do, and some that cannot be built.

They contain text files alone. Their names begin with `batch`, so that no host has packages of theirs.
"""

from __future__ import annotations

from pathlib import Path

from tests.srpms import make_srpm

#: Those that are to be published, in an order in which they can be built.
BUILDABLE = (
    "batchlib", "batchmid", "batchpc", "batchfile", "batchtop", "batchdyn", "batchfar", "batchegg", "batchhen",
)  # fmt: skip
MISSPELT, BROKEN, BEHIND = "batchwrong", "batchbroken", "batchbehind"
#: Half of a cycle, which can be built without the other half: `--with bootstrap`.
SEED = "batchegg"
_REQUIRES = {
    "batchlib": (),
    "batchmid": ("batchlib-devel",),
    "batchpc": ("pkgconfig(batchlib)",),
    "batchfile": ("/usr/share/batchlib/batchlib.txt",),
    "batchtop": ("batchmid-devel", "batchpc"),
    "batchfar": ("batchtop",),
    "batchhen": ("batchegg",),
    MISSPELT: ("batchlbi-devel",),
    BROKEN: ("batchlib-devel",),
    BEHIND: ("batchbroken-devel",),
}


def make_batch_srpms(folder: Path) -> list[Path]:
    """Make all twelve, in an order in which they cannot be built."""
    specs = {name: _spec(name, requires) for name, requires in _REQUIRES.items()}
    specs[BROKEN] = specs[BROKEN].replace("%build\n", "%build\necho 'error: it does not compile' >&2\nexit 3\n")
    specs[SEED] = _cyclic_spec()
    specs["batchdyn"] = _spec("batchdyn", ()).replace("%build\n", "%generate_buildrequires\necho batchtop\n%build\n", 1)
    return [make_srpm(folder, name, spec) for name, spec in reversed(sorted(specs.items()))]


def make_mended(folder: Path) -> Path:
    """Make the next release of the one that does not compile, which does."""
    spec = _spec(BROKEN, _REQUIRES[BROKEN]).replace("Release: 1", "Release: 2")
    return make_srpm(folder, BROKEN, spec)


def _cyclic_spec() -> str:
    """Half of the cycle; with the bcond it does not need the other half."""
    condition = "%bcond_with bootstrap\n"
    requirement = "%if %{without bootstrap}\nBuildRequires: batchhen\n%endif\n"
    return condition + _spec(SEED, ()).replace("BuildArch:", f"{requirement}BuildArch:", 1)


def _spec(name: str, requires: tuple[str, ...]) -> str:
    """A package, and a -devel package that provides a pkg-config module."""
    lines = "".join(f"BuildRequires: {each}\n" for each in requires)
    return f"""\
Name: {name}
Version: 1.0
Release: 1%{{?dist}}
Summary: A package for tests
License: Apache-2.0
{lines}BuildArch: noarch
%description
A package for tests.
%package devel
Summary: A package for tests
Provides: pkgconfig({name}) = 1.0
%description devel
A package for tests.
%prep
%build
%install
mkdir -p %{{buildroot}}/usr/share/{name}
echo {name} > %{{buildroot}}/usr/share/{name}/{name}.txt
echo {name} > %{{buildroot}}/usr/share/{name}/devel.txt
%files
/usr/share/{name}/{name}.txt
%files devel
/usr/share/{name}/devel.txt
"""
