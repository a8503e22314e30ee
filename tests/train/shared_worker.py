"""One of several processes that train a cohort together; torchrun starts it.

Arguments: the folder of a layout that holds a trained teacher, and a file with the cohort's trials as JSON lines.
"""

import sys
from pathlib import Path

import torch

from otkd.core.layout import Layout
from otkd.core.trial import Trial
from otkd.sweep.runner import Mailbox
from otkd.train import Environment, fit
from otkd.train.distributed import Group, Place

if __name__ == "__main__":
    root, file = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    trials = [Trial.model_validate_json(line) for line in file.read_text().splitlines()]
    mailbox = Mailbox()
    with Group.open(Place.from_environment(), torch.device("cpu"), timeout_s=60) as group:
        results = fit(trials, mailbox, Environment(layout=Layout(root), device="cpu", group=group))
    told = [kind for kind, _ in mailbox.take()]
    assert (told.count("finish") == len(trials)) if group.rank == 0 else not told, "only the first one tells"
    assert all(result.status == "finished" for result in results), [result.reason for result in results]
