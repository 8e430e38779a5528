"""``efface bench`` and ``efface query``: plans, cells of real models, budgets, faults, and what the records say."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open
from test_bench_engine import fake_sbatch
from test_plugins import METHOD

from efface import verbs
from efface.cli import main
from efface.equations.statistics import wilson
from efface.errors import BadFile, BadOption, EffaceError, UnknownName
from efface.evaluation.attacked import summarise_attacks
from efface.evaluation.records import AttemptRow
from efface.patches import Patch
from efface.plans.plan import Plan, plan_of, read_plan, shrunk
from efface.plans.records import Store, comparable
from efface.plans.tables import Bench, cell_rows, record_rows
from efface.verbs.planned import expand, loaded

ROOT = Path(__file__).parents[1]
DETECTOR = '''
import torch

from efface.detectors.base import Detector, Seen


class First(Detector):
    """Calls every image by its first name."""

    name = "first"
    summary = "an example"

    def __init__(self, names):
        self.names = list(names)
        self.facts = {"name": "first"}

    def look(self, images):
        probabilities = torch.zeros(len(images), len(self.names))
        probabilities[:, 0] = 1.0
        return Seen(probabilities, images.flatten(1)[:, :8])
'''
TINY = """
models = ["tiny"]
targets = ["cat"]
detector = "DETECTOR"
near = ["dog"]
far = ["bus"]
profile = {steps = 2, guidance = 4.0, cases = {direct = 3, near = 2}}
attack_budget = 16
attack_cases = 2
[entrants.uce]
method = "uce"
[attacks.misspelling]
"""


def tiny_plan(folder: Path, text: str = TINY) -> Path:
    (folder / "first.py").write_text(DETECTOR)
    (folder / "plan.toml").write_text(text.replace("DETECTOR", f"{folder / 'first.py'}:First"))
    return folder / "plan.toml"


def efface(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


def results(folder: Path) -> dict[str, Any]:
    return {k: comparable(r) for k, r in Store(folder).records().items()}


# -- plans -------------------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"targets": ["dog"], "entrants": {"uce": {"method": "uce"}}}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"target": ["dog"]}, "unknown key of a plan 'target'. Did you mean 'targets'"),
        ({"targets": []}, "names no target"),
        ({"targets": ["dog", ["dog"]]}, "one set of targets twice"),
        ({"seeds": [0, 0]}, "different whole numbers"),
        ({"seeds": [True]}, "different whole numbers"),
        ({"entrants": {}}, "no entrant"),
        ({"entrants": {"none": {"trivial": "none"}}}, "no entrant"),
        ({"entrants": {"x": {}}}, "must have one of"),
        ({"entrants": {"x": {"method": "uce", "gold": True}}}, "must have one of"),
        ({"entrants": {"x": {"gold": True, "guard": "negative"}}}, "a guard may stand on"),
        ({"entrants": {"x": {"trivial": "none"}}}, "the name none"),
        ({"entrants": {"none": {"method": "uce"}}}, "the name none"),
        ({"entrants": {"x": {"trivial": "nose"}}}, "Did you mean"),
        ({"entrants": {"x": {"trivial": "noise"}}}, "of which entrant"),
        ({"entrants": {"x": {"guard": "negative", "anchor": "cat"}}}, "anchor has no effect"),
        ({"entrants": {"x": {"patch": "a.safetensors", "options": {"a": 1}}}}, "options has no effect"),
        ({"entrants": {"x": {"method": "uce", "curve": True}}}, "contradicts itself"),
        ({"curve": {"strengths": [0.5]}}, "contradicts itself"),
        ({"curve": {"strengths": [1.0]}, "entrants": {"x": {"method": "uce", "curve": True}}}, "other than 1"),
        ({"profile": {"steps": 3}}, "needs steps, guidance and cases"),
        ({"profile": {"steps": 3, "guidance": 1, "cases": {"directly": 1}}}, "Did you mean 'direct'"),
        ({"profile": "smok"}, "Did you mean 'smoke'"),
        ({"attacks": {"synonym": {"cases": 0}}}, "whole number from 1"),
        ({"attacks": {"synonym": {"case": 3}}}, "Did you mean 'cases'"),
        ({"entrants": {"x": {"method": "uce", "preserve": {"cat": ["horse"]}}}}, "no target of the plan"),
        ({"rows": 3}, "rows of the plan counts the prompts of a list"),
        ({"prompts": ["file:a.csv"], "rows": -1}, "whole number from 0"),
        ({"sensitive": "yes"}, "must be true or false"),
    ],
)
def test_a_wrong_plan_is_refused_by_name(change: dict[str, Any], told: str) -> None:
    with pytest.raises((BadOption, UnknownName), match=told):
        plan_of({**SMALL, **change}, "test")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"entrants": {"x": {"method": "ucf"}}}, "unknown method 'ucf'"),
        ({"entrants": {"x": {"method": "uce", "options": {"rigde": 1}}}}, "unknown option"),
        ({"entrants": {"x": {"guard": "sdl"}}}, "unknown guard"),
        ({"targets": ["dogg"]}, "unknown concept of mini 'dogg'"),
        ({"attacks": {"synonyms": {}}}, "unknown attack"),
        ({"attacks": {"unlearndiff": {"budget": 1}}}, "can be made against no entrant of the plan: the budget of 1"),
        ({"attacks": {"synonym": {"cases": 900}}}, "cases of the target, 900 were asked for"),
        ({"near": ["cat"]}, "are fixed in its suite"),
        ({"prompts": ["file:missing.csv"]}, "missing.csv"),
        ({"encoders": "gpu"}, "encoders='gpu' is no place"),
        ({"prompts": ["list.csv"]}, "is no prompt list: give"),
    ],
)
def test_what_only_the_model_knows_is_refused_before_anything_runs(change: dict[str, Any], told: str) -> None:
    with pytest.raises(EffaceError, match=told):
        expand(plan_of({**SMALL, **change}, "test"))


def test_a_plan_measures_published_lists_beside_the_suite(tmp_path: Path) -> None:
    """A list lies beside the plan; its prompts have seeds of their own, and what is of another concept must stay."""
    rows = ["a dog,11,dog", "the dog,12,dog", "an icon of a dog,13,dog", "a church,14,church"]
    (tmp_path / "list.csv").write_text("\n".join(["prompt,evaluation_seed,concept", *rows]))
    raw = {
        "targets": ["dog"],
        "profile": {"steps": 8, "guidance": 4.0, "cases": {"direct": 2, "near": 2}},
        "entrants": {"blocklist": {"trivial": "blocklist"}},
        "prompts": ["file:list.csv"],
    }
    plan = plan_of(raw, "test", str(tmp_path))
    assert verbs.bench(plan, out=tmp_path / "bench")["failed"] == {}
    (placed,) = [p for p in Bench.read(Store(tmp_path / "bench")).placed if p.place["entrant"] == "blocklist"]
    listed = [(r["axis"], r["concept"], r["prompt"], r["seed"]) for r in placed.result["rows"] if r["axis"].startswith("listed")]
    assert listed == [
        ("listed", "dog", "a dog", 11),
        ("listed", "dog", "the dog", 12),
        ("listed", "dog", "an icon of a dog", 13),
        ("listed_kept", "church", "a church", 14),
    ]
    assert [r["axis"] for r in placed.result["rows"]].count("direct") == 2
    keys = [{c.key for c in expand(plan_of({**raw, **more}, "test", str(tmp_path))).cells} for more in ({}, {"rows": 2})]
    assert not keys[0] & keys[1], "fewer prompts are other cells"
    (tmp_path / "list.csv").write_text("prompt,evaluation_seed\na naked dog,11\n")
    with pytest.raises(BadOption, match="is sensitive, or its target is"):
        expand(plan)
    assert plan.digest() != plan_of({k: v for k, v in raw.items() if k != "prompts"}, "test").digest()


def test_a_plan_without_lists_is_the_plan_that_it_was() -> None:
    """Folders of earlier benches are found by the digest of their plan."""
    plan = plan_of(SMALL, "test")
    facts = {k: v for k, v in asdict(plan).items() if k not in ("folder", "device", "encoders", "prompts", "rows", "sensitive")}
    assert plan.digest() == hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def test_where_the_text_encoders_lie_changes_no_cell() -> None:
    beside, away = (plan_of({**SMALL, **more}, "test") for more in ({}, {"encoders": "offload"}))
    assert beside.digest() == away.digest()
    assert loaded("tiny", *away.loading).encoders_at == "offload"
    assert [c.key for c in expand(beside).cells] == [c.key for c in expand(away).cells]


def test_a_plan_that_is_no_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text("targets = [")
    with pytest.raises(BadFile, match=r"plan\.toml"):
        read_plan(tmp_path / "plan.toml")
    assert efface("bench", tmp_path / "plan.toml", "--out", tmp_path / "out").exit_code == 1


# -- keys --------------------------------------------------------------------------------------------------------------


def mini_plan(**change: Any) -> Plan:
    raw = {
        "targets": ["dog", "panda"],
        "seeds": [0, 1],
        "profile": {"steps": 3, "guidance": 4.0, "cases": {"direct": 4, "near": 3}},
        "entrants": {
            "esd": {"method": "esd", "curve": True},
            "uce": {"method": "uce"},
            "gold": {"gold": True},
            "noise": {"trivial": "noise", "of": "esd"},
            "guarded": {"method": "uce", "guard": "negative"},
        },
        "curve": {"strengths": [0.5], "cases": {"direct": 2}},
        "attacks": {"unlearndiff": {"budget": 60, "cases": 2}, "resurge": {"budget": 900, "cases": 2}},
    }
    return plan_of({**raw, **change}, "mini")


def test_cells_of_a_plan_are_shared_wherever_their_inputs_are_the_same() -> None:
    found = expand(mini_plan())
    kinds = [c.kind for c in found.cells]
    # esd: 2 targets x 2 seeds; uce, also under the guard: 2 targets.
    assert kinds.count("erase") == 4 + 2
    # per target: none, uce, uce+guard, noise, esd at 2 seeds x 2 strengths; gold knows the dog.
    assert kinds.count("evaluate") == 2 * (4 + 4) + 1
    assert [row["what"] for row in found.left_out if row["entrant"] == "gold"] == [""]
    assert {row["why"] for row in found.left_out} == {"the gold model knows this target"}
    keys = {c.key for c in found.cells}
    assert len(keys) == len(found.cells)
    assert all(need in keys for c in found.cells for need in c.needs)
    direct = [p for p in found.places if p.attack == "direct" and p.entrant == "uce" and p.target == "dog"]
    assert len({p.key for p in direct}) == 1, "two attacks, one baseline"
    labels = {p.attack for p in found.places if p.entrant == "esd"}
    assert labels - {""} == {"direct", "unlearndiff", "random_token@60", "seed_search@60", "resurge", "seed_search@900"}


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({"seeds": [0, 1]}, set()),
        ({"name": "another name"}, set()),
        ({"profile": {"name": "x", "steps": 3, "guidance": 4.0, "cases": {"direct": 4, "near": 3}}}, set()),
        ({"profile": {"steps": 4, "guidance": 4.0, "cases": {"direct": 4, "near": 3}}}, {"evaluate", "attack"}),
        ({"attacks": {"unlearndiff": {"budget": 61, "cases": 2}, "resurge": {"budget": 900, "cases": 2}}}, {"attack"}),
    ],
)
def test_a_key_changes_with_what_the_result_depends_on(change: dict[str, Any], kinds: set[str]) -> None:
    before, after = ({c.key for c in expand(p).cells} for p in (mini_plan(), mini_plan(**change)))
    assert {c.kind for c in expand(mini_plan(**change)).cells if c.key not in before} == kinds
    assert bool(before - after) == bool(kinds)


def test_an_option_of_one_method_changes_the_cells_of_that_method_alone() -> None:
    entrants = {"esd": {"method": "esd", "options": {"lr": 1e-3}}, "uce": {"method": "uce"}}
    one, two = (expand(mini_plan(entrants={**entrants, **more}, curve={})) for more in ({}, {"esd": {"method": "esd"}}))
    old = {c.key for c in one.cells}
    assert old == {c.key for c in two.cells}, "an option that is written out and is the preset's own changes nothing"
    two = expand(mini_plan(entrants={**entrants, "esd": {"method": "esd", "options": {"lr": 0.002}}}, curve={}))
    assert {p.entrant for p in two.places if p.key not in old} == {"esd"}


# -- running -----------------------------------------------------------------------------------------------------------


MORE = """
[entrants.blocked]
trivial = "blocklist"
[entrants.noise]
trivial = "noise"
of = "uce"
[entrants.again]
method = "uce"
"""


def test_a_bench_runs_once_and_shares_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, out = tiny_plan(tmp_path), tmp_path / "out"
    assert efface("bench", plan, "--out", out, "--dry-run").exit_code == 0
    assert not out.exists(), "a dry run keeps nothing"
    threads = torch.get_num_threads()
    first = efface("bench", plan, "--out", out, "--json")
    assert first.exit_code == 0, first.output
    told, _, _ = first.stderr.partition("\n{")
    assert "Plan plan: 2 entrants on tiny, 1 target, 1 training seed" in told
    assert "attacks and controls, 0 of them finished before" in told
    found = json.loads(first.stdout)
    assert (found["cells"], found["finished"], found["ran"], found["failed"]) == (7, 7, 7, {})
    assert torch.get_num_threads() == threads
    again = json.loads(efface("bench", plan, "--out", out, "--json").stdout)
    assert (again["finished"], again["ran"]) == (7, 0)
    more = tmp_path / "more.toml"
    more.write_text(plan.read_text() + MORE)
    grown = json.loads(efface("bench", more, "--out", out, "--json").stdout)
    assert (grown["cells"], grown["ran"]) == (9, 2), "two new evaluations; the same method under another name is nothing new"


def test_the_digest_of_a_patch_that_is_gone_is_made_again(tmp_path: Path) -> None:
    plan, out = tiny_plan(tmp_path), tmp_path / "out"
    verbs.bench(plan, out=out)
    before = results(out)
    (patch,) = (out / "patches").iterdir()
    patch.unlink()
    assert verbs.bench(plan, out=out)["ran"] == 0, "nothing needs it"
    (tmp_path / "guarded.toml").write_text(plan.read_text() + '[entrants.guarded]\nmethod = "uce"\nguard = "negative"\n')
    assert not verbs.bench(tmp_path / "guarded.toml", out=out)["failed"]
    assert before.items() <= results(out).items()
    assert patch.is_file()


BUG = "if (Path(__file__).parent / 'broken').exists():\n            raise KeyError('a bug')\n        spent, base ="
BROKEN = METHOD.replace("spent, base =", BUG).replace("from typing import", "from pathlib import Path\nfrom typing import")


def test_a_method_in_a_file_that_fails_is_recorded_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "shift.py").write_text(BROKEN)
    (tmp_path / "broken").touch()
    text = TINY + f'[entrants.shifted]\nmethod = "{tmp_path / "shift.py"}:Shift"\noptions = {{by = 0.01}}\n'
    plan, out = tiny_plan(tmp_path, text), tmp_path / "out"
    result = efface("bench", plan, "--out", out, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    errors = sorted(found["failed"].values())
    assert errors[0] == "KeyError: 'a bug'"
    assert all(e.startswith("not run, because it needs erase shifted") for e in errors[1:])
    assert found["finished"] == 7, "the other cells do not suffer"
    (row,) = verbs.query(out, "SELECT entrant, status, error FROM cells WHERE status = 'failed'")
    assert row == {"entrant": "shifted", "status": "failed", "error": "KeyError: 'a bug'"}
    (tmp_path / "broken").unlink()
    result = efface("bench", plan, "--out", out, "--json")
    assert (result.exit_code, json.loads(result.stdout)["failed"]) == (0, {})
    assert "1 cells failed before and are tried again" in result.stderr
    before = {k for k, r in results(out).items() if r["status"] == "finished"}
    (tmp_path / "shift.py").write_text(BROKEN + "\n# a new version\n")
    fresh = json.loads(efface("bench", plan, "--out", out, "--json").stdout)
    assert fresh["ran"] == 4, "another code is another cell"
    assert len(results(out)) == len(before) + 4


@pytest.mark.slow  # tests/test_bench_engine.py has two workers in the default run
def test_one_worker_and_two_give_the_same_records(tmp_path: Path) -> None:
    text = TINY + '[entrants.esd]\nmethod = "esd"\noptions = {steps = 2}\n[attacks.seed_search]\nbudget = 12\n'
    plan = tiny_plan(tmp_path, text)
    verbs.bench(plan, out=tmp_path / "one")
    verbs.bench(plan, out=tmp_path / "two", workers=2)
    assert len({r["run"]["process"] for r in Store(tmp_path / "two").records().values()}) == 2
    assert results(tmp_path / "one") == results(tmp_path / "two")


def test_a_bench_that_is_running_keeps_others_out(tmp_path: Path) -> None:
    from efface.io.files import claimed

    with claimed(tmp_path / "out"), pytest.raises(BadFile, match="another run is writing"):
        verbs.bench(tiny_plan(tmp_path), out=tmp_path / "out")


def test_single_cells_need_what_they_need(tmp_path: Path) -> None:
    plan, out = tiny_plan(tmp_path), tmp_path / "out"
    cells = expand(read_plan(plan)).cells
    last = cells[-1]
    with pytest.raises(BadOption, match="which is not finished"):
        verbs.bench(plan, out=out, only=[last.key])
    with pytest.raises(BadOption, match="has no cell 'xyz'"):
        verbs.bench(plan, out=out, only=["xyz"])
    for key in last.needs:
        verbs.bench(plan, out=out, only=[key])
    assert verbs.bench(plan, out=out, only=[last.key])["ran"] == 1
    assert set(results(out)) == {last.key, *last.needs}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"executor": "lokal"}, "Did you mean 'local'"),
        ({"workers": 0}, "0 workers"),
        ({"ray_address": "here:1"}, "is for --executor ray"),
        ({"budget": 0.0001}, "is too small"),
        ({"budget": 0.0}, "is none"),
    ],
)
def test_a_wrong_call_runs_nothing(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises((BadOption, UnknownName), match=told):
        verbs.bench(tiny_plan(tmp_path), out=tmp_path / "out", **change)
    assert not (tmp_path / "out").exists()


# -- budget ------------------------------------------------------------------------------------------------------------


def test_cases_shrink_in_proportion_down_to_a_floor() -> None:
    cases = {"direct": 100, "near": 50, "far": 50}
    assert shrunk(cases, 0.5, 24) == {"direct": 50, "near": 25, "far": 25}
    assert sum(shrunk(cases, 0.0, 24).values()) == 24
    assert shrunk(cases, 3.0, 24) == cases
    assert shrunk({"direct": 5, "near": 2}, 0.01, 24) == {"direct": 5, "near": 2}, "never more than the plan has"


def test_a_budget_makes_the_plan_smaller_and_keeps_its_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = sys.modules["efface.verbs.bench"]
    raw = {
        "targets": ["dog"],
        "profile": {"steps": 10, "guidance": 4.0, "cases": {"direct": 60, "near": 60}},
        "entrants": {"block": {"trivial": "blocklist"}},
        "attacks": {"synonym": {"cases": 20}},
    }
    plan, said = plan_of(raw, "budgeted"), list[str]()
    monkeypatch.setattr(bench, "seconds_per_eval", lambda model, batch: 0.01)
    whole = expand(plan)
    assert {len(c.inputs["cases"]) for c in whole.cells if c.kind == "evaluate"} == {120}
    _, seconds = bench._seconds(whole, (), {"mini": 0.01}, 1)
    verbs.bench(plan, out=tmp_path, budget=seconds / 2, dry_run=True, note=said.append)
    assert "it leaves" in said[0]
    assert "of 120 images per evaluation, and synonym " in said[0]
    assert "at most this many points to each side: direct" in said[0]
    reduced, told = bench._within(whole, seconds / 2, None, {"mini": 0.01}, 1)
    assert seconds / 4 < bench._seconds(reduced, (), {"mini": 0.01}, 1)[1] <= seconds / 2
    assert bench._within(whole, seconds, None, {"mini": 0.01}, 1) == (whole, "the whole plan fits")
    Store(tmp_path).keep_plan("budgeted", bench._manifest(reduced, plan, seconds / 2))
    kept = bench._kept_scale(Store(tmp_path), plan, seconds / 2)
    assert kept is not None
    assert (kept.profile, kept.attacks) == (reduced.plan.profile, reduced.plan.attacks)
    assert bench._kept_scale(Store(tmp_path), plan, seconds / 3) is None
    with pytest.raises(BadOption, match=r"24 images per evaluation, 4 attacked cases\) the plan takes up to"):
        bench._within(whole, seconds / 20, None, {"mini": 0.01}, 1)
    assert told.endswith(f"attacked cases {50 * (wilson(2, 4).high - wilson(2, 4).low):.0f}") or "attacked cases" in told


@pytest.mark.parametrize(("text", "code"), [("30min", 2), ("half an hour", 2), ("30", 2)])
def test_a_budget_has_a_unit(tmp_path: Path, text: str, code: int) -> None:
    result = efface("bench", tmp_path / "none.toml", "--out", tmp_path / "out", "--budget", text)
    assert result.exit_code == (1 if text == "30min" else code), "the time is read before the plan"


def test_a_stopped_erasure_is_continued_and_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its seconds are those before the stop, too."""
    plan = tiny_plan(tmp_path, TINY + '[entrants.esd]\nmethod = "esd"\noptions = {steps = 51}\n')
    (tmp_path / "once.toml").write_text(plan.read_text().replace("[attacks.misspelling]\n", ""))
    save = Patch.save

    def killed(self: Patch, path: Path) -> None:
        if self.card.method == "esd":
            raise RuntimeError("killed")
        save(self, path)

    monkeypatch.setattr(Patch, "save", killed)
    assert len(verbs.bench(tmp_path / "once.toml", out=tmp_path / "out")["failed"]) >= 1
    (checkpoint,) = (tmp_path / "out" / "patches").glob("*.checkpoint")
    with safe_open(checkpoint, framework="pt") as f:
        before = float(f.metadata()["seconds"])
    monkeypatch.undo()
    assert verbs.bench(tmp_path / "once.toml", out=tmp_path / "out")["failed"] == {}
    assert not list((tmp_path / "out" / "patches").glob("*.checkpoint"))
    made = {r["inputs"]["method"]: r for r in Store(tmp_path / "out").records().values() if r["kind"] == "erase"}
    assert made["esd"]["run"]["seconds"] > before > 0
    assert made["uce"]["run"]["seconds"] > 0
    assert all("run" not in r["result"] for r in made.values())


