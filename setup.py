# SPDX-License-Identifier: Apache-2.0
"""What pyproject.toml cannot say: PyPI shows README.md apart from its tree, so links to other files become absolute."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup

TREE = Path(__file__).parent
README = (TREE / "README.md").read_text(encoding="utf-8")
PROJECT = (TREE / "pyproject.toml").read_text(encoding="utf-8")
#: The address that files of the repository have: that of the changelog, in [project.urls].
(FILES,) = re.findall(r'^Changelog = "(.+/)CHANGELOG\.md"$', PROJECT, re.MULTILINE)

setup(
    long_description=re.sub(r"\]\((?!https?://|#)", f"]({FILES}", README),
    long_description_content_type="text/markdown",
)
