"""Validity by distance: planted clouds."""

from __future__ import annotations

import pytest
import torch

from efface.detectors.cloud import Cloud
from efface.errors import EvaluationError


def points(seed: int, n: int, d: int = 6) -> torch.Tensor:
    return torch.randn((n, d), generator=torch.Generator().manual_seed(seed))


def test_members_and_newcomers_of_the_same_kind_are_valid_and_strangers_are_not() -> None:
    cloud = Cloud(points(0, 400))
    assert cloud.unlike(points(0, 400)).float().mean().item() == pytest.approx(0.01, abs=0.005)
    # 1 % nominal on fresh points of the same kind; 6 % would be a 9-sigma event of the binomial at n = 400
    assert cloud.unlike(points(1, 400)).float().mean() < 0.06
    assert cloud.unlike(points(2, 50) + 8).all()


def test_an_image_does_not_vouch_for_itself() -> None:
    lonely = torch.cat([points(0, 100), torch.full((1, 6), 30.0)])
    assert bool(Cloud(lonely).unlike(lonely[-1:]))


def test_non_finite_features_are_invalid_and_do_not_poison_the_cloud() -> None:
    broken = points(0, 100)
    broken[3] = torch.nan
    cloud = Cloud(broken)
    assert cloud.unlike(broken).tolist()[3]
    assert not cloud.unlike(points(0, 100)[:3]).all()


def test_too_few_images_are_refused() -> None:
    with pytest.raises(EvaluationError, match="too few"):
        Cloud(points(0, 49))


def test_an_image_of_the_cloud_is_judged_without_itself() -> None:
    """Features far from the origin, as a detector's are: an image's distance from itself must not pass for a neighbour's."""
    features = 1.0 + 0.3 * points(0, 200)
    exact = features.double()
    apart = (exact[:, None] - exact[None]).norm(dim=-1).fill_diagonal_(torch.inf)
    expected = apart.topk(5, largest=False).values.mean(1)
    assert torch.allclose(Cloud(features).distance(features).double(), expected, rtol=1e-5)
