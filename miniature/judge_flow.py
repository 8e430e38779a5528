"""How the flow miniature is judged: the pictures, detectors and seeds of the miniature's card, for both networks."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

from diffusers import SD3Transformer2DModel

from efface.detectors.mini import ARCHITECTURES, MiniDetector, validity
from efface.models.icon_world import IconWorld

from .card import (
    GUIDANCE,
    SEEDS,
    STEPS,
    background_rates,
    bare,
    contact_sheet,
    judge_with,
    kind_rates,
    on_backgrounds,
    rate,
    style_rates,
    styled,
    wanted_concept,
)
from .flow import FlowSampler, Frozen

BARS = {
    # name: (stage, path to the rate, bar, whether more is better)
    "ordinary concepts": ("base1", ("concept", "ordinary"), 0.97, True),
    "reserved concepts": ("base1", ("concept", "reserved"), 0.97, True),
    "novel concepts": ("base1", ("concept", "novel"), 0.05, False),
    "background": ("base1", ("background", "all"), 0.95, True),
    "style, trained cells": ("base1", ("style", "trained_cells"), 0.77, True),
    "gold: ordinary concepts": ("base0", ("concept", "ordinary"), 0.97, True),
    "gold: reserved concepts": ("base0", ("concept", "reserved"), 0.05, False),
    "gold: novel concepts": ("base0", ("concept", "novel"), 0.05, False),
}


def judge_network(
    world: IconWorld, network: SD3Transformer2DModel, frozen: Frozen, sheet: Path, every: int = 1
) -> dict[str, Any]:
    """Counts with n by both detectors, and a contact sheet of every concept in every style.

    984 bare, 738 style, 416 background and 24 novel pictures for ``every = 1``; else those of every K-th concept.
    """
    detectors = {name: MiniDetector.load(name) for name in ARCHITECTURES}
    labels = detectors["report"].labels
    judge, model = judge_with(detectors), FlowSampler(network, frozen)
    known = world.names("ordinary", "reserved")[::every]
    direct = judge(model, bare([*known, *world.novel[::every]], range(SEEDS)))
    style_part = judge(model, styled(known, world.styles, 1000))
    contact_sheet(world, style_part, sheet)
    background_part = judge(model, on_backgrounds(world, known, random.Random(0))[::every])
    parts = (direct, style_part, background_part)
    named = {name: wanted_concept(direct, name, labels.concepts) for name in detectors}
    found = direct.named("report")
    reserved = [name for name in world.reserved if name in known]
    return {
        "sampler": {"solver": "euler", "steps": STEPS, "guidance": GUIDANCE, "seeds": SEEDS, "every": every},
        "concept": kind_rates(world, direct, named["report"], "ordinary", "reserved", "novel"),
        "concept_selection_detector": kind_rates(world, direct, named["selection"], "ordinary", "reserved", "novel"),
        "reserved": {
            name: {
                **rate([ok for ok, s in zip(named["report"], direct.shots, strict=True) if s.concept == name]),
                "drawn_as": Counter(
                    labels.concepts[k] for k, s in zip(found, direct.shots, strict=True) if s.concept == name
                ).most_common(3),
            }
            for name in reserved
        },
        "style": style_rates(world, style_part, labels),
        "background": background_rates(world, background_part, labels),
        "invalid": {
            "n": sum(len(part.shots) for part in parts),
            **Counter(r for part in parts for r in validity(part.images, part.scores["report"]) if r),
        },
        "seconds": {"sampling": sum(part.seconds for part in parts)},
    }


def bars(judged: dict[str, Any]) -> dict[str, Any]:
    """Each bar whose network was judged: the rate, the bar, and by how much it is reached or missed. A rate of no picture at all
    reaches nothing."""
    out = {}
    for name, (part, (table, kind), bar, more) in BARS.items():
        if part not in judged:
            continue
        r = judged[part][table][kind]
        if r["value"] is None:
            verdict, gap = "not measured", None
        else:
            gap = (r["value"] - bar) if more else (bar - r["value"])
            verdict = f"{'reached' if gap >= 0 else 'missed'} by {abs(100 * gap):.1f} points"
        out[name] = {"rate": r, "bar": bar, "at_least": more, "gap": gap, "verdict": verdict}
    return out
