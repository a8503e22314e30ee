"""Costs between classes against loops over their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from otkd.ot import cost
from otkd.ot.cost import cka_cost, classifier_cosine, sharpened


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """By features, |Xᵀ Y|² / (|Xᵀ X| |Yᵀ Y|), where the library goes by samples."""
    x, y = x - x.mean(0), y - y.mean(0)
    return float(np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def by_loop(x_KND: torch.Tensor, counts: list[int]) -> np.ndarray:
    arrays = [x_ND[:count].numpy() for x_ND, count in zip(x_KND, counts, strict=True)]
    table = np.ones((len(arrays), len(arrays)))
    for i, left in enumerate(arrays):
        for j, right in enumerate(arrays):
            common = min(len(left), len(right))
            if i != j and common > 2:
                table[i, j] = 1 - linear_cka(left[:common], right[:common])
    np.fill_diagonal(table, 0)
    return table


def test_classifier_cosine_equals_scipy() -> None:
    weight = features(13, 5)
    got = classifier_cosine(weight)
    np.testing.assert_allclose(got.numpy(), cdist(weight, weight, "cosine"), atol=1e-12)
    assert (got.diagonal() == 0).all()


def test_classifier_with_an_empty_row_is_finite() -> None:
    weight = features(4, 5)
    weight[2] = 0
    got = classifier_cosine(weight)
    assert got.isfinite().all()
    assert got[2].tolist() == [1, 1, 0, 1]


@pytest.mark.parametrize("width", [3, 29])
def test_cka_equals_the_loop(width: int) -> None:
    """By features of width 3, by samples of width 29."""
    x_KND = features(7, 17, width) + 5
    np.testing.assert_allclose(cka_cost(x_KND).numpy(), by_loop(x_KND, [17] * 7), rtol=1e-10)


@pytest.mark.parametrize("width", [2, 5, 23])
def test_different_counts_take_the_common_prefix(width: int) -> None:
    """By features, by either as the count has it, by samples."""
    x_KND, counts = features(6, 17, width), [17, 9, 9, 17, 13, 2]
    expected = by_loop(x_KND, counts)
    for k, count in enumerate(counts):
        x_KND[k, count:] = torch.nan
    np.testing.assert_allclose(cka_cost(x_KND, torch.tensor(counts)).numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("width", [2, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_classes_without_spread_are_far_from_all_others(width: int, dtype: torch.dtype) -> None:
    x_KND, counts = features(5, 9, width).to(dtype), [9, 2, 0, 9, 6]
    x_KND[3] = x_KND[3, 0]
    got = cka_cost(x_KND, torch.tensor(counts))
    for k in (1, 2, 3):
        assert got[k].tolist() == [0.0 if j == k else 1.0 for j in range(5)]
        assert got[:, k].tolist() == got[k].tolist()
    assert 0 < got[0, 4] < 1


@pytest.mark.parametrize("width", [2, 29])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_rounding_of_a_mean_is_no_spread(width: int, dtype: torch.dtype) -> None:
    """Eleven samples of 0.1 have a mean that is not quite 0.1; two such classes are not alike by that."""
    x_KND = features(4, 11, width).to(dtype)
    x_KND[1:3] = 0.1 * features(2, 1, width, seed=1).to(dtype)
    assert (x_KND[1:3] - x_KND[1:3].mean(1, keepdim=True)).any()
    got = cka_cost(x_KND)
    assert got[1].tolist() == [1, 0, 1, 1]
    assert got[2].tolist() == [1, 1, 0, 1]


def test_the_cka_of_two_pairs_says_nothing() -> None:
    """Why less than three samples count as none."""
    assert linear_cka(features(2, 5).numpy(), features(2, 5, seed=1).numpy()) == pytest.approx(1)


def test_bands_of_the_gram_matrices_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    x_KND = features(7, 17, 19)
    whole = cka_cost(x_KND)
    monkeypatch.setattr(cost, "GRAM", 7 * 17 * 3)
    torch.testing.assert_close(cka_cost(x_KND), whole, rtol=1e-12, atol=1e-12)


def test_cka_is_blind_to_scale_rotation_and_shift() -> None:
    x_ND = features(19, 5)
    rotation = torch.linalg.qr(features(5, 5, seed=1)).Q
    got = cka_cost(torch.stack([x_ND, 1e6 * x_ND @ rotation + 3, features(19, 5, seed=2)]))
    assert got[0, 1].item() == pytest.approx(0, abs=1e-9)
    assert got[0, 2].item() == pytest.approx(got[1, 2].item(), rel=1e-8)
    assert got[0, 2] > 0.1


def test_what_is_not_finite_is_seen() -> None:
    for width in (2, 23):
        x_KND = features(6, 17, width)
        x_KND[2, 5, 1] = torch.nan
        got = cka_cost(x_KND)
        assert got[2, [0, 1, 3, 4, 5]].isnan().all()
        assert got[:2, :2].isfinite().all()


@pytest.mark.parametrize("width", [2, 17])
def test_single_precision_and_autocast_agree(width: int) -> None:
    x_KND = features(7, 17, width)
    expected = cka_cost(x_KND).float()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(cka_cost(x_KND.float()), expected, rtol=1e-4, atol=1e-5)


def test_sharpening() -> None:
    table = torch.tensor([[0.0, 0.5], [1.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(sharpened(table, 2.0), 1 - torch.exp(-2 * table))
    assert sharpened(table, 1e-9)[1, 0].item() == pytest.approx(1e-9, rel=1e-6)
