# SPDX-License-Identifier: Apache-2.0
"""Error messages of compilers, test runners and package managers: the table with which `error_extractor.py` finds the
cause of a failure.

Each pattern has a confidence. `CAUSE`: such a line is why the step failed. `LIKELY`: mostly it is, but a script may go
on after it. `CONSEQUENCE`: it follows from an earlier line, or has no more information than that a step failed.
"""

from __future__ import annotations

import re

import attr

CAUSE, LIKELY, CONSEQUENCE, LAST = 4, 3, 2, 1


@attr.frozen
class ErrorPattern:
    pattern: re.Pattern[str]
    confidence: int = CAUSE
    before: int = 3  #: lines before it that are shown
    after: int = 10  #: lines after it that are shown


def match_until(word: str) -> str:
    """A pattern of a line's characters before `word`, for a pattern that begins with `word` anywhere in a line.

    `.*` there would be quadratic: it would read the rest of the line again at every further `word`.
    """
    return rf"(?:(?!{word})[^\n])*"


def _pattern(pattern: str, confidence: int = CAUSE, before: int = 3, after: int = 10) -> ErrorPattern:
    return ErrorPattern(re.compile(pattern), confidence, before, after)


#: The first pattern that a line matches counts.
BUILD_LOG = (
    # Compilers
    # gcc, g++, clang, gfortran's one-line form, javac (by ant too), ghc: file:line:column: error
    _pattern(r"^(?:\s*\[\w+\] )?[^\s:][^:]*:\d+(?::\d+)?:\s(?:fatal |internal compiler )?error\b", after=12),
    _pattern(
        r"^(?:cc1\w*|gcc|g\+\+|c\+\+|cc|clang(?:\+\+)?|as|\S+-gcc)(?:-\d+)?: (?:fatal |internal compiler )?error: "
    ),
    _pattern(r"^\S+\.[sS]:\d+: Error: "),
    _pattern(r"^error\[E\d+\]: ", after=14),  # rustc
    _pattern(r"^(?:vet: )?(?:\./)?\S+\.go:\d+:\d+: "),  # go build, go vet
    _pattern(r"^go: .*(?:cannot|missing|no required module|unknown revision)|cannot find (?:package|module)"),
    _pattern(r"^\[ERROR\] (?:COMPILATION ERROR|/\S+\.java:\[)"),  # Maven
    _pattern(r"^! (?:LaTeX|Undefined|Emergency|Package|Missing|TeX)"),  # TeX
    _pattern(r"^File \"[^\"]+\", lines? [\d-]+, characters [\d-]+:$", LIKELY),  # OCaml
    _pattern(r"^\S+\(\d+\) Fatal: |^\S+\(\d+,\d+\) Error: "),  # Free Pascal
    # The files of the package
    _pattern(r"^error: (?:File not found|Directory not found|Bad file|File .*: No such file)", before=1),
    _pattern(r"^error: Installed \(but unpackaged\) file\(s\) found:", before=0, after=25),
    _pattern(r"^error: (?:Arch dependent binaries in noarch package|Could not open %files file|Empty %files file)"),
    _pattern(r"^error: Missing build-id|^error: Duplicate build-ids"),
    _pattern(r"^ERROR   \d{4}: "),  # check-rpaths
    _pattern(r"^Found '.*' in installed files; aborting"),  # check-buildroot
    _pattern(r"^(?:/\S+/)?(?:cp|mv|install|ln|rm|chmod|tar|cd|sed|cat): .*No such file or directory", LIKELY),
    _pattern(r"^(?:/\S+/)?(?:install|cp|tar): (?:cannot|.*: Cannot) ", LIKELY),
    _pattern(r"No rule to make target "),
    _pattern(r": (?:command )?not found$|: No such file or directory$", LIKELY),
    # %prep, and rpmbuild before it
    _pattern(r"^\d+ out of \d+ hunks? (?:FAILED|ignored)", LIKELY, before=8),
    _pattern(r"^Hunk #\d+ FAILED at ", before=5),
    _pattern(r"^can't find file to patch at input line |^Reversed \(or previously applied\) patch detected"),
    _pattern(r"^error: (?:patch failed: |.*: patch does not apply|corrupt patch)"),  # git apply
    _pattern(r"^error: line \d+: |^error: (?:Failed build dependencies|parse error|Unknown tag|Architecture is )"),
    # Configuring
    _pattern(r"^(?:configure|\S+/configure): error: |^configure\.(?:ac|in):\d+: error"),
    _pattern(r"^CMake Error(?: at |: )", after=14),
    _pattern(r"^\S*meson\.build:\d+:\d+: ERROR: |^ERROR: (?=.*(?:[Dd]ependency|[Pp]rogram)).*not found"),
    _pattern(r"^(?:Could not find a package configuration file|Package .* was not found in the pkg-config)", LIKELY),
    _pattern(r"^Can't locate \S+ in @INC"),  # perl
    _pattern(
        r"^error: (?:no matching package named|failed to (?:select|load|get|download|parse|run custom build))"
    ),  # cargo
    # Linkers
    _pattern(r"undefined reference to |multiple definition of |undefined symbol: |: undefined reference$"),
    _pattern(r"\bld(?:\.\w+)?: (?:cannot find |error: |(?:[^:]*: ){1,4}(?:file not recognized|cannot open))"),
    _pattern(rf"relocation R_\w+ against {match_until('relocation R_')} (?:can not be used|out of range)"),
    _pattern(r"relocation truncated to fit"),
    _pattern(r"collect2: error: ", CONSEQUENCE),
    # After all patterns that are more specific
    _pattern(
        r"^error: (?!could not compile|Bad exit status|aborting due to).*\n?$", LIKELY
    ),  # rustc, cargo, rpmbuild, pip
    # Tests
    _pattern(r"^E {3,}\S", before=8, after=6),  # pytest, in a test's own report
    _pattern(r"^(?:FAILED|ERROR) \S+\.py(?:::| )", LIKELY),  # pytest's summary
    _pattern(r"^(?:FAIL|ERROR): \w+ \(", after=14),  # unittest
    _pattern(r"^(?:FAIL|ERROR):? (?!\w+ \()\S", LIKELY),  # automake, and many scripts
    _pattern(r"^\s*\d+/\d+ Test +#\d+: .*\*\*\*", LIKELY),  # ctest
    _pattern(r"^The following tests FAILED:", CONSEQUENCE),
    _pattern(r"^\s*\d+/\d+ .*\b(?:FAIL|TIMEOUT|ERROR)\b +\d+\.\d+ ?s"),  # meson test
    _pattern(r"^\s*#   Failed test|^not ok \d+\b(?!.*# (?:TODO|SKIP))"),  # TAP: perl, bats, node
    _pattern(r"Dubious, test returned|^\S+\.t \.+ Failed", LIKELY),  # prove
    _pattern(r"^\s*--- FAIL: "),  # go test
    _pattern(r"^panic: |^thread '.*' panicked at", after=14),
    _pattern(r"^test \S+ \.\.\. FAILED", LIKELY),  # cargo test
    _pattern(r"^\[  FAILED  \] \S+ \(|^\S+:\d+: Failure$"),  # googletest
    _pattern(r"^\[ERROR\] .*(?:Tests run: |FAILURE!)", LIKELY),  # surefire
    _pattern(rf"Assertion [`']{match_until('Assertion ')}' failed|AssertionError\b", LIKELY),
    # Scripts, and the host
    _pattern(r"^\s*Traceback \(most recent call last\):", LIKELY, after=25),
    _pattern(r"^(?:\w+\.)*\w*(?:Error|Exception)(?:: |$)", CONSEQUENCE, before=12),
    _pattern(r"^Exception in thread |^Caused by: ", LIKELY),
    _pattern(r"syntax error(?:,| at | near |:)", LIKELY),
    _pattern(r"Segmentation fault|[Ii]llegal instruction|Bus error|\bAborted\b|stack smashing detected", LIKELY),
    _pattern(r"^(?!ok\b)\S+: .*: No space left on device$"),
    _pattern(r"[Cc]annot allocate memory|virtual memory exhausted|Killed process|^Killed$"),
    _pattern(r"No space left on device", LIKELY),  # or what a test is about
    _pattern(r"[Pp]ermission denied", CONSEQUENCE),
    # What follows from an error
    _pattern(r"^(?:g?make|ninja)(?:\[\d+\])?: (?:\*\*\*|build stopped)", CONSEQUENCE, before=12, after=2),
    _pattern(r"^(?:FAILED: |error: could not compile|error: aborting due to)", CONSEQUENCE),
    _pattern(r"^\[ERROR\] |^FAILURE: Build failed|^BUILD FAILED|^ERROR[: ]", CONSEQUENCE),
    _pattern(r"Bad exit status from \S+ \(%", LAST, before=15, after=1),
    _pattern(r"\berror: ", LAST, before=12),
)
#: A file by which a build probes its environment (distutils, numpy, autoconf): its failure is an answer, no error.
PROBE = re.compile(r"(?:^|[\s/])(?:_configtest|conftest)\.(?:c|cc|cpp|cxx|f|f90|o):")

