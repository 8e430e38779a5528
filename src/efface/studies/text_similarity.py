"""Does the similarity of the prompts predict which concepts an erasure hurts?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..equations.statistics import spearman_interval
from ..models.base import DiffusionModel
from ..models.cond import Cond
from .base import Study, Tree, nested, said, sign
from .figures import COLOURS, dots, figure
from .lab import Lab, Want, mean_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGES = "base images"


class TextSimilarity(Study):
    """Correlates a name's similarity to the target with its damage, by rank.

    The similarity is the cosine of text features at the first, middle and last layer, pooled at the last word, at the end
    token, over the words, and over all positions. The similarity of the unmodified model's images is given beside it. There
    is a result per target, with an interval over concepts, and one over all targets and training seeds.
    """

    name = "text-similarity"
    question = "does text similarity predict damage?"
    default_methods = ("naive",)

    def wants(self, lab: Lab) -> Sequence[Want]:
        return [self.scan(e) for e in self.erasures]

    def conclude(self, lab: Lab) -> dict[str, Any]:
        features = {**text_features(lab.model, self.names), IMAGES: lab.images(self.scan(None)).embedded.mean(1)}
        found: dict[str, Any] = {}
        records = []
        for method in self.methods:
            trees = {kind: Tree() for kind in features}
            for e in self.of(method):
                drop = mean_rows(lab.drops(self.scan(e)))
                target = self.names.index(e.target)
                rest = [i for i in range(len(self.names)) if i != target]
                for kind, x in features.items():
                    alike = torch.nn.functional.cosine_similarity(x[[target]].double(), x[rest].double()).tolist()
                    rho, interval = spearman_interval(alike, [drop[i] for i in rest])
                    if interval is None:
                        continue  # the same feature for every name, as the end token's before the first layer
                    trees[kind].put(e, [rho])
                    bounds = dict(zip(("low", "high"), interval, strict=True))
                    records.append({"method": method, "target": e.target, "seed": e.seed, "feature": kind, "rho": rho, **bounds})
            found[method] = {kind: nested(tree) for kind, tree in trees.items()}
        first = found[self.methods[0]]
        texts = {k: v for k, v in first.items() if k != IMAGES}
        best = max(texts, key=lambda k: texts[k]["value"] if texts[k]["value"] is not None else -2.0)
        verdict = {1: "goes with", -1: "goes against", 0: "was not shown to go with"}[sign(texts[best])]
        sentence = (
            f"With {self.methods[0]}, similarity of the text {verdict} damage. At its best pooling ({best}) the rank "
            f"correlation is {said(texts[best], 2)}; that of image similarity is {said(first[IMAGES], 2)}."
        )
        return {"sentence": sentence, "methods": found, "records": records}

    def draw(self, numbers: Mapping[str, Any]) -> Figure:
        rows = list(numbers["methods"][self.methods[0]].items())
        fig, (ax,) = figure(6.8, 0.9 + 0.27 * len(rows))
        dots(ax, rows, [COLOURS[1] if kind == IMAGES else COLOURS[0] for kind, _ in rows])
        ax.set_xlabel(f"rank correlation with damage ({self.methods[0]}); marks are targets")
        return fig


def text_features(model: DiffusionModel, names: Sequence[str]) -> dict[str, Tensor]:
    """(n, features) of every name, by layer and pooling."""
    layers = model.text_layers(names)
    chosen = {"first layer": layers[0], "middle layer": layers[len(layers) // 2], "last layer": layers[-1]}
    return {
        f"{at}, {how}": pool(c, how) for at, c in chosen.items() for how in ("last word", "end token", "words", "all positions")
    }


def pool(c: Cond, how: str) -> Tensor:
    """(n, d) or (n, L d) features of prompts."""
    if how == "last word":
        return c.last_token().cpu()
    if how == "end token":
        return c.end_token().cpu()
    if how == "words":  # the empty prompt has no word: its begin token stands in
        return torch.stack(
            [row[min(1, last) : last + 1].mean(0) for row, last in zip(c.tokens, c.last.tolist(), strict=True)]
        ).cpu()
    return c.tokens.flatten(1).cpu()
