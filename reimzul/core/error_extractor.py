# SPDX-License-Identifier: Apache-2.0
"""Extracts the first real error of a build, with its surroundings, from its logs.

Only the step that failed counts: errors of an earlier step did not stop it, so each new step drops what was found
before. Within the step the patterns (`error_patterns.py`) tell a certain cause from a likely one and from a
consequence; of the highest confidence the first line is taken. Where no pattern matches, the log's end is shown.

A log is read once, a block at a time (`log_reader.py`), and only lines with one of the patterns' words are looked at
closer.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import attr

from reimzul.core.error_patterns import (
    BUILD_LOG,
    BUILD_WORDS,
    CAUSE,
    LOG_PREFIX,
    PROBE,
    ROOT_LOG,
    ROOT_WORDS,
    TARGET_LINE,
    ErrorPattern,
)
from reimzul.core.log_reader import LINE_LIMIT, decode_line, read_blocks, read_end
from reimzul.core.retry import CancelToken

#: The most characters of an excerpt, and of one of its lines.
EXCERPT_CHARS, EXCERPT_LINE_CHARS = 4_000, 400
#: Bytes around an error that may be shown.
SURROUNDING_BYTES = 24_000
#: Lines of a log's end, where no pattern matches.
LAST_LINES = 25

_STEP = re.compile(r"Executing\(%|Processing files: ")
_STEP_WORDS = (b"Executing(%", b"Processing files: ", b"Child return code")
_RETURNED = re.compile(r"(?:DEBUG util\.py:\d+: +)?Child return code was: (-?\d+)")
#: Exit codes with which rpmbuild goes on: 11 means that more BuildRequires are to be installed first.
_CONTINUING_CODES = ("0", "11")
#: A command that a script is about to run, as `sh -x` prints it: no error, whatever it holds.
_ECHO = re.compile(r"^\++ \S")
#: `error:` alone on its line, or with what rpmbuild printed on stdout meanwhile; its message is on a later line.
_BARE = re.compile(rf"^((?:{LOG_PREFIX})?(?:\S+: )?(?:fatal )?(?:[Ee]rror|ERROR):)\s*(?:{TARGET_LINE})?$")
_STDOUT_LINE = re.compile(rf"^\s*(?:{TARGET_LINE})?$")
#: The head of an error whose message comes later, and how the line with the message begins.
_HEAD = re.compile(r"Traceback \(most recent call last\):|File \"[^\"]+\", lines? [\d-]+, characters [\d-]+:$")
_HEADED = re.compile(r"^(?:Error: |[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)\b)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*[mK]")
_PREFIX = re.compile(LOG_PREFIX)
#: What root.log and build.log end with whatever happened.
_NOISE = re.compile(
    r"child environment: |Executing command: |kill orphans|ensuring that dir exists|Child return code|^\s*$"
    r"|^RPM build errors:|Unmounting|umount"
)


@attr.frozen
class FirstError:
    text: str = ""  #: with its surroundings, at most `EXCERPT_CHARS`
    line: str = ""  #: the line that is the cause
    log: str = ""  #: the name of its log


@attr.frozen
class FoundError:
    offset: int  #: of the line, in bytes
    line: str
    pattern: ErrorPattern


def find_first_error(build_log: Path, root_log: Path, cancel: CancelToken | None = None) -> FirstError:
    """Find the first real error; it is empty where neither log has any line that matters."""
    for log, patterns, words in ((build_log, BUILD_LOG, BUILD_WORDS), (root_log, ROOT_LOG, ROOT_WORDS)):
        found = _search(log, patterns, words, cancel or CancelToken())
        if found is not None:
            text = _excerpt(log, found)
            line = _display_lines(found.line)[0].strip().removeprefix("- ")
            return FirstError(text, _cause_line(line, text), log.name)
    for log in (build_log, root_log):
        lines = [line for line in _display_lines(read_end(log, SURROUNDING_BYTES)) if not _NOISE.search(line)]
        if end := "\n".join(lines[-LAST_LINES:])[-EXCERPT_CHARS:]:
            return FirstError(end, end.splitlines()[-1].strip(), log.name)
    return FirstError()


def _search(
    log: Path, patterns: Sequence[ErrorPattern], words: Sequence[bytes], cancel: CancelToken
) -> FoundError | None:
    """The error of the highest confidence in the step that failed."""
    best: FoundError | None = None
    for start, block in read_blocks(log):
        cancel.raise_if_cancelled()
        for offset, line in _candidate_lines(block, words):
            cancel.raise_if_cancelled()  # every line of a block may be one
            returned = _RETURNED.match(line)
            if returned is not None and returned.group(1) not in _CONTINUING_CODES and best is not None:
                return best
            best = None if returned is not None or _STEP.match(line) else _better(best, start + offset, line, patterns)
    return best


def _better(best: FoundError | None, offset: int, line: str, patterns: Sequence[ErrorPattern]) -> FoundError | None:
    """The line with the first pattern it matches, if its confidence is higher than that of the best line before it."""
    confidence = 0 if best is None else best.pattern.confidence
    if confidence == CAUSE or PROBE.search(line) or _ECHO.match(line):
        return best
    match = next((each for each in patterns if each.confidence > confidence and each.pattern.search(line)), None)
    return best if match is None else FoundError(offset, line, match)


def _candidate_lines(block: bytes, words: Sequence[bytes]) -> Iterator[tuple[int, str]]:
    """The lines of a block with one of the words, each with its offset."""
    lines: dict[int, int] = {}
    for word in (*_STEP_WORDS, *words):
        at = block.find(word)
        while at >= 0:
            end = block.find(b"\n", at)
            end = len(block) if end < 0 else end
            lines[block.rfind(b"\n", 0, at) + 1] = end
            at = block.find(word, end)
    for begin, end in sorted(lines.items()):
        line = _COLOUR.sub("", decode_line(block, begin, end))
        bare = _BARE.match(line)
        yield begin, f"{bare.group(1)} {_next_line(block, end)}" if bare else line


def _next_line(block: bytes, end: int) -> str:
    """The first line after one that is not rpmbuild's stdout, without log prefix: the message of a bare `error:`."""
    stop = min(len(block), end + 1 + LINE_LIMIT)
    while (begin := end + 1) < stop:
        end = block.find(b"\n", begin, stop)
        end = stop if end < 0 else end
        line = _display_lines(decode_line(block, begin, end))[0]
        if not _STDOUT_LINE.match(line):
            return line.strip()
    return ""


