"""The plans of benchmarks/plans, and the scripts that make the tables of the pages from their records."""

from __future__ import annotations

import json
import lzma
import re
import shutil
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from test_leaderboard import bench_of

from efface import verbs
from efface.errors import BadFile
from efface.evaluation.profiles import PROFILES
from efface.models.load import WORLDS, load_model
from efface.models.mini.world import load_world
from efface.plans.plan import Plan, plan_of, read_plan
from efface.plans.records import Store
from efface.registry import METHODS
from efface.verbs.subject import suite_for

ROOT = Path(__file__).parents[1]
PLANS = ROOT / "benchmarks" / "plans"


NAMES = (
    *("methods_table", "robust_table", "table", "from_bench", "kept"),
    *("flow", "rankings", "export", "defences", "at_once", "debias", "controls", "kinds"),
)
DOCS = ROOT / "docs"
KEPT = DOCS / "records"
MADE_FROM = {
    "attacks": ("from_bench", "attacks", "robust.md"),
    "closed-form": ("at_once", "mini", "closed_form.md"),
    "controls": ("controls", "", "attacks.intro.md"),
    "flow": ("flow", "", "flow.md"),
    "icons-kinds": ("kinds", "--world icons", "kinds.md"),
    "icons-local": ("kinds", "--world icons-local", "closed_form.md"),
    "icons-many": ("at_once", "icons-many", "kinds.md"),
    "icons-search": ("from_bench", "icons-search", "rankings.md"),
    "kinds": ("kinds", "", "kinds.md"),
    "local": ("kinds", "--world local", "closed_form.md"),
    "methods": ("from_bench", "methods", "results.md"),
    "methods-options": ("from_bench", "methods-options", "results.md"),
    "methods-robust": ("from_bench", "methods-robust", "results.md"),
    "rankings+icons": ("rankings", "", "rankings.md"),
    "rap": ("from_bench", "rap", "rap.md"),
}
"""Folders of docs/records -> the script that makes a table of them, what comes before the folders, and the page."""

needs_icons = pytest.mark.skipif("icons" not in WORLDS, reason="the world of icons is a package of its own, not installed here")


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Finds the scripts of benchmarks/ as modules; the profiles that they add are gone again afterwards."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = dict(PROFILES)
    for name in NAMES:
        sys.modules.pop(name, None)
    yield import_module
    PROFILES.clear()
    PROFILES.update(before)
    for name in NAMES:
        sys.modules.pop(name, None)


def test_every_plan_can_be_read() -> None:
    found = {path.stem: read_plan(path) for path in PLANS.glob("*.toml")}
    assert set(found) == {
        "methods",
        "methods-robust",
        "methods-options",
        "robust",
        "rap",
        "attacks",
        "unlearndiff",
        "flow",
        "kinds",
        "controls",
        "closed-form-few",
        "closed-form-many",
        "icons-many",
        "local",
        "icons-local",
        "icons",
        "icons-kinds",
        "icons-search",
        "rankings",
    }
    assert all(plan.name == name for name, plan in found.items())


def targets_of(plan: Plan) -> set[str]:
    return {t for group in plan.targets for t in group}


def test_defaults_are_chosen_on_targets_that_no_other_table_uses() -> None:
    plans = {path.stem: read_plan(path) for path in PLANS.glob("*.toml")}
    options = plans.pop("methods-options")
    trained = {e.method for e in options.entrants if e.method}
    others = [plan for plan in plans.values() if trained & {e.method for e in plan.entrants}]
    assert len(others) > 5
    assert not targets_of(options) & {t for plan in others for t in targets_of(plan)}


