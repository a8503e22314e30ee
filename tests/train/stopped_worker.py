"""One of two processes that train a cohort; the first asks to stop at its step `stop_at`, or never if that is 0.

Arguments: a layout's folder with a trained teacher and the cohort's trials in cohort.jsonl, the rank, `stop_at`.
Prints as JSON whether it was stopped, and where its members stand.
"""

import json
import sys
from pathlib import Path

import torch

from otkd.core.layout import Layout
from otkd.core.trial import Trial
from otkd.sweep.runner import Mailbox
from otkd.train import CohortTrainer, Environment, pulse
from otkd.train.distributed import Group, Place
from otkd.train.student import Student

if __name__ == "__main__":
    root, rank, stop_at = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    trials = [Trial.model_validate_json(line) for line in (root / "cohort.jsonl").read_text().splitlines()]
    pulse.EVERY_S = 1e-3  # all look after every step
    train_step, steps = Student.train_step, []

    def watched(student: Student, *arguments) -> None:
        train_step(student, *arguments)
        if student.trial == trials[-1]:
            steps.append(1)
            if rank == 0 and len(steps) == stop_at:
                (root / ".stop").touch()

    Student.train_step = watched
    place = Place(rank, 2, file=str(root / "meeting"))
    with Group.open(place, torch.device("cpu"), timeout_s=60) as group:
        trainer = CohortTrainer(trials, Mailbox(), Environment(Layout(root), device="cpu", group=group, heed_stop=True))
        while not (trainer.done or trainer.stopped):
            trainer.step()
    print(json.dumps({"stopped": trainer.stopped, "places": [student.place for student in trainer.students]}))
