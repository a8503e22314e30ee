"""Counts of mistakes agree with the accuracy of the same pass, and are summed over processes."""

import pytest
import torch

from otkd.core import names
from otkd.core.confusion import Confusion
from otkd.sweep.runner import Mailbox
from otkd.train import fit
from otkd.train.confusion import Counts
from otkd.train.distributed import Group


class Two(Group):
    """Stands for two processes: whatever is summed, the other has an image of class 2, taken for class 0."""

    def summed(self, tensors, like):
        return [tensor + torch.eye(9, dtype=torch.int64)[6] for tensor in tensors]


@pytest.fixture
def counts():
    made = Counts(3, torch.device("cpu"))
    for target, taken in (([0, 0, 2, 1], [0, 2, 0, 1]), ([0], [2])):
        made.add(torch.tensor(target), torch.tensor(taken), torch.empty(len(target), 3))
    return made


def test_cells_are_counted_over_batches(counts):
    assert counts.record(Group()).cells == ((0, 0, 1), (0, 2, 2), (1, 1, 1), (2, 0, 1))


def test_processes_are_summed(counts):
    assert counts.record(Two()).cells == ((0, 0, 1), (0, 2, 2), (1, 1, 1), (2, 0, 2))


def test_a_process_without_images_has_no_counts():
    assert Counts(3, torch.device("cpu")).record(Two()).cells == ((2, 0, 1),)


def test_a_trial_keeps_the_counts_of_its_last_weights(environment, trial):
    here, made = environment(), trial("kd")
    [result] = fit([made], Mailbox(), here)
    confusion = Confusion.model_validate_json(here.layout.trial(made.key).confusion.read_text())
    rows = confusion.by_class()
    right, images = sum(row.right for row in rows), sum(row.images for row in rows)
    assert (confusion.classes, images) == (10, 500), "every test image of the digits"
    assert 100 * right / images == pytest.approx(result.metrics[names.test("last", "top1")])