@pytest.mark.parametrize(("name", "of"), [("methods", "naive"), ("methods-robust", "esd"), ("methods-options", "ap, student")])
def test_the_plans_of_the_results_compare_with_rows_that_they_have(scripts: Any, name: str, of: str) -> None:
    plan, table = read_plan(PLANS / f"{name}.toml"), scripts("from_bench").METHODS[name]
    labels = [e.label for e in plan.entrants if e.method]
    assert {table.against(label, labels) for label in labels} <= {*labels}
    assert plan.seeds == (0, 1, 2)
    (noise,) = [e for e in plan.entrants if e.trivial == "noise"]
    assert noise.of == of, "noise has the size of the first patch"
    seeded = {e.label for e in plan.entrants if e.method and "seed" in METHODS.find(e.method).__dataclass_fields__}
    assert {"ap", "esd", "ap, student"} & {*labels} <= seeded, "these three are trained with several seeds"


def test_the_row_fixed_preserves_a_relative_that_nobody_asks_for() -> None:
    """What it preserves would otherwise be what is measured. A group without a name to spare gives one that is asked for."""
    plan, model = read_plan(PLANS / "methods.toml"), load_model("mini")
    (fixed,) = [e for e in plan.entrants if e.method == "fixed"]
    assert set(fixed.preserve) == targets_of(plan)
    world = load_world()
    for target, (name,) in fixed.preserve.items():
        suite = suite_for(model, [target])
        family = [n for n in world.names("ordinary") if world[n].group == world[target].group and n != target]
        spare = [n for n in family if n not in {c.name for c in (*suite.near, *suite.trap)}]
        assert name in (spare or family)


def test_the_two_worlds_are_compared_by_entrants_of_the_results() -> None:
    """A row of the page of rankings is a row of the results, trained and measured once where the plans share a folder."""
    whole, here, there = (read_plan(PLANS / f"{name}.toml") for name in ("methods", "rankings", "icons"))
    known = {e.label: (e.method, dict(e.options)) for e in whole.entrants}
    assert {e.label: (e.method, dict(e.options)) for e in here.entrants}.items() <= known.items()
    assert here.entrants == there.entrants
    assert (here.targets, here.seeds, here.profile) == (whole.targets, whole.seeds, whole.profile)
    assert (len(there.targets), there.seeds, there.profile) == (16, here.seeds, here.profile)


def test_a_row_is_compared_with_the_reference_or_with_the_first_of_its_method(scripts: Any) -> None:
    table = scripts("methods_table").Table
    labels = ["ap, student", "ap, pool", "esd, student", "esd, pool"]
    assert [table("options").against(label, labels) for label in labels] == [
        "ap, student",
        "ap, student",
        "esd, student",
        "esd, student",
    ]
    assert table("methods", "ap").against("uce", ["ap", "uce"]) == "ap"


def test_the_tables_of_results_count_the_images_of_the_records(scripts: Any, tmp_path: Path) -> None:
    """Three targets; two training seeds of what has one. 8 near, 4 trap and 8 far cases of each, all right before the erasure."""
    from_bench = scripts("from_bench")
    entrants = {"ap": {"method": "ap"}, "uce": {"method": "uce"}, "noise": {"trivial": "noise", "of": "ap"}}
    store = bench_of(tmp_path / "bench", entrants, {"uce": {"near": 0.0, "synonym": 0.0}, "noise": {"invalid": 1.0}})
    table = replace(from_bench.METHODS["methods"], margin=0.1)
    found = from_bench.methods_result(*from_bench.read(store.folder, "test"), table)
    near = {label: (rates["near"]["k"], rates["near"]["n"]) for label, rates in found["rates"].items()}
    assert near == {"none": (24, 24), "ap": (48, 48), "uce": (0, 48), "noise": (0, 24)}, "an invalid image preserves nothing"
    direct = {label: rates["direct"]["k"] for label, rates in found["rates"].items()}
    assert direct == {"none": 0, "ap": 72, "uce": 72, "noise": 0}, "an invalid image is not erased"
    assert found["cost"]["ap"] == {"evals": 100, "seconds": 60.0}
    ((name, minus),) = found["minus"].items()
    assert (name, minus["against"]) == ("uce", "ap")
    assert minus["kept"]["difference"] == pytest.approx(8 / 12), "near is lost, trap is kept"
    assert minus["erased"]["difference"] == pytest.approx(4 / 20), "synonyms bring it back"
    assert minus["far"]["difference"] == 0
    page = scripts("methods_table").markdown(found)
    assert "| uce | 100% | 0% | 100% | 0% | 100% | 100% |" in page
    assert "| ap | uce |" in page
    assert "not shown |" in page, "synonyms are worse by more than the margin"
    assert found["matched"] == {}, "one strength is no curve"


