# SPDX-License-Identifier: Apache-2.0
"""Held builds as a person sees and steers them: the installed commands, a real beanstalkd and a real notifier."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import attr
import pytest

from reimzul.admin.doctor import FAIL, controller
from reimzul.core import control
from reimzul.core.beanstalk import HELD_SECONDS, PRIORITY, Broker
from reimzul.core.errors import ReservationLost
from reimzul.core.message import BuildRequest, event_for
from tests.conftest import Beanstalkd
from tests.events import ATTEMPT, build_id
from tests.integration.test_doctor import look, patient
from tests.integration.test_operator_acts import SHORT, X86_64, Ground, run, run_json, serving_failed_leg
from tests.waiting import until

BATCH = "5f0c12ab"
MISSING = {"missing": ("b-devel >= 2",), "waits_for": "b-devel >= 2, which nobody provides"}


@pytest.fixture
def ground(tmp_path: Path, beanstalkd: Beanstalkd, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    monkeypatch.setenv("REIMZUL_CONFIG", str(tmp_path / "reimzul.ini"))
    made = Ground(tmp_path, beanstalkd, broker)
    yield made
    made.notifier.signal(signal.SIGTERM)


def hold(ground: Ground, number: int = 1, *, missing: bool = True, batch: str = BATCH) -> int:
    """Submit a build, and hold it: as its worker does for a missing requirement, or as its batch does."""
    job = ground.submit(number, batch=batch)
    assert control.hold_job(ground.broker, X86_64, job) == job
    request = BuildRequest.decode(ground.broker.peek(job))
    where = {"tube": "x86_64", "job": job, "priority": PRIORITY, "due": round(time.time()) + HELD_SECONDS}
    by = {
        "attempt": ATTEMPT,
        "builder_fqdn": "b1.example.org",
        "reason": f"waits for {MISSING['waits_for']}",
        **MISSING,
    }
    ground.broker.announce(event_for(request, "Queued", held=True, **where, **(by if missing else {})))
    ground.until(number, lambda leg: leg["held"], "the history knows")
    return job


def test_a_held_build_is_shown_as_held_by_every_command(ground: Ground) -> None:
    job = hold(ground)
    (build,) = run_json("builds", "--state", "held")
    assert (build["state"], build["status"], build["batch"]) == ("held", "Queued", BATCH)
    assert (build["held"], build["missing"], build["attempts"][0]["state"]) == (True, ["b-devel >= 2"], "waiting")
    assert run_json("builds", "--state", "queued") == []
    shown = run("show", SHORT).stdout
    assert "x86_64: held: waits for b-devel >= 2, which nobody provides" in shown
    assert f"  batch         {BATCH}: reimzul batch show" in shown
    explained = run("explain", SHORT).stdout
    for words in (
        "x86_64: held",
        f"No worker gets job {job} of tube x86_64 before it is released, held",
        "It waits for b-devel >= 2, which nobody provides.",
        f"It belongs to batch {BATCH}, whose files cannot be read.",
        f"reimzul kick --held {job}",
        "Attempt 1 does not count: on b1.example.org",
    ):
        assert words in explained
    assert "Nobody watches" not in explained
    (arch,) = run_json("explain", SHORT)["arches"]
    assert (arch["job_state"], arch["state"], arch["starts_in"]) == ("held", "held", None)
    watched = run("watch", SHORT, "--timeout", "0").stdout
    assert "held: waits for b-devel >= 2, which nobody provides" in watched
    assert run_json("stats")["results"] == {"held": 1}


def test_held_jobs_are_counted_apart_from_delayed_ones(ground: Ground, tmp_path: Path, beanstalkd: Beanstalkd) -> None:
    hold(ground)
    (tube,) = [each for each in run_json("queues")["tubes"] if each["name"] == "x86_64"]
    assert (tube["held"], tube["delayed"], tube["unwatched"]) == (1, 0, False)
    metrics = run("metrics").stdout
    assert 'reimzul_tube_jobs{tube="x86_64",state="held"} 1' in metrics
    assert 'reimzul_tube_jobs{tube="x86_64",state="delayed"} 0' in metrics
    assert "reimzul_tube_oldest_wait_seconds" not in metrics
    whom = patient(tmp_path, ground.notifier.settings, "controller")
    assert look(controller.beanstalkd_checks, whom)["tubes.watched"].level != FAIL
    ground.broker.put_raw("x86_64", b"x", priority=1, delay=60)
    (tube,) = [each for each in run_json("queues")["tubes"] if each["name"] == "x86_64"]
    assert (tube["held"], tube["delayed"], tube["unwatched"]) == (1, 1, True)
    assert look(controller.beanstalkd_checks, whom)["tubes.watched"].level == FAIL


def test_without_a_history_held_jobs_are_unknown(ground: Ground, tmp_path: Path) -> None:
    hold(ground)
    ini = tmp_path / "reimzul.ini"
    ini.write_text(ini.read_text().replace("history.sqlite", "reimzul.log"))
    done = run("queues", "--json")
    assert done.returncode == 1
    assert '"held": null' in done.stdout
    assert "the held jobs are not known" in done.stderr


def test_a_person_can_release_a_held_build(ground: Ground) -> None:
    job, other = hold(ground), ground.submit(2)
    left = run("kick", job, "--yes")
    assert (left.returncode, left.stderr) == (1, f"job {job}: not buried, but held in x86_64: --held releases it\n")
    assert run("kick", "--held", other, "--yes").stderr == f"job {other}: not held, but ready in x86_64\n"
    assert run("kick", "--held", "--all", "--yes").returncode == 2
    done = run("kick", "--held", job, "--yes")
    assert (done.returncode, done.stdout) == (0, f"job {job} of x86_64: released\n")
    assert ground.broker.job_stats(job).state == "ready"
    ground.until(1, lambda leg: leg["released_at"] and not leg["held"], "the history knows")
    (build,) = run_json("builds", "--build", SHORT)
    assert (build["state"], build["missing"], build["waits_for"], build["job"]) == ("queued", [], None, job)
    assert "waits for" not in run("show", SHORT).stdout
    assert "It waits for" not in run("explain", SHORT).stdout
    claim = ground.claim()
    assert claim.id == job
    claim.release(0)


def test_a_raised_held_build_stays_held_and_comes_first_once_it_is_released(ground: Ground) -> None:
    ground.submit(2, priority=1000)
    job = hold(ground)
    (raised,) = run_json("raise", SHORT)
    assert (raised["done"], raised["job"], raised["priority"]) == (True, job, 999)
    assert raised["message"] == f"held; first in tube x86_64 once it is released, as job {job}"
    stats = ground.broker.job_stats(job)
    assert (stats.is_held, stats.priority) == (True, 999)
    ground.until(1, lambda leg: leg["priority"] == 999, "the history knows")
    leg = ground.leg()
    assert (leg["held"], leg["missing"], leg["job"]) == (True, ["b-devel >= 2"], job)
    assert run_json("raise", SHORT)[0]["message"] == "it is the first already"
    assert run("kick", "--held", job, "--yes").returncode == 0
    claim = ground.claim()
    assert claim.id == job
    claim.release(0)


def test_a_job_that_a_worker_has_is_not_held(ground: Ground, beanstalkd: Beanstalkd) -> None:
    job = ground.submit()
    claim = ground.claim()
    with pytest.raises(ReservationLost), beanstalkd.connect() as other:
        control.hold_job(other, X86_64, job)
    claim.release(0)


def test_a_held_build_is_cancelled_at_once(ground: Ground) -> None:
    hold(ground)
    done = run("cancel", SHORT)
    assert (done.returncode, done.stderr) == (0, "")
    assert ground.broker.tube_stats("x86_64").delayed == 0
    ground.until(1, lambda leg: leg["status"] == "Cancelled", "the history knows")
    assert run_json("builds", "--state", "held") == []


def test_a_retry_of_a_member_is_a_build_of_the_same_batch(ground: Ground, tmp_path: Path) -> None:
    job = ground.submit(batch=BATCH)
    request = attr.evolve(BuildRequest.decode(ground.broker.peek(job)), bconds=("bootstrap",), dep_wait=60)
    ground.claim().delete()
    ground.announce(1, "Failed", reason="%build failed", batch=BATCH)
    ground.until(1, lambda leg: leg["status"] == "Failed", "it has failed")
    with serving_failed_leg(tmp_path, request):
        run_json("retry", SHORT)
        claim = ground.claim()
        again = claim.message
        assert (again.batch, again.parent, again.rebuild) == (BATCH, build_id(1), True)
        assert (again.bconds, again.dep_wait) == (("bootstrap",), 60)
        until(lambda: bool(run_json("builds", "--build", again.build_id)), 20, "it is in the history")
        assert run_json("builds", "--build", again.build_id)[0]["batch"] == BATCH
        claim.delete()


def test_the_source_rpm_of_a_held_build_stays(ground: Ground) -> None:
    hold(ground)
    pruned = run_json("prune", "--incoming", "--older", "0d", "--dry-run")
    assert pruned["removed"] == []
    assert "is held" in pruned["kept"][0]["message"]
