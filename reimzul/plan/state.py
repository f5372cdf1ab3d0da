# SPDX-License-Identifier: Apache-2.0
"""What has become of a batch: its members' states, as the entries of its journal make them.

Pure: entries in, state out; no clock and no I/O. An entry that comes twice changes nothing. `decisions.py` decides from
the state what is to be done next.
"""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from typing import Callable

from reimzul.core.batch_event import BatchStatus
from reimzul.core.batch_message import CONFLICT_PREFIX, OrderKind, is_conflict
from reimzul.core.failure_cause import cause_of, is_current
from reimzul.core.message import NAMESPACE, BuildEvent, Status
from reimzul.plan.document import Plan
from reimzul.plan.journal import Entry, EntryKind
from reimzul.plan.progress import STATE_OF_STATUS, MemberProgress, MemberState

#: Failures in a row after which a batch pauses itself: of the same reason, or of no builder that could build it.
MASS_FAULT_MEMBERS = 5
#: Times that a member may miss what is listed already, by a builder's old metadata, before it ends as Failed.
MAX_VAIN_WAITS = 3


class BatchState:
    def __init__(self, plan: Plan, load_plan: Callable[[str], Plan] | None = None) -> None:
        """`load_plan` reads the plan with a sha256, which replaced this one."""
        self._load_plan = load_plan
        self.plan = plan
        self.members: dict[str, MemberProgress] = {}
        self.is_accepted = self.is_paused = self.is_over = self.rests = False
        self.is_self_paused = False
        self.pause_reason = self.cancel_reason = ""
        self.stopped_at = 0.0  #: when it paused itself, came to rest or was over
        self.at = 0.0  #: of the last entry
        self.last_published_at = 0.0
        self.counts: Counter[str] = Counter()
        self.ready: set[str] = set()  #: held members whose needs are met
        self.unsettled: set[str] = set()  #: members with a follower that is built, or a leg that is to be published
        self.orders: set[str] = set()  #: ids of the orders that were obeyed
        self.announced: set[str] = set()  #: keys of the events that people were notified of
        self.cause_events = 0  #: those of them about new causes of failures
        self.cause_announced_at = 0.0  #: when the last of these was announced
        self.released_ahead: Counter[str] = Counter()  #: by tube
        self.failures_in_a_row: list[str] = []  #: reasons
        self._key_of_build: dict[str, str] = {}
        self._blocked_counts: dict[str, int] = {}  #: as far as they were asked for since the last entry
        self._providers: dict[str, set[str]] = {}
        self._dependents: dict[str, set[str]] = {}
        self._adopt_plan(plan)

    @classmethod
    def replay(cls, plan: Plan, entries: Iterable[Entry], load_plan: Callable[[str], Plan] | None = None) -> BatchState:
        state = cls(plan, load_plan)
        for entry in entries:
            state.apply(entry)
        return state

    # --- what is asked of it

    def member_of_build(self, event: BuildEvent) -> MemberProgress | None:
        """The member whose build, or whose build's repetition, an event is about."""
        key = self._key_of_build.get(event.build_id) or self._key_of_build.get(event.parent)
        return self.members.get(key) if key else None

    def find_member(self, build_id: str) -> MemberProgress | None:
        """The member that a build is of, also if it is not its newest."""
        return self.members.get(self._key_of_build.get(build_id, ""))

    def find_substituted(self, event: BuildEvent) -> MemberProgress | None:
        """The member whose source a build outside the batch has published.

        Its version is not compared: a member that misses something in it waits for that when it is built.
        """
        if event.status != Status.PUBLISHED or event.claimed or event.build_id in self._key_of_build:
            return None
        name = event.pkgname or event.srpm.rsplit("-", 2)[0]
        progress = self.members.get(f"{name}.{event.target.rpartition('.')[2]}")
        is_it = progress is not None and (progress.member.target, self.plan.scratch) == (event.target, False)
        return progress if is_it else None

    def next_build_id(self, key: str) -> str:
        return uuid.uuid5(NAMESPACE, f"{self.plan.batch} {key} {self.members[key].count}").hex

    def is_met(self, key: str) -> bool:
        """Whether a member that others need is there, or is as if it were not in the plan."""
        progress = self.members.get(key)
        if progress is None or progress.is_published or progress.is_substituted:
            return True
        return progress.state == MemberState.SKIPPED

    def unmet_needs(self, key: str) -> list[str]:
        return sorted(need for need in self.members[key].needs if not self.is_met(need))

    def is_ended(self, progress: MemberProgress) -> bool:
        final = (MemberState.PUBLISHED, MemberState.SKIPPED, *MemberState.BROKEN)
        return progress.state in final or (self.plan.scratch and progress.state == MemberState.BUILT)

    def dependents_of(self, key: str) -> Collection[str]:
        return self._dependents.get(key, ())

    def find_blocked(self, key: str) -> set[str]:
        """All members that wait for this one, directly or through others."""
        return {each for each in self._reach(key, self.dependents_of) if not self.is_ended(self.members[each])}

    def count_blocked(self, key: str) -> int:
        if key not in self._blocked_counts:
            self._blocked_counts[key] = len(self.find_blocked(key))
        return self._blocked_counts[key]

    def find_roots(self, key: str) -> set[str]:
        """The members that hold this one up in the end: they fail, wait or run, and need nobody that is not there."""
        return {each for each in self._reach(key, self.unmet_needs) if not self.unmet_needs(each)}

    def _reach(self, key: str, step: Callable[[str], Collection[str]]) -> set[str]:
        found: set[str] = set()
        pending = list(step(key))
        while pending:
            each = pending.pop()
            if each not in found:
                found.add(each)
                pending += step(each)
        return found - {key}

    def find_providers(self, progress: MemberProgress, capability: str) -> set[str]:
        """The members of the same arch that provide a capability, or are the package that a conflict names."""
        name = capability.removeprefix(CONFLICT_PREFIX).split(" ", 1)[0]
        found = self._providers.get(name, set())
        return {key for key in found if key != progress.key and self.members[key].member.arch == progress.member.arch}

    # --- entries

    def apply(self, entry: Entry) -> None:
        self.at = max(self.at, float(entry.get("at", 0.0)))
        self._blocked_counts.clear()
        handle = {
            EntryKind.ACCEPTED: self._apply_accepted,
            EntryKind.ORDER: self._apply_order,
            EntryKind.PUT: self._apply_put,
            EntryKind.PUT_AGAIN: self._apply_put_again,
            EntryKind.EVENT: self._apply_event,
            EntryKind.RELEASED: self._apply_released,
            EntryKind.HELD: self._apply_held,
            EntryKind.CANCELLING: self._apply_cancelling,
            EntryKind.ENDED: self._apply_ended,
            EntryKind.PAUSED: self._apply_paused,
            EntryKind.ANNOUNCED: self._apply_announced,
            EntryKind.RESTS: self._apply_rests,
            EntryKind.OVER: self._apply_over,
        }.get(entry["kind"])
        if handle is not None:  # a later version's entry
            handle(entry)

    def _apply_accepted(self, _entry: Entry) -> None:
        self.is_accepted = True

    def _apply_announced(self, entry: Entry) -> None:
        if entry["key"] not in self.announced and entry["event"]["status"] == BatchStatus.NEW_CAUSE:
            self.cause_events, self.cause_announced_at = self.cause_events + 1, entry["at"]
        self.announced.update([entry["key"], *entry.get("others", ())])

    def _apply_rests(self, entry: Entry) -> None:
        self.rests, self.stopped_at = True, entry["at"]

    def _apply_over(self, entry: Entry) -> None:
        self.is_over, self.stopped_at = True, entry["at"]

    def _apply_paused(self, entry: Entry) -> None:
        self.is_paused, self.pause_reason, self.failures_in_a_row = True, entry["reason"], []
        self.is_self_paused, self.stopped_at = True, entry["at"]

    def _apply_put(self, entry: Entry) -> None:
        progress = self.members[entry["member"]]
        if entry["count"] < progress.count:
            return
        self._start_build(progress, entry["build"], entry["job"])
        progress.count, progress.disttag, progress.at = entry["count"] + 1, entry["disttag"], entry["at"]
        self._set_state(progress, MemberState.HELD)

    def _apply_put_again(self, entry: Entry) -> None:
        progress = self.members[entry["member"]]
        if entry["build"] == progress.build_id and entry["job"] != progress.job and not self.is_ended(progress):
            progress.job, progress.at, progress.missing_by_leg = entry["job"], entry["at"], {}
            progress.forget_results(kept=[MemberState.PUBLISHED])
            self._set_state(progress, MemberState.HELD)

    def _start_build(self, progress: MemberProgress, build_id: str, job: int) -> None:
        self._key_of_build[build_id] = progress.key
        progress.start_build(build_id, job)

    def _apply_released(self, entry: Entry) -> None:
        progress = self.members[entry["member"]]
        if entry["build"] == progress.build_id and progress.state in (MemberState.HELD, MemberState.WAITING):
            progress.stale = entry.get("stale", "") or progress.stale
            progress.last_missing = dict(progress.decisive_missing) or progress.last_missing
            progress.missing_by_leg, progress.at = {}, entry["at"]
            self._set_state(progress, MemberState.RELEASED)

    def _apply_held(self, entry: Entry) -> None:
        progress = self.members[entry["member"]]
        if entry["build"] == progress.build_id and progress.state == MemberState.RELEASED:
            progress.at = entry["at"]
            self._set_state(progress, MemberState.HELD)

    def _apply_cancelling(self, entry: Entry) -> None:
        progress = self.members[entry["member"]]
        progress.is_cancelling = entry["build"] == progress.build_id

    def _apply_ended(self, entry: Entry) -> None:
        """End the legs without a result; a member whose required legs have one is what they make it."""
        progress = self.members[entry["member"]]
        if entry["build"] != progress.build_id or (self.is_ended(progress) and not progress.open_followers):
            return
        state = entry["state"]
        progress.reason, progress.at, progress.is_wanted = entry["reason"], entry["at"], False
        progress.cause = None
        progress.end_state, progress.ended_at = state, entry["at"]
        progress.ended_legs = tuple(progress.list_unfinished())
        of_leg = MemberState.CANCELLED if state == MemberState.SKIPPED else state
        progress.followers.update({leg: of_leg for leg in progress.ended_legs if progress.is_follower(leg)})
        progress.forget_queue()
        self._set_state(progress, progress.result or state)

    # --- events

    def _apply_event(self, entry: Entry) -> None:
        event = BuildEvent.from_json(entry["event"])
        progress = self.member_of_build(event)
        if progress is None and (other := self.find_substituted(event)) is not None:
            other.substitutes.add(event.arch)
            self._update_dependents(other)
        if progress is None or event.claimed:
            return
        if event.build_id != progress.build_id and not self._adopt_repetition(progress, event):
            return
        if progress.is_wanted:
            return  # its build is about to be repeated
        if event.status in STATE_OF_STATUS:
            self._add_result(progress, event)
        elif event.arch in progress.results:
            return
        elif event.status == Status.BUILDING and event.attempt not in progress.ended_attempts:
            self._start_attempt(progress, event)
        elif event.status == Status.QUEUED:
            self._add_queued(progress, event)
        if progress.open_followers or not self.is_ended(progress):
            self.is_over = False  # results overtake other events, so the batch may have been over too soon

    def _adopt_repetition(self, progress: MemberProgress, event: BuildEvent) -> bool:
        """Take a person's retry of a member's build for its newest build; return whether it is one.

        A retry that is not announced for the main leg builds some legs only, and the others keep their good results.
        """
        if event.build_id in self._key_of_build or event.parent != progress.build_id:
            return False  # an older build of it
        before = progress.legs, progress.followers, progress.published_at, progress.place
        self._start_build(progress, event.build_id, event.job)
        if event.arch != progress.member.legs[0]:
            progress.legs, progress.followers, progress.published_at, progress.place = before
            progress.forget_results(kept=[MemberState.BUILT, MemberState.PUBLISHED])
            progress.legs.pop(event.arch, None)
        self._set_state(progress, MemberState.RELEASED)
        self._update_dependents(progress)
        return True

    def _add_result(self, progress: MemberProgress, event: BuildEvent) -> None:
        state, leg = STATE_OF_STATUS[event.status], event.arch
        is_follower = progress.is_follower(leg)
        results = progress.followers if is_follower else progress.legs
        known = results.get(leg, "")
        if known == MemberState.PUBLISHED or (known and event.status == Status.SUCCESS) or known == state:
            return
        results[leg] = state
        progress.missing_by_leg.pop(leg, None)
        progress.open_followers.discard(leg)
        if state == MemberState.PUBLISHED:
            progress.published_at[leg] = event.at
            self.last_published_at = max(self.last_published_at, event.at)
        if not is_follower:
            self._describe_result(progress, event)
        if progress.result and not progress.is_queued:
            progress.at = max(progress.at, event.at)
            self._set_state(progress, progress.result)
            if not is_follower:
                self._count_failures(progress)
        self._update_dependents(progress)

    @staticmethod
    def _describe_result(progress: MemberProgress, event: BuildEvent) -> None:
        progress.builder = event.builder_fqdn or progress.builder
        if event.arch == progress.member.legs[0]:
            progress.place = event.place or progress.place
        if STATE_OF_STATUS[event.status] in MemberState.BROKEN:
            progress.reason, progress.error_line = event.reason, event.error_line
            progress.cause = cause_of(event) if is_current(event) else None

    def _count_failures(self, progress: MemberProgress) -> None:
        if progress.state == MemberState.FAILED:
            self.failures_in_a_row.append(progress.reason)
        elif progress.state in (MemberState.BUILT, MemberState.PUBLISHED):
            self.failures_in_a_row = []

    def _start_attempt(self, progress: MemberProgress, event: BuildEvent) -> None:
        if not event.attempt or event.attempt != progress.attempt:
            progress.started = event.at
            progress.open_followers.clear()
        progress.attempt, progress.builder, progress.missing_by_leg = event.attempt, event.builder_fqdn, {}
        progress.at = max(progress.at, event.at)
        if progress.is_follower(event.arch):
            progress.open_followers.add(event.arch)
        self._set_state(progress, progress.result or MemberState.BUILDING)

    def _add_queued(self, progress: MemberProgress, event: BuildEvent) -> None:
        """Note that the job is held or ready again; an attempt announces that once for each leg without a result."""
        if event.attempt and event.attempt in progress.ended_attempts:
            if event.attempt == progress.attempt:
                self._add_queued_leg(progress, event)
            return
        if event.attempt:
            progress.forget_queue()
            progress.ended_attempts.add(event.attempt)
            progress.attempt = event.attempt
        elif event.at < progress.at:
            return  # a repetition
        progress.job = event.job or progress.job
        if not event.attempt and (progress.state == MemberState.BUILDING or progress.open_followers):
            return  # announced when it was released, and overtaken by the builder that reserved it
        progress.at = max(progress.at, event.at)
        if event.attempt:
            progress.queued_legs.append(event.arch)
        if event.held and event.missing:
            progress.is_forced = False  # it was built as a person wanted, and lacks something
            self._add_missing(progress, event)
            self._set_state(progress, MemberState.WAITING)
        elif progress.result not in MemberState.BROKEN and (event.held is not None or event.attempt):
            progress.missing_by_leg = {}
            self._set_state(progress, MemberState.HELD if event.held else MemberState.RELEASED)

    def _add_queued_leg(self, progress: MemberProgress, event: BuildEvent) -> None:
        """Note another leg of the attempt that ended last."""
        if event.arch not in progress.queued_legs:
            progress.queued_legs.append(event.arch)
        if event.held and event.missing and progress.state == MemberState.WAITING:
            progress.at = max(progress.at, event.at)
            self._add_missing(progress, event)
            self._update(progress)

    def _add_missing(self, progress: MemberProgress, event: BuildEvent) -> None:
        """Note what nobody provides to a leg, and learn which members will."""
        progress.missing_by_leg[event.arch] = event.missing
        if event.attempt and set(event.missing) == set(progress.last_missing.get(event.arch, ())):
            progress.vain_attempts.add(event.attempt)
        self._learn_needs(progress, event.missing)

    def _learn_needs(self, progress: MemberProgress, missing: Iterable[str]) -> None:
        """Let a member wait for those that provide what it misses, unless they wait for it."""
        for capability in missing:
            for key in self.find_providers(progress, capability):
                self._dependents[key].add(progress.key)
                if not (is_conflict(capability) or self.is_met(key) or self._is_needed(progress.key, key)):
                    progress.needs.add(key)

    def _is_needed(self, key: str, by: str) -> bool:
        """Whether a member needs another, directly or through others: the other must not wait for it then."""
        return key in self._reach(by, lambda each: self.members[each].needs if each in self.members else ())

    # --- orders

    def _apply_order(self, entry: Entry) -> None:
        if entry["id"] in self.orders:
            return
        self.orders.add(entry["id"])
        given = f": {entry['why']}" if entry.get("why") else ""
        kind, why = entry["order"], f"{entry['order']} by {entry['by']}{given}"
        self.failures_in_a_row, self.rests = [], False
        if kind in (OrderKind.PAUSE, OrderKind.RESUME):
            self.is_paused, self.pause_reason = kind == OrderKind.PAUSE, why if kind == OrderKind.PAUSE else ""
            self.is_self_paused = False
        elif kind == OrderKind.REPLACE and self._load_plan is not None:
            self._adopt_plan(self._load_plan(entry["plan_sha256"]))
        elif kind == OrderKind.CANCEL and not entry["members"]:
            self.cancel_reason = why
        for progress in [self.members[key] for key in entry["members"] if key in self.members]:
            self._order_member(progress, kind, why, entry)
        if self.is_over and any(progress.is_wanted for progress in self.members.values()):
            self.is_over, self.cancel_reason = False, ""

    def _order_member(self, progress: MemberProgress, kind: str, why: str, entry: Entry) -> None:
        if kind == OrderKind.RELEASE:
            progress.is_forced = True
        elif kind == OrderKind.CANCEL:
            progress.cancel_reason = why
        elif kind == OrderKind.SKIP and not self.is_ended(progress):
            progress.is_skipped, progress.cancel_reason = True, why
        elif kind == OrderKind.SKIP and progress.state in MemberState.BROKEN:
            progress.is_skipped = True
            self._set_state(progress, MemberState.SKIPPED)
        elif kind == OrderKind.SETTLE and self.is_ended(progress):
            self._want_build(progress, f"{progress.member.disttag}.{entry['settle_pass']}")
        elif kind == OrderKind.RETRY and self.is_ended(progress):
            self._want_build(progress, progress.disttag)  # that of its pass of settle, if that failed
        self._update(progress)

    def _want_build(self, progress: MemberProgress, disttag: str) -> None:
        progress.is_wanted, progress.disttag, progress.is_forced, progress.is_skipped = True, disttag, False, False
        progress.cancel_reason = progress.reason = progress.error_line = ""
        progress.cause = None
        progress.forget_results()
        progress.forget_queue()
        progress.substitutes = set()
        self._set_state(progress, MemberState.HELD)

    def _adopt_plan(self, plan: Plan) -> None:
        """Take a plan: members of the same source rpm keep their progress and learned needs, others are built."""
        before, self.members = self.members, {}
        learned: dict[str, set[str]] = {}
        for member in plan.members:
            progress = before.get(member.key)
            if progress is None or progress.member.srpm_sha256 != member.srpm_sha256:
                count = progress.count if progress else 0
                progress = MemberProgress(member=member, disttag=member.disttag, count=count)
            learned[member.key] = progress.needs - set(progress.member.needs)
            progress.member, progress.needs = member, set(member.needs) - {member.key}
            self.members[member.key] = progress
        self.plan = plan
        self._dependents, self._providers = defaultdict(set), defaultdict(set)
        for key, progress in self.members.items():
            for need in progress.needs:
                self._dependents[need].add(key)
            for name in (*progress.member.provides, *progress.member.packages):
                self._providers[name].add(key)
        for key, progress in self.members.items():
            for need in learned[key]:
                self._dependents[need].add(key)
                if not self._is_needed(key, need):
                    progress.needs.add(need)
            self._learn_needs(progress, progress.missing)
        self.counts = Counter(progress.state for progress in self.members.values())
        self.released_ahead, self.ready, self.unsettled = Counter(), set(), set()
        for progress in self.members.values():
            self.released_ahead[progress.member.tube] += progress.state == MemberState.RELEASED
            self._update(progress)

    # --- states

    def _set_state(self, progress: MemberProgress, state: str) -> None:
        if progress.is_skipped and state in MemberState.BROKEN:
            state = MemberState.SKIPPED
        if progress.state == state:
            self._update(progress)
            return
        tube = progress.member.tube
        self.released_ahead[tube] += (state == MemberState.RELEASED) - (progress.state == MemberState.RELEASED)
        self.counts[progress.state] -= 1
        self.counts[state] += 1
        progress.state, self.rests = state, False
        self._update(progress)
        self._update_dependents(progress)

    def _update_dependents(self, progress: MemberProgress) -> None:
        self._update(progress)
        for key in self.dependents_of(progress.key):
            self._update(self.members[key])

    def _update(self, progress: MemberProgress) -> None:
        is_ready = progress.is_put and progress.state in (MemberState.HELD, MemberState.WAITING)
        if is_ready and not progress.is_forced:
            has_waited = progress.state == MemberState.HELD or self._is_provided_by_members(progress)
            is_ready = has_waited and all(map(self.is_met, progress.needs))
        (self.ready.add if is_ready else self.ready.discard)(progress.key)
        is_unpublished = not self.plan.scratch and MemberState.BUILT in progress.results.values()
        is_unsettled = bool(progress.open_followers or is_unpublished)
        (self.unsettled.add if is_unsettled else self.unsettled.discard)(progress.key)

    def _is_provided_by_members(self, progress: MemberProgress) -> bool:
        """Whether published members provide what a waiting member has to have before it is released."""
        return all(self._is_leg_provided(progress, leg) for leg in progress.decisive_missing)

    def _is_leg_provided(self, progress: MemberProgress, leg: str) -> bool:
        """Whether published members provide all that a leg misses; to a follower, with the leg of the same arch.

        Of the packages that conflict, one that was published since then may be enough.
        """

        def is_published(capability: str, since: float = -1.0) -> bool:
            providers = (self.members[key] for key in self.find_providers(progress, capability))
            times = (each.find_publication(leg, of_follower=progress.is_follower(leg)) for each in providers)
            return any(at is not None and at > since for at in times)

        missing = progress.missing_by_leg[leg]
        conflicts = list(filter(is_conflict, missing))
        has_all = all(is_published(each) for each in missing if each not in conflicts)
        return has_all and (not conflicts or any(is_published(each, progress.started) for each in conflicts))
