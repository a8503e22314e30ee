"""Calibration error and divergence against loops over images; over processes; from logits of a real teacher."""

import math

import numpy as np
import pytest
import torch

from otkd.core import names
from otkd.data.batches import Batches
from otkd.data.pipeline import prepare
from otkd.models.factory import create
from otkd.sweep.runner import Mailbox
from otkd.train import fit
from otkd.train.checkpoint import load_weights
from otkd.train.confidence import BINS, Confidence
from otkd.train.distributed import Group


def softmax(row):
    exponentials = [math.exp(value - max(row)) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def by_hand(logits, targets, logits_t):
    """Image by image, interval by interval: (lower, upper]."""
    intervals = [[] for _ in range(BINS)]
    divergences = []
    for row, target, row_t in zip(logits, targets, logits_t, strict=True):
        shares, shares_t = softmax(row), softmax(row_t)
        confidence = max(shares)
        place = next(i for i in range(BINS) if i / BINS < confidence <= (i + 1) / BINS or i == BINS - 1)
        intervals[place].append((confidence, shares.index(confidence) == target))
        divergences.append(sum(t * math.log(t / s) for t, s in zip(shares_t, shares, strict=True)))
    error = sum(
        len(one) / len(logits) * abs(np.mean([hit for _, hit in one]) - np.mean([sure for sure, _ in one]))
        for one in intervals
        if one
    )
    return 100 * error, float(np.mean(divergences))


@pytest.fixture
def images():
    """57 images of 5 classes, some as good as certain, in batches of unequal sizes."""
    chance = torch.Generator().manual_seed(0)
    logits = torch.randn(57, 5, generator=chance) * torch.linspace(0.1, 9, 57)[:, None]
    logits_t = torch.randn(57, 5, generator=chance) * 2
    return logits, torch.randint(5, (57,), generator=chance), logits_t


def fed(confidence, logits, targets):
    for rows, target in zip(logits.split([20, 1, 36]), targets.split([20, 1, 36]), strict=True):
        confidence.add(target, rows.argmax(1), rows)
    return confidence


def test_both_equal_a_loop_over_images(images):
    logits, targets, logits_t = images
    figures = fed(Confidence(logits_t, torch.device("cpu")), logits, targets).figures(Group())
    error, divergence = by_hand(logits.double().tolist(), targets.tolist(), logits_t.double().tolist())
    assert error > 5
    assert figures[names.TEST_ECE] == pytest.approx(error, rel=1e-12)
    assert figures[names.TEST_KL] == pytest.approx(divergence, rel=1e-12)


def test_a_network_that_knows_how_sure_it_is_has_no_error_and_one_equal_to_its_teacher_no_divergence():
    logits = torch.log(torch.tensor([[0.75, 0.25]] * 4, dtype=torch.float64))
    confidence = Confidence(logits, torch.device("cpu"))
    confidence.add(torch.tensor([0, 0, 0, 1]), torch.zeros(4, dtype=torch.int64), logits)
    assert confidence.figures(Group()) == {
        names.TEST_ECE: pytest.approx(0, abs=1e-12),
        names.TEST_KL: pytest.approx(0, abs=1e-15),
    }


def test_a_confidence_on_a_boundary_belongs_to_the_interval_below():
    """Of two images at 3/5 exactly one is right, and one at a little more, too: in one interval they would make up."""
    at, above = [0.6, 0.4], [0.62, 0.38]
    logits = torch.log(torch.tensor([at, at, above], dtype=torch.float64))
    confidence = Confidence(None, torch.device("cpu"))
    confidence.add(torch.tensor([0, 1, 0]), torch.zeros(3, dtype=torch.int64), logits)
    assert confidence.figures(Group())[names.TEST_ECE] == pytest.approx(100 * (2 * 0.1 + 0.38) / 3)


def test_logits_of_any_size_have_figures():
    logits = torch.tensor([[1e4, -1e4, 0.0], [-3e4, 0.0, 3e4]])
    confidence = Confidence(-logits, torch.device("cpu"))
    confidence.add(torch.tensor([0, 0]), torch.tensor([0, 2]), logits)
    figures = confidence.figures(Group())
    assert figures[names.TEST_ECE] == pytest.approx(50)
    assert figures[names.TEST_KL] == pytest.approx((2e4 + 6e4) / 2)


class Halves(Group):
    """Stands for two processes, of which this one was given the first images: their means are worked here."""

    def __init__(self, others):
        self.others = others

    def mean_over_ranks(self, values):
        return [(own + other) / 2 for own, other in zip(values, self.others, strict=True)]


class Recorder(Group):
    """Keeps what a process would tell the others."""

    def mean_over_ranks(self, values):
        self.told = list(values)
        return self.told


def test_two_processes_have_the_figures_of_all_images(images):
    logits, targets, logits_t = images
    whole = fed(Confidence(logits_t, torch.device("cpu")), logits, targets).figures(Group())
    first, second = (Confidence(logits_t[part], torch.device("cpu")) for part in (slice(0, 40), slice(40, None)))
    first.add(targets[:40], logits[:40].argmax(1), logits[:40])
    second.add(targets[40:], logits[40:].argmax(1), logits[40:])
    other = Recorder()
    second.figures(other)
    assert first.figures(Halves(other.told)) == pytest.approx(whole, rel=1e-12)


def logits_of(trial, environment):
    """Those of the kept network of a trial for the test images."""
    splits = prepare(trial.data, data_dir=environment.data_dir, cache_dir=environment.layout.cache)
    card = splits.card
    network = create(trial.student.name, classes=card.classes, channels=card.channels, seed=trial.seed).eval()
    network.load_state_dict(load_weights(environment.layout.trial(trial.key).last))
    batches = Batches(splits.test, card, augment=None, batch_size=64, seed=0, device="cpu")
    with torch.no_grad():
        return torch.cat([network(batch.image).logits for batch in batches.ordered(64)])


def test_a_student_and_its_teacher_have_them(environment, trial):
    own, here = trial("kd"), environment()
    [result] = fit([own], Mailbox(), here)
    logits, logits_t = (logits_of(one, here) for one in (own, own.teacher))
    divergence = by_hand(logits.tolist(), [0] * len(logits), logits_t.tolist())[1]
    assert result.metrics[names.test("last", names.TEST_KL)] == pytest.approx(divergence, rel=1e-4)
    for which in ("last", "best"):
        assert 0 <= result.metrics[names.test(which, names.TEST_ECE)] <= 100
        assert result.metrics[names.test(which, names.TEST_KL)] > 0
    assert 0 <= result.metrics[names.TEACHER + names.test("last", names.TEST_ECE)] <= 100
    assert names.TEACHER + names.test("last", names.TEST_KL) not in result.metrics, "it has no teacher"
