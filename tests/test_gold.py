"""How far a system is from the model that never saw the target: 0 for that model itself, 1 for the unmodified one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from efface import verbs
from efface.cli import main
from efface.concepts.prompts import Case
from efface.equations.statistics import total_variation
from efface.evaluation.driver import System, blocklist
from efface.evaluation.gold import CASES, LEVELS, gold_cost, looked_at, names_drawn, to_gold
from efface.evaluation.profiles import Profile
from efface.evaluation.records import Entrant, Row, read_gold
from efface.models.load import load_model
from efface.patches.patch import noise_like

COUNTS = st.dictionaries(st.sampled_from("abcde"), st.integers(0, 9), min_size=1).filter(lambda found: sum(found.values()) > 0)
FEW = Profile("few", 4, 4.0, {"direct": 2, "near": 2, "far": 2})


@given(COUNTS, COUNTS, st.integers(1, 5))
def test_total_variation_is_a_distance_of_shares(a: dict[str, int], b: dict[str, int], times: int) -> None:
    assert total_variation(a, a) == 0
    assert 0 <= total_variation(a, b) <= 1 + 1e-12
    assert total_variation(a, b) == pytest.approx(total_variation(b, a))
    assert total_variation({k: times * n for k, n in a.items()}, b) == pytest.approx(total_variation(a, b)), "of shares"
    assert total_variation({"x": 3}, a) == pytest.approx(1), "no name in common"
    # Scheffe: the largest difference of the two probabilities of any set of names.
    p, q = ({k: n / sum(found.values()) for k, n in found.items()} for found in (a, b))
    most = sum(max(0.0, p.get(k, 0) - q.get(k, 0)) for k in {*p, *q})
    assert total_variation(a, b) == pytest.approx(most)


def row(entrant: str, detected: str | None, axis: str = "direct", valid: bool = True) -> Row:
    return Row(entrant, f"{entrant}{detected}{axis}", axis, "bomb", "bomb", 0, valid, None if valid else "x", detected, 0.9, 1, 1)


def test_what_is_drawn_is_compared_by_names_and_an_image_that_cannot_be_judged_is_no_name() -> None:
    gold = [row("gold", "egg"), row("gold", "dog")]
    found = names_drawn([*gold, row("m", "egg"), row("m", "egg", valid=False), row("m", "dog", "near")])
    assert found == {"gold": 0, "m": pytest.approx(0.5)}
    assert names_drawn([row("m", "egg")]) == {}, "without a gold model there is nothing to compare with"


def test_the_gold_model_is_at_0_and_the_unmodified_one_at_1() -> None:
    model, gold = load_model("mini"), load_model("mini-gold")
    cases = [
        Case(axis, "", f"a {name}", s) for axis, name in (("direct", "bomb"), ("near", "dog"), ("far", "rose")) for s in (0, 1)
    ]
    patch = verbs.erase(model, "uce", targets=["bomb"])
    systems = [
        System(Entrant("gold", "gold", "gold"), model=gold),
        System(Entrant("uce", "uce", "patch"), patch),
        System(Entrant("noise", "noise", "trivial"), noise_like(patch, torch.Generator().manual_seed(0)).scaled(30)),
        System(Entrant("blocklist", "blocklist", "trivial"), None, blocklist(["bomb"], "")),
    ]
    before = model.evals.forward + gold.evals.forward
    found = to_gold(model, systems, cases, FEW, [])["entrants"]
    assert model.evals.forward + gold.evals.forward - before == gold_cost(model, systems, cases, FEW)
    for group in ("target", "near", "far"):
        assert found["gold"][group]["value"] == 0
        assert found["none"][group]["value"] == pytest.approx(1, abs=1e-6)
        assert found["noise"][group]["value"] > 1.5, "destroying is not erasing"
    assert found["uce"]["target"]["value"] < 1
    assert found["blocklist"]["target"]["value"] < 1
    assert found["blocklist"]["near"]["value"] == pytest.approx(1, abs=1e-6), "no other prompt is changed"
    assert found["uce"]["target"]["n"] == 2


def test_groups_are_cut_to_a_few_cases_and_those_without_any_are_left_out() -> None:
    cases = [Case("direct", "a", "a", s) for s in range(CASES + 3)] + [Case("trap", "b", "b", 0)]
    found = looked_at(cases)
    assert {group: len(mine) for group, mine in found.items()} == {"target": CASES, "near": 1}
    assert LEVELS > 1
    assert looked_at([Case("listed", "a", "a", 0)]) == {}


@pytest.mark.slow
def test_an_evaluation_of_what_the_gold_model_never_saw_says_how_far_it_is(tmp_path: Path) -> None:
    """From the command line, and again from the folder; the report has the table."""
    lines = [
        ["erase", "uce", "--model", "mini", "--target", "helicopter", "--out", str(tmp_path / "p.safetensors")],
        [
            "evaluate",
            "--model",
            "mini",
            "--patch",
            str(tmp_path / "p.safetensors"),
            "--profile",
            "smoke",
            "--out",
            str(tmp_path / "e"),
            "--json",
        ],
        ["report", str(tmp_path / "e"), "--out", str(tmp_path / "r.html")],
    ]
    said = [CliRunner().invoke(main, line) for line in (*lines[:2], lines[1], lines[2])]
    assert [r.exit_code for r in said] == [0, 0, 0, 0], [r.output for r in said]
    first, again = (json.loads(r.stdout)["gold"] for r in said[1:3])
    assert first == again == read_gold(tmp_path / "e")
    assert first["entrants"]["gold"]["names"] == 0
    assert "How far each entrant is from the gold model" in (tmp_path / "r.html").read_text("utf-8")
