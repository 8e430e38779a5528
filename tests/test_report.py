"""The report: one page, nothing loaded, nothing invented, nothing broken by hostile names or missing pieces."""

from __future__ import annotations

import base64
import itertools
import json
import math
import random
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from efface.equations.statistics import wilson
from efface.errors import BadFile, BadOption
from efface.evaluation.records import AXES, TARGET_AXES, Entrant, RunFile, read_run, write_run
from efface.reporting import plots, verdict, write_report
from efface.reporting.wording import rate

KEPT = ("near", "trap", "far")
"""The axes to keep of an erased object."""
HOSTILE = "<script>alert('x')</script> \"quoted\" & <img src=https://evil.example/a.png>"
CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary on the PATH (apt-get install chromium)")
SRC = str(Path(__file__).parents[1] / "src")


def synthetic_axis(axis: str, success: float, n: int = 60, invalid: int = 0) -> dict[str, Any]:
    """An axis of summary.json whose headline rate is ``success``; two concepts on axes to keep."""
    target = axis in TARGET_AXES
    k = round(success * n)
    headline = wilson(k, n, invalid).json()
    concepts = ["cat"] if target else [f"{axis} a", f"{axis} b", f"{axis} c"]
    return {
        "want": "low" if target else "high",
        "n_cases": n + invalid,
        "detection": wilson(n - k if target else k, n, invalid).json(),
        "erased_valid": headline if target else None,
        "preserved": None if target else headline,
        "clustered": None if target else [max(0.0, success - 0.12), min(1.0, success + 0.04)],
        "difference": {"value": -success, "low": max(-1.0, -success - 0.1), "high": min(0.0, 0.08 - success), "p_value": 0.00004},
        "clip_t": {"value": -1.25, "low": -2.5, "high": 0.125},
        "clip_i": {"value": 0.875, "low": math.nan, "high": math.nan},
        "per_concept": {c: wilson(min(n // 3, round(success * (n // 3)) + i), n // 3).json() for i, c in enumerate(concepts)},
    }


def synthetic_folder(tmp_path: Path) -> Path:
    """A whole evaluation without a model: five entrants, six axes, icons for two of them, a log of AP's search."""
    folder, rng = tmp_path / "evaluation", random.Random(0)
    names = ["tiger", "lion", "dog", "a long concept name", "pig", "cow", "bus"]
    names += ["apple", "frog", "owl", "crab", "snail", "whale", "turtle"]
    weights = [40 / (i + 1) for i in range(len(names))]
    log = [
        {"step": s, "target": "cat", "concept": rng.choices(names, k=1, weights=weights)[0],
         "preserve": 0.01, "entropy": 2.6 * math.exp(-s / 80) + 0.2 * rng.random()}
        for s in range(0, 300, 2)
    ]  # fmt: skip
    card = {
        "method": "ap",
        "config": {"steps": 300, "lr": 1e-3, "train": "xattn", "temperature": 2.0, "seed": 0},
        "request": {"targets": ["cat"], "anchor": "", "preserve": names},
        "base": {"name": "mini", "parameters": 1_234_567, "digest": "ab12" * 16},
        "cost": {"forward": 81_234, "calls": 4_000, "backward": 600},
        "versions": {"python": "3.11.7", "efface": "0.1.0"},
        "log": {"adversarial": log},
        "tensors": 24,
        "parameters": 98_304,
        "norm": 3.14159,
    }
    entrants = [
        Entrant("ap", "AP, preset mini", "patch", card),
        Entrant("none", "base model", "trivial"),
        Entrant("noise", "noise of the same norm", "trivial"),
        Entrant("blocklist", "refuse prompts with the word", "trivial"),
        Entrant("gold", "never saw a cat", "gold"),
    ]
    prompts = {"direct": "a cat on blue", "near": "a tiger on white", "trap": "a cat's paw print", "far": "a bus on black"}
    prompts["synonym"] = "kitty"
    grid = [
        {"case_id": f"{axis}-{i}", "axis": axis, "concept": prompt, "prompt": prompt, "seed": i}
        for axis, prompt in prompts.items()
        for i in range(4 if axis in ("direct", "near") else 2)
    ]
    for entrant in ("none", "ap"):
        for case in grid:
            icon = Image.new("RGB", (48, 48), (70, 110, 200))
            colour = (240, 180, 60) if entrant == "none" or case["axis"] != "direct" else (90, 130, 210)
            ImageDraw.Draw(icon).ellipse((8, 8, 40, 40), fill=colour)
            path = folder / "images" / entrant / f"{case['case_id']}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            icon.save(path)
    run = RunFile(
        created="2026-11-23T04:00:00",
        model={"name": "mini", "digest": "ab12" * 16},
        targets=["cat"],
        profile={"name": "quick", "cases": 60, "command": "efface evaluate no-cat.safetensors --profile quick --out DIR"},
        entrants=entrants,
        suite={a: [{"name": f"{a} {c}", "source": "world.toml", "split": "report"} for c in "abc"] for a in KEPT},
        detectors={
            "report": {"name": "mini-report", "sensitivity": wilson(196, 200).json(), "false_positive": 0.004},
            "clip": {"name": "mini-clip"},
        },
        grid=grid,
        versions={"python": "3.11.7", "torch": "2.9.0"},
    )
    write_run(folder, run)
    success = {
        "ap": {"direct": 0.983, "synonym": 0.983, "implicit": 0.6, "near": 0.917, "trap": 0.8, "far": 0.983},
        "none": {axis: 0.0 if axis in TARGET_AXES else 1.0 for axis in AXES},
        "noise": {axis: 0.2 if axis in TARGET_AXES else 0.75 for axis in AXES},
        "blocklist": {"direct": 1.0, "synonym": 0.1, "implicit": 0.0, "near": 1.0, "trap": 0.1, "far": 1.0},
        "gold": dict.fromkeys(AXES, 0.98),
    }
    axes = {e: {a: synthetic_axis(a, s) for a, s in rates.items()} for e, rates in success.items()}
    axes["ap"]["direct"] = synthetic_axis("direct", success["ap"]["direct"], n=90, invalid=3)
    for entrant, hits in {"none": (60, 58, 30), "ap": (9, 4, 0)}.items():
        rates = {t: wilson(k, 60).json() for t, k in zip(("0.3", "0.5", "0.8"), hits, strict=True)}
        axes[entrant]["direct"]["by_threshold"] = rates
    scores: dict[str, float | None] = {"erasure": 0.983, "generality": None, "near": 0.917, "rest": 0.98}
    summary = {"record_version": 1, "entrants": {e: {"axes": a, "scores": scores} for e, a in axes.items()}}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def edit(folder: Path, name: str, change: Any) -> None:
    """Rewrite one JSON file of the folder through ``change(data)``."""
    path = folder / name
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


class Reader(HTMLParser):
    """Tags with attributes, the nesting of elements that close, and the text of the header."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.text[tag] = self.text.get(tag, "") + data


def render(folder: Path) -> tuple[str, Reader]:
    """Write the report, read it back, and check that every element is closed where it should be."""
    out = write_report(folder, folder.parent / "report.html")
    html = out.read_text("utf-8")
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    return html, reader


def test_what_else_it_broke(tmp_path: Path) -> None:
    """Names as found, hostile ones included; pictures where they are; without a record the page says how to measure it."""
    folder = synthetic_folder(tmp_path)
    assert "efface damage --patch" in render(folder)[0]
    fall = {"score": 0.1, "p": 0.002, "n": 9, "invalid": 0, "before": 9, "after": 1}
    rows = [
        {"name": HOSTILE, "drop": 31.25, "low": 20.0, "high": 40.0, "damaged": True, **fall},
        {"name": "lost", "drop": None, "low": None, "high": None, "damaged": False, **fall, "invalid": 9, "before": None},
    ]
    (folder / "damage.json").write_text(json.dumps({"names": 50, "by": "noise", "seeds": 9, "damaged": 1, "rows": rows}))
    html, _ = render(folder)
    section = html[html.index('id="damage"') : html.index('id="search"')]
    assert "<script>alert" not in section
    assert "31.2\xa0[20,\xa040]" in section
    assert "1 of them is damaged" in section
    assert section.count("case damaged") == 1
    assert "not measured" in section
    assert "9 invalid" in section
    assert section.count("missing") >= 4


def test_renders_in_order(tmp_path: Path) -> None:
    html, reader = render(synthetic_folder(tmp_path))
    assert reader.text["h1"] == "cat erased from mini with ap"
    ids = [a["id"] for tag, a in reader.tags if tag == "h2" and "id" in a]
    assert ids == ["images", "tradeoff", "rates", "damage", "search", "provenance"]
    questions = re.findall(r"<section class=\"answer\">\s*<h2>(.*?)\?", html)
    assert questions == ["Is the target gone", "What else broke", "How sure is this", "What did it cost"]
    levels = [int(tag[1]) for tag, _ in reader.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert all(a.get("scope") for tag, a in reader.tags if tag == "th")
    assert all(a.get("alt") for tag, a in reader.tags if tag == "img")
    for shown in ("efface evaluate no-cat.safetensors", "ab12" * 16, "81\u202f234"):
        assert shown in html


def test_headline_numbers_are_those_of_the_summary(tmp_path: Path) -> None:
    folder = synthetic_folder(tmp_path)
    _, reader = render(folder)
    axes = json.loads((folder / "summary.json").read_text())["entrants"]["ap"]["axes"]
    shown = iter(re.findall(r"([\d.]+)%\s+95% interval ([\d.]+)\sto\s([\d.]+)%, (\d+)/(\d+) cases", reader.text["ul"]))
    words = axes["implicit"]["erased_valid"]  # the worse of synonym and implicit
    expected = (axes["direct"]["detection"], words, axes["near"]["preserved"], axes["far"]["preserved"])
    for raw, found in zip(expected, shown, strict=True):
        value, low, high, k, n = found
        assert (int(k), int(n)) == (raw["k"], raw["n"])
        for text, number in ((value, raw["value"]), (low, raw["low"]), (high, raw["high"])):
            assert abs(float(text) - 100 * number) <= 0.05 + 1e-9
    assert "3 invalid images" in reader.text["ul"]
    assert re.search(
        r"Yes\. cat comes back in at most [\d.]+% by name and at most [\d.]+% by other names; the limit is 15%\.",
        reader.text["header"],
    )
    others = axes["synonym"]["erased_valid"]["value"]
    assert re.search(
        rf"It is erased in {round(100 * others, 1):g}% of the images \([^)]+\) when it is asked for by another name",
        reader.text["header"],
    )


def test_answer_names_damage_cost_and_what_undoes_the_edit(tmp_path: Path) -> None:
    folder = synthetic_folder(tmp_path)
    _, reader = render(folder)
    assert "The rest of the concept space was not searched for damage." in reader.text["header"]
    assert "81\u202f234 UNet evaluations. The patch does not record its seconds" in reader.text["header"]
    rows = [{"name": n, "drop": 9.0, "low": 5.0, "high": 12.0, "damaged": n != "lynx", "p": 0.002, "n": 9, "invalid": 0,
             "before": 9, "after": 1} for n in ("leopard", "lynx", "puma", "ocelot", "lion cub")]  # fmt: skip
    (folder / "damage.json").write_text(json.dumps({"names": 50, "by": "noise", "seeds": 9, "damaged": 4, "rows": rows}))

    def spend(run: dict[str, Any]) -> None:
        log = run["entrants"][0]["card"]["log"]
        log["run"] = {"seconds": 48.2, "hardware": "a GPU", "peak_gib": 4.49}
        back = {"target": "cat", "length": 6.41234, "missed": 0.0}
        beside = {"names": 64, "median": 0.4123, "worst": {"name": "lynx", "share": 1.5}}
        log["edit"] = {"condition": 826.0, "norm": 1.0, "null_gain": 1.0, "system_condition": 2.0, "bring_back": back}
        log["edit"]["side_effect"] = beside

    edit(folder, "run.json", spend)
    _, reader = render(folder)
    said = reader.text["header"]
    assert "Of 50 names, the 5 that looked worst were measured again: 4 are damaged (leopard, puma, ocelot and others)." in said
    assert "48\xa0seconds on a GPU and 4.5\xa0GiB of memory at most" in said
    assert "Anyone who has both weight files can undo this edit: an embedding 6.41 times as long as that of cat" in said
    assert "changes 0.41 times as much as what it reads of the target (median of 64 names; most for lynx, 1.50 times)." in said
    assert "This edit is not local: expect other concepts to break." in said
    edit(folder, "run.json", lambda run: run["entrants"][0]["card"]["log"]["edit"]["side_effect"].update(median=0.1))
    assert "not local" not in render(folder)[1].text["header"]
    edit(folder, "run.json", lambda run: run["entrants"][0]["card"]["log"]["edit"].pop("side_effect"))
    assert "as much as what it reads" not in render(folder)[1].text["header"], "cards of earlier releases do not say it"


def test_thresholds_are_drawn_beside_the_unmodified_model(tmp_path: Path) -> None:
    """A line for each entrant that was measured at every threshold; the unmodified model's is dashed."""
    folder = synthetic_folder(tmp_path)
    (figure,) = re.findall(r"<summary>How surely.*?(<svg.*?</svg>)", render(folder)[0], re.DOTALL)
    lines = {tuple(line.attrib["points"].split()): line.attrib["class"] for line in ET.fromstring(figure).iter("polyline")}
    ends = {points[-1]: "control" in css for points, css in lines.items()}
    assert len(ends) == 2
    assert {float(end.split(",")[1]): dashed for end, dashed in ends.items()} == {85.0: True, 160.0: False}, "a half, and none"
    edit(
        folder,
        "summary.json",
        lambda s: s["entrants"]["ap"]["axes"]["direct"]["by_threshold"].update({"0.8": wilson(0, 0).json()}),
    )
    (figure,) = re.findall(r"<summary>How surely.*?(<svg.*?</svg>)", render(folder)[0], re.DOTALL)
    assert len(list(ET.fromstring(figure).iter("polyline"))) == 1, "a rate of nothing draws no line"


def test_no_interval_is_divided(tmp_path: Path) -> None:
    """Intervals stand in one piece: no ordinary space between their bounds."""
    html, _ = render(synthetic_folder(tmp_path))
    text = re.sub(r"<[^>]+>|&[a-z]+;", " ", html[html.index("<body>") :])
    assert len(re.findall(r"\d\xa0to\xa0\d", text)) > 20
    assert not re.findall(r"\d to \d[\d.]*%", text.replace("0 to 100%", ""))
    assert not re.findall(r"\[\N{MINUS SIGN}?[\d.]+, ", text)


@pytest.mark.parametrize(("id", "kind", "card", "legend"), [
    ("sld", "guard", None, "guard alone, no weight changed"),
    ("ap+sld", "patch", {"method": "ap"}, "patch and guard"),
    ("ap", "patch", {"method": "ap"}, "patch"),
    ("a+b", "patch", {"method": "a+b"}, "patch"),
    ("mine", "something new", None, "other entrant"),
])  # fmt: skip
def test_legend_says_what_an_entrant_is(tmp_path: Path, id: str, kind: str, card: Any, legend: str) -> None:
    folder = synthetic_folder(tmp_path)
    entrant = {"id": id, "label": id, "kind": kind, "card": card}
    edit(folder, "run.json", lambda run: run.update(entrants=[entrant, run["entrants"][1]]))
    edit(folder, "summary.json", lambda s: s["entrants"].update({id: s["entrants"]["ap"]}))
    html, _ = render(folder)
    found = html[html.index('<ul class="legend">') :]
    found = found[: found.index("</ul>")]
    assert re.findall(r"<span>(.*?)</span>", found) == [legend, "unmodified model"]
    if card:
        assert f"with {id}</h1>" in html


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    folder = synthetic_folder(tmp_path)

    def poison(run: dict[str, Any]) -> None:
        run["targets"] = [HOSTILE]
        run["model"]["name"] = run["entrants"][2]["id"] = run["entrants"][2]["label"] = run["entrants"][2]["kind"] = HOSTILE
        run["profile"] = {HOSTILE: HOSTILE, "command": HOSTILE}
        run["detectors"]["report"][HOSTILE] = {HOSTILE: [HOSTILE]}
        run["grid"][0] |= {"prompt": HOSTILE + "\x00\x1b \ud800", "axis": HOSTILE, "case_id": "\x00/" + HOSTILE, "seed": HOSTILE}
        card = run["entrants"][0]["card"]
        card["method"] = card["log"]["adversarial"][0]["concept"] = card["log"]["adversarial"][1]["target"] = HOSTILE + "\x00"

    edit(folder, "run.json", poison)
    edit(folder, "summary.json", lambda s: s["entrants"].update({HOSTILE: s["entrants"].pop("noise")}))
    edit(folder, "summary.json", lambda s: s["entrants"]["ap"]["axes"]["near"].update(per_concept={HOSTILE: wilson(1, 2).json()}))
    html, reader = render(folder)
    assert not [tag for tag, _ in reader.tags if tag == "script"]
    assert all((a["src"] or "").startswith("data:image/png;base64,") for tag, a in reader.tags if tag == "img")
    assert not [name for _, a in reader.tags for name in a if name.startswith("on")]
    assert "&lt;script&gt;" in html


def test_no_path_out_of_the_folder(tmp_path: Path) -> None:
    folder = synthetic_folder(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    edit(folder, "run.json", lambda run: run["grid"][0].update(case_id="../../../secret"))
    html, reader = render(folder)
    assert html.count(">missing</div>") == 2
    assert len([tag for tag, _ in reader.tags if tag == "img"]) == 2 * len(read_run(folder).grid) - 2


def test_missing_or_foreign_image_is_a_visible_gap(tmp_path: Path) -> None:
    folder = synthetic_folder(tmp_path)
    (folder / "images" / "ap" / "direct-0.png").unlink()
    (folder / "images" / "none" / "near-1.png").write_text("not a picture")
    html, _ = render(folder)
    assert html.count(">missing</div>") == 2
    shutil.rmtree(folder / "images")
    html, reader = render(folder)
    assert html.count(">missing</div>") == 2 * len(read_run(folder).grid)
    assert not [tag for tag, _ in reader.tags if tag == "img"]


def test_null_is_not_measured_and_never_zero(tmp_path: Path) -> None:
    folder = synthetic_folder(tmp_path)
    empty = wilson(0, 0).json()

    def blank(summary: dict[str, Any]) -> None:
        axes = summary["entrants"]["ap"]["axes"]
        axes["direct"] |= {"detection": empty, "erased_valid": empty, "difference": None, "clip_t": None, "clip_i": None}
        axes["near"] |= {"preserved": None, "clustered": None, "per_concept": {"near a": {**empty, "value": math.nan}}}
        del axes["far"], axes["synonym"]
        del summary["entrants"]["gold"]

    edit(folder, "summary.json", blank)
    html, reader = render(folder)
    assert reader.text["ul"].count("not measured") == 3
    assert len(re.findall(r"[\d.]+%", reader.text["ul"])) == 3  # other words: value, "95% interval", upper bound
    assert "It was not measured whether cat is gone." in reader.text["header"]
    assert "It was not measured whether near concepts are kept." in reader.text["header"]
    assert "because one of the two rates was not measured: ap, gold." in html
    assert not re.search(r"\bnan\b", re.sub(r'src="data:[^"]*"', "", html), re.IGNORECASE)


def test_minimal_evaluation(tmp_path: Path) -> None:
    """Only the base model, nothing measured, nothing kept: still a page."""
    run = RunFile("now", {"name": "mini"}, ["cat"], {}, [Entrant("none", "base model", "trivial")], {}, {}, [])
    write_run(tmp_path / "e", run)
    (tmp_path / "e" / "summary.json").write_text('{"record_version": 1, "entrants": {"none": {"axes": {}, "scores": {}}}}')
    html, reader = render(tmp_path / "e")
    assert reader.text["h1"] == "cat in mini: base model"
    assert "This evaluation kept no images." in html
    assert 'id="search"' not in html


@pytest.mark.parametrize(("name", "text"), [
    ("summary.json", "{}"),
    ("summary.json", '{"record_version": 2, "entrants": {}}'),
    ("summary.json", '{"record_version": 1, "entrants": {"ap": {}}}'),
    ("summary.json", '{"record_version": 1, "entrants": []}'),
    ("summary.json", "[]"),
    ("summary.json", "{"),
    ("run.json", "{}"),
])  # fmt: skip
def test_bad_folder_is_bad_file(tmp_path: Path, name: str, text: str) -> None:
    folder, out = synthetic_folder(tmp_path), tmp_path / "report.html"
    (folder / name).write_text(text)
    with pytest.raises(BadFile, match=re.escape(str(folder))):
        write_report(folder, out)
    assert not out.exists()


def test_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    html, reader = render(synthetic_folder(tmp_path))
    for tag, attributes in reader.tags:
        for name in ("src", "href", "srcset", "data", "action", "xlink:href"):
            value = attributes.get(name) or ""
            assert not value or value.startswith("data:"), f"<{tag} {name}={value[:60]}>"
    assert not re.search(r"url\(|@import|https?://", html)
    assert not [tag for tag, _ in reader.tags if tag in ("script", "iframe", "object", "form")]


def test_imports_no_torch() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import efface.reporting; "
    code += "assert not {'torch', 'efface.models'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, SRC], check=True)


def test_plots_are_well_formed() -> None:
    names = ['a<b & "c"\x00\x1b', "none", "gold"]
    same = [plots.Point(n, k, 1.0, 1.0, (0.9, 1.0), (0.9, 1.0)) for n in names for k in ("patch", "base", "gold", "trivial")]
    drawn = [
        plots.tradeoff(same),
        plots.tradeoff([]),
        plots.interval_bar(0.5, 0.25, 0.75),
        plots.timeline([(names[0], [0, 5, 10]), ("x", [7])], 0, 10),
        plots.timeline([("x", [3])], 3, 3),
        plots.curve([(0, 0.0)], names[0], 0, 0),
        plots.curve([(0, 2.0), (4, 1.0), (8, -0.5)], "entropy", 0, 8),
        *(plots.marker(k) for k in ("patch", "guarded", "guard", "base", "gold", "trivial")),
    ]
    for svg in drawn:
        root = ET.fromstring(svg)
        assert (root.tag, root.get("role")) == ("svg", "img")
        assert root.get("aria-label")
        assert "nan" not in re.sub(r'aria-label="[^"]*"', "", svg)


def test_tradeoff_puts_better_entrants_up_and_right() -> None:
    points = [plots.Point(n, "patch", v, v, (v, v), (v, v)) for n, v in (("worse", 0.25), ("better", 0.75))]
    circles = [c for c in ET.fromstring(plots.tradeoff(points)).iter("circle") if c.get("class") == "mark patch"]
    (wx, wy), (bx, by) = [(float(c.get("cx") or 0), float(c.get("cy") or 0)) for c in circles]
    assert bx > wx
    assert by < wy


NONE, GONE = wilson(0, 0), wilson(0, 100)


@pytest.mark.parametrize(("detection", "difference", "synonyms", "attacks", "status"), [
    (GONE, {"high": -0.8}, GONE, {}, "supported"),
    (GONE, None, GONE, {}, "supported"),
    (GONE, None, GONE, {"seed_search": GONE}, "supported"),
    (GONE, {"high": -0.8}, NONE, {}, "open"),  # other names were not measured
    (GONE, {"high": -0.8}, wilson(60, 100), {}, "contradicted"),  # a synonym brings it back
    (GONE, {"high": -0.8}, wilson(10, 100), {}, "open"),
    (GONE, {"high": -0.8}, wilson(0, 100, invalid=30), {}, "open"),  # broken images of synonyms are no erasure
    (GONE, {"high": -0.8}, GONE, {"unlearndiff": wilson(9, 10)}, "contradicted"),
    (GONE, {"high": -0.8}, GONE, {"unlearndiff": wilson(0, 10)}, "open"),  # ten cases say too little
    (GONE, {"high": -0.8}, GONE, {"unlearndiff": wilson(0, 100, invalid=50)}, "open"),  # half of them undecided
    (wilson(0, 10), {"high": -0.5}, GONE, {}, "open"),  # 0 of 10 still allows 28 %
    (GONE, {"high": 0.0}, GONE, {}, "open"),  # as rare in the base model
    (wilson(0, 100, invalid=50), {"high": -0.8}, GONE, {}, "open"),  # broken images are no erasure
    (wilson(0, 0, invalid=24), {"high": -0.8}, GONE, {}, "open"),
    (wilson(0, 100, invalid=10), {"high": -0.8}, GONE, {}, "open"),  # 10 of 110 that may have been the target
    (wilson(50, 100), {"high": -0.3}, GONE, {}, "contradicted"),
    (NONE, None, GONE, {}, "unmeasured"),
])  # fmt: skip
def test_erasure_is_claimed_by_the_bound(detection: Any, difference: Any, synonyms: Any, attacks: Any, status: str) -> None:
    found = verdict.erasure(
        "cat",
        rate(detection.json()),
        difference,
        rate(synonyms.json()),
        {f"under the attack {n}": rate(a.json()) for n, a in attacks.items()},
        verdict.DEFAULTS,
    )
    assert found.status == status, found.text


def test_limits_move_the_verdict_and_must_be_shares() -> None:
    loose, strict = verdict.Limits(detection=0.5, keep=0.1), verdict.Limits(detection=0.01, keep=0.99)
    some, kept = rate(wilson(10, 100).json()), rate(wilson(90, 100).json())
    assert verdict.erasure("cat", some, None, some, {}, loose).status == "supported"
    assert verdict.erasure("cat", some, None, some, {}, strict).status == "contradicted"
    assert verdict.keeping(kept, loose).status == "supported"
    assert verdict.keeping(kept, strict).status == "contradicted"
    for wrong in (0.0, 1.0, -1.0, 2.0, math.nan, math.inf):
        for name in ("detection", "keep", "invalid"):
            with pytest.raises(BadOption, match=f"limit {name}"):
                verdict.Limits(**{name: wrong})


ATTACK = {
    "budget": 100,
    "attacks": {
        "direct": {"role": "baseline", "tier": "T0", "rate": wilson(0, 60).json(), "undecided": 0},
        "unlearndiff": {"role": "attack", "tier": "T4", "rate": wilson(1, 60).json(), "undecided": 2},
        "seed_search": {"role": "control", "tier": "T2", "rate": wilson(40, 60).json(), "undecided": 0},
    },
    "union": {**wilson(41, 60).json(), "undecided": 0, "over": ["direct", "unlearndiff", "seed_search"]},
}


def test_attacks_stand_on_the_page_and_in_the_verdict(tmp_path: Path) -> None:
    folder, attack, digest = synthetic_folder(tmp_path), tmp_path / "attack", "cd" * 32
    edit(folder, "run.json", lambda run: run["entrants"][0]["card"].update(digest=digest))
    attack.mkdir()
    facts = {"kind": "attack", "model": "ab12" * 16, "patch": digest, "guard": None, "target": "cat"}
    (attack / "run.json").write_text(json.dumps(facts))
    (attack / "summary.json").write_text(json.dumps(ATTACK))
    html = write_report(folder, tmp_path / "r.html", [attack]).read_text("utf-8")
    assert "at least 55.8% under the attack unlearndiff" in html, "the control's success counts"
    assert "✗ not gone" in html
    section = html[html.index('id="attacks"') : html.index('id="search"')]
    assert "a case that fresh seeds break is broken" in section
    assert "41/60" in section
    assert "Yes. cat comes back in" in render(folder)[1].text["header"], "without the attack"
    for key, other in (("patch", "ef" * 32), ("patch", None), ("model", "ef"), ("guard", "sld"), ("target", "dog")):
        (attack / "run.json").write_text(json.dumps({**facts, key: other}))
        with pytest.raises(BadFile, match="attacks another patch, guard, model or target"):
            write_report(folder, tmp_path / "r2.html", [attack])
    with pytest.raises(BadFile, match="holds no attack"):
        write_report(folder, tmp_path / "r2.html", [folder])
    with pytest.raises(BadFile, match="holds an attack, not an evaluation"):
        write_report(attack, tmp_path / "r2.html")
    assert not (tmp_path / "r2.html").exists()


def test_both_sections_call_the_same_concepts_damaged(tmp_path: Path) -> None:
    """One verdict per concept, from the evaluation and from the search for damage."""
    folder = synthetic_folder(tmp_path)
    kept = {"bus": wilson(1, 20).json(), "bulb": wilson(20, 20).json(), "fine": wilson(20, 20).json(), "few": wilson(1, 2).json()}
    for axis in KEPT:
        concepts = kept if axis == "near" else {}
        edit(folder, "summary.json", lambda s, a=axis, c=concepts: s["entrants"]["ap"]["axes"][a].update(per_concept=c))
    row = {"score": 1.0, "drop": 3.0, "low": 1.0, "high": 5.0, "p": 0.2, "before": 7, "after": 1, "invalid": 0, "by": []}
    rows = [
        {**row, "name": "bus", "damaged": False},
        {**row, "name": "bulb", "damaged": True, "by": ["score"]},
        {**row, "name": "far away", "damaged": True, "by": ["name"]},
        {**row, "name": "fine", "damaged": False},
    ]
    (folder / "damage.json").write_text(json.dumps({"names": 50, "by": "noise", "seeds": 8, "damaged": 2, "rows": rows}))
    html, _ = render(folder)
    table = html[html.index("Most damaged concepts") : html.index('id="damage"')]
    section = html[html.index('id="damage"') : html.index('id="search"')]
    rows_of = {n: re.search(rf'<th scope="row">{n}</th>.*?</tr>', table, re.DOTALL) for n in kept}
    marked = {n for n, row in rows_of.items() if row is not None and not row[0].endswith("<td></td></tr>")}
    found = set(re.findall(r"<strong>damaged: </strong><q>([^<]+)</q>", section))
    assert marked == {"bus", "bulb"}
    assert found == {"bus", "bulb", "far away"}
    assert "3 of them are damaged" in section


@pytest.mark.parametrize(("near", "clustered", "status"), [
    (wilson(98, 100), None, "supported"),
    (wilson(98, 100), [0.6, 1.0], "open"),  # good on average, but not for every concept
    (wilson(8, 10), None, "open"),
    (wilson(30, 100), None, "contradicted"),
    (wilson(0, 0), None, "unmeasured"),
])  # fmt: skip
def test_keeping_is_claimed_by_the_wider_interval(near: Any, clustered: Any, status: str) -> None:
    assert verdict.keeping(rate(near.json(), clustered), verdict.DEFAULTS).status == status


def test_concepts_are_sorted_by_damage(tmp_path: Path) -> None:
    folder = synthetic_folder(tmp_path)
    worst = {"few": wilson(0, 2).json(), "fine": wilson(9, 9).json(), "none": wilson(0, 0).json(), "many": wilson(0, 20).json()}
    for axis in KEPT:
        concepts = worst if axis == "near" else {}
        edit(folder, "summary.json", lambda s, a=axis, c=concepts: s["entrants"]["ap"]["axes"][a].update(per_concept=c))
    html, _ = render(folder)
    table = html[html.index("Most damaged concepts") :]
    assert re.findall(r'<th scope="row">(many|few|fine|none)</th>', table)[:4] == ["many", "few", "fine", "none"]


@needs_chromium
@pytest.mark.parametrize("hostile", [False, True])
def test_in_a_browser(tmp_path: Path, hostile: bool) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    folder = synthetic_folder(tmp_path)
    (folder / "images" / "ap" / "near-0.png").unlink()
    if hostile:
        long = "x" * 300
        edit(folder, "run.json", lambda r: (r["grid"][0].update(prompt=long), r.update(targets=[long, HOSTILE])))
        edit(folder, "run.json", lambda r: (r["entrants"][2].update(label=long), r["profile"].update(name=long)))
    page_url = write_report(folder, tmp_path / "report.html").as_uri()
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        try:
            page, problems = browser.new_page(), []
            page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))
            page.on("request", lambda r: problems.append(r.url) if r.url != page_url and not r.url.startswith("data:") else None)
            for width in (360, 1400):
                page.set_viewport_size({"width": width, "height": 900})
                page.goto(page_url)
                page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
                assert problems == []
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        finally:
            browser.close()


def test_films_show_pictures_and_nothing_else(tmp_path: Path) -> None:
    """Cards come from strangers' files: only a real PNG becomes an image, anything else is a visible gap."""
    folder = synthetic_folder(tmp_path)
    Image.new("RGB", (48, 48), (70, 110, 200)).save(tmp_path / "shot.png")
    png = base64.b64encode((tmp_path / "shot.png").read_bytes()).decode()
    svg = base64.b64encode(b"<svg onload='alert(1)'/>").decode()
    shots = [
        {"step": 0, "target": "cat", "concept": "tiger", "frozen": png, "student": png},
        {"step": 99, "target": "cat", "concept": HOSTILE, "frozen": svg, "student": "no base64 at all"},
    ]
    edit(folder, "run.json", lambda run: run["entrants"][0]["card"]["log"].update(film=shots))
    html, reader = render(folder)
    assert "films" in [a.get("id") for tag, a in reader.tags if tag == "h2"]
    assert html.count(png) == 2
    assert html.count(">damaged<") == 2
    assert svg not in html
    assert not [name for _, a in reader.tags for name in a if name.startswith("on")]
