"""What the original work says, and what docs/studies/*/result.json say to it. Verdicts follow from intervals alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efface.studies import STUDIES
from efface.studies.base import said, sign
from efface.studies.preserve import difference_text

HERE = Path(__file__).parent
HELD, NOT, OPEN = "held", "did not hold", "undecided"
Numbers = Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    study: str
    text: str
    source: str
    judge: Callable[[Numbers], tuple[str, str]]
    """Numbers of the study -> (result with interval, verdict)."""


def signed(estimate: Numbers, text: str, expected: int = 1, against: float = 0.0) -> tuple[str, str]:
    """Held where the interval leaves out ``against`` on the expected side, did not hold on the other."""
    found = sign(estimate, against) * expected
    return text, HELD if found > 0 else NOT if found < 0 else OPEN


def different(n: Numbers) -> tuple[str, str]:
    m = n["methods"]["naive"]
    text = f"naive: profiles of one target correlate by {m['within']:.2f}, of two targets by {m['between']:.2f}; p = {m['p']:.4f}"
    return text, HELD if m["p"] < 0.05 else OPEN


def own_group(method: str, called: str, expected: int) -> Callable[[Numbers], tuple[str, str]]:
    def judge(n: Numbers) -> tuple[str, str]:
        m = n["methods"][method]
        text = f"{said(m['group'])} points in the target's group, {said(m['rest'])} outside, difference {said(m['difference'])}"
        return signed(m["difference"], f"{called}: {text}", expected)

    return judge


def middle(n: Numbers) -> tuple[str, str]:
    m = n["methods"]["naive"]["neutral"]
    inside, outside = m["low"] > 25 and m["high"] < 75, m["high"] < 25 or m["low"] > 75
    text = f"percentile {said(m, 0)} of {n['names']} names; the middle half is 25 to 75"
    return text, HELD if inside else NOT if outside else OPEN


def related_high(n: Numbers) -> tuple[str, str]:
    m = n["methods"]["naive"]["group"]
    return signed(m, f"the target's group at percentile {said(m, 0)}", against=50)


def cheap_scan(n: Numbers) -> tuple[str, str]:
    m = n["methods"]["naive"]["images"]
    return signed(m, f"rank correlation of noise predictions and images {said(m, 2)}")


def beats(row: str) -> Callable[[Numbers], tuple[str, str]]:
    """On the first three targets and again on three others: held where it held both times."""

    def judge(n: Numbers) -> tuple[str, str]:
        texts, bounds = [], []
        for found in (n, result_of("preserve-again")):
            m = found["matched"][row]
            if m["difference"] is None or m["interval"] is None:
                return "90 % erasure was not reached", OPEN
            bounds.append(m["interval"])
            texts.append(difference_text(m))
        verdict = HELD if all(b[0] > 0 for b in bounds) else NOT if all(b[1] < 0 for b in bounds) else OPEN
        return f"{row} minus AP, points: {texts[0]}, on other targets {texts[1]}", verdict

    return judge


def finds(n: Numbers) -> tuple[str, str]:
    at = str(n["steps"][-2])
    m, done = n["ranks"]["gumbel, next"][at], n["ranks"]["gumbel, just preserved"][at]
    text = f"chosen next: percentile {said(m, 0)} (chance 50); just preserved: {said(done, 0)}"
    return signed(m, text, against=50)


def changes(n: Numbers) -> tuple[str, str]:
    m = n["stays"]
    text = f"the worst stays from one snapshot to the next in {said(m, 0)} % of cases; rank correlation {said(n['stable'], 2)}"
    return text, HELD if m["high"] is not None and m["high"] < 100 else OPEN


def leaves(n: Numbers) -> tuple[str, str]:
    m = n["ranks"]["continuous, times the worst"][str(n["steps"][-1])]
    return signed(m, f"{said(m, 1)} times the damage of the worst candidate", against=1)


def no_text(n: Numbers) -> tuple[str, str]:
    found = {k: v for k, v in n["methods"]["naive"].items() if "," in k and v["value"] is not None}
    best = max(found, key=lambda k: found[k]["value"])
    m = found[best]
    images = said(n["methods"]["naive"]["base images"], 2)
    text = f"best of {len(found)} layers and poolings ({best}): {said(m, 2)}; base images {images}"
    return text, NOT if m["low"] > 0 else HELD if m["high"] < 0.2 else OPEN


def collapse(n: Numbers) -> tuple[str, str]:
    m = n["methods"]["naive"]["together"]
    return signed(m, f"naive: cosine changes by {said(m, 3)}")


def age_prevents(n: Numbers) -> tuple[str, str]:
    d, own = n["differences"]["age"], n["methods"]["age"]["together"]
    return signed(d, f"AGE: {said(own, 3)}; naive minus AGE {said(d, 3)}")


def local(n: Numbers) -> tuple[str, str]:
    m = n["methods"]["naive"]
    text = f"naive: {said(m['hops']['1'])} points at one link; {said(m['decay'])} more than at four and more"
    return signed(m["decay"], text)


def asymmetric(n: Numbers) -> tuple[str, str]:
    value = n["methods"]["naive"]["asymmetry"]
    return f"naive: norm(D - D') / norm(D) = {value:.2f} among the targets (no interval: one matrix)", OPEN


CLAIMS = [
    Claim("impact", "Different targets hurt different concepts.", "AP", different),
    Claim("impact", "An erasure hurts its target's relatives most.", "AP, AGE", own_group("naive", "naive", 1)),
    Claim("impact", "Adversarial preservation does away with that.", "AP", own_group("ap", "AP", -1)),
    Claim("spectrum", "Neutral concepts lie in the middle of the sensitivity spectrum.", "AP", middle),
    Claim("spectrum", "Related concepts lie at its sensitive end.", "AP", related_high),
    Claim("spectrum", "Noise predictions show the damage that images show.", "AP's code", cheap_scan),
    Claim("preserve", "Preserving nothing hurts the others more than AP.", "AP", beats("naive")),
    Claim("preserve", "Preserving the neutral concept hurts them more than AP.", "AP", beats("neutral")),
    Claim("preserve", "Preserving a fixed far concept hurts them more than AP.", "AP", beats("fixed-far")),
    Claim("preserve", "Preserving a fixed related concept hurts them more than AP.", "AP", beats("fixed-related")),
    Claim("preserve", "Preserving random candidates hurts them more than searched ones.", "AP", beats("ap-random")),
    Claim("search", "The Gumbel search finds concepts that are hurt more than others.", "AP", finds),
    Claim("search", "The most damaged concept changes during the training.", "AP", changes),
    Claim("search", "Continuous search leaves the concepts.", "AP", leaves),
    Claim("text-similarity", "Text similarity does not predict damage.", "AP", no_text),
    Claim("collapse", "Images of concepts erased to one neutral target move together.", "AP", collapse),
    Claim("collapse", "An adaptive target prevents it.", "AGE", age_prevents),
    Claim("locality", "Damage is local in a graph of concepts.", "AGE", local),
    Claim("locality", "It is asymmetric.", "AGE", asymmetric),
]


def result_of(study: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / "studies" / study / "result.json").read_text("utf-8"))
    return found


def studies_page() -> str:
    results = {name: result_of(name) for name in STUDIES}
    lines = [
        "# What erasing does to the rest",
        "",
        (HERE / "numbers" / "studies.md").read_text("utf-8").strip(),
        "",
        "| claim | said by | result {95 % interval} | verdict |",
        "|---|---|---|---|",
    ]
    for c in CLAIMS:
        text, verdict = c.judge(results[c.study])
        lines.append(f"| [{c.text}](#{c.study}) | {c.source} | {text} | **{verdict}** |")
    for name, cls in STUDIES.items():
        r = results[name]
        lines += [
            "",
            f"## {name}",
            "",
            f"*{cls.question[0].upper()}{cls.question[1:]}*",
            "",
            " ".join((cls.__doc__ or "").split()),
            "",
            f"Targets {', '.join(r['targets'])}; methods {', '.join(r['methods'])}; training seeds "
            f"{', '.join(map(str, r['seeds']))}; {r['images']} image{'s' if r['images'] > 1 else ''} per name, "
            f"profile `{r['profile']}`.",
            "",
            f"**{r['sentence']}**",
            "",
            f"![{cls.question}](studies/{name}/figure.svg)",
            *again_lines(name),
            *gold_lines(r),
        ]
    return "\n".join(lines) + "\n"


def again_lines(name: str) -> list[str]:
    """The same study on other targets or methods, where there is one."""
    if not (HERE / "studies" / f"{name}-again").is_dir():
        return []
    r = result_of(f"{name}-again")
    picture = f"![{name} again](studies/{name}-again/figure.svg)"
    return ["", f"Again, {', '.join(r['targets'])} with {', '.join(r['methods'])}: **{r['sentence']}**", "", picture]


def gold_lines(result: Numbers) -> list[str]:
    """The model that never saw a target, where a study has one."""
    gold = result.get("methods", {}).get("gold") if isinstance(result.get("methods"), dict) else None
    if not gold:
        return []
    facts = [f"{key.replace('_', ' ')} {said(value, 2)}" for key, value in gold.items() if isinstance(value, dict)]
    return ["", f"Gold model, which never saw {gold['target']}: {'; '.join(facts)}."]