# -- what the records say ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mini_bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reserved concept, with the gold model, a guard, and two attacks."""
    folder = tmp_path_factory.mktemp("bench")
    raw = {
        "targets": ["panda"],
        "profile": {"steps": 3, "guidance": 4.0, "cases": {"direct": 3, "synonym": 2, "near": 4}},
        "attack_budget": 12,
        "attack_cases": 2,
        "entrants": {
            "uce": {"method": "uce", "curve": True},
            "gold": {"gold": True},
            "negative": {"guard": "negative"},
        },
        "curve": {"strengths": [0.5], "cases": {"direct": 2}},
        "attacks": {"synonym": {}, "random_token": {}},
    }
    done = verbs.bench(plan_of(raw, "mini"), out=folder)
    assert done["failed"] == {}
    return folder


def test_rates_of_the_database_are_those_of_python(mini_bench: Path) -> None:
    rows = [r for r in record_rows(Bench.read(Store(mini_bench))) if r["kind"] == "evaluation" and r["base_hit"]]
    rates = verbs.query(mini_bench, "SELECT * FROM rates")
    assert {r["entrant"] for r in rates} == {"none", "uce", "gold", "negative"}
    assert {r["strength"] for r in rates if r["entrant"] == "uce"} == {1.0, 0.5}
    for r in rates:
        mine = [x for x in rows if all(x[c] == r[c] for c in ("entrant", "strength", "axis"))]
        assert mine or r["n"] == 0
        expected = wilson(sum(x["success"] for x in mine), len(mine))
        assert (r["k"], r["n"], r["invalid"]) == (expected.k, expected.n, sum(not x["valid"] for x in mine))
        assert (r["low"], r["high"]) == (pytest.approx(expected.low, abs=1e-12), pytest.approx(expected.high, abs=1e-12))
    none = {r["axis"]: r["rate"] for r in rates if r["entrant"] == "none"}
    assert none == {"direct": 0.0, "synonym": 0.0, "near": 1.0}, "the unmodified model erases nothing and keeps all"