#: What mock's log formats put before a line.
LOG_PREFIX = r"^(?:DEBUG|INFO|WARNING|ERROR) \w+\.py:\d+:  ?"
#: What rpmbuild prints on stdout before it reads the spec: it may stand between the `error:` and the message that
#: rpmbuild prints on stderr.
TARGET_LINE = r"Building (?:target platforms:|for target) [^\n]*"
#: What dnf 4, dnf5, yum, zypper and microdnf print when nothing provides a package; the group that matches names it.
UNPROVIDED = (
    r"No matching package to install: '([^'\n]+)'"
    r"|nothing provides (?:requirement |requested )?(\S.*?)(?= needed by|$)"
    r"|(?:No Package found for|No match for argument:|Unable to find a match:) (\S.*)"
    r"|No provider of '([^'\n]+)' found"
    r"|^(?:\w+ \w+\.py:\d+:  ?)?Package '([^'\n]+)' not found"
    rf"|No package ([^\s'](?:{match_until('No package ')}\S)?) available"
    r"|No package matches '([^'\n]+)'"
    r"|package (\S+) does not exist"
    r"|requires '?([^'\n]{1,300})'?, but this requirement cannot be provided"
    r"|No match for argument '([^'\n]+)' in repositories"
)
#: What they print when packages exist, but cannot be installed together, or not here. Each such line names them.
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
#: The heads of such messages, which name nothing.
UNRESOLVED_HEAD = (
    r"^(?:.*\.py:\d+:  ?)?(?:Error: +)?Problem(?: \d+)?: |conflicting requests|problem with installed package"
    r"|cannot install the best candidate for the job|Failed to resolve the transaction|Could not depsolve transaction"
    r"|Some packages could not be found|Not all dependencies satisfied|You could try using --skip-broken"
    r"|some dependency problem|unsupported request"
)
#: What package managers and mock print when a buildroot cannot be made. A failed download is a consequence: a
#: repository that was skipped for one may have nothing to do with what is missing.
ROOT_LOG = (
    _pattern(UNPROVIDED),
    _pattern(CONFLICTING, LIKELY, after=12),
    _pattern(r"At least \S+ more space needed|No space left on device"),
    _pattern(r"GPG check FAILED|Error unpacking rpm package|[Cc]pio: |digest mismatch"),
    _pattern(UNRESOLVED_HEAD, CONSEQUENCE, after=12),
    _pattern(
        r"Failed to download metadata|Cannot download |Could not resolve host|Curl error \(|Status code: \d"
        r"|\[Errno 256\] No more mirrors|Cannot find a valid baseurl|not found on medium",
        CONSEQUENCE,
    ),
    _pattern(r"^(?:\w+ \S+:\d+:\s+)?Error: ", CONSEQUENCE),
    _pattern(r"^ERROR |Traceback \(most recent call last\)", CONSEQUENCE),
)

#: Each line that a pattern of BUILD_LOG matches has at least one of these words, and few lines of a log have any. To
#: search for them is some twenty times as fast as to try the patterns.
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
