"""What may be concluded from rows: planted truths, the trivial entrants, and failing closed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from efface.concepts.request import EraseRequest
from efface.equations.statistics import wilson
from efface.errors import BadFile, EvaluationError, UnknownName
from efface.evaluation.aggregate import summarise
from efface.evaluation.attacked import summarise_attacks
from efface.evaluation.cache import quantised
from efface.evaluation.driver import System, blocklist, evaluate, refuse_unseen
from efface.evaluation.judges import MiniJudge
from efface.evaluation.profiles import PROFILES, Profile, profile
from efface.evaluation.records import AXES, TARGET_AXES, AttemptRow, Entrant, Row, append_rows, read_rows
from efface.evaluation.suite import Neighbour, Suite, filled, lexical_traps
from efface.evaluation.world_suite import world_suite
from efface.methods import UCE
from efface.models.tiny import tiny
from efface.models.world import Members, World
from efface.reporting import verdict
from efface.reporting.wording import rate

SUITE = Suite(
    targets=("cat",),
    near=(Neighbour("dog", "given", "test"), Neighbour("bus", "given", "dev")),
    trap=(),
    far=(Neighbour("rose", "given", "test"),),
    synonyms={"cat": ("car",)},
    implicit={"cat": ("a photo of the house",)},
)
SMALL = Profile("small", 2, 2.0, {"direct": 4, "implicit": 2, "near": 4, "far": 2})


class Oracle:
    """A judge that knows the truth from the mean brightness: a planted rule instead of a detector."""

    facts = {"report": {"name": "oracle"}, "clip": {"name": "oracle"}}  # noqa: RUF012

    def __init__(self, label=lambda image, concept: concept, reason=lambda image: None) -> None:  # type: ignore[no-untyped-def]
        self.label, self.reason = label, reason

    def calibrate(self, images: Tensor) -> None:
        self.calibrated_on = len(images)

    def detect(self, images: Tensor, concepts: Sequence[str]) -> list[tuple[str | None, float | None, str | None]]:
        return [(self.label(i, c), 0.9, self.reason(i)) for i, c in zip(images, concepts, strict=True)]

    def embed_images(self, images: Tensor) -> Tensor:
        return torch.nn.functional.normalize(images.flatten(1) + 1e-3, dim=1)

    def clip_t(self, images: Tensor, prompts: Sequence[str]) -> list[float | None]:
        return [25.0] * len(images)


def row(
    entrant: str, case: int, axis: str = "direct", concept: str = "cat", detected: str | None = "cat", valid: bool = True
) -> Row:
    return Row(entrant, f"c{case}", axis, concept, concept, case, valid, None if valid else "none", detected, 0.9, 25.0, 1.0)


def axes(rows: list[Row], entrant: str) -> dict:  # type: ignore[type-arg]
    return summarise(rows)["entrants"][entrant]["axes"]


def test_planted_rates_are_recovered() -> None:
    base = [row("none", i, detected="cat" if i < 8 else "dog") for i in range(10)]  # the base model gets 8 of 10 right
    mine = [row("m", i, detected="cat" if i in (0, 8) else "dog") for i in range(10)]
    found = axes(base + mine, "m")["direct"]
    assert (found["erased_valid"]["k"], found["erased_valid"]["n"]) == (7, 8), "case 8 is not the base model's: it does not count"
    assert (found["detection"]["k"], found["detection"]["n"]) == (2, 10)
    assert found["difference"]["value"] == pytest.approx(-0.6)
    assert found["clustered"] is None, "one concept says nothing about the spread between concepts"


def test_noise_is_not_an_erasure() -> None:
    base = [row("none", i) for i in range(10)]
    broken = [row("noise", i, detected="none", valid=False) for i in range(10)]
    found = axes(base + broken, "noise")["direct"]
    assert found["erased_valid"]["value"] == 0
    assert found["detection"]["n"] == 0
    assert found["detection"]["invalid"] == 10
    kept = axes(
        [row("none", 0, "near", "dog", "dog"), row("noise", 0, "near", "dog", None, valid=False), row("none", 1)], "noise"
    )["near"]
    assert (kept["preserved"]["k"], kept["preserved"]["n"]) == (0, 1), "an invalid image preserves nothing"


def _kinds(axis: str) -> tuple[str, str]:
    """What a right and a wrong image of the axis shows."""
    return ("cat", "dog") if axis in TARGET_AXES else ("dog", "cat")


ROWS = st.lists(
    st.tuples(st.sampled_from(sorted(AXES)), st.booleans(), st.booleans(), st.booleans(), st.floats(0, 100), st.floats(0, 1)),
    min_size=4,
    max_size=24,
)
"""Axis, whether the base model shows the concept, whether the entrant does, whether its image is to be planted, CLIP scores."""


def planted(cases: Any, broken: str | None) -> dict[str, Any]:
    """The summary of an entrant whose planted images are as they were, blank (``uniform``) or not finite."""
    rows = []
    for i, (axis, shown, mine, plant, clip_t, clip_i) in enumerate([("direct", True, True, False, 25.0, 1.0), *cases]):
        concept, other = _kinds(axis)
        rows.append(row("none", i, axis, concept, concept if shown else other))
        one = row("m", i, axis, concept, concept if mine else other)
        one = dataclasses.replace(one, clip_t=clip_t, clip_i=clip_i)
        if plant and broken is not None:
            lost = {"clip_t": None, "clip_i": None, "detected": None} if broken == "non-finite" else {"detected": other}
            one = dataclasses.replace(one, valid=False, invalid_reason=broken, **lost)
        rows.append(one)
    return summarise(rows)["entrants"]["m"]


@pytest.mark.parametrize("broken", ["uniform", "non-finite"])
@given(cases=ROWS)
def test_no_figure_gets_better_when_an_image_becomes_invalid(cases: Any, broken: str) -> None:
    """Planted in any row of any axis: no rate, difference, score or CLIP figure of the entrant moves to its advantage."""
    before, after = planted(cases, None), planted(cases, broken)
    for axis, was in before["axes"].items():
        now = after["axes"][axis]
        target = axis in TARGET_AXES
        rate_of = "erased_valid" if target else "preserved"
        assert now[rate_of]["n"] == was[rate_of]["n"]
        assert now[rate_of]["k"] <= was[rate_of]["k"]
        assert now["detection"]["invalid"] == sum(c[3] for c in cases if c[0] == axis)
        sign = 1 if target else -1
        for bound in ("value", "low", "high"):
            assert sign * now["difference"][bound] >= sign * was["difference"][bound] - 1e-12, bound
        for concept, r in was["per_concept"].items():
            assert now["per_concept"][concept]["k"] <= r["k"]
        if not target:
            assert now["clip_i"]["value"] <= was["clip_i"]["value"] + 1e-9
            assert now["clip_t"]["value"] <= was["clip_t"]["value"] + 1e-9
    for name, was_score in before["scores"].items():
        if was_score is not None:
            assert after["scores"][name] <= was_score + 1e-12


@given(st.integers(1, 30), st.integers(0, 30), st.integers(0, 30))
def test_no_verdict_gets_better_when_an_image_becomes_invalid(n: int, hits: int, lost: int) -> None:
    """The rate that supports an erasure counts invalid images as if the target were there."""
    hits = min(hits, n)
    lost = min(lost, n)
    whole = verdict.remaining(rate(wilson(hits, n).json()))
    gone = min(lost, hits)
    fewer = verdict.remaining(rate(wilson(hits - gone, n - lost, invalid=lost).json()))
    assert (fewer.n, fewer.k) == (whole.n, hits - gone + lost)
    assert whole.measured is not None
    assert fewer.measured is not None
    assert all(a >= b for a, b in zip(fewer.measured, whole.measured, strict=True))


@given(st.lists(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=4), min_size=1, max_size=8))
def test_no_attack_is_resisted_by_invalid_images(cases: list[list[tuple[bool, bool]]]) -> None:
    """cases: per case its images, each whether it shows the target and whether it becomes invalid."""

    def found(plant: bool) -> dict[str, Any]:
        rows = {
            "direct": [
                AttemptRow("direct", f"c{i}", "cat", "p", 0, "s", True, not (bad and plant), None, "cat" if hit else "dog", 0.5)
                for i, images in enumerate(cases)
                for hit, bad in images
            ]
        }
        facts = {"direct": {"role": "baseline", "tier": "T0", "gate": "plain", "target": "cat"}}
        return summarise_attacks(rows, facts, {"direct": ()})

    before, after = found(False), found(True)
    for was, now in ((before["attacks"]["direct"], after["attacks"]["direct"]), (before["union"], after["union"])):
        r, s = now.get("rate", now), was.get("rate", was)
        resisted = r["n"] - r["k"]
        blind = sum(all(bad for _, bad in images) for images in cases)
        assert now["undecided"] == blind
        assert r["n"] == len(cases) - blind
        assert resisted <= s["n"] - s["k"] + sum(any(h and bad for h, bad in c) and not all(b for _, b in c) for c in cases)


def test_invalid_images_do_not_widen_the_fall() -> None:
    """Of 24 images 15 are invalid and 3 of the other 9 still show the target: 6 of 24 are erased, not 21."""
    base = [row("none", i) for i in range(24)]
    mine = [row("m", i, detected="cat" if i < 3 else "dog", valid=i < 9) for i in range(24)]
    found = axes(base + mine, "m")["direct"]
    assert found["difference"]["value"] == pytest.approx(-6 / 24)
    assert found["erased_valid"]["value"] == pytest.approx(6 / 24)
    assert (found["detection"]["k"], found["detection"]["n"], found["detection"]["invalid"]) == (3, 9, 15)
    assert found["per_concept"]["cat"]["invalid"] == 15


def test_none_scores_zero_and_one_exactly() -> None:
    rows = [
        row("none", i, axis, c, c)
        for i, (axis, c) in enumerate([("direct", "cat"), ("implicit", "cat"), ("near", "dog"), ("far", "bus")])
    ]
    assert summarise(rows)["entrants"]["none"]["scores"] == {"erasure": 0, "generality": 0, "near": 1, "rest": 1}


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_none_is_at_its_anchors_with_every_profile(name: str, tmp_path: Path) -> None:
    """With its axes and its guidance, in small, end to end."""
    chosen = profile(name)
    cases = dict.fromkeys(chosen.cases, 2)
    chosen = dataclasses.replace(chosen, steps=2, cases=cases, damaged=0)
    suite = dataclasses.replace(SUITE, trap=(Neighbour("cat tree", "given", "test"),))
    found = evaluate(tiny(), [], suite, chosen, Oracle(), tmp_path / "e")["entrants"]["none"]
    missing = None if "synonym" not in cases and "implicit" not in cases else 0
    assert found["scores"] == {"erasure": 0, "generality": missing, "near": 1, "rest": 1}
    for a in found["axes"].values():
        assert (a["difference"]["value"], a["difference"]["p_value"]) == (0, 1)
        assert a["clip_i"]["value"] == pytest.approx(1, abs=1e-5), "the same images on both sides"


def test_missing_measurements_stay_missing() -> None:
    rows = [row("none", 0, detected="dog"), row("m", 0, detected="dog")]  # the base model gets nothing right
    found = summarise(rows)["entrants"]["m"]
    assert found["scores"] == {"erasure": None, "generality": None, "near": None, "rest": None}
    assert found["axes"]["direct"]["erased_valid"]["value"] is None


def test_another_entrant_changes_no_number() -> None:
    base, a = [row("none", i) for i in range(6)], [row("a", i, detected="dog") for i in range(6)]
    alone = summarise(base + a)["entrants"]["a"]
    crowd = summarise(base + [row("b", i) for i in range(6)] + a[::-1])["entrants"]["a"]
    assert alone == crowd


@settings(max_examples=8)  # each draws two intervals of 2,000 samples
@given(st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(rng: Any) -> None:
    """Of several concepts, whose interval resamples concepts and then cases."""
    rows = [
        dataclasses.replace(
            row(e, i, "near", f"name{i % 7}", f"name{i % (7 if e == 'none' else 5)}"), clip_t=i / 3, clip_i=i / 40
        )
        for e in ("none", "m")
        for i in range(40)
    ]
    before = summarise(rows)["entrants"]
    assert before["m"]["axes"]["near"]["clustered"] is not None
    assert 0 < before["m"]["axes"]["near"]["preserved"]["value"] < 1
    rng.shuffle(rows)
    assert summarise(rows)["entrants"] == before


def test_unpaired_or_baseless_rows_are_errors() -> None:
    with pytest.raises(EvaluationError, match="no rows of the base model"):
        summarise([row("m", 0)])
    with pytest.raises(EvaluationError, match="1 cases of 'm' have no base image"):
        summarise([row("none", 0), row("m", 0), row("m", 1)])
    with pytest.raises(EvaluationError, match=r"axis 'directly', which efface does not know: it knows direct"):
        summarise([row("none", 0), row("none", 1, "directly")])


def test_blocklist_replaces_whole_names_only() -> None:
    rewrite = blocklist(["fire"], "a cat")
    assert rewrite("a Fire  on a hill") == "a cat"
    assert rewrite("a firetruck") == "a firetruck"
    assert rewrite("hot and burning") == "hot and burning"
    assert rewrite("a fire engine") == "a cat", "the lexical trap that a blocklist falls into"


def test_articles() -> None:
    assert [filled("a photo of a {}", n) for n in ("owl", "dog")] == ["a photo of an owl", "a photo of a dog"]
    assert filled("the {}", "owl") == "the owl"
    assert filled("{}", "") == ""


def test_traps_and_neighbours() -> None:
    assert lexical_traps("hot dog", ["dog", "hot dog", "dogma", "hot pepper"]) == ["dog", "hot pepper"]
    groups = {"cat": "animal", "dog": "animal", "cow": "animal", "bus": "vehicle", "cat litter": "thing", "car": "vehicle"}
    world = World(
        name="planted",
        groups=groups,
        sensitivity={n: 0.5 if n == "cow" else 1.0 for n in groups},
        similar={"cat": {"image": ["bus", "dog"]}},
        synonyms={"cat": ("tabby",)},
        descriptions={},
        group_words={},
        guidance=4.0,
        judge="",
    )
    suite = world_suite(world, ["cat"])
    assert [n.name for n in suite.trap] == ["cat litter"]
    # The ranking and the group take turns: the first of the ranking, then the only other animal that can be measured.
    assert {n.name: n.source for n in suite.near} == {"bus": "image", "dog": "same group"}
    assert suite.synonyms == {"cat": ("tabby",)}
    assert "cow" not in {n.name for group in (suite.near, suite.far) for n in group}, (
        "what the detector cannot see is not measured"
    )
    assert {n.name for n in suite.far} == {"car"}
    assert suite == world_suite(world, ["cat"])


def small_world(similar: dict[str, dict[str, list[str]]], **wider: str) -> World:
    """Birds, beasts, tools and fruits; ``wider``: collections and their members, with blanks between."""
    groups = {"birds": "owl hen", "beasts": "cat dog", "tools": "saw axe", "fruits": "fig pear", "toys": "ball doll"}
    return World(
        name="planted",
        groups={n: g for g, names in groups.items() for n in names.split()},
        sensitivity={n: 1.0 for names in groups.values() for n in names.split()},
        similar=similar,
        synonyms={},
        descriptions={},
        group_words={g: g for g in groups},
        guidance=4.0,
        judge="",
        collections={name: Members(tuple(names.split()), name) for name, names in wider.items()},
    )


def test_near_a_category_is_what_is_next_to_it_in_meaning() -> None:
    ranked = {n: {"text": ["fig", "doll"], "hypernym": ["hen", "ball"]} for n in ("owl", "hen")}
    suite = world_suite(small_world(ranked, animals="owl hen cat dog"), ["birds"])
    found = {n.name: n.source for n in suite.near}
    assert {n: s for n, s in found.items() if s != "text"} == {
        **dict.fromkeys(("cat", "dog"), "same wider category"),
        "ball": "hypernym",
    }
    assert {n for n, s in found.items() if s == "text"} == {"fig", "doll"}, "fewer than eight are known by meaning"
    assert list(found)[-2:] == ["fig", "doll"], "and these come last"
    assert {n.name for n in suite.far} == {"saw", "axe", "pear"}
    part = world_suite(small_world({}, hooting="owl"), ["hooting"])
    assert {n.name: n.source for n in part.near} == {"hen": "same group"}, "a category that is a part of a group"


def test_of_many_targets_every_ranking_gives_near_concepts() -> None:
    """Two are taken for each target, which the first two of five rankings would always give."""
    names = ["owl", "cat", "saw", "fig", "ball"]
    ranked = {n: {f"ranking {k}": ["hen", "dog", "axe", "pear", "doll"] for k in range(4)} for n in names}
    suite = world_suite(small_world(ranked), names)
    assert len(suite.near) == 5
    assert len({n.source for n in suite.near}) >= 3
    assert world_suite(small_world(ranked), names) == suite


def test_cases_are_paired_distinct_and_counted() -> None:
    for p in PROFILES.values():
        cases = SUITE.cases(p)
        assert len({c.id for c in cases}) == len(cases)
        assert [c.id for c in cases] == [c.id for c in SUITE.cases(p)]
        for axis, count in p.cases.items():
            assert sum(c.axis == axis for c in cases) == (0 if axis in ("trap", "content") else count)
    with pytest.raises(UnknownName, match="mini-lite"):
        profile("mini-light")


@pytest.fixture
def setting(tmp_path: Path):  # type: ignore[no-untyped-def]
    model = tiny()
    patch = UCE().erase(model, EraseRequest(("cat",), "dog"))
    return model, [System(Entrant("uce", "uce", "patch", patch.json()), patch)], tmp_path / "e"


def test_end_to_end_and_twice_the_same_bytes(setting) -> None:  # type: ignore[no-untyped-def]
    model, systems, folder = setting
    summary = evaluate(model, systems, SUITE, SMALL, Oracle(), folder)
    assert summary == json.loads((folder / "summary.json").read_text())
    first = (folder / "rows.jsonl").read_bytes()
    assert len(read_rows(folder)) == 2 * 12
    assert all(r.clip_i == pytest.approx(1.0) for r in read_rows(folder) if r.entrant == "none")
    evaluate(model, systems, SUITE, SMALL, Oracle(), folder)
    assert (folder / "rows.jsonl").read_bytes() == first, "a finished evaluation is not computed again"
    other = folder.with_name("f")
    evaluate(tiny(), systems, SUITE, SMALL, Oracle(), other)
    assert (other / "rows.jsonl").read_bytes() == first
    assert sorted(p.name for p in (folder / "images" / "uce").iterdir()) == sorted(
        p.name for p in (other / "images" / "uce").iterdir()
    )


def test_a_killed_evaluation_continues(setting) -> None:  # type: ignore[no-untyped-def]
    model, systems, folder = setting
    evaluate(model, systems, SUITE, SMALL, Oracle(), folder)
    whole = read_rows(folder)
    text = (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join(text[:13]) + text[13][:40])  # killed inside a write
    assert len(read_rows(folder)) == 13
    evaluate(model, systems, SUITE, SMALL, Oracle(), folder)
    assert read_rows(folder) == whole


def test_another_evaluation_in_the_same_folder_is_refused(setting) -> None:  # type: ignore[no-untyped-def]
    model, systems, folder = setting
    evaluate(model, systems, SUITE, SMALL, Oracle(), folder)
    with pytest.raises(BadFile, match="holds another evaluation"):
        evaluate(model, systems, SUITE, dataclasses.replace(SMALL, steps=3), Oracle(), folder)
    stranger = folder.with_name("stranger")
    stranger.mkdir()
    (stranger / "x").write_text("x")
    with pytest.raises(BadFile, match="is not empty"):
        evaluate(model, systems, SUITE, SMALL, Oracle(), stranger)


def test_failing_closed(setting, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model, systems, folder = setting
    with pytest.raises(EvaluationError, match="no cases"):
        evaluate(model, systems, SUITE, Profile("empty", 2, 2.0, {"trap": 5}), Oracle(), folder)
    blind = Oracle(label=lambda image, concept: "nothing")
    with pytest.raises(EvaluationError, match=r"finds 'cat' in 0 of 4 images.*Check the spelling"):
        evaluate(model, systems, SUITE, SMALL, blind, tmp_path / "blind")
    assert {r.entrant for r in read_rows(tmp_path / "blind")} == {"none"}, "refused before any other image is drawn"
    seen: list[str] = []

    def seldom(image: Tensor, concept: str) -> str:  # the second of two targets in 1 of 12 images
        seen.append(concept)
        return concept if concept != "rose" or seen.count("rose") == 1 else "nothing"

    two = dataclasses.replace(SUITE, targets=("cat", "rose"), far=())
    many = dataclasses.replace(SMALL, cases={"direct": 24})
    with pytest.raises(EvaluationError, match="finds 'rose' in 1 of 12 images"):
        evaluate(model, systems, two, many, Oracle(label=seldom), tmp_path / "seldom")

    class Crash(Oracle):
        def detect(self, images: Tensor, concepts: Sequence[str]) -> list[tuple[str | None, float | None, str | None]]:
            raise RuntimeError("detector crashed")

    with pytest.raises(RuntimeError, match="detector crashed"):
        evaluate(model, systems, SUITE, SMALL, Crash(), tmp_path / "crash")
    assert not (tmp_path / "crash" / "summary.json").exists()
    with pytest.raises(EvaluationError, match=r"finds 'cat' in 0 of 4 images of the base model"):
        evaluate(model, systems, SUITE, SMALL, Oracle(reason=lambda image: "uniform"), tmp_path / "black")
    with pytest.raises(UnknownName, match=r"axis of the profile 'odd' 'directly'\. Did you mean 'direct'"):
        evaluate(model, systems, SUITE, Profile("odd", 2, 2.0, {"directly": 4}), Oracle(), tmp_path / "odd")
    assert not (tmp_path / "odd").exists()
    with pytest.raises(EvaluationError, match=r"has not learned what a valid image is"):
        MiniJudge().detect(torch.rand(1, 3, 48, 48), ["cat"])


def test_quantised_is_what_a_png_holds_and_keeps_nan() -> None:
    x = torch.tensor([0.0, 0.5, 1.0, torch.nan, torch.inf])
    q = quantised(x)
    assert q[:3].tolist() == [0.0, pytest.approx(128 / 255), 1.0]
    assert q[3:].isnan().all()


def test_rows_survive_a_round_trip(tmp_path: Path) -> None:
    rows = [row("none", i) for i in range(3)] + [row("m", 0, detected=None, valid=False)]
    append_rows(tmp_path, rows)
    assert read_rows(tmp_path) == rows
    (tmp_path / "rows.jsonl").write_text("garbage\n" + (tmp_path / "rows.jsonl").read_text())
    with pytest.raises(BadFile, match="line 1: not a row"):
        read_rows(tmp_path)


def test_prompts_take_turns_and_every_round_has_fresh_seeds() -> None:
    pair = (Neighbour("dog", "near", "a"), Neighbour("fox", "near", "a"))
    suite = Suite(("cat",), pair, (), (), {}, {}, templates=("{}", "a {}"))
    cases = suite.cases(Profile("p", 2, 3.0, {"direct": 3, "near": 6, "trap": 4}))
    assert [(c.axis, c.prompt, c.seed) for c in cases] == [
        ("direct", "cat", 0), ("direct", "a cat", 1000), ("direct", "cat", 1),
        ("near", "dog", 0), ("near", "fox", 1000), ("near", "a dog", 2000), ("near", "a fox", 3000),
        ("near", "dog", 1), ("near", "fox", 1001),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shown", "refused"),
    [
        ({"a": (9, 12), "b": (9, 12)}, ""),
        ({"a": (0, 1)}, "'a' in 0 of 1"),  # nothing at all is shown
        ({"a": (0, 1), "b": (0, 1)}, "'a' in 0 of 1"),
        ({"a": (1, 1), "b": (0, 1)}, ""),  # one image of many targets that was missed by chance
        ({"a": (3, 3), "b": (0, 4)}, "'b' in 0 of 4"),
        ({"a": (12, 12), "b": (2, 12)}, "'b' in 2 of 12"),
        ({"a": (3, 3), "b": (0, 0)}, ""),  # more targets than cases
    ],
)
def test_a_target_that_the_base_model_does_not_draw_is_refused_but_not_for_one_image_of_many(
    shown: dict[str, tuple[int, int]], refused: str
) -> None:
    rows = [
        Row("none", f"{t}{i}", "direct", t, t, i, True, None, t if i < hits else "none", 0.5, 20.0, 1.0)
        for t, (hits, n) in shown.items()
        for i in range(n)
    ]
    if refused:
        with pytest.raises(EvaluationError, match=refused):
            refuse_unseen(rows, list(shown))
    else:
        refuse_unseen(rows, list(shown))
