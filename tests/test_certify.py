"""Certificates: decided by bounds, and nothing that was not tested passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from test_report import synthetic_folder

from efface.cli import main
from efface.equations.statistics import wilson
from efface.errors import BadFile, BadOption, UnknownName
from efface.registry import ATTACKS
from efface.reporting.certificate import Certificate, decide
from efface.reporting.policy import Policy, policies, read_policy
from efface.verbs import certify


def axis(k: int, n: int, invalid: int = 0, kept: bool = False) -> dict[str, Any]:
    found = wilson(k, n, invalid).json()
    return {"n_cases": n + invalid, "detection": found, "preserved": found if kept else None, "clustered": None}


def one(policy: Policy, axes: dict[str, Any], attacks: list[dict[str, Any]] | None = None) -> tuple[str, str]:
    (finding,) = decide(policy, axes, attacks or [], ()).findings
    return finding.status, finding.text


def test_the_bound_decides_and_not_the_estimate() -> None:
    """The table of bounds that everybody can look up: 0 of 100 has an upper bound of 3.7 percent."""
    strict = Policy("p", "", {"direct": 0.01}, {}, ())
    assert one(strict, {"direct": axis(0, 100)}) == (
        "undecided",
        "0 of 100, at most 3.7%; about 281 more cases would decide it at this rate",
    )
    assert wilson(0, 381).high <= 0.01 < wilson(0, 380).high
    assert one(strict, {"direct": axis(0, 381)})[0] == "passed"
    assert one(Policy("p", "", {"direct": 0.05}, {}, ()), {"direct": axis(30, 100)}) == ("failed", "30 of 100, at least 21.9%")
    near = Policy("p", "", {}, {"near": 0.9}, ())
    assert one(near, {"near": axis(100, 100, kept=True)})[0] == "passed"
    assert one(near, {"near": axis(60, 100, kept=True)})[0] == "failed"
    assert one(near, {"near": axis(88, 100, kept=True)}) == (
        "undecided",
        "88 of 100, at least 80.2%; at this rate no number of cases would show it",
    )


def test_invalid_images_and_undecided_cases_count_against_the_erasure() -> None:
    policy = Policy("p", "", {"direct": 0.05}, {}, ())
    assert one(policy, {"direct": axis(0, 400)})[0] == "passed"
    assert one(policy, {"direct": axis(0, 300, invalid=100)}) == ("failed", "100 of 400, at least 21%")
    tier = Policy("p", "", {"T4": 0.05}, {}, ())
    summary = {"attacks": {}, "tiers": {"T4": {"k": 0, "n": 300, "undecided": 100}}}
    assert one(tier, {}, [summary])[0] == "failed"


def test_what_is_missing_is_not_tested_and_never_passes() -> None:
    policy = Policy("p", "", {"direct": 0.05, "T4": 0.1}, {"near": 0.9}, ("p4d",), 0.5)
    found = decide(policy, {"direct": axis(0, 0)}, [{"attacks": {}, "tiers": {}, "left_out": {"p4d": "too dear"}}], ATTACKS)
    assert {f.status for f in found.findings} == {"not tested"}
    assert not found.passed
    assert next(f.text for f in found.findings if "p4d" in f.demand) == "too dear"
    assert "the axis near" in found.untested
    assert "the attack unlearndiff" in found.untested
    assert not Certificate("p", "", (), ()).passed, "nothing demanded is nothing shown"


@pytest.mark.parametrize(
    ("relearn", "novel", "status"),
    [
        ({"half": "step 50", "relearning_ratio": 0.5}, {"half": "step 100"}, "passed"),
        ({"half": "step 5", "relearning_ratio": 0.05}, {"half": "step 100"}, "failed"),
        ({"half": None, "relearning_ratio": None}, {"half": "step 100"}, "passed"),
        ({"half": None}, {"half": None}, "not tested"),
        ({"half": "step 0", "relearning_ratio": 0.0}, {"half": "step 100"}, "failed"),
        ({"half": "step 5", "relearning_ratio": None}, None, "not tested"),
        (None, None, "not tested"),
    ],
)
def test_relearning_is_compared_with_a_concept_that_was_never_seen(relearn: Any, novel: Any, status: str) -> None:
    made = {n: a for n, a in (("relearn", relearn), ("relearn_never_learned", novel)) if a is not None}
    assert one(Policy("p", "", {}, {}, (), 0.5), {}, [{"attacks": made, "tiers": {}}])[0] == status


@given(st.integers(0, 60), st.integers(1, 60), st.integers(0, 30), st.floats(0.02, 0.9))
def test_an_image_less_and_an_invalid_one_more_never_help(k: int, n: int, invalid: int, limit: float) -> None:
    """Faults can only make a decision worse: passed, then undecided, then failed."""
    order = ("passed", "undecided", "failed", "not tested")
    policy = Policy("p", "", {"direct": limit}, {}, ())
    k = min(k, n)
    worse = [{"direct": axis(k, n, invalid + 1)}, {"direct": axis(min(k + 1, n), n, invalid)}]
    before = order.index(one(policy, {"direct": axis(k, n, invalid)})[0])
    assert all(order.index(one(policy, changed)[0]) >= before for changed in worse)


def test_our_policies_ask_for_attacks_that_exist() -> None:
    assert policies() == ["api", "weights"]
    for name in policies():
        policy = read_policy(name)
        assert set(policy.required) <= set(ATTACKS)
        assert policy.description
    assert set(read_policy("api").required) < set(read_policy("weights").required)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[comes_back]\ndirekt = 0.1", "no 'direkt'"),
        ("[comes_back]\ndirect = 1.5", "no share between 0 and 1"),
        ("[preserved]\nnear = nan", "no share between 0 and 1"),
        ("[attacks]\nrequired = 'p4d'", "a list of names"),
        ("[attacks]\nrelearning_ratio = 0", "no positive number"),
        ("comes_back = 0.1", "a table of limits"),
        ("description = 'all is well'", "demands nothing"),
        ("x = [", "cannot read"),
    ],
)
def test_a_policy_with_a_mistake_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(BadFile, match=message):
        read_policy(str(path))
    with pytest.raises(UnknownName, match="Did you mean 'weights'"):
        read_policy("weigths")


def test_the_command_ends_with_3_unless_everything_is_passed(tmp_path: Path) -> None:
    folder = synthetic_folder(tmp_path)
    result = CliRunner().invoke(main, ["certify", str(folder), "--policy", "weights"])
    assert result.exit_code == 3
    assert "NOT TESTED" in result.output
    assert "The policy is NOT kept: weights (published weights" in result.output
    easy = tmp_path / "easy.toml"
    easy.write_text("[preserved]\nfar = 0.01\n", "utf-8")
    kept = CliRunner().invoke(main, ["certify", str(folder), "--policy", str(easy), "--json"])
    assert kept.exit_code == 0, kept.output
    assert json.loads(kept.stdout)["passed"] is True
    assert "the attack p4d" in json.loads(kept.stdout)["untested"]


def test_another_entrant_is_decided_by_its_own_numbers_and_without_attacks_on_the_first(tmp_path: Path) -> None:
    folder = synthetic_folder(tmp_path)
    limits = tmp_path / "near.toml"
    limits.write_text("[preserved]\nnear = 0.5\n", "utf-8")
    found = {e: certify(folder, policy=str(limits), entrant=e).findings[0].text for e in ("", "ap", "noise")}
    assert found[""] == found["ap"] != found["noise"]
    with pytest.raises(UnknownName, match="entrant of the evaluation"):
        certify(folder, policy=str(limits), entrant="nobody")
    with pytest.raises(BadOption, match="leave --attack or --entrant out"):
        certify(folder, policy=str(limits), entrant="noise", attacks=[tmp_path / "a"])
