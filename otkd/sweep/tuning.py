"""The search stage of a sweep: trains configurations, stops those that will not win, names the winners."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

from otkd.core.errors import OtkdError, StorageError
from otkd.core.layout import Layout
from otkd.sweep.contest import Contest, Status, Witness
from otkd.sweep.local import LocalRunner
from otkd.sweep.plan import Plan
from otkd.sweep.runner import Listener, Runner, fail, threads
from otkd.sweep.search import Search
from otkd.sweep.tried import Standing, id_of, ready

if TYPE_CHECKING:
    from otkd.train import Environment

ENDS: tuple[Status, ...] = get_args(Status)


def expect_possible(search: Search, runner: Runner) -> None:
    """What needs Ray is refused without it, before anything is trained.

    Raises:
        OtkdError: says what, and the ways out.
    """
    if isinstance(runner, LocalRunner) and search.scheduler.name != "fifo":
        raise OtkdError(
            f"search.scheduler: {search.scheduler.name} is Ray's; leave --local out, or set search.scheduler to fifo. "
            "What search.stop says holds without Ray, too."
        )


def search(plan: Plan, runner: Runner, listener: Listener, layout: Layout) -> None:
    """Train the configurations of a plan; what earlier sessions have found out stands.

    Args:
        plan: studies whose teacher could not be trained are left alone.
        listener: hears of every trial; of one that is stopped as `pruned`.

    Raises:
        StorageError: the disk refuses; the same command goes on from there.
    """
    witness = Witness(listener)
    contest = Contest(plan._replace(studies=ready(plan, layout)), layout, listener)
    if isinstance(runner, LocalRunner):
        _one_by_one(contest, runner, witness)
    else:
        _side_by_side(contest, runner, witness)
    if not layout.stop.exists():
        contest.conclude()


def _side_by_side(contest: Contest, runner: Runner, witness: Witness) -> None:
    from otkd.sweep.tune import RayRunner
    from otkd.sweep.tune_search import run

    assert isinstance(runner, RayRunner)
    run(contest, runner, witness)


def _one_by_one(contest: Contest, runner: LocalRunner, witness: Witness) -> None:
    resources = contest.plan.spec.resources
    environment = replace(runner.environment, threads=threads(resources.cpu, os.cpu_count() or 1))
    while not contest.layout.stop.exists() and (candidate := contest.next()) is not None:
        standing = contest.standings[id_of(candidate)]
        if standing.decided and standing.earlier is not None:
            standing.reports.extend(standing.earlier.reports)
            contest.end(id_of(candidate), "pruned", standing.earlier.reason, {})
            continue
        try:
            _train(contest, standing, environment, witness, resources.retries)
        except StorageError:
            raise
        except Exception as error:
            fail((planned.trial for planned in candidate.planned), error, environment, witness)
            contest.end(id_of(candidate), "failed", str(error), {})


def _train(contest: Contest, standing: Standing, environment: Environment, witness: Witness, retries: int) -> None:
    """Train one configuration to its end, or until it is stopped."""
    from otkd.sweep.candidate import Seeds
    from otkd.train import CohortTrainer

    id_, trials = id_of(standing.candidate), [planned.trial for planned in standing.candidate.planned]
    seeds = Seeds(trials, environment, lambda trial: CohortTrainer([trial], witness, environment), retries)
    for record in seeds.known:
        witness.remember(record)
    reason = ""
    while seeds.status == "running" and not reason:
        report = seeds.step()
        reason = contest.judge(id_, report) if report is not None else ""
    seeds.save()
    status = "pruned" if reason else seeds.status
    if status in ENDS:
        contest.end(id_, status, reason, witness.take(trial.key for trial in trials))