def test_a_part_of_a_plan_makes_no_table(scripts: Any, tmp_path: Path) -> None:
    from_bench = scripts("from_bench")
    store = Store(tmp_path)
    with pytest.raises(BadFile, match="holds no bench"):
        from_bench.read(tmp_path, "methods")
    place = {"key": "k", "kind": "evaluate", "entrant": "none", "model": "mini", "targets": ["dog"], "seed": 0}
    store.keep_plan("methods", {"name": "methods", "places": [place], "plan": {}})
    with pytest.raises(BadFile, match="1 cells of methods are not finished"):
        from_bench.read(tmp_path, "methods")
    with pytest.raises(BadFile, match="holds no plan 'robust', but methods"):
        from_bench.read(tmp_path, "robust")


def test_packed_records_are_the_records(scripts: Any, tmp_path: Path) -> None:
    kept = scripts("kept")
    store = bench_of(tmp_path / "bench", {"uce": {"method": "uce"}}, {})
    assert kept.keep(store.folder, "test", tmp_path / "kept") == len(store.records())
    assert Store(tmp_path / "kept").records() == store.records()
    assert Store(tmp_path / "kept").plans() == store.plans()
    packed = tmp_path / "kept" / "records" / "test.jsonl.xz"
    before = packed.read_bytes()
    kept.keep(tmp_path / "kept", "test", tmp_path / "kept")
    assert packed.read_bytes() == before, "the same records are the same file"
    for damaged in (before[:-9], b"no archive"):
        packed.write_bytes(damaged)
        with pytest.raises(BadFile, match="cannot be unpacked"):
            Store(tmp_path / "kept").records()
    packed.write_bytes(lzma.compress(b"{}\n"))
    with pytest.raises(BadFile, match="no record of efface bench"):
        Store(tmp_path / "kept").records()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "controls" else pytest.mark.slow) for name in sorted(MADE_FROM)]
)
def test_the_tables_of_the_pages_come_out_of_the_committed_records(
    scripts: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Word by word, with the files of every count and interval; what was there before is taken away first."""
    script, first, page = MADE_FROM[name]
    shutil.copytree(DOCS / "tables", tmp_path / "tables")
    for file in (tmp_path / "tables").glob("*.csv"):
        file.write_text("")
    tables = re.compile(r"(?<=<!-- )([\w-]+)( -->\n)(.*?)(?=<!-- /\1 -->)", re.DOTALL)
    before = (DOCS / page).read_text("utf-8")
    (tmp_path / page).write_text(tables.sub(r"\1\2", before), "utf-8")
    folders = [str(KEPT / n) for n in name.split("+")]
    monkeypatch.setattr(sys, "argv", [script, *first.split(), *folders, "--docs", str(tmp_path / page)])
    scripts(script).main()
    made = {marker: text for marker, _, text in tables.findall((tmp_path / page).read_text("utf-8")) if text}
    assert made
    assert made.items() <= {marker: text for marker, _, text in tables.findall(before)}.items()
    written = [file for file in (tmp_path / "tables").glob("*.csv") if file.read_text("utf-8")]
    assert bool(written) == (name != "flow"), "the table of flow.py has its intervals in its cells"
    for file in written:
        assert file.read_text("utf-8") == (DOCS / "tables" / file.name).read_text("utf-8"), file.name


def test_every_committed_record_has_its_table() -> None:
    named = {n for name in MADE_FROM for n in name.split("+")}
    assert {*named, "debias"} == {folder.name for folder in KEPT.iterdir()}


def test_the_prior_without_the_judged_names_has_every_other_name_and_none_of_them() -> None:
    """Of the plan closed-form-few: near, trap and far of both of its sets. A suite that changes makes the file anew."""
    world, plan = load_world(), read_plan(PLANS / "closed-form-few.toml")
    suites = [suite_for(load_model("mini"), group) for group in plan.targets]
    judged = {n.name for suite in suites for group in (suite.near, suite.trap, suite.far) for n in group}
    names = [n for n in world.names("ordinary", "reserved") if n not in judged]
    assert (PLANS / "closed-form-prior.txt").read_text("utf-8").split("\n") == [*names, ""]


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
    from_bench = scripts("from_bench")
    store = bench_of(
        tmp_path / "bench",
        {"esd": {"method": "esd"}, "guarded": {"guard": "negative"}},
        {"guarded": {"direct": 1.0, "unlearndiff": 1.0}},
    )
    page = tmp_path / "page.md"
    monkeypatch.setattr(from_bench, "ABREAST", 2)
    page.write_text("before\n<!-- attacks -->\n<!-- /attacks -->\nafter\n")
    monkeypatch.setattr(sys, "argv", ["from_bench.py", "attacks", str(store.folder), "--plan", "test", "--docs", str(page)])
    from_bench.main()
    text = page.read_text()
    assert "| attack | tier | `none` | `esd` |\n" in text
    assert "| `unlearndiff` | T4 | 24/24, +0 | 0/48, +0 |\n" in text
    assert "| attack | tier | `guarded` |\n" in text
    assert "| `unlearndiff` | T4 | 24/24, +100 |\n" in text
    assert text.count(" (control) |") == 2, "one control, in both tables"
    assert (tmp_path / "tables" / "page_attacks.csv").read_text().count("\n") == 1 + 3 * 3


SMALL = {"direct": 6, "synonym": 2, "implicit": 2, "near": 6, "trap": 2, "far": 4}


def printed(scripts: Any, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str) -> Any:
    """What a script prints with --json."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *args, "--json"])
    scripts(name).main()
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_a_bench_of_defences_makes_its_tables_and_its_picture(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = {
        "targets": ["panda", "dog"],
        "attack_budget": 60,
        "attack_cases": 2,
        "profile": {"name": "table", "steps": 4, "guidance": 4.0, "cases": SMALL},
        "entrants": {"gold": {"gold": True}, "negative": {"guard": "negative"}, "uce": {"method": "uce"}},
        "attacks": {"synonym": {}, "unlearndiff": {}},
    }
    folder = str(tmp_path / "bench")
    assert verbs.bench(plan_of(raw, "robust"), out=folder)["failed"] == {}
    speed, sheet = tmp_path / "ms.json", tmp_path / "defences.png"
    found = printed(scripts, "defences", monkeypatch, capsys, folder, "--out", str(speed), "--picture", str(sheet))
    assert json.loads(speed.read_text()) == found
    assert set(found["extra"]) == {"none", "gold", "negative", "uce"}
    assert found["plain"] > 0
    with Image.open(sheet) as image:
        assert image.size == (130 + 56 * 22, 16 + 56 * 3), "the gold model knows dogs, so it has no row"
    page, records = tmp_path / "page.md", tmp_path / "records.json"
    page.write_text("<!-- robust -->\n<!-- /robust -->\n")
    more = ("--reference", "uce", "--milliseconds", str(speed), "--records", str(records), "--docs", str(page))
    result = printed(scripts, "from_bench", monkeypatch, capsys, "robust", folder, *more)
    guarded, edited = result["defences"]["negative"], result["defences"]["uce"]
    assert set(guarded["single"]) >= {"direct", "synonym", "unlearndiff", "random_token", "seed_search"}
    assert edited["direct"]["n"] == guarded["direct"]["n"] > 6
    assert 0 < edited["attacked"]["n"] <= 4
    assert (guarded["cost"], edited["cost"]["evals"]) == (None, 0)
    assert set(result["minus"]) == {"negative"}
    assert f"| uce | 2 | {edited['cost']['seconds']:.0f} | {found['extra']['uce']:+.1f} |" in page.read_text()
    cell = json.loads(records.read_text())["uce"]["panda|0"]
    assert {axis: len(cases) for axis, cases in cell["cases"].items()}["direct"] == SMALL["direct"]


@pytest.mark.slow
def test_a_bench_of_methods_makes_files_of_every_rank(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = {
        "targets": ["dog"],
        "profile": {"name": "table", "steps": 4, "guidance": 4.0, "cases": SMALL},
        "entrants": {"realera": {"method": "realera"}},
    }
    folder = str(tmp_path / "bench")
    assert verbs.bench(plan_of(raw, "methods-robust"), out=folder)["failed"] == {}
    rows = printed(scripts, "export", monkeypatch, capsys, folder, "--methods", "realera")["rows"]
    whole, small = rows["realera, 0.001"], rows["realera, 0.1"]
    assert whole["less_erased"]["difference"] == whole["less_kept"]["difference"] == 0
    assert small["bytes"][0] < whole["bytes"][0] / 4


def test_both_miniatures_are_compared_on_the_same_cases(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two models that answer alike have the same order."""
    entrants = {"ap": {"method": "ap"}, "uce": {"method": "uce"}, "esd": {"method": "esd"}}
    rates = {"uce": {"near": 0.0, "trap": 0.0, "direct": 0.2}, "esd": {"near": 0.5, "trap": 0.5, "direct": 0.7}}
    store = bench_of(tmp_path / "bench", entrants, rates, attacked=False)
    manifest = json.loads(store.manifest("test").read_text())
    manifest["plan"]["models"] = ["mini", "twin"]
    manifest["places"] += [{**p, "model": "twin"} for p in manifest["places"]]
    store.keep_plan("flow", {**manifest, "name": "flow"})
    found = printed(scripts, "flow", monkeypatch, capsys, str(store.folder))
    assert {side: (t["tau"], t["methods"], t["targets"]) for side, t in found["tau"].items()} == {
        "erased": (1.0, 3, 3),
        "preserved": (1.0, 3, 3),
    }
    kept = {name: rates["preserved"]["k"] for name, rates in found["rates"]["twin"].items()}
    assert kept["ap"] == 72 > kept["esd"] > kept["uce"] == 0


@pytest.mark.slow
def test_a_bench_of_closed_form_edits_says_what_is_kept_and_what_comes_back(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One concept and two, by an edit that can be undone and one that is sealed."""
    raw = {
        "attack_budget": 8,
        "attack_cases": 4,
        "profile": {"name": "closed-form", "steps": 4, "guidance": 4.0, "cases": SMALL},
        "entrants": {"uce": {"method": "uce"}, "sealed": {"method": "uce", "preset": "sealed"}},
        "attacks": {"inverse": {"controls": False}},
    }
    folder = str(tmp_path / "bench")
    for name, targets in (("closed-form-few", ["dog"]), ("closed-form-many", [["dog", "castle"]])):
        assert verbs.bench(plan_of({**raw, "targets": targets}, name), out=folder)["failed"] == {}
    page = tmp_path / "page.md"
    page.write_text("<!-- mini -->\n<!-- /mini -->\n")
    table = printed(scripts, "at_once", monkeypatch, capsys, "mini", folder, "--docs", str(page))["table"]
    assert {n: list(rows) for n, rows in table.items()} == {n: ["none", "uce", "sealed"] for n in ("1", "2")}
    one, two = table["1"], table["2"]
    assert (one["none"]["direct"]["k"], one["none"]["near"]["k"]) == (0, one["none"]["near"]["n"])
    assert one["uce"]["edit"]["condition"] > 10
    assert one["sealed"]["edit"]["condition"] is None
    assert 0 < one["uce"]["comes back"]["n"] <= 4 < two["uce"]["comes back"]["n"] <= 8
    assert "**2 concepts at once**" in page.read_text()


@needs_icons
@pytest.mark.slow
def test_debiasing_is_measured_by_names(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    debias = scripts("debias")
    rows = printed(scripts, "debias", monkeypatch, capsys, "--quick", "--out", str(tmp_path))
    row = rows["teacher"]
    assert sum(row["before"][k] for k in ("man", "woman")) > 0.75 * row["before"]["n"] == 9
    assert row["before"]["n"] == row["after"]["n"] == 12
    assert row["others"][0] <= row["others"][1] <= 12
    if debias.nearest(row["tried"], 0.5) == 0:
        assert row["after"] == row["before"], "an alpha of 0 is no edit"
    stamp = (tmp_path / "quick" / "teacher.json").stat().st_mtime_ns
    printed(scripts, "debias", monkeypatch, capsys, "--quick", "--out", str(tmp_path))
    assert (tmp_path / "quick" / "teacher.json").stat().st_mtime_ns == stamp, "what is finished is not made again"


@needs_icons
@pytest.mark.slow
def test_the_table_of_debiasing_comes_out_of_the_committed_counts(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "kinds.md"
    page.write_text("<!-- debias -->\n<!-- /debias -->\n")
    monkeypatch.setattr(sys, "argv", ["debias.py", "--out", str(KEPT / "debias"), "--docs", str(page)])
    scripts("debias").main()
    assert page.read_text("utf-8") in (DOCS / "kinds.md").read_text("utf-8")
    name = "kinds_debias.csv"
    assert (tmp_path / "tables" / name).read_text("utf-8") == (DOCS / "tables" / name).read_text("utf-8")


def test_the_balance_of_two_attributes(scripts: Any) -> None:
    debias = scripts("debias")
    assert [debias.balance({"man": a, "woman": b}) for a, b in ((5, 5), (9, 3), (0, 4), (0, 0))] == [0, 0.5, 1, 1]
    tried = [{"alpha": 0.0, "k": 16, "n": 16, "verdict": "above"}, {"alpha": -0.5, "k": 9, "n": 16, "verdict": "undecided"}]
    assert debias.nearest(tried, 0.5) == -0.5
    row = {"before": {"man": 9, "woman": 3, "n": 12, "invalid": 0}, "after": {"man": 6, "woman": 5, "n": 12, "invalid": 1}}
    left = {"before": row["before"], "why": "the unmodified model draws neither clearly"}
    page = debias.markdown({"doctor": {**row, "tried": tried, "others": [7, 8]}, "cook": left})
    assert "| a doctor | 9, 3 | 6, 5 | 12 | -0.50 | 7/8 |" in page
    assert "| a cook | 9, 3 |  | 12 | no edit |  |" in page
    assert "In 1 of 1 edited occupations" in page
    assert debias.sheets({"cook": left})[""].splitlines()[1].endswith("the unmodified model draws neither clearly")


def paired(axis: str, case: str, hit: bool, base: bool = True) -> Any:
    return SimpleNamespace(axis=axis, case_id=case, hit=hit, valid=True), SimpleNamespace(hit=base)


def test_rankings_of_two_worlds_rest_on_the_cases_that_all_methods_have(scripts: Any) -> None:
    rankings = scripts("rankings")
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
    assert rankings.rates(rankings.tables(one, methods), None).tolist() == [1.0, 0.5, 0.0]
    same = rankings.agreement([one, one], methods)
    assert same["tau"] == same["high"] == 1
    assert same["targets"] == [3, 3]
    assert rankings.agreement([one, rankings.successes(found, ("trap",))], methods)["tau"] is None, "no case orders nothing"
    other = rankings.successes({m: found[n] for m, n in zip(methods, reversed(methods), strict=True)}, ("near",))
    assert rankings.agreement([one, other], methods)["tau"] == -1
    assert rankings.agreement([one, rankings.successes(dict.fromkeys(methods, found["good"]), ("near",))], methods)["tau"] is None
