# SPDX-License-Identifier: Apache-2.0
"""Submits a batch, or prints what would be submitted."""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Callable

import attr
import click

from reimzul.core import fs
from reimzul.core.arch import Arches
from reimzul.core.batch_message import BatchRequest
from reimzul.core.beanstalk import BATCH, BATCH_REQUEST, Broker
from reimzul.core.errors import EXIT_FAILED, InputError, ReimzulError, describe_os_error
from reimzul.core.formatting import pluralize, to_output
from reimzul.core.http_client import HttpSession
from reimzul.core.settings import Settings
from reimzul.core.store_paths import StoreUrls
from reimzul.history.workers import submitter_for_workers
from reimzul.plan.document import MAX_MEMBERS, Plan, plan_path, write_plan
from reimzul.submit.batch_options import BatchOptions
from reimzul.submit.batch_sources import check_batch, fetch_dependents, list_given
from reimzul.submit.plan_report import PlanReport
from reimzul.submit.planning import PlanDraft, Planner
from reimzul.submit.sources import RefusedSource, Source, SourceFile, check_sources, import_sources
from reimzul.submit.submission import SubmissionOptions, request_repodata


@attr.frozen(kw_only=True)
class BatchSubmission:
    options: SubmissionOptions
    batch: BatchOptions
    settings: Settings
    known: Arches
    user: str
    warn: Callable[[str], None]
    fail: Callable[[str], None]  #: prints a line for each problem

    def run(self, names: Sequence[str], *, as_json: bool) -> int:
        """Submit a batch, or print its plan. Return the exit code. Raises `InputError` and others."""
        files, refused = self._check_sources(names)
        planner = Planner(
            options=self.options, batch=self.batch, settings=self.settings, known=self.known, warn=self.warn
        )
        draft = planner.make_draft(files, refused)
        if len(draft.members) > MAX_MEMBERS:
            raise InputError(f"{len(draft.members)} builds: a batch has at most {MAX_MEMBERS}")
        if self.batch.plan:
            return self._print_plan(draft, as_json=as_json)
        plan, job = (None, None) if draft.problems else self._submit(draft)
        for problem in draft.problems:
            self.fail(problem.message)
        if as_json:
            _print_json(self._describe(draft, plan, job))
        elif plan is not None:
            _print_batch(plan)
        return EXIT_FAILED if draft.problems else 0

    def _check_sources(self, names: Sequence[str]) -> tuple[list[SourceFile], list[RefusedSource]]:
        incoming = self.settings.incoming.folder
        if self.batch.batch:
            return check_batch(list_given(self.batch.batch, sys.stdin), incoming, self.known, self.warn)
        return check_sources(names, incoming, self.options.arches, self.known, self.warn)

    def _print_plan(self, draft: PlanDraft, *, as_json: bool) -> int:
        report = PlanReport(draft=draft, options=self.options, batch=self.batch)
        if as_json:
            _print_json(report.to_output())
        else:
            report.print_text()
        for problem in draft.problems:
            self.fail(problem.message)
        return EXIT_FAILED if draft.problems else 0

    # --- submitting

    def _submit(self, draft: PlanDraft) -> tuple[Plan, int]:
        """Bring the source rpms into incoming/, write the plan, and ask reimzul-batch for its builds."""
        sources = self._import_sources(draft)
        with Broker.from_settings(self.settings.beanstalkd) as broker:
            submitter = submitter_for_workers(broker, self.user, self.settings.notifier.presence)
            plan = self._make_plan(draft, sources, submitter)
            path = plan_path(self.settings.incoming.folder, plan.batch)
            try:
                sha256 = write_plan(path, plan)
            except OSError as error:
                raise InputError(f"{error.filename or path}: {describe_os_error(error)}") from error
            bstore = self.settings.bstore
            urls = StoreUrls.from_settings(bstore.base_url, bstore.upload_url)
            request_repodata(broker, urls, self.options.targets.values())
            request = BatchRequest(batch=plan.batch, plan_sha256=sha256, target=plan.target, submitter=plan.submitter)
            try:
                job = broker.put(BATCH, request, priority=BATCH_REQUEST)
            except ReimzulError:
                fs.remove(path)
                raise
            if not broker.tube_stats(BATCH.name).watchers:
                self.warn("reimzul-batch does not run; the batch waits until it does")
        return plan, job

    def _import_sources(self, draft: PlanDraft) -> list[Source]:
        """Bring the source rpms that are built into incoming/. Raises `InputError` if one of them cannot."""
        incoming = self.settings.incoming.folder
        with TemporaryDirectory(prefix="reimzul-submit-") as folder:
            files: Iterable[SourceFile] = (each for each in draft.files if each.header.name in draft.sources)
            if self.batch.dependents_of:
                with HttpSession() as session:
                    files = self._fetch_dependents(session, draft, Path(folder))
            sources, refused = import_sources(files, incoming)
        if refused:
            raise InputError("\n".join(each.message for each in refused))
        return sources

    def _fetch_dependents(self, session: HttpSession, draft: PlanDraft, folder: Path) -> list[SourceFile]:
        return fetch_dependents(
            session,
            self.settings.bstore.base_url,
            {each.arch: each.sources for each in draft.plans},
            self.options.targets,
            draft.contents,
            self.settings.incoming.folder,
            folder,
        )

    def _make_plan(self, draft: PlanDraft, sources: Iterable[Source], submitter: str) -> Plan:
        sha256s = {each.name: each.sha256 for each in sources}
        return Plan(
            batch=self._choose_id(),
            target=self.options.target,
            arches=self.options.arches,
            submitter=submitter,
            created=round(time.time(), 3),
            order=self.batch.order,
            priority=self.batch.priority(now=self.options.now),
            scratch=self.options.scratch,
            last_resort=self.batch.last_resort,
            members=tuple(attr.evolve(each, srpm_sha256=sha256s[each.srpm]) for each in draft.members),
        )

    def _choose_id(self) -> str:
        """An id that no batch of this controller has."""
        ids: Iterator[str] = iter(lambda: uuid.uuid4().hex[:8], "")
        return next(each for each in ids if not plan_path(self.settings.incoming.folder, each).exists())

    def _describe(self, draft: PlanDraft, plan: Plan | None, job: int | None) -> dict[str, Any]:
        return {
            "batch": plan.batch if plan else "",
            "target": self.options.target,
            "arches": list(self.options.arches),
            "scratch": self.options.scratch,
            "builds": len(plan.members) if plan else 0,
            "job": job or 0,
            "problems": [attr.asdict(each) for each in draft.problems],
        }


def _print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(to_output(value), indent=2, sort_keys=True))


def _print_batch(plan: Plan) -> None:
    """Print the id and the next commands; in a pipe the id, the target and the number of builds."""
    if not sys.stdout.isatty():
        click.echo(f"{plan.batch}\t{plan.target}\t{len(plan.members)}")
        return
    sources = len({each.srpm for each in plan.members})
    builds = f"{pluralize(len(plan.members), 'build')} of {pluralize(sources, 'source rpm')}"
    click.echo(f"Batch {plan.batch}: {builds} for {plan.target} on {', '.join(plan.arches)}")
    click.echo(f"  reimzul batch watch {plan.batch}    follow it")
    click.echo(f"  reimzul batch show {plan.batch}     list its builds")
