# SPDX-License-Identifier: Apache-2.0
"""One farm of machines for all proofs, which are run in their order; each finds the farm well again."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from tests.hosts import room
from tests.hosts.farm import Farm, Tell, bring_up_farm

_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a proof is called in the report, and whether anything failed."""
    report = yield
    report.sentence = _sentence(item)  # type: ignore[attr-defined]
    if report.failed:
        item.session.stash[_failed] = item.stash[_failed] = True
    return report


def _sentence(item: pytest.Item) -> str:
    words = str(getattr(item, "function", None).__doc__ or item.name).splitlines()[0].rstrip(".")
    example = item.name.partition("[")[2].rstrip("]")
    return f"{item.path.stem}: {words}{f' ({example})' if example else ''}"


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """A line for each proof: the sentence that is proved."""
    sentence = getattr(report, "sentence", "")  # other tests, in whose run this file is read too, have none
    if not sentence or (report.when != "call" and not report.failed):
        return None
    word = "ok" if report.passed else "FAILED"
    line = f"{word:6} {report.duration:6.1f} s  {sentence}\n"
    return report.outcome, line, word


@pytest.fixture(scope="session")
def farm(request: pytest.FixtureRequest) -> Iterator[Farm]:
    """The farm, made as the documents say."""
    folder = room.find_run_folder()
    assert folder is not None, "the proofs are run by python -m tests.hosts"
    made = bring_up_farm(folder)
    try:
        yield made
    finally:
        if request.session.stash.get(_failed, False):
            made.keep()


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Tell:
    """Says a line in the report, whatever becomes of the proof."""

    def say(words: str) -> None:
        with capsys.disabled():
            print(words, flush=True)

    return say


@pytest.fixture(autouse=True)
def _well(request: pytest.FixtureRequest, farm: Farm) -> Iterator[None]:
    """A proof that failed leaves nothing behind that the next would fail by."""
    yield
    if request.node.stash.get(_failed, False):
        farm.heal()
