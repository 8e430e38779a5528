"""Do the images of different erased concepts become one and the same image?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .base import Study, Tree, nested, said, sign
from .figures import COLOURS, dots, figure
from .lab import GOLD, Erasure, Images, Lab, Want

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NULL = ""


class Collapse(Study):
    """Compares the images of concepts that were erased one at a time.

    The images of an erased target are compared, on shared seeds, with those of the other erased targets and of the empty
    prompt, by the judge's image encoder. The result is the cosine after the erasure minus the cosine before; above 0 the
    images moved together. Methods are compared on the same targets and seeds. The gold model is shown for targets that it
    never saw.
    """

    name = "collapse"
    question = "do images of different erased concepts become one image?"
    default_methods = ("naive", "age", "ap")
    default_images = 8
    min_targets = 2

    def _own(self, erasure: Erasure | None) -> Images:
        return Images(erasure, (*self.targets, NULL), tuple(range(self.images)))

    def wants(self, lab: Lab) -> Sequence[Want]:
        return [self._own(e) for e in (*self.erasures, *self.gold(lab))]

    def conclude(self, lab: Lab) -> dict[str, Any]:
        base = lab.images(self._own(None)).embedded
        found: dict[str, Any] = {}
        moved: dict[str, Tree] = {}
        records = []
        for method in self.methods:
            moved[method], to_null = Tree(), Tree()
            for seed in self.seeds:
                erased = [Erasure(method, t, seed) for t in self.targets]
                own = [lab.images(self._own(e)).embedded[i] for i, e in enumerate(erased)]
                for i, e in enumerate(erased):
                    values, null = together(own, base, i), to_the_null(own[i], base, i)
                    moved[method].put(e, values)
                    to_null.put(e, null)
                    means = {"together": sum(values) / len(values), "to_null": sum(null) / len(null)}
                    records.append({"method": method, "target": e.target, "seed": seed, **means})
            found[method] = {"together": nested(moved[method]), "to_null": nested(to_null)}
        for e in self.gold(lab):
            i = self.targets.index(e.target)
            null = to_the_null(lab.images(self._own(e)).embedded[i], base, i)
            found[GOLD] = {"target": e.target, "to_null": nested({e.target: {str(e.seed): null}})}
        first, *others = self.methods
        differences = {m: nested(_minus(moved[first], moved[m])) for m in others}
        verdict = {1: "move together", -1: "move apart", 0: "were not shown to move together"}[sign(found[first]["together"])]
        change = said(found[first]["together"], 3)
        sentence = f"With {first}, images of different erased concepts {verdict}: the cosine changes by {change}."
        for m, d in differences.items():
            less = {1: "do so less", -1: "do so more", 0: "were not shown to do so less"}[sign(d)]
            sentence += f" With {m} they {less}: {said(found[m]['together'], 3)}, a difference of {said(d, 3)}."
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


def to_the_null(own: Tensor, base: Tensor, i: int) -> list[float]:
    """Per seed: cosine of erased concept i's image and the base model's of the empty prompt (the last), minus the same before."""
    return ((own - base[i]) * base[-1]).sum(-1).tolist()


def _minus(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    return {t: {s: [x - y for x, y in zip(a[t][s], b[t][s], strict=True)] for s in a[t]} for t in a}
