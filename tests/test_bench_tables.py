"""The plans of benchmarks/plans: they ask for what the scripts beside them run, and their records make the same tables."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_leaderboard import bench_of

from efface import verbs
from efface.errors import BadFile
from efface.evaluation.profiles import PROFILES, Profile
from efface.models.load import load_model
from efface.plans.plan import Plan, plan_of, read_plan
from efface.plans.records import Store
from efface.registry import build_guard

ROOT = Path(__file__).parents[1]
PLANS = ROOT / "benchmarks" / "plans"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The scripts of benchmarks/ as modules; the profiles that they add are gone again afterwards."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before, names = dict(PROFILES), ("methods", "robust", "robust_table", "table", "from_bench", "flow", "rankings")
    for name in names:
        sys.modules.pop(name, None)
    import flow
    import from_bench
    import methods
    import robust

    yield methods, robust, from_bench, flow
    PROFILES.clear()
    PROFILES.update(before)
    for name in names:
        sys.modules.pop(name, None)


def flat(plan: Plan) -> dict[str, tuple[str, dict[str, Any], int]]:
    return {e.label: (e.method, dict(e.options), e.seeds) for e in plan.entrants if e.method}


def test_every_plan_can_be_read() -> None:
    found = {path.stem: read_plan(path) for path in PLANS.glob("*.toml")}
    assert set(found) == {
        "methods",
        "methods-robust",
        "methods-options",
        "robust",
        "attacks",
        "flow",
        "kinds",
        "controls",
        "icons",
        "icons-kinds",
    }
    assert all(plan.name == name for name, plan in found.items())


@pytest.mark.parametrize("name", ["methods", "methods-robust", "methods-options"])
def test_a_plan_of_the_results_is_a_table_of_the_script(scripts: Any, name: str) -> None:
    methods, _, from_bench, _ = scripts
    plan, table = read_plan(PLANS / f"{name}.toml"), methods.TABLES[from_bench.METHODS[name]]
    assert flat(plan) == {n: (c.method, dict(c.settings), c.seeds) for n, c in table.rows.items()}
    assert {e.label for e in plan.entrants if e.curve} == {n for n, c in table.rows.items() if c.curve}
    assert (tuple(t for (t,) in plan.targets), plan.seeds) == (table.targets, (0, 1, 2))
    assert plan.profile == PROFILES["table"]
    (noise,) = [e for e in plan.entrants if e.trivial == "noise"]
    assert noise.of == next(iter(table.rows)), "the script takes the size of its first patch"


def test_the_plan_of_the_results_has_the_strengths_and_relatives_of_the_script(scripts: Any) -> None:
    methods = scripts[0]
    plan = read_plan(PLANS / "methods.toml")
    assert (plan.curve.strengths, plan.curve.cases) == ((0.5, 0.75, 1.25), PROFILES["curve"].cases)
    (fixed,) = [e for e in plan.entrants if e.method == "fixed"]
    model, targets = load_model("mini"), methods.TABLES["methods"].targets
    assert {t: list(names) for t, names in fixed.preserve.items()} == {t: [methods.relative(model, t)] for t in targets}


def test_the_plan_of_the_defences_is_the_table_of_the_script(scripts: Any) -> None:
    robust = scripts[1]
    plan = read_plan(PLANS / "robust.toml")
    assert [e.label for e in plan.entrants] == list(robust.DEFENCES)
    for e in plan.entrants:
        defence = robust.DEFENCES[e.label]
        c = defence.contender
        assert (e.method, dict(e.options), e.seeds) == ((c.method, dict(c.settings), c.seeds) if c else ("", {}, 0))
        assert (e.guard, e.gold) == (defence.guard, defence.gold)
        assert not e.guard or build_guard(e.guard)
    assert tuple(a.label for a in plan.attacks) == robust.ATTACKS
    assert {(a.attack, a.budget, a.cases, a.controls) for a in plan.attacks} == {(a, 300, 4, True) for a in robust.ATTACKS}
    assert tuple(t for (t,) in plan.targets) == robust.TARGETS
    assert plan.profile == PROFILES["table"]


def test_the_plan_of_both_miniatures_is_the_table_of_the_script(scripts: Any) -> None:
    methods, _, _, flow = scripts
    plan, table = read_plan(PLANS / "flow.toml"), methods.TABLES["flow"]
    assert {n: m for n, (m, _, _) in flat(plan).items()} == {n: c.method for n, c in table.rows.items()}
    assert (plan.models, tuple(t for (t,) in plan.targets)) == (flow.MODELS, table.targets)
    assert plan.profile == PROFILES["flow"]


def test_a_part_of_a_plan_makes_no_table(scripts: Any, tmp_path: Path) -> None:
    from_bench = scripts[2]
    store = Store(tmp_path)
    with pytest.raises(BadFile, match="holds no bench"):
        from_bench.read(tmp_path, "methods")
    place = {"key": "k", "kind": "evaluate", "entrant": "none", "model": "mini", "targets": ["dog"], "seed": 0}
    store.keep_plan("methods", {"name": "methods", "places": [place], "plan": {}})
    with pytest.raises(BadFile, match="1 cells of methods are not finished"):
        from_bench.read(tmp_path, "methods")
    with pytest.raises(BadFile, match="holds no plan 'robust', but methods"):
        from_bench.read(tmp_path, "robust")


def test_the_plan_of_more_attacks_shares_the_erasures_of_the_defences() -> None:
    """A row of both plans is one erasure: it is trained once where they share a folder."""
    whole, more = (read_plan(PLANS / f"{name}.toml") for name in ("robust", "attacks"))
    known = {e.label: (e.method, dict(e.options), e.gold) for e in whole.entrants}
    assert {e.label: (e.method, dict(e.options), e.gold) for e in more.entrants}.items() <= known.items()
    assert {*more.targets} <= {*whole.targets}
    assert {*more.seeds} <= {*whole.seeds}
    assert more.profile == whole.profile
    assert not {a.label for a in more.attacks} & {a.label for a in whole.attacks}


def test_the_table_of_attacks_counts_broken_cases(scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three targets with eight cases each, and two training seeds of a method: the points beside the counts are what the attack
    breaks beyond its control."""
    from_bench = scripts[2]
    store = bench_of(
        tmp_path / "bench",
        {"esd": {"method": "esd"}, "guarded": {"guard": "negative"}},
        {"guarded": {"direct": 1.0, "unlearndiff": 1.0}},
    )
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- attacks -->\n<!-- /attacks -->\nafter\n")
    monkeypatch.setattr(sys, "argv", ["from_bench.py", "attacks", str(store.folder), "--plan", "test", "--docs", str(page)])
    from_bench.main()
    text = page.read_text()
    assert "| attack | tier | role | none | esd | guarded |" in text
    assert "| `unlearndiff` | T4 | attack | 24/24, +0 | 0/48, +0 | 24/24, +100 |" in text
    assert (tmp_path / "tables" / "page_attacks.csv").read_text().count("\n") == 1 + 3 * 3


