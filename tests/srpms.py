# SPDX-License-Identifier: Apache-2.0
"""Source rpms for tests: small spec files of every kind a farm meets, and rpmbuild to make packages of them."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

NO_SOURCES: Mapping[str, bytes] = MappingProxyType({})


def make_srpm(folder: Path, name: str, spec: str, sources: Mapping[str, bytes] = NO_SOURCES) -> Path:
    """Make `<name>-<version>-<release>.src.rpm` in a folder from a spec file's text, and the sources it names."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="srpm-") as top:
        for file, content in sources.items():
            (Path(top) / file).write_bytes(content)
        path = Path(top) / f"{name}.spec"
        path.write_text(spec)
        said = _rpmbuild("-bs", path, top, folder)
    found = re.search(r"^Wrote: (.+\.src\.rpm)$", said, re.MULTILINE)
    assert found, said
    return Path(found[1])


def make_rpm(folder: Path, name: str, spec: str, arch: str = "") -> Path:
    """Make a binary package: the only one of its spec, or the first; by default for this machine's arch."""
    return make_rpms(folder, name, spec, arch=arch)[0]


def make_rpms(
    folder: Path, name: str, spec: str, *, stage: str = "-bb", dist: str = "%{nil}", arch: str = ""
) -> list[Path]:
    """Make all binary packages of a spec, with `-ba` its source rpm too; a source called `data` is there."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="srpm-") as top:
        (Path(top) / "data").write_bytes(b"x")
        path = Path(top) / f"{name}.spec"
        path.write_text(spec)
        said = _rpmbuild(stage, path, top, folder, dist, arch)
    found = re.findall(r"^Wrote: (.+\.rpm)$", said, re.MULTILINE)
    assert found, said
    return [Path(each) for each in found]


def _rpmbuild(stage: str, spec: Path, top: str, folder: Path, dist: str = "%{nil}", arch: str = "") -> str:
    macros = {
        "_topdir": top, "_sourcedir": top, "_tmppath": top, "_dbpath": f"{top}/db",
        "_srcrpmdir": folder, "_rpmdir": folder, "dist": dist,
    }  # fmt: skip
    defines = [word for macro, value in macros.items() for word in ("--define", f"{macro} {value}")]
    environment = {"PATH": "/usr/bin:/bin", "HOME": top}
    done = subprocess.run(
        ["rpmbuild", stage, "--nodeps", *(["--target", arch] if arch else []), *defines, spec],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _spec(
    name: str,
    *,
    version: str = "1.0",
    tags: str = "",
    prep: str = "",
    build: str = "",
    install: str = "",
    check: str = "",
    files: str = "",
    more: str = "",
) -> str:
    return f"""\
