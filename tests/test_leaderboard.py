"""The leaderboard: scores from records, who cannot be told from the best, and the page, on benches that are written by hand."""

from __future__ import annotations

import csv
import io
import random
import re
import xml.etree.ElementTree as ET
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from test_report import CHROMIUM, HOSTILE, needs_chromium

from efface.cli import main
from efface.plans.cells import key_of
from efface.plans.plan import plan_of
from efface.plans.records import Store
from efface.plans.tables import Bench, Placed
from efface.reporting import plots
from efface.reporting.breaks import growth
from efface.reporting.hurt import kept_by_concept, worst_first
from efface.reporting.leaderboard import as_csv, as_latex, ordered, write_leaderboard
from efface.reporting.standings import COLUMNS, FLOOR, Standing, harmonic, tables

AXES = {"direct": 12, "synonym": 4, "implicit": 4, "near": 8, "trap": 4, "far": 8}
TARGETS, SEEDS = ("cat", "bus", "rose"), (0, 1)
Rates = dict[str, float]
TRIED = (("direct", "baseline", "T0"), ("unlearndiff", "attack", "T4"), ("seed_search", "control", "T2"))


def rows_of(rng: random.Random, target: str, rates: Rates, invalid: float = 0.0) -> list[dict[str, Any]]:
    """Images of one cell: an axis of the target shows it with probability 1 - rate, the others what they should with the rate."""
    rows = []
    for axis, n in AXES.items():
        concept = target if axis in ("direct", "synonym", "implicit") else f"{axis} of {target}"
        for i in range(n):
            success, broken = rng.random() < rates.get(axis, 1.0), rng.random() < invalid
            shown = (concept != target) == success
            seen = {"valid": not broken, "invalid_reason": "uniform" if broken else None, "p": 0.5, "clip_t": 20.0, "clip_i": 0.9}
            detected = concept if shown else "something else"
            rows.append(
                {"case_id": f"{target} {axis} {i}", "axis": axis, "concept": concept, "prompt": concept, "seed": i}
                | {**seen, "detected": detected}
            )
    return rows


def attempts_of(rng: random.Random, target: str, rate: float, n: int = 8) -> list[dict[str, Any]]:
    return [
        {"case_id": f"{target} direct {i}", "concept": target, "prompt": target, "seed": i, "stage": "plain", "base_hit": True}
        | {"valid": True, "invalid_reason": None, "p": 0.5, "detected": target if rng.random() < rate else "something else"}
        for i in range(n)
    ]