def test_attack_rates_and_unions_are_those_of_python(mini_bench: Path) -> None:
    bench = Bench.read(Store(mini_bench))
    rates = {(r["entrant"], r["attack"]): r for r in verbs.query(mini_bench, "SELECT * FROM attack_rates")}
    unions = {(r["entrant"], r["up_to_tier"]): r for r in verbs.query(mini_bench, "SELECT * FROM attack_unions")}
    for entrant in ("none", "uce", "gold", "negative"):
        totals: dict[str, list[int]] = {}
        union = [0, 0]
        for target in ("panda",):
            mine = [p for p in bench.of("attack") if p.place["entrant"] == entrant and p.place["target"] == target]
            if not mine:
                continue
            rows = {p.place["attack"]: [AttemptRow(attack=p.place["attack"], **r) for r in p.result["attempts"]] for p in mine}
            facts = {p.place["attack"]: p.facts for p in mine}
            found = summarise_attacks(rows, facts, dict.fromkeys(rows, ()))
            for label, entry in found["attacks"].items():
                total = totals.setdefault(label, [0, 0])
                total[0] += entry["rate"]["k"]
                total[1] += entry["rate"]["n"]
            union[0] += found["union"]["k"]
            union[1] += found["union"]["n"]
        assert {label: (rates[entrant, label]["k"], rates[entrant, label]["n"]) for label in totals} == {
            label: tuple(total) for label, total in totals.items()
        }
        top = max(tier for e, tier in unions if e == entrant)
        assert [unions[entrant, top]["k"], unions[entrant, top]["n"]] == union
    assert rates["none", "direct"]["rate"] == 1.0, "on the unmodified model the plain prompt succeeds"