Name: {name}
Version: {version}
Release: 1%{{?dist}}
Summary: A package for tests
License: Apache-2.0
{tags}
%global debug_package %{{nil}}
%description
A package for tests.
%prep
{prep}
%build
{build}
%install
{install}
%check
{check}
%files
{files}
{more}
"""


def lacking_source(name: str = "closed") -> str:
    """A package whose own source rpm, made with a dist tag, leaves its source out: *.nosrc.rpm."""
    tags = 'Source0: data\n%if "%{?dist}" != ""\nNoSource: 0\n%endif\n'
    return noarch(name).replace("BuildArch:", f"{tags}BuildArch:", 1)


def arch_tags(exclusive_arch: str = "", exclude_arch: str = "") -> str:
    """ExclusiveArch and ExcludeArch lines, for those that are given."""
    tags = (("ExclusiveArch", exclusive_arch), ("ExcludeArch", exclude_arch))
    return "".join(f"{tag}: {value}\n" for tag, value in tags if value)


def noarch(name: str = "plain", *, version: str = "1.0", exclusive_arch: str = "", exclude_arch: str = "") -> str:
    """A package of one text file, for every arch."""
    return _spec(
        name,
        version=version,
        tags="BuildArch: noarch\n" + arch_tags(exclusive_arch, exclude_arch),
        install=f"mkdir -p %{{buildroot}}/usr/share/{name}\necho {name} > %{{buildroot}}/usr/share/{name}/greeting",
        files=f"/usr/share/{name}",
    )


def with_subpackage(spec: str, name: str, tags: str = "") -> str:
    """A spec with an empty subpackage more, which may have a version and an epoch of its own."""
    return f"{spec}%package -n {name}\nSummary: Empty\n{tags}%description -n {name}\nIt is empty.\n%files -n {name}\n"


def compiled(
    name: str = "greeter",
    *,
    version: str = "1.0",
    exclusive_arch: str = "",
    exclude_arch: str = "",
    build_arch: str = "",
    requires: str = "gcc",
) -> str:
    """A package of one program in C, that says hello; its source is in the spec."""
    build_arch = f"BuildArch: {build_arch}\n" if build_arch else ""
    return _spec(
        name,
        version=version,
        tags=f"BuildRequires: {requires}\n{build_arch}" + arch_tags(exclusive_arch, exclude_arch),
        build="printf '#include <stdio.h>\\nint main(void){puts(\"hello\");return 0;}\\n' > main.c\n"
        f"gcc $RPM_OPT_FLAGS -o {name} main.c",
        install=f"mkdir -p %{{buildroot}}/usr/bin\ninstall -m 755 {name} %{{buildroot}}/usr/bin/{name}",
        check=f"./{name} | grep hello",
        files=f"/usr/bin/{name}",
    )


def failing_build(name: str = "broken", *, section: str = "build", exclusive_arch: str = "") -> str:
    """A package whose `section` (prep, build, install, check) fails; `files` lists a file that nobody makes."""
    tags = "BuildArch: noarch\n" if not exclusive_arch else arch_tags(exclusive_arch)
    if section == "files":
        return _spec(name, tags=tags, files="/usr/share/nobody-made-it")
    return _spec(name, tags=tags, **{section: f"echo 'error: {name} cannot do this' >&2\nexit 3"})


def fails_on(name: str, machine: str) -> str:
    """A compiled package that fails to build for one target arch and builds for others."""
    refusal = f"%ifarch {machine}\necho 'error: not on {machine}' >&2\nexit 3\n%endif\n"
    return compiled(name).replace("%build\n", f"%build\n{refusal}", 1)


def slow(name: str = "slow", seconds: int = 300) -> str:
    """A package that takes its time, and says so each second."""
    return _spec(
        name,
        tags="BuildArch: noarch",
        build=f"for i in $(seq 1 {seconds}); do echo tick $i; sleep 1; done",
        install=f"mkdir -p %{{buildroot}}/usr/share/{name}\ntouch %{{buildroot}}/usr/share/{name}/done",
        files=f"/usr/share/{name}",
    )


def missing_requires(name: str = "wanting", requires: str = "no-such-devel >= 3") -> str:
    """A package whose BuildRequires nobody provides."""
    return _spec(name, tags=f"BuildArch: noarch\nBuildRequires: {requires}", files="")


def dynamic(name: str = "dynamic", generate: str = "echo no-such-dyn-dep") -> str:
    """A package whose BuildRequires a script of its own prints."""
    install = f"mkdir -p %{{buildroot}}/usr/share/{name}"
    text = _spec(name, tags="BuildArch: noarch", install=install, files=f"/usr/share/{name}")
    return text.replace("%build\n", f"%generate_buildrequires\n{generate}\n%build\n", 1)


def spoil_payload(srpm: Path, spoilt: Path) -> Path:
    """The same source rpm with its payload made garbage and its header left whole."""
    content = srpm.read_bytes()
    payload = max(content.rfind(magic) for magic in (b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0"))
    assert payload > 0
    keep = payload + 16  # the compressor's own header
    spoilt.write_bytes(content[:keep] + bytes(byte ^ 0xFF for byte in content[keep:]))
    return spoilt


def truncate(srpm: Path, short: Path, keep: int = 300) -> Path:
    """The first bytes of a source rpm."""
    short.write_bytes(srpm.read_bytes()[:keep])
    return short


def forge_srpm(path: Path, fields: dict[str, str]) -> Path:
    """Make a source rpm whose header has these fields alone: rpm reads it, and no rpmbuild makes it."""
    tags = {"name": 1000, "version": 1001, "release": 1002, "arch": 1022}
    strings = [(tags[name], 6, value.encode() + b"\0") for name, value in fields.items()]
    body = pack_header([*strings, (1106, 4, struct.pack(">I", 1))])
    signature = pack_header([(1000, 4, struct.pack(">I", len(body)))])
    lead = b"\xed\xab\xee\xdb\3\0\0\1\0\1".ljust(78, b"\0") + struct.pack(">H", 5) + bytes(16)
    path.write_bytes(lead + signature + bytes(-len(signature) % 8) + body)
    return path


def pack_header(entries: list[tuple[int, int, bytes]]) -> bytes:
    index = data = b""
    for tag, kind, value in sorted(entries):
        data += bytes(-len(data) % 4) if kind == 4 else b""
        index += struct.pack(">iIiI", tag, kind, len(data), 1)
        data += value
    return b"\x8e\xad\xe8\1" + struct.pack(">III", 0, len(entries), len(data)) + index + data
