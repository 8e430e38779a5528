"""The claims of the original papers, each with the result of our study and a verdict that follows from the interval alone.

The results are those of docs/studies/*/result.json (the miniature) and docs/studies/icons/*/result.json (the world of icons).
docs/make.py writes docs/studies.md from the first, and the table of claims in docs/rankings.md from both."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efface.studies import STUDIES
from efface.studies.base import said, sign
from efface.studies.preserve import difference_text

STUDIED = Path(__file__).parent / "studies"
NUMBERS = Path(__file__).parent / "numbers"
HELD, NOT, OPEN = "held", "did not hold", "undecided"
Numbers = Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    study: str
    text: str
    source: str
    judge: Callable[[Numbers], tuple[str, str]]
    """Numbers of the study -> (the result with its interval, the verdict). The numbers of its repetition are under "again"."""


def signed(estimate: Numbers, text: str, expected: int = 1, against: float = 0.0) -> tuple[str, str]:
    """Held where the interval leaves out ``against`` on the expected side, did not hold on the other."""
    found = sign(estimate, against) * expected
    return text, HELD if found > 0 else NOT if found < 0 else OPEN


def different(n: Numbers) -> tuple[str, str]:
    m = n["methods"]["naive"]
    within, between = f"{m['within']:.2f}", f"{m['between']:.2f}"
    text = f"Naive erasure: damage profiles of one target correlate by {within}, of two by {between} (p = {m['p']:.4f})."
    return text, HELD if m["p"] < 0.05 else OPEN


def own_group(method: str, called: str, expected: int) -> Callable[[Numbers], tuple[str, str]]:
    def judge(n: Numbers) -> tuple[str, str]:
        m = n["methods"][method]
        inside, outside, more = (said(m[key]) for key in ("group", "rest", "difference"))
        text = f"{called}: {inside} points in the target's group, {outside} outside; the difference is {more}."
        return signed(m["difference"], text, expected)

    return judge


def middle(n: Numbers) -> tuple[str, str]:
    m = n["methods"]["naive"]["neutral"]
    inside, outside = m["low"] > 25 and m["high"] < 75, m["high"] < 25 or m["low"] > 75
    text = f"They stand at percentile {said(m, 0)} of {n['names']} names; the middle half is 25 to 75."
    return text, HELD if inside else NOT if outside else OPEN


def related_high(n: Numbers) -> tuple[str, str]:
    m = n["methods"]["naive"]["group"]
    return signed(m, f"The target's group stands at percentile {said(m, 0)}.", against=50)


def cheap_scan(n: Numbers) -> tuple[str, str]:
    m = n["methods"]["naive"]["images"]
    return signed(m, f"Their rank correlation is {said(m, 2)}.")


def beats(row: str) -> Callable[[Numbers], tuple[str, str]]:
    """On the first three targets and again on three others: held where it held both times."""

    def judge(n: Numbers) -> tuple[str, str]:
        texts, bounds = [], []
        for found in (n, n["again"]):
            m = found["matched"][row]
            if m["difference"] is None or m["interval"] is None:
                return "90 % erasure was not reached.", OPEN
            bounds.append(m["interval"])
            texts.append(difference_text(m))
        verdict = HELD if all(b[0] > 0 for b in bounds) else NOT if all(b[1] < 0 for b in bounds) else OPEN
        return f"`{row}` minus AP: {texts[0]} points, on other targets {texts[1]}.", verdict

    return judge


def finds(n: Numbers) -> tuple[str, str]:
    at = str(n["steps"][-2])
    m, done = n["ranks"]["gumbel, next"][at], n["ranks"]["gumbel, just preserved"][at]
    text = f"The next choice stands at percentile {said(m, 0)} (chance: 50), the last one at {said(done, 0)}."
    return signed(m, text, against=50)


def changes(n: Numbers) -> tuple[str, str]:
    m = n["stays"]
    text = f"The worst stays the worst in {said(m, 0)} % of cases; the rank correlation is {said(n['stable'], 2)}."
    return text, HELD if m["high"] is not None and m["high"] < 100 else OPEN


def leaves(n: Numbers) -> tuple[str, str]:
    m = n["ranks"]["continuous, times the worst"][str(n["steps"][-1])]
    return signed(m, f"It reaches {said(m, 1)} times the damage of the worst candidate.", against=1)


def no_text(n: Numbers) -> tuple[str, str]:
    found = {k: v for k, v in n["methods"]["naive"].items() if "," in k and v["value"] is not None}
    best = max(found, key=lambda k: found[k]["value"])
    m = found[best]
    images = said(n["methods"]["naive"]["base images"], 2)
    text = f"The best of {len(found)} layers and poolings ({best}) correlates by {said(m, 2)}, base images by {images}."
    return text, NOT if m["low"] > 0 else HELD if m["high"] < 0.2 else OPEN


def collapse(n: Numbers) -> tuple[str, str]:
    m = n["methods"]["naive"]["together"]
    return signed(m, f"Naive erasure: the cosine changes by {said(m, 3)}.")


def age_prevents(n: Numbers) -> tuple[str, str]:
    d, own = n["differences"]["age"], n["methods"]["age"]["together"]
    return signed(d, f"AGE: the cosine changes by {said(own, 3)}; naive minus AGE is {said(d, 3)}.")


def local(n: Numbers) -> tuple[str, str]:
    m = n["methods"]["naive"]
    text = f"Naive erasure: {said(m['hops']['1'])} points at one link, {said(m['decay'])} more than at four and more."
    return signed(m["decay"], text)


def asymmetric(n: Numbers) -> tuple[str, str]:
    value = n["methods"]["naive"]["asymmetry"]
    return f"Naive erasure: norm(D - D') / norm(D) = {value:.2f} among the targets; one matrix has no interval.", OPEN


CLAIMS = [
    Claim("impact", "Erasing different targets hurts different concepts.", "AP", different),
    Claim(
        "impact", "An erasure hurts the concepts of its target's group most.", "AP, AGE", own_group("naive", "Naive erasure", 1)
    ),
    Claim("impact", "Adversarial preservation (AP) hurts that group no more than the rest.", "AP", own_group("ap", "AP", -1)),
    Claim("spectrum", "Neutral concepts (such as the empty prompt) lie in the middle of the range of damage.", "AP", middle),
    Claim("spectrum", "Related concepts lie at the upper end of that range.", "AP", related_high),
    Claim("spectrum", "Damage in noise predictions agrees with damage in images.", "AP's code", cheap_scan),
    Claim("preserve", "Preserving nothing hurts other concepts more than AP.", "AP", beats("naive")),
    Claim("preserve", "Preserving the neutral concept hurts other concepts more than AP.", "AP", beats("neutral")),
    Claim("preserve", "Preserving one fixed far concept hurts other concepts more than AP.", "AP", beats("fixed-far")),
    Claim("preserve", "Preserving one fixed related concept hurts other concepts more than AP.", "AP", beats("fixed-related")),
    Claim("preserve", "Preserving random candidates hurts other concepts more than AP's search.", "AP", beats("ap-random")),
    Claim("search", "The Gumbel search chooses concepts that are hurt more than others.", "AP", finds),
    Claim("search", "The most damaged concept changes during the training.", "AP", changes),
    Claim("search", "The continuous search ends at embeddings that are no concept.", "AP", leaves),
    Claim("text-similarity", "Text similarity does not predict damage.", "AP", no_text),
    Claim("collapse", "Images of concepts erased to one neutral target move together.", "AP", collapse),
    Claim("collapse", "An adaptive anchor prevents that.", "AGE", age_prevents),
    Claim("locality", "Damage is largest next to the target in a graph of similar concepts.", "AGE", local),
    Claim("locality", "Damage is asymmetric: erasing A hurts B differently than erasing B hurts A.", "AGE", asymmetric),
]


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Study -> its numbers; those of the same study on other targets or methods, where there is one, are under "again"."""

    def read(name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((folder / name / "result.json").read_text("utf-8"))
        return found

    again = {name: read(f"{name}-again") for name in STUDIES if (folder / f"{name}-again").is_dir()}
    return {name: {**read(name), **({"again": again[name]} if name in again else {})} for name in STUDIES}


def claims_table() -> list[str]:
    """Every claim in the miniature and in the world of icons."""
    worlds = {"miniature": results(STUDIED), "icons": results(STUDIED / "icons")}
    lines = ["| claim | miniature {95 % interval} | icons {95 % interval} | verdict |", "|---|---|---|---|"]
    for c in CLAIMS:
        judged = {world: c.judge(found[c.study]) for world, found in worlds.items()}
        texts = " | ".join(text for text, _ in judged.values())
        verdicts = [verdict for _, verdict in judged.values()]
        alike = len(set(verdicts)) == 1
        verdict = f"**{verdicts[0]}** in both" if alike else "; ".join(f"{w}: **{v}**" for w, (_, v) in judged.items())
        lines.append(f"| [{c.text}](studies.md#{c.study}) | {texts} | {verdict} |")
    return lines


def studies_page() -> str:
    found = results(STUDIED)
    lines = [
        "# What erasing does to the rest",
        "",
        "Terms are in the [glossary](glossary.md).",
        "",
        (NUMBERS / "studies.md").read_text("utf-8").strip(),
        "",
        "This table lists the claims of the papers with our results. AP and AGE stand for the papers of those methods.",
        "",
        "| claim | paper | our result {95 % interval} | verdict |",
        "|---|---|---|---|",
    ]
    for c in CLAIMS:
        text, verdict = c.judge(found[c.study])
        lines.append(f"| [{c.text}](#{c.study}) | {c.source} | {text} | **{verdict}** |")
    for name, cls in STUDIES.items():
        r = found[name]
        lines += [
            "",
            f"## {name}",
            "",
            f"*{cls.question[0].upper()}{cls.question[1:]}*",
            "",
            " ".join((cls.__doc__ or "").split()),
            "",
            f"The targets are {', '.join(r['targets'])}. The methods are {', '.join(r['methods'])}, with training seeds "
            f"{', '.join(map(str, r['seeds']))}, {r['images']} image{'s' if r['images'] > 1 else ''} per name and the profile "
            f"`{r['profile']}`.",
            "",
            f"**{r['sentence']}**",
            "",
            f"![{cls.question}](studies/{name}/figure.svg)",
            *again_lines(name, r),
            *gold_lines(r),
        ]
    return "\n".join(lines) + "\n"


def again_lines(name: str, result: Numbers) -> list[str]:
    """The same study on other targets or methods, where there is one."""
    if "again" not in result:
        return []
    r = result["again"]
    picture = f"![{name} again](studies/{name}-again/figure.svg)"
    targets, methods = ", ".join(r["targets"]), ", ".join(r["methods"])
    return ["", f"The study was repeated on {targets} with {methods}. **{r['sentence']}**", "", picture]


def gold_lines(result: Numbers) -> list[str]:
    """The model that never saw a target, where a study has one."""
    gold = result.get("methods", {}).get("gold") if isinstance(result.get("methods"), dict) else None
    if not gold:
        return []
    facts = [f"{key.replace('_', ' ')} {said(value, 2)}" for key, value in gold.items() if isinstance(value, dict)]
    return ["", f"The gold model, which never saw {gold['target']}, gives: {'; '.join(facts)}."]