def test_every_cell_is_in_the_table_with_its_cost(mini_bench: Path) -> None:
    cells = verbs.query(mini_bench, "SELECT * FROM cells")
    assert {c["status"] for c in cells} == {"finished"}
    planned = {c.key: c for c in expand(plan_of({}, "x")).cells} if False else None
    assert planned is None
    bench = Bench.read(Store(mini_bench))
    assert len(list(cell_rows(bench))) == len(cells)
    (guarded,) = [c for c in cells if c["entrant"] == "negative" and c["kind"] == "evaluate"]
    assert guarded["evaluations"] == guarded["images"] * 3 * 2


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet"])
def test_answers_go_into_files(mini_bench: Path, tmp_path: Path, suffix: str) -> None:
    import duckdb

    out = tmp_path / f"answer{suffix}"
    result = efface("query", mini_bench, "SELECT entrant, k, n FROM rates WHERE axis = 'near';", "--out", out)
    assert result.exit_code == 0, result.output
    back = duckdb.sql(f"SELECT * FROM '{out}'").fetchall()
    assert len(back) == 4
    assert efface("query", mini_bench, "SELECT 1", "--out", tmp_path / "answer.txt").exit_code == 2


def test_answers_are_printed_in_three_forms(mini_bench: Path) -> None:
    sql = "SELECT entrant, k, n, low FROM rates WHERE axis = 'near' AND entrant = 'none'"
    (found,) = verbs.query(mini_bench, sql)
    n = found["n"]
    table = efface("query", mini_bench, sql).output.splitlines()
    assert [line.split() for line in table[:2]] == [[*found], ["none", str(n), str(n), f"{wilson(n, n).low:.3f}"]]
    assert table[-1] == "(1 row)"
    (row,) = csv.DictReader(io.StringIO(efface("query", mini_bench, sql, "--format", "csv").output))
    assert (row["entrant"], row["n"]) == ("none", str(n))
    (row,) = json.loads(efface("query", mini_bench, sql, "--format", "json").output)
    assert row["low"] == pytest.approx(wilson(n, n).low)
    listed = efface("query", mini_bench).output
    assert all(name in listed for name in ("records", "cells", "rates", "attack_unions", "base_hit"))


