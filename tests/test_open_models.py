"""Models without a world of their own: their own prompts, steps and guidance, and a word about names they may not know."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from efface import verbs
from efface.cli.evaluate import _by_target
from efface.concepts.prompts import filled
from efface.concepts.request import EraseRequest
from efface.errors import BadOption, BadRequest, UnknownName
from efface.evaluation.profiles import PROFILES, Profile
from efface.methods import UCE
from efface.models.load import load_model
from efface.models.mini import WEIGHTS
from efface.verbs.erase import request_for
from efface.verbs.subject import profile_for, suite_for


def open_model(name: str = "tiny") -> Any:
    model: Any = load_model(name)
    model.concept_names = ()
    return model


class Said(Exception):
    """What a verb announces; stops it there."""


def announced(text: str) -> None:
    raise Said(text)


def test_steps_and_guidance_are_the_models_own() -> None:
    for name, profile in PROFILES.items():
        assert profile_for(load_model("mini"), name) == profile
        for kind, guidance in (("tiny", 7.5), ("tiny-xl", 5.0)):
            found = profile_for(open_model(kind), name)
            assert (found.steps, found.guidance) == (profile.open_steps, guidance)
            assert found.steps >= 20
            assert (found.cases, found.damaged) == (profile.cases, profile.damaged)
    own = Profile("own", 3, 2.0, {})
    assert profile_for(open_model(), own) is own


def test_prompts_are_not_the_miniatures() -> None:
    of_mini = {c.prompt for c in suite_for(load_model("mini"), ["dog"]).cases(PROFILES["mini"])}
    assert {"a noto style dog", "an icon of a dog", "a dog on a blue background"} <= of_mini
    model = open_model()
    cases = suite_for(model, ["cat"], ["dog"], ["bus"]).cases(profile_for(model, "mini"))
    assert {c.guidance for c in cases} == {7.5}
    assert not [c.prompt for c in cases if any(w in c.prompt for w in ("noto", "icon", "background"))]
    assert "a photo of a cat" in {c.prompt for c in cases}


def test_names_with_a_capital_have_no_article() -> None:
    assert filled("a photo of a {}", "Van Gogh") == "a photo of Van Gogh"
    assert filled("the {}", "Brad Pitt") == "Brad Pitt"
    assert filled("a photo of a {}", "apple") == "a photo of an apple"


@pytest.mark.parametrize("verb", ["evaluate", "attack"])
def test_it_is_said_how_images_are_drawn(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model()
    patch = UCE().erase(model, EraseRequest(("cat",), "dog"))

    class Judge:
        names = ("cat", "dog", "bus")
        facts: Any = {}  # noqa: RUF012

    if verb == "evaluate":
        with pytest.raises(Said, match=r"20 sampler steps, guidance 7.5, prompts such as 'a cat' and 'the cat'"):
            verbs.evaluate(
                model,
                patch,
                out=tmp_path / "e",
                profile="smoke",
                near=["dog"],
                far=["bus"],
                judge=Judge(),
                note=announced,  # type: ignore[arg-type]
            )
    else:
        with pytest.raises(Said, match="Attacking tiny with seed_search, and 1 other run beside it, 3 cases each"):
            verbs.attack(
                model,
                "seed_search",
                budget=80,
                patch=patch,
                out=None,
                cases=3,
                profile="smoke",
                near=["dog"],
                far=["bus"],
                clip=str(WEIGHTS / "clip"),
                note=announced,
                controls=False,
            )


def test_samples_of_other_models_take_fifty_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model()
    taken: list[tuple[int, float]] = []

    def sample(cases: Any, steps: int, batch: int = 32) -> torch.Tensor:
        taken.append((steps, cases[0].guidance))
        return torch.zeros(len(cases), 3, 8, 8)

    model.sample = sample
    verbs.sample(model, "a cat")
    verbs.sample(model, "a cat", steps=3, guidance=2.0)
    mini: Any = load_model("mini")
    mini.sample = sample
    verbs.sample(mini, "a cat")
    assert taken == [(50, 7.5), (3, 2.0), (16, 4.0)]


def test_other_names_of_a_target() -> None:
    model = open_model()
    suite = suite_for(model, ["cat", "dog"], ["bus"], ["rose"], {"CAT": "kitty", "dog": ["hound", "pup"]})
    assert suite.synonyms == {"cat": ("kitty",), "dog": ("hound", "pup")}
    assert {c.concept for c in suite.cases(PROFILES["mini-lite"]) if c.axis == "synonym"} == {"cat", "dog"}
    with pytest.raises(UnknownName, match="unknown target 'cow'"):
        suite_for(model, ["cat"], ["bus"], ["rose"], {"cow": ["x"]})
    for word in ("CAT", "bus", " "):
        with pytest.raises(BadRequest, match="is a target, a concept to keep, or empty"):
            suite_for(model, ["cat"], ["bus"], ["rose"], {"cat": [word]})
    with pytest.raises(BadOption, match="--synonym are for other models"):
        suite_for(load_model("mini"), ["dog"], synonyms={"dog": ["hound"]})
    assert _by_target(("kitty", "cat=tabby"), ("cat",)) == {"cat": ["kitty", "tabby"]}
    assert _by_target(("dog=hound",), ("cat", "dog")) == {"dog": ["hound"]}
    with pytest.raises(BadOption, match="write TARGET=kitty"):
        _by_target(("kitty",), ("cat", "dog"))


@pytest.mark.parametrize(
    ("name", "hint"), [("tullip", "Did you mean 'tulip'"), ("the hosue", "Did you mean 'house'"), ("qwxzv", "check the spelling")]
)
def test_a_word_that_the_tokenizer_reads_in_pieces_is_said(name: str, hint: str) -> None:
    for given in ({"targets": [name]}, {"targets": ["cat"], "preserve": [name]}, {"targets": ["cat"], "anchor": name}):
        with pytest.warns(UserWarning, match=hint):
            request_for(open_model(), **given)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        request_for(open_model(), ["the Cat", "tulip"], "a house", ["photo of rose"])
        request_for(load_model("mini"), ["fire engine"])
