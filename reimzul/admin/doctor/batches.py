# SPDX-License-Identifier: Apache-2.0
"""Checks that reimzul-batch can go on with the batches that are not over: it needs the plan and the journal of each."""

from __future__ import annotations

from collections.abc import Iterator

from reimzul.admin.doctor import CheckGroup, Result, fail, is_root, not_permitted, ok
from reimzul.admin.doctor.host import Host
from reimzul.core.errors import InputError
from reimzul.plan.batches import BatchFiles, read_announced_end
from reimzul.plan.document import FOLDER

_HINT = "restore the file from a backup of incoming/; reimzul-batch goes on by itself"

checks = CheckGroup("folder.incoming")


@checks.add("batches", applies=lambda host: host.settings.batch.enabled)
def _check_batches(host: Host) -> Iterator[Result]:
    incoming = host.settings.incoming.folder
    count = 0
    try:
        journals = sorted((incoming / FOLDER).glob("????????.log"))
        unfinished = [path.stem for path in journals if read_announced_end(path) is None]
    except PermissionError:
        yield not_permitted(str(incoming / FOLDER))
        return
    for batch in unfinished:
        try:
            BatchFiles(incoming, batch)
            count += 1
        except InputError as error:
            yield fail(f"batch {batch} cannot go on: {error}", _HINT if is_root() else "run reimzul doctor as root")
    yield ok(f"{count:,} of {len(unfinished):,} unfinished batches have their plan and journal")
