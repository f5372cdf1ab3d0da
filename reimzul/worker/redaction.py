# SPDX-License-Identifier: Apache-2.0
"""Removes credentials from a mock configuration before it is uploaded beside a build's logs, where everybody reads it.

A configuration is Python, with texts in it that are dnf's options. Values in the Python are found by its parser, with
all their lines; whatever else looks like an option is found line by line, also in a file that Python cannot parse.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

REDACTED = "REDACTED"
#: What the name of an option, a key or a variable contains if its value is a credential.
_SECRET_NAME = re.compile(
    r"pass(?:word|wd|phrase)|token|secret|user_?name|credential|api_?key|access_?key|_auth$|^auth$", re.I
)
#: The part of a URL before its host, also where it has a token alone.
_USER_INFO = re.compile(r"://[^\s/'\"]*@")
#: The name of an option or a key, up to its value.
_OPTION = re.compile(r"(?<![\w.-])([\w.-]+)['\"]?\]?[ \t]*[=:][ \t]*(?![=/ \t])")


def redact_credentials(text: str) -> str:
    """Replace each credential in a mock configuration by `REDACTED`."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")  # Python's parser ends lines there too
    return "\n".join(_redact_lines(_redact_python(lines).split("\n")))


def _redact_python(text: str) -> str:
    """Replace the values that Python's parser finds; a text that is no Python stays as it is."""
    try:
        values = list(_find_secret_values(ast.parse(text)))
    except (SyntaxError, ValueError, RecursionError):
        return text
    lines = text.encode().split(b"\n")  # the parser counts bytes, and lines as `\n` ends them
    for value in sorted(values, key=lambda each: (each.lineno, each.col_offset), reverse=True):
        first, last = value.lineno - 1, (value.end_lineno or value.lineno) - 1
        begin, end = lines[first][: value.col_offset], lines[last][value.end_col_offset or 0 :]
        lines[first : last + 1] = [begin + repr(REDACTED).encode() + end]
    return b"\n".join(lines).decode()


def _find_secret_values(tree: ast.AST) -> Iterator[ast.expr]:
    """The outermost values that belong to a name of a credential."""
    found = list(_secret_values_of(tree))
    yield from found
    for child in ast.iter_child_nodes(tree):
        if child not in found:
            yield from (each for each in _find_secret_values(child) if each not in found)


def _secret_values_of(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)) and node.value is not None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from [node.value] if any(map(_names_secret, targets)) else ()
    elif isinstance(node, ast.Dict):
        yield from (value for key, value in zip(node.keys, node.values) if key is not None and _names_secret(key))
    elif isinstance(node, ast.Call):
        yield from (each.value for each in node.keywords if _SECRET_NAME.search(each.arg or ""))
        if node.args and isinstance(node.args[0], ast.Constant) and _names_secret(node.args[0]):
            yield from node.args[1:]  # setdefault


def _names_secret(target: ast.expr) -> bool:
    """Whether a variable, a key, or one of the keys that lead to an entry names a credential."""
    if isinstance(target, ast.Constant):
        return isinstance(target.value, str) and len(target.value) < 100 and bool(_SECRET_NAME.search(target.value))
    if isinstance(target, ast.Name):
        return bool(_SECRET_NAME.search(target.id))
    if isinstance(target, ast.Subscript):
        return _names_secret(target.value) or any(
            _names_secret(each) for each in ast.walk(target.slice) if isinstance(each, ast.Constant)
        )
    return isinstance(target, ast.Attribute) and bool(_SECRET_NAME.search(target.attr))


def _redact_lines(lines: list[str]) -> Iterator[str]:
    """Redact options line by line, with the lines that continue a value: those that are indented deeper."""
    depth = None  # of the option whose value goes on
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if depth is not None and line.strip() and indent > depth:
            yield line[:indent] + REDACTED
            continue
        redacted = "\\n".join(map(_redact_option, line.split("\\n")))
        depth = indent if redacted != line and redacted.endswith(REDACTED) else None
        yield _USER_INFO.sub(f"://{REDACTED}@", redacted)


def _redact_option(line: str) -> str:
    for option in _OPTION.finditer(line):
        if _SECRET_NAME.search(option[1]) and not line[option.end() :].startswith(repr(REDACTED)):
            return line[: option.end()] + REDACTED
    return line
