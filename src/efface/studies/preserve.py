"""What should be preserved: nothing, the neutral concept, a far one, a related one, random ones, or what the search finds?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..concepts.spaces import distances
from ..equations.statistics import matched_difference
from ..errors import EvaluationError
from .base import Study, nested
from .figures import COLOURS, dots, figure
from .lab import Erasure, Images, Lab, Want

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STRENGTHS = (0.75, 1.0, 1.25)
LEVEL = 0.9
TARGET_IMAGES = 16
TARGET_SEEDS = 900_000
AP: Mapping[str, Mapping[str, Any]] = {
    "ap-random": {"search": "random"},
    "ap-exhaustive": {"search": "exhaustive"},
}
FIXED = {"fixed-related": -1, "fixed-far": 0}
"""Row -> which of the names, ordered by text distance from far to near, is preserved."""


class Preserve(Study):
    """Measures the damage to all other concepts when every method erases the same share of the target's images.

    Every patch is scaled to 0.75, 1 and 1.25 times its strength. The mean fall of the image-text score of the other concepts
    is read where 90 % of the target's images are erased, by interpolation. The first method is compared with each other one,
    paired by target, training seed and case.
    """

    name = "preserve"
    question = "which preserved concept keeps the others best at equal erasure?"
    default_methods = ("ap", "naive", "neutral", "fixed-far", "fixed-related", "ap-random", "ap-exhaustive")
    default_images = 1
    default_targets = 2

    def erasure(self, lab: Lab, row: str, target: str, seed: int) -> Erasure:
        """Rows beyond the methods' own names: AP with another search, or with one fixed concept."""
        if row in AP:
            return Erasure(row, target, seed, "ap", tuple(AP[row].items()))
        if row in FIXED:
            rows = lab.model.encode([target, *self.others])
            order = distances(rows.tokens[0], rows.tokens[1:], "cosine").argsort(descending=True, stable=True).tolist()
            return Erasure(row, target, seed, "fixed", preserve=(self.others[order[FIXED[row]]],))
        return Erasure(row, target, seed)

    def _scans(self, e: Erasure) -> list[tuple[Images, Images]]:
        """Per strength: the target's images, and one image or more of every other concept."""
        seeds = tuple(range(TARGET_SEEDS, TARGET_SEEDS + TARGET_IMAGES))
        scaled = [replace(e, strength=s) for s in STRENGTHS]
        return [(Images(x, (e.target,), seeds), Images(x, self.others, tuple(range(self.images)))) for x in scaled]

    def wants(self, lab: Lab) -> Sequence[Want]:
        every = [self.erasure(lab, m, t, s) for m in self.methods for t in self.targets for s in self.seeds]
        return [scan for e in every for pair in self._scans(e) for scan in pair]

    def conclude(self, lab: Lab) -> dict[str, Any]:
        cases: dict[str, dict[str, dict[str, list[tuple[str, list[float]]]]]] = {}
        records = []
        for row in self.methods:
            for target in self.targets:
                for seed in self.seeds:
                    e = self.erasure(lab, row, target, seed)
                    own, others = zip(*self._scans(e), strict=True)
                    shown = lab.images(replace(own[0], erasure=None)).shown[0]
                    if not bool(shown.any()):
                        raise EvaluationError(f"the detector finds {target!r} in no image of the base model: nothing to erase.")
                    erased = torch.stack([lab.images(w).valid[0] & ~lab.images(w).shown[0] for w in own])[:, shown]
                    drop = torch.stack([lab.drops(w) for w in others]).flatten(1)
                    found = [("erased", column.tolist()) for column in erased.float().T]
                    found += [("rest", column.tolist()) for column in drop.T]
                    cases.setdefault(row, {}).setdefault(target, {})[str(seed)] = found
                    records += [
                        {
                            "row": row,
                            "target": target,
                            "seed": seed,
                            "preserved": list(e.preserve),
                            "strength": s,
                            "erased": int(x.sum()),
                            "n": len(x),
                            "drop": float(d.mean()),
                        }
                        for s, x, d in zip(STRENGTHS, erased, drop, strict=True)
                    ]
        reference, *rest = self.methods
        full = {
            row: nested({t: {s: [v[1] for k, v in c if k == "rest"] for s, c in seeds.items()} for t, seeds in tree.items()})
            for row, tree in cases.items()
        }
        matched = {row: matched_difference(_paired(cases[row], cases[reference]), LEVEL, 0.0) for row in rest}
        better = [row for row, m in matched.items() if m["interval"] and m["interval"][0] > 0]
        worse = [row for row, m in matched.items() if m["interval"] and m["interval"][1] < 0]
        sentence = (
            f"At {100 * LEVEL:.0f} % erasure {reference} hurts the other concepts less than {', '.join(better) or 'no other row'}"
            f"{' and more than ' + ', '.join(worse) if worse else ''}. The damage of the other rows minus that of "
            f"{reference}, in "
            "points of the image-text score, is " + "; ".join(f"{row} {difference_text(m)}" for row, m in matched.items()) + "."
        )
        return {"sentence": sentence, "reference": reference, "at_strength_1": full, "matched": matched, "records": records}

    def draw(self, numbers: Mapping[str, Any]) -> Figure:
        reference = numbers["reference"]
        rows = [
            (f"{row} minus {reference}", {"value": m["difference"], "low": low, "high": high})
            for row, m in numbers["matched"].items()
            for low, high in [m["interval"] or (None, None)]
        ]
        fig, (ax,) = figure(7.0, 1.0 + 0.32 * len(rows))
        dots(ax, rows, [COLOURS[0]] * len(rows))
        ax.set_xlabel(f"more damage to the others than {reference}, at {100 * LEVEL:.0f} % erasure (points)")
        return fig


def _paired(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Cases of two rows side by side."""
    return {t: {s: [(kind, x, y) for (kind, x), (_, y) in zip(a[t][s], b[t][s], strict=True)] for s in a[t]} for t in a}


def difference_text(m: Mapping[str, Any]) -> str:
    """``+1.2 {0.1, 2.2}`` of a :func:`matched_difference`."""
    if m["difference"] is None:
        return "level not reached"
    interval = f" {{{m['interval'][0]:.1f}, {m['interval'][1]:.1f}}}" if m["interval"] else ""
    return f"{m['difference']:+.1f}{interval}"
