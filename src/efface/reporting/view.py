"""From the records to what the template shows. Pure functions but for the images, which are read from the folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..evaluation.records import AXES, KEEP_AXES, TARGET_AXES, Entrant, RunFile
from . import plots, verdict
from .answer import Axes, answer, closed_form, headline, listing
from .pictures import picture
from .searched import films, searches
from .wording import NOT_MEASURED, RateText, estimate, finite, p_value, rate, score, settings

BASE = "none"
KINDS = {
    "patch": "patch",
    "guarded": "patch and guard",
    "guard": "guard alone, no weight changed",
    "trivial": "trivial entrant: noise of the same size, or a blocklist",
    "gold": "gold model, which never saw the target",
    "base": "unmodified model",
    "other": "other entrant",
}
SCORES = {
    "erasure": "target asked for by name",
    "generality": "the worse of synonym and implicit",
    "near": "near concepts and lexical traps, pooled",
    "rest": "far concepts",
}
SHOWN_CONCEPTS = 10
"""Most damaged concepts in the open; the others fold away."""


def page(
    run: RunFile,
    summary: Mapping[str, Any],
    damage: Mapping[str, Any] | None,
    images: Path,
    attacks: Sequence[Mapping[str, Any]] = (),
    limits: verdict.Limits = verdict.DEFAULTS,
) -> dict[str, Any]:
    """The context of template.html.j2, in the order of the page. attacks: summaries of attacks on what is evaluated."""
    subject, axes_of = _subject(run), {i: e["axes"] for i, e in summary["entrants"].items()}
    axes = axes_of.get(subject.id, {})
    order = _axis_order(axes_of.values())
    broken = _damage(damage, images, axes, limits)
    tried = {f"under the attack {_attack_name(a)}": _broken(a["union"]) for a in attacks}
    if "listed" in axes:
        tried = {"in the prompts of a list": verdict.remaining(rate(axes["listed"].get("detection"))), **tried}
    return {
        "title": _title(run, subject),
        "created": run.created.replace("T", " ").replace("+00:00", " UTC"),
        "subject": subject,
        **answer(run, subject.card, axes, broken, tried, limits),
        "grid": _grid(run, subject, images),
        **_tradeoff(run, axes_of),
        "axes": [(axis, AXES.get(axis, ""), _want(axis, axes_of)) for axis in order],
        "rates": [(e, [headline(axes_of.get(e.id, {}).get(axis)) for axis in order]) for e in run.entrants],
        "scores": _scores(run, summary["entrants"]),
        "details": _details(run, axes_of, order),
        "thresholds": _thresholds(run, axes_of),
        "published": _published(run, axes_of, order),
        "gold": _gold(run, summary.get("gold")),
        "by_target": by_concept(axes, TARGET_AXES) if len(run.targets) > 1 else [],
        "by_concept": by_concept(axes, KEEP_AXES, damage, limits),
        "shown_concepts": SHOWN_CONCEPTS,
        "damage": broken,
        "attacks": [_attack(a) for a in attacks],
        "searches": searches(subject.card),
        "films": [film for e in run.entrants for film in films(e)],
        "provenance": _provenance(run, subject),
    }


def _subject(run: RunFile) -> Entrant:
    """The entrant the page is about: the first patch, else the first that is not the base model."""
    others = [e for e in run.entrants if e.id != BASE]
    patches = [e for e in run.entrants if e.kind == "patch"]
    return (patches or others or run.entrants or [Entrant(BASE, "base model", "trivial")])[0]


def _title(run: RunFile, subject: Entrant) -> str:
    model, targets = str(run.model.get("name", "the model")), listing(run.targets)
    if subject.kind == "patch":
        made = subject.id if _kind(subject) == "guarded" else (subject.card or {}).get("method", subject.id)
        return f"{targets} erased from {model} with {made}"
    return f"{targets} in {model}: {subject.label}"


def _kind(entrant: Entrant) -> str:
    """How an entrant is drawn. An evaluation calls a patch under a guard METHOD+GUARD."""
    if entrant.id == BASE:
        return "base"
    if entrant.kind == "patch" and entrant.id.startswith(f"{(entrant.card or {}).get('method')}+"):
        return "guarded"
    return entrant.kind if entrant.kind in KINDS else "other"


def _axis_order(entrants: Any) -> list[str]:
    found = {axis for axes in entrants for axis in axes}
    return [axis for axis in AXES if axis in found] + sorted(found - AXES.keys())


def _want(axis: str, axes_of: Mapping[str, Axes]) -> str:
    return next((axes[axis]["want"] for axes in axes_of.values() if axis in axes), "")


def _grid(run: RunFile, subject: Entrant, images: Path) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Cases by axis, the axes with the clearest expectation first."""
    found = list(dict.fromkeys(str(case["axis"]) for case in run.grid))
    first = [axis for axis in ("direct", "near", "trap", "far") if axis in found]
    groups = []
    for axis in first + [axis for axis in found if axis not in first]:
        cases = [
            {
                "prompt": case["prompt"],
                "seed": case["seed"],
                "pair": [
                    ("unmodified", picture(images, BASE, str(case["case_id"]))),
                    ("erased" if _kind(subject) == "patch" else subject.id, picture(images, subject.id, str(case["case_id"]))),
                ],
            }
            for case in run.grid
            if str(case["axis"]) == axis
        ]
        groups.append((axis, AXES.get(axis, ""), cases))
    return groups