def without_seconds(text: str) -> str:
    """The cost tables hold wall-clock seconds, which no two runs share."""
    return re.sub(r"\| ([\d.]+) \|$", "| seconds |", text, flags=re.M)


SMALL = {"direct": 6, "synonym": 2, "implicit": 2, "near": 6, "trap": 2, "far": 4}
CURVE = {"direct": 4, "near": 4}


@pytest.mark.slow
def test_records_of_a_plan_make_the_table_of_the_script(scripts: Any, tmp_path: Path) -> None:
    """Two methods on two targets, both strengths included: the same words and numbers, to the last digit."""
    methods, _, from_bench, _ = scripts
    PROFILES["table"], PROFILES["curve"] = Profile("table", 4, 4.0, SMALL), Profile("curve", 4, 4.0, CURVE)
    expected = methods.run(tmp_path / "script", "methods", ["dog", "castle"], [0], ["naive", "uce"], "table", 4, 1)
    raw = {
        "targets": ["dog", "castle"],
        "profile": {"name": "table", "steps": 4, "guidance": 4.0, "cases": SMALL},
        "curve": {"strengths": [0.5, 0.75, 1.25], "cases": CURVE},
        "entrants": {
            "naive": {"method": "naive", "options": {"steps": 4}, "curve": True},
            "uce": {"method": "uce"},
            "noise": {"trivial": "noise", "of": "naive"},
            "blocklist": {"trivial": "blocklist"},
        },
    }
    assert verbs.bench(plan_of(raw, "methods"), out=tmp_path / "bench")["failed"] == {}
    found = from_bench.methods_result(*from_bench.read(tmp_path / "bench", "methods"), "methods")
    assert {k: v for k, v in found.items() if k != "cost"} == {k: v for k, v in expected.items() if k != "cost"}
    assert without_seconds(methods.markdown(found)) == without_seconds(methods.markdown(expected))


