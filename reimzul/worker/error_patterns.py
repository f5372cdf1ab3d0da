# SPDX-License-Identifier: Apache-2.0
"""How programs say what is wrong: a table, a row each, by which `firsterror.py` finds the cause of a failure.

A rule says how sure it is. `CAUSE`: such a line is why the step failed. `LIKELY`: it mostly is, but a script may have
gone on after it. `CONSEQUENCE`: it follows from something said before, or says nothing but that it failed.
"""

from __future__ import annotations

import re

import attr

CAUSE, LIKELY, CONSEQUENCE, LAST = 4, 3, 2, 1


@attr.frozen
class ErrorPattern:
    """One way to say it."""

    pattern: re.Pattern[str]
    confidence: int = CAUSE
    before: int = 3  #: how many lines before it are shown
    after: int = 10  #: and after it


def _rule(pattern: str, surety: int = CAUSE, before: int = 3, after: int = 10) -> ErrorPattern:
    return ErrorPattern(re.compile(pattern), surety, before, after)


_COMPILERS = (
    # gcc, g++, clang, gfortran's one-line form, javac (by ant too), ghc: file:line:column: error
    _rule(r"^(?:\s*\[\w+\] )?[^\s:][^:]*:\d+(?::\d+)?:\s(?:fatal |internal compiler )?error\b", after=12),
    _rule(r"^(?:cc1\w*|gcc|g\+\+|c\+\+|cc|clang(?:\+\+)?|as|\S+-gcc)(?:-\d+)?: (?:fatal |internal compiler )?error: "),
    _rule(r"^\S+\.[sS]:\d+: Error: "),
    _rule(r"^error\[E\d+\]: ", after=14),  # rustc
    _rule(r"^(?:vet: )?(?:\./)?\S+\.go:\d+:\d+: "),  # go build, go vet
    _rule(r"^go: .*(?:cannot|missing|no required module|unknown revision)|cannot find (?:package|module)"),
    _rule(r"^\[ERROR\] (?:COMPILATION ERROR|/\S+\.java:\[)"),  # Maven
    _rule(r"^! (?:LaTeX|Undefined|Emergency|Package|Missing|TeX)"),  # TeX
    _rule(r"^File \"[^\"]+\", lines? [\d-]+, characters [\d-]+:$", LIKELY),  # OCaml
    _rule(r"^\S+\(\d+\) Fatal: |^\S+\(\d+,\d+\) Error: "),  # Free Pascal
)
#: After all that know more of such a line.
_PLAIN = (
    _rule(
        r"^error: (?!could not compile|Bad exit status|aborting due to).*\n?$", LIKELY
    ),  # rustc, cargo, rpmbuild, pip
)
_LINKERS = (
    _rule(r"undefined reference to |multiple definition of |undefined symbol: |: undefined reference$"),
    _rule(r"\bld(?:\.\w+)?: (?:cannot find |error: |.*: (?:file not recognized|cannot open))"),
    _rule(r"relocation R_\w+ against .* (?:can not be used|out of range)|relocation truncated to fit"),
    _rule(r"collect2: error: ", CONSEQUENCE),
)
_TESTS = (
    _rule(r"^E {3,}\S", before=8, after=6),  # pytest, in a test's own report
    _rule(r"^(?:FAILED|ERROR) \S+\.py(?:::| )", LIKELY),  # pytest's summary
    _rule(r"^(?:FAIL|ERROR): \w+ \(", after=14),  # unittest
    _rule(r"^(?:FAIL|ERROR):? (?!\w+ \()\S", LIKELY),  # automake, and many scripts
    _rule(r"^\s*\d+/\d+ Test +#\d+: .*\*\*\*", LIKELY),  # ctest
    _rule(r"^The following tests FAILED:", CONSEQUENCE),
    _rule(r"^\s*\d+/\d+ .*\b(?:FAIL|TIMEOUT|ERROR)\b +\d+\.\d+ ?s"),  # meson test
    _rule(r"^\s*#   Failed test|^not ok \d+(?!.*# (?:TODO|SKIP))"),  # TAP: perl, bats, node
    _rule(r"Dubious, test returned|^\S+\.t \.+ Failed", LIKELY),  # prove
    _rule(r"^\s*--- FAIL: "),  # go test
    _rule(r"^panic: |^thread '.*' panicked at", after=14),
    _rule(r"^test \S+ \.\.\. FAILED", LIKELY),  # cargo test
    _rule(r"^\[  FAILED  \] \S+ \(|^\S+:\d+: Failure$"),  # googletest
    _rule(r"^\[ERROR\] .*(?:Tests run: |FAILURE!)", LIKELY),  # surefire
    _rule(r"Assertion [`'].*' failed|AssertionError\b", LIKELY),
)
_FILES = (
    _rule(r"^error: (?:File not found|Directory not found|Bad file|File .*: No such file)", before=1),
    _rule(r"^error: Installed \(but unpackaged\) file\(s\) found:", before=0, after=25),
    _rule(r"^error: (?:Arch dependent binaries in noarch package|Could not open %files file|Empty %files file)"),
    _rule(r"^error: Missing build-id|^error: Duplicate build-ids"),
    _rule(r"^ERROR   \d{4}: "),  # check-rpaths
    _rule(r"^Found '.*' in installed files; aborting"),  # check-buildroot
    _rule(r"^(?:/\S+/)?(?:cp|mv|install|ln|rm|chmod|tar|cd|sed|cat): .*No such file or directory", LIKELY),
    _rule(r"^(?:/\S+/)?(?:install|cp|tar): (?:cannot|.*: Cannot) ", LIKELY),
    _rule(r"No rule to make target "),
    _rule(r": (?:command )?not found$|: No such file or directory$", LIKELY),
)
_PREPARING = (
    _rule(r"^\d+ out of \d+ hunks? (?:FAILED|ignored)", LIKELY, before=8),
    _rule(r"^Hunk #\d+ FAILED at ", before=5),
    _rule(r"^can't find file to patch at input line |^Reversed \(or previously applied\) patch detected"),
    _rule(r"^error: (?:patch failed: |.*: patch does not apply|corrupt patch)"),  # git apply
    _rule(r"^error: line \d+: |^error: (?:Failed build dependencies|parse error|Unknown tag|Architecture is )"),
)
_CONFIGURING = (
    _rule(r"^(?:configure|\S+/configure): error: |^configure\.(?:ac|in):\d+: error"),
    _rule(r"^CMake Error(?: at |: )", after=14),
    _rule(r"^\S*meson\.build:\d+:\d+: ERROR: |^ERROR: .*(?:[Dd]ependency|[Pp]rogram).*not found"),
    _rule(r"^(?:Could not find a package configuration file|Package .* was not found in the pkg-config)", LIKELY),
    _rule(r"^Can't locate \S+ in @INC"),  # perl
    _rule(
        r"^error: (?:no matching package named|failed to (?:select|load|get|download|parse|run custom build))"
    ),  # cargo
)
_SCRIPTS = (
    _rule(r"^\s*Traceback \(most recent call last\):", LIKELY, after=25),
    _rule(r"^(?:\w+\.)*\w*(?:Error|Exception)(?:: |$)", CONSEQUENCE, before=12),
    _rule(r"^Exception in thread |^Caused by: ", LIKELY),
    _rule(r"syntax error(?:,| at | near |:)", LIKELY),
    _rule(r"Segmentation fault|[Ii]llegal instruction|Bus error|\bAborted\b|stack smashing detected", LIKELY),
    _rule(r"^(?!ok\b)\S+: .*: No space left on device$"),
    _rule(r"[Cc]annot allocate memory|virtual memory exhausted|Killed process|^Killed$"),
    _rule(r"No space left on device", LIKELY),  # or what a test is about
    _rule(r"[Pp]ermission denied", CONSEQUENCE),
)
_WHAT_FOLLOWS = (
    _rule(r"^(?:g?make|ninja)(?:\[\d+\])?: (?:\*\*\*|build stopped)", CONSEQUENCE, before=12, after=2),
    _rule(r"^(?:FAILED: |error: could not compile|error: aborting due to)", CONSEQUENCE),
    _rule(r"^\[ERROR\] |^FAILURE: Build failed|^BUILD FAILED|^ERROR[: ]", CONSEQUENCE),
    _rule(r"Bad exit status from \S+ \(%", LAST, before=15, after=1),
    _rule(r"\berror: ", LAST, before=12),
)