def _tradeoff(run: RunFile, axes_of: Mapping[str, Axes]) -> dict[str, Any]:
    """One point per entrant where both rates were measured; the others are named, not drawn at 0."""
    points, missing = [], []
    for e in run.entrants:
        axes = axes_of.get(e.id, {})
        x, y = headline(axes.get("near")), headline(axes.get("direct"))
        if x.measured is None or y.measured is None:
            missing.append(e.id)
        else:
            points.append(plots.Point(e.id, _kind(e), x.measured[0], y.measured[0], x.measured[1:], y.measured[1:]))
    kinds = dict.fromkeys(_kind(e) for e in run.entrants if e.id not in missing)
    return {
        "tradeoff": Markup(plots.tradeoff(points)) if points else None,
        "legend": [(Markup(plots.marker(kind)), KINDS[kind]) for kind in kinds],
        "not_drawn": missing,
    }


def _scores(run: RunFile, entrants: Mapping[str, Any]) -> dict[str, Any]:
    rows = [(e, [score((entrants.get(e.id, {}).get("scores") or {}).get(name)) for name in SCORES]) for e in run.entrants]
    return {"columns": list(SCORES.items()), "rows": rows}


def _details(run: RunFile, axes_of: Mapping[str, Axes], order: Sequence[str]) -> list[tuple[Entrant, list[dict[str, Any]]]]:
    """Per entrant and axis: detection, and what changed against the base model on the same cases."""
    groups = []
    for e in run.entrants:
        axes = axes_of.get(e.id, {})
        rows = [
            {
                "axis": axis,
                "want": axes[axis]["want"],
                "detection": rate(axes[axis].get("detection")),
                "difference": estimate(axes[axis].get("difference"), scale=100, digits=1),
                "p": p_value((axes[axis].get("difference") or {}).get("p_value")),
                "clip_t": estimate(axes[axis].get("clip_t")),
                "clip_i": estimate(axes[axis].get("clip_i"), digits=3),
            }
            for axis in order
            if axis in axes
        ]
        if rows:
            groups.append((e, rows))
    return groups


def _thresholds(run: RunFile, axes_of: Mapping[str, Axes]) -> dict[str, Any]:
    """How often the detector's probability of the target reaches each threshold, when it is asked for by name."""
    found = {e.id: axes_of.get(e.id, {}).get("direct", {}).get("by_threshold") for e in run.entrants}
    columns = next((list(rates) for rates in found.values() if rates), [])
    rows = [(e, [rate(rates[c]) for c in columns]) for e in run.entrants if (rates := found[e.id])]
    lines = []
    for e, rates in rows:
        values = [r.measured for r in rates if r.measured]
        if len(values) == len(columns):
            points = [(float(c), value) for c, (value, _, _) in zip(columns, values, strict=True)]
            lines.append(plots.Line(e.id, points, *values[-1][1:], control=e.id == BASE))
    said = "valid images in which the probability of the target reaches the threshold"
    return {"columns": columns, "rows": rows, "plot": Markup(plots.thresholds(lines, "threshold", said)) if lines else None}


NER_SHOWN = (("core6", "0.5"), ("exposed8", "0.5"), ("exposed9", "0.6"))
"""Lists of classes and thresholds of NER on the page: ours, that of Adversarial Preservation, and that of RECE."""