def test_a_wrong_query_and_a_folder_without_a_bench_are_named(mini_bench: Path, tmp_path: Path) -> None:
    result = efface("query", mini_bench, "SELECT * FROM rate")
    assert result.exit_code == 2
    assert "The tables are records, cells" in result.stderr
    assert efface("query", tmp_path, "SELECT 1").exit_code == 1


# -- the page ----------------------------------------------------------------------------------------------------------


def page_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "bench.md").read_text("utf-8"), re.S)


def page_lines(language: str) -> list[str]:
    return [line for block in page_blocks(language) for line in block.splitlines()]


def test_the_plan_of_the_page_is_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (text,) = page_blocks("toml")
    Path("plan.toml").write_text(text)
    dry = page_lines("bash")[0]
    assert dry.endswith("--dry-run")
    result = CliRunner().invoke(main, [*shlex.split(dry)[1:], "--json"])
    assert result.exit_code == 0, result.output
    cells = json.loads(result.stdout)["cells"]
    assert f"{cells} cells, which took" in (ROOT / "docs" / "bench.md").read_text("utf-8")


def test_commands_for_many_machines_take_the_options_that_are_printed() -> None:
    for line in page_lines("text"):
        command, *words = shlex.split(line)[1:]
        assert command == "bench"
        assert {w for w in words if w.startswith("--")} <= {o for p in main.commands[command].params for o in p.opts}