#: The first rule that a line matches is its rule.
BUILD_LOG = (
    *_COMPILERS, *_FILES, *_PREPARING, *_CONFIGURING, *_LINKERS, *_PLAIN, *_TESTS, *_SCRIPTS, *_WHAT_FOLLOWS,
)  # fmt: skip
#: Of a file by which a build finds out what there is (distutils, numpy, autoconf): that it fails is an answer.
PROBE = re.compile(r"(?:^|[\s/])(?:_configtest|conftest)\.(?:c|cc|cpp|cxx|f|f90|o):")

#: What rpmbuild prints on stdout before it reads the spec: it may stand between the `error:` and the words that
#: rpmbuild prints on stderr.
TARGET_LINE = r"Building (?:target platforms:|for target) [^\n]*"
#: How dnf 4, dnf5, yum, zypper and microdnf say that nobody provides something; the one group that matches names it.
UNPROVIDED = (
    r"No matching package to install: '([^'\n]+)'"
    r"|nothing provides (?:requirement |requested )?(\S.*?)(?= needed by|$)"
    r"|(?:No Package found for|No match for argument:|Unable to find a match:) (\S.*)"
    r"|No provider of '([^'\n]+)' found"
    r"|^(?:\w+ \w+\.py:\d+:  ?)?Package '([^'\n]+)' not found"
    r"|No package ([^\s'](?:[^\n]*\S)?) available"
    r"|No package matches '([^'\n]+)'"
    r"|package (\S+) does not exist"
    r"|requires '?([^'\n]+)'?, but this requirement cannot be provided"
    r"|No match for argument '([^'\n]+)' in repositories"
)
#: How they say that packages exist and cannot be installed together, or not here. Each such line names them.
CONFLICTING = (
    r"but none of the providers can be installed"
    r"|filtered out by (?:modular|exclude|modular or exclude) filtering"
    r"|[Pp]ackages? \S+ is excluded|matches only \w+ packages"
    r"|(?:package|module|installed) \S[^\n]{0,300} (?:conflicts with|obsoletes) "
    r"|^(?:.*\.py:\d+:  ?)?Error: \S+ conflicts with \S"
    r"|conflicts with file from package|conflicts between attempted installs of"
    r"|cannot install both |cannot install the best (?:update )?candidate for (?:package|module) \S"
    r"|has inferior architecture|does not have a compatible architecture|is not installable|module \S+ is disabled"
    r"|does not belong to a distupgrade repository|following protected packages"
    r"|both (?:package|module) [^\n]{0,300} obsolete "
    r"|(?:uninstallable|not installable) providers: |but it is not going to be installed|Multilib version problems"
    r"|^(?:.*\.py:\d+:  ?)?Error: Package: \S"
)
#: The heads of such an answer, which name nothing.
UNRESOLVED_HEAD = (
    r"^(?:.*\.py:\d+:  ?)?(?:Error: +)?Problem(?: \d+)?: |conflicting requests|problem with installed package"
    r"|cannot install the best candidate for the job|Failed to resolve the transaction|Could not depsolve transaction"
    r"|Some packages could not be found|Not all dependencies satisfied|You could try using --skip-broken"
    r"|some dependency problem|unsupported request"
)
#: What package managers and mock say of a buildroot that cannot be made. A failed download is a consequence: a
#: repository that was skipped for one may have nothing to do with what is missing.
ROOT_LOG = (
    _rule(UNPROVIDED),
    _rule(CONFLICTING, LIKELY, after=12),
    _rule(r"At least \S+ more space needed|No space left on device"),
    _rule(r"GPG check FAILED|Error unpacking rpm package|[Cc]pio: |digest mismatch"),
    _rule(UNRESOLVED_HEAD, CONSEQUENCE, after=12),
    _rule(
        r"Failed to download metadata|Cannot download |Could not resolve host|Curl error \(|Status code: \d"
        r"|\[Errno 256\] No more mirrors|Cannot find a valid baseurl|not found on medium",
        CONSEQUENCE,
    ),
    _rule(r"^(?:\w+ \S+:\d+:\s+)?Error: ", CONSEQUENCE),
    _rule(r"^ERROR |Traceback \(most recent call last\)", CONSEQUENCE),
)