def _published(run: RunFile, axes_of: Mapping[str, Axes], order: Sequence[str]) -> list[tuple[Entrant, str, str, RateText | str]]:
    """The rates by which papers count, and LPIPS, where they were measured: (entrant, axis, measure, rate or estimate)."""
    found: list[tuple[Entrant, str, str, RateText | str]] = []
    for entrant in run.entrants:
        for axis in order:
            summary = axes_of.get(entrant.id, {}).get(axis, {})
            for name, by_k in ((n, summary[n]) for n in ("esr", "psr") if n in summary):
                for k, rates in by_k.items():
                    found.append((entrant, axis, f"{name.upper()}-{k}", rate(rates["all"])))
                    found.append(
                        (entrant, axis, f"{name.upper()}-{k} of what the base model gets right", rate(rates["base_right"]))
                    )
            for classes, tau in NER_SHOWN if "ner" in summary else ():
                found.append((entrant, axis, f"NER-{tau}, {classes}", rate(summary["ner"][classes][tau])))
            for key, said in (("lpips", "LPIPS at 256 pixels"), ("lpips64", "LPIPS at 64 pixels")):
                if key in summary and entrant.id != BASE:
                    found.append((entrant, axis, said, estimate(summary[key])))
    return found


def by_concept(
    axes: Axes, wanted: Sequence[str], damage: Mapping[str, Any] | None = None, limits: verdict.Limits = verdict.DEFAULTS
) -> list[dict[str, Any]]:
    """Concepts of the wanted axes, worst first; equally bad ones with more cases first, unmeasured ones last. What the search for
    damage says of a concept is said here too."""
    searched = {str(row["name"]): row for row in (damage or {}).get("rows", [])}
    rows = []
    for axis in wanted:
        for concept, raw in (axes.get(axis, {}).get("per_concept") or {}).items():
            r = rate(raw)
            bar = Markup(plots.interval_bar(*r.measured)) if r.measured else None
            order = (r.measured is None, r.measured[0] if r.measured else 0.0, -r.n)
            why = verdict.damaged(r, searched.get(concept), limits) if axis in KEEP_AXES else []
            rows.append((order, {"concept": concept, "axis": axis, "rate": r, "bar": bar, "damaged": "; ".join(why)}))
    return [row for _, row in sorted(rows, key=lambda entry: entry[0])]


def _broken(found: Mapping[str, Any]) -> RateText:
    """Broken cases of an attack, with those that have no valid image as its invalid ones: they resisted nothing."""
    return replace(rate(found), invalid=int(found.get("undecided", 0)))


def _attack_name(summary: Mapping[str, Any]) -> str:
    return listing([n for n, a in summary["attacks"].items() if a["role"] == "attack"] or list(summary["attacks"]))


def _attack(summary: Mapping[str, Any]) -> dict[str, Any]:
    """One attack and its controls as rows, and the union."""
    rows = [
        {"label": label, "role": a["role"], "tier": a["tier"], "rate": rate(a["rate"]), "undecided": a.get("undecided", 0)}
        for label, a in summary["attacks"].items()
    ]
    union = {"rate": rate(summary["union"]), "undecided": summary["union"].get("undecided", 0)}
    return {
        "name": _attack_name(summary),
        "budget": summary["budget"],
        "rows": rows,
        "union": union,
        "over": summary["union"]["over"],
    }


def _damage(found: Mapping[str, Any] | None, images: Path, axes: Axes, limits: verdict.Limits) -> dict[str, Any] | None:
    """What else the patch broke, the most damaged name first, with its pictures before and after. A concept that the evaluation
    measured too has one verdict in both places."""
    if found is None:
        return None
    kept = {c: rate(raw) for axis in KEEP_AXES for c, raw in (axes.get(axis, {}).get("per_concept") or {}).items()}
    rows = [
        {
            "name": str(row["name"]),
            "drop": estimate({"value": row["drop"], "low": row["low"], "high": row["high"]}, digits=1),
            "p": p_value(row["p"]),
            "damaged": "; ".join(verdict.damaged(kept.get(str(row["name"])), row, limits)),
            "preserved": kept[str(row["name"])].line if str(row["name"]) in kept else "",
            "named": [NOT_MEASURED if row[k] is None else f"{row[k]}/{found['seeds']}" for k in ("before", "after")],
            "invalid": int(row["invalid"]),
            "pair": [(w, picture(images, "damage", f"{i}-{w}")) for w in ("before", "after")],
        }
        for i, row in enumerate(found["rows"])
    ]
    return {**{k: found[k] for k in ("names", "by", "seeds")}, "damaged": sum(bool(r["damaged"]) for r in rows), "rows": rows}


