# SPDX-License-Identifier: Apache-2.0
"""Repositories that were skipped or changed while they were read: nobody's fault, the package's, or the builder's."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from reimzul.worker.mock_result import DownloadFault, Fault, classify, read_failures

STORE = "http://127.0.0.1:23826/bstore/repo/t1.x86_64/"
SETUP = "2026-11-29 04:09:33,449 - Start: build setup for d-1-1.src.rpm\n"
MISSING = "No matching package to install: 'libfoo-devel >= 1.0'\nError: Some packages could not be found.\n"
CALL = "Executing command: ['/usr/bin/dnf-3', '{}', '--installroot', '/x'] with env {{}} and shell False\n"
NO_REPOMD = "Cannot download repomd.xml: Cannot download repodata/repomd.xml: All mirrors were tried"
NO_PRIMARY = (
    "Yum repo downloading error: Downloading error(s): repodata/5f-primary.xml.gz - "
    "Cannot download, all mirrors were already tried without success"
)


def dnf4(cause: str, words: str = NO_REPOMD, *, skipped: bool = True) -> str:
    bullets = f"Errors during downloading metadata for repository 'target':\n  - {cause}\n" if cause else ""
    return f"{bullets}Error: Failed to download metadata for repo 'target': {words}\n" + (
        "Ignoring repositories: other, target\n" if skipped else ""
    )


def dnf5(cause: str, *, skipped: bool = True) -> str:
    text = f" target   100% |   0.0   B/s |   0.0   B |  00m00s\n>>> {cause}\n"
    text += ">>> No more mirrors to try - All mirrors were already tried without success\n"
    fatal = f'Failed to download metadata (baseurl: "{STORE}") for repository "target"\n Librepo error: {NO_REPOMD}\n'
    return text + ("Repositories loaded.\n" if skipped else fatal)


def dnf5_with_words(cause: str) -> str:
    return (
        'Error loading repo "target" (skipping due to "skip_if_unavailable=true"):\n'
        f' Failed to download metadata (baseurl: "{STORE}") for repository "target": {cause}\n'
        f" Librepo error: {NO_REPOMD}\n"
    )


def logs(folder: Path, said: str, prefix: str = "DEBUG util.py:460:  ") -> Path:
    (folder / "state.log").write_text(SETUP)
    text = CALL.format("builddep") + said
    (folder / "root.log").write_text("".join(prefix + line for line in text.splitlines(keepends=True)))
    (folder / "d-1-1.x86_64.rpm").touch()
    return folder


REFUSED = f"Curl error (7): Couldn't connect to server for {STORE}repodata/repomd.xml [Failed to connect to port 9]"
ABSENT = (
    f"Status code: 404 for {STORE}repodata/repomd.xml (IP: 127.0.0.1)",
    f"Status code: 410 for {STORE}repodata/repomd.xml (IP: 127.0.0.1)",
    "Curl error (37): Couldn't read a file:// file for file:///srv/repo/repodata/repomd.xml [Couldn't open file]",
)
HIDING = (
    REFUSED,
    f"Curl error (56): Failure when receiving data from the peer for {STORE}repodata/repomd.xml [Recv failure: reset]",
    f"Curl error (28): Timeout was reached for {STORE}repodata/repomd.xml [Operation too slow]",
    f"Status code: 503 for {STORE}repodata/repomd.xml (IP: 127.0.0.1)",
    f"Status code: 403 for {STORE}repodata/repomd.xml (IP: 127.0.0.1)",
    f"Status code: 404 for {STORE}repodata/5f-primary.xml.gz (IP: 127.0.0.1)",
    "Downloading successful, but checksum doesn't match. Calculated: 1(sha256)  Expected: 2(sha256) ",
)
SKIPPED = [dnf4, dnf5, dnf5_with_words]


@pytest.mark.parametrize("form", SKIPPED)
@pytest.mark.parametrize("cause", ABSENT)
def test_a_target_that_published_nothing_hides_nothing(tmp_path: Path, form: object, cause: str) -> None:
    folder = logs(tmp_path, form(cause))  # type: ignore[operator]
    assert classify(0, folder).fault is Fault.NONE
    verdict = classify(30, logs(tmp_path, form(cause) + MISSING))  # type: ignore[operator]
    assert (verdict.fault, verdict.reason) == (
        Fault.PACKAGE, "BuildRequires that nobody provides: libfoo-devel >= 1.0"
    )  # fmt: skip


@pytest.mark.parametrize("form", SKIPPED)
@pytest.mark.parametrize("cause", HIDING)
@pytest.mark.parametrize(("code", "more"), [(0, ""), (30, MISSING), (1, "")])
def test_a_repository_skipped_for_any_other_reason_is_nobodys_fault(
    tmp_path: Path, form: object, cause: str, code: int, more: str
) -> None:
    folder = logs(tmp_path, form(cause) + more)  # type: ignore[operator]
    if code == 1:
        (folder / "state.log").write_text(f"{SETUP}2026-11-29 04:09:34,449 - Start: rpmbuild d-1-1.src.rpm\n")
    verdict = classify(code, folder)
    assert verdict.fault is Fault.NOBODY
    assert cause[:60].strip() in verdict.reason


def test_one_mirror_without_it_and_one_that_refuses_is_not_absent(tmp_path: Path) -> None:
    assert classify(0, logs(tmp_path, dnf4(f"{ABSENT[0]}\n  - {REFUSED}"))).fault is Fault.NOBODY


def test_an_earlier_call_that_skipped_counts_too(tmp_path: Path) -> None:
    assert classify(0, logs(tmp_path, dnf4(REFUSED) + CALL.format("builddep") + "Complete!\n")).fault is Fault.NOBODY


def test_a_metadata_signature_that_is_wrong_hides_packages(tmp_path: Path) -> None:
    said = dnf4("", "repomd.xml GPG signature verification error: Bad GPG signature")
    assert classify(0, logs(tmp_path, said)).fault is Fault.NOBODY


def test_a_metalink_that_is_absent_hides_packages(tmp_path: Path) -> None:
    said = dnf4("", "Cannot prepare internal mirrorlist: Status code: 404 for http://m/metalink?repo=x (IP: 1.2.3.4)")
    assert classify(0, logs(tmp_path, said)).fault is Fault.NOBODY


def test_an_old_dnf_without_a_cause_is_taken_for_an_absent_target(tmp_path: Path) -> None:
    said = "Failed to synchronize cache for repo 'target', ignoring this repo.\n"
    assert classify(30, logs(tmp_path, said + MISSING)).fault is Fault.PACKAGE


def test_zypper_skips_too(tmp_path: Path) -> None:
    missing = f"File '/repodata/repomd.xml' not found on medium '{STORE}'\n"
    skip = "Skipping repository 'target' because of the above error.\n"
    assert classify(0, logs(tmp_path, missing + skip)).fault is Fault.NONE
    stale = missing.replace("repomd.xml", "5f-primary.xml.gz")
    assert classify(0, logs(tmp_path, stale + skip)).fault is Fault.NOBODY
    assert classify(0, logs(tmp_path, f"Timeout exceeded when accessing '{STORE}'.\n{skip}")).fault is Fault.NOBODY


DNF4_NO_PACKAGE = (
    "[FAILED] a-1.noarch.rpm: No more mirrors to try - All mirrors were already tried without success\n"
    "Error: Error downloading packages:\n"
    "  a-1.noarch: Cannot download, all mirrors were already tried without success\n"
)
STALE = (
    f"[MIRROR] a-1.noarch.rpm: Status code: 404 for {STORE}a-1.noarch.rpm (IP: 127.0.0.1)\n{DNF4_NO_PACKAGE}",
    f"[MIRROR] a-1.noarch.rpm: Downloading successful, but checksum doesn't match. Calculated: 1\n{DNF4_NO_PACKAGE}",
    dnf4(f"Status code: 404 for {STORE}repodata/5f-primary.xml.gz (IP: 127.0.0.1)", NO_PRIMARY, skipped=False),
    dnf4("", NO_PRIMARY, skipped=False),
    dnf5(f"Status code: 404 for {STORE}repodata/5f-primary.xml.zst (IP: 127.0.0.1)", skipped=False),
    f"[MIRROR] a-1.rpm: Status code: 404 for {STORE}a/a-1.rpm (IP: 127.0.0.1)\n"
    "[FAILED] a-1.rpm: No more mirrors to try - All mirrors were already tried without success\n"
    "Error: Error downloading packages:\n  Cannot download a/a-1.rpm: All mirrors were tried\n",
    "[MIRROR] a-1.rpm: Interrupted by header callback: Server reports Content-Length: 9 but expected size is: 10\n"
    "Error: Error downloading packages:\n  Cannot download a/a-1.rpm: All mirrors were tried\n",
    f"{STORE}repodata/5f-primary.sqlite.bz2: [Errno 14] HTTP Error 404 - Not Found\nTrying other mirror.\n"
    "failure: repodata/5f-primary.sqlite.bz2 from base: [Errno 256] No more mirrors to try.\n",
)


@pytest.mark.parametrize("said", STALE)
@pytest.mark.parametrize("state", [SETUP, ""])
def test_a_file_that_the_metadata_lists_and_that_is_gone_is_nobodys_fault(
    tmp_path: Path, said: str, state: str
) -> None:
    folder = logs(tmp_path, said)
    (folder / "state.log").write_text(state)
    verdict = classify(30, folder)
    assert verdict.fault is Fault.NOBODY
    assert verdict.reason.startswith("a repository changed while it was read: ")


@pytest.mark.parametrize("form", [dnf4, dnf5])
@pytest.mark.parametrize("cause", [REFUSED, ABSENT[0]])
def test_a_repository_that_must_answer_and_does_not_is_the_builders(tmp_path: Path, form: object, cause: str) -> None:
    verdict = classify(30, logs(tmp_path, form(cause, skipped=False)))  # type: ignore[operator]
    assert verdict.fault is Fault.BUILDER
    assert verdict.reason.startswith("Failed to download metadata")


def test_a_call_that_mock_repeated_is_made_up_for(tmp_path: Path) -> None:
    said = dnf4(REFUSED, skipped=False) + CALL.format("builddep") + MISSING
    assert classify(30, logs(tmp_path, said)).fault is Fault.PACKAGE


def test_a_full_disk_outweighs_a_skipped_repository(tmp_path: Path) -> None:
    full = f"Curl error (23): Failed writing received data for {STORE}repodata/repomd.xml [No space left on device]"
    assert classify(0, logs(tmp_path, dnf4(full))).fault is Fault.BUILDER


@pytest.mark.parametrize("word", ["Status code: 404 for ", "Curl error (7): ", "http://x", "failure: x from "])
def test_a_line_without_an_end_is_read_in_time(word: str) -> None:
    began = time.monotonic()
    failures = read_failures(word * 200_000 + "\n" + dnf4(ABSENT[0]))
    assert time.monotonic() - began < 5
    assert failures[-1].causes[-1] is DownloadFault.ABSENT


@pytest.mark.parametrize(
    ("code", "fault"), [(11, Fault.PACKAGE), (40, Fault.PACKAGE), (5, Fault.BUILDER), (-9, Fault.BUILDER)]
)
def test_a_skipped_repository_explains_no_timeout_and_no_fault_of_the_host(
    tmp_path: Path, code: int, fault: Fault
) -> None:
    assert classify(code, logs(tmp_path, dnf4(REFUSED))).fault is fault


def test_a_repository_that_must_answer_counts_beside_one_that_is_skipped(tmp_path: Path) -> None:
    said = dnf4(ABSENT[0]) + "Cannot find a valid baseurl for repo: base\n"
    verdict = classify(30, logs(tmp_path, said + MISSING))
    assert (verdict.fault, verdict.reason) == (Fault.BUILDER, "Cannot find a valid baseurl for repo: base")


def test_a_failure_is_shown_with_the_name_of_its_repository(tmp_path: Path) -> None:
    said = f'Failed to download metadata (baseurl: "{STORE}") for repository "base"'
    assert classify(30, logs(tmp_path, f" {said}\n")).reason == said


def test_the_line_at_which_dnf5_ends_is_no_second_failure() -> None:
    (failure,) = read_failures(dnf5(REFUSED, skipped=False))
    assert not failure.skipped
    assert failure.causes == [DownloadFault.OTHER]


def test_the_cause_in_dnf4s_own_line_counts() -> None:
    line = f"Failed to download metadata for repo 'target': Cannot download repomd.xml: {ABSENT[0]}\n"
    (failure,) = read_failures(line)
    assert (failure.name, failure.causes) == ("target", [DownloadFault.ABSENT])


def test_a_skipped_repository_has_its_name() -> None:
    dnf, zypper = 'Error loading repo "one" (skipping due to x):\n', "Skipping repository 'two' because of the above.\n"
    assert [(each.name, each.skipped) for each in read_failures(dnf + zypper)] == [("one", True), ("two", True)]


def test_of_several_causes_the_one_that_hides_packages_is_shown() -> None:
    (failure,) = read_failures(dnf4(f"{ABSENT[0]}\n  - {HIDING[1]}"))
    assert HIDING[1] in failure.detail


def test_dnf5s_fatal_line_ends_the_repository_that_it_names() -> None:
    refused = [
        f">>> Status code: 503 for http://{host}/repodata/repomd.xml (IP: 127.0.0.1)\n"
        ">>> No more mirrors to try - All mirrors were already tried without success\n"
        for host in ("a", "b", "c")
    ]
    fatal = 'Failed to download metadata (baseurl: "http://a/") for repository "a"\n'
    assert [each.skipped for each in read_failures("".join(refused) + fatal)] == [False, True, True]
    unnamed = "Cannot find a valid baseurl for repo: c\n"
    assert [each.skipped for each in read_failures("".join(refused) + unnamed)] == [True, True, False]


@pytest.mark.parametrize("words", ["[Errno 14] HTTP Error 404 - Not Found", '[Errno 14] curl#37 - "No such file"'])
def test_yums_words_for_a_missing_file(words: str) -> None:
    failed = "failure: repodata/repomd.xml from base: [Errno 256] No more mirrors to try.\n"
    (failure,) = read_failures(f"{STORE}repodata/repomd.xml: {words}\nTrying other mirror.\n{failed}")
    assert failure.causes == [DownloadFault.ABSENT]