#: Words of which one at least stands in every line that a rule of BUILD_LOG matches: few lines of a log have any of
#: them. To look for them is some twenty times as fast as to try the rules.
BUILD_WORDS = (
    b"rror:", b"rror\x1b", b"rror[E", b"rror at", b"Error", b"ERROR", b"FAIL", b"Failed", b"Failure", b"TIMEOUT",
    b"***", b"E   ", b"not ok", b"Dubious", b"panic", b"Assert", b"undefined", b"multiple definition",
    b"ld: ", b"ld.", b"relocation", b"yntax error", b", characters ", b"Fatal", b"! ", b".go:", b"go: ", b"cannot",
    b"an't ", b"ot found", b"No such", b"No rule", b"hunk", b"Reversed", b"corrupt", b"Found '", b"uplicate build-ids",
    b"Could not", b"pkg-config", b"Traceback", b"Exception", b"Caused by", b"Segmentation", b"llegal instr",
    b"Bus err", b"Aborted", b"smashing", b"No space", b"annot alloc", b"exhausted", b"Killed", b"denied",
    b"stopped", b"Bad exit",
)  # fmt: skip
#: The same for ROOT_LOG.
ROOT_WORDS = (
    b"No match", b"nothing provides", b"No Package", b"No package", b"Unable to find", b"No provider", b"not found",
    b"does not exist", b"cannot be provided", b"Problem", b"problem", b"conflict", b"obsolete", b"but none of",
    b"filtered out", b"is excluded", b"matches only", b"cannot install", b"architecture", b"installable", b"disabled",
    b"distupgrade", b"protected packages", b"going to be installed", b"Multilib", b"Failed to", b"Cannot", b"Could not",
    b"Curl", b"Status code", b"Errno 256", b"At least", b"No space", b"GPG", b"rror", b"ERROR", b"pio: ", b"mismatch",
    b"Traceback", b"Some packages", b"Not all dep", b"skip-broken", b"unsupported request", b"matches for argument",
    b"match for argument",
)  # fmt: skip
