"""Compiled networks: the same names and, but for rounding, the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from otkd.core import names
from otkd.sweep.runner import Mailbox
from otkd.train.checkpoint import load_weights
from otkd.train.device import compile_network
from otkd.train.engine import fit


@pytest.mark.long
def test_a_student_and_its_teacher_train_compiled_as_they_do_uncompiled(trial, environment):
    runs = {}
    for compiled in (False, True):
        where = environment(f"runs-{compiled}", compiled=compiled)
        (runs[compiled],) = fit([trial("kd")], Mailbox(), where)
        runs[compiled, "weights"] = load_weights(where.layout.trial(trial("kd").key).last)
    plain, compiled = runs[False], runs[True]
    assert compiled.provenance["compiled"] == "torch.compile"
    assert "compiled" not in plain.provenance
    assert list(runs[True, "weights"]) == list(runs[False, "weights"])
    for one, other in zip(plain.epochs, compiled.epochs, strict=True):
        assert one.metrics[names.TRAIN_LOSS] == pytest.approx(other.metrics[names.TRAIN_LOSS], rel=1e-2)


def test_dropout_draws_the_same_compiled():
    network, image = nn.Sequential(nn.Linear(5, 7), nn.Dropout(0.4)), torch.ones(3, 5)
    torch.manual_seed(3)
    expected = network(image)
    compile_network(network)
    torch.manual_seed(3)
    torch.testing.assert_close(network(image), expected)
    assert list(network.state_dict()) == ["0.weight", "0.bias"]
