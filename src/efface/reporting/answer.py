"""What the page opens with: is the target gone, what else broke, how sure is this, and what did it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluation.records import RunFile
from . import verdict
from .wording import NOT_MEASURED, RateText, duration, estimate, finite, percent, rate, setting

BADGES = {
    "erased": {"supported": "✓ gone", "contradicted": "✗ not gone", "open": "? undecided", "unmeasured": "not measured"},
    "kept": {
        "supported": "✓ near concepts kept",
        "contradicted": "✗ near concepts damaged",
        "open": "? undecided",
        "unmeasured": "not measured",
    },
}
NAMED_DAMAGE = 3
"""Damaged names that the answer on top spells out."""

Axes = Mapping[str, Mapping[str, Any]]


def answer(
    run: RunFile,
    card: Mapping[str, Any] | None,
    axes: Axes,
    broken: Mapping[str, Any] | None,
    attacks: Mapping[str, RateText],
    limits: verdict.Limits,
) -> dict[str, Any]:
    """Four questions, each with the verdict's badge and status where there is one and with sentences; and the rates behind them.
    ``broken``: what else was found damaged. ``attacks``: cases broken by attacks, by what is said of them."""
    direct, target = axes.get("direct", {}), listing(run.targets)
    detection, near, far = rate(direct.get("detection")), headline(axes.get("near")), headline(axes.get("far"))
    words = _generality(axes)
    # The resampled interval of a target axis belongs to erased_valid, not to detection, and is not shown here.
    others = rate(axes.get("synonym", {}).get("detection"))
    erased = verdict.erasure(target, detection, direct.get("difference"), others, attacks, limits)
    neighbours = verdict.keeping(near, limits)
    change = estimate(direct.get("difference"), scale=100, digits=1, unit=" points")
    questions = [
        (
            "Is the target gone?",
            BADGES["erased"][erased.status],
            erased.status,
            [erased.text, _by_other_words(axes), *_invalid(detection), *_undo(card)],
        ),
        (
            "What else broke?",
            BADGES["kept"][neighbours.status],
            neighbours.status,
            [neighbours.text, *_lost("far concepts", far), *_traps(axes), *_content(axes), _further(broken), *_spread(card)],
        ),
        ("How sure is this?", "", "", _certainty(run, detection, near, change)),
        ("What did it cost?", "", "", _cost(card)),
    ]
    facts = [
        (f"{target} still detected", "asked for by name, of valid images; lower is better", detection),
        ("erased by other words", "the worse of synonym and implicit; higher is better", words),
        ("near concepts preserved", "of those the unmodified model gets right; higher is better", near),
        ("far concepts preserved", "of those the unmodified model gets right; higher is better", far),
    ]
    return {"questions": questions, "facts": facts, "sentence": verdict.sentence(erased, neighbours)}


def _generality(axes: Axes) -> RateText:
    """The worse of synonym and implicit, erased and valid."""
    found = [r for axis in ("synonym", "implicit") if (r := headline(axes.get(axis))).measured]
    return min(found, key=lambda r: r.measured or (0.0, 0.0, 0.0)) if found else rate(None)


def _by_other_words(axes: Axes) -> str:
    """Whether synonyms and descriptions still bring the target."""
    said = []
    for axis, words in (("synonym", "by another name"), ("implicit", "by a description")):
        if (r := headline(axes.get(axis))).measured:
            said.append(f"in {r.text} of the images ({r.interval}) when it is asked for {words}")
    return f"It is erased {' and '.join(said)}." if said else "It was not measured whether other words still bring it back."


def _invalid(detection: RateText) -> list[str]:
    if not detection.invalid:
        return []
    n, images = detection.invalid, detection.invalid + detection.n
    return [f"{n} of {images} images {'is' if n == 1 else 'are'} invalid, which counts as broken and not as erased."]


def _undo(card: Mapping[str, Any] | None) -> list[str]:
    """The warning that a closed-form edit carries."""
    edit = closed_form(card)
    if not edit:
        return []
    back = edit["bring_back"]
    length = setting(float(f"{back['length']:.3g}"))
    exact = (
        "This edit has no exact inverse" if edit["condition"] is None else "Anyone who has both weight files can undo this edit"
    )
    whole = "brings it back" if back["missed"] < 1e-3 else f"brings back all but {percent(back['missed'])} of it"
    return [f"{exact}: an embedding {length} times as long as that of {back['target']} {whole}."]


def _spread(card: Mapping[str, Any] | None) -> list[str]:
    edit = closed_form(card)
    return [spread(edit)] if edit.get("side_effect") else []


FAR_SPREAD = 0.2
"""Median side effect of an edit above which it is not local: on development targets in two worlds, edits below kept 83 to
100 % of near images, edits above 30 to 58 %."""


def spread(edit: Mapping[str, Any]) -> str:
    """How much a closed-form edit changes beside the target, as a sentence; see :func:`efface.edits.facts`."""
    found = edit["side_effect"]
    worst = found["worst"]
    said = (
        f"What the network reads of other names changes {found['median']:.2f} times as much as what it reads of the target "
        f"(median of {found['names']} names; most for {worst['name']}, {worst['share']:.2f} times)."
    )
    if found["median"] > FAR_SPREAD:
        said += " This edit is not local: expect other concepts to break. The presets local of uce and rece hold them."
    return said


def closed_form(card: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What the card says about the one matrix of a closed-form edit; empty for other methods."""
    log = (card or {}).get("log") or {}
    found: Mapping[str, Any] = log.get("edit") or log.get("refinement") or {}
    return found


