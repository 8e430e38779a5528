"""What the search of adversarial preservation did during an erasure, from the log on the patch's card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from ..evaluation.records import Entrant
from . import plots
from .pictures import embedded_png
from .wording import finite

TIMELINE_CONCEPTS = 12
"""Concepts that the timeline shows."""


def searches(card: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """AP's chosen concepts, one entry per target: how often, when, and how undecided the search was."""
    log = ((card or {}).get("log") or {}).get("adversarial") or []
    first, last = min((e["step"] for e in log), default=0), max((e["step"] for e in log), default=0)
    found = []
    for target in dict.fromkeys(str(e["target"]) for e in log):
        entries = [e for e in log if str(e["target"]) == target]
        steps: dict[str, list[int]] = {}
        for e in entries:
            steps.setdefault(str(e["concept"]), []).append(int(e["step"]))
        chosen = sorted(steps.items(), key=lambda item: (-len(item[1]), item[1][0]))
        entropy = [(int(e["step"]), v) for e in entries if (v := finite(e.get("entropy"))) is not None]
        found.append(
            {
                "target": target,
                "choices": len(entries),
                "concepts": len(chosen),
                "timeline": Markup(plots.timeline(chosen[:TIMELINE_CONCEPTS], first, last)),
                "entropy": Markup(plots.curve(entropy, "entropy", first, last)) if entropy else None,
                "chosen": [(name, len(s), f"{100 * len(s) / len(entries):.0f}%", s[0], s[-1]) for name, s in chosen],
                "shown": TIMELINE_CONCEPTS,
            }
        )
    return found


def films(entrant: Entrant) -> list[dict[str, Any]]:
    """Pictures of the searched concept over the run, where the patch's card kept some: one strip per entrant."""
    shots = ((entrant.card or {}).get("log") or {}).get("film") or []
    frames = [
        {
            "step": int(shot["step"]),
            "concept": str(shot["concept"]),
            "pictures": [(who, embedded_png(str(shot[who]))) for who in ("frozen", "student")],
        }
        for shot in shots
    ]
    return [{"entrant": entrant.label, "target": str(shots[0]["target"]), "frames": frames}] if frames else []
