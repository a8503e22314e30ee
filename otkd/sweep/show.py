"""What planning commands print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from otkd.core.layout import Layout
from otkd.core.records import SweepInfo
from otkd.core.trial import Trial
from otkd.sweep.estimate import Forecast, all_epochs, drawn_of, final_of, machine, measured, of_plan
from otkd.sweep.journal import Journal, journal_file
from otkd.sweep.live import duration
from otkd.sweep.plan import Plan
from otkd.sweep.run import ends, outcome, to_train, waits
from otkd.sweep.search import configurations
from otkd.sweep.tally import End, reached
from otkd.sweep.tried import Tried, winners


def titled(info: SweepInfo) -> str:
    """A sweep's name and its question, if it asks one, as markup."""
    return f"[bold]{info.name}[/]" + (f": {escape(info.question)}" if info.question else "")


def show_warnings(plan: Plan, console: Console) -> None:
    """What is probably not meant, but may be."""
    for warning in plan.warnings:
        console.print(f"[yellow]![/] {escape(warning)}", highlight=False)


def show_plan(plan: Plan, layout: Layout, console: Console) -> None:
    """The trials by method and pair, their number, and what is done."""
    show_warnings(plan, console)
    console.print(titled(plan.info), highlight=False)
    for note in plan.info.notes:
        console.print(f"  {escape(note)}", highlight=False)
    found, tried = ends(plan, layout), Tried(plan, layout)
    _show_trials(plan, tried, found, layout, console)
    _show_studies(plan, tried, console)
    pending = to_train(plan, found)
    console.print(_count(plan, pending, found), highlight=False)
    if plan.studies and plan.spec.search.final is not None:
        console.print(_after(plan, tried, layout), highlight=False)
    if pending or plan.studies:
        for line in _how_long(plan, tried, pending, layout):
            console.print(line, highlight=False, soft_wrap=True)


def show_outcome(plan: Plan, layout: Layout, console: Console) -> int:
    """How a sweep ended. Returns the exit status: 0 when every trial has ended, 1 when some could not be trained."""
    ended = outcome(plan, layout)
    for kind, lines in (
        ("[yellow]diverged[/]", ended.diverged),
        ("[red]failed[/]", ended.failed),
        ("[red]waiting for its teacher[/]", ended.waiting),
        ("[red]not trained[/]", ended.undone),
    ):
        for line in lines:
            console.print(f"{kind} {escape(line)}", highlight=False, soft_wrap=True)
    if ended.undone:
        console.print("Run the same command to try what was not trained again.", highlight=False)
    if ended.failed or (ended.diverged and ended.waiting):
        console.print("--retry-failed tries again what failed or diverged.", highlight=False)
    return 1 if ended.open else 0


def show_held(held: int, console: Console) -> None:
    """What is left alone because it failed before."""
    if held:
        them = "it" if held == 1 else "them"
        text = f"{held} trial{'s' * (held != 1)} failed before: --retry-failed tries {them} again."
        console.print(f"[yellow]![/] {text}", highlight=False)


def _show_trials(plan: Plan, tried: Tried, found: Mapping[str, End], layout: Layout, console: Console) -> None:
    """Trials with their keys; of a search its winners, and what is trained after it, as far as they are known."""
    begun = _begun(tried.whole, layout)
    table = Table("trial", "key", "state", box=None, pad_edge=False)
    won = winners((s for s in tried.standings if s.candidate.study in tried.over), layout)
    chosen = [item for winner in won.values() for item in winner.candidate.planned]
    final = tried.final.all if tried.final is not None else ()
    for items, mark in ((plan.all, ""), (chosen, ", wins"), (final, "")):
        for item in items:
            table.add_row(escape(item.label.title), item.trial.key, _state(item.trial, found, begun) + mark)
    console.print(table)


def _begun(plan: Plan, layout: Layout) -> dict[str, str]:
    """Trials with a checkpoint → how far they are, where the sweep's journal says that."""
    keys = [key for key in plan.trials if layout.trial(key).checkpoint.exists()]
    journal = Journal(journal_file(layout, plan.info.name)) if keys else None
    last = {key: journal.last(key) if journal else None for key in keys}
    return {key: f"begun, epoch {reached(record)}" if record else "begun" for key, record in last.items()}


def _state(trial: Trial, found: Mapping[str, End], begun: Mapping[str, str]) -> str:
    end = found.get(trial.key)
    if end is not None:
        return "done" if end.status == "finished" else end.status
    if waits(trial, found):
        return "waits for its teacher"
    return begun.get(trial.key, "to do")


