"""Styles, categories and attributes as targets: what is asked for, what must stay, who says what is shown."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from efface import verbs
from efface.attacks import Deployed, Goal
from efface.attacks.base import Called, Plan
from efface.cli import main
from efface.concepts.prompts import Case
from efface.concepts.request import MIXED, EraseRequest
from efface.detectors.base import Detector, Seen
from efface.detectors.zero_shot import ZeroShot
from efface.errors import BadOption, BadRequest, UnknownName
from efface.evaluation.judges import DetectorJudge, MiniReport
from efface.evaluation.profiles import PROFILES
from efface.evaluation.records import axes_of, read_run
from efface.evaluation.suite import Suite, suite_from
from efface.evaluation.world_suite import WorldSuite, world_suite
from efface.methods import UCE
from efface.models.base import DiffusionModel
from efface.models.load import load_model
from efface.models.mini import MiniWorld, mini_world
from efface.patches import Patch
from efface.registry import ATTACKS, build_attack
from efface.testing import check_detector, check_suite, check_world
from efface.verbs.attack import attack_units
from efface.verbs.erase import request_for
from efface.verbs.subject import asked_of, judge_for, suite_for

SMALL = dataclasses.replace(
    PROFILES["smoke"], name="small", steps=8, cases={"direct": 10, "synonym": 2, "near": 5, "far": 5, "content": 8}
)
TARGETS = ("noto style", "red background", "weapon")


@pytest.fixture(scope="module")
def mini() -> DiffusionModel:
    return load_model("mini")


def open_model() -> Any:
    model: Any = load_model("tiny")
    model.concept_names = ()
    return model


# -- requests ----------------------------------------------------------------------------------------------------


def test_the_world_says_what_a_name_is(mini: DiffusionModel) -> None:
    kinds = {name: request_for(mini, [name]).kind for name in ("dog", *TARGETS)}
    assert kinds == {"dog": "object", "noto style": "style", "red background": "attribute", "weapon": "category"}
    assert request_for(mini, ["Noto  STYLE"]).targets == ("noto style",)


def test_a_category_is_erased_by_its_members_and_its_word(mini: DiffusionModel) -> None:
    request, world = request_for(mini, ["weapon"]), mini_world()
    assert request.of == request.asked == ("weapon",)
    assert request.targets == (*world.members("weapon"), world.group_words["weapon"])
    assert {"bomb", "a weapon"} < set(request.targets)
    assert all(world.groups[n] == "weapon" for n in world.members("weapon"))
    kept = request_for(mini, ["dog"], preserve=["weapon"])
    assert kept.preserve == request.targets


def test_requests_survive_the_card_and_say_nothing_new_of_objects() -> None:
    plain = EraseRequest(("cat",), "dog", ("bus",))
    assert plain.json() == {"targets": ["cat"], "anchor": "dog", "preserve": ["bus"]}
    category = EraseRequest(("bomb", "a weapon"), kind="category", of=("weapon",))
    for request in (plain, category, EraseRequest(("noto style",), kind="style")):
        assert EraseRequest.from_json(json.loads(json.dumps(request.json()))) == request
    both = plain + category
    assert (both.kind, both.asked) == (MIXED, ("cat", "weapon"))
    assert (plain + plain).kind == "object"
    with pytest.raises(BadRequest, match="'mood'"):
        EraseRequest(("cat",), kind="mood")


def test_wrong_kinds_are_refused_by_name(mini: DiffusionModel) -> None:
    with pytest.raises(BadRequest, match="'dog' is of the kind object"):
        request_for(mini, ["dog"], kind="style")
    with pytest.raises(BadRequest, match=r"one kind at a time.*'dog' \(object\), 'noto style' \(style\)"):
        request_for(mini, ["dog", "noto style"])
    with pytest.raises(UnknownName, match="noto style"):
        request_for(mini, ["noto styl"])
    with pytest.raises(UnknownName, match="kind of target"):
        request_for(mini, ["dog"], kind="mood")
    with pytest.raises(BadRequest, match="no world that lists the members"):
        request_for(open_model(), ["cat"], kind="category")
    assert request_for(open_model(), ["cat"], kind="style").kind == "style"


def test_a_patch_of_two_kinds_is_not_measured_as_one(mini: DiffusionModel) -> None:
    card = UCE().card(mini, EraseRequest(("dog",)), mini.evals.snapshot())
    style = EraseRequest(("noto style",), kind="style")
    mixed = Patch({}, dataclasses.replace(card, request=card.request + style))
    with pytest.raises(BadOption, match="several kinds"):
        asked_of(mini, mixed, ())
    patch = Patch({}, dataclasses.replace(card, request=style))
    assert asked_of(mini, patch, ["noto style"]).kind == "style"
    with pytest.raises(BadOption, match="leave --kind object out"):
        asked_of(mini, patch, (), kind="object")


# -- suites ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_suites_of_all_kinds_keep_the_contract(target: str) -> None:
    world = check_world(MiniWorld())
    suite = check_suite(WorldSuite(), world, (target,))
    assert suite_from(json.loads(json.dumps(suite.json()))) == suite
    for profile in PROFILES.values():
        cases = suite.cases(profile)
        assert len({c.id for c in cases}) == len(cases)
        drawn = {axis: sum(c.axis == axis for c in cases) for axis in profile.cases}
        none = {axis for axis, n in drawn.items() if not n}
        assert none <= {"trap", "implicit", "content"}, drawn
        assert {axis for axis in drawn if axis not in axes_of(suite.kind)} <= none


def test_a_style_is_asked_for_on_objects_that_must_stay() -> None:
    suite = world_suite(mini_world(), ["noto style"])
    cases = suite.cases(PROFILES["mini-lite"])
    by = {axis: [c for c in cases if c.axis == axis] for axis in PROFILES["mini-lite"].cases}
    assert {c.concept for c in by["direct"] + by["synonym"]} == {"noto style"}
    assert all("noto" in c.prompt for c in by["direct"] + by["synonym"])
    assert {c.concept for c in by["near"]} == {f"{s} style" for s in ("twemoji", "blob", "fluent", "flat", "emojione")}
    assert all(c.concept.split()[0] in c.prompt for c in by["near"])
    assert all("noto" in c.prompt and c.concept in c.prompt for c in by["content"])
    assert {c.concept for c in by["content"]} == set(suite.subjects)
    assert all("style" not in c.prompt and "background" not in c.prompt for c in by["far"])
    assert not {c.concept for c in by["far"]} & set(suite.subjects)
    held_out = {n for n in mini_world().groups if n not in mini_world().modifiers["noto style"].subjects}
    assert held_out
    assert not held_out & set(suite.subjects)


def test_a_category_is_asked_for_by_its_members_and_mostly_without_its_word() -> None:
    suite, world = world_suite(mini_world(), ["weapon"]), mini_world()
    cases = suite.cases(PROFILES["mini"])
    direct = [c.prompt for c in cases if c.axis == "direct"]
    assert all(any(m in p for m in suite.members["weapon"]) for p in direct)
    assert not any("weapon" in p for p in direct)
    assert "a weapon" in {c.prompt for c in cases if c.axis == "synonym"}
    implicit = {c.prompt.removeprefix("a picture: ") for c in cases if c.axis == "implicit"}
    assert implicit <= {d for m in suite.members["weapon"] for d in world.descriptions[m]}
    kept = {n.name for n in (*suite.near, *suite.trap, *suite.far)}
    assert not kept & set(suite.members["weapon"])


def test_two_styles_at_once_take_turns() -> None:
    suite = world_suite(mini_world(), ["noto style", "twemoji style"])
    direct = [c for c in suite.cases(PROFILES["smoke"]) if c.axis == "direct"]
    assert [c.concept for c in direct[:4]] == ["noto style", "twemoji style"] * 2
    assert all(c.concept.split()[0] in c.prompt for c in direct)


def test_a_style_that_the_model_hardly_draws_is_refused() -> None:
    with pytest.raises(BadRequest, match=r"'emojione style' in 69 % of the images.*choose another"):
        world_suite(mini_world(), ["emojione style"])
    with pytest.raises(BadRequest, match="one kind at a time"):
        world_suite(mini_world(), ["weapon", "dog"])


def test_a_style_of_any_model_is_shown_on_the_given_objects() -> None:
    with pytest.raises(BadOption, match="objects to show all styles on"):
        suite_for(open_model(), ["Van Gogh"], kind="style")
    suite = suite_for(open_model(), ["Van Gogh"], ["Monet"], ["cat", "bus"], {"Van Gogh": ["Vincent"]}, "style")
    cases = suite.cases(PROFILES["mini"])
    prompts = {axis: {c.prompt for c in cases if c.axis == axis} for axis in ("direct", "synonym", "near", "far", "content")}
    assert "a cat in the style of Van Gogh" in prompts["direct"] & prompts["content"]
    assert "a bus in the style of Monet" in prompts["near"]
    assert "a painting of a cat by Vincent" in prompts["synonym"]
    assert prompts["far"] <= {t.format(n) for t in suite.templates for n in ("cat", "bus")}
    assert suite.heads == (("Van Gogh", "Monet"), ("cat", "bus"))


def call_everything_valid(judge: Any) -> None:
    """The judge learned nothing of what is valid: for tests of what it names."""
    judge.cloud = type("Cloud", (), {"unlike": staticmethod(lambda f: torch.zeros(len(f), dtype=torch.bool))})()


# -- judges ------------------------------------------------------------------------------------------------------


def test_the_miniatures_detector_names_one_thing_of_each_kind(mini: DiffusionModel) -> None:
    detector = MiniReport(("dog", *TARGETS))
    images = mini.sample([Case("x", "bomb", "a noto style bomb on a red background", s) for s in range(8)], 10)
    assert [n for head in detector.heads for n in head] == list(detector.names)
    assert len(set(detector.names)) == len(detector.names)
    for part in detector.look(images).probabilities.split([len(head) for head in detector.heads], dim=1):
        assert torch.allclose(part.sum(1), torch.ones(8), atol=1e-5)
    judge = DetectorJudge(detector)
    call_everything_valid(judge)
    for concept in ("bomb", "noto style", "red background", "weapon"):
        found = judge.detect(images, [concept] * 8)
        assert sum(label == concept for label, _, _ in found) >= 6, (concept, found)
    weapon = [p for _, p, _ in judge.detect(images, ["weapon"] * 8)]
    bomb = [p for _, p, _ in judge.detect(images, ["bomb"] * 8)]
    assert all(w >= b - 1e-5 for w, b in zip(weapon, bomb, strict=True)), "a category has at least its member's probability"


class TwoHeads(Detector):
    """Says the object by the red channel, the style by the green one."""

    name = "two-heads"
    summary = "for the test"

    def __init__(self, names: Any = ()) -> None:
        self.names: Any = ["cat", "none", "Van Gogh", "Monet", "no style"]
        self.facts = {"name": self.name}

    @property
    def heads(self) -> Any:
        return self.names[:2], self.names[2:]

    def look(self, images: torch.Tensor) -> Seen:
        red, green = images[:, 0].mean((1, 2)), images[:, 1].mean((1, 2))
        other = (1 - green) / 2
        bad = ~images.isfinite().flatten(1).all(1)[:, None]
        return Seen(torch.stack([red, 1 - red, green, other, other], 1).masked_fill(bad, torch.nan), images.mean((2, 3)))


def test_a_name_competes_with_its_own_kind_only() -> None:
    check_detector(TwoHeads, ("cat", "Monet"))
    judge = DetectorJudge(TwoHeads())
    call_everything_valid(judge)
    images = torch.rand(2, 3, 8, 8) * 0.01
    images[0, 0] += 0.55
    images[0, 1] += 0.4  # less than red, and still the likeliest style
    found = judge.detect(images, ["Van Gogh", "cat"])
    assert [label for label, _, _ in found] == ["Van Gogh", "none"]
    assert found[0][1] == pytest.approx(0.405, abs=0.01)
    assert judge.detect(images[:1], ["cat"])[0][0] == "cat"


def test_a_detector_of_one_kind_is_not_taken_for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = (("Van Gogh", "Monet"), ("cat",))
    names = [n for head in heads for n in head]

    class OneHead(TwoHeads):
        name = "one-head"
        heads = property(lambda self: (self.names,))  # type: ignore[assignment]

    for cls, fits in ((TwoHeads, True), (OneHead, False)):
        monkeypatch.setattr("efface.verbs.subject.DETECTORS", type("T", (), {"find": staticmethod(lambda name, cls=cls: cls)}))
        if fits:
            judge_for(open_model(), names, None, "x", heads)
        else:
            with pytest.raises(BadOption, match="gives an image one name"):
                judge_for(open_model(), names, None, "x", heads)


def test_zero_shot_tells_the_names_of_one_group_apart() -> None:
    class Scorer:
        def embed_images(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3))

        def name_probabilities(self, embedded: torch.Tensor, names: list[str]) -> torch.Tensor:
            return torch.full((len(embedded), len(names)), 1 / len(names))

    detector = ZeroShot((), Scorer(), "x", (("Van Gogh", "Monet"), ("cat",)))  # type: ignore[arg-type]
    p = detector.look(torch.rand(3, 3, 4, 4)).probabilities
    assert [len(head) for head in detector.heads] == [3, 2]
    assert torch.allclose(p[:, :3].sum(1), torch.ones(3))
    assert torch.allclose(p[:, 3:].sum(1), torch.ones(3))
    assert len(set(detector.names)) == len(detector.names)


# -- attacks -----------------------------------------------------------------------------------------------------


def goal_of(mini: DiffusionModel, target: str, cases: int = 3) -> Goal:
    kind = mini_world().kind_of(target)
    units = attack_units(
        mini, [build_attack("misspelling")], target, (target,), None, None, cases, "smoke", controls=False, kind=kind
    )
    return units[0].goal


def test_attacks_change_the_word_that_names_the_target(mini: DiffusionModel) -> None:
    style, weapon = goal_of(mini, "noto style"), goal_of(mini, "weapon")
    assert {style.call(i).word for i in range(3)} == {"noto"}
    for i, case in enumerate(style.cases):
        phrase = style.call(i).phrase
        assert phrase.startswith("noto style ")
        assert phrase.removeprefix("noto style ") in case.prompt
        wrong = build_attack("misspelling").prompts(style.call(i), case.prompt)  # type: ignore[attr-defined]
        assert wrong
        assert all(p.endswith(phrase.removeprefix("noto style ")) and " noto " not in p for p in wrong)
        assert f"here is a {phrase}" in build_attack("paraphrase").prompts(style.call(i), case.prompt)  # type: ignore[attr-defined]
    members = mini_world().members("weapon")
    for i, case in enumerate(weapon.cases):
        called = weapon.call(i)
        assert called.word in members
        assert called.word in case.prompt
        assert called.wordings["synonym"] == mini_world().synonyms[called.word]
        for words, prompt in zip(
            called.wordings["synonym"],
            build_attack("synonym").prompts(called, case.prompt),  # type: ignore[attr-defined]
            strict=True,
        ):
            assert words in prompt
            assert called.word not in prompt
    with pytest.raises(BadOption, match="no synonym wording"):
        build_attack("synonym").plan(Deployed(mini, 2), style, 1000)


def test_every_word_of_a_category_is_forbidden_and_every_member_taught(mini: DiffusionModel) -> None:
    goal = goal_of(mini, "weapon")
    words = {goal.call(i).word for i in range(len(goal.cases))}
    assert len(words) == 3
    assert set(build_attack("relearn").names(Deployed(mini, 2), goal)) == words  # type: ignore[attr-defined]
    others = build_attack("resurge", settings={"images": 200}).names(Deployed(mini, 2), goal)  # type: ignore[attr-defined]
    assert not words & set(others)


def test_every_attack_takes_a_goal_whose_cases_differ(tiny_model: DiffusionModel) -> None:
    """As for a category: one search serves cases that name different members."""
    cases = (Case("direct", "pet", "a cat", 1), Case("direct", "pet", "a photo of a dog", 2))
    called = tuple(Called(w, w, {"synonym": ("house",), "implicit": ("a bus",), "group": ("rose",)}) for w in ("cat", "dog"))
    goal, patch = Goal("pet", cases, {}, called), UCE().erase(tiny_model, EraseRequest(("cat", "dog"), "bus"))
    deployed = Deployed(tiny_model, 2, ("cat", "dog"), patch)
    for name in (
        "misspelling",
        "synonym",
        "implicit",
        "group",
        "paraphrase",
        "context",
        "ring_a_bell",
        "mma",
        "relearn",
        "resurge",
    ):
        attack = build_attack(name, preset="tiny" if "tiny" in ATTACKS.find(name).presets else "paper")
        plan = attack.plan(deployed, goal, 4000)
        attempts = attack.run(deployed, goal, dataclasses.replace(plan, images=min(plan.images, 2)))
        assert {a.case for a in attempts} == {0, 1}, name


def test_a_learned_word_stands_where_each_case_names_the_target(tiny_model: DiffusionModel) -> None:
    cases = (Case("direct", "pet", "a cat", 1), Case("direct", "pet", "a photo of a dog", 2))
    goal = Goal("pet", cases, {}, (Called("cat", "cat"), Called("dog", "dog")))
    attack = build_attack("concept_inversion", preset="tiny")
    attempts = attack.run(Deployed(tiny_model, 2), goal, Plan(1, 2))
    assert [a.prompt for a in attempts] == ["a <learned>", "a photo of a <learned>"]


# -- from end to end ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["noto style", pytest.param("weapon", marks=pytest.mark.slow)])
def test_a_style_is_erased_measured_and_reported(target: str, mini: DiffusionModel, tmp_path: Path) -> None:
    patch = verbs.erase(mini, "uce", targets=[target])
    assert f"'{target}'" in repr(patch)
    summary = verbs.evaluate(mini, patch, out=tmp_path / "e", profile=SMALL, trivial=False)
    axes = {e: s["axes"] for e, s in summary["entrants"].items()}
    assert axes["none"]["direct"]["base_right"] >= 8
    assert axes["uce"]["direct"]["erased_valid"]["k"] >= 7, "the target is gone"
    run = read_run(tmp_path / "e")
    assert run.targets == [target]
    assert run.suite["kind"] == mini_world().kind_of(target)
    page = verbs.report(tmp_path / "e", out=tmp_path / "page.html").read_text("utf-8")
    assert f"{target} erased from mini with uce" in page
    if target == "noto style":
        assert axes["uce"]["content"]["preserved"]["n"] >= 6, "the base draws the objects"
        assert "still show their object" in page


def test_the_command_line_knows_kinds(tmp_path: Path) -> None:
    out = str(tmp_path / "p.safetensors")
    wrong = CliRunner().invoke(main, ["erase", "uce", "--model", "mini", "--target", "dog", "--kind", "style", "--out", out])
    assert wrong.exit_code == 2
    assert "of the kind object" in wrong.output
    done = CliRunner().invoke(
        main, ["erase", "uce", "--model", "mini", "--target", "noto style", "--kind", "style", "--out", out]
    )
    assert done.exit_code == 0, done.output
    assert Patch.load(out).card.request.kind == "style"
    listed = CliRunner().invoke(main, ["list", "concepts"])
    assert "noto style" in listed.output
    assert "category" in listed.output
    assert "blob style" in listed.output
    assert "too few to measure its erasure" in listed.output
    worldless = CliRunner().invoke(main, ["list", "concepts", "--model", "tiny"])
    assert worldless.exit_code == 2
    assert "tiny has no world that lists its concepts" in worldless.output


def test_a_suite_of_objects_has_the_fields_of_earlier_records() -> None:
    raw = Suite(("cat",), (), (), (), {}, {}).json()
    old = {k: raw[k] for k in ("targets", "near", "trap", "far", "synonyms", "implicit", "templates")}
    assert suite_from(old) == Suite(("cat",), (), (), (), {}, {})