@pytest.mark.slow
def test_records_of_attacks_make_the_table_of_the_script(scripts: Any, tmp_path: Path) -> None:
    _, robust, from_bench, _ = scripts
    PROFILES["table"] = Profile("table", 4, 4.0, SMALL)
    attacks = ("synonym", "unlearndiff")
    work = robust.Work(tmp_path / "script", "table", 60, 2, attacks)
    for name in ("none", "gold", "negative", "uce"):
        robust.run_cell(work, "panda", 0, name, False)
    old = robust.collect(work, ["panda"], [0], list(robust.DEFENCES))
    expected = robust.result_of(old, attacks, "uce")
    raw = {
        "targets": ["panda"],
        "attack_budget": 60,
        "attack_cases": 2,
        "profile": {"name": "table", "steps": 4, "guidance": 4.0, "cases": SMALL},
        "entrants": {"gold": {"gold": True}, "negative": {"guard": "negative"}, "uce": {"method": "uce"}},
        "attacks": {a: {} for a in attacks},
    }
    assert verbs.bench(plan_of(raw, "robust"), out=tmp_path / "bench")["failed"] == {}
    found = from_bench.robust_result(*from_bench.read(tmp_path / "bench", "robust"), "uce")
    for result in (expected, found):
        for entry in result["defences"].values():
            entry.pop("cost")
    assert {k: found[k] for k in expected} == expected


def paired(axis: str, case: str, hit: bool, base: bool = True) -> Any:
    return SimpleNamespace(axis=axis, case_id=case, hit=hit, valid=True), SimpleNamespace(hit=base)


def test_rankings_of_two_worlds_rest_on_the_cases_that_all_methods_have(scripts: Any) -> None:
    import rankings

    kept = {"good": 4, "fair": 2, "poor": 0}
    found = {
        method: {
            f"{target}|{seed}": [
                *(paired("near", f"c{k}", k < n) for k in range(4)),
                paired("near", "unseen", True, base=False),
                paired("far", "elsewhere", False),
                *([paired("near", "alone", True)] if method == "good" else []),
            ]
            for target in ("a", "b", "c")
            for seed in ((0, 1) if method != "poor" else (0,))  # one that takes one seed stands in every seed of the others
        }
        for method, n in kept.items()
    }
    one = rankings.successes(found, ("near",))
    assert {t: {s: sorted(cases) for s, cases in seeds.items()} for t, seeds in one.items()} == {
        t: {s: ["c0", "c1", "c2", "c3"] for s in ("0", "1")} for t in ("a", "b", "c")
    }
    methods = list(kept)
    assert rankings.rates(one, methods, None) == [1.0, 0.5, 0.0]
    same = rankings.agreement([one, one], methods)
    assert same["tau"] == same["high"] == 1
    assert same["targets"] == [3, 3]
    other = rankings.successes({m: found[n] for m, n in zip(methods, reversed(methods), strict=True)}, ("near",))
    assert rankings.agreement([one, other], methods)["tau"] == -1
    assert rankings.agreement([one, rankings.successes(dict.fromkeys(methods, found["good"]), ("near",))], methods)["tau"] is None
