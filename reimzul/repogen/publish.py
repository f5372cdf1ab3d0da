# SPDX-License-Identifier: Apache-2.0
"""What is said of a published leg: to everybody, and to the signer."""

from __future__ import annotations

from reimzul.core import validators
from reimzul.core.message import BuildEvent, SignRequest, Status, event_for
from reimzul.core.store_paths import StoreUrls
from reimzul.repogen.place import Placed

#: How many packages an event names.
_NAMED = 50


def published(leg: Placed, urls: StoreUrls) -> BuildEvent:
    """What everybody is told of a leg that is in the repodata."""
    manifest = leg.manifest
    names = [file.name for file in leg.rpms]
    moved = "" if leg.place == manifest.place() else f"{manifest.place()} is another build's: it is in {leg.place}"
    return event_for(
        manifest.request,
        Status.PUBLISHED,
        arch=manifest.arch,
        timestamp=leg.timestamp,
        builder_fqdn=manifest.builder_fqdn,
        pkgname=manifest.pkgname,
        evr=manifest.evr,
        attempt=manifest.attempt,
        reason=validators.line(500)("; ".join(filter(None, (moved, leg.ruling.notes)))),
        exit_code=manifest.exit_code,
        started=manifest.started,
        finished=manifest.finished,
        place=leg.place,
        url=urls.place(leg.place),
        rpm_count=len(names),
        rpms=names[:_NAMED],
        skipped=dict(manifest.skipped),
    )


def sign_request(leg: Placed) -> SignRequest:
    """What the signer is asked."""
    manifest = leg.manifest
    return SignRequest(
        pkgname=manifest.pkgname,
        status=Status.SUCCESS,
        target=manifest.request.target,
        arch=manifest.arch,
        timestamp=leg.timestamp,
        build_id=manifest.build_id,
        place=leg.place,
    )
