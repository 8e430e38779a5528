"""Do the images of different erased concepts become one and the same image?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .base import Study, nested, said, sign
from .figures import COLOURS, dots, figure
from .lab import GOLD, Erasure, Images, Lab, Want

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NULL = ""


class Collapse(Study):
    """Every target is erased alone; its images on shared seeds are compared with those of the other erased targets and of the
    empty prompt, by the judge's image encoder: cosine after minus cosine before. Above 0: they moved together.

    Methods are compared on the same targets and seeds; the gold model's value stands beside where it never saw a target.
    """

    name = "collapse"
    question = "do images of different erased concepts become one image?"
    default_methods = ("naive", "age", "ap")
    default_images = 8
    min_targets = 2

    def _own(self, erasure: Erasure | None) -> Images:
        return Images(erasure, (*self.targets, NULL), tuple(range(self.images)))

    def wants(self, lab: Lab) -> Sequence[Want]:
        return [*(self._own(e) for e in self.erasures), *(self._own(e) for e in self._gold(lab))]

    def _gold(self, lab: Lab) -> list[Erasure]:
        unseen = [t for t in self.targets if t in lab.unseen]
        return [Erasure(GOLD, unseen[0])] if unseen else []

    def conclude(self, lab: Lab) -> dict[str, Any]:
        base = lab.images(self._own(None)).embedded
        found: dict[str, Any] = {}
        moved: dict[str, dict[str, dict[str, list[float]]]] = {}
        records = []
        for method in self.methods:
            to_null: dict[str, dict[str, list[float]]] = {}
            moved[method] = {}
            for seed in self.seeds:
                own = [lab.images(self._own(Erasure(method, t, seed))).embedded[i] for i, t in enumerate(self.targets)]
                for i, target in enumerate(self.targets):
                    values = together(own, base, i)
                    null = ((own[i] - base[i]) * base[-1]).sum(-1).tolist()
                    moved[method].setdefault(target, {})[str(seed)] = values
                    to_null.setdefault(target, {})[str(seed)] = null
                    means = {"together": sum(values) / len(values), "to_null": sum(null) / len(null)}
                    records.append({"method": method, "target": target, "seed": seed, **means})
            found[method] = {"together": nested(moved[method]), "to_null": nested(to_null)}
        for e in self._gold(lab):
            embedded = lab.images(self._own(e)).embedded
            i = self.targets.index(e.target)
            null = ((embedded[i] - base[i]) * base[-1]).sum(-1).tolist()
            found[GOLD] = {"target": e.target, "to_null": nested({e.target: {"0": null}})}
        first, *others = self.methods
        differences = {m: nested(_minus(moved[first], moved[m])) for m in others}
        verdict = {1: "move together", -1: "move apart", 0: "were not shown to move together"}[sign(found[first]["together"])]
        sentence = f"With {first}, images of different erased concepts {verdict}: cosine {said(found[first]['together'], 3)}."
        for m, d in differences.items():
            less = {1: "less", -1: "more", 0: "not shown to be less"}[sign(d)]
            sentence += f" With {m} {less}: {said(found[m]['together'], 3)}, difference {said(d, 3)}."
        return {"sentence": sentence, "methods": found, "differences": differences, "records": records}

    def draw(self, numbers: Mapping[str, Any]) -> Figure:
        fig, axes = figure(8.0, 0.9 + 0.4 * (1 + len(self.methods)), 1, 2)
        for ax, key, label in zip(axes, ("together", "to_null"), ("other erased concepts", "the empty prompt"), strict=True):
            rows = [(m, found[key]) for m, found in numbers["methods"].items() if key in found]
            dots(ax, rows, [COLOURS[k % len(COLOURS)] for k in range(len(rows))])
            ax.set_xlabel(f"change of cosine with images of {label}", fontsize=9)
        return fig


def together(own: Sequence[Tensor], base: Tensor, i: int) -> list[float]:
    """Per other concept and seed: cosine of erased concept i's and erased concept j's images, minus the same before."""
    return [v for j in range(len(own)) if j != i for v in ((own[i] * own[j]).sum(-1) - (base[i] * base[j]).sum(-1)).tolist()]


def _minus(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    return {t: {s: [x - y for x, y in zip(a[t][s], b[t][s], strict=True)] for s in a[t]} for t in a}