def _count(plan: Plan, pending: Sequence[Trial], found: Mapping[str, End]) -> str:
    """How many trials there are; those that a search draws are not known yet."""
    count, teachers = len(plan.trials), len(plan.teachers)
    waiting = sum(waits(trial, found) for key, trial in plan.trials.items() if key not in found)
    ended = Counter(end.status for key, end in found.items() if key in plan.trials)
    states = {"done": ended["finished"], **{kind: ended[kind] for kind in ("failed", "diverged")}, "waiting": waiting}
    counted = ", ".join(f"{number} {state}" for state, number in states.items() if number or state == "done")
    students = "" if plan.studies else f", {count - teachers} student{'s' * (count - teachers != 1)}"
    epochs = sum(all_epochs(trial) for trial in pending)
    return (
        f"{count} trial{'s' * (count != 1)}{' before the search' if plan.studies else ''}: "
        f"{teachers} teacher{'s' * (teachers != 1)}{students}; "
        f"{counted}, {len(pending)} to train, {epochs} epochs{'' if plan.studies else ' in all'}."
    )


def _after(plan: Plan, tried: Tried, layout: Layout) -> str:
    """What is left to train when the search is over."""
    final = final_of(plan, tried, drawn_of(plan))
    left = final.pending(layout)
    teachers, students = [t for t in left if t.teacher is None], [t for t in left if t.teacher is not None]
    known = tried.final is not None and not tried.is_left
    if not known:  # others than those that stand for the winners may win
        students = [item.trial for item in final.students]
    epochs = sum(all_epochs(trial) for trial in (*teachers, *students))
    return (
        f"After it: {'' if known else 'at most '}{len(teachers)} teacher{'s' * (len(teachers) != 1)} and "
        f"{len(students)} student{'s' * (len(students) != 1)} to train, {epochs:,} epochs."
    )


def _show_studies(plan: Plan, tried: Tried, console: Console) -> None:
    """What is searched, what that takes at most, and how far it is."""
    if not plan.studies:
        return
    seeds, table = (
        len(plan.spec.seeds),
        Table("study", "configurations", "epochs at most", "searched", box=None, pad_edge=False),
    )
    for study in plan.studies:
        count = configurations(plan.spec.search, study)
        searched = ", ".join(dimension.path for dimension in study.space) or "nothing"
        table.add_row(escape(study.title), str(count), f"{count * seeds * plan.spec.train.epochs:,}", searched)
    console.print(table)
    console.print(_how_far(plan, tried), highlight=False)


def _how_far(plan: Plan, tried: Tried) -> str:
    begun, studies = len(tried.standings), len(plan.studies)
    return (
        f"Search: {begun} configuration{'s' * (begun != 1)} begun, at most {tried.new} to come; "
        f"{len(tried.over)} of {studies} stud{'ies' if studies != 1 else 'y'} over."
    )


def _when_hung(hung_s: float | None) -> str:
    if hung_s is None:
        return "A trial that hangs is left alone (resources.hung_s is null)."
    return f"A worker without progress for {duration(hung_s)} is ended and its cohort goes on; not so with --local."


def _how_long(plan: Plan, tried: Tried, pending: Sequence[Trial], layout: Layout) -> Iterator[str]:
    """The time that is still needed, and what may end a trial; nothing where nothing is left, of a search either."""
    there, resources = machine(), plan.spec.resources
    found = of_plan(plan, pending, layout, measured(layout), there)
    if found.known:
        yield _estimate(plan, found, there.slots(resources, resources.cpu))
    elif found.unknown:
        yield "No estimate of the time: nothing like it has been trained here."
    elif tried.new or tried.open:
        yield "All trials of the configurations to come are done already: the search takes next to no time."
    if found.known or found.unknown:
        yield _when_hung(resources.hung_s)


def _estimate(plan: Plan, found: Forecast, slots: int) -> str:
    """The time, and what it rests on."""
    head = "At most about" if plan.studies else "About"
    basis = f"from {len(found.basis)} earlier trial{'s' * (len(found.basis) != 1)}"
    near = "" if found.exact else ", some of them the nearest there are, with other terms"
    unknown = f"; {found.unknown} trials are like none that was trained here, and not counted" if found.unknown else ""
    alone = " (--local has one)" if slots > 1 else ""
    return f"{head} {duration(found.seconds)} on {slots} slot{'s' * (slots != 1)}{alone}, {basis}{near}{unknown}."