def _excerpt(log: Path, found: FoundError) -> str:
    """The error with lines around it, of its step alone; what follows it takes precedence over what led to it."""
    skip = max(0, found.offset - SURROUNDING_BYTES)
    with log.open("rb") as stream:
        stream.seek(skip)
        block = stream.read(found.offset - skip + SURROUNDING_BYTES)
    before = _display_lines(_decode(block[: found.offset - skip]))[:-1]
    steps = [number for number, line in enumerate(before) if _STEP.match(line)]
    before = [line for line in before[steps[-1] if steps else 0 :] if not _NOISE.search(line)]
    after = _display_lines(_decode(block[found.offset - skip :]))[: found.pattern.after + 1]
    ends = [number for number, line in enumerate(after) if _STEP.match(line) or _RETURNED.match(line)]
    text = "\n".join(after[: ends[0]] if ends else after)[:EXCERPT_CHARS]
    for line in itertools.islice(reversed(before), found.pattern.before):
        if len(text) + len(line) + 1 > EXCERPT_CHARS:
            break
        text = f"{line}\n{text}"
    return text.rstrip("\n")


def _cause_line(line: str, text: str) -> str:
    """The line with the message: of a traceback, which begins with a head, its last line."""
    if not _HEAD.match(line):
        return line
    return next((each.strip() for each in text.partition(line)[2].splitlines() if _HEADED.match(each)), line)


def _decode(block: bytes) -> str:
    return _COLOUR.sub("", block.decode("utf-8", "replace"))


def _display_lines(text: str) -> list[str]:
    """Lines as they are shown: without mock's prefix, and cut where they are too long."""
    lines = (_PREFIX.sub("", line) for line in _COLOUR.sub("", text).replace("\r\n", "\n").split("\n"))
    return [line if len(line) <= EXCERPT_LINE_CHARS else f"{line[: EXCERPT_LINE_CHARS - 1]}…" for line in lines]