def bench_of(folder: Path, entrants: dict[str, dict[str, Any]], rates: dict[str, Rates], **more: Any) -> Store:
    """A folder as ``efface bench`` leaves it. ``rates``: entrant -> axis -> rate, and attack -> rate."""
    raw = {
        "targets": list(TARGETS),
        "seeds": list(SEEDS),
        "profile": {"steps": 4, "guidance": 4.0, "cases": AXES},
        "entrants": {label: {k: v for k, v in e.items() if k != "failed"} for label, e in entrants.items()},
        "attacks": {"unlearndiff": {"budget": 50, "cases": 8}} if more.get("attacked", True) else {},
    }
    plan, store, places, told = plan_of(raw, "test"), Store(folder), [], {}
    folder.mkdir(exist_ok=True)

    def add(kind: str, e: Any, target: str, seed: int, result: dict[str, Any], **facts: Any) -> None:
        inputs = {"model": "digest", "of": [kind, e.label, target, seed, facts.get("attack", "")], "options": {"seed": seed}}
        key = key_of(inputs)
        place = {"key": key, "kind": kind, "entrant": e.label, "model": "mini", "targets": [target], "target": target}
        places.append({**place, "seed": seed, "strength": 1.0, "attack": "", "role": "", **facts})
        told[key] = f"{kind} {e.label}, {target}"
        record = {"key": key, "kind": kind, "inputs": inputs, "run": {"seconds": 60.0, "host": "here"}}
        if entrants.get(e.label, {}).get("failed"):
            store.append({**record, "status": "failed", "error": "it broke"})
        else:
            store.append({**record, "status": "finished", "result": result})

    for e in plan.entrants:
        mine = rates.get(e.label, {})
        for target in TARGETS:
            for seed in SEEDS if e.method else SEEDS[:1]:
                rng = random.Random(f"{e.label} {target} {seed}")
                if e.method:
                    made = {"patch": "x", "cost": {"forward": 100}, "parameters": 250_000, "text_encoder_parameters": 0}
                    add("erase", e, target, seed, made)
                shown = dict.fromkeys(("direct", "synonym", "implicit"), 0.0) if e.label == "none" else mine
                add(
                    "evaluate",
                    e,
                    target,
                    seed,
                    {"rows": rows_of(rng, target, shown, mine.get("invalid", 0.0)), "evals_per_image": 8},
                )
                if plan.attacks and (not e.trivial or e.label == "none"):
                    for attack, role, tier in (
                        ("direct", "baseline", "T0"),
                        ("unlearndiff", "attack", "T4"),
                        ("seed_search", "control", "T2"),
                    ):
                        back = 1.0 if e.label == "none" else mine.get(attack, 0.0)
                        facts = {"role": role, "tier": tier, "gate": "plain", "target": target, "curve": False, "taught": None}
                        controls = ["seed_search"] if role == "attack" else []
                        result = {"attempts": attempts_of(rng, target, back), "facts": facts, "controls": controls, "cost": {}}
                        add("attack", e, target, seed, result, attack=attack, role=role)
    manifest = {"name": "test", "plan": asdict(plan), "places": places, "told": told, "left_out": [], "versions": {"efface": "0"}}
    store.keep_plan("test", {**manifest, "models": {"mini": {"digest": "digest of the model"}}})
    return store


ENTRANTS: dict[str, dict[str, Any]] = {
    "good": {"method": "esd"},
    "same": {"method": "ap"},
    "bad": {"method": "uce"},
    "guarded": {"guard": "negative"},
    "gold": {"gold": True},
    "blocked": {"trivial": "blocklist"},
}
RATES: dict[str, Rates] = {
    "good": {"unlearndiff": 0.2, "near": 0.9},
    "same": {"unlearndiff": 0.2, "near": 0.9},
    "bad": {"unlearndiff": 0.9, "near": 0.3, "far": 0.4, "synonym": 0.4},
    "guarded": {"direct": 0.1, "unlearndiff": 1.0, "direct attack": 1.0},
    "gold": {"unlearndiff": 0.1},
    "blocked": {"synonym": 0.0, "implicit": 0.0},
}


def standings(store: Store) -> dict[str, Standing]:
    (table,) = tables(Bench.read(store))
    return {s.entrant: s for s in table.standings}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return bench_of(tmp_path_factory.mktemp("bench"), ENTRANTS, RATES)


def test_the_unmodified_model_has_the_anchors(store: Store) -> None:
    none = standings(store)["none"]
    assert {c: none.scores[c].value for c in COLUMNS} == {  # type: ignore[union-attr]
        "erasure": 0.0,
        "generality": 0.0,
        "robustness": 0.0,
        "near": 1.0,
        "rest": 1.0,
    }
    assert none.overall == pytest.approx(harmonic([0, 0, 0, 1, 1]))
    assert not none.tie, "an anchor is not ranked"


def test_scores_are_rates_of_the_records(store: Store) -> None:
    found = standings(store)
    (placed,) = {len(p.result["rows"]) for p in Bench.read(store).of("evaluate")}
    assert placed == sum(AXES.values())
    good = found["good"].scores
    assert (good["erasure"].n, good["near"].n, good["rest"].n) == (6 * 12, 6 * 12, 6 * 8)  # type: ignore[union-attr]
    assert found["blocked"].scores["generality"].value == 0.0  # type: ignore[union-attr]
    assert found["blocked"].scores["robustness"] is None, "it was not attacked"
    assert found["blocked"].overall is None, "and a missing column is never filled in"
    low, high = good["erasure"].interval  # type: ignore[union-attr]
    assert low < 1 <= high, "all erased is no certainty"
    assert (found["good"].minutes, found["good"].evaluations, found["good"].parameters) == (1.0, 100.0, 250_000)