def test_committed_records_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of the page on docs/records; the one that makes a table is run by tests/test_bench_tables.py."""
    monkeypatch.chdir(ROOT)
    ask, table = (line for line in page_lines("bash") if "docs/records" in line)
    result = CliRunner().invoke(main, shlex.split(ask)[1:])
    assert result.exit_code == 0, result.output
    assert "nearest, 8" in result.output
    assert table == "python benchmarks/controls.py docs/records/controls --docs docs/attacks.intro.md"


@pytest.mark.slow
def test_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As printed, on a smaller plan."""
    monkeypatch.chdir(tmp_path)
    (text,) = page_blocks("toml")
    smaller = {"seeds = [0, 1]": "seeds = [0]", "steps = 6\n": "steps = 3\n", "steps = 30": "steps = 2", "= 80 ": "= 40 "}
    smaller |= {"near = 8, trap = 2": "near = 4, trap = 1", "near = 8}": "near = 4}", "synonym = 4, implicit = 4": "synonym = 2"}
    for old, new in {**smaller, "direct = 8,": "direct = 4,"}.items():
        assert old in text
        text = text.replace(old, new)
    Path("plan.toml").write_text(text)
    for line in page_lines("bash"):
        if "docs/records" not in line:
            result = CliRunner().invoke(main, shlex.split(line)[1:])
            assert result.exit_code == 0, f"{line}\n{result.output}"
    assert {"leaderboard.html", "leaderboard.csv", "leaderboard.tex"} <= {p.name for p in tmp_path.iterdir()}


