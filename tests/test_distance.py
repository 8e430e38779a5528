"""Distances of sets of images: against closed forms, with their control, and never without a word about what is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from efface import verbs
from efface.cli import main
from efface.errors import BadOption, EvaluationError
from efface.evaluation.distances import distance


def gaussian(n: int, mean: float, seed: int, deviation: float = 1.0) -> torch.Tensor:
    return mean + deviation * torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_frechet_distance_of_gaussians_is_known() -> None:
    """|m1 - m2|^2 + sum (s1 - s2)^2 for independent dimensions; 4 of them. 20,000 samples leave an error of about 1 %."""
    found = distance(gaussian(20_000, 0.0, 0), gaussian(20_000, 1.0, 1, 2.0))
    assert found.fd == pytest.approx(4 * 1.0 + 4 * 1.0, rel=0.03)
    assert distance(gaussian(5000, 0.0, 0), gaussian(5000, 0.0, 0)).fd == pytest.approx(0.0, abs=1e-6)


def test_the_kernel_distance_grows_with_the_shift_and_is_zero_on_average_without() -> None:
    near, far = (distance(gaussian(400, 0.0, 0), gaussian(400, m, 1)).kid for m in (0.3, 1.0))
    assert 0 < near < far
    same = distance(gaussian(400, 0.0, 0), gaussian(400, 0.0, 1))
    assert abs(same.kid) < 3 * same.kid_std
    assert distance(gaussian(400, 0.0, 0), gaussian(400, 1.0, 1)) == distance(gaussian(400, 0.0, 0), gaussian(400, 1.0, 1))


def test_missing_images_are_an_error_and_no_smaller_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EvaluationError, match="49 images are too few"):
        distance(gaussian(49, 0.0, 0), gaussian(60, 0.0, 1))
    broken = gaussian(60, 0.0, 0)
    broken[3, 1] = torch.nan
    with pytest.raises(EvaluationError, match="no finite features"):
        distance(broken, gaussian(60, 0.0, 1))
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(BadOption, match=r"efface\[eval\]"):
        distance(gaussian(60, 0.0, 0), gaussian(60, 0.0, 1))


@pytest.mark.slow
def test_a_slight_change_moves_images_less_than_other_seeds_do_and_noise_more(tmp_path: Path) -> None:
    from efface.models.load import load_model
    from efface.patches.patch import noise_like

    model = load_model("mini")
    patch = verbs.erase(model, "uce", targets=["rabbit"])
    out = tmp_path / "d.json"
    found = verbs.distance(model, patch.scaled(0.02), images=60, profile="smoke", out=out)
    assert json.loads(out.read_text("utf-8")) == json.loads(json.dumps(found))
    noisy = verbs.distance(model, noise_like(patch.scaled(3.0), torch.Generator().manual_seed(0)), images=60, profile="smoke")
    for backbone in ("mini report detector", "mini image-text encoder"):
        mine, broken = found["backbones"][backbone], noisy["backbones"][backbone]
        assert mine["distance"]["fd"] < mine["control"]["fd"]
        assert broken["distance"]["fd"] > mine["distance"]["fd"]
        assert mine["similarity"]["value"] > broken["similarity"]["value"]


def test_too_few_images_are_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    patch = tmp_path / "p.safetensors"
    verbs.erase("tiny", "uce", targets=["cat"]).save(patch)
    done = CliRunner().invoke(main, ["distance", "--model", "tiny", "--patch", str(patch), "--images", "8"])
    assert done.exit_code == 2
    assert "images=8 are too few" in done.output
