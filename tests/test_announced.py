"""What a command says that it will spend, before it starts, is what it spends: images of the unmodified model included."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import efface
from efface.evaluation.profiles import Profile
from efface.models.base import DiffusionModel
from efface.models.load import load_model
from efface.patches import Patch

FEW = Profile("few", 4, 4.0, {"direct": 4, "near": 4, "far": 2})
VERBS: dict[str, Callable[..., Any]] = {
    "evaluate": lambda model, patch, out, **more: efface.evaluate(model, patch, out=out, profile=FEW, **more),
    "attack": lambda model, patch, out, **more: efface.attack(
        model, "seed_search", patch=patch, budget=16, cases=2, profile=FEW, out=out, **more
    ),
    "attack with words of its own": lambda model, patch, out, **more: efface.attack(
        model, "mma", patch=patch, budget=16, cases=2, profile=FEW, out=out, controls=False, **more
    ),
    "survive": lambda model, patch, out, **more: efface.survive(
        model, patch, out=out, only=["merge-base"], cases=2, profile=FEW, **more
    ),
}


@pytest.fixture(scope="module")
def mini() -> DiffusionModel:
    return load_model("mini")


@pytest.fixture(scope="module")
def dog(mini: DiffusionModel) -> Patch:
    return efface.erase(mini, "uce", targets="dog")


@pytest.mark.parametrize("verb", [pytest.param(v, marks=[] if v in ("evaluate", "attack") else pytest.mark.slow) for v in VERBS])
def test_what_is_announced_is_spent(
    verb: str, mini: DiffusionModel, dog: Patch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing in the cache, and again with the unmodified model's images there."""
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))
    announced = []
    for run in ("cold", "warm"):
        said: list[str] = []
        before = mini.evals.forward + mini.evals.differentiated
        VERBS[verb](mini, dog, tmp_path / run, note=said.append)
        spent = mini.evals.forward + mini.evals.differentiated - before
        (told,) = re.findall(r"This takes (at most )?([\d,]+) UNet evaluations", " ".join(said))
        announced.append(int(told[1].replace(",", "")))
        assert spent <= announced[-1] if told[0] else spent == announced[-1], (run, said)
    assert announced[1] < announced[0]