def _lost(what: str, kept: RateText) -> list[str]:
    return [f"{what.capitalize()} are preserved in {kept.text} of the images ({kept.interval})."] if kept.measured else []


def _traps(axes: Axes) -> list[str]:
    return _lost("concepts that share a word with the target", headline(axes.get("trap")))


def _content(axes: Axes) -> list[str]:
    """Of a style or an attribute: whether its prompts still show their object."""
    kept = headline(axes.get("content"))
    said = f"Prompts that name the target still show their object in {kept.text} of the images ({kept.interval})."
    return [said] if kept.measured else []


def _further(broken: Mapping[str, Any] | None) -> str:
    """What the search for damage in the whole concept space found."""
    if broken is None:
        return "The rest of the concept space was not searched for damage."
    searched = f"Of {broken['names']} names, the {len(broken['rows'])} that looked worst were measured again"
    hurt = [row for row in broken["rows"] if row["damaged"]]
    if not hurt:
        return f"{searched}, and no damage was found."
    names = listing([*(row["name"] for row in hurt[:NAMED_DAMAGE]), *(["others"] if len(hurt) > NAMED_DAMAGE else [])])
    return f"{searched}: {len(hurt)} {'is' if len(hurt) == 1 else 'are'} damaged ({names})."


def _certainty(run: RunFile, detection: RateText, near: RateText, change: str) -> list[str]:
    """What the intervals rest on."""
    cases = [f"{detection.n + detection.invalid} images of the target"] if detection.measured else []
    cases += [f"{near.n} images of near concepts"] if near.measured else []
    said = [f"All intervals are 95% intervals. They rest on {listing(cases)}, drawn with one patch."] if cases else []
    if change != NOT_MEASURED:
        said.append(
            f"On the same prompts and seeds, the detection of the target changes by {change} against the unmodified model."
        )
    report = run.detectors.get("report")
    named = report.get("name") if isinstance(report, Mapping) else report
    if named:
        sensitivity = rate(report["sensitivity"]) if isinstance(report, Mapping) and _is_rate(report.get("sensitivity")) else None
        found = f", which recognises {sensitivity.text} of correct images" if sensitivity and sensitivity.measured else ""
        said.append(f"Images were judged by {named}{found}.")
    return said or ["Nothing was measured."]


def _is_rate(raw: Any) -> bool:
    return isinstance(raw, Mapping) and {"value", "low", "high", "k", "n"} <= raw.keys()


def _cost(card: Mapping[str, Any] | None) -> list[str]:
    """Evaluations, and seconds, hardware and memory where the card has them."""
    if card is None:
        return ["No weight was changed, so nothing was trained."]
    forward, spent = finite((card.get("cost") or {}).get("forward")), (card.get("log") or {}).get("run") or {}
    seconds, memory = finite(spent.get("seconds")), finite(spent.get("peak_gib"))
    parts = [
        f"{setting(int(forward))} UNet evaluations"
        if forward is not None
        else "a number of UNet evaluations that is not recorded"
    ]
    parts += [duration(seconds) + (f" on {spent['hardware']}" if spent.get("hardware") else "")] if seconds is not None else []
    parts += [f"{memory:.1f}\N{NO-BREAK SPACE}GiB of memory at most"] if memory is not None else []
    text = f"The erasure took {listing(parts)}"
    lacking = "" if seconds is not None else " The patch does not record its seconds, hardware and memory."
    size = finite(card.get("parameters"))
    changed = f" The patch changes {setting(int(size))} weights." if size is not None else ""
    return [f"{text}.{lacking}{changed}"]


def headline(axis: Mapping[str, Any] | None) -> RateText:
    """The rate an axis is judged by: erased with a valid image where the target should go, preserved where it should stay."""
    if axis is None:
        return rate(None)
    return rate(axis.get("erased_valid") if axis["want"] == "low" else axis.get("preserved"), axis.get("clustered"))


def listing(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "nothing"