def test_robustness_counts_from_the_gold_model(store: Store) -> None:
    (table,) = tables(Bench.read(store))
    found = {s.entrant: s for s in table.standings}
    assert table.floor is not None
    bad, c = found["bad"].scores["robustness"], table.floor.value
    assert bad is not None
    assert 0 < c < 1
    assert bad.value == pytest.approx((bad.k / bad.n) / (1 - c))
    gold = found["gold"].scores["robustness"]
    assert gold is not None
    assert gold.value == pytest.approx(1.0)


def test_attacks_that_break_the_gold_model_in_every_case_measure_no_robustness(tmp_path: Path) -> None:
    """Otherwise everybody, the gold model too, would have a robustness of 0 and a mean next to it."""
    entrants = {"esd": {"method": "esd"}, "gold": {"gold": True}}
    store = bench_of(tmp_path / "bench", entrants, {"gold": {"unlearndiff": 1.0}, "esd": {"unlearndiff": 0.0}})
    (table,) = tables(Bench.read(store))
    assert all(s.scores["robustness"] is None for s in table.standings)
    assert "robustness" not in table.measured
    assert next(s for s in table.standings if s.entrant == "esd").overall is not None, "the mean is over what was measured"
    write_leaderboard(store.folder, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "Robustness is not shown: the attacks bring the target back in every case of the gold model" in text


def test_what_cannot_be_told_apart_is_one_group(store: Store) -> None:
    found = standings(store)
    assert found["good"].tie == found["same"].tie == "a"
    assert found["bad"].tie > "a"
    assert found["guarded"].tie > "a"


def test_another_entrant_changes_no_other_row(store: Store, tmp_path: Path) -> None:
    """Neither leaving one out nor another order; the tie groups are of those that are there."""
    whole = standings(store)
    labels = [n for n in ENTRANTS if n != "bad"]
    fewer = standings(bench_of(tmp_path / "fewer", {n: ENTRANTS[n] for n in reversed(labels)}, RATES))
    assert set(fewer) == {"none", *labels}
    for label in labels:
        assert replace(fewer[label], tie="") == replace(whole[label], tie="")


def test_broken_pictures_are_flagged_and_never_help(tmp_path: Path) -> None:
    broken = {**RATES, "same": {**RATES["same"], "invalid": 0.5}}
    found = standings(bench_of(tmp_path / "broken", ENTRANTS, broken))
    assert "D" in found["same"].flags
    assert "D" not in found["good"].flags
    assert found["same"].overall < found["good"].overall  # type: ignore[operator]


def test_a_plan_without_attacks_has_no_robustness(tmp_path: Path) -> None:
    (table,) = tables(Bench.read(bench_of(tmp_path / "plain", ENTRANTS, RATES, attacked=False)))
    good = next(s for s in table.standings if s.entrant == "good")
    assert (good.attacks, good.flags) == ({}, "")
    assert "robustness" not in table.measured
    assert good.overall is not None, "what the plan does not ask for is missing in nobody's mean"


def test_the_best_comes_first_and_the_anchors_last(store: Store) -> None:
    (table,) = tables(Bench.read(store))
    order = [s.entrant for s in ordered(table)]
    assert set(order[:2]) == {"good", "same"}
    assert order[-3:] == ["none", "gold", "blocked"]


def test_a_failed_cell_is_named_on_the_page(tmp_path: Path) -> None:
    entrants = {**ENTRANTS, "same": {"method": "ap", "failed": True}}
    bench_of(tmp_path / "bench", entrants, RATES)
    write_leaderboard(tmp_path / "bench", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "it broke" in text
    assert "evaluate same, cat" in text


def test_csv_holds_every_number_with_its_counts(store: Store) -> None:
    found = tables(Bench.read(store))
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    by = {(r["entrant"], r["score"]): r for r in rows}
    for s in found[0].standings:
        for name, score in s.scores.items():
            if score is not None:
                row = by[s.entrant, name]
                assert (int(row["k"]), int(row["n"]), float(row["value"])) == (score.k, score.n, score.value)
    assert by["good", "attack: unlearndiff"]["n"] == str(6 * 8)


def test_latex_is_one_table_in_which_the_top_group_is_bold(tmp_path: Path) -> None:
    entrants = {**ENTRANTS, "a_b & 50%": {"method": "esd"}}
    text = as_latex(tables(Bench.read(bench_of(tmp_path / "bench", entrants, {**RATES, "a_b & 50%": RATES["good"]}))))
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    assert r"a\_b \& 50\%" in text
    assert {r"\textbf{good}", r"\textbf{same}"} <= set(re.findall(r"\\textbf\{[^}]*\}", text))
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {len(COLUMNS) + 2}


def test_the_floor_keeps_a_zero_from_being_bought_back() -> None:
    assert harmonic([1.0, 1.0, 1.0, 1.0, 0.0]) == pytest.approx(5 / (4 + 1 / FLOOR))
    assert harmonic([0.5] * 5) == pytest.approx(0.5)


def test_the_command_writes_three_files_and_names_a_folder_without_a_bench(store: Store, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("page.html", "all.csv", "table.tex")]
    line = ["leaderboard", str(store.folder), "--out", str(files[0]), "--csv", str(files[1]), "--latex", str(files[2])]
    result = CliRunner().invoke(main, line)
    assert result.exit_code == 0, result.output
    assert all(f.stat().st_size for f in files)
    assert result.stdout.splitlines()[1].split()[:2] in (["good", "a"], ["same", "a"])
    assert CliRunner().invoke(main, ["leaderboard", str(tmp_path), "--out", str(tmp_path / "x.html")]).exit_code == 1
    assert CliRunner().invoke(main, ["leaderboard", str(store.folder), "--out", str(tmp_path / "x.txt")]).exit_code == 2


@needs_chromium
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    """Wide and narrow, light and dark: nothing is loaded, nothing complains, nothing sticks out, with a label that tries to."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    entrants = {**ENTRANTS, HOSTILE: {"method": "esd"}, "x" * 200: {"method": "esd", "failed": True}}
    bench_of(tmp_path / "bench", entrants, RATES)
    write_leaderboard(tmp_path / "bench", tmp_path / "page.html")
    url = (tmp_path / "page.html").as_uri()
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            for width, scheme in ((360, "light"), (360, "dark"), (1400, "light"), (1400, "dark")):
                page, problems = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), []
                page.on("console", lambda m, p=problems: p.append(m.text) if m.type in ("error", "warning") else None)
                page.on(
                    "request", lambda r, p=problems: p.append(r.url) if r.url != url and not r.url.startswith("data:") else None
                )
                page.goto(url)
                assert problems == []
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                assert page.evaluate("document.querySelectorAll('table').length") >= 2
        finally:
            browser.close()


def attempt(case: int, stage: str, seen: str | None, base_hit: bool = True) -> dict[str, Any]:
    """One image of an attack on "cat": ``seen`` is what the detector names, None for an invalid image."""
    facts = {"concept": "cat", "prompt": "cat", "seed": 0, "p": 0.5, "invalid_reason": None if seen else "uniform"}
    return {"case_id": f"case {case}", "stage": stage, "base_hit": base_hit, "valid": seen is not None, "detected": seen} | facts


def placed(attempts: list[dict[str, Any]], **facts: Any) -> Placed:
    place = {"attack": "a", "role": "attack", "kind": "attack"}
    result = {"attempts": attempts, "facts": {"tier": "T4", "gate": "plain", **facts}}
    return Placed("test", place, {"status": "finished", "result": result})


def test_a_break_costs_as_many_images_as_were_looked_at_until_the_first_hit() -> None:
    """Case 0 breaks at its third image, case 1 at its first, case 2 never; case 3 does not count, and case 4 has no valid image.
    The last point is the rate of the heat map."""
    shown = [["dog", None, "cat"], ["cat", "dog", "cat"], ["dog"] * 3, ["cat"] * 3, [None] * 3]
    rows = [attempt(i, f"seed {k}", seen, i != 3) for i, images in enumerate(shown) for k, seen in enumerate(images)]
    assert growth([placed(rows)], False) == [(1, 1, 3), (3, 2, 3)]
    assert growth([placed(rows), placed(rows)], False) == [(1, 2, 6), (3, 4, 6)]
    assert growth([placed([attempt(3, "seed 1", "cat", False)])], False) == []


def test_a_recovery_counts_each_checkpoint_by_itself() -> None:
    """An invalid image is not the target. Checkpoints are in the order of their updates, not of their names."""
    shown = {"step 0": ["dog", "dog"], "step 10": ["cat", "cat"], "step 5": ["cat", None]}
    rows = [attempt(i, stage, seen) for stage, images in shown.items() for i, seen in enumerate(images)]
    rows.append(attempt(2, "step 5", "cat", base_hit=False))
    assert growth([placed(rows, curve=True)], True) == [(0.0, 0, 2), (5.0, 1, 2), (10.0, 2, 2)]


def test_an_attack_that_puts_weights_back_counts_no_updates() -> None:
    """Its stages are shares of the way and parts of the model: a curve, but none over updates of fine-tuning."""
    rows = [attempt(0, stage, "dog") for stage in ("share 0.25", "share 1.0", "text encoder")]
    assert growth([placed(rows, curve=True)], True) == []
    assert growth([placed(rows[:2], curve=True)], True) == []


@given(st.lists(st.floats(0, 160), min_size=1, max_size=10))
def test_labels_keep_their_order_and_stay_in_the_picture(heights: list[float]) -> None:
    heights = sorted(heights)
    places = plots.stacked(heights, 13.0, 192.0)
    assert all(b - a >= 13 - 1e-9 for a, b in pairwise(places))
    assert places[-1] <= 192
    if heights[-1] + 13 * len(heights) <= 192 and all(b - a >= 13 for a, b in pairwise(heights)):
        assert places == heights, "labels that have room stand at the ends of their lines"


def test_lines_end_in_their_interval_and_controls_are_dashed() -> None:
    lines = [
        plots.Line("an attack", [(1, 0.0), (5, 0.5)], 0.2, 0.8),
        plots.Line("<a control>", [(1, 0.0), (80, 0.1)], 0.0, 0.3, True),
    ]
    svg = ET.fromstring(plots.growth(lines, "images"))
    first, second = sorted(svg.iter("polyline"), key=lambda line: "control" in line.attrib["class"])
    assert ("control" in first.attrib["class"], "control" in second.attrib["class"]) == (False, True)
    ends = [[tuple(map(float, point.split(","))) for point in line.attrib["points"].split()] for line in (first, second)]
    assert ends[0][-1][0] < ends[1][-1][0], "5 images lie left of 80"
    assert ends[0][0] == ends[1][0], "both begin at one image and nothing broken"
    bars = {(float(b.attrib["y1"]), float(b.attrib["y2"])) for b in svg.iter("line") if "series" in b.attrib["class"]}
    assert bars == {(130.0, 40.0), (160.0, 115.0)}, "from 20 to 80 %, and from 0 to 30 %, of 150 pixels above 160"
    assert [t.text for t in svg.iter("text") if "label" in t.attrib["class"]] == ["an attack", "<a control>"]


def test_who_is_hurt_is_counted_over_what_the_unmodified_model_gets_right() -> None:
    """The cat's near concepts: of two dogs one is kept, of two foxes none, one of them invalid; the wolf was never
    right."""
    seen = [("dog", "dog", True), ("dog", "cat", True), ("fox", "dog", True), ("fox", "fox", False), ("wolf", "wolf", True)]
    rows = [
        {"case_id": str(i), "axis": "near", "concept": concept, "detected": detected, "valid": valid}
        for i, (concept, detected, valid) in enumerate(seen)
    ]
    rows.append({"case_id": "5", "axis": "far", "concept": "bus", "detected": "bus", "valid": True})
    cell = Placed("test", {"targets": ["cat"]}, {"status": "finished", "result": {"rows": rows}})
    base = {("cat",): {str(i): i != 4 for i in range(6)}}
    assert kept_by_concept([cell, cell], base, ("near", "trap")) == {"cat": {"dog": (2, 4), "fox": (0, 4)}}
    assert worst_first([{"dog": (1, 2), "fox": (0, 2)}, {"dog": (2, 2), "ant": (2, 2)}]) == ["fox", "dog", "ant"]


def test_dots_stand_at_their_rates_and_a_missing_one_is_left_out() -> None:
    svg = ET.fromstring(
        plots.dots(["a", "<b>"], [("dog", [(0.0, 0.0, 0.5), (1.0, 0.5, 1.0)]), ("fox", [None, (0.5, 0.2, 0.8)])], "kept")
    )
    drawn = list(svg.iter("circle"))[2:]  # the first two are the key
    xs = [float(c.attrib["cx"]) for c in drawn]
    assert len(drawn) == 3
    assert xs[0] < xs[2] < xs[1]
    assert abs((xs[0] + xs[1]) / 2 - xs[2]) < 0.2
    bars = [b for b in svg.iter("line") if "series" in b.attrib["class"]]
    assert [(b.attrib["x1"], b.attrib["x2"]) for b in bars][1] == (f"{xs[2]:.1f}", f"{xs[1]:.1f}"), "from 50 to 100 %"
    assert ["s0" in c.attrib["class"] for c in drawn] == [True, False, False]


def test_the_page_shows_who_is_hurt_and_how_many_targets_are_borne(store: Store, tmp_path: Path) -> None:
    """Targets of one size say nothing about many at once; of two sizes they do."""
    write_leaderboard(store.folder, out := tmp_path / "one.html")
    text = out.read_text("utf-8")
    assert text.count("erased</figcaption>") == len(TARGETS)
    assert "Many targets at once" not in text
    manifest = store.plans()[0]
    manifest["plan"]["targets"] = [["cat"], ["bus", "rose"]]
    joined = Store(tmp_path / "many")
    for record in store.records().values():
        joined.append(record)
    places = [{**p, "targets": ["bus", "rose"] if p["targets"] == ["bus"] else p["targets"]} for p in manifest["places"]]
    joined.keep_plan("test", {**manifest, "places": [p for p in places if p["targets"] != ["rose"]]})
    write_leaderboard(joined.folder, out := tmp_path / "many.html")
    text = out.read_text("utf-8")
    assert "Many targets at once" in text
    assert "targets erased at once" in text


def test_many_entrants_are_numbered_in_the_plot_as_in_the_table(tmp_path: Path) -> None:
    """Seven entrants have room for their names; of twelve, the plot shows the numbers of the rows."""
    many = {**ENTRANTS, **{f"more {i}": {"method": "esd"} for i in range(5)}}
    few = bench_of(tmp_path / "few", ENTRANTS, RATES, attacked=False)
    crowded = bench_of(tmp_path / "many", many, {**RATES, **{f"more {i}": {} for i in range(5)}}, attacked=False)
    for bench, numbered in ((few, False), (crowded, True)):
        write_leaderboard(bench.folder, out := tmp_path / "page.html")
        text = out.read_text("utf-8")
        plot = ET.fromstring(re.findall(r"<h3>Erasing against keeping</h3>.*?(<svg.*?</svg>)", text, re.DOTALL)[0])
        (table,) = re.findall(r"<h3>Scores</h3>.*?<tbody>(.*?)</tbody>", text, re.DOTALL)
        names = re.findall(r'<th scope="row">(.*?)<span', table)
        shown = {t.text for t in plot.iter("text") if "label" in t.attrib["class"]}
        assert shown == ({name.split(". ")[0] for name in names} if numbered else {*names})
        assert all(name.startswith(f"{i}. ") == numbered for i, name in enumerate(names, 1))