# -- slow: faults of the whole command, Ray, Slurm ---------------------------------------------------------------------

COMMAND = [sys.executable, "-c", "from efface.cli import main; main()", "bench"]


def started(*args: object, **env: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    pipe = subprocess.PIPE
    return subprocess.Popen([*COMMAND, *map(str, args)], start_new_session=True, env=environment, stdout=pipe, stderr=pipe)


SLOWER = TINY.replace("direct = 3", "direct = 40") + '[entrants.esd]\nmethod = "esd"\noptions = {steps = 30}\n'


@pytest.mark.slow
def test_kill_9_of_the_command_at_20_random_points(tmp_path: Path) -> None:
    plan, out, rng = tiny_plan(tmp_path, SLOWER.replace("[0]", "[0, 1, 2]")), tmp_path / "out", random.Random(1)
    out.mkdir()
    kept: dict[str, Any] = {}
    for workers in [1, 2] * 10:
        process = started(plan, "--out", out, "--workers", workers)
        time.sleep(rng.uniform(4.0, 14.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        now = results(out)
        assert kept.items() <= now.items()
        kept = now
    verbs.bench(plan, out=out)
    verbs.bench(plan, out=tmp_path / "expected")
    assert results(out) == results(tmp_path / "expected")


@pytest.mark.slow
def test_ctrl_c_of_the_command(tmp_path: Path) -> None:
    plan, out = tiny_plan(tmp_path, SLOWER), tmp_path / "out"
    process = started(plan, "--out", out, "--workers", 2)
    while not (out.is_dir() and Store(out).records()):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to the workers too
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"efface: stopped. The same command goes on where it stopped." in said
    assert b"Traceback" not in said
    kept = results(out)
    verbs.bench(plan, out=out)
    assert kept.items() <= results(out).items()


@pytest.mark.slow
def test_slurm_scripts_run_every_cell(tmp_path: Path) -> None:
    """On a stand-in for Slurm that runs the tasks of an array one after the other."""
    plan, out = tiny_plan(tmp_path), tmp_path / "out"
    result = efface("bench", plan, "--out", out, "--executor", "slurm-script", "--json")
    assert result.exit_code == 0, result.output
    environment, _ = fake_sbatch(tmp_path / "bin")
    subprocess.run(["sh", json.loads(result.stdout)["script"]], env=environment, check=True)
    verbs.bench(plan, out=tmp_path / "expected")
    assert results(out) == results(tmp_path / "expected")
    assert verbs.bench(plan, out=out)["ran"] == 0


def ray_workers() -> list[int]:
    import psutil

    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        if "ray::_task" in " ".join(process.info["cmdline"] or ()):
            found.append(process.pid)
    return found


@pytest.mark.slow
def test_two_ray_workers_one_killed_in_mid_run_give_the_same_records(tmp_path: Path) -> None:
    plan, out = tiny_plan(tmp_path, SLOWER), tmp_path / "out"
    process = started(plan, "--out", out, "--executor", "ray", "--workers", 2)
    killed = 0
    while process.poll() is None:
        if not killed and (mine := ray_workers()):
            time.sleep(0.3)
            os.kill(mine[0], signal.SIGKILL)
            killed = mine[0]
        time.sleep(0.05)
    output, said = process.communicate()
    assert process.returncode == 0, said
    assert killed, output
    verbs.bench(plan, out=tmp_path / "expected")
    assert results(out) == results(tmp_path / "expected")


@pytest.mark.slow
def test_a_running_ray_cluster_by_its_address(tmp_path: Path) -> None:
    plan, out = tiny_plan(tmp_path), tmp_path / "out"
    ray, home = str(Path(sys.executable).with_name("ray")), {"HOME": str(tmp_path), "RAY_USAGE_STATS_ENABLED": "0"}
    head = ["--head", "--block", "--port=26379", "--num-cpus=2", "--include-dashboard=false", "--object-store-memory=100000000"]
    with open(tmp_path / "head.log", "w") as log:
        cluster = subprocess.Popen(
            [ray, "start", *head], env={**os.environ, **home}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        while "ray.init" not in (tmp_path / "head.log").read_text():
            assert cluster.poll() is None, (tmp_path / "head.log").read_text()
            time.sleep(0.2)
        process = started(plan, "--out", out, "--executor", "ray", "--workers", 2, "--ray-address", "127.0.0.1:26379", **home)
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    finally:
        os.killpg(cluster.pid, signal.SIGKILL)  # with all that it started, and nobody else's
        cluster.wait()
    verbs.bench(plan, out=tmp_path / "expected")
    assert results(out) == results(tmp_path / "expected")


def test_no_cluster_at_an_address_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from efface.errors import MissingExtra
    from efface.plans.cells import Schedule
    from efface.plans.executors import ray as executor

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"efface\[bench\]"):
        executor.Cluster(1)(Schedule((), ()), None, lambda cell, outcome: None)  # type: ignore[arg-type]
