import pytest
import torch

from otkd.core import names, plugins
from otkd.models.factory import create
from otkd.train.evaluate import best_five, hits
from otkd.train.measure import compression


def test_multiply_adds_of_resnet8_by_hand():
    """Convolutions and the classifier at 3×32×32: the stem, then two 3×3 convolutions a stage and two shortcuts."""
    stem = 9 * 3 * 16 * 32**2
    stage1 = 2 * 9 * 16 * 16 * 32**2
    stage2 = (9 * 16 * 32 + 9 * 32 * 32 + 16 * 32) * 16**2
    stage3 = (9 * 32 * 64 + 9 * 64 * 64 + 32 * 64) * 8**2
    figures = compression(create("resnet8", classes=100, channels=3, seed=0), plugins.head("data", "cifar100").CARD)
    assert figures[names.MADDS] == stem + stage1 + stage2 + stage3 + 64 * 100
    assert figures[names.PARAMS] == 83_892
    assert figures[names.BYTES] == pytest.approx(4 * (83_892 + 681), rel=0.1)
    assert 0 < figures[names.LATENCY_MS] < 1000


def test_measuring_leaves_the_network_as_it_was():
    model = create("resnet8", classes=10, channels=1, seed=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compression(model, plugins.head("data", "digits").CARD)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_hits_against_a_sort():
    generator = torch.Generator().manual_seed(0)
    logits_BK = torch.randn(97, 11, generator=generator)
    target_B = torch.randint(0, 11, (97,), generator=generator)
    ranks = [
        sorted(row, reverse=True).index(row[target]) for row, target in zip(logits_BK.tolist(), target_B, strict=True)
    ]
    counts = [count.item() for count in hits(best_five(logits_BK), target_B)]
    assert counts == [ranks.count(0), sum(rank < 5 for rank in ranks)]
    few_B3 = best_five(logits_BK[:, :3])
    assert hits(few_B3, target_B % 3)[1].item() == 97