def _gold(run: RunFile, found: Mapping[str, Any] | None) -> list[tuple[Entrant, list[str]]]:
    """Entrants with their distances from the gold model: by predictions on prompts of the target, near and far, then by names."""
    if found is None:
        return []
    rows = []
    for e in run.entrants:
        mine = found["entrants"].get(e.id, {})
        ratios = [estimate(mine[group], digits=2) if group in mine else NOT_MEASURED for group in ("target", "near", "far")]
        named = finite(mine.get("names"))
        rows.append((e, [*ratios, NOT_MEASURED if named is None else f"{named:.2f}"]))
    return rows


def _provenance(run: RunFile, subject: Entrant) -> dict[str, Any]:
    card: Mapping[str, Any] = subject.card or {}
    size = {name: card[name] for name in ("tensors", "parameters", "norm") if name in card}
    tables = [
        ("Request", settings(card.get("request"))),
        (f"Configuration of {card.get('method', subject.id)}", settings(card.get("config"))),
        ("UNet evaluations of the erasure", settings(card.get("cost"))),
        ("Size of the patch", settings(size)),
        ("Seconds, hardware and memory of the erasure", settings(_run(card))),
        ("Closed-form edit W' = W T", settings(_edit(card))),
        # The sketch, a few bytes of every tensor, is for the check of the base and not for people.
        ("Base model", settings({k: v for k, v in (card.get("base") or run.model).items() if k != "sketch"})),
        *(
            (f"Detector: {role}", settings(facts if isinstance(facts, Mapping) else {"name": facts}))
            for role, facts in run.detectors.items()
        ),
        *(
            (f"Prompt list {facts.get('source')}", settings(_listed(facts)))
            for facts in (run.suite.get("lists") or {}).get("files", ())
        ),
        ("Profile of the evaluation", settings({k: v for k, v in run.profile.items() if k != "command"})),
        ("Versions, erasure", settings(card.get("versions"))),
        ("Versions, evaluation", settings(run.versions)),
    ]
    command = run.profile.get("command")
    return {
        "tables": [(name, rows) for name, rows in tables if rows],
        "suite": [(axis, _suite_rows(entries)) for axis, entries in run.suite.items() if isinstance(entries, list) and entries],
        "command": command if isinstance(command, str) else " ".join(map(str, command)) if command else None,
    }


def _listed(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What was read from a prompt list and what was left out of it."""
    minors = facts.get("minors") or {}
    said = {
        "prompts in it": facts.get("read"),
        "left out because they speak of minors": sum(minors.values()),
        "left out because they look optimised and stand without the prompt they were made for": facts.get("unreadable"),
        "left out as repetitions": facts.get("duplicates"),
        "left out because they ask for no target": facts.get("of_no_target"),
        "left out because the model would cut them": facts.get("too_long"),
        "prompts kept": facts.get("kept"),
        "asked for": facts.get("asked"),
        "seeds derived from the row": facts.get("derived_seeds"),
    }
    return {**said, **{k: facts[k] for k in ("schema", "sha256", "licence") if facts.get(k)}}


def _run(card: Mapping[str, Any]) -> dict[str, Any]:
    spent = (card.get("log") or {}).get("run") or {}
    named = {"seconds": "seconds", "hardware": "hardware", "peak_gib": "peak memory in GiB"}
    return {said: spent[key] for key, said in named.items() if spent.get(key) is not None}


def _edit(card: Mapping[str, Any]) -> dict[str, Any]:
    """The one matrix T of a closed-form edit, and what undoes the edit."""
    said = closed_form(card)
    if not said:
        return {}
    back, beside = said["bring_back"], said.get("side_effect")
    spread = f"change of other names, relative to the target's (median of {beside['names']})" if beside else ""
    return {
        "condition number of T": "T has no inverse" if said["condition"] is None else said["condition"],
        "largest singular value of T": said["norm"],
        "gain on the empty prompt": said["null_gain"],
        "condition number of the solved system": said["system_condition"],
        **({spread: beside["median"]} if beside else {}),
        "target that is easiest to bring back": back["target"],
        "length of the embedding that brings it back, relative to the target's own": back["length"],
        "share of the target that this embedding misses": back["missed"],
    }


def _suite_rows(entries: Sequence[Any]) -> list[tuple[str, str, str]]:
    rows = [e if isinstance(e, Mapping) else {"name": e} for e in entries]
    return [(str(e.get("name", "")), str(e.get("source", "")), str(e.get("split", ""))) for e in rows]
