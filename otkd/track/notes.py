"""The note at the head of a trial's page in MLflow: what was trained, against what, how it ended, where it belongs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from otkd.core import names, plugins
from otkd.core.errors import OtkdError
from otkd.core.records import Label, TrialResult
from otkd.core.trial import Trial

NOTE, NOTE_LIMIT = "mlflow.note.content", 8000
MARKDOWN = re.compile(r"([\\`*_{}\[\]#|~<>&])")
"""What could begin markup in the middle of a line."""
TRAINING = "workflowType=machine_learning"
"""Part of an address: MLflow's pages for networks that are trained, not those for chat."""


class Links(NamedTuple):
    """Addresses within MLflow's pages; empty where there is none."""

    sweep: str
    teacher: str = ""


def link(experiment: str, run_id: str) -> str:
    """The page of a run, for a link within MLflow's pages."""
    return f"#/experiments/{experiment}/runs/{run_id}?{TRAINING}" if run_id else ""


def trial_note(trial: Trial, result: TrialResult, label: Label | None, sweep: str, links: Links) -> str:
    """The note in Markdown, within MLflow's limit.

    Args:
        sweep: the sweep's name.
    """
    title = plain(label.title if label else trial.student.name)
    facts = _facts(trial, result, label, sweep, links)
    return "\n".join([f"**{title}**", "", *(f"- **{head}:** {text}" for head, text in facts)])[:NOTE_LIMIT]


def summary(trial: Trial, result: TrialResult, label: Label | None) -> str:
    """A trial in one line of Markdown: what was trained by which objective, and how it ended."""
    title, objective = label.title if label else trial.student.name, objective_in_words(trial.objective)
    return f"{plain(title)}: {plain(objective)}; {_result(result, label)}"[:NOTE_LIMIT]


def plain(text: str) -> str:
    """A user's words, shown as they are: nothing in them is Markdown or HTML."""
    return MARKDOWN.sub(r"\\\1", " ".join(text.replace("\x00", "").split()))


def objective_in_words(objective: Mapping[str, Mapping[str, Any]]) -> str:
    """`0.1 × ce + 0.9 × kd (temperature 4.0)`: weights, and what else is not as by default."""
    return " + ".join(_term(name, options) for name, options in objective.items())


def _facts(
    trial: Trial, result: TrialResult, label: Label | None, sweep: str, links: Links
) -> Iterator[tuple[str, str]]:
    yield "Trained", _training(trial)
    if trial.teacher is not None:
        yield "Teacher", _teacher(trial.teacher, result, links)
    yield "Objective", plain(objective_in_words(trial.objective))
    yield "Result", _result(result, label)
    yield "Seed", str(trial.seed)
    yield "Sweep", _linked(sweep, links.sweep)
    yield "Key", f"`{trial.key}`"


def _training(trial: Trial) -> str:
    train, data = trial.train, trial.data
    parts = [f"{trial.student.name} on {data.name}", f"{train.epochs} epochs", f"batches of {train.batch_size}"]
    parts.append(f"{train.optimizer.name}, learning rate {train.optimizer.lr:g}, {train.schedule.name}")
    parts += [f"at most {data.limit:,} training images"] if data.limit else []
    parts.append(f"{_amount(data.val)} held out for validation" if data.val else "no validation images")
    return plain("; ".join(parts))


def _amount(val: float) -> str:
    return f"{val:.0%} of the images" if val < 1 else f"{val:,.0f} images"


def _teacher(teacher: Trial, result: TrialResult, links: Links) -> str:
    figure = result.metrics.get(names.TEACHER + names.test("last", "top1"))
    accuracy = "" if figure is None else f", test top-1 {figure:.2f} %"
    return _linked(f"{teacher.student.name}, seed {teacher.seed}", links.teacher) + accuracy


def _result(result: TrialResult, label: Label | None) -> str:
    last = result.metrics.get(names.test("last", "top1"))
    if result.status != "finished" or last is None:
        return plain(": ".join(part for part in (result.status, result.reason) if part))
    best, val = result.metrics.get(names.BEST_EPOCH), result.metrics.get(names.BEST_VAL_TOP1)
    if label is not None and label.is_candidate:
        return result.status if val is None else f"val top-1 **{val:.2f} %** at its best, by which the search compares"
    epochs = max((record.epoch for record in result.epochs if record.stage == "train"), default=0)
    text = f"test top-1 **{last:.2f} %** with the weights of the last epoch ({epochs})"
    top1 = result.metrics.get(names.test("best", "top1"))
    if best is None or val is None or top1 is None:
        return text
    return f"{text}; {top1:.2f} % with those of epoch {best:.0f}, which was best on validation images ({val:.2f} %)"


def _linked(text: str, address: str) -> str:
    return f"[{plain(text)}]({address})" if address else plain(text)


def _term(name: str, options: Mapping[str, Any]) -> str:
    settings = ", ".join(_settings({key: value for key, value in _chosen(name, options).items() if key != "weight"}))
    return f"{options.get('weight', 1):g} × {name}" + (f" ({settings})" if settings else "")


def _chosen(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not as by default; all of them where the plug-in is not at hand."""
    try:
        config = plugins.configure("losses", name, options)
    except OtkdError:
        return dict(options)
    return _with_names(config.model_dump(mode="json", exclude_defaults=True), config.model_dump(mode="json"))


def _with_names(chosen: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """With the names of the plug-ins within it, which are the defaults of their own settings."""
    parts = {
        key: _with_names(value, whole[key]) if isinstance(value, dict) and isinstance(whole[key], dict) else value
        for key, value in chosen.items()
    }
    return {"name": whole["name"], **parts} if "name" in whole else parts


def _settings(options: Mapping[str, Any]) -> Iterator[str]:
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield f"{key} {' '.join(str(part) for part in _settings(value))}"
        else:
            yield str(value) if key == "name" else f"{key} {value}"
