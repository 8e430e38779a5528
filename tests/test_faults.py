"""Faults planted in everything that is registered: a new attack or detector is enrolled by being registered.

What an image that is broken does to rates, differences and verdicts is tested with the aggregates (test_evaluate, test_certify).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from chequered import chequered
from test_vlm import small_llava
from torch import Tensor

from efface.attacks import Deployed, Goal
from efface.concepts.prompts import Case
from efface.detectors.clip_score import ClipScorer
from efface.detectors.vlm import Vlm
from efface.detectors.zero_shot import ZeroShot
from efface.errors import BadOption, EvaluationError
from efface.evaluation.attack import Unit, run_attacks
from efface.evaluation.driver import score
from efface.evaluation.judges import DetectorJudge
from efface.evaluation.profiles import Profile
from efface.methods import UCE
from efface.models.mini import WEIGHTS
from efface.models.tiny import tiny
from efface.patches import Patch
from efface.registry import ATTACKS, DETECTORS, build_attack
from efface.testing import affordable
from efface.verbs.erase import request_for

CASES = tuple(Case("direct", "cat", p, s, 2.0) for p, s in (("a cat", 1), ("the cat", 2)))
WORDS = {"synonym": ("dog",), "implicit": ("a bus",), "group": ("rose",)}
SMALL = Profile("small", 2, 2.0, {"direct": 2})


class Judge:
    """Finds the target in the plain images of the unmodified model, and afterwards what it is told to."""

    facts: Any = {"report": {"name": "planted"}, "clip": {"name": "none"}}  # noqa: RUF012
    names = ("cat",)

    def __init__(self, then: str | None) -> None:
        self.then, self.plain = then, True

    def calibrate(self, images: Tensor) -> None: ...

    def detect(self, images: Tensor, concepts: Any) -> list[tuple[str | None, float | None, str | None]]:
        if self.plain:
            return [(c, 0.9, None) for c in concepts]
        if self.then is None:
            raise RuntimeError("the detector crashed")
        return [(None, None, self.then)] * len(images)

    def embed_images(self, images: Tensor) -> Tensor:
        return images.flatten(1)

    def clip_t(self, images: Tensor, prompts: Any) -> list[float | None]:
        return [None] * len(prompts)


@pytest.fixture(scope="module")
def patch() -> Patch:
    return UCE().erase(tiny(), request_for(tiny(), ["cat"]))


def unit_of(name: str, patch: Patch) -> tuple[Unit, int]:
    attack = build_attack(name, preset="tiny" if "tiny" in ATTACKS.find(name).presets else "paper")
    unit = Unit(name, attack, Deployed(tiny(), 2, ("cat",), patch), Goal("cat", CASES, WORDS))
    return unit, next(b for b in range(4, 400, 4) if affordable(attack, unit.deployed, unit.goal, b))


@pytest.mark.parametrize(("name", "fault"), chequered(ATTACKS, ("non-finite", "uniform")))
def test_an_attack_whose_images_are_broken_neither_wins_nor_shows_that_the_target_is_gone(
    name: str, fault: str, patch: Patch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit, budget = unit_of(name, patch)
    judge = Judge(fault)
    break_after_the_plain_cases(judge, monkeypatch)
    summary = run_attacks([unit], SMALL, judge, tmp_path / "a", budget, calibration=CASES)
    found = summary["attacks"][name]
    assert found["rate"]["k"] == 0
    assert found["rate"]["n"] == 0, "a case without a valid image has resisted nothing"
    assert found["undecided"] == len(CASES) or found["rate"]["n"] == 0
    assert summary["union"]["n"] == 0


@pytest.mark.parametrize("name", list(ATTACKS))
def test_a_detector_that_crashes_in_an_attack_leaves_no_record(
    name: str, patch: Patch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit, budget = unit_of(name, patch)
    judge = Judge(None)
    break_after_the_plain_cases(judge, monkeypatch)
    with pytest.raises(RuntimeError, match="the detector crashed"):
        run_attacks([unit], SMALL, judge, tmp_path / "a", budget, calibration=CASES)
    assert not list((tmp_path / "a").glob("attempts-*")), "nothing looks like a finished attack"


def break_after_the_plain_cases(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    from efface.evaluation import attack as engine

    run_unit = engine.run_unit

    def broken(*args: Any, **more: Any) -> Any:
        judge.plain = False
        return run_unit(*args, **more)

    monkeypatch.setattr(engine, "run_unit", broken)


# -- detectors ---------------------------------------------------------------------------------------------------

NAMES = {"imagenet": ("tench",), "open-nsfw": ("nudity",), "mini-report": ("rabbit",)}


@pytest.fixture
def detector(name: str, tmp_path: Path) -> Any:
    """The detector of that name; None where it is not installed."""
    if name == "zero-shot":
        return ZeroShot(("cat", "dog"), ClipScorer(str(WEIGHTS / "clip")), "mini")
    if name == "vlm":
        return Vlm(("cat", "dog"), str(small_llava(tmp_path / "vlm")))
    try:
        return DETECTORS.find(name)(NAMES.get(name, ("nudity",)))
    except BadOption as error:
        if "pip install" not in str(error):  # a detector that is not installed says how to get it
            raise
        return None


@pytest.mark.parametrize("name", list(DETECTORS))
def test_what_is_no_picture_is_invalid_for_every_detector(name: str, detector: Any) -> None:
    if detector is None:
        return
    concept, judge = detector.names[0], DetectorJudge(detector)
    seen = torch.rand((60, 3, 48, 48), generator=torch.Generator().manual_seed(0))
    judge.calibrate(seen)
    hostile = torch.stack([torch.full((3, 48, 48), torch.nan), torch.zeros(3, 48, 48), torch.ones(3, 48, 48), seen[0]])
    hostile[3, 0, 0, 0] = torch.inf
    reasons = [reason for _, _, reason in judge.detect(hostile, [concept] * 4)]
    assert reasons[0] == reasons[3] == "non-finite"
    assert all(reasons), reasons
    cases = [Case("direct", concept, "x", s) for s in range(4)]
    rows = score("m", cases, hostile, judge.embed_images(seen[:4]), judge)
    assert not any(row.valid or row.hit for row in rows)
    assert rows[0].clip_i is None
    with pytest.raises(EvaluationError, match="too few"):
        DetectorJudge(detector).calibrate(hostile)


@pytest.mark.parametrize("name", list(DETECTORS))
def test_an_answer_of_the_wrong_shape_is_an_error(name: str, detector: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if detector is None:
        return
    look = detector.look
    monkeypatch.setattr(detector, "look", lambda images: look(images[:-1]), raising=False)
    with pytest.raises(EvaluationError, match="probabilities for 3 images"):
        DetectorJudge(detector).look(torch.rand(3, 3, 48, 48))
