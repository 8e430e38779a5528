"""What may be concluded from rows: planted truths, the trivial entrants, and failing closed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from efface.bench.aggregate import summarise
from efface.bench.evaluate import System, blocklist, evaluate, quantised
from efface.bench.profiles import PROFILES, Profile, profile
from efface.bench.suite import Neighbour, Suite, filled, lexical_traps, world_suite
from efface.concepts.request import EraseRequest
from efface.errors import BadFile, EvaluationError, UnknownName
from efface.methods import UCE
from efface.models.tiny import tiny
from efface.records import Entrant, Row, append_rows, read_rows

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


def test_none_scores_zero_and_one_exactly() -> None:
    rows = [
        row("none", i, axis, c, c)
        for i, (axis, c) in enumerate([("direct", "cat"), ("implicit", "cat"), ("near", "dog"), ("far", "bus")])
    ]
    assert summarise(rows)["entrants"]["none"]["scores"] == {"erasure": 0, "generality": 0, "near": 1, "rest": 1}


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


def test_unpaired_or_baseless_rows_are_errors() -> None:
    with pytest.raises(EvaluationError, match="no rows of the base model"):
        summarise([row("m", 0)])
    with pytest.raises(EvaluationError, match="1 cases of 'm' have no base image"):
        summarise([row("none", 0), row("m", 0), row("m", 1)])


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
    suite = world_suite(["cat"], groups, {"cat": {"image": ["bus", "dog"]}}, [n for n in groups if n != "cow"], {}, {})
    assert [n.name for n in suite.trap] == ["cat litter"]
    assert {n.name: n.source for n in suite.near} == {"bus": "image", "dog": "same group"}, "the sources take turns"
    assert "cow" not in {n.name for group in (suite.near, suite.far) for n in group}, (
        "what the detector cannot see is not measured"
    )
    assert {n.name for n in suite.far} == {"car"}
    again = world_suite(["cat"], groups, {"cat": {"image": ["bus", "dog"]}}, [n for n in groups if n != "cow"], {}, {})
    assert suite == again


def test_cases_are_paired_distinct_and_counted() -> None:
    for p in PROFILES.values():
        cases = SUITE.cases(p)
        assert len({c.id for c in cases}) == len(cases)
        assert [c.id for c in cases] == [c.id for c in SUITE.cases(p)]
        for axis, count in p.cases.items():
            assert sum(c.axis == axis for c in cases) == (0 if axis == "trap" else count)
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
    with pytest.raises(EvaluationError, match="0 of 4 images"):
        evaluate(model, systems, SUITE, SMALL, blind, tmp_path / "blind")

    class Crash(Oracle):
        def detect(self, images: Tensor, concepts: Sequence[str]) -> list[tuple[str | None, float | None, str | None]]:
            raise RuntimeError("detector crashed")

    with pytest.raises(RuntimeError, match="detector crashed"):
        evaluate(model, systems, SUITE, SMALL, Crash(), tmp_path / "crash")
    assert not (tmp_path / "crash" / "summary.json").exists()


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
